"""Ring: owns the slots through which captured steps and the host exchange their few numbers.

    inbox   [slots, width]    what changes from step to step; pinned, read by the device itself or copied from
    outbox  [slots, most]     new token ids; pinned, written by the device

The device counts its steps, the host counts those it launched; both modulo the number of slots name the same slot.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from quire.messages import StepResult

NUM_SLOTS = 4
"""Steps that may be on their way at once; the loop has two."""


@dataclass(slots=True)
class RingResult:
    """Tokens of a captured step, in its slot of the outbox."""

    tokens: np.ndarray
    event: torch.cuda.Event

    def wait(self) -> StepResult:
        """Block until they are there."""
        self.event.synchronize()
        return StepResult(self.tokens.tolist())


class Ring:
    """Args:
    width: numbers that the host has to say to one step, at most.
    most: new tokens of one step, at most.
    """

    def __init__(self, width: int, most: int, device: torch.device) -> None:
        self.inbox = torch.zeros(NUM_SLOTS, width, dtype=torch.int32).pin_memory()
        self.outbox = torch.zeros(NUM_SLOTS, most, dtype=torch.int32).pin_memory()
        self.counter = torch.zeros(1, dtype=torch.int64, device=device)
        self.host_inbox = self.inbox.numpy()
        self._host_outbox = self.outbox.numpy()
        self._count = 0
        self._events = [torch.cuda.Event() for _ in range(NUM_SLOTS)]

    def next_slot(self) -> int:
        """The slot of the step that is launched next; free to be written."""
        slot = self._count % NUM_SLOTS
        self._events[slot].synchronize()  # long since done
        return slot

    def launched(self, num_tokens: int) -> RingResult:
        """The step of `next_slot` is on its way, and its tokens will be."""
        slot = self._count % NUM_SLOTS
        self._events[slot].record()
        self._count += 1
        return RingResult(self._host_outbox[slot, :num_tokens], self._events[slot])
