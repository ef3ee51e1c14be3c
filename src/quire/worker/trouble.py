"""What an error of a step means: whether there is a next one, and whether less memory would help."""

from __future__ import annotations

import gc
from typing import Literal

import torch

Trouble = Literal["memory", "step", "device"]
_DEVICE_ERRORS: tuple[type[Exception], ...] = (getattr(torch, "AcceleratorError", torch.cuda.CudaError),)
_NO_MEMORY = ("DefaultCPUAllocator: can't allocate memory", "CUDA out of memory")


def trouble_of(error: Exception, device: torch.device) -> Trouble:
    """Judge an error after which nothing runs any more; memory that is free is given back where it was short.

    An error of CUDA itself leaves a context in which every further call fails: the device is lost for this process.
    """
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)) or any(words in str(error) for words in _NO_MEMORY):
        trouble: Trouble = "memory"
    elif isinstance(error, _DEVICE_ERRORS):
        return "device"
    else:
        trouble = "step"
    if device.type == "cuda":
        try:
            torch.cuda.synchronize(device)
        except Exception:  # noqa: BLE001 - whatever it says, no call gets through
            return "device"
    if trouble == "memory":
        gc.collect()
        if device.type == "cuda":
            torch.cuda.empty_cache()
    return trouble
