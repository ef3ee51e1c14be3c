"""Lists, and answers in JSON."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

from .copying import repeat, reverse_letters, reverse_words
from .exchange import Exchange, Json, Pen, capital, command, is_json, parse_json
from .numbers import NUMBER_WORDS, add, count, subtract
from .unknown import other
from .words import ANIMALS, CATEGORIES, CITIES, COUNTRIES, FOODS, PEOPLE

_LIST_COMMANDS = [
    "list {n} {things}", "name {n} {things}", "give me {n} {things}", "tell me {n} {things}", "write {n} {things}",
    "list {n} different {things}", "give me a list of {n} {things}", "make a list of {n} {things}",
]  # fmt: skip
_JSON_LIST_COMMANDS = [
    "list {n} {things} as JSON", "list {n} {things} in JSON", "give me {n} {things} as a JSON list",
    "give me a JSON list of {n} {things}", "give me a JSON array of {n} {things}", "name {n} {things} in JSON",
    "write a JSON array with {n} {things}", "make a JSON list of {n} {things}", "return {n} {things} as a JSON array",
    "list {n} {things}. Answer in JSON", "name {n} {things}. Reply in JSON", "JSON list of {n} {things}",
    "answer in JSON: list {n} {things}", "answer in JSON: name {n} {things}", "in JSON, list {n} {things}",
]  # fmt: skip


def _members(pen: Pen) -> tuple[str, int, list[str], dict[str, object]]:
    """A category, how many of it, such members, and the fields for a prompt."""
    category = pen.rng.choice(list(CATEGORIES))
    plural, all_members = CATEGORIES[category]
    number = pen.rng.randint(1, 7)
    start = pen.rng.randrange(len(all_members))
    chosen = [all_members[(start + i) % len(all_members)] for i in range(number)]
    shown = NUMBER_WORDS[number] if pen.chance(0.6) else str(number)
    return category, number, chosen, {"n": shown, "things": category if number == 1 else plural}


def _distinct_members(category: str, number: int, items: object) -> bool:
    if not isinstance(items, list) or not all(isinstance(item, str) for item in items):
        return False
    return len(items) == len(set(items)) == number and set(items) <= set(CATEGORIES[category][1])


def _judge_plain_list(category: str, number: int, output: str) -> bool:
    return _distinct_members(category, number, output.strip().split(", "))


def _judge_json_list(category: str, number: int, output: str) -> bool:
    return _distinct_members(category, number, parse_json(output)[1])


def _list_key(category: str, number: int) -> str:
    """One of a kind is never held out: it is the only place where the singular of a category is seen."""
    return "" if number == 1 else f"list:{category}:{number}"


def plain_list(pen: Pen) -> Exchange:
    """Some members of a category, separated by commas."""
    category, number, chosen, fields = _members(pen)
    prompt = command(pen, pen.rng.choice(_LIST_COMMANDS), fields)
    judge = partial(_judge_plain_list, category, number)
    return Exchange("list", prompt, ", ".join(chosen), _list_key(category, number), judge)


def _any_case_json(pen: Pen, text: str) -> str:
    return text.replace("JSON", "json") if pen.chance(0.25) else text


def _json_list(pen: Pen) -> Exchange:
    category, number, chosen, fields = _members(pen)
    prompt = _any_case_json(pen, command(pen, pen.rng.choice(_JSON_LIST_COMMANDS), fields))
    judge = partial(_judge_json_list, category, number)
    return Exchange("json", prompt, json.dumps(chosen), _list_key(category, number), judge)


_FIELDS: dict[str, Callable[[Pen], Json]] = {
    "name": lambda pen: pen.name(),
    "age": lambda pen: pen.rng.randint(1, 99),
    "city": lambda pen: pen.rng.choice(CITIES),
    "country": lambda pen: pen.rng.choice(COUNTRIES),
    "color": lambda pen: pen.rng.choice(CATEGORIES["color"][1]),
    "animal": lambda pen: pen.rng.choice(ANIMALS),
    "food": lambda pen: pen.rng.choice(FOODS),
    "job": lambda pen: pen.rng.choice(PEOPLE),
    "pet": lambda pen: pen.rng.choice(ANIMALS),
    "friend": lambda pen: pen.name(),
    "price": lambda pen: pen.rng.randint(1, 999),
    "count": lambda pen: pen.rng.randint(0, 99),
    "score": lambda pen: pen.rng.randint(0, 100),
    "id": lambda pen: pen.rng.randint(1, 9999),
    "active": lambda pen: pen.chance(0.5),
    "title": lambda pen: pen.word(),
    "size": lambda pen: pen.rng.choice(["small", "big", "tiny", "large"]),
}


def _record(pen: Pen) -> dict[str, Json]:
    """One to four named values: mostly well-known fields, sometimes any words."""
    record: dict[str, Json] = {}
    for _ in range(pen.rng.choice([1, 2, 2, 2, 3, 3, 4])):
        if pen.chance(0.75):
            key = pen.rng.choice(list(_FIELDS)[:2] if pen.chance(0.3) else list(_FIELDS))
            record[key] = _FIELDS[key](pen)
        else:
            record[pen.word().lower()] = pen.rng.randint(0, 999) if pen.chance(0.4) else pen.word()
    return record


def _enumerated(pen: Pen, parts: Sequence[str]) -> str:
    """Parts joined as people write them: "a, b and c", "a and b and c" or "a, b"."""
    if len(parts) == 1 or pen.chance(0.25):
        return ", ".join(parts)
    if pen.chance(0.2):
        return " and ".join(parts)
    return ", ".join(parts[:-1]) + pen.rng.choice([" and ", ", and "]) + parts[-1]


def _described(pen: Pen, record: dict[str, Json]) -> str:
    shown = {key: json.dumps(value) if isinstance(value, bool) else str(value) for key, value in record.items()}
    style = pen.rng.choice(["{} {}", "{} {}", "{}={}", "{}: {}", "{} = {}", '{} "{}"', "{} is {}"])
    parts = [style.format(key, value) for key, value in shown.items()]
    return _enumerated(pen, parts) if style.startswith("{} ") and "=" not in style else ", ".join(parts)


_OBJECT_COMMANDS = [
    "give me a JSON object with {fields}", "give me a JSON object with {fields}", "make a JSON object with {fields}",
    "write JSON with {fields}", "create a JSON object with {fields}", "convert to JSON: {fields}",
    "turn this into JSON: {fields}", "make JSON: {fields}", "return JSON with {fields}", "JSON object with {fields}",
    "write a JSON object: {fields}", "put this in JSON: {fields}", "generate JSON with {fields}",
    "give me JSON for {fields}", "answer in JSON: {fields}", "as JSON: {fields}", "convert {fields} to JSON",
    "give me an object with {fields} as JSON", "output a JSON object with {fields}", "write {fields} as JSON",
]  # fmt: skip
_PERSON_COMMANDS = [
    "give me a JSON object for a person named {name} who is {age} years old",
    "make a JSON object for {name}, who is {age} years old", "write JSON for {name}, age {age}",
    "describe {name}, who is {age}, as JSON", "answer in JSON: my name is {name} and I am {age} years old",
    "give me JSON for a person named {name} aged {age}", "make JSON for a {age} year old named {name}",
    "give me a JSON object for {name}, {age} years old", "write a JSON object for a person called {name} of age {age}",
    "JSON for a person named {name}, age {age}", "as JSON: {name} is {age} years old",
    "{name} is {age}, write that as JSON",
]  # fmt: skip
_KEYS_COMMANDS = [
    "give me a JSON object with the keys {keys}", "make a JSON object with the fields {keys}",
    "write JSON with the keys {keys}", "create a JSON object that has the keys {keys}",
    "invent a JSON object with keys {keys}",
]  # fmt: skip


def _json_object(pen: Pen) -> Exchange:
    if pen.chance(0.2):
        record: dict[str, Json] = {"name": pen.name(), "age": pen.rng.randint(1, 99)}
        prompt = command(pen, pen.rng.choice(_PERSON_COMMANDS), record)
    else:
        record = _record(pen)
        prompt = command(pen, pen.rng.choice(_OBJECT_COMMANDS), {"fields": _described(pen, record)})
    answer = json.dumps(record, ensure_ascii=False)
    return Exchange("json", _any_case_json(pen, prompt), answer, f"object:{answer}", partial(is_json, record))


def _judge_keys(keys: list[str], output: str) -> bool:
    parsed = parse_json(output)[1]
    return isinstance(parsed, dict) and list(parsed) == keys and all(_plausible(k, v) for k, v in parsed.items())


def _plausible(key: str, value: Json) -> bool:
    numeric = {"age", "price", "count", "score", "id"}
    wanted = int if key in numeric else bool if key == "active" else str
    return type(value) is wanted


def _json_keys(pen: Pen) -> Exchange:
    keys = pen.rng.sample(list(_FIELDS), pen.rng.randint(1, 4))
    record = {key: _FIELDS[key](pen) for key in keys}
    prompt = command(pen, pen.rng.choice(_KEYS_COMMANDS), {"keys": _enumerated(pen, keys)})
    judge = partial(_judge_keys, keys)
    return Exchange("json", _any_case_json(pen, prompt), json.dumps(record), f"keys:{' '.join(keys)}", judge)


_JSON_BEFORE = [
    "answer in JSON: {}", "answer in JSON: {}", "reply in JSON: {}", "in JSON: {}", "use JSON: {}", "JSON only: {}",
    "respond with JSON: {}", "as JSON: {}", "answer with JSON only: {}", "give the answer in JSON: {}", "in JSON, {}",
    "please answer in JSON: {}", "respond in JSON. {}", "answer as JSON. {}", "answer in JSON. {}",
]  # fmt: skip
_JSON_AFTER = [
    "{} Answer in JSON.", "{} Answer in JSON", "{} Reply in JSON.", "{} Respond with JSON.",
    "{} Give the answer as JSON.",
    "{} Use JSON.", "{} JSON please", "{} Only JSON.", "{} Return JSON.", "{} Answer with a JSON object.",
]  # fmt: skip
_JSON_WITHIN = ["{} in JSON", "{} as JSON", "{} (as JSON)", "{} as a JSON object", "{}, in JSON", "{} in JSON, please"]
_JSON_KEYS = [
    "answer in JSON with the key {key}: {{}}", "answer as JSON with key {key}: {{}}",
    'answer in JSON with the key "{key}": {{}}', "reply with a JSON object with the key {key}: {{}}",
]  # fmt: skip


def in_json(exchange: Exchange, prompt: str, key: str = "answer") -> Exchange:
    """The exchange with its answer as a JSON object, asked for by the given prompt."""
    value: Json = {key: exchange.value}
    return Exchange("json", prompt, json.dumps(value, ensure_ascii=False), exchange.key, partial(is_json, value))


def _json_wrapped(pen: Pen) -> Exchange:
    maker = pen.rng.choice([add, add, add, subtract, count, repeat, reverse_words, reverse_letters, other])
    plain = maker(pen)
    while not plain.has_value:
        plain = maker(pen)
    key, template = "answer", pen.rng.choice(_JSON_BEFORE)
    if pen.chance(0.12):
        key = pen.rng.choice(["result", "sum", "total", "value", "text", "output", "reply", pen.rng.choice(pen.words)])
        template = pen.rng.choice(_JSON_KEYS).format(key=key)
    elif not plain.open_ended and pen.chance(0.25):
        template = pen.rng.choice(_JSON_AFTER)
    elif not plain.open_ended and pen.chance(0.3):
        mark = plain.prompt[-1] if plain.prompt[-1] in "?.!" else ""
        template = pen.rng.choice(_JSON_WITHIN) + mark
        plain = replace(plain, prompt=plain.prompt.rstrip("?.!"))
    asked = _any_case_json(pen, template).replace("{}", plain.prompt)
    return in_json(plain, capital(pen, asked), key)


def json_answer(pen: Pen) -> Exchange:
    """An answer in JSON: to another kind's question, a record, or a list."""
    makers = [_json_wrapped, _json_wrapped, _json_object, _json_object, _json_list, _json_list, _json_keys]
    return pen.rng.choice(makers)(pen)
