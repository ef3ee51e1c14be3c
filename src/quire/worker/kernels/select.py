"""Which kernels run where."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

import torch

from quire.version import __version__
from quire.worker.kernels.plain import PlainKernels
from quire.worker.kernels.protocol import Kernels


def has_triton_kernels(device: torch.device) -> bool:
    """Whether ours run on this device: an NVIDIA GPU of compute capability 8.0 or more, with triton installed."""
    if device.type != "cuda" or importlib.util.find_spec("triton") is None:
        return False
    return torch.cuda.get_device_capability(device)[0] >= 8


def kernels_for(device: torch.device) -> Kernels:
    """The set for a device; triton is imported only where it is used."""
    if not has_triton_kernels(device):
        return PlainKernels()
    from quire.worker.kernels.fused import TritonKernels

    return TritonKernels(cache_folder())


def cache_folder() -> Path:
    """Where what was measured on this machine is kept: in the user's cache, one folder per version of ours."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "quire" / "kernels" / __version__
