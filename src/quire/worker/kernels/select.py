"""Which kernels run where."""

from __future__ import annotations

import importlib.util
import logging
import os
from pathlib import Path

import torch

from quire.errors import ConfigError
from quire.version import __version__
from quire.worker.kernels.native import FORMATS, NativeKernels, NativeLibrary, library
from quire.worker.kernels.native_build import BuildError
from quire.worker.kernels.plain import PlainKernels
from quire.worker.kernels.protocol import Kernels

log = logging.getLogger("quire.engine")


def has_triton_kernels(device: torch.device) -> bool:
    """Whether ours run on this device: an NVIDIA GPU of compute capability 8.0 or more, with triton installed."""
    if device.type != "cuda" or importlib.util.find_spec("triton") is None:
        return False
    return torch.cuda.get_device_capability(device)[0] >= 8


def kernels_for(device: torch.device, native: NativeLibrary | None = None) -> Kernels:
    """The set for a device; triton is imported only where it is used. native: the C++ kernels, on a CPU."""
    if native is not None:
        return NativeKernels(native)
    if not has_triton_kernels(device):
        return PlainKernels()
    from quire.worker.kernels.fused import TritonKernels

    return TritonKernels(cache_folder())


def native_library(device: torch.device, dtype: torch.dtype, wanted: str) -> NativeLibrary | None:
    """The C++ kernels, on a CPU and for number formats that they know; without a compiler a log line and None.

    Raises:
        ConfigError: `wanted` is "native", and they cannot be.
    """
    if device.type != "cpu" or wanted == "torch":
        return None
    why = ""
    if dtype not in FORMATS:
        why = f"they have none for {str(dtype).removeprefix('torch.')}"
    else:
        try:
            return library()
        except BuildError as error:
            why = str(error)
    if wanted == "native":
        raise ConfigError(f"--cpu-kernels native: {why}. Use --cpu-kernels torch.")
    log.warning("the slower kernels of torch are used: %s.", why)
    return None


def cache_folder() -> Path:
    """Where what was measured on this machine is kept: in the user's cache, one folder per version of ours."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "quire" / "kernels" / __version__
