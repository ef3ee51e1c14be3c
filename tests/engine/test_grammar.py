"""Grammars in the engine: what they allow, and that nobody else notices what they cost."""

from __future__ import annotations

import json
import os
import re
import signal
import time
from pathlib import Path

import pytest
from grammar_engine import END, Engine

from quire.engine.grammar import keeper
from quire.messages import Grammar, ReasoningGate

SCHEMA = json.dumps(
    {
        "type": "object",
        "properties": {"a": {"type": "integer"}, "b": {"enum": ["x", "y"]}},
        "required": ["a", "b"],
        "additionalProperties": False,
    }
)


@pytest.mark.parametrize("threads", [1, 3])
def test_answers_follow_their_grammars(threads: int) -> None:
    with Engine(threads=threads) as engine:
        schemas = [engine.add("json", SCHEMA) for _ in range(12)]
        numbers = [engine.add("regex", "[0-9]{3}-[0-9]{2}") for _ in range(6)]
        choices = [engine.add("choice", '["red", "green \\"1\\"", "blau\\nü"]') for _ in range(6)]
        lark = engine.add("grammar", 'start: "<" /[a-z]{2,4}/ ">"')
        gbnf = engine.add("grammar", 'root ::= "<" word ">"\nword ::= [a-z] [a-z]?')
        free = [engine.add(None) for _ in range(4)]
        engine.run()
        for id_ in schemas:
            assert engine.ends[id_][0] == "length" or json.loads(engine.text(id_))["b"] in ("x", "y")
        assert any(engine.ends[id_][0] == "stop" for id_ in schemas)
        for id_ in numbers:
            assert re.fullmatch("[0-9]{3}-[0-9]{2}", engine.text(id_)) and engine.ends[id_] == ("stop", None, None)
        assert {engine.text(id_) for id_ in choices} <= {"red", 'green "1"', "blau\nü"}
        assert re.fullmatch("<[a-z]{2,4}>", engine.text(lark)) and re.fullmatch("<[a-z]{1,2}>", engine.text(gbnf))
        for id_ in free:
            assert engine.ends[id_] == ("length", None, None) and len(engine.tokens[id_]) == 60
        engine.check()


def test_unconstrained_steps_ask_for_nothing() -> None:
    with Engine() as engine:
        engine.add(None)
        engine.run()
        assert not engine.pool.workers and engine.device.num_masks == 0


@pytest.mark.parametrize(
    ("kind", "text", "words"),
    [
        ("json", '{"type": "bogus"}', "bogus"),
        ("json", "[]", "object"),
        ("json", '{"$ref": "#/$defs/nobody"}', "nobody"),
        ("json", '{"type": "array", "uniqueItems": true}', "uniqueItems"),
        ("json", '{"enum": []}', ""),
        ("regex", "(", "unclosed"),
        ("regex", "(?=a)b", "look-around"),
        ("grammar", "start: nobody", "nobody"),
        ("grammar", "root ::= (", ""),
        ("grammar", "", ""),
    ],
)
def test_a_grammar_that_is_none_is_refused(kind: str, text: str, words: str) -> None:
    with Engine() as engine:
        bad = engine.add(kind, text)
        free = engine.add(None, max_tokens=5)
        engine.run()
        reason, error, param = engine.ends[bad]
        assert reason == "error" and param == "response_format" and words in error and len(error) < 600
        assert engine.ends[free][0] == "length"
        again = engine.add(kind, text)
        engine.run(again)
        assert engine.ends[again] == engine.ends[bad], "known by now"
        engine.check()


def test_equal_grammars_are_compiled_once_and_old_ones_forgotten() -> None:
    with Engine(max_grammars=3, max_workers=1) as engine:
        for _ in range(2):
            for i in range(5):
                engine.add("choice", json.dumps([f"text {i}"]))
        engine.run()
        assert engine.library._next_key == 5
        engine.step()
        assert len(engine.library._entries) <= 5
        engine.run(engine.add("choice", '["text 9"]'))
        engine.step()
        assert len(engine.library._entries) == 3
        again = engine.add("choice", '["text 0"]')
        engine.run(again)
        assert engine.text(again) == "text 0"
        engine.check()


