"""JSON schemas with texts that follow them and texts that do not, checked by jsonschema; knows no grammar library.

Texts are written as json.dumps writes them, properties in the schema's order, because both libraries write so.
"""

from typing import Any

_STRING = {"type": "string"}
_INTEGER = {"type": "integer"}


def _object(required: list[str] | None = None, more: dict[str, Any] | None = None, **properties: Any) -> dict[str, Any]:
    listed = list(properties) if required is None else required
    return {"type": "object", "properties": properties, "required": listed, **(more or {})}


_NODE = {"$defs": {"node": _object(["v"], v=_INTEGER, next={"anyOf": [{"$ref": "#/$defs/node"}, {"type": "null"}]})}}

CASES: list[tuple[str, dict[str, Any], list[Any], list[Any]]] = [
    ("string", _STRING, ["", 'a "b" \\ /', "日本 é 😀", "line\nbreak\ttab"], [1, None, ["a"]]),
    ("integer", _INTEGER, [0, -7, 123456789012], [1.5, "1", True]),
    ("number", {"type": "number"}, [0, -1.5, 1e30], ["1", None]),
    ("boolean", {"type": "boolean"}, [True, False], [0, "true", None]),
    ("null", {"type": "null"}, [None], [0, "null"]),
    ("enum", {"enum": ["a", 3, None, {"k": [1]}]}, ["a", 3, None, {"k": [1]}], ["b", 4, {"k": [2]}]),
    ("const", {"const": 'q"\\'}, ['q"\\'], ["q"]),
    ("min max length", {**_STRING, "minLength": 2, "maxLength": 4}, ["ab", "日本語", "😀😀"], ["a", "abcde", "😀"]),
    ("pattern", {**_STRING, "pattern": "^[A-Z]{2}-\\d{3}$"}, ["AB-123"], ["ab-123", "AB-12", "AB-1234"]),
    ("pattern unanchored", {**_STRING, "pattern": "ab"}, ["ab", "xxabyy"], ["a b"]),
    ("range of integers", {**_INTEGER, "minimum": -5, "maximum": 130}, [-5, 0, 130], [-6, 131, 1000]),
    ("exclusive range", {**_INTEGER, "exclusiveMinimum": 0, "exclusiveMaximum": 10}, [1, 9], [0, 10]),
    ("range of numbers", {"type": "number", "minimum": 0, "maximum": 1}, [0, 0.25, 1], [-0.1, 1.5, 2]),
    ("multiple of", {**_INTEGER, "multipleOf": 5}, [0, 15, -20], [7, 12]),
    ("object", _object(a=_STRING, b=_INTEGER), [{"a": "x", "b": 1}], [{"a": "x"}, {"b": 1}, {"a": 1, "b": 1}]),
    ("optional", _object(["b"], a=_STRING, b=_INTEGER), [{"a": "x", "b": 1}, {"b": 1}], [{"a": "x"}, {}]),
    ("open object", _object(["a"], a=_INTEGER), [{"a": 1}, {"a": 1, "more": [2]}], [{"more": 1}]),
    (
        "closed object",
        _object(["a"], {"additionalProperties": False}, a=_INTEGER, b=_INTEGER),
        [{"a": 1}, {"a": 1, "b": 2}],
        [{"a": 1, "c": 2}],
    ),
    (
        "map of integers",
        {"type": "object", "additionalProperties": _INTEGER},
        [{}, {"x": 1, "y y": 2}],
        [{"x": "1"}, {"x": None}],
    ),
    (
        "pattern properties",
        {"type": "object", "patternProperties": {"^n_": _INTEGER}, "additionalProperties": False},
        [{}, {"n_a": 1}],
        [{"n_a": "1"}, {"b": 1}],
    ),
    ("min properties", {"type": "object", "additionalProperties": _INTEGER, "minProperties": 1}, [{"a": 1}], [{}]),
    ("array", {"type": "array", "items": _INTEGER}, [[], [1, 2, 3]], [[1, "2"], {}]),
    (
        "array length",
        {"type": "array", "items": _INTEGER, "minItems": 1, "maxItems": 2},
        [[1], [1, 2]],
        [[], [1, 2, 3]],
    ),
    (
        "tuple",
        {"type": "array", "prefixItems": [_STRING, _INTEGER], "items": False, "minItems": 2},
        [["a", 1]],
        [["a"], [1, "a"], ["a", 1, 2]],
    ),
    ("unique items", {"type": "array", "items": {"enum": [1, 2]}, "uniqueItems": True}, [[1, 2]], [[1, 1]]),
    ("any of", {"anyOf": [_INTEGER, {"type": "null"}]}, [1, None], ["1", 1.5]),
    ("one of, apart", {"oneOf": [_object(k={"const": "a"}), _object(k={"const": "b"})]}, [{"k": "a"}], [{"k": "c"}]),
    (
        "one of, overlapping",
        {"oneOf": [{**_INTEGER, "minimum": 0}, {**_INTEGER, "maximum": 10}]},
        [-1, 11],
        [5, "5"],
    ),
    ("all of", {"allOf": [_object(["a"], a=_INTEGER), _object(["b"], b=_STRING)]}, [{"a": 1, "b": "x"}], [{"a": 1}]),
    ("types", {"type": ["string", "integer"]}, ["a", 1], [None, 1.5]),
    (
        "reference",
        {**_NODE, "$ref": "#/$defs/node"},
        [{"v": 1}, {"v": 1, "next": {"v": 2, "next": None}}],
        [{"next": None}],
    ),
    ("date", {**_STRING, "format": "date"}, ["2026-01-31"], ["2026-13-01", "today"]),
    ("date and time", {**_STRING, "format": "date-time"}, ["2026-01-31T10:00:00Z"], ["2026-01-31"]),
    ("mail", {**_STRING, "format": "email"}, ["a.b@c.org"], ["a b"]),
    ("uuid", {**_STRING, "format": "uuid"}, ["123e4567-e89b-12d3-a456-426614174000"], ["123e4567"]),
    ("address", {**_STRING, "format": "ipv4"}, ["10.0.0.255"], ["10.0.0.256", "10.0"]),
    (
        "odd names",
        _object(**{"a b": _INTEGER, "é": _INTEGER, 'q"': _INTEGER}),
        [{"a b": 1, "é": 2, 'q"': 3}],
        [{"a b": 1}],
    ),
    ("no arguments", _object(more={"additionalProperties": False}), [{}], [{"a": 1}]),
    ("anything", {}, [1, "a", [None, {"b": True}]], []),
    (
        "extraction",
        _object(
            ["title", "people"],
            title={**_STRING, "maxLength": 60},
            people={"type": "array", "items": _object(["name"], name=_STRING, age={**_INTEGER, "minimum": 0})},
            mood={"enum": ["good", "bad"]},
        ),
        [{"title": "A visit", "people": [{"name": "Ann", "age": 7}, {"name": "Bob"}], "mood": "good"}],
        [
            {"title": "A visit"},
            {"title": "A", "people": [{"age": 7}]},
            {"title": "A", "people": [{"name": "B", "age": -1}]},
        ],
    ),
]
"""Name, schema, values that follow it, values that do not."""
