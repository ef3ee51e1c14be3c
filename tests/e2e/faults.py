"""The ten named fault points, put into the code from outside: production code knows nothing of them and pays nothing.

A request carries its own fault: in its text where only the text is there (tokenise, template), else in its seed. So
who must fail is known beforehand, and whoever else fails is an error.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

FIRST_SEED = 7_000_000
POINTS = (
    "tokenise",
    "template",
    "grammar",
    "admit",
    "schedule",
    "forward",
    "sample",
    "detokenise",
    "serialise",
    "send",  # IPC: the frontend cannot send
    "wire",  # IPC: what arrives in the engine cannot be read
)
LOOP, GIL, SLOW, MEMORY = 7_777_001, 7_777_002, 7_777_003, 7_777_004
"""Seeds of requests whose steps never end, never end and hold the GIL, take a second, want too much memory."""


def seed_of(point: str) -> int:
    """The seed that makes a request fail there."""
    return FIRST_SEED + POINTS.index(point)


def word_of(point: str) -> str:
    """The word that makes a request fail there."""
    return f"fault-{point}"


class InjectedFault(Exception):
    """What the code under test raises."""


def _fail_if(condition: bool, point: str) -> None:
    if condition:
        raise InjectedFault(f"injected at {point}; /secret/path 0xdeadbeef")


def _wrap(owner: Any, name: str, before: Callable[..., None]) -> None:
    """Have `before` called with the arguments of each call."""
    inner = getattr(owner, name)

    def wrapper(*args: Any, **kwargs: Any) -> Any:
        before(*args, **kwargs)
        return inner(*args, **kwargs)

    setattr(owner, name, wrapper)


def into_frontend() -> None:
    """Tokenise, template, detokenise, serialise, and both IPC faults."""
    import msgspec

    from quire.frontend import client, templates, tokenizer
    from quire.messages import AddRequest
    from quire.server import generate

    def marked(*args: Any, **_: Any) -> None:
        _fail_if(any(word_of("tokenise") in str(arg) for arg in args[1:2]), "tokenise")

    for name in ("encode", "encode_async", "encode_many_async"):
        _wrap(tokenizer.Tokenizer, name, marked)
    _wrap(
        templates.ChatTemplate,
        "render",
        lambda self, messages, **_: _fail_if(word_of("template") in str(messages), "template"),
    )
    _wrap(
        generate.Call,
        "frame",
        lambda self, *_, **__: _fail_if(self.request.seed == seed_of("serialise"), "serialise"),
    )

    make = tokenizer.Tokenizer.detokenizers

    class Broken:
        def __init__(self, inner: Any) -> None:
            self._inner, self._left = inner, 2

        def push(self, *args: Any, **kwargs: Any) -> Any:
            self._left -= 1
            _fail_if(self._left <= 0, "detokenise")
            return self._inner.push(*args, **kwargs)

        def finish(self) -> Any:
            raise InjectedFault("injected at detokenise, at the end")

    def detokenizers(self: Any, params: Any, *args: Any, **kwargs: Any) -> Any:
        made = make(self, params, *args, **kwargs)
        return [Broken(one) for one in made] if params.seed == seed_of("detokenise") else made

    tokenizer.Tokenizer.detokenizers = detokenizers  # type: ignore[method-assign]

    class Encoder:
        def __init__(self) -> None:
            self._inner = msgspec.msgpack.Encoder()

        def encode(self, message: Any) -> bytes:
            if isinstance(message, AddRequest):
                _fail_if(message.params.seed == seed_of("send"), "send")
                if message.params.seed == seed_of("wire"):
                    return self._inner.encode(["add", message.id, 5, "nothing that was agreed on"])
            return self._inner.encode(message)

    packing = SimpleNamespace(Encoder=Encoder, Decoder=msgspec.msgpack.Decoder)
    client.msgspec = SimpleNamespace(msgpack=packing, MsgspecError=msgspec.MsgspecError)  # type: ignore[attr-defined]


def into_engine() -> None:
    """Grammar, admit, schedule, forward, sample; and steps that hang, or want too much memory."""
    from quire.engine.grammar.keeper import Keeper
    from quire.engine.scheduler.scheduler import Scheduler
    from quire.worker.worker import Worker

    def seed_is(point: str) -> Callable[..., None]:
        return lambda self, request, *_, **__: _fail_if(request.params.seed == seed_of(point), point)

    _wrap(Keeper, "admit", seed_is("grammar"))
    _wrap(Scheduler, "add", seed_is("admit"))
    _wrap(Scheduler, "_allowed", seed_is("schedule"))
    rows: dict[int, tuple[int, int]] = {}  # seed and length of the prompt
    wanted: set[int] = set()

    def past_prompt(plan: Any, seed: int) -> list[int]:
        """Counts of the rows with this seed that generate."""
        found = (
            (*rows[row], start, count) for row, start, count in zip(plan.rows, plan.starts, plan.counts, strict=True)
        )
        return [count for own, prompt, start, count in found if own == seed and start > prompt]

    def forward(self: Any, plan: Any) -> None:
        for new in plan.new_rows:
            rows[new.row] = (new.params.seed or 0, new.num_prompt)
        if past_prompt(plan, LOOP):
            while True:
                pass
        if past_prompt(plan, GIL):
            sum(range(1 << 50))  # one call in C
        if past_prompt(plan, SLOW):
            time.sleep(1.0)
        _fail_if(bool(past_prompt(plan, seed_of("forward"))), "forward")
        every = int(os.environ.get("QUIRE_TEST_OOM_EVERY", "0"))
        if every and plan.step % every == every - 1 and plan.step not in wanted:
            import torch

            wanted.add(plan.step)
            raise torch.OutOfMemoryError("injected: CUDA out of memory")

    _wrap(Worker, "forward", forward)
    _wrap(
        Worker,
        "sample",
        lambda self, plan, masks: _fail_if(bool(past_prompt(plan, seed_of("sample"))), "sample"),
    )
