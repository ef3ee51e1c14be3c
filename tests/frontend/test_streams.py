"""RequestStream with a sink: who gets which delta, in order, and who an error reaches. And outputs that pile up."""

from __future__ import annotations

import asyncio

import pytest

from quire.errors import RequestFailedError
from quire.frontend.backlog import joined
from quire.frontend.streams import Delta, RequestStream
from quire.messages import EngineStats, Outputs, TokenLogprobs, TokenOutput


async def turn() -> None:
    for _ in range(3):
        await asyncio.sleep(0)


def test_a_sink_takes_what_comes_while_the_consumer_waits() -> None:
    async def main() -> None:
        stream, taken = RequestStream(), []
        aborted: list[int] = []
        stream.attach(7, aborted.append)
        willing = True

        def sink(delta: Delta) -> bool:
            if willing:
                taken.append(delta.token_ids)
            return willing

        stream.push(TokenOutput(7, [1]))
        first = await stream.next_delta(sink)
        assert first is not None and first.token_ids == [1] and taken == []
        stream.push(TokenOutput(7, [2]))  # nobody waits: kept
        second = asyncio.create_task(stream.next_delta(sink))
        await turn()
        assert (await second).token_ids == [2] and taken == []  # type: ignore[union-attr]
        waiting = asyncio.create_task(stream.next_delta(sink))
        await turn()
        stream.push(TokenOutput(7, [3]))
        stream.push(TokenOutput(7, [4, 5]))
        await turn()
        assert taken == [[3], [4, 5]] and not waiting.done()
        willing = False
        stream.push(TokenOutput(7, [6]))
        willing = True
        stream.push(TokenOutput(7, [7]))  # not to the sink: 6 comes first
        third = await waiting
        assert third is not None and third.token_ids == [6, 7] and taken == [[3], [4, 5]]
        waiting = asyncio.create_task(stream.next_delta(sink))
        await turn()
        stream.push(TokenOutput(7, [8], "length"))  # the end is the consumer's
        last = await waiting
        assert last is not None and (last.token_ids, last.finish_reason) == ([8], "length")
        assert await stream.next_delta(sink) is None and aborted == []

    asyncio.run(main())


def test_a_sinks_error_is_the_consumers_alone() -> None:
    async def main() -> None:
        stream, aborted = RequestStream(), []
        stream.attach(7, aborted.append)

        def sink(delta: Delta) -> bool:
            raise ZeroDivisionError

        waiting = asyncio.create_task(stream.next_delta(sink))
        await turn()
        stream.push(TokenOutput(7, [1]))  # raises nothing here
        assert (await waiting).token_ids == [1]  # type: ignore[union-attr]
        with pytest.raises(ZeroDivisionError):
            await stream.next_delta(sink)
        stream.close()
        assert aborted == [7]

    asyncio.run(main())


def test_an_interval() -> None:
    """The first token at once, then so many together, and what is left with the end."""

    async def main() -> list[list[int]]:
        stream, taken = RequestStream(interval=3), []
        stream.attach(7, lambda _: None)

        def sink(delta: Delta) -> bool:
            taken.append(delta.token_ids)
            return True

        async def consume() -> None:
            while (delta := await stream.next_delta(sink)) is not None:
                taken.append(delta.token_ids)

        task = asyncio.create_task(consume())
        for i in range(9):
            await turn()
            stream.push(TokenOutput(7, [i] if i != 5 else [50, 51, 52, 53], "length" if i == 8 else None))
        await task
        return taken

    assert asyncio.run(main()) == [[0], [1, 2, 3], [4, 50, 51, 52, 53], [6, 7, 8]]

    async def fails() -> None:
        stream = RequestStream(interval=9)
        for i in range(3):
            stream.push(TokenOutput(7, [i]))
        stream.push(TokenOutput(7, [], "error", error="lost"))
        assert (await anext(stream)).token_ids == [0, 1, 2]  # what came before is not lost
        with pytest.raises(RequestFailedError):
            await anext(stream)

    asyncio.run(fails())


def test_a_backlog_is_joined() -> None:
    def position(token_id: int) -> TokenLogprobs:
        return TokenLogprobs([token_id], [-1.0], 1)

    stats = EngineStats()
    messages = [
        Outputs([TokenOutput(1, [5], None, 4, [position(5)], 0.25), TokenOutput(2, [6])], stats),
        Outputs([TokenOutput(2, [7], "error", error="lost"), TokenOutput(3, [8])], stats),
        Outputs([TokenOutput(1, [9, 10], "stop", 0, [position(9), position(10)])], stats),
    ]
    assert list(joined(messages)) == [
        TokenOutput(1, [5, 9, 10], "stop", 4, [position(5), position(9), position(10)], 0.25),
        TokenOutput(2, [6, 7], "error", error="lost"),
        TokenOutput(3, [8]),
    ]


def test_a_backlog_keeps_every_field() -> None:
    """Whatever field messages get, joining two of them loses nothing."""
    entry = [TokenLogprobs([1], [-1.0], 1)]
    values = {
        "id": 1,
        "token_ids": [5],
        "finish_reason": "stop",
        "num_cached_tokens": 3,
        "logprobs": entry,
        "queued_s": 0.5,
        "error": "lost",
        "prompt_logprobs": entry,
        "param": "prompt",
        "late": True,
    }
    assert set(values) == set(TokenOutput.__struct_fields__), "a new field needs a place here, and in `joined`"
    full, empty, stats = TokenOutput(**values), TokenOutput(1, []), EngineStats()  # type: ignore[arg-type]
    assert list(joined([Outputs([empty], stats), Outputs([full], stats)])) == [full]
    [twice] = joined([Outputs([full], stats), Outputs([full], stats)])
    assert twice.token_ids == [5, 5] and twice.logprobs == twice.prompt_logprobs == entry * 2
