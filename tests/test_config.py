"""Settings: ranges name the flag, unknown names get the nearest known one, and they survive the wire."""

from __future__ import annotations

import msgspec
import pytest

from quire.config import EngineConfig, build_engine_config
from quire.errors import ConfigError


def test_flat_names_go_to_their_groups() -> None:
    config = build_engine_config({"model": "m", "max_num_seqs": 7, "gpu_memory_utilization": 0.5, "seed": 3})
    assert (config.model.model, config.model.seed) == ("m", 3)
    assert (config.scheduler.max_num_seqs, config.cache.gpu_memory_utilization) == (7, 0.5)


def test_defaults() -> None:
    config = EngineConfig()
    assert config.cache.gpu_memory_utilization == 0.9 and config.cache.block_size == 16
    assert config.cache.enable_prefix_caching and config.scheduler.enable_chunked_prefill


def test_unknown_name_suggests() -> None:
    with pytest.raises(ConfigError, match="gpu_memory_utilization"):
        build_engine_config({"gpu_memory_utilisation": 0.5})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("gpu_memory_utilization", 0), ("gpu_memory_utilization", 1.5), ("gpu_memory_utilization", "0.9"),
        ("dtype", "int4"), ("max_num_seqs", 0), ("block_size", 0), ("scheduling_policy", "lifo"), ("max_model_len", -2),
    ],
)  # fmt: skip
def test_out_of_range_names_the_flag(name: str, value: object) -> None:
    with pytest.raises(ConfigError, match="--" + name.replace("_", "-")):
        build_engine_config({name: value})


def test_round_trip() -> None:
    config = build_engine_config({"model": "m", "max_model_len": 100})
    assert msgspec.json.decode(msgspec.json.encode(config), type=EngineConfig) == config


def test_what_is_not_there_yet_is_refused_or_said() -> None:
    with pytest.raises(ConfigError, match="--tensor-parallel-size 1"):
        build_engine_config({"tensor_parallel_size": 2})
    with pytest.raises(ConfigError, match="--quantization"):
        build_engine_config({"quantization": "int3"})
    with pytest.warns(UserWarning, match="--swap-space 8"):
        build_engine_config({"swap_space": 8.0})