def test_more_requests_than_lines() -> None:
    with Engine(num_lines=4, rows=8) as engine:
        ids = [engine.add("regex", "[0-9]{8}") for _ in range(30)]
        engine.run()
        assert all(len(engine.text(id_)) == 8 for id_ in ids)
        assert len(engine.keeper._seats._free_lines) == 4
        engine.check()


def test_many_grammars_share_few_workers() -> None:
    with Engine(max_workers=2, rows=8, max_grammars=100) as engine:
        ids = [engine.add("regex", f"x{i}[0-9]{{12}}") for i in range(40)]
        engine.run()
        for i, id_ in enumerate(ids):
            assert re.fullmatch(f"x{i}[0-9]{{12}}", engine.text(id_))
        assert len(engine.pool.workers) <= 4
        engine.check()


# ---- ends ------------------------------------------------------------------------------------------------------------


def test_the_fewest_tokens_and_no_end() -> None:
    with Engine() as engine:
        long = engine.add("regex", "[0-9]{1,60}", min_tokens=20)
        short = engine.add("regex", "[0-9]{2}", min_tokens=20)
        endless = engine.add("regex", "[0-9]*", endless=True)
        whole = engine.add("regex", "[0-9]{3}", endless=True)
        engine.run()
        assert len(engine.tokens[long]) >= 20 and END not in engine.tokens[long][:20]
        assert engine.ends[short][0] == "stop" and len(engine.text(short)) == 2, "nothing else can follow"
        assert engine.ends[endless][0] == "length" and END not in engine.tokens[endless]
        assert engine.ends[whole][0] == "stop" and len(engine.text(whole)) == 3
        engine.check()


def test_a_token_that_the_grammar_does_not_allow_ends_its_request_only() -> None:
    with Engine() as engine:
        free = engine.add(None, max_tokens=50)
        other = engine.add("regex", "[0-9]{3}")
        engine.run(other)
        engine.device.wrong = 700
        bad = engine.add("regex", "[0-9]{3}")
        engine.run(bad)
        engine.device.wrong = None
        assert engine.ends[bad][0] == "error" and "leave no token" in engine.ends[bad][1]
        engine.run(free)
        assert engine.ends[free][0] == "length" and len(engine.tokens[free]) == 50
        engine.check()


# ---- thoughts --------------------------------------------------------------------------------------------------------


def test_the_grammar_begins_behind_the_thoughts() -> None:
    """The token behind the end is sampled before the end is known: it is thrown away."""
    closer = [700]
    with Engine() as engine:
        gate = ReasoningGate(inside=True, ends=[closer])
        engine.device._random.seed(4)
        ids = [engine.add("regex", "[0-9]{4}", gate=gate, max_tokens=300) for _ in range(6)]
        original = engine.device._one
        engine.device._one = lambda mask: 700 if mask is None and engine.random.random() < 0.1 else original(mask)
        engine.run()
        thought = 0
        for id_ in ids:
            tokens = engine.tokens[id_]
            end = tokens.index(700)
            thought += end
            behind = engine.text(id_)[len(engine_text(engine, tokens[: end + 1])) :]
            assert re.fullmatch(r"\s*[0-9]{4}", behind), behind
        assert thought > 10
        engine.check()


def engine_text(engine: Engine, tokens: list[int]) -> str:
    from grammar_engine import CORE

    return CORE.decode(tokens, skip_special_tokens=False)


