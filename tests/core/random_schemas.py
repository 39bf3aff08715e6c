"""Draws JSON schemas of the keywords that are in use; knows nothing of models."""

import random
from collections.abc import Callable
from typing import Any

Schema = dict[str, Any]

WORDS = ("name", "age", "a b", "é", "x_1", "$ref?", 'say "hi"', "日本", "items")


def random_schema(draw: random.Random, depth: int = 0) -> Schema:
    """A schema whose values are short, so that a random model may come to an end."""
    leaves: list[Callable[[random.Random], Schema]] = [_string, _integer, _number, _fixed, _pattern, _format]
    if depth < 3 and draw.random() < (0.9, 0.5, 0.3)[depth]:
        return draw.choice([_object, _object, _array, _union, _reference if depth == 0 else _array])(draw, depth)
    return draw.choice(leaves)(draw)


def _string(draw: random.Random) -> Schema:
    return {"type": "string", "minLength": draw.randint(0, 2), "maxLength": draw.randint(2, 6)}


def _integer(draw: random.Random) -> Schema:
    low = draw.randint(-50, 50)
    upper = draw.choice(["maximum", "exclusiveMaximum"])
    schema = {"type": "integer", "minimum": low, upper: low + draw.randint(1, 500)}
    return schema | ({"multipleOf": 1} if draw.random() < 0.1 else {})


def _number(draw: random.Random) -> Schema:
    low = draw.randint(-9, 9)
    return {"type": "number", draw.choice(["minimum", "exclusiveMinimum"]): low, "maximum": low + draw.randint(1, 9)}


def _fixed(draw: random.Random) -> Schema:
    values: list[Any] = [None, True, 3, -1.5, "a", 'q"\\', "日本", [1, "b"], {"k": [None]}]
    if draw.random() < 0.3:
        return {"const": draw.choice(values)}
    return draw.choice([{"enum": draw.sample(values, 3)}, {"type": "boolean"}, {"type": "null"}])


def _pattern(draw: random.Random) -> Schema:
    return {"type": "string", "pattern": draw.choice(["^[a-c]{1,3}$", "^\\d{3}-\\d{2}$", "^(x|yy)+z$", "^[^\\s]{2}$"])}


def _format(draw: random.Random) -> Schema:
    return {"type": "string", "format": draw.choice(["date", "time", "date-time", "uuid", "ipv4"])}


def _object(draw: random.Random, depth: int) -> Schema:
    names = draw.sample(WORDS, draw.randint(0, 3))
    schema: Schema = {
        "type": "object",
        "properties": {name: random_schema(draw, depth + 1) for name in names},
        "required": [name for name in names if draw.random() < 0.7],
    }
    if draw.random() < 0.3:
        schema["additionalProperties"] = draw.choice([False, {"type": "boolean"}])
    return schema


def _array(draw: random.Random, depth: int) -> Schema:
    if draw.random() < 0.3:
        items = [random_schema(draw, depth + 1) for _ in range(draw.randint(1, 2))]
        return {"type": "array", "prefixItems": items, "items": False, "minItems": len(items)}
    low = draw.randint(0, 1)
    return {"type": "array", "items": random_schema(draw, depth + 1), "minItems": low, "maxItems": low + 2}


def _union(draw: random.Random, depth: int) -> Schema:
    kinds: list[Schema] = [{"type": ["string", "null"], "maxLength": 3}, _integer(draw), _object(draw, depth + 1)]
    return {"anyOf": draw.sample(kinds, 2)}


def _reference(draw: random.Random, depth: int) -> Schema:
    schema: Schema = {"$defs": {"part": random_schema(draw, depth + 1)}}
    return schema | {"type": "array", "items": {"$ref": "#/$defs/part"}, "maxItems": 2}
