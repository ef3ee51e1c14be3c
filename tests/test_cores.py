"""Threads and places, from made-up machines."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from quire.launch.cores import openmp_environment


def machine(folder: Path, cores: int, threads: int) -> Path:
    """CPU numbers as Linux gives them: first threads of all cores, then the second ones."""
    for cpu in range(cores * threads):
        siblings = ",".join(str(cpu % cores + cores * i) for i in range(threads))
        (folder / f"cpu{cpu}" / "topology").mkdir(parents=True)
        (folder / f"cpu{cpu}" / "topology" / "thread_siblings_list").write_text(siblings + "\n")
    return folder


@pytest.mark.parametrize(
    ("cores", "threads", "quota", "num", "places"),
    [
        (1, 1, "max 100000", 1, None),
        (2, 1, "max 100000", 2, None),
        (2, 2, "max 100000", 2, None),
        (6, 2, "max 100000", 6, "{0},{1},{2},{3},{4},{5}"),
        (8, 2, "max 100000", 7, "{1},{2},{3},{4},{5},{6},{7}"),
        (16, 1, "150000 100000", 2, None),
        (16, 1, "50000 100000", 1, None),
        (4, 1, "800000 100000", 4, None),
    ],
)
def test_one_thread_per_core(
    tmp_path: Path, cores: int, threads: int, quota: str, num: int, places: str | None
) -> None:
    (tmp_path / "cpu.max").write_text(quota + "\n")
    found = openmp_environment(set(range(cores * threads)), machine(tmp_path, cores, threads), tmp_path / "cpu.max")
    assert found["OMP_NUM_THREADS"] == str(num)
    assert found.get("OMP_PLACES") == places
    assert ("OMP_PROC_BIND" in found) == (places is not None)


def test_only_cores_that_the_process_may_use(tmp_path: Path) -> None:
    machine(tmp_path, 8, 2)
    assert openmp_environment({2, 3, 10}, tmp_path, tmp_path / "none")["OMP_NUM_THREADS"] == "2"


def test_a_system_that_tells_nothing(tmp_path: Path) -> None:
    assert openmp_environment({0, 1, 2}, tmp_path, tmp_path / "none") == {"OMP_NUM_THREADS": "3"}
    assert int(openmp_environment()["OMP_NUM_THREADS"]) <= len(os.sched_getaffinity(0))
