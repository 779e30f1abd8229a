"""What ``response_format`` asks for, and what an answer of that form says."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal, TypeAlias, cast

from pydantic import BaseModel, PydanticUserError, ValidationError
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue
from pydantic_core import core_schema

Kind: TypeAlias = Literal["text", "json_object", "json_schema"]

FORMS: Final = (
    '{"type": "json_schema", "json_schema": {"name": ..., "schema": {...}}}, {"type": "json_object"}, '
    '{"type": "text"}, or a pydantic model'
)
_ANY_OBJECT: Final[Mapping[str, Any]] = {"type": "object"}


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerFormat:
    """The form of an answer: any text, any JSON object, or JSON of a schema, which a pydantic model may have given."""

    kind: Kind
    schema: Mapping[str, Any] | None = None
    """What the answer is held to; None: any text."""
    name: str = "answer"
    strict: bool = True
    """False: keywords of the schema that no grammar can hold are ignored, so the answer may break them."""
    said_strict: bool = False
    """Whether an endpoint is told so too: some refuse schemas then that leave a property to choice."""
    model: type[BaseModel] | None = None

    def parse(self, text: str) -> tuple[Any, str | None]:
        """What a whole answer says, and why it is None where it says nothing.

        An instance of the model, where one was given, else the JSON value. A model's own validators may refuse what
        its schema allows.
        """
        try:
            return (json.loads(text) if self.model is None else self.model.model_validate_json(text)), None
        except ValidationError as error:
            first = error.errors(include_url=False, include_context=False)[0]
            where = ".".join(map(str, first["loc"]))
            return None, f"{self.name}: {where}{': ' if where else ''}{first['msg']}"
        except Exception as error:  # a model's own validator may raise anything, and the answer is there
            what = "no JSON" if self.model is None else f"{self.name}: {type(error).__name__}"
            return None, f"{what}: {error}"

    def to_dict(self) -> dict[str, Any]:
        """The form of OpenAI's API."""
        if self.kind != "json_schema":
            return {"type": self.kind}
        name = re.sub(r"[^\w-]", "_", self.name, flags=re.ASCII)[:64] or "answer"
        made = {"name": name, "schema": self.schema} | ({"strict": True} if self.said_strict else {})
        return {"type": self.kind, "json_schema": made}

    def __repr__(self) -> str:
        return f"AnswerFormat({self.kind!r}, name={self.name!r})"


def read_format(value: object) -> AnswerFormat:
    """A ``response_format`` in the form of OpenAI's API, or a pydantic model. Raises ``ValueError``."""
    if isinstance(value, AnswerFormat):
        return value
    if isinstance(value, type) and issubclass(value, BaseModel):
        return AnswerFormat(kind="json_schema", schema=_schema_of(value), name=value.__name__, model=value)
    if not isinstance(value, Mapping) or value.get("type") not in ("text", "json_object", "json_schema"):
        raise ValueError(f"wanted is {FORMS}")
    kind = cast(Kind, value["type"])
    allowed = {"type", "json_schema"} if kind == "json_schema" else {"type"}
    if unknown := sorted(map(str, set(value) - allowed)):
        raise ValueError(f"{kind} has no {unknown[0]!r}: wanted is {FORMS}")
    if kind == "text":
        return AnswerFormat(kind=kind)
    if kind == "json_object":
        return AnswerFormat(kind=kind, schema=_ANY_OBJECT)
    return _of_schema(value.get("json_schema"))


def _schema_of(model: type[BaseModel]) -> Mapping[str, Any]:
    try:
        return model.model_json_schema(schema_generator=_Closed)
    except PydanticUserError as error:
        raise ValueError(f"{model.__name__} has no JSON Schema: {error.message}") from None


class _Closed(GenerateJsonSchema):
    """Schemas of models whose objects have their fields and no others, unless they say that they take more."""

    def model_schema(self, schema: core_schema.ModelSchema) -> JsonSchemaValue:
        return _closed(super().model_schema(schema))

    def dataclass_schema(self, schema: core_schema.DataclassSchema) -> JsonSchemaValue:
        return _closed(super().dataclass_schema(schema))

    def typed_dict_schema(self, schema: core_schema.TypedDictSchema) -> JsonSchemaValue:
        return _closed(super().typed_dict_schema(schema))


def _closed(schema: JsonSchemaValue) -> JsonSchemaValue:
    return {"additionalProperties": False, **schema} if "properties" in schema else schema


def _of_schema(part: object) -> AnswerFormat:
    if not isinstance(part, Mapping) or not isinstance(part.get("schema"), Mapping):
        raise ValueError('json_schema is {"name": ..., "schema": {...}}, and its schema an object')
    if unknown := sorted(map(str, set(part) - {"name", "schema", "strict", "description"})):
        raise ValueError(f"json_schema has no {unknown[0]!r}: it has name, schema, strict and description")
    name, strict = part.get("name", "answer"), part.get("strict")
    if not isinstance(name, str):
        raise ValueError(f"a name of json_schema is a text, not {name!r}")
    if not isinstance(strict, bool | None):
        raise ValueError(f"strict is true or false, not {strict!r}")
    return AnswerFormat(
        kind="json_schema", schema=part["schema"], name=name, strict=strict is not False, said_strict=strict is True
    )
