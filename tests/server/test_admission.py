"""The line in front of the engine: how many may wait, whose they are, how long; and that all of it is given back."""

from __future__ import annotations

import asyncio
import json
import random
import threading
import time
from pathlib import Path
from typing import Any

import httpx
import pytest
from fake_engine import READY, FakeClient, running

from quire.errors import OverloadedError
from quire.messages import EngineStats
from quire.observability.cells import SharedCells
from quire.server.admission import BYTES_PER_TOKEN, NUM_CELLS, STEPS_IN_LINE, Admission, Bounds, Visit
from quire.server.keys import ANYBODY, Key, digest_of

TEXT, CHAT = "/v1/completions", "/v1/chat/completions"
ENDLESS = {"prompt": "Hello", "max_tokens": 250, "ignore_eos": True}
KEYS = [Key(name=name, digests=(digest_of(f"sk-{name}"),)) for name in ("a", "b", "c")]


def refused(error: pytest.ExceptionInfo[OverloadedError]) -> str:
    assert (error.value.status, error.value.code) == (429, "queue_full") and 1 <= error.value.retry_after <= 60
    return error.value.message


def line(completions: int = 4, tokens: int | None = -1, stats: EngineStats = EngineStats(), **more: Any) -> Admission:  # noqa: B008
    admission = Admission(Bounds(completions, tokens), lambda: stats, **more)
    admission.serve(READY)  # 8 rows, steps of 64 tokens
    return admission


def claim(admission: Admission, completions: int = 1, tokens: int = 0, key: Key = ANYBODY) -> Visit:
    visit = admission.enter(key)
    try:
        visit.claim(completions, tokens * BYTES_PER_TOKEN)
    except OverloadedError:
        visit.leave()
        raise
    return visit


def fill(admission: Admission, **more: Any) -> list[Visit]:
    visits = []
    while len(visits) < 10_000:
        try:
            visits.append(claim(admission, **more))
        except OverloadedError:
            return visits
    raise AssertionError("it never fills")


def test_as_many_as_run_and_so_many_more() -> None:
    admission = line(4)
    visits = fill(admission)
    assert len(visits) == 8 + 4 and admission.counts == (12, 0)
    visits[0].leave()
    visits[0] = claim(admission)
    with pytest.raises(OverloadedError) as error:
        admission.enter().look()
    assert "12 requests" in refused(error) and "--max-num-queued-reqs is 4" in error.value.message
    for visit in visits:
        visit.leave()
    assert admission.counts == (0, 0)


def test_while_the_engine_is_full_only_what_runs_counts() -> None:
    """Blocks, not rows, are what is short: three run, more cannot."""
    assert len(fill(line(4, stats=EngineStats(num_running=3, full=True)))) == 3 + 4


def test_no_line_at_all_and_no_bound_at_all() -> None:
    assert len(fill(line(0))) == 8
    admission = line(-1)
    assert len([claim(admission, tokens=10**6) for _ in range(3000)]) == 3000


def test_tokens_are_guessed_then_counted_then_given_back() -> None:
    admission = line(-1, 100)
    first = claim(admission, tokens=60)
    with pytest.raises(OverloadedError) as error:
        claim(admission, tokens=60)
    assert "60 prompt tokens" in refused(error)
    first.count(20)
    second = claim(admission, tokens=60)
    with pytest.raises(OverloadedError):
        second.count(90)
    assert admission.counts == (2, 80), "the count that did not fit was not kept"
    second.leave()
    first.begun(3.2)
    assert admission.counts == (1, 0)
    first.begun(1.0)
    first.leave()
    assert admission.counts == (0, 0)


def test_a_long_prompt_alone_is_served() -> None:
    admission = line(0, 100)
    visit = claim(admission, completions=16, tokens=5000)
    with pytest.raises(OverloadedError):
        claim(admission, tokens=1)
    visit.leave()
    claim(admission, tokens=1)


def test_default_of_tokens_follows_the_steps() -> None:
    admission = line(-1, None)
    assert len(fill(admission, tokens=64)) == STEPS_IN_LINE


def test_who_is_refused_learns_about_how_long_it_takes() -> None:
    admission = line(0)
    visits = fill(admission)
    for waited, said in ((0.01, 1), (3.2, 4), (500.0, 60)):
        visits[0].begun(waited)
        with pytest.raises(OverloadedError) as error:
            claim(admission)
        assert error.value.retry_after == said


def test_one_key_leaves_room_for_others() -> None:
    admission = line(100)
    admission.know(KEYS)
    mine = len(fill(admission, key=KEYS[0]))
    assert mine == 72, "of 108 two thirds"
    theirs = len(fill(admission, key=KEYS[1]))
    assert theirs >= 20
    assert fill(admission, key=KEYS[2]), "and there is always a place left"
    assert admission.counts[0] <= 108


