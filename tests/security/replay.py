"""Send the whole table to a real server, beside a stream that must not notice. Checks without `assert`: also a program.

PYTHONOPTIMIZE=1 python tests/security/replay.py     server and checks without assertions
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from functools import partial

import httpx
from payloads import BODIES, body_of, on_route
from serving import Canary, Served

from quire.server.app import ROUTES

FLAGS = ("--structured-outputs-timeout", "0.25", "--max-model-len", "2048")
LEAKS = ("0x7", "/home", "site-packages", "Traceback", 'File "', "/dev/", ".py")


def replay(server: Served) -> tuple[int, list[str], float]:
    """How many were sent, what was wrong, and the slowest answer in seconds."""
    sent, wrong, slowest = 0, [], 0.0
    json_type = {"content-type": "application/json"}
    with httpx.Client(base_url=server.url, timeout=5) as http:
        for route in ROUTES:
            if route.request is None:
                continue
            cases = [
                (f"{p.group} {p.field}={p.value[:60]}", body_of(route.request, p), {}, p.status)
                for p in on_route(route.request)
            ]
            bodies = [(name, body, headers, (status,)) for name, body, headers, status in BODIES]
            for name, body, headers, status in [*cases, *bodies]:
                request = partial(
                    http.request, route.method, route.path, content=body, headers={**json_type, **headers}
                )
                sent += 1
                try:
                    answer, took = _timed(request)
                    if took > 1.0:  # others use this machine, too
                        answer, took = _timed(request)
                except httpx.TransportError as error:
                    wrong.append(f"{route.path} {name}: {error!r}")
                    continue
                slowest = max(slowest, took)
                found = _wrong(answer, status)
                if took > 1.0:
                    found.append(f"took {took:.2f} s")
                if found:
                    wrong.append(f"{route.path} {name}: {', '.join(found)}")
    return sent, wrong, slowest


def _timed(request: Callable[[], httpx.Response]) -> tuple[httpx.Response, float]:
    started = time.monotonic()
    answer = request()
    return answer, time.monotonic() - started


def _wrong(answer: httpx.Response, status: tuple[int, ...]) -> list[str]:
    if answer.status_code not in status:
        return [f"{answer.status_code} instead of {status}: {answer.text[:150]}"]
    if answer.status_code == 200:
        return []
    try:
        error = json.loads(answer.text)["error"]
    except (ValueError, KeyError):
        return [f"not our form: {answer.text[:100]}"]
    found = []
    if set(error) != {"message", "type", "param", "code"} or not error["message"] or not error["type"]:
        found.append(f"not our form: {error}")
    if len(answer.content) > 4000:
        found.append(f"{len(answer.content)} bytes")
    found += [f"tells {leak!r}" for leak in LEAKS if leak in answer.text]
    return found


def run() -> tuple[int, list[str], float, float]:
    """The same with a server and a canary; the last number is the canary's longest gap."""
    with Served(*FLAGS) as server:
        with Canary(server.url) as canary:
            sent, wrong, slowest = replay(server)
        wrong += [f"the stream beside: {complaint}" for complaint in canary.complaints()]
        wrong += [f"left behind: {name} {value}" for name, value in server.rest().items()]
        if server.process.poll() is not None:
            wrong.append("the server is gone")
        return sent, wrong, slowest, canary.gap


if __name__ == "__main__":
    num_sent, complaints, slowest_s, gap_s = run()
    print("\n".join(complaints))
    print(json.dumps({"sent": num_sent, "wrong": len(complaints), "slowest_s": round(slowest_s, 3),
                      "gap_s": round(gap_s, 3), "optimized": sys.flags.optimize}))  # fmt: skip
    sys.exit(bool(complaints))
