"""Quantized checkpoints that cannot be: one line that says what, why and what would work."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import checkpoints
import pytest
import quantised
import torch
from paged import Driver
from safetensors.torch import load_file, save_file

from quire.checkpoint import read_facts
from quire.config import ModelConfig
from quire.errors import ConfigError, QuireError, StartupError
from quire.worker.models.load import load_model
from quire.worker.quantization.bitsandbytes import FourBits
from quire.worker.quantization.format import FormatError

GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 128}
CT = quantised.compressed("pack-quantized", quantised.INT4)


def refused(folder: Path, kind: type[QuireError], *words: str, **how: Any) -> None:
    with pytest.raises(kind) as caught:
        Driver(folder, **how)
    message = caught.value.message
    assert "\n" not in message and len(message) < 700
    for word in words:
        assert word in message, message


BAD = [
    ({"quant_method": "exl2"}, "quant_method must be one of awq"),
    ({**GPTQ, "bits": 5}, "bits must be one of 2, 3, 4, 8, got 5"),
    ({**GPTQ, "group_size": 100}, "group_size must be one of -1, 16, 32"),
    ({**GPTQ, "checkpoint_format": "marlin"}, "checkpoint_format must be gptq or gptq_v2"),
    ({**GPTQ, "dynamic": {"+:(": {}}}, "dynamic must hold regular expressions"),
    ({**GPTQ, "dynamic": {"+:.*down": {"bits": 5}}}, "bits must be one of 2, 3, 4, 8, got 5"),
    ({"quant_method": "awq", "bits": 8}, "bits must be one of 4, got 8"),
    ({"quant_method": "awq", "bits": 4, "version": "gemv"}, "version must be gemm"),
    ({"quant_method": "fp8", "activation_scheme": "some"}, "activation_scheme must be dynamic or static"),
    ({"quant_method": "fp8", "weight_block_size": [128]}, "weight_block_size must be two sizes"),
    ({"quant_method": "fp8", "fmt": "e5m2"}, "fmt must be e4m3"),
    ({"quant_method": "bitsandbytes"}, "neither load_in_4bit nor load_in_8bit"),
    ({**quantised.BNB4, "bnb_4bit_quant_type": "int4"}, "bnb_4bit_quant_type must be nf4 or fp4"),
    ({"quant_method": "squeezellm", "wbits": 2}, "wbits must be one of 3, 4, got 2"),
    ({"quant_method": "modelopt", "quant_algo": "W4A8_AWQ"}, "quant_algo must be one of FP8"),
    ({**CT, "ignore": ["re:["]}, "ignore must hold regular expressions"),
    ({**CT, "sparsity_config": {"format": "sparse-24-bitmask"}}, "sparsity_config is not supported"),
    (quantised.compressed("pack-quantized", {**quantised.INT4, "num_bits": 3}), "cannot be read"),
    ({"quant_method": "compressed-tensors"}, "config_groups is missing"),
    ({"some": 1}, "quant_method is missing"),
]


@pytest.mark.parametrize(("section", "message"), BAD)
def test_a_config_that_cannot_be(section: dict[str, Any], message: str, tmp_path: Path) -> None:
    checkpoints.write("llama2", tmp_path)
    text = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**text, "quantization_config": section}))
    refused(tmp_path, ConfigError, message, "config.json")


@pytest.fixture
def gptq(tmp_path: Path) -> Path:
    return quantised.write("llama2", "gptq4", tmp_path)[0]


def change(folder: Path, name: str, tensor: torch.Tensor | None) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors.pop(name, None)
    save_file(tensors if tensor is None else {**tensors, name: tensor}, folder / "model.safetensors")


def test_missing_scales(gptq: Path) -> None:
    name = "model.layers.1.self_attn.k_proj.scales"
    change(gptq, name, None)
    refused(gptq, StartupError, "lack", repr(name))


def test_missing_scales_of_fp8(tmp_path: Path) -> None:
    folder, _ = quantised.write("llama2", "fp8", tmp_path)
    change(folder, "model.layers.1.mlp.down_proj.weight_scale", None)
    refused(folder, StartupError, "model.layers.1.mlp.down_proj", "it has no weight_scale")


def test_another_group_size_than_the_config_says(gptq: Path) -> None:
    text = json.loads((gptq / "config.json").read_text())
    text["quantization_config"]["group_size"] = 64
    (gptq / "config.json").write_text(json.dumps(text))
    refused(gptq, StartupError, "qzeros", "config.json makes it [2, 8]")


def test_another_number_format(gptq: Path) -> None:
    change(gptq, "model.layers.0.mlp.down_proj.qweight", torch.zeros(12, 64))
    refused(gptq, StartupError, "down_proj.qweight")


def test_an_order_that_is_none(gptq: Path) -> None:
    change(gptq, "model.layers.0.mlp.down_proj.g_idx", torch.zeros(96, dtype=torch.int32))
    refused(gptq, StartupError, "model.layers.0.mlp.down_proj", "g_idx does not put 32 inputs into each group")


@pytest.mark.parametrize("text", [b"{", b"[]", b'{"shape": [1, 2]}', b"\xff"])
def test_a_broken_state_of_bitsandbytes(text: bytes) -> None:
    read = {
        "weight": torch.zeros(8, 1, dtype=torch.uint8),
        "weight.absmax": torch.zeros(1),
        "weight.quant_map": torch.zeros(16),
        "weight.quant_state.bitsandbytes__nf4": torch.tensor(list(text), dtype=torch.uint8),
    }
    with pytest.raises(FormatError, match="quant_state"):
        FourBits("nf4").weights(read, 4, 4, torch.float32)


def test_another_method_than_the_one_asked_for(gptq: Path) -> None:
    facts, build = read_facts(gptq), None
    with pytest.raises(ConfigError, match=r"--quantization awq: .*says gptq. Leave --quantization out"):
        load_model(gptq, facts, build, ModelConfig(model=str(gptq), quantization="awq"))  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"--quantization int8: .*says gptq"):
        load_model(gptq, facts, build, ModelConfig(model=str(gptq), quantization="int8"))  # type: ignore[arg-type]


def test_a_form_that_is_not_made_here(tmp_path: Path) -> None:
    checkpoints.write("llama2", tmp_path)
    with pytest.raises(ConfigError, match="--quantization compressed-tensors: the checkpoint is not quantized"):
        Driver(tmp_path, quantization="compressed-tensors")


def test_transformers_own_code_takes_no_quantized_weights(gptq: Path) -> None:
    refused(gptq, ConfigError, "gptq, 4 bits is for models that Quire has code for", impl="transformers")
