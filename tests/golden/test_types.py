"""Keyword arguments as a type checker sees them (``make check`` has one look at them from outside)."""

from __future__ import annotations

from typing import get_type_hints

import pytest
from pydantic import BaseModel

from fsgen_router import RequestKeywords, RequestOptions
from fsgen_router.adapters.llama_cpp import LlamaCppKeywords, LlamaCppOptions
from fsgen_router.adapters.openai import OpenAIKeywords, OpenAIOptions
from fsgen_router.adapters.tokens import TokensKeywords, TokensOptions
from fsgen_router.adapters.transformers import TransformersKeywords, TransformersOptions


@pytest.mark.parametrize(
    ("keywords", "options"),
    [
        (RequestKeywords, RequestOptions),
        (LlamaCppKeywords, LlamaCppOptions),
        (OpenAIKeywords, OpenAIOptions),
        (TokensKeywords, TokensOptions),
        (TransformersKeywords, TransformersOptions),
    ],
)
def test_keywords_are_the_options(keywords: type, options: type[BaseModel]) -> None:
    assert get_type_hints(keywords).keys() == options.model_fields.keys()
