"""Which attention backend runs where: the one table."""

from __future__ import annotations

import torch

from quire.worker.attention.cpu_backend import CPUAttention
from quire.worker.attention.protocol import AttentionBackend
from quire.worker.attention.torch_backend import TorchAttention

BACKENDS: dict[str, type[AttentionBackend]] = {"cpu": CPUAttention, "cuda": TorchAttention}
"""Device type to backend."""


def select_backend(device: torch.device) -> AttentionBackend:
    """The backend for a device; the reference where none was made for it."""
    return BACKENDS.get(device.type, TorchAttention)()
