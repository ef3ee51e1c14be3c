"""Executors: how the engine reaches a device. It launches and waits; what a tensor is, it does not know.

`InlineExecutor` calls a worker whose device has its own queue (a GPU): launching returns at once.
`ThreadExecutor` lets a thread play the part of that queue for a worker without one (a CPU).
"""

from __future__ import annotations

import queue
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, Literal, Protocol

from quire.messages import StepPlan, StepResult

Masks = dict[int, bytes]
Trouble = Literal["memory", "step", "device"]
"""What an error of a step means: it wanted too much memory; something else was wrong with it; the device is lost."""


class Pending(Protocol):
    """Sampling that was launched."""

    def wait(self) -> StepResult:
        """Block until the new tokens are on the host."""


class Worker(Protocol):
    """What an executor drives: `worker.Worker`, or a fake one in tests."""

    def forward(self, plan: StepPlan) -> None:
        """Apply the plan's row changes and run the model."""

    def sample(self, plan: StepPlan, masks: Masks) -> Pending:
        """Sample the plan's rows from the logits of its forward."""

    def prepare(self) -> bool:
        """Use a moment without work to be faster later; whether there was a use for it."""

    def judge(self, error: Exception) -> Trouble:
        """A step failed with this error: forget it, give back memory, and say what it means for further steps."""


class Executor(Protocol):
    """The same two calls, without waiting."""

    def forward(self, plan: StepPlan) -> None:
        """Launch the model on this step."""

    def sample(self, plan: StepPlan, masks: Masks) -> Pending:
        """Launch the sampling of this step, after its forward."""

    def settle(self) -> None:
        """Wait until planning another step makes sense: not while a device without a queue still runs a forward."""

    def prepare(self) -> bool:
        """There is no work: spend a few milliseconds on being faster later. False when nothing is left to prepare."""

    def judge(self, error: Exception) -> Trouble:
        """A step failed: wait until nothing runs any more, and let the worker say what that means."""

    def close(self) -> None:
        """Wait for what runs, and let go of the device."""


class InlineExecutor:
    """For a device with its own queue: launches are asynchronous by themselves."""

    def __init__(self, worker: Worker) -> None:
        self._worker = worker

    def forward(self, plan: StepPlan) -> None:
        """Launch."""
        self._worker.forward(plan)

    def sample(self, plan: StepPlan, masks: Masks) -> Pending:
        """Launch."""
        return self._worker.sample(plan, masks)

    def settle(self) -> None:
        """There is always room in the device's queue."""

    def prepare(self) -> bool:
        """Let the worker."""
        return self._worker.prepare()

    def judge(self, error: Exception) -> Trouble:
        """Ask the worker."""
        return self._worker.judge(error)

    def close(self) -> None:
        """Nothing of its own to end."""


_Call = tuple[Callable[..., Any], tuple[Any, ...], Future[Any]]


class _ThreadPending:
    def __init__(self, launched: Future[Pending]) -> None:
        self._launched = launched

    def wait(self) -> StepResult:
        return self._launched.result().wait()


class ThreadExecutor:
    """For a device without a queue: the thread that calls `serve` runs what another launches, in order.

    On a CPU let that be the main thread: OpenMP keeps its workers awake between operations only if no more threads
    own a team than there are cores, and counts the main thread as one. Elsewhere each operation costs 80 us more.

    `settle` returns when the step's forward is done and sampling has begun. So the next step is planned as late as
    possible, with every request that arrived meanwhile, and results are committed and sent while it already runs.

    After a call that failed nothing else runs until `judge`: a later step counts on the tables that it would have left.
    """

    def __init__(self, worker: Worker) -> None:
        self._worker = worker
        self._calls: queue.SimpleQueue[_Call | None] = queue.SimpleQueue()
        self._forward: Future[None] | None = None
        self._error: BaseException | None = None

    def forward(self, plan: StepPlan) -> None:
        """Launch."""
        self._forward = self._call(self._unless_failed, self._worker.forward, plan)

    def sample(self, plan: StepPlan, masks: Masks) -> Pending:
        """Launch."""
        return _ThreadPending(self._call(self._unless_failed, self._worker.sample, plan, masks))

    def settle(self) -> None:
        """Wait for the forward; whether it went well shows when its results are fetched."""
        if self._forward is not None:
            self._forward.exception()

    def prepare(self) -> bool:
        """Nothing: a CPU has no graphs to make."""
        return False

    def judge(self, error: Exception) -> Trouble:
        """Ask the worker, after all that was launched."""
        trouble: Trouble = self._call(self._judge, error).result()
        return trouble

    def close(self) -> None:
        """Let `serve` return once everything launched has run."""
        self._calls.put(None)

    def serve(self) -> None:
        """Run what is launched until `close`."""
        while (call := self._calls.get()) is not None:
            function, args, future = call
            try:
                future.set_result(function(*args))
            except BaseException as error:  # noqa: BLE001 - whoever waits for the future raises it
                future.set_exception(error)

    def _unless_failed(self, function: Callable[..., Any], *args: Any) -> Any:
        if self._error is not None:
            raise self._error
        try:
            return function(*args)
        except BaseException as error:
            self._error = error
            raise

    def _judge(self, error: Exception) -> Trouble:
        self._error = None
        return self._worker.judge(error)

    def _call(self, function: Callable[..., Any], *args: Any) -> Future[Any]:
        future: Future[Any] = Future()
        self._calls.put((function, args, future))
        return future
