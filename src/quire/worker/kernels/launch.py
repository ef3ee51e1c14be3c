"""What every launch of ours shares: programmatic dependent launch, where the GPU has it.

With it a kernel may be put on the chip while the one before is still running out (CUDA Programming Guide, "Programmatic
Dependent Launch"). Whoever is launched so must call `gdc_wait` before it reads what an earlier kernel wrote; until
then it may read weights only. `gdc_launch_dependents` says that the next one may come up.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch


@lru_cache
def _has_dependent_launch(index: int) -> bool:
    return torch.cuda.get_device_capability(index)[0] >= 9


def dependent_launch(tensor: torch.Tensor) -> dict[str, Any]:
    """Keywords for a launch on this tensor's device: `PDL` for the kernel, `launch_pdl` for the launcher."""
    if tensor.is_cuda and _has_dependent_launch(tensor.device.index):
        return {"PDL": True, "launch_pdl": True}
    return {"PDL": False}


def next_power_of_2(n: int) -> int:
    """The smallest power of two that is not below n >= 1."""
    return 1 << (n - 1).bit_length()


def padded(n: int) -> int:
    """A power of two that is not below n, one of few, so that few variants of a one-program kernel are compiled."""
    return 64 if n <= 64 else max(1024, next_power_of_2(n))


def aligned(n: int) -> int:
    """The next multiple of four: 16 bytes of int32."""
    return -(-n // 4) * 4
