"""Random JSON schemas of the kinds that requests bring: nested, with references, bounds, patterns and formats."""

from __future__ import annotations

from random import Random
from typing import Any

NAMES = ["id", "name", "size", "tags", "a b", "ünïcode", 'quo"te', "x-y", "kind", "next"]
FORMATS = ["date", "time", "date-time", "email", "uuid", "ipv4", "hostname", "uri", "duration"]
PATTERNS = ["^[a-z]{2,5}$", "^[A-Z][0-9]{3}$", "^(yes|no)$", r"^\d{4}-\d{2}$", "^a+b*$", r"^[\w.]+@x\.org$"]


def random_schema(random: Random, depth: int = 3) -> dict[str, Any]:
    """A schema that some short text satisfies."""
    defs = {f"D{i}": _any(random, 1, []) for i in range(random.choice([0, 0, 1, 2]))}
    schema = _object(random, depth, list(defs)) if random.random() < 0.8 else _any(random, depth, list(defs))
    return {**schema, "$defs": defs} if defs else schema


def _any(random: Random, depth: int, defs: list[str]) -> dict[str, Any]:
    kinds = [_string, _number, _integer, _constant, _nullable]
    if depth > 0:
        kinds += [_object, _object, _array, _union]
    if defs and random.random() < 0.3:
        return {"$ref": f"#/$defs/{random.choice(defs)}"}
    return random.choice(kinds)(random, depth, defs)


def _object(random: Random, depth: int, defs: list[str]) -> dict[str, Any]:
    names = random.sample(NAMES, random.randint(1, 4))
    schema: dict[str, Any] = {
        "type": "object",
        "properties": {name: _any(random, depth - 1, defs) for name in names},
        "required": [name for name in names if random.random() < 0.7],
    }
    more = random.choice([False, False, False, None, {"type": "integer"}])
    return schema if more is None else {**schema, "additionalProperties": more}


def _array(random: Random, depth: int, defs: list[str]) -> dict[str, Any]:
    least = random.randint(0, 2)
    schema = {"type": "array", "minItems": least, "maxItems": least + random.randint(0, 2)}
    if random.random() < 0.2:
        return {**schema, "prefixItems": [_any(random, 0, defs)], "items": _any(random, 0, defs)}
    return {**schema, "items": _any(random, depth - 1, defs)}


def _union(random: Random, depth: int, defs: list[str]) -> dict[str, Any]:
    return {"anyOf": [_any(random, depth - 1, defs) for _ in range(random.randint(2, 3))]}


def _string(random: Random, depth: int, defs: list[str]) -> dict[str, Any]:
    kind = random.randrange(4)
    if kind == 0:
        return {"type": "string", "pattern": random.choice(PATTERNS)}
    if kind == 1:
        return {"type": "string", "format": random.choice(FORMATS)}
    least = random.randint(0, 3)
    return {"type": "string", "minLength": least, "maxLength": least + random.randint(0, 8)}


def _number(random: Random, depth: int, defs: list[str]) -> dict[str, Any]:
    low = random.choice([-10.5, 0, 0.25, 3])
    return random.choice(
        [
            {"type": "number"},
            {"type": "number", "minimum": low, "maximum": low + random.choice([0.5, 7, 1000])},
            {"type": "number", "exclusiveMinimum": low, "exclusiveMaximum": low + 2},
        ]
    )


def _integer(random: Random, depth: int, defs: list[str]) -> dict[str, Any]:
    low = random.randint(-300, 300)
    return random.choice(
        [{"type": "integer"}, {"type": "integer", "minimum": low, "maximum": low + random.randint(0, 500)},
         {"type": "integer", "multipleOf": random.choice([2, 5, 10])}]
    )  # fmt: skip


def _constant(random: Random, depth: int, defs: list[str]) -> dict[str, Any]:
    values: list[Any] = ["red", "dark green", 7, -1.5, True, None, 'a "b" \\ c', "é🙂"]
    if random.random() < 0.3:
        return {"const": random.choice(values)}
    if random.random() < 0.2:
        return {"type": "boolean"}
    return {"enum": random.sample(values, random.randint(1, 4))}


def _nullable(random: Random, depth: int, defs: list[str]) -> dict[str, Any]:
    return {"type": [random.choice(["string", "integer", "boolean"]), "null"]}
