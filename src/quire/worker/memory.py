"""How much memory the KV cache may take, and the sentence that helps when it is too little.

gpu_memory_utilization * total = weights | working memory, measured at its peak | KV cache, the rest
"""

from __future__ import annotations

import ctypes
import math
from dataclasses import dataclass

import psutil
import torch

from quire.config import CacheConfig
from quire.errors import ConfigError
from quire.worker.attention.protocol import AttentionBackend, KVSpec

GIB = 1 << 30
KERNEL_BYTES = 128 << 20
"""For kernels that the driver loads when they are first needed,"""
CUT_BYTES = 64 << 20
"""and for what torch's allocator cuts off and cannot use."""
CPU_SHARE = 0.5
"""Share of the free host memory that the KV cache may take on a CPU, where other programs live too."""


@dataclass(frozen=True, slots=True)
class KVLayout:
    """The cut of the cache. `bytes_per_block` counts all layers."""

    num_blocks: int
    block_size: int
    bytes_per_block: int

    @property
    def num_tokens(self) -> int:
        """Tokens that fit; block 0 holds none."""
        return (self.num_blocks - 1) * self.block_size


def plan_kv(
    cache: CacheConfig, specs: tuple[KVSpec, ...], available_bytes: int, *, needed_tokens: int, max_model_len: int
) -> tuple[KVLayout, int]:
    """The layout, and the longest request that fits it.

    Args:
        available_bytes: what the device has left for KV.
        needed_tokens: more than this is never used: most requests at full length.
        max_model_len: the longest request asked for; -1 takes what fits.

    Raises:
        ConfigError: when not even one request of that length fits, with the length that would.
    """
    size = cache.block_size
    per_block = sum(spec.bytes_per_token for spec in specs) * size
    if cache.num_gpu_blocks_override is not None:
        num_blocks = cache.num_gpu_blocks_override
    else:
        budget = cache.kv_cache_memory_bytes if cache.kv_cache_memory_bytes is not None else available_bytes
        most = budget // per_block
        wanted = most if cache.kv_cache_memory_bytes is not None else needed_tokens // size + 1
        num_blocks = max(0, min(most, wanted))
    layout = KVLayout(num_blocks, size, per_block)
    if num_blocks < 2:
        raise ConfigError(
            f"No space for the KV cache: one block of {size} tokens needs {size_text(per_block)},"
            f" {size_text(max(0, available_bytes))} are left. Use {_more(cache, available_bytes, per_block, 2)}"
        )
    if max_model_len == -1:
        return layout, layout.num_tokens
    if layout.num_tokens < max_model_len:
        needed = -(-max_model_len // size) + 1
        raise ConfigError(
            f"One request of {max_model_len} tokens needs {size_text(needed * per_block)} of KV cache,"
            f" there is room for {layout.num_tokens} tokens ({size_text(num_blocks * per_block)})."
            f" Use --max-model-len {layout.num_tokens} or less, or {_more(cache, available_bytes, per_block, needed)}"
        )
    return layout, max_model_len


def size_text(num_bytes: float) -> str:
    """Bytes for people: 512 B, 3.2 MiB, 1.50 GiB."""
    for unit, scale, digits in (("GiB", 1 << 30, 2), ("MiB", 1 << 20, 1), ("KiB", 1 << 10, 1)):
        if num_bytes >= scale:
            return f"{num_bytes / scale:.{digits}f} {unit}"
    return f"{num_bytes:.0f} B"


def _more(cache: CacheConfig, available_bytes: int, bytes_per_block: int, num_blocks: int) -> str:
    """The setting that would give `num_blocks`."""
    if cache.num_gpu_blocks_override is not None:
        return f"--num-gpu-blocks-override {num_blocks} or more."
    needed_bytes = num_blocks * bytes_per_block
    if cache.kv_cache_memory_bytes is not None:
        return f"--kv-cache-memory-bytes {needed_bytes} or more."
    if torch.cuda.is_available():
        more = (needed_bytes - available_bytes) / torch.cuda.mem_get_info()[1] + cache.gpu_memory_utilization
        if more <= 0.99:
            return f"--gpu-memory-utilization {math.ceil(more * 100) / 100:.2f} or more."
    return "a device with more free memory."


def allocate_kv(
    backend: AttentionBackend, specs: tuple[KVSpec, ...], layout: KVLayout, device: torch.device
) -> tuple[torch.Tensor, ...]:
    """One tensor per layer, not cleared: untouched memory costs a CPU nothing, and nobody reads what nobody wrote."""
    return tuple(
        torch.empty(backend.kv_shape(spec, layout.num_blocks, layout.block_size), dtype=spec.dtype, device=device)
        for spec in specs
    )


def cpu_available_bytes() -> int:
    """What the KV cache may take of the host memory that is free now, cgroup limits included."""
    free = int(psutil.virtual_memory().available)
    try:
        with open("/sys/fs/cgroup/memory.max") as limit, open("/sys/fs/cgroup/memory.current") as used:  # noqa: PTH123
            free = min(free, int(limit.read()) - int(used.read()))
    except (OSError, ValueError):  # no cgroup, or "max"
        pass
    return int(free * CPU_SHARE)


class GpuBudget:
    """Keeps the promise of --gpu-memory-utilization on one GPU. Make it before the first CUDA call.

    What other processes hold does not count against the share, but cannot be used either.
    """

    def __init__(self, index: int, utilization: float) -> None:
        held = _nvml_held_bytes(index)
        free, total = torch.cuda.mem_get_info(index)
        # NVML counts what the driver keeps for itself, as used and in its total; CUDA's total is without.
        self._others = max(0, held.used - (held.total - total)) if held is not None else 0
        self._index = index
        self._share = int(utilization * total)
        if free < self._share - total * 0.02 - (1 << 29):
            fits = math.floor(free / total * 100) / 100
            raise ConfigError(
                f"--gpu-memory-utilization {utilization} asks for {self._share / GIB:.1f} GiB of the GPU, others"
                f" left {free / GIB:.1f} GiB of {total / GIB:.1f}. Use --gpu-memory-utilization {fits:.2f} or less."
            )

    def left_bytes(self) -> int:
        """What is left of the share now. Memory that torch's allocator caches counts as used: it holds the peak.

        A little is kept for what comes later.
        """
        free, total = torch.cuda.mem_get_info(self._index)
        used = total - free - self._others
        return min(self._share - used, free) - KERNEL_BYTES - CUT_BYTES

    def enforce(self, later_bytes: int) -> None:
        """From here on an allocation of torch beyond the share fails instead of breaking the promise.

        Args:
            later_bytes: that the driver may take yet for graphs.
        """
        free, total = torch.cuda.mem_get_info(self._index)
        outside_torch = total - free - torch.cuda.memory_reserved(self._index) - self._others
        left = self._share - outside_torch - later_bytes - KERNEL_BYTES
        torch.cuda.set_per_process_memory_fraction(max(0.0, left / total), self._index)


class _NvmlMemory(ctypes.Structure):
    _fields_ = [("total", ctypes.c_ulonglong), ("free", ctypes.c_ulonglong), ("used", ctypes.c_ulonglong)]


def _nvml_held_bytes(index: int) -> _NvmlMemory | None:
    """Memory of the GPU before this process touches it, or None if NVML cannot tell."""
    try:
        nvml = ctypes.CDLL("libnvidia-ml.so.1")
        handle, memory = ctypes.c_void_p(), _NvmlMemory()
        nvml.nvmlInit_v2()
        bus = torch.cuda.get_device_properties(index)
        pci = f"{bus.pci_domain_id:08X}:{bus.pci_bus_id:02X}:{bus.pci_device_id:02X}.0".encode()
        failed = nvml.nvmlDeviceGetHandleByPciBusId_v2(pci, ctypes.byref(handle))
        failed = failed or nvml.nvmlDeviceGetMemoryInfo(handle, ctypes.byref(memory))
        return None if failed else memory
    except (OSError, AttributeError):
        return None
