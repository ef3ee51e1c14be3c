"""How busy the GPUs of this machine are, read through NVML while a run lasts."""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable

import numpy as np

INTERVAL = 0.1
"""Seconds; NVML itself averages over 1/6 to 1 s."""

LOCAL_HOSTS = frozenset({"localhost", "127.0.0.1", "::1", "0.0.0.0"})
Reader = Callable[[], list[int]]


class GpuWatch:
    """Reads utilisation in a thread from entering to leaving.

    Args:
        read: percent of each GPU; None reads nothing.
        interval: seconds between readings.
    """

    def __init__(self, read: Reader | None, interval: float = INTERVAL) -> None:
        self._read = read
        self._interval = interval
        self._readings: list[list[int]] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="quire-bench-gpu", daemon=True)

    def __enter__(self) -> GpuWatch:
        if self._read:
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        if self._read:
            self._thread.join()

    @property
    def means(self) -> list[float]:
        """Mean percent of each GPU; empty if nothing was read."""
        return [float(mean) for mean in np.mean(self._readings, axis=0)] if self._readings else []

    def _watch(self) -> None:
        assert self._read
        while True:
            try:
                self._readings.append(self._read())
            except OSError:
                return
            if self._stop.wait(self._interval):
                return


def in_use(means: list[float]) -> float | None:
    """Mean percent of the GPUs that did anything; None where nothing is known."""
    if not means:
        return None
    busy = [mean for mean in means if mean >= 1.0]
    return sum(busy) / len(busy) if busy else 0.0


def nvml_reader() -> Reader | None:
    """Reads all GPUs of this machine, straight from the driver's library; None if there is none."""
    try:
        library = ctypes.CDLL("libnvidia-ml.so.1")
    except OSError:
        return None
    count = ctypes.c_uint()
    if library.nvmlInit_v2() or library.nvmlDeviceGetCount_v2(ctypes.byref(count)) or not count.value:
        return None
    handles = []
    for index in range(count.value):
        handle = ctypes.c_void_p()
        if library.nvmlDeviceGetHandleByIndex_v2(ctypes.c_uint(index), ctypes.byref(handle)):
            return None
        handles.append(handle)

    def read() -> list[int]:
        return [_utilization(library, handle) for handle in handles]

    try:
        read()
    except OSError:  # as with MIG, where the driver tells nothing
        return None
    return read


class _Utilization(ctypes.Structure):
    _fields_ = [("gpu", ctypes.c_uint), ("memory", ctypes.c_uint)]


def _utilization(library: ctypes.CDLL, handle: ctypes.c_void_p) -> int:
    found = _Utilization()
    code = library.nvmlDeviceGetUtilizationRates(handle, ctypes.byref(found))
    if code:
        raise OSError(f"NVML error {code}")
    return int(found.gpu)
