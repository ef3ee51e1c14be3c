"""EngineCore: THE loop. Owns the step that is in flight, and nothing else.

    host     plan k | launch k | commit k-1 | launch sampling k | plan k+1 | ...
    device   ... forward k-1, sample k-1    | forward k ............ | sample k | forward k+1

The host never waits for the device to plan: counts are known ahead, token ids stay on the device until committed.
"""

from __future__ import annotations

from quire.engine.executors import Executor, Pending
from quire.engine.grammar import Constraints, NoConstraints
from quire.engine.scheduler.scheduler import Scheduler, Step
from quire.messages import AddRequest, Outputs


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
        self._inflight: tuple[Step, Pending] | None = None

    @property
    def busy(self) -> bool:
        """Whether `step` has anything to do."""
        return self._inflight is not None or self.scheduler.has_work

    def add(self, message: AddRequest) -> None:
        """Take a request in; one that is constrained is held until its grammar is ready."""
        constraint = message.constraint
        request = self.scheduler.add(message, held=constraint is not None)
        if constraint is not None:
            self.constraints.admit(request, constraint)

    def prepare(self) -> bool:
        """Called while there is no work: whether something was prepared for later."""
        return self.constraints.prepare() or self._executor.prepare()

    def settle(self) -> None:
        """Called between steps, when outputs are on their way: wait until the device wants the next plan."""
        self._executor.settle()

    def step(self) -> Outputs:
        """Plan and launch one step, then take in the results of the one before."""
        constraints = self.constraints
        constraints.poll()
        step = self.scheduler.plan()
        if step:
            constraints.mark(step)
            self._executor.forward(step.plan)
        elif not self._inflight and self.scheduler.has_work:
            constraints.rest()
        if self._inflight:
            previous, pending = self._inflight
            self.scheduler.commit(previous, pending.wait())
        constraints.follow()
        self._inflight = (step, self._executor.sample(step.plan, constraints.masks(step))) if step else None
        if not self.busy:
            self.scheduler.check_integrity()
        return Outputs(self.scheduler.take_outputs(), self.scheduler.stats())
