"""What public packages write is read as they read it: bitsandbytes and compressed-tensors, where they are installed."""

from __future__ import annotations

import json

import pytest
import torch

from quire.worker.quantization.bitsandbytes import EightBits, FourBits
from quire.worker.quantization.compressed import Packed
from quire.worker.quantization.floats import Nvfp4


def draw(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0)) * 0.05


@pytest.mark.parametrize("kind", ["nf4", "fp4"])
@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("shape", [(64, 256), (20, 96)])
def test_bitsandbytes_of_4_bits(kind: str, nested: bool, shape: tuple[int, int]) -> None:
    functional = pytest.importorskip("bitsandbytes.functional")
    packed, state = functional.quantize_4bit(
        draw(*shape).flatten(), blocksize=64, quant_type=kind, compress_statistics=nested
    )
    state.shape = torch.Size(shape)
    read = {"weight": packed, **{f"weight.{key}": value for key, value in state.as_dict(packed=True).items()}}
    found = FourBits(kind).weights(read, *shape, torch.float32).dense(torch.float32)
    state.shape = torch.Size([shape[0] * shape[1]])  # its CPU kernel wants whole blocks in a row of a matrix
    expected = functional.dequantize_4bit(packed, state).view(shape)
    assert torch.allclose(found, expected, rtol=1e-5, atol=1e-7)
    assert json.loads(bytes(read[f"weight.quant_state.bitsandbytes__{kind}"].tolist()))["shape"] == list(shape)


def test_bitsandbytes_of_8_bits() -> None:
    functional = pytest.importorskip("bitsandbytes.functional")
    weight = draw(40, 64).half()
    whole, top, _ = functional.int8_vectorwise_quant(weight)
    read = {"weight": whole, "SCB": top, "weight_format": torch.tensor(0, dtype=torch.uint8)}
    found = EightBits().weights(read, 40, 64, torch.float32).dense(torch.float32)
    assert torch.allclose(found, whole.float() * top[:, None].float() / 127, rtol=1e-6)
    assert float((found - weight.float()).norm() / weight.float().norm()) < 0.02


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("symmetric", [True, False])
def test_compressed_tensors_in_words(bits: int, symmetric: bool) -> None:
    helpers = pytest.importorskip("compressed_tensors.compressors.pack_quantized.helpers")
    generator = torch.Generator().manual_seed(0)
    middle = 1 << (bits - 1)
    q = torch.randint(-middle, middle, (40, 96), generator=generator, dtype=torch.int8)
    zeros = torch.randint(-middle, middle, (40, 3), generator=generator, dtype=torch.int8)
    scales = torch.rand(40, 3, generator=generator).half()
    read = {
        "weight_packed": helpers.pack_to_int32(q, bits),
        "weight_scale": scales,
        "weight_shape": torch.tensor([40, 96]),
    }
    if not symmetric:
        read["weight_zero_point"] = helpers.pack_to_int32(zeros, bits, packed_dim=0)
    found = Packed(bits, 32, not symmetric).weights(read, 40, 96, torch.float32).dense(torch.float32)
    spread = torch.arange(96) // 32
    expected = (q.float() - (0 if symmetric else zeros.float()[:, spread])) * scales.float()[:, spread]
    assert torch.equal(found, expected)


def test_compressed_tensors_of_4_bit_floats() -> None:
    helpers = pytest.importorskip("compressed_tensors.compressors.nvfp4.helpers")
    values = torch.tensor([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0])
    pick = torch.randint(0, 8, (40, 96), generator=torch.Generator().manual_seed(0))
    sign = torch.randint(0, 2, (40, 96), generator=torch.Generator().manual_seed(1)) * 2 - 1
    matrix = values[pick] * sign
    scales = (draw(40, 6).abs() * 100).to(torch.float8_e4m3fn)
    read = {
        "weight_packed": helpers.pack_fp4_to_uint8(matrix),
        "weight_scale": scales,
        "weight_global_scale": torch.tensor([50.0]),
    }
    layout = Nvfp4("weight_global_scale", reciprocal=True, weight="weight_packed")
    found = layout.weights(read, 40, 96, torch.float32).dense(torch.float32)
    assert torch.allclose(found, matrix * scales.float().repeat_interleave(16, 1) / 50, rtol=1e-6)
