"""The supervisor, with an engine that is only a story: told at once, started again so often, then given up."""

from __future__ import annotations

import asyncio

import pytest

import quire.server.supervisor as module
from quire.errors import StartupError
from quire.server.supervisor import Supervisor


class Story:
    """An engine that dies as soon as it is up; `fails` starts of it do not even come so far."""

    def __init__(self, fails: int = 0, unkillable: bool = False) -> None:
        self.reason = "The engine has ended unexpectedly with code 3"
        self.detail = ""
        self.starts = 0
        self._fails = fails
        self._unkillable = unkillable

    async def wait_dead(self) -> None:
        await asyncio.sleep(0)

    async def wait_ended(self) -> int:
        if self._unkillable:
            await asyncio.Event().wait()
        return 3

    async def wait_ready(self) -> object:
        if self.starts <= self._fails:
            raise StartupError("no room")
        return None

    def restart(self) -> None:
        self.starts += 1


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    async def no_sleep(seconds: float) -> None:
        pass

    monkeypatch.setattr(module, "KILLED_SECONDS", 0.05)
    monkeypatch.setattr(module.asyncio, "sleep", no_sleep)


@pytest.mark.parametrize("fails", [0, 2])
def test_so_often_and_no_more(fails: int) -> None:
    story, told = Story(fails), []
    supervisor = Supervisor(story, 3, told.append)
    reason = asyncio.run(asyncio.wait_for(supervisor.run(), 5))
    assert story.starts == supervisor.num_restarts == 3
    assert reason == f"{story.reason}, after 3 restarts in 10 minutes (--max-restarts)"
    assert told == [f"dead {story.reason}"] * 4


def test_restarts_of_long_ago_do_not_count() -> None:
    story = Story()
    looks = iter(range(0, 10_000, 300))  # each look at the clock 300 s later, and three looks to a restart

    def clock() -> float:
        if story.starts == 8:
            supervisor.stop()
        return float(next(looks))

    supervisor = Supervisor(story, 2, lambda order: None, clock)
    asyncio.run(asyncio.wait_for(supervisor.run(), 5))
    assert story.starts == 8


def test_none_at_all_and_none_while_stopping() -> None:
    assert asyncio.run(Supervisor(story := Story(), 0, lambda order: None).run()) == story.reason
    supervisor = Supervisor(story := Story(), 3, lambda order: None)
    supervisor.stop()
    assert asyncio.run(supervisor.run()) == story.reason and story.starts == 0


def test_the_error_itself_is_for_the_log() -> None:
    story, told = Story(), []
    story.detail = "RuntimeError: at /secret/path"
    assert asyncio.run(Supervisor(story, 0, told.append).run()) == f"{story.reason} (RuntimeError: at /secret/path)"
    assert told == [f"dead {story.reason}"]


def test_a_process_that_cannot_be_killed() -> None:
    story = Story(unkillable=True)
    reason = asyncio.run(Supervisor(story, 3, lambda order: None).run())
    assert reason.endswith("cannot be killed") and story.starts == 0
