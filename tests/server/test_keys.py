"""Keys from flags, environment and file; scopes over the live table of routes; limits per key; hosts."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from fake_engine import FakeClient, running

from quire.cli.serve import build_configs, serve_settings
from quire.cli.settings import from_environment
from quire.config import ServerConfig
from quire.errors import ConfigError, OverloadedError
from quire.observability.cells import Cells, SharedCells
from quire.server.app import ROUTES
from quire.server.auth import OPEN_PATHS, Gate, hosts_of
from quire.server.keys import ANYBODY, Key, digest_of, keys_of
from quire.server.rates import NUM_CELLS, Rates

BODY = {"prompt": "Hello", "max_tokens": 3}
TEXT = "/v1/completions"

NEEDS = {
    ("POST", "/v1/chat/completions"): "inference",
    ("POST", "/v1/completions"): "inference",
    ("GET", "/v1/models"): "inference",
    ("GET", "/v1/models/{name}"): "inference",
    ("POST", "/tokenize"): "inference",
    ("POST", "/detokenize"): "inference",
    ("GET", "/load"): "metrics",
    ("GET", "/metrics"): "metrics",
    ("GET", "/version"): "any",
    ("GET", "/openapi.json"): "any",
    ("GET", "/docs"): "any",
}
"""What each guarded route needs a key for. A new route fails the test below: decide, then add its row."""


def bearer(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}


def key(name: str, **limits: Any) -> Key:
    scopes = frozenset(limits.pop("scopes", ["inference"]))
    return Key(name=name, digests=(digest_of(f"sk-{name}"),), scopes=scopes, **limits)


# ---- the gate over all routes ---------------------------------------------------------------------------------------


def test_every_route_has_an_entry() -> None:
    guarded = {(route.method, route.path): route.needs for route in ROUTES if route.path not in OPEN_PATHS}
    assert guarded == NEEDS


def test_open_paths_are_about_life_alone() -> None:
    assert {"/health", "/health/live", "/health/ready", "/live", "/ready", "/ping"} == OPEN_PATHS


SPELLINGS = (
    "{}", "/{}", "/.{}", "{}?a=/health", "{}#/health", "{}/../health", "/health/..{}", "/health/%2e%2e{}", "{}/health",
    "/health{}", "/HEALTH/..{}", "{};/health",
)  # fmt: skip


@pytest.mark.parametrize("scope", ["inference", "metrics", "admin"])
def test_a_key_opens_what_it_is_for(scope: str) -> None:
    with running(keys=[key("it", scopes=[scope])]) as server, httpx.Client(base_url=server.url) as http:
        for route in ROUTES:
            path = route.path.replace("{name}", "fake")
            answer = http.request(route.method, path, headers=bearer("sk-it"), json=BODY)
            if path in OPEN_PATHS or route.needs in (scope, "any"):
                assert answer.status_code in (200, 400), (path, answer.text)
            else:
                error = answer.json()["error"]
                assert (answer.status_code, error["type"], error["code"]) == (
                    403,
                    "PermissionDeniedError",
                    "insufficient_scope",
                )
                assert set(error) == {"message", "type", "param", "code"} and scope in error["message"]


def test_no_spelling_of_a_guarded_path_is_open() -> None:
    hosts = ["x", "localhost", "x/health?", "health", "127.0.0.1/health"]
    with running(keys=["secret"]) as server, httpx.Client(base_url=server.url) as http:
        for route in ROUTES:
            if route.path in OPEN_PATHS:
                continue
            path = route.path.replace("{name}", "fake")
            percent = "/" + "".join(f"%{ord(c):02x}" for c in path[1:])
            for spelling in [s.format(path) for s in SPELLINGS] + [percent, path.upper()]:
                for host in hosts:
                    answer = http.request(route.method, spelling, headers={"host": host}, json=BODY)
                    plain = answer.request.url.path in OPEN_PATHS  # httpx has resolved the dots
                    assert answer.status_code in (401, 400) or plain, (spelling, host, answer.status_code)
                    if answer.status_code == 401:
                        assert answer.json()["error"]["code"] == "invalid_api_key"


def test_both_headers_and_nothing_else() -> None:
    with running(keys=["secret", "zweiter-schlüssel"]) as server, httpx.Client(base_url=server.url) as http:
        for headers in (
            bearer("secret"), {"authorization": "bearer secret"}, {"x-api-key": "secret"},
            ):  # fmt: skip
            assert http.post(TEXT, json=BODY, headers=headers).status_code == 200
        for headers in (
            {}, {"authorization": "Bearer"}, bearer("secre"), bearer("secrets"), bearer("SECRET"), {"x-api-key": ""},
            {"api-key": "secret"}, {"authorization": "Bearer wrong", "x-api-key": "secret"}, {"cookie": "secret"},
            {"authorization": "Basic secret"},
            bearer("secret secret"), bearer("a" * 10_000), bearer(hashlib.sha256(b"secret").hexdigest()),
        ):  # fmt: skip
            assert http.post(TEXT, json=BODY, headers=headers).status_code == 401, headers
        assert http.post(TEXT + "?api_key=secret&key=secret", json=BODY).status_code == 401


def test_every_known_key_is_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    """The time does not tell which key was nearly right, nor how many there are before it."""
    seen = []
    compare = __import__("hmac").compare_digest
    monkeypatch.setattr("quire.server.auth.hmac.compare_digest", lambda a, b: seen.append((a, b)) or compare(a, b))
    gate = Gate(["one", "two", "three"])
    for given in ("one", "three", "none"):
        seen.clear()
        scope = {"path": "/x", "headers": [(b"authorization", b"Bearer " + given.encode())]}
        try:
            assert gate.check(scope).name
        except Exception as error:  # noqa: BLE001
            assert getattr(error, "status", 0) == 401
        assert len(seen) == 3 and all(len(a) == len(b) == 32 for a, b in seen)


# ---- where keys come from -------------------------------------------------------------------------------------------


def test_flags_and_environment() -> None:
    environment = {"QUIRE_API_KEY": "a, b,,c"}
    assert from_environment(serve_settings(), environment)["api_key"] == ("a", "b", "c")
    _, config = build_configs({"api_key": ("x", "y")}, None, serve_settings())
    assert [k.name for k in keys_of(config)] == ["key-1", "key-2"]
    assert keys_of(ServerConfig()) == ()
    for empty in (("",), ("a", " ")):
        with pytest.raises(ConfigError, match="empty"):
            keys_of(ServerConfig(api_key=empty))


def write(folder: Path, text: str) -> ServerConfig:
    (folder / "keys.yaml").write_text(text)
    return ServerConfig(api_key_file=str(folder / "keys.yaml"))


def test_the_file(tmp_path: Path) -> None:
    digest = hashlib.sha256(b"hidden").hexdigest()
    found = keys_of(
        write(
            tmp_path,
            f"""
            - name: team-a
              key: [old, new]
              requests_per_minute: 60
              tokens_per_minute: 1000
              max_concurrent_requests: 3
            - {{name: prometheus, digest: "sha256:{digest}", scopes: [metrics]}}
            """,
        )
    )
    assert found[0] == Key(
        name="team-a",
        digests=(digest_of("old"), digest_of("new")),
        scopes=frozenset({"inference"}),
        requests_per_minute=60,
        tokens_per_minute=1000,
        max_concurrent_requests=3,
    )
    assert found[1].digests == (digest_of("hidden"),) and found[1].scopes == {"metrics"}
    assert keys_of(write(tmp_path, json.dumps([{"name": "x", "key": "y"}])))[0].name == "x"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "must be a list"), ("- name: x", "key or a digest"), ("- {name: x, key: ''}", "empty"),
        ("- {name: 'a b', key: sk-secret}", "name"), ("- {key: sk-secret}", "name"), ("- {name: x, key: 5}", "key"),
        ("- {name: x, key: sk-secret, colour: red}", "colour"),
        ("- {name: x, key: sk-secret, scopes: [root]}", "scopes"),
        ("- {name: x, key: sk-secret, requests_per_minute: 0}", "requests_per_minute"),
        ("- {name: x, digest: abc}", "sha256sum"), ("- {name: x, key: sk-secret}\n- {name: x, key: b}", "name 'x'"),
        ("- {name: x, key: sk-secret}\n- {name: y, key: sk-secret}", "given twice"), ("{a: [", "is not YAML"),
        ("- sk-secret", "entry 1"), ("- !!python/object/apply:os.system [true]", "is not YAML"),
    ],
)  # fmt: skip
def test_what_a_file_cannot_say(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(ConfigError) as raised:
        keys_of(write(tmp_path, text))
    assert says in str(raised.value) and "sk-secret" not in str(raised.value)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        keys_of(ServerConfig(api_key_file=str(tmp_path / "none")))


# ---- limits of a key ------------------------------------------------------------------------------------------------


def refused(answer: httpx.Response, word: str) -> None:
    error = answer.json()["error"]
    assert (answer.status_code, error["type"], error["code"]) == (429, "RateLimitError", "rate_limit_exceeded")
    assert word in error["message"] and 1 <= int(answer.headers["retry-after"]) <= 120


def test_limits_over_http() -> None:
    keys = [
        key("few", requests_per_minute=3), key("short", tokens_per_minute=20), key("single", max_concurrent_requests=1),
        key("free"),
    ]  # fmt: skip
    with (
        running(FakeClient(step_s=0.005, endless=True), keys=keys) as server,
        httpx.Client(base_url=server.url, timeout=20) as http,
    ):
        codes = [http.post(TEXT, json=BODY, headers=bearer("sk-few")) for _ in range(5)]
        assert [answer.status_code for answer in codes] == [200, 200, 200, 429, 429]
        refused(codes[-1], "requests_per_minute is 3")
        answers = [http.post(TEXT, json={**BODY, "max_tokens": 8}, headers=bearer("sk-short")) for _ in range(6)]
        assert answers[0].status_code == 200 and answers[-1].status_code == 429
        refused(answers[-1], "tokens_per_minute is 20")
        spent = sum(a.json()["usage"]["total_tokens"] for a in answers if a.status_code == 200)
        assert 20 <= spent < 20 + answers[0].json()["usage"]["total_tokens"]
        long = {"prompt": "Hello", "max_tokens": 200, "stream": True}
        with http.stream("POST", TEXT, json={**long, "ignore_eos": True}, headers=bearer("sk-single")) as stream:
            chunks = stream.iter_bytes()
            assert next(chunks)
            refused(httpx.post(server.url + TEXT, json=BODY, headers=bearer("sk-single")), "max_concurrent_requests")
            assert httpx.post(server.url + TEXT, json=BODY, headers=bearer("sk-free")).status_code == 200
        for _ in range(50):
            if httpx.post(server.url + TEXT, json=BODY, headers=bearer("sk-single")).status_code == 200:
                break
        else:
            raise AssertionError("its place was not given back")
        assert http.get("/v1/models", headers=bearer("sk-few")).status_code == 200, "no work, no limit"


class Clock:
    now = 6000.0

    def __call__(self) -> float:
        return self.now


def test_the_minute_slides() -> None:
    clock = Clock()
    rates, one = Rates(Cells(), clock), key("x", requests_per_minute=10)
    times = []
    for _ in range(3000):  # ten times as many as allowed, for ten minutes
        clock.now += 0.2
        try:
            rates.leave(rates.enter(one))
            times.append(clock.now)
        except OverloadedError as error:
            assert 1 <= error.retry_after <= 120
    assert 85 <= len(times) <= 105
    for at in range(len(times)):
        within = sum(times[at] <= t < times[at] + 60 for t in times)
        assert within <= 13, "an estimate: the previous minute is taken as evenly spread"
    clock.now += 200
    assert rates.enter(one), "after a pause nothing is held against it"


def test_after_the_given_seconds_it_works() -> None:
    clock = Clock()
    rates, one = Rates(Cells(), clock), key("x", tokens_per_minute=100)
    part = rates.enter(one)
    for spent in (100, 150, 500):
        clock.now += 600
        rates.spend(part, spent)
        for _ in range(8):
            try:
                rates.enter(one)
                break
            except OverloadedError as error:
                clock.now += error.retry_after
        else:
            raise AssertionError("promised too early, again and again")


def test_processes_count_together(tmp_path: Path) -> None:
    SharedCells.create(tmp_path / "cells", 3, NUM_CELLS)
    clock, one = Clock(), key("x", requests_per_minute=30, max_concurrent_requests=7)
    several = [Rates(SharedCells(tmp_path / "cells", i, 3, NUM_CELLS), clock) for i in range(3)]
    for rates in several:
        rates.know([one])
    parts = []
    for i in range(20):
        try:
            parts.append((several[i % 3], several[i % 3].enter(one)))
        except OverloadedError as error:
            assert "max_concurrent" in error.message
    assert len(parts) == 7
    for rates, part in parts:
        rates.leave(part)
    count = 0
    for i in range(60):
        try:
            several[i % 3].leave(several[i % 3].enter(one))
            count += 1
        except OverloadedError as error:
            assert "requests_per_minute" in error.message
    assert count == 23
    clock.now += 120
    assert several[0].enter(one), "old rows of processes that rest do not count"


# ---- tenants --------------------------------------------------------------------------------------------------------


def test_caches_are_kept_apart_where_there_are_several_keys() -> None:
    with running(keys=[key("a"), key("b")]) as server:
        for name, salt in (("a", ""), ("b", ""), ("a", "mine")):
            body = {**BODY, "cache_salt": salt}
            assert httpx.post(server.url + TEXT, json=body, headers=bearer(f"sk-{name}")).status_code == 200
        sent = [(more["cache_salt"], more["tenant"]) for _, _, more in server.client.submitted]
        assert sent == [("a\0", "a"), ("b\0", "b"), ("a\0mine", "a")]
    for keys in ([key("a")], []):
        with running(keys=keys) as server:
            httpx.post(server.url + TEXT, json={**BODY, "cache_salt": "s"}, headers=bearer("sk-a"))
            assert [(m["cache_salt"], m["tenant"]) for _, _, m in server.client.submitted] == [("s", "")]


def test_usage_of_each_key_is_in_the_metrics() -> None:
    with running(keys=[key("a"), key("b"), key("ops", scopes=["metrics"])]) as server:
        with httpx.Client(base_url=server.url) as http:
            spent = sum(
                http.post(TEXT, json=BODY, headers=bearer("sk-a")).json()["usage"]["total_tokens"] for _ in range(3)
            )
            page = http.get("/metrics", headers=bearer("sk-ops")).text
        assert f'quire:key_tokens_total{{engine="0",key="a",model_name="fake"}} {spent}.0' in page
        assert 'quire:key_requests_total{engine="0",key="a",model_name="fake"} 3.0' in page
        assert 'quire:key_tokens_total{engine="0",key="b",model_name="fake"} 0.0' in page


def test_other_keys_from_now_on() -> None:
    with running(keys=[key("a")]) as server, httpx.Client(base_url=server.url) as http:
        assert http.post(TEXT, json=BODY, headers=bearer("sk-a")).status_code == 200
        later = (key("b"), key("c"))
        done = threading.Event()
        server.call(lambda: (server.gate.change(later), server.admission.know(later), done.set()))
        assert done.wait(5)
        assert http.post(TEXT, json=BODY, headers=bearer("sk-a")).status_code == 401
        assert http.post(TEXT, json=BODY, headers=bearer("sk-b")).status_code == 200
        assert server.client.submitted[-1][2]["tenant"] == "b"


# ---- hosts ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def local() -> Iterator[httpx.Client]:
    hosts = ["localhost", "127.0.0.1", "::1", "*.example.com"]
    with running(hosts=hosts) as server, httpx.Client(base_url=server.url) as http:
        yield http


def test_a_strangers_name_is_not_ours(local: httpx.Client) -> None:
    for host in ("localhost", "LOCALHOST:8000", "127.0.0.1:1", "[::1]:8000", "a.example.com", "a.b.example.com:80"):
        assert local.get("/version", headers={"host": host}).status_code == 200, host
    for host in ("evil.com", "localhost.evil.com", "example.com", "xexample.com", "127.0.0.1.evil.com", "[::2]", ""):
        answer = local.get("/version", headers={"host": host})
        assert answer.status_code == 403 and answer.json()["error"]["code"] == "host_not_allowed", host
    assert local.get("/health", headers={"host": "evil.com"}).status_code == 200, "probes may use any name"


def test_which_names_a_server_has() -> None:
    assert hosts_of((), "127.0.0.1", closed=True) is None, "who has no key gets nothing anyway"
    assert hosts_of((), "0.0.0.0", closed=False) is None
    assert "localhost" in (hosts_of((), "127.0.0.1", closed=False) or ())
    assert hosts_of(("a.b",), "0.0.0.0", closed=True) == ("a.b",)
    assert hosts_of(("*",), "127.0.0.1", closed=False) is None
    assert ANYBODY.name == ""
