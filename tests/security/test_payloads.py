"""The table of hostile requests against a real server, and that the table is complete."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from payloads import PAYLOADS, base_of, body_of, on_route
from replay import run

from quire.server.app import ROUTES

TYPES = list(dict.fromkeys(route.request for route in ROUTES if route.request is not None))
FREE = {
    "include_stop_str_in_output", "include_reasoning", "parallel_tool_calls", "spaces_between_special_tokens",
    "return_tokens_as_token_ids", "return_prompt_text", "add_special_tokens", "continue_final_message",
    "return_token_strs",
}  # fmt: skip
"""True or false and nothing else: the type is all there is to check."""
OLD_SPELLINGS = {"guided_whitespace_pattern"}


def test_there_are_enough() -> None:
    assert len(PAYLOADS) >= 120 and len({(p.field, p.value, p.beside) for p in PAYLOADS}) == len(PAYLOADS)


@pytest.mark.parametrize("kind", TYPES)
def test_every_field_has_payloads(kind: type) -> None:
    """A new field needs rows in the table, or a place among those whose type says all."""
    covered = {payload.field for payload in on_route(kind)}
    missing = set(kind.__struct_fields__) - covered - FREE - OLD_SPELLINGS
    assert not missing, f"{kind.__name__}: nothing hostile is sent in {sorted(missing)}"


@pytest.mark.parametrize("kind", TYPES)
def test_the_base_alone_is_good(kind: type) -> None:
    """Else everything would be refused for another reason."""
    base = base_of(kind)
    assert base and all(json.loads(value) for value in base.values())
    assert body_of(kind, next(on_route(kind)))


def test_all_of_it_without_assertions() -> None:
    """Server and checks run under `python -O`: no guard may be an assertion."""
    program = Path(__file__).with_name("replay.py")
    done = subprocess.run(
        [sys.executable, str(program)],
        capture_output=True,
        text=True,
        timeout=280,
        env={**os.environ, "PYTHONOPTIMIZE": "1"},
        check=False,
    )
    result = json.loads(done.stdout.splitlines()[-1]) if done.stdout.strip() else {}
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]
    assert result["optimized"] == 1 and result["sent"] > 700 and result["gap_s"] <= 1.0


@pytest.mark.soak
def test_all_of_it() -> None:
    sent, wrong, _, gap = run()
    assert sent > 700 and not wrong and gap <= 1.0, wrong
