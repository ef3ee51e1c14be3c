"""A few hundred damaged checkpoints, in this process: each loads or is one line, whatever was changed."""

from __future__ import annotations

import json
import random
import shutil
import sys
from pathlib import Path
from typing import Any

import checkpoints
import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "sources"))
from mutations import load, mutations

VALUES: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 2, 3, 7, 64.0, 0.5, -0.0, 1 << 31, 1 << 40, 1 << 64, 1e308, -1e9, float("inf"),
    float("nan"), "", "x", "silu", [], [1], [None], {}, {"a": 1}, {"rope_type": "yarn"}, {"rope_type": 3}, [[]] * 3,
)  # fmt: skip


@pytest.mark.parametrize("family", ["llama31", "gemma3", "qwen2_moe", "falcon40"])
def test_configs(family: str, tmp_path: Path) -> None:
    """Every key of a config in turn with values that it cannot have; some can, and load."""
    checkpoints.write(family, tmp_path)
    whole = json.loads((tmp_path / "config.json").read_text())
    rng = random.Random(family)
    refused = 0
    for key in [key for key in whole for _ in range(4)]:
        changed = dict(whole)
        if rng.random() < 0.2:
            del changed[key]
        else:
            changed[key] = rng.choice(VALUES)
        (tmp_path / "config.json").write_text(json.dumps(changed))
        refused += load(tmp_path) is not None
    assert refused > 20


def test_sizes_that_no_memory_holds(tmp_path: Path) -> None:
    checkpoints.write("qwen3", tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"hidden_size": 1 << 30, "intermediate_size": 1 << 30}))
    assert "no model of these sizes on cpu" in str(load(tmp_path, "cpu"))


def test_headers_of_safetensors(tmp_path: Path) -> None:
    checkpoints.write("qwen3", tmp_path / "m", num_hidden_layers=1)
    path = tmp_path / "m" / "model.safetensors"
    whole = path.read_bytes()
    end = 8 + int.from_bytes(whole[:8], "little")
    refused = 0
    for damaged in mutations(whole, end, 200, random.Random(3)):
        path.write_bytes(damaged)
        refused += load(tmp_path / "m") is not None
    assert refused > 150


def test_files_that_are_no_files(tmp_path: Path) -> None:
    checkpoints.write("qwen3", tmp_path / "m", max_shard_size="200KB")
    shards = sorted((tmp_path / "m").glob("*.safetensors"))
    assert len(shards) > 1

    def refused(*words: str) -> None:
        message = load(tmp_path / "n")
        assert message is not None and all(word in message for word in words), message
        shutil.rmtree(tmp_path / "n")

    def again() -> Path:
        return Path(shutil.copytree(tmp_path / "m", tmp_path / "n"))

    (again() / shards[1].name).unlink()
    refused(shards[1].name, "No such file")
    folder = again()
    (folder / shards[0].name).unlink()
    (folder / shards[0].name).mkdir()
    refused(shards[0].name)
    (again() / "config.json").write_bytes(b"\xff\xfe{")
    refused("config.json", "broken JSON")
    (again() / "model.safetensors.index.json").write_text('{"weight_map": {"a": 3}}')
    refused("must name a .safetensors file")
    folder = again()
    (folder / "config.json").unlink()
    (folder / "config.json").mkdir()
    refused("config.json")
