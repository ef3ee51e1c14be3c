"""How many threads compute on a CPU, and on which cores: what OpenMP must find in its environment before it starts."""

from __future__ import annotations

import math
import os
from pathlib import Path

from quire.config import EngineConfig

SYSTEM = Path("/sys/devices/system/cpu")
QUOTA = Path("/sys/fs/cgroup/cpu.max")
BIND_FROM = 5
"""Threads that are bound to cores; fewer share them with the server and are better off where there is room."""
SPARE_FROM = 8
"""Cores of which one is left to the server and the loop."""


def may_run_on_cpu(config: EngineConfig) -> bool:
    """Before torch can tell: whether the model may come to run on the CPU."""
    return config.model.device == "cpu" or (config.model.device == "auto" and not Path("/dev/nvidiactl").exists())


def openmp_environment(allowed: set[int] | None = None, system: Path = SYSTEM, quota: Path = QUOTA) -> dict[str, str]:
    """OMP_NUM_THREADS, and where threads are bound OMP_PLACES and OMP_PROC_BIND.

    One thread per physical core that this process may use: two on one core share its vector units and gain nothing.
    A container's share of CPU time bounds them too.
    """
    cores = _physical(os.sched_getaffinity(0) if allowed is None else allowed, system)
    share = _share(quota)
    num = len(cores) if share is None else max(1, min(len(cores), share))
    if num >= SPARE_FROM:
        num -= 1
    environment = {"OMP_NUM_THREADS": str(num)}
    if num >= BIND_FROM and (share is None or share >= len(cores)):
        places = ",".join(f"{{{core}}}" for core in cores[len(cores) - num :])
        environment |= {"OMP_PLACES": places, "OMP_PROC_BIND": "close"}
    return environment


def _physical(allowed: set[int], system: Path) -> list[int]:
    """The first allowed CPU of each core."""
    seen: dict[str, int] = {}
    for cpu in sorted(allowed):
        try:
            siblings = (system / f"cpu{cpu}" / "topology" / "thread_siblings_list").read_text().strip()
        except OSError:
            siblings = str(cpu)
        seen.setdefault(siblings, cpu)
    return sorted(seen.values())


def _share(quota: Path) -> int | None:
    """CPUs' worth of time that a container has; None is no bound."""
    try:
        most, period = quota.read_text().split()
    except (OSError, ValueError):
        return None
    return None if most == "max" else math.ceil(int(most) / int(period))
