"""EncoderBudget: owns the slots in which the device keeps the vectors of pictures, and says who may have one.

A picture is encoded in the step that computes the first of its positions. Its vectors stay in their slot until the last
one is computed, and after that until another picture needs the slot, so that the same picture is not encoded again. As
with prefixes, only requests of the same salt share: nobody learns from times what others have sent.

    free ── take ──► held by requests whose positions are being computed ── last position, or drop ──► free, still known
      ▲                                                                                                       │
      └──────────────────────────── the one that was used longest ago is overwritten ─────────────────────────┘

It is a limit, which cuts a chunk before the first picture that has no slot, and a rider, which tells the device.
"""

from __future__ import annotations

from collections import OrderedDict

from msgspec import structs

from quire.engine.kv.hashing import pictures_in
from quire.engine.scheduler.request import Request
from quire.messages import EngineStats, NewPicture, Picture, PictureStep, PlacedPicture, StepPlan

_Key = tuple[str, bytes]
"""A request's salt, and a picture's digest."""


class EncoderBudget:
    """See `limits.Limit` and `limits.Rider`.

    Args:
        num_slots: pictures whose vectors the device keeps.
        most: pictures that one step encodes.

    Attributes:
        num_queries: pictures that requests came to.
        num_hits: those among them whose vectors were there.
    """

    def __init__(self, num_slots: int, most: int) -> None:
        self._most = most
        self._left = most
        self._known: dict[_Key, int] = {}  # to the slot that has, or gets in this step, its vectors
        self._keys: list[_Key | None] = [None] * num_slots
        self._num_holders = [0] * num_slots
        self._free: OrderedDict[int, None] = OrderedDict.fromkeys(range(num_slots))  # the next to be overwritten first
        self._held: dict[int, dict[int, int]] = {}  # request id → start of a picture → slot
        self._leaving: list[tuple[int, int]] = []  # (request id, start) of pictures that are computed
        self._new: list[NewPicture] = []
        self._placed: list[tuple[int, PlacedPicture]] = []
        self.num_queries = 0
        self.num_hits = 0

    # ---- as a limit ----------------------------------------------------------------------------------------------

    def begin(self, backlog: int) -> None:
        """What the step before has computed needs its slots no more: this one comes after it on the device."""
        for id_, start in self._leaving:
            self._let_go(id_, start)
        self._leaving.clear()
        self._new, self._placed = [], []
        self._left = self._most

    def allow(self, request: Request, count: int) -> int:
        """Up to the first picture that cannot have a slot."""
        start = request.num_computed
        if not request.pictures or start >= request.pictures[-1].end:
            return count
        held = self._held.get(request.id, {})
        seen: set[_Key] = set()
        num_new = num_again = 0
        for picture in pictures_in(request.pictures, start, start + count):
            key = request.cache_salt, picture.digest
            if picture.start in held or key in seen:
                continue
            seen.add(key)
            slot = self._known.get(key)
            if slot is None:
                num_new += 1
            elif not self._num_holders[slot]:
                num_again += 1
            if num_new > self._left or num_new + num_again > len(self._free):
                return max(0, picture.start - start)
        return count

    def take(self, request: Request, count: int) -> None:
        """Slots for the pictures in its chunk."""
        end = request.num_computed
        start = end - count
        if not request.pictures or start >= request.pictures[-1].end:
            return
        for picture in pictures_in(request.pictures, start, end):
            held = self._held.setdefault(request.id, {})
            if picture.start not in held:
                held[picture.start] = self._hold(picture, request.cache_salt)
            first, last = max(start, picture.start), min(end, picture.end)
            placed = PlacedPicture(request.row, first, first - picture.start, last - first, held[picture.start])
            self._placed.append((request.id, placed))
            if last == picture.end:
                self._leaving.append((request.id, picture.start))

    def drop(self, request: Request) -> None:
        """It holds nothing any more, and if it is in the step that is being planned it leaves that."""
        for start in list(self._held.get(request.id, ())):
            self._let_go(request.id, start)
        if self._placed:
            self._placed = [(id_, placed) for id_, placed in self._placed if id_ != request.id]

    # ---- as a rider ----------------------------------------------------------------------------------------------

    def board(self, plan: StepPlan) -> None:
        """Tell the device what to encode, and where vectors go."""
        if self._new or self._placed:
            plan.pictures.append(PictureStep(self._new, [placed for _, placed in self._placed]))

    def undo(self, plan: StepPlan) -> None:
        """Nobody knows what is in the slots that the step was to fill."""
        for new in [new for step in plan.pictures for new in step.new]:
            key = self._keys[new.slot]
            if key is not None and key[1] == new.picture.digest:
                self._forget(new.slot)
                for id_ in list(self._held):
                    for start in [start for start, slot in self._held[id_].items() if slot == new.slot]:
                        self._let_go(id_, start)

    def counted(self, stats: EngineStats) -> EngineStats:
        """How often a picture was encoded already."""
        return structs.replace(stats, picture_queries=self.num_queries, picture_hits=self.num_hits)

    # ---- slots ---------------------------------------------------------------------------------------------------

    @property
    def num_held(self) -> int:
        """Slots that requests hold."""
        return len(self._keys) - len(self._free)

    def _hold(self, picture: Picture, salt: str) -> int:
        key = salt, picture.digest
        slot = self._known.get(key)
        self.num_queries += 1
        if slot is not None:
            self.num_hits += 1
            self._free.pop(slot, None)
        else:
            slot, _ = self._free.popitem(last=False)
            self._forget(slot)
            self._known[key] = slot
            self._keys[slot] = key
            self._new.append(NewPicture(slot, picture))
            self._left -= 1
        self._num_holders[slot] += 1
        return slot

    def _let_go(self, id_: int, start: int) -> None:
        """A request needs a picture's vectors no more; it may have said so before."""
        held = self._held.get(id_, {})
        slot = held.pop(start, None)
        if slot is None:
            return
        if not held:
            del self._held[id_]
        self._num_holders[slot] -= 1
        if not self._num_holders[slot]:
            self._free[slot] = None
            if self._keys[slot] is None:
                self._free.move_to_end(slot, last=False)

    def _forget(self, slot: int) -> None:
        key = self._keys[slot]
        if key is not None:
            del self._known[key]
            self._keys[slot] = None
