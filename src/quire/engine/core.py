"""EngineCore: THE loop. Owns the step that is in flight, and nothing else.

    host     plan k | launch k | commit k-1 | launch sampling k | plan k+1 | ...
    device   ... forward k-1, sample k-1    | forward k ............ | sample k | forward k+1

The host never waits for the device to plan: counts are known ahead, token ids stay on the device until committed.
"""

from __future__ import annotations

import logging
import traceback

from quire.engine.executors import Executor, Pending, Trouble
from quire.engine.grammar import Constraints, NoConstraints
from quire.engine.scheduler.scheduler import Scheduler, Step
from quire.engine.trial import Trial
from quire.errors import QuireError
from quire.messages import AddRequest, Outputs

log = logging.getLogger("quire.engine")
MAX_FAILED = 32
"""Steps that may fail one after the other, with none that goes well in between: then it is not the requests."""


class BrokenEngine(QuireError):
    """No further step can be expected to go well; the process must end.

    Args:
        message: may be shown to clients.
        detail: the error itself; for the log, since it may name files and addresses.
    """

    def __init__(self, message: str, detail: str) -> None:
        super().__init__(message, detail)
        self.detail = detail


class EngineCore:
    """Runs the scheduler against an executor.

    Args:
        scheduler: who decides.
        executor: the way to the device.
        constraints: token masks for constrained requests.
    """

    def __init__(self, scheduler: Scheduler, executor: Executor, constraints: Constraints | None = None) -> None:
        self.scheduler = scheduler
        self._executor = executor
        self.constraints = constraints or NoConstraints()
        self._open: list[tuple[Step, Pending | None]] = []  # launched, not committed, the oldest first
        self._trial = Trial(scheduler)
        self._num_failed = 0

    @property
    def busy(self) -> bool:
        """Whether `step` has anything to do."""
        return bool(self._open) or self.scheduler.has_work

    def add(self, message: AddRequest) -> None:
        """Take a request in; one that is constrained is held until its grammar is ready."""
        constraint = message.constraint
        try:
            request = self.scheduler.add(message, held=constraint is not None)
            if constraint is not None:
                self.constraints.admit(request, constraint)
        except Exception as error:
            log.error("request %d could not be taken in", message.id, exc_info=error)
            self.scheduler.reject(message.id, f"{type(error).__name__} when it was taken in")

    def prepare(self) -> bool:
        """Called while there is no work: whether something was prepared for later."""
        return self.constraints.prepare() or self._executor.prepare()

    def settle(self) -> None:
        """Called between steps, when outputs are on their way: wait until the device wants the next plan."""
        self._executor.settle()

    def step(self) -> Outputs:
        """Plan and launch one step, then take in the results of the one before.

        Raises:
            BrokenEngine: the device is lost, or nothing goes well any more.
        """
        error = self._try_step()
        if error is not None:
            self._recover(error)
        if not self.busy:
            self.scheduler.check_integrity()
        return Outputs(self.scheduler.take_outputs(), self.scheduler.stats())

    def _try_step(self) -> Exception | None:
        """The loop's body; an error of the device's side is returned, with the steps it concerns still open."""
        constraints = self.constraints
        constraints.poll()
        step = self.scheduler.plan()
        try:
            if step:
                constraints.mark(step)
                self._open.append((step, None))
                self._executor.forward(step.plan)
            elif not self._open:
                self._wait_for_work()
            if self._open and (previous := self._open[0])[1] is not None:
                result = previous[1].wait()
                del self._open[0]
                self._num_failed = 0
                self.scheduler.commit(previous[0], result)
                if self._trial.active:
                    self._trial.passed(previous[0])
            constraints.follow()
            if step:
                self._open[-1] = (step, self._executor.sample(step.plan, constraints.masks(step)))
        except Exception as error:  # noqa: BLE001 - judged in _recover
            return error
        return None

    def _wait_for_work(self) -> None:
        """Nobody can run, and nothing is on its way."""
        if self.scheduler.has_work:
            if self._trial.active:  # those who may run cannot, for want of what others hold
                self._trial.end()
            self.constraints.rest()

    # ---- when a step fails ---------------------------------------------------------------------------------------

    def _recover(self, error: Exception) -> None:
        """Undo what failed, find out whose fault it is, go on. Results that are still to be had are taken."""
        failed: list[Step] = []
        for step, pending in self._open:
            if not failed and pending is not None:
                try:
                    result = pending.wait()
                except Exception as own:  # noqa: BLE001 - the first to fail is the one to judge
                    error = own
                else:
                    self.scheduler.commit(step, result)
                    continue
            failed.append(step)
        self._open.clear()
        if not failed:  # the error came when all was committed: ours
            raise error
        trouble = self._note(error, failed[0])
        for step in reversed(failed):
            self.scheduler.rewind(step)
        blamed = self._trial.failed(failed[0], trouble)
        if blamed is not None:
            self.scheduler.fail(blamed, f"{type(error).__name__} in a step of its own")
        self.constraints.follow()

    def _note(self, error: Exception, step: Step) -> Trouble:
        """Log the failure, without a word of any prompt, and judge it.

        Raises:
            BrokenEngine: there is no going on.
        """
        self._num_failed += 1
        counts = step.plan.counts
        what = f"step {step.plan.step} failed ({len(counts)} rows, {sum(counts)} tokens, longest {max(counts)})"
        log.error("%s: %s", what, type(error).__name__, exc_info=error)
        traceback.clear_frames(error.__traceback__)  # they hold tensors
        error.__traceback__ = None
        trouble = self._executor.judge(error)
        if trouble == "device":
            raise BrokenEngine("the device is lost", one_line(error))
        if self._num_failed >= MAX_FAILED:
            raise BrokenEngine(f"{MAX_FAILED} steps have failed one after the other", one_line(error))
        return trouble


def one_line(error: BaseException) -> str:
    """An error's kind and the beginning of its text."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:300]
