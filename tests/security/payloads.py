"""What hostile or broken clients send, and what they must be told: a table, replayed on every route with the field.

Values are raw JSON, so that they can be what no JSON library would write.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, NamedTuple

BASE: dict[str, Any] = {
    "messages": [{"role": "user", "content": "hi"}],
    "prompt": "hi",
    "tokens": [1],
}
"""A plain value for each field that some route needs, and the first of which is there makes a good request."""
HUGE = 2**63


class Payload(NamedTuple):
    """One value of one field.

    Attributes:
        group: the row of the table of known failures that it is from.
        field: a route that does not take this field is left out.
        value: raw JSON.
        status: what may come back.
        beside: other fields, as raw JSON.
    """

    group: str
    field: str
    value: str
    status: tuple[int, ...] = (400,)
    beside: tuple[tuple[str, str], ...] = ()


def _each(group: str, field: str, *values: str, status: int = 400, **beside: str) -> list[Payload]:
    return [Payload(group, field, value, (status,), tuple(beside.items())) for value in values]


def _harmless(group: str, field: str, *values: str) -> list[Payload]:
    """What breaks engines that compile it, or go back and forth in it: here it may as well be served."""
    return [Payload(group, field, value, (200, 400)) for value in values]


def _nested(depth: int) -> str:
    return '{"type":"array","items":' * depth + '{"type":"string"}' + "}" * depth


def _wide(count: int) -> str:
    return json.dumps({"type": "object", "properties": {f"p{i}": {"type": "string"} for i in range(count)}})


def _format(schema: str) -> str:
    return f'{{"type":"json_schema","json_schema":{{"name":"x","schema":{schema}}}}}'


SCHEMAS = (
    *('"x"', "[]", "5", '{"type":"bogus"}', '{"type":5}', '{"$ref":"#"}', '{"$ref":"#/$defs/none"}', '{"enum":[]}'),
    *('{"$ref":"http://127.0.0.1:1/x"}', '{"$ref":"file:///etc/passwd"}', _nested(60), _nested(200), _wide(20_000)),
    '{"type":"string","pattern":"("}',
    '{"enum":' + json.dumps([f"{i}" for i in range(5000)]) + "}",
)
HEAVY_SCHEMAS = (
    '{"allOf":' + "[" + ",".join(['{"type":"string"}'] * 3000) + "]}",
    '{"type":"string","pattern":"((a{0,999}){999})"}',
    '{"type":"array","minItems":1000000000,"items":{"type":"string"}}',
    '{"type":"string","minLength":1000000000}',
    '{"type":"array","items":{"$ref":"#"}}',
)
REGEXES = ("(", "[", "a{9999999}", "(?<=a)b", "x" * 5000, "(a|b|ab)*" * 300, "\\\\p{Bogus}", "(?P<x>")
GRAMMARS = ("", "start: x", "start: start", "%import x", "start: " + '"a" ' * 5000 + "x", "\\u0000")
CHOICES = ("[]", "{}", "[1]", '[""]', json.dumps(["x"] * 1000), json.dumps(["y" * 5000]), '["a", null]')
STRUCTURED = (
    *("{}5", "5", "[]", '{"json": 5}', '{"regex": 5}', '{"regex": "a", "json": {}}', '{"nothing": 1}'),
    *('{"choice": []}', '{"grammar": 7}', '{"structural_tag": 5}', '{"disable_any_whitespace": 5, "json": {}}'),
)
NOT_FINITE = ("NaN", "Infinity", "-Infinity", "1e309", "-1e309", "9" * 400)
NOT_A_COUNT = ("1000000000000", "-1", "1.5", '"5"', "true", "[]", "{}", str(HUGE), f"-{HUGE + 1}")

PAYLOADS: list[Payload] = [
    # 2: code as a parameter; 14: tensors as a parameter
    *_each("code", "logits_processors", '["os.system"]', '[{"qualname":"os.system"}]'),
    *_each("code", "prompt_embeds", '"gASVIAAAAAAAAACMBXBvc2l4lIwGc3lzdGVtlJOU"', '["x"]'),
    # 5: templates
    *_each("template", "chat_template", '"{{ 1 }}"', '"{% for i in range(10**9) %}x{% endfor %}"', "5"),
    *_each(
        "template",
        "chat_template_kwargs",
        *('{"tokenize":true}', '{"chat_template":"x"}', '{"messages":"x"}', '{"add_generation_prompt":false}', "5"),
        *('{"__class__":1}', '{"a":[1]}', '{"a":{"b":1}}', json.dumps({f"k{i}": 1 for i in range(33)})),
    ),
    # 6: grammars
    *[payload for schema in SCHEMAS for payload in _each("grammar", "response_format", _format(schema))],
    *_each("grammar", "response_format", '"x"', "[]", '{"type":"yaml"}', '{"type":"json_schema"}', '{"type":null}'),
    *_each("grammar", "response_format", "{}", '{"type":{}}'),
    *_each("grammar", "guided_regex", *(f'"{regex}"' for regex in REGEXES)),
    *_each("grammar", "guided_grammar", *(json.dumps(text) for text in GRAMMARS)),
    *_each("grammar", "guided_choice", *CHOICES),
    *_each("grammar", "guided_json", *SCHEMAS[3:6]),
    *_each("grammar", "structured_outputs", *STRUCTURED[1:]),
    *[payload for schema in HEAVY_SCHEMAS for payload in _harmless("grammar", "response_format", _format(schema))],
    *_harmless("grammar", "guided_regex", '"(a+)+b"', '"(x+x+)+y"', '"((a{0,999}){999})"', '"(.*a){30}"'),
    *_harmless("grammar", "guided_grammar", '"start:"', '"root ::= "', json.dumps("start: " + '"a" ' * 2000)),
    # 7: tools
    *_each(
        "tools", "tools", "5", "[5]", "[{}]", '[{"type":"function","function":{"name":5}}]',
        '[{"type":"function","function":{"name":"' + "x" * 5000 + '"}}]',
        '[{"type":"function","function":{"name":"a b"}}]',
        json.dumps([{"type": "function", "function": {"name": f"f{i}"}} for i in range(5000)]),
    ),
    *_each("tools", "tool_choice", '"maybe"', '{"type":"function"}', "5"),
    *_each("tools", "tool_choice", '{"type":"function","function":{"name":"x"}}'),
    # 8: counts
    *_each("count", "n", *NOT_A_COUNT, "0", "17"),
    *_each("count", "best_of", *NOT_A_COUNT, "0", "1000000000"),
    *_each("count", "max_tokens", *NOT_A_COUNT, "0"),
    *_each("count", "max_completion_tokens", *NOT_A_COUNT, "0"),
    *_each("count", "min_tokens", *NOT_A_COUNT),
    *_each("count", "min_tokens", "9", max_tokens="5"),
    *_each("count", "top_logprobs", "1000000", "-2", '"5"', "1.5", "true", logprobs="true"),
    *_each("count", "prompt_logprobs", "1000000", "-2", '"5"', "1.5", "true"),
    *_each("count", "stop", json.dumps(["a"] * 100_000), json.dumps(["a" * 300]), json.dumps(["a"] * 17)),
    *_each("count", "stop", '""', "[1]", "5"),
    *_each("count", "bad_words", json.dumps(["a"] * 5000), json.dumps(["a" * 5000]), '[""]', "[1]", '"x"'),
    *_each("count", "prompt", json.dumps(["a"] * 100_000), json.dumps(["a"] * 65), json.dumps("a " * 500_000)),
    *_each("count", "prompt", json.dumps(["a"] * 33), n="2"),
    *_each("count", "messages", json.dumps([{"role": "user", "content": "a"}] * 50_000), "[]", "{}", "[[]]", "[null]"),
    *_each("count", "messages", json.dumps([{"role": "user", "content": "word " * 400_000}])),
    *_each("count", "truncate_prompt_tokens", "0", "-2", '"1"', "1.5", str(HUGE)),
    *_each("count", "priority", str(HUGE), "1.5", '"1"', "true", "1099511627776"),
    *_each("count", "documents", "5", "[5]", '[{"a":5}]'),
    *_each("count", "length_penalty", "11", use_beam_search="true"),
    *_each("count", "use_beam_search", "true", stream="true"),
    # 9: token ids
    *_each(
        "ids", "prompt", "[]", "[[]]", "[-1]", "[1000000]", f"[{HUGE}]", "[[1],[]]", "[1.0]", "[true]", '[1,"x"]', "{}",
        "[null]", "5", "[[-1]]", "[[1],[1000000]]", "[2147483647]", "[2147483648]", "[-2147483649]",
    ),
    *_each("ids", "tokens", "[-1]", "[1000000]", f"[{HUGE}]", "[1.0]", "[true]", "5", "[null]", '["1"]', "[[1]]"),
    *_each("ids", "stop_token_ids", "[-1]", f"[{HUGE}]", '["1"]', "[1.5]", "5", json.dumps([1] * 1000)),
    *_each("ids", "stop_token_ids", "[1000000]", min_tokens="5"),
    *_each("ids", "allowed_token_ids", "[]", "[-1]", "[1000000]", f"[{HUGE}]", '"x"', "[true]"),
    *_each(
        "ids", "logit_bias", '{"99999999":1}', '{"-1":1}', '{"x":1}', '{"1":101}', '{"1":"x"}', "[]", '{"1":NaN}',
        json.dumps({str(i): 1 for i in range(2000)}), '{"9223372036854775808":1}', '{"1.5":1}',
    ),
    *_each(
        "ids", "logprob_token_ids", "[-1]", "[1000000]", f"[{HUGE}]", '"x"', "[true]", "[1.5]", json.dumps([1] * 5000),
    ),
    *_each("count", "thinking_token_budget", "-2", "1.5", '"5"', "true", str(HUGE)),
    *_each("count", "repetition_detection", "5", '"x"', "[]", '{"bogus":1}', '{"max_pattern_size":"x"}'),
    *_each("ids", "prompt", '"<|im_start|><|endoftext|><|user|></s><image><|vision_start|>"', status=200),
    # 10: numbers that are none
    *[
        payload
        for field in ("temperature", "top_p", "min_p", "presence_penalty", "frequency_penalty", "repetition_penalty")
        for payload in _each("number", field, *NOT_FINITE, '"1"', "true", "[]")
    ],
    *_each("number", "temperature", "-0.1", "1e300"),
    *_each("number", "top_p", "0", "1.1", "-1"),
    *_each("number", "top_k", "-2", "1.5", str(HUGE), *NOT_FINITE[:3]),
    *_each("number", "min_p", "-0.1", "1.1"),
    *_each("number", "presence_penalty", "2.1", "-2.1"),
    *_each("number", "repetition_penalty", "0", "-1"),
    *_each("number", "seed", str(HUGE), f"-{HUGE + 1}", "1.5", '"1"', "true"),
    *_each("number", "timeout", "0", "-1", "1e9", *NOT_FINITE, '"1"'),
    # 11: salts and ids
    *_each("salt", "cache_salt", f'"{"x" * 129}"', '"a/b"', '"a b"', '"ä"', '"\\u0000"', '"../x"', "5"),
    *_each("salt", "cache_salt", "[]", f'"{"x" * 10**6}"'),
    *_each("salt", "request_id", f'"{"x" * 129}"', '"a b"', '"a\\nb"', '""', "5", '"<script>"'),
    # 13: media that nobody fetches
    *[
        payload
        for url in (
            *("http://127.0.0.1/", "http://169.254.169.254/", "http://[::ffff:127.0.0.1]/", "http://a\\\\@b/"),
            *("file:///etc/passwd", "data:image/png;base64,AAAA", "gopher://x/"),
        )
        for payload in _each(
            "media", "messages",
            f'[{{"role":"user","content":[{{"type":"image_url","image_url":{{"url":"{url}"}}}}]}}]',
        )
    ],
    *_each(
        "media", "messages", '[{"role":"user","content":5}]', '[{"role":5,"content":"x"}]', '[{"role":"user"}]',
        '["x"]',
        '[{"role":"user","content":[{"type":"text"}]}]', '[{"role":"user","content":[5]}]',
    ),
    # 21: names
    *_each("name", "model", '"../../etc/passwd"', '"x\\ny"', '"' + "m" * 100_000 + '"', '"{{7*7}}"', status=404),
    *_each("name", "model", '"\\u0000"', '"; rm -rf /"', status=404),
    *_each("name", "model", "5", "[]", "{}", "true", '"\\ud800"'),
    # switches
    *[
        payload
        for field in (
            *("stream", "logprobs", "echo", "ignore_eos", "skip_special_tokens", "return_token_ids"),
            *("add_generation_prompt", "use_beam_search"),
        )
        for payload in _each("switch", field, '"true"', "[]", "{}")
    ],
    *_each("switch", "stream_options", "5", '{"include_usage":5}', "[]", stream="true"),
    *_each("switch", "truncation_side", '"up"', "5"),
    *_each("switch", "reasoning_effort", '"extreme"', "5"),
]  # fmt: skip

ELSEWHERE = {"logits_processors": ("messages", "prompt"), "prompt_embeds": ("messages", "prompt")}
"""Fields that no route has and that are refused where text is generated."""

BODIES: list[tuple[str, bytes, dict[str, str], int]] = [
    ("nothing", b"", {}, 400),
    ("no JSON", b"hello", {}, 400),
    ("cut off", b'{"model": "x"', {}, 400),
    ("two values", b"{} {}", {}, 400),
    ("list", b"[]", {}, 400),
    ("deep list", b'{"x":' + b"[" * 100_000 + b"]" * 100_000 + b"}", {}, 400),
    ("unclosed", b"[" * 100_000, {}, 400),
    ("deep object", b'{"a":' * 70 + b"1" + b"}" * 70, {}, 400),
    ("huge number", b'{"x":1' + b"0" * 10_000 + b"}", {}, 400),
    ("lone surrogate", b'{"model":"\\ud800"}', {}, 400),
    ("latin-1", b'{"model":"\xe4"}', {}, 400),
    ("UTF-16", '{"model":"x"}'.encode("utf-16"), {}, 400),
    ("zero byte", b'{"model":"a\x00b"}', {}, 400),
    ("twice", b'{"model":"a","model":"b"}', {}, 400),
    ("10 MB", b'{"x":"' + b"a" * 10_000_000 + b'"}', {}, 413),
    ("gzip bomb", b"\x1f\x8b\x08" + b"\x00" * 100, {"content-encoding": "gzip"}, 415),
    ("form", b"a=b", {"content-type": "application/x-www-form-urlencoded"}, 415),
    ("plain text", b"{}", {"content-type": "text/plain"}, 415),
    ("101 headers", b"{}", {f"x-{i}": "1" for i in range(101)}, 431),
    ("20 KB of headers", b"{}", {"x-large": "a" * 20_000}, 431),
]


def fields_of(request: Any) -> set[str]:
    """The fields that a type of requests takes, and those that it refuses by name."""
    known = set(request.__struct_fields__)
    return known | {name for name, beside in ELSEWHERE.items() if "stream" in known and known & set(beside)}


def base_of(request: Any) -> dict[str, str]:
    """Raw JSON of the fields that make a good request of this type."""
    needed = next((field for field in BASE if field in request.__struct_fields__), None)
    if needed is None:
        raise LookupError(f"{request.__name__} is new: give BASE a plain value of the field that it needs")
    short = {"max_tokens": "4"} if "max_tokens" in request.__struct_fields__ else {}
    return {needed: json.dumps(BASE[needed]), **short}


def body_of(request: Any, payload: Payload) -> bytes:
    """A whole body."""
    base = base_of(request)
    if payload.field in BASE:  # of several that may be there one is enough
        base = {name: value for name, value in base.items() if name not in BASE}
    fields = {**base, **dict(payload.beside), payload.field: payload.value}
    return ("{" + ",".join(f'"{name}":{value}' for name, value in fields.items()) + "}").encode()


def on_route(request: Any) -> Iterator[Payload]:
    """What there is to send to a route."""
    taken = fields_of(request)
    return (p for p in PAYLOADS if p.field in taken and {name for name, _ in p.beside} <= taken)