def test_a_model_may_begin_to_think_or_not() -> None:
    with Engine() as engine:
        gate = ReasoningGate(inside=False, openers=[900], ends=[[700]])
        original = engine.device._one
        engine.device._one = lambda mask: 700 if mask is None and engine.random.random() < 0.2 else original(mask)
        plain = engine.add("regex", "[0-9]{4}", gate=gate)
        engine.run(plain)
        allowed: list[bool] = []

        def opens(mask: bytes | None) -> int:
            if mask is not None and not allowed:
                allowed.append(bool(mask[900 // 8] >> 900 % 8 & 1))
                return 900
            return 700 if mask is None and engine.random.random() < 0.2 else original(mask)

        engine.device._one = opens
        thinks = engine.add("regex", "[0-9]{4}", gate=gate, max_tokens=200)
        engine.run(thinks)
        assert allowed == [True]
        assert engine.tokens[thinks][0] == 900 and 700 in engine.tokens[thinks]
        assert re.fullmatch(r"(?s).*\s*[0-9]{4}", engine.text(thinks)) and engine.ends[thinks][0] == "stop"
        engine.check()


# ---- others do not notice --------------------------------------------------------------------------------------------


def test_preemption_and_abort_keep_the_states() -> None:
    with Engine(num_blocks=40, rows=8, seed=3) as engine:
        ids = [engine.add("regex", "[0-9]{30}", prompt=[7] * 20) for _ in range(12)]
        free = [engine.add(None, max_tokens=30, prompt=[8] * 20) for _ in range(4)]
        for _ in range(12):
            engine.step()
        engine.scheduler.abort([ids[3], ids[11]])
        engine.run()
        for id_ in set(ids) - {ids[3], ids[11]}:
            assert re.fullmatch("[0-9]{30}", engine.text(id_)), engine.text(id_)
        assert all(engine.ends[id_][0] == "length" for id_ in free)
        assert engine.scheduler.stats().num_preemptions > 0
        engine.check()


def test_a_killed_worker_hurts_nobody() -> None:
    with Engine(rows=8) as engine:
        ids = [engine.add("regex", "[0-9]{50}", max_tokens=80) for _ in range(6)]
        free = engine.add(None, max_tokens=60)
        kills = 0
        while not engine.idle:
            engine.step()
            if engine.pool.workers and engine.pool.workers[0].pid and engine.device.num_masks > 60 * (kills + 1):
                os.kill(engine.pool.workers[0].pid, signal.SIGKILL)
                time.sleep(0.01)
                kills += 1
        assert kills >= 2
        done = [id_ for id_ in ids if engine.ends[id_][0] == "stop"]
        assert all(re.fullmatch("[0-9]{50}", engine.text(id_)) for id_ in done)
        # one death in mid-work is forgiven, so at most the second may end them
        assert len(done) == 6 or all("crashed" in engine.ends[id_][1] for id_ in set(ids) - set(done))
        assert engine.ends[free][0] == "length"
        fresh = engine.add("regex", "[a-c]{5}")
        engine.run(fresh)
        assert re.fullmatch("[a-c]{5}", engine.text(fresh))
        engine.check()


def test_the_parent_of_the_workers_is_started_again() -> None:
    with Engine() as engine:
        engine.run(engine.add("choice", '["a"]'))
        engine.pool._parent.kill()
        engine.pool._parent.wait()
        for worker in list(engine.pool.workers):
            os.kill(worker.pid, signal.SIGKILL)
        time.sleep(0.05)
        id_ = engine.add("choice", '["b"]')
        engine.run(id_)
        assert engine.text(id_) == "b"
        engine.check()


def test_a_worker_that_hangs_is_killed_and_only_its_request_ends() -> None:
    with Engine(job_seconds=0.3, wait_seconds=0.02) as engine:
        good = engine.add("regex", "[0-9]{200}", max_tokens=250)
        engine.run(engine.add("regex", "[0-9]{2}"))
        victim = engine.add("regex", "[a-z]{50}")
        while len(engine.tokens.get(victim, [])) < 5:
            engine.step()
        worker = engine.keeper._live[victim].seat.worker
        assert worker is not engine.keeper._live[good].seat.worker, "two grammars in use live apart"
        os.kill(worker.pid, signal.SIGSTOP)
        before = len(engine.tokens[good])
        longest = 0.0
        while victim not in engine.ends:
            started = time.monotonic()
            engine.step()
            longest = max(longest, time.monotonic() - started)
        assert engine.ends[victim][0] == "error" and "time limit" in engine.ends[victim][1]
        assert len(engine.tokens[good]) > before + 5, "the other one went on meanwhile"
        engine.run(good)
        assert engine.ends[good][0] in ("stop", "length")
        engine.check()


@pytest.mark.parametrize("slow", [False, True])
def test_late_masks_change_nothing(monkeypatch: pytest.MonkeyPatch, slow: bool) -> None:
    monkeypatch.setattr(keeper, "MOST_SECONDS", 0.0)
    monkeypatch.setattr(keeper, "SLOW_SECONDS", 0.0 if slow else 1.0)
    with Engine(wait_seconds=0.0, seed=8) as engine:
        ids = [engine.add("json", SCHEMA) for _ in range(6)]
        free = engine.add(None, max_tokens=100)
        engine.run()
        for id_ in ids:
            assert engine.ends[id_][0] == "length" or json.loads(engine.text(id_))["b"] in ("x", "y")
        assert engine.library.find(Grammar("json", SCHEMA)).slow == slow
        assert engine.ends[free] == ("length", None, None)
        engine.check()


@pytest.mark.parametrize("limits", [{"job_seconds": 0.5}, {"memory_mib": 16}])
def test_a_grammar_that_blows_up(limits: dict[str, float]) -> None:
    """Whatever the library makes of these, it is over soon, and the engine goes on."""
    bombs = [
        ("regex", "(a+)+b"),
        ("regex", "((a{0,999}){999})"),
        ("regex", "(.*a.{1,200}b.*c.{1,200}){1,50}"),
        ("regex", "([a-z]{1,300}[0-9]{1,300}){1,300}x(ab|a|b){500}"),
        ("json", '{"$ref": "#"}'),
        ("json", json.dumps({"type": "string", "pattern": "^(([a-z])+.)+[A-Z]([a-z])+$" * 20})),
        ("json", json.dumps(nested(120))),
        ("json", json.dumps({"anyOf": [{"type": "array", "items": {"$ref": "#"}}] * 300})),
        ("grammar", "start: " + " ".join(["a?"] * 2000) + '\na: "x" | a a'),
        ("grammar", 'start: a\na: a a a | "x" a | a "y" |'),
    ]
    with Engine(**limits) as engine:
        free = engine.add(None, max_tokens=300)
        ids = [engine.add(kind, text, max_tokens=20) for kind, text in bombs]
        engine.run(seconds=50)
        for id_ in ids:
            reason, error, param = engine.ends[id_]
            assert reason in ("stop", "length") or (reason == "error" and param == "response_format" and error)
        assert engine.ends[free][0] == "length"
        good = engine.add("json", SCHEMA)
        engine.run(good)
        assert engine.ends[good][0] in ("stop", "length")
        engine.check()


def nested(depth: int) -> dict[str, object]:
    schema: dict[str, object] = {"type": "integer"}
    for _ in range(depth):
        schema = {"type": "object", "properties": {"a": schema, "b": schema}, "required": ["a"]}
        if depth > 40 and len(json.dumps(schema)) > 60_000:
            break
    return schema


def test_a_tokenizer_that_cannot_be_read_costs_only_the_grammars(tmp_path) -> None:
    (tmp_path / "tokenizer.json").write_text("{}")
    with Engine(tokenizer=str(tmp_path / "tokenizer.json")) as engine:
        bad, free = engine.add("choice", '["a"]'), engine.add(None, max_tokens=5)
        engine.run()
        assert engine.ends[bad][0] == "error" and "tokenizer" in engine.ends[bad][1]
        assert engine.ends[free][0] == "length"
        assert not engine.pool.warm()
        engine.check()


def test_nobody_is_left_behind() -> None:
    engine = Engine()
    engine.run(engine.add("choice", '["a"]'))
    pids = [engine.pool._parent.pid, *(worker.pid for worker in engine.pool.workers)]
    engine.keeper.close()
    deadline = time.monotonic() + 5
    while any(alive(pid) for pid in pids):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False
