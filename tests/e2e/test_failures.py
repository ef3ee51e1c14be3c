"""What breaks: the engine killed, stopped or in an endless loop, the server killed. Who waits is told, at once."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import threading
import time
from typing import Any

import httpx
import pytest
from program import FAULTY, FLOAT32, Program, ask_all

ENDLESS = {"prompt": "Once", "max_tokens": 1900, "ignore_eos": True, "temperature": 0}
LIMIT = 3.0
"""Seconds that a step may take in these tests."""
KILLS = int(os.environ.get("QUIRE_TEST_KILLS", "2"))


class Waiting:
    """Clients that wait for answers, half of them streams, in a thread of their own."""

    def __init__(self, program: Program, count: int = 24) -> None:
        self.answers: list[tuple[int, str]] = []
        self._url = program.url
        self._bodies = [("/v1/completions", {**ENDLESS, "seed": i, "stream": i % 2 == 0}) for i in range(count)]
        self._thread = threading.Thread(target=self._run)
        self._thread.start()
        program.wait_running(count)

    def _run(self) -> None:
        self.answers = asyncio.run(ask_all(self._url, self._bodies))

    def join(self, seconds: float) -> list[tuple[int, str]]:
        """Their answers, which must be there in time."""
        self._thread.join(seconds)
        assert not self._thread.is_alive(), "clients still wait"
        return self.answers


def assert_works(program: Program) -> None:
    """A request of each kind is answered."""
    for stream in (False, True):
        body = {"prompt": "Once upon a time", "max_tokens": 5, "stream": stream}
        assert asyncio.run(ask_all(program.url, [("/v1/completions", body)]))[0][0] == 200
    program.wait_idle()


@pytest.mark.parametrize("processes", [1, 2])
def test_a_killed_engine_is_started_again(processes: int) -> None:
    with Program(*FLOAT32, "--max-restarts", str(KILLS), "--api-server-count", str(processes)) as program:
        program.wait_status(200)
        for kill in range(KILLS):
            waiting = Waiting(program)
            engine = program.engine
            engine.kill()
            assert program.wait_status(503, 1.0) <= 1.0
            answers = waiting.join(3.0)
            assert {status for status, _ in answers} == {503}, answers
            assert all("killed by SIGKILL" in text for _, text in answers)
            refused = httpx.post(program.url + "/v1/completions", json=ENDLESS)
            assert refused.status_code == 503 and refused.headers["retry-after"] and "SIGKILL" in refused.text
            assert program.status("/live")[0] == 200 and program.status("/ready")[0] == 503
            assert program.wait_status(200) <= 15 * (1 + kill)
            assert_works(program)
            assert program.engine.pid != engine.pid and not engine.is_running()
        family = program.family
        program.engine.kill()
        assert program.wait_end(20) == 1
        last = program.log.strip().splitlines()[-1]
        assert last.startswith("quire: The engine has ended unexpectedly: killed by SIGKILL")
        assert f"after {KILLS} restarts" in last and "--max-restarts" in last
        assert not program.left_behind(family)


def test_without_restarts_the_end_of_the_engine_is_the_end() -> None:
    with Program("--max-restarts", "0") as program:
        program.wait_status(200)
        waiting, family = Waiting(program), program.family
        program.engine.kill()
        assert {status for status, _ in waiting.join(3.0)} == {503}
        assert program.wait_end(5) == 1
        assert "killed by SIGKILL" in program.log.strip().splitlines()[-1]
        assert not program.left_behind(family)


@pytest.mark.parametrize("how", ["stopped", "stopped while idle", "endless loop", "loop that holds the GIL"])
def test_a_hung_engine_is_found_and_started_again(how: str) -> None:
    flags = (*FLOAT32, "--step-timeout", str(LIMIT), "--api-server-count", "2")
    with Program(*flags, script=FAULTY) as program:
        program.wait_status(200)
        engine = program.engine
        waiting = None if "idle" in how else Waiting(program)
        if "stopped" in how:
            engine.suspend()
        else:
            body = {**ENDLESS, "seed": {"endless loop": 7_777_001, "loop that holds the GIL": 7_777_002}[how]}
            threading.Thread(target=lambda: httpx.post(program.url + "/v1/completions", json=body, timeout=60)).start()
        begun = time.monotonic()
        program.wait_status(503, LIMIT + 2.0)
        assert waiting is None or {status for status, _ in waiting.join(3.0)} == {503}
        assert waiting is None or time.monotonic() - begun > LIMIT / 2, "it was not hung for so long yet"
        program.wait_status(200)
        assert not engine.is_running()
        log = program.log
        assert "--step-timeout" in log and "Where its threads are" in log
        assert re.search(r"Thread 0x\w+ \(most recent call first\)|Current thread", log), log
        assert_works(program)
        family = program.family
        assert program.stop() == 0
        assert not program.left_behind(family)


def test_a_long_step_is_no_illness() -> None:
    """A step of a second, with --step-timeout above it: every answer about health stays 200."""
    with Program(*FLOAT32, "--step-timeout", str(LIMIT), script=FAULTY) as program:
        program.wait_status(200)
        body = {**ENDLESS, "max_tokens": 4, "seed": 7_777_003}
        thread = threading.Thread(target=lambda: httpx.post(program.url + "/v1/completions", json=body, timeout=60))
        thread.start()
        while thread.is_alive():
            for path in ("/health", "/ready", "/live"):
                begun = time.monotonic()
                assert program.status(path)[0] == 200
                assert time.monotonic() - begun < 1.0
            time.sleep(0.05)
        assert program.stop() == 0


def test_a_killed_server_takes_everything_along() -> None:
    """kill -9, then the same port again, and 300 requests: nothing stale is in the way."""
    with Program(*FLOAT32, "--api-server-count", "2") as program:
        program.wait_status(200)
        schema = {"type": "object", "properties": {"a": {"type": "string"}}}
        body = {"prompt": "x", "max_tokens": 5, "structured_outputs": {"json": schema}}
        assert httpx.post(program.url + "/v1/completions", json=body, timeout=30).status_code == 200
        family = program.family
        assert len(family) >= 5, "server, member, engine, grammar parent and worker"
        program.engine.suspend()  # a hung engine cannot look at its pipe
        program.process.kill()
        program.wait_end()
        alive = [line for line in program.left_behind(family) if "psutil" in line]
        assert not alive
        with Program(*FLOAT32, "--api-server-count", "2", port=program.port) as second:
            second.wait_status(200)
            bodies: list[tuple[str, dict[str, Any]]] = [
                ("/v1/completions", {"prompt": f"Request {i}", "max_tokens": 4, "stream": i % 2 == 0})
                for i in range(300)
            ]
            answers = asyncio.run(ask_all(second.url, bodies))
            assert {status for status, _ in answers} == {200}
            second.wait_idle()
            family = second.family
            assert second.stop() == 0
            assert not second.left_behind(family)


def test_the_offline_engine_says_at_once_that_it_died() -> None:
    from quire import LLM, SamplingParams
    from quire.errors import EngineDeadError

    for how in (signal.SIGKILL, signal.SIGSTOP):
        llm = LLM("demo", step_timeout=2.0)
        process = llm._client._process
        assert process is not None
        threading.Timer(0.5, process.send_signal, [how]).start()
        params = SamplingParams(max_tokens=2000, ignore_eos=True)
        with pytest.raises(EngineDeadError, match=r"killed by SIGKILL|hung for more than 2 s"):
            llm.generate(["Once"] * 64, params, use_tqdm=False)
        begun = time.monotonic()
        with pytest.raises(EngineDeadError):
            llm.generate("Once", use_tqdm=False)
        assert time.monotonic() - begun < 1
        llm.close()


def test_health_while_loading_and_its_reason() -> None:
    with Program(*FLOAT32, script=FAULTY, QUIRE_TEST_SLOW_START="2") as program:
        program.wait_status(503)
        for path in ("/health", "/ready"):
            answer = httpx.get(program.url + path)
            assert answer.status_code == 503 and answer.headers["retry-after"]
            assert "loading" in json.loads(answer.text)["error"]["message"]
        live = httpx.get(program.url + "/live")
        assert live.status_code == 200 and live.json()["engine"] == "loading"
        program.wait_status(200)
        assert httpx.get(program.url + "/live").json()["engine"] == "running"
        assert program.metric("quire:engine_steps_total") == 0, "health asks the engine for nothing"
        assert program.stop() == 0
