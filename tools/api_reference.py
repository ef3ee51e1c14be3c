"""Writes docs/api.md: every route and every field of every request, from the tables that the server itself uses.

python tools/api_reference.py           # writes
python tools/api_reference.py --check   # exit code 1 if it is not up to date
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from quire.frontend.aliases import REASONING, REQUEST_FIELDS
from quire.frontend.fields import ELSEWHERE, HARMLESS, INSTEAD, known_but_absent
from quire.server.app import ROUTES
from quire.server.limits import MAX_BODY_BYTES, MAX_HEADER_BYTES, MAX_HEADERS, READ_SECONDS
from quire.server.openapi import schemas, summary

TARGET = Path(__file__).parents[1] / "docs" / "api.md"
HEAD = f"""# The HTTP API

Written by `python tools/api_reference.py` from the tables that the server uses; do not edit. A running server says the
same at `/docs` (a page) and `/openapi.json`.

- A `null` is the same as leaving the field out.
- **Nothing is ignored in silence.** A field that is not listed here has no effect: the answer names it in `warnings`
  (in a stream the first chunk does) and in the header `x-quire-warnings`. With `--strict` it is a 400 that names it.
- Errors are `{{"error": {{"message", "type", "param", "code"}}}}`, with the field in `param`. 400 what cannot be served
  as written (a field given twice, too), 401 without a key where keys are set, 403 with one that is
  for other routes, 404 no such route or model, 405 wrong
  method, 408 too slow, 413 body over {MAX_BODY_BYTES >> 20} MiB (and [what pictures may have](multimodal.md)), 415 not
  JSON in UTF-8, 431 headers over {MAX_HEADER_BYTES >> 10} KiB or more than {MAX_HEADERS}, 500 an error of
  ours (the log has it under `x-request-id`), 429 with `retry-after` when the queue is full or a key at its limit, 503
  with `retry-after` while loading or stopping, 504 not begun or not done in time. In a stream that has
  begun an error is an event, and `[DONE]` does not come.
- Headers and body must arrive within {READ_SECONDS:g} s each. `x-request-id` is taken over if it is short and plain.
- With a key set every route needs `authorization: Bearer KEY` or `x-api-key: KEY`, except those about the server's
  health: [security.md](security.md).
"""
CANDIDATES = (False, True, 0, 1, 1.0, -1, "", "none", "auto", [], {}, ["text"], {"type": "text"})


def kind_of(schema: dict[str, Any]) -> str:
    """A type in words."""
    if "$ref" in schema:
        return str(schema["$ref"].rsplit("/", 1)[1])
    if "anyOf" in schema:
        return " or ".join(dict.fromkeys(kind_of(s) for s in schema["anyOf"] if s.get("type") != "null"))
    if "enum" in schema:
        return ", ".join(json.dumps(value) for value in schema["enum"] if value is not None)
    if schema.get("type") == "array":
        return f"list of {kind_of(schema.get('items', {}))}"
    return {None: "anything"}.get(schema.get("type"), schema.get("type", ""))


def fields_table(schema: dict[str, Any]) -> Iterator[str]:
    """The fields of a request type."""
    yield "| field | type | default | |"
    yield "|---|---|---|---|"
    required = schema.get("required", [])
    for name, field in schema["properties"].items():
        default = field.get("default")
        usual = "needed" if name in required else "" if default is None else f"`{json.dumps(default)}`"
        yield f"| `{name}` | {kind_of(field)} | {usual} | {field.get('description', '')} |"


def routes() -> Iterator[str]:
    """All routes, then all request types."""
    yield "## Routes"
    yield ""
    yield "| route | request | |"
    yield "|---|---|---|"
    for route in ROUTES:
        kind = f"[{route.request.__name__}](#{route.request.__name__.lower()})" if route.request else ""
        yield f"| `{route.method} {route.path}` | {kind} | {summary(route.handler)} |"
    for name, schema in schemas(ROUTES).items():
        yield ""
        yield f"## {name}"
        yield ""
        yield f"{schema.get('description') or ''}"
        yield ""
        yield from fields_table(schema)


def other_names() -> Iterator[str]:
    """Aliases, and what is not offered."""
    known = {name for schema in schemas(ROUTES).values() for name in schema["properties"]}
    yield ""
    yield "## Other spellings that work"
    yield ""
    for old, new in REQUEST_FIELDS.items():
        yield f"- `{old}` is `{new}`{' (where a request has no field of that name)' if old in known else ''}"
    both = " and ".join(f"`{name}`" for name in REASONING)
    yield f"- Reasoning stands under {both} in answers; either is read in messages."
    yield ""
    yield "## Known and not offered"
    yield ""
    yield "These would change the answer, so they are a 400 with code `unsupported_parameter`, not a warning. A value"
    yield "that asks for what happens anyway passes."
    yield ""
    yield "| field | values that pass | instead |"
    yield "|---|---|---|"
    for name in sorted(set(ELSEWHERE) - known):
        passing = [json.dumps(v) for v in CANDIDATES if known_but_absent(name, v) == HARMLESS]
        yield f"| `{name}` | {', '.join(f'`{value}`' for value in passing)} | {INSTEAD.get(name, '')} |"


def text() -> str:
    """The whole page."""
    return "\n".join([HEAD, *routes(), *other_names()]) + "\n"


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    if not parser.parse_args().check:
        TARGET.write_text(text())
    elif TARGET.read_text() != text():
        sys.exit("docs/api.md is not up to date: run python tools/api_reference.py")


if __name__ == "__main__":
    main()
