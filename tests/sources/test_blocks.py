"""Block formats against the `gguf` package, which decodes them with numpy."""

from __future__ import annotations

import gguf
import numpy as np
import pytest
import torch

from quire.sources.gguf.header import OTHER_TYPES, TYPES
from quire.worker.loading.blocks import BLOCKS, decode

FLOATS_AT = {
    "Q8_0": (0,), "Q4_0": (0,), "Q4_1": (0, 2), "Q5_0": (0,), "Q5_1": (0, 2), "Q2_K": (80, 82), "Q3_K": (108,),
    "Q4_K": (0, 2), "Q5_K": (0, 2), "Q6_K": (208,), "IQ4_NL": (0,), "IQ4_XS": (0,),
}  # fmt: skip
"""Bytes of a block at which it has 16-bit floats; all others are free."""


def random_blocks(name: str, rows: int, blocks: int, seed: int = 0) -> np.ndarray:
    """Every byte random, but floats that are numbers."""
    rng = np.random.default_rng(seed)
    size = BLOCKS[name].num_bytes
    raw = rng.integers(0, 256, (rows, blocks, size), dtype=np.uint8)
    for at in FLOATS_AT[name]:
        scales = rng.normal(0, 0.1, (rows, blocks, 1)).astype(np.float16)
        raw[:, :, at : at + 2] = scales.view(np.uint8)
    return raw.reshape(rows, blocks * size)


@pytest.mark.parametrize("name", BLOCKS)
def test_decoding(name: str) -> None:
    raw = random_blocks(name, 5, 7)
    expected = gguf.quants.dequantize(raw, gguf.GGMLQuantizationType[name])
    found = decode(name, torch.from_numpy(raw))
    assert found.shape == expected.shape == (5, 7 * BLOCKS[name].numbers)
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("name", ["Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1"])
def test_what_was_quantized_comes_back_nearly(name: str) -> None:
    values = np.random.default_rng(1).normal(0, 1, (3, 320)).astype(np.float32)
    raw = gguf.quants.quantize(values, gguf.GGMLQuantizationType[name])
    error = np.abs(decode(name, torch.from_numpy(raw)).numpy() - values).max()
    assert error < {"Q8_0": 0.02, "Q5_0": 0.15, "Q5_1": 0.15}.get(name, 0.35)


def test_sizes_are_those_of_the_format() -> None:
    kinds = {kind.value: kind.name for kind in gguf.GGMLQuantizationType}
    for number, (name, numbers, num_bytes) in TYPES.items():
        assert kinds[number] == name
        assert gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[name]] == (numbers, num_bytes)
    assert all(kinds[number] == name for number, name in OTHER_TYPES.items())
    assert set(BLOCKS) == {name for name, numbers, _ in TYPES.values() if numbers > 1} == set(FLOATS_AT)
