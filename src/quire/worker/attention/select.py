"""Which attention backend runs where: the one table."""

from __future__ import annotations

import importlib

import torch

from quire.worker.attention.protocol import AttentionBackend
from quire.worker.kernels.select import has_triton_kernels

BACKENDS = {
    "cpu": "cpu_backend.CPUAttention",
    "native": "native_backend.NativeAttention",
    "triton": "triton_backend.TritonAttention",
    "torch": "torch_backend.TorchAttention",
}
"""Name to module and class; imported when chosen, because one of them needs triton."""


def backend_named(name: str) -> AttentionBackend:
    """A new backend by its name in the table."""
    module, kind = BACKENDS[name].split(".")
    backend: AttentionBackend = getattr(importlib.import_module(f"quire.worker.attention.{module}"), kind)()
    return backend


def select_backend(device: torch.device, *, native: bool = False) -> AttentionBackend:
    """The backend for a device; the reference where none was made for it.

    native: the C++ kernels are there, and the model's number format is one of theirs.
    """
    if device.type == "cpu":
        return backend_named("native" if native else "cpu")
    return backend_named("triton" if has_triton_kernels(device) else "torch")
