"""Damaged files: seeded changes of a header's bytes, whole numbers and length; and what comes of them."""

from __future__ import annotations

import random
import struct
from collections.abc import Iterator
from pathlib import Path

import torch

from quire.checkpoint import read_facts
from quire.errors import ConfigError, StartupError
from quire.worker.attention.torch_backend import TorchAttention
from quire.worker.kernels.plain import PlainKernels
from quire.worker.layers.build import Build
from quire.worker.models.load import load_model
from quire.worker.quantization.none import Unquantized

NUMBERS = (0, 1, 2, 0x7F, 0xFF, 1 << 16, (1 << 31) - 1, 1 << 31, (1 << 32) - 1, 1 << 32, (1 << 63) - 1, 1 << 63,
           (1 << 64) - 1)  # fmt: skip
"""Where arithmetic likes to go wrong."""


def mutations(whole: bytes, end: int, count: int, rng: random.Random) -> Iterator[bytes]:
    """Copies of a file, each with a few changes before byte `end`, some of them cut."""
    for _ in range(count):
        damaged = bytearray(whole)
        for _ in range(rng.choice([1, 1, 1, 2, 6])):
            _change(damaged, min(end, len(damaged)), rng)
        if rng.random() < 0.15:
            del damaged[rng.randrange(len(damaged)) :]
        yield bytes(damaged)


def _change(content: bytearray, end: int, rng: random.Random) -> None:
    at = rng.randrange(max(1, end - 8))
    kind = rng.randrange(5)
    if kind == 0:
        content[at : at + 1] = bytes([rng.randrange(256)])
    elif kind == 1:
        content[at : at + 8] = struct.pack("<Q", rng.choice(NUMBERS))
    elif kind == 2:
        content[at : at + 4] = struct.pack("<I", rng.choice(NUMBERS) & 0xFFFFFFFF)
    elif kind == 3:
        del content[at : at + rng.randint(1, 9)]
    else:
        content[at:at] = content[at : at + rng.randint(1, 9)]


class Plain(Unquantized):
    """Weights stay as they are: quick."""

    def finish(self, layer: torch.nn.Module) -> None:
        pass


def load(folder: Path, device: str = "meta") -> str | None:
    """What was wrong, or None."""
    build = Build(torch.float32, torch.device(device), TorchAttention(), Plain(), PlainKernels())
    try:
        facts = read_facts(folder)
        load_model(folder, facts, build)
    except (ConfigError, StartupError) as error:
        assert "\n" not in error.message and len(error.message) < 1500
        return error.message
    return None
