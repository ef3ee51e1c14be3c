"""Counters over several processes: each adds to its own row, everybody sees the sum."""

from __future__ import annotations

from pathlib import Path

import pytest
from test_metrics import samples

from quire.messages import EngineStats
from quire.observability.cells import ROW_CELLS, Cells, SharedCells
from quire.observability.metrics import Metrics


def test_sums(tmp_path: Path) -> None:
    SharedCells.create(tmp_path / "cells", 3)
    rows = [SharedCells(tmp_path / "cells", i, 3) for i in range(3)]
    firsts, seconds = [row.take(2) for row in rows], [row.take(5) for row in rows]
    for i, part in enumerate(firsts):
        part.own[1] += 10.0**i
    seconds[2].own[0] = 7.0
    assert all(part.sums() == [0.0, 111.0] and part.of_first() == [0.0, 1.0] for part in firsts)
    assert all(part.sums() == [7.0, 0, 0, 0, 0] for part in seconds)
    with pytest.raises(ValueError, match=str(ROW_CELLS)):
        rows[0].take(ROW_CELLS)
    assert Cells().take(3).sums() == [0.0] * 3


def test_metrics_of_all_processes(tmp_path: Path) -> None:
    SharedCells.create(tmp_path / "cells", 2)
    first, second = (Metrics("m", None, SharedCells(tmp_path / "cells", i, 2)) for i in range(2))
    alone = Metrics("m", lambda: EngineStats(num_running=3, kv_usage=0.5, num_steps=9))
    first.publish(alone.stats())
    for metrics in (first, second):
        metrics.set_max_model_len(1000)
    alone.set_max_model_len(1000)
    for i, metrics in enumerate((first, second, second)):
        for fed in (metrics, alone):
            request = fed.start_request(10 + i, arrival=100.0)
            request.on_tokens(100.3 + i, 1, 0.2)
            request.on_tokens(100.4 + i, 4)
            request.on_finish(100.5 + i, "stop" if i else "abort")
    own = ("process_", "python_info")
    expected = {name: value for name, value in samples(alone).items() if not name.startswith(own)}
    for metrics in (first, second):
        found = {name: value for name, value in samples(metrics).items() if not name.startswith(own)}
        assert found == pytest.approx(expected) and found["vllm:num_requests_running"] == 3
    assert second.finished == {"stop": 2, "length": 0, "abort": 1, "error": 0, "repetition": 0}
