"""What an error means for the steps after it."""

from __future__ import annotations

import pytest
import torch

from quire.worker.trouble import trouble_of

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("error", "trouble"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), "memory"),
        (MemoryError(), "memory"),
        (RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory"), "memory"),
        (torch.AcceleratorError("CUDA error: an illegal memory access was encountered"), "device"),
        (RuntimeError("The size of tensor a (3) must match the size of tensor b (4)"), "step"),
        (ValueError("x"), "step"),
        (AssertionError(), "step"),
    ],
)
def test_trouble(error: Exception, trouble: str) -> None:
    assert trouble_of(error, CPU) == trouble


def test_a_real_allocation_that_fails() -> None:
    with pytest.raises(RuntimeError) as found:
        torch.empty(1 << 60, dtype=torch.uint8)
    assert trouble_of(found.value, CPU) == "memory"
