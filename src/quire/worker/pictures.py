"""Pictures: owns the vectors of encoded pictures on the device, one slot each. The engine says what is in which slot.

plan.pictures.new      pixels ──► upload ──► model.encode ──► slots[slot]
plan.pictures.placed   slots[slot, first : first + count] ──► tokens of this step, in the place of their embeddings
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import nn

from quire.config import MediaConfig
from quire.messages import NewPicture, Picture, PictureStep, PlacedPicture, StepPlan
from quire.pictures import PictureFacts
from quire.worker.batch import Batch
from quire.worker.transfer import upload

PER_STEP = {"cuda": 8, "cpu": 1}
"""Pictures that one step encodes unless the settings say otherwise."""
SLOTS = 32


@dataclass(frozen=True, slots=True)
class PictureRoom:
    """How many pictures have a slot, and how many of them one step encodes."""

    num_slots: int
    per_step: int


def pick_room(
    config: MediaConfig, facts: PictureFacts, device: torch.device, max_model_len: int, *, chunked: bool
) -> PictureRoom:
    """The sizes. Where a prompt must run in one step, so must all of its pictures."""
    per_step = config.max_pictures_per_step or PER_STEP[device.type]
    if not chunked:
        fitting = max(1, max_model_len // facts.num_tokens)
        per_step = max(per_step, min(fitting, config.limit_mm_per_prompt.get("image", fitting)))
    return PictureRoom(max(config.picture_cache_slots or SLOTS, per_step), per_step)


class Pictures:
    """The slots.

    Args:
        model: has `pictures`, `picture_width` and `encode`.
        room: their number.
        dtype, device: of the vectors.
    """

    def __init__(self, model: nn.Module, room: PictureRoom, dtype: torch.dtype, device: torch.device) -> None:
        self._model = model
        self._device = device
        self._num_tokens = model.pictures.num_tokens
        self._slots = torch.zeros(room.num_slots * self._num_tokens, model.picture_width, dtype=dtype, device=device)

    def merged(self, plan: StepPlan, step: PictureStep, batch: Batch) -> Batch:
        """The batch with the step's pictures in it, after encoding those that are new."""
        if step.new:
            self._encode(step.new)
        if not step.placed:
            return batch
        offsets = np.concatenate([[0], np.cumsum(plan.counts)])
        index_of = {row: index for index, row in enumerate(plan.rows)}
        places, vectors = [], []
        for placed in step.placed:
            index = index_of[placed.row]
            first = offsets[index] + placed.start - plan.starts[index]
            places.append(np.arange(first, first + placed.count))
            first = placed.slot * self._num_tokens + placed.first
            vectors.append(np.arange(first, first + placed.count))
        both = upload(torch.from_numpy(np.stack([np.concatenate(places), np.concatenate(vectors)])), self._device)
        return replace(batch, inserts=((both[0], self._slots[both[1]]),))

    def _encode(self, new: list[NewPicture]) -> None:
        size = self._num_tokens
        shapes = {(one.picture.height, one.picture.width) for one in new}
        for height, width in shapes:  # one, where all pictures are cut to one size
            some = [one for one in new if (one.picture.height, one.picture.width) == (height, width)]
            pixels = np.stack([np.frombuffer(one.picture.pixels, np.uint8).reshape(height, width, 3) for one in some])
            vectors = self._model.encode(upload(torch.from_numpy(pixels), self._device))
            for one, found in zip(some, vectors, strict=True):
                self._slots[one.slot * size : (one.slot + 1) * size] = found


def largest_step(facts: PictureFacts, room: PictureRoom, rows: list[int], starts: list[int]) -> PictureStep:
    """As much as a step can have to do with pictures, for the first row of a plan."""
    pixels = bytes(facts.height * facts.width * 3)
    picture = Picture(0, facts.num_tokens, b"", facts.height, facts.width, pixels)
    new = [NewPicture(slot, picture) for slot in range(room.per_step)]
    return PictureStep(new, [PlacedPicture(rows[0], starts[0], 0, 1, 0)])
