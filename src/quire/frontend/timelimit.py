"""A wall-clock limit on Python code that never calls back, such as a template's nested loops.

One watcher thread; whoever overruns gets an exception raised inside his own thread, between two bytecodes. The lock
makes the end of the work and the interrupt exclude each other, so that no interrupt can reach the thread's next job.
A single call into C cannot be stopped; the callers bound the sizes that such calls see.
"""

from __future__ import annotations

import ctypes
import threading
import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")
REPEAT_SECONDS = 0.1
"""An interrupt that is lost, in a destructor say, is sent again after this long."""


class TimeLimitExceeded(Exception):
    """The work took too long and was stopped."""


class _Interrupt(BaseException):
    """Raised into the overrunning thread; not an Exception, so that `except Exception` does not keep it."""


class _Job:
    def __init__(self, deadline: float) -> None:
        self.thread = threading.get_ident()
        self.deadline = deadline
        self.lock = threading.Lock()
        self.ended = False


_set_async_exc = ctypes.pythonapi.PyThreadState_SetAsyncExc
_set_async_exc.argtypes = [ctypes.c_ulong, ctypes.py_object]
_NOTHING = ctypes.py_object()


class _Watcher:
    """Owns the jobs under way and the thread that looks at the earliest deadline."""

    def __init__(self) -> None:
        self._jobs: set[_Job] = set()
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None

    def add(self, job: _Job) -> None:
        with self._changed:
            self._jobs.add(job)
            if self._thread is None or not self._thread.is_alive():
                self._thread = threading.Thread(target=self._watch, name="quire-time-limit", daemon=True)
                self._thread.start()
            elif len(self._jobs) == 1:
                self._changed.notify()

    def remove(self, job: _Job) -> None:
        with self._changed:
            self._jobs.discard(job)

    def _watch(self) -> None:
        with self._changed:
            while True:
                now = time.monotonic()
                for job in self._jobs:
                    if job.deadline <= now:
                        self._interrupt(job, now)
                wait = min((job.deadline for job in self._jobs), default=None)
                self._changed.wait(None if wait is None else max(0.0, wait - now))

    @staticmethod
    def _interrupt(job: _Job, now: float) -> None:
        job.deadline = now + REPEAT_SECONDS
        with job.lock:
            if not job.ended:
                _set_async_exc(job.thread, _Interrupt)


_watcher = _Watcher()


def run_limited(work: Callable[[], T], seconds: float) -> T:
    """Call `work` in this thread, for at most `seconds`.

    Raises:
        TimeLimitExceeded: it was stopped.
    """
    job = _Job(time.monotonic() + seconds)
    try:
        try:
            _watcher.add(job)
            return work()
        finally:
            _settle(job)
    except _Interrupt:
        while not job.ended:  # it may have struck in the first attempt to settle
            _settle(job)
        raise TimeLimitExceeded from None
    finally:
        _watcher.remove(job)


def _settle(job: _Job) -> None:
    """From here on nobody interrupts this job; an interrupt set but not yet delivered is taken back."""
    with job.lock:
        job.ended = True
        _set_async_exc(job.thread, _NOTHING)
