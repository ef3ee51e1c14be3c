"""LoopThread: an asyncio loop beside whatever the caller does."""

from __future__ import annotations

import asyncio
import concurrent.futures
import queue
import threading
from collections.abc import AsyncIterator, Coroutine, Iterator
from typing import Any, TypeVar

T = TypeVar("T")


class LoopThread:
    """An asyncio loop in a thread of its own: works beside any loop that the caller has, as in a notebook."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="quire-llm", daemon=True)
        self._thread.start()

    def begin(self, coroutine: Coroutine[Any, Any, T]) -> concurrent.futures.Future[T]:
        """Start something, without waiting for it."""
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop)

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Run to the end and return the result; Ctrl-C cancels it and waits until it is wound up."""
        return self.wait(self.begin(coroutine))

    def wait(self, future: concurrent.futures.Future[T]) -> T:
        """The result of something that was begun; Ctrl-C as in `run`."""
        try:
            return future.result()
        except KeyboardInterrupt:
            self.cancel(future)
            raise

    def cancel(self, future: concurrent.futures.Future[Any]) -> None:
        """Stop something that was begun; returns when it is wound up."""
        future.cancel()
        self.begin(_settle()).result()

    def iterate(self, items: AsyncIterator[T]) -> Iterator[T]:
        """What an async iterator gives, as it comes; it is stopped when nobody reads on."""
        ready: queue.SimpleQueue[T | None] = queue.SimpleQueue()

        async def pump() -> None:
            try:
                async for item in items:
                    ready.put(item)
            finally:
                ready.put(None)

        future = self.begin(pump())
        try:
            while (item := ready.get()) is not None:
                yield item
            future.result()
        finally:
            if not future.done():
                self.cancel(future)

    def is_current(self) -> bool:
        """Whether the caller is this thread."""
        return threading.current_thread() is self._thread

    def stop(self) -> None:
        """End the thread."""
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


async def _settle() -> None:
    """Let what was cancelled run its clean-up."""
    for _ in range(3):
        await asyncio.sleep(0)
