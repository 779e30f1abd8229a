"""Random JSON Schemas, of keywords that a grammar can hold. Most values are short, so that small models end them."""

from __future__ import annotations

from typing import Any

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

Schemas = st.SearchStrategy[dict[str, Any]]

_NAMES = st.sampled_from(["name", "kind", "n", "city of birth", "größe", 'a "b"', "next"])
_WORDS = ["", "red", "two words", "größe", 'quote " and \\', "line\nbreak", "12", "€"]
_VALUES = st.sampled_from([None, True, False, 0, -7, 1.5, [], [1, "a"], {}, {"a": None}, *_WORDS])
_FEW, _SOME, _LOW, _HIGH = st.integers(0, 2), st.integers(2, 4), st.integers(-120, 100), st.integers(100, 5000)
_PATTERNS = st.sampled_from(["^[a-f]{2,4}$", "^(ab|cd)*e$", r"^[0-9]+-\w{1,3}$", "^[ä-ö]$", "x{2}"])
_FORMATS = st.sampled_from(["date", "time", "date-time", "uuid", "ipv4", "email"])


def _kind(kind: str, always: dict[str, st.SearchStrategy[Any]] | None = None, **perhaps: Any) -> Schemas:
    """Schemas of one type, with keywords that always stand there, and some that may."""
    return st.fixed_dictionaries({"type": st.just(kind), **(always or {})}, optional=perhaps)


_LEAVES: Schemas = st.one_of(
    _kind("string", {"maxLength": st.integers(2, 12)}, minLength=_FEW),
    _kind("string", minLength=_FEW),
    _kind("string", {"pattern": _PATTERNS}),
    _kind("string", {"format": _FORMATS}),
    _kind("integer", minimum=_LOW, maximum=_HIGH, multipleOf=st.sampled_from([1, 2, 7, 10])),
    _kind("number", minimum=_LOW, exclusiveMaximum=_HIGH),
    _kind("boolean"),
    _kind("null"),
    st.fixed_dictionaries(
        {"type": st.just(["integer", "null", "string"])}, optional={"maxLength": _SOME, "maximum": _HIGH}
    ),
    st.fixed_dictionaries({"enum": st.lists(_VALUES, min_size=1, max_size=4)}),
    st.fixed_dictionaries({"const": _VALUES}),
)


@st.composite
def _closed(draw: st.DrawFn, parts: Schemas) -> dict[str, Any]:
    properties = draw(st.dictionaries(_NAMES, parts, min_size=1, max_size=4))
    required = draw(st.lists(st.sampled_from(sorted(properties)), unique=True))
    return {"type": "object", "properties": properties, "required": required, "additionalProperties": False}


def _nested(parts: Schemas) -> Schemas:
    return st.one_of(
        _closed(parts),
        _closed(parts),
        _closed(parts),
        _kind("object", {"additionalProperties": parts, "maxProperties": _SOME}, minProperties=_FEW),
        _kind("array", {"items": parts, "maxItems": _SOME}, minItems=_FEW),
        _kind("array", {"prefixItems": st.lists(parts, min_size=1, max_size=3), "items": st.just(False)}),
        st.fixed_dictionaries({"anyOf": st.lists(parts, min_size=1, max_size=3)}),
    )


@st.composite
def _recursive(draw: st.DrawFn) -> dict[str, Any]:
    """A tree: each object may hold another of its kind."""
    tree = draw(_closed(_LEAVES))
    tree["properties"]["child"] = {"anyOf": [{"$ref": "#/$defs/tree"}, {"type": "null"}]}
    return {"$defs": {"tree": tree}, "$ref": "#/$defs/tree"}


SCHEMAS: Schemas = st.one_of(_nested(st.recursive(_LEAVES, _nested, max_leaves=8)), _closed(_LEAVES), _recursive())


def random_schemas(count: int, *, number: int) -> list[dict[str, Any]]:
    """So many schemas, the same ones for one ``number``. A grammar may refuse some, which nothing satisfies."""
    drawn: list[dict[str, Any]] = []

    @seed(number)
    @settings(
        max_examples=2 * count,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(SCHEMAS)
    def collect(schema: dict[str, Any]) -> None:
        if schema not in drawn:
            drawn.append(schema)

    collect()
    return drawn[:count]
