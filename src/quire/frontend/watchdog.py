"""Watchdog: sees that an engine does not go on. Needs nothing of the engine but that its heart beats when it lives.

An idle engine sleeps; a ping now and then has it take a turn. So one whose heart stands still for as long as a step may
take is hung, whether it has work or not: it computes without end, waits for something that never comes, or is stopped.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from quire.observability.heartbeat import Heartbeat

LOOK_SECONDS = 0.5
PING_SECONDS = 10.0


async def watch(beat: Heartbeat, limit: float, ping: Callable[[], None]) -> None:
    """Returns when the heart has stood still for `limit` seconds; never, if it has not begun to beat.

    Time in which this process itself did not run (a paused machine, say) counts for one look.

    Args:
        beat: the engine's.
        limit: seconds.
        ping: has an idle engine take a turn.
    """
    look = min(LOOK_SECONDS, limit / 4)
    seen, still, since_ping, last = 0, 0.0, 0.0, time.monotonic()
    while still < limit:
        await asyncio.sleep(look)
        now = time.monotonic()
        passed, last = min(now - last, 2 * look), now
        count = beat.count
        still = still + passed if count and count == seen else 0.0
        seen = count
        since_ping += passed
        if since_ping >= min(PING_SECONDS, limit / 4):
            since_ping = 0.0
            ping()