def test_the_same_for_tokens() -> None:
    admission = line(-1, 900)
    admission.know(KEYS)
    assert len(fill(admission, tokens=10, key=KEYS[0])) == 60
    assert len(fill(admission, tokens=10, key=KEYS[1])) >= 15 and fill(admission, tokens=10, key=KEYS[2])


def test_a_single_key_may_have_all() -> None:
    admission = line(100)
    admission.know(KEYS[:1])
    assert len(fill(admission, key=KEYS[0])) == 108


def test_processes_hold_one_bound_together(tmp_path: Path) -> None:
    """From threads, at the same time: never more than the bound, and in the end nothing is left."""
    count = 4
    SharedCells.create(tmp_path / "cells", count, NUM_CELLS)
    several = [line(12, cells=SharedCells(tmp_path / "cells", i, count, NUM_CELLS)) for i in range(count)]
    num_held, most, admitted, lock = [0], [0], [0] * count, threading.Lock()

    def change(by: int) -> None:
        with lock:
            num_held[0] += by
            most[0] = max(most[0], num_held[0])

    def run(i: int) -> None:
        rng, held = random.Random(i), list[Visit]()
        for _ in range(3000):
            if held and rng.random() < 0.45:
                change(-1)
                held.pop().leave()
            else:
                try:
                    held.append(claim(several[i], tokens=3))
                except OverloadedError:
                    continue
                admitted[i] += 1
                change(1)
        for visit in held:
            change(-1)
            visit.leave()

    threads = [threading.Thread(target=run, args=(i,)) for i in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert 15 < most[0] <= 8 + 12 and all(admitted)
    assert [admission.counts for admission in several] == [(0, 0)] * count


# ---- over HTTP ------------------------------------------------------------------------------------------------------


def is_full(answer: httpx.Response) -> bool:
    if answer.status_code == 200:
        return False
    error = answer.json()["error"]
    assert (answer.status_code, error["type"], error["code"]) == (429, "RateLimitError", "queue_full"), answer.text
    assert int(answer.headers["retry-after"]) >= 1 and "--max-num-queued-" in error["message"]
    return True


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("path", [TEXT, CHAT])
def test_overload_gives_200_or_429_and_nothing_stays(path: str, stream: bool) -> None:
    """Four times as many as fit, all at once. Nobody who is refused reaches the engine."""

    async def flood(url: str) -> list[httpx.Response]:
        body = {"max_tokens": 20, "stream": stream, "ignore_eos": True}
        body |= {"prompt": "Hello"} if path == TEXT else {"messages": [{"role": "user", "content": "Hello"}]}
        limits = httpx.Limits(max_connections=100)
        async with httpx.AsyncClient(base_url=url, timeout=30, limits=limits) as http:
            return await asyncio.gather(*(http.post(path, json=body) for _ in range(48)))

    with running(FakeClient(step_s=0.02, endless=True), bounds=Bounds(4)) as server:
        for _ in range(2):
            before = len(server.client.submitted)
            answers = asyncio.run(flood(server.url))
            full = [is_full(answer) for answer in answers]
            assert full.count(False) == 12 == len(server.client.submitted) - before
            assert server.admission.counts == (0, 0) and server.client.num_in_flight == 0
        assert (
            'quire:http_errors_total{engine="0",model_name="fake",status="429"} 72.0'
            in server.metrics.render().decode()
        )


def test_a_body_that_would_be_refused_anyway_is_not_read() -> None:
    body = {**ENDLESS, "stream": True, "n": 16}
    with (
        running(FakeClient(step_s=0.01, endless=True), bounds=Bounds(0)) as server,
        httpx.stream("POST", server.url + TEXT, json=body) as held,
    ):
        chunks = held.iter_bytes()
        assert next(chunks) and is_full(httpx.post(server.url + TEXT, content=b"no JSON at all"))


@pytest.mark.parametrize("fate", ["bad field", "gone", "too long", "fails", "strict"])
def test_everything_is_given_back_whatever_happens(fate: str) -> None:
    client = FakeClient(step_s=0.01, endless=True, fail_after=3 if fate == "fails" else None)
    with running(client, bounds=Bounds(4, 1000), strict=fate == "strict") as server:
        for stream in (False, True):
            body: dict[str, Any] = {**ENDLESS, "stream": stream, "n": 3}
            if fate == "gone":
                with httpx.Client(timeout=0.15) as http, pytest.raises(httpx.TimeoutException):
                    if stream:
                        with http.stream("POST", server.url + TEXT, json=body) as answer:
                            assert next(chunks := answer.iter_bytes()) and chunks
                            raise httpx.ReadTimeout("enough")
                    http.post(server.url + TEXT, json=body)
            else:
                extra = {"bad field": {"top_p": 7}, "too long": {"prompt": "x " * 3000}, "strict": {"user": "me"}}
                answer = httpx.post(server.url + TEXT, json={**body, **extra.get(fate, {})})
                assert answer.status_code == (200 if stream and fate == "fails" else 500 if fate == "fails" else 400)
        end = time.monotonic() + 5
        while (server.admission.counts != (0, 0) or client.num_in_flight) and time.monotonic() < end:
            time.sleep(0.01)
        assert server.admission.counts == (0, 0) and client.num_in_flight == 0


def test_loading_and_draining_are_503() -> None:
    with running(ready=False) as server:
        answer = httpx.post(server.url + TEXT, json=ENDLESS)
        assert answer.status_code == 503 and answer.headers["retry-after"]
    with running() as server:
        server.state.draining = True
        answer = httpx.post(server.url + TEXT, json=ENDLESS)
        assert answer.status_code == 503 and answer.headers["retry-after"]


# ---- deadlines ------------------------------------------------------------------------------------------------------


def late(answer: httpx.Response, code: str) -> None:
    error = answer.json()["error"]
    assert (answer.status_code, error["type"], error["code"]) == (504, "TimeoutError", code), answer.text


@pytest.mark.parametrize("path", [TEXT, CHAT])
@pytest.mark.parametrize("by", ["field", "header", "both"])
def test_a_request_ends_with_its_time(path: str, by: str) -> None:
    client = FakeClient(step_s=0.02, endless=True)
    body: dict[str, Any] = {"max_tokens": 200, "ignore_eos": True}
    body |= {"prompt": "Hello"} if path == TEXT else {"messages": [{"role": "user", "content": "Hello"}]}
    headers = {"x-request-timeout": "0.2" if by == "header" else "5"} if by != "field" else {}
    body |= {"timeout": 0.2} if by != "header" else {}
    with running(client) as server:
        started = time.monotonic()
        answer = httpx.post(server.url + path, json=body, headers=headers)
        late(answer, "timeout")
        assert 0.2 <= time.monotonic() - started < 1.0 and "0.2 s" in answer.text
        assert answer.headers["x-should-retry"] == "false"
        streamed = httpx.post(server.url + path, json={**body, "stream": True}, headers=headers)
        *events, last = streamed.text.strip().split("\n\n")
        assert streamed.status_code == 200 and len(events) > 2
        assert json.loads(last.removeprefix("data: "))["error"]["code"] == "timeout"
        assert client.num_in_flight == 0 and server.admission.counts == (0, 0)
        ran = sum(client.steps.values())
        time.sleep(0.1)
        assert sum(client.steps.values()) == ran, "the engine was told"
        starts = [more["start_by"] for _, _, more in client.submitted]
        assert all(0 < start_by - started < 2 for start_by in starts), "nor does it begin what is late"


def test_a_beam_search_ends_too() -> None:
    with running(FakeClient(step_s=0.05, endless=True)) as server:
        beams = {"prompt": "a", "use_beam_search": True, "n": 2, "max_tokens": 100, "timeout": 0.2}
        late(httpx.post(server.url + TEXT, json=beams), "timeout")
        assert server.admission.counts == (0, 0) and server.client.num_in_flight == 0


@pytest.mark.parametrize("text", ["0", "-1", "x", "nan", "inf", "1e3", "", "1,5", "99999", "0x10", "1" * 50])
def test_a_header_that_is_no_number_of_seconds(text: str) -> None:
    with running() as server:
        answer = httpx.post(server.url + TEXT, json={"prompt": "a"}, headers={"x-request-timeout": text})
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, "x-request-timeout")


def test_waiting_has_an_end_of_its_own() -> None:
    with running(bounds=Bounds(-1, -1, 7.0)) as server:
        started = time.monotonic()
        assert httpx.post(server.url + TEXT, json={"prompt": "a", "max_tokens": 2}).status_code == 200
        assert 6.9 < server.client.submitted[0][2]["start_by"] - started < 8


# ---- connections ----------------------------------------------------------------------------------------------------


def test_one_connection_too_many_is_told_so() -> None:
    with running(max_connections=3) as server:
        held = [httpx.Client(base_url=server.url) for _ in range(3)]
        assert [http.get("/health").status_code for http in held] == [200] * 3
        answer = httpx.get(server.url + "/health")
        assert answer.status_code == 503 and answer.headers["retry-after"] and answer.json()["error"]["message"]
        held[0].close()
        for _ in range(100):
            if httpx.get(server.url + "/health").status_code == 200:
                break
            time.sleep(0.01)
        else:
            raise AssertionError("its place was not given back")
        for http in held:
            http.close()
