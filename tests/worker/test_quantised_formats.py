"""Quantized checkpoints give the logits of the matrices that their formats define: every format, family and mixture."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import quantised
import torch
from paged import Driver, Sequence
from quantised import FORMATS
from safetensors.torch import load_file, save_file

from quire.worker.layers.experts import ExpertStack
from quire.worker.layers.linear import Linear

TEXT = [(7 * i * i + 3 * i) % 500 for i in range(40)]


def logits(folder: Path, **how: Any) -> torch.Tensor:
    return Driver(folder, **how).step([(Sequence(TEXT), len(TEXT))])[0]


def differ(found: torch.Tensor, expected: torch.Tensor) -> float:
    assert bool(torch.isfinite(expected).all())
    return float((found - expected).norm() / expected.norm())


@pytest.mark.parametrize("name", FORMATS)
def test_every_format(name: str, tmp_path: Path) -> None:
    quantized, plain = quantised.write("qwen2", name, tmp_path)
    assert differ(logits(quantized), logits(plain)) < 2e-5


MORE = [pytest.param(name, marks=pytest.mark.soak) for name in ("awq", "ct_w8a8", "squeezellm_sparse")]


@pytest.mark.parametrize("name", ["gptq4_order", "fp8_block", "nf4", *MORE])
@pytest.mark.parametrize("family", ["phi2", "phi3", "falcon40", "gemma2", "mixtral", "qwen2_moe"])
def test_every_kind_of_family(family: str, name: str, tmp_path: Path) -> None:
    """Fused in the checkpoint, outputs in another order, experts, biases."""
    widths = {"moe_intermediate_size": 64, "shared_expert_intermediate_size": 64} if family == "qwen2_moe" else {}
    quantized, plain = quantised.write(family, name, tmp_path, **widths)
    assert differ(logits(quantized), logits(plain)) < 5e-5
    made = load_file(quantized / "model.safetensors")
    assert len(made) > len(load_file(plain / "model.safetensors"))


@pytest.mark.parametrize("name", ["gptq4", "fp8", "nf4", "ct_w4a16"])
def test_modules_that_stay_plain(name: str, tmp_path: Path) -> None:
    """A whole layer, and one part of what is fused here."""

    def skip(module: str) -> bool:
        return "layers.1.mlp" in module or module.endswith("layers.0.self_attn.k_proj")

    quantized, plain = quantised.write("llama2", name, tmp_path, skip=skip)
    assert differ(logits(quantized), logits(plain)) < 2e-5
    driver = Driver(quantized)
    layers = {n: m for n, m in driver.model.named_modules() if isinstance(m, Linear)}
    assert not hasattr(layers["model.layers.1.mlp.down_proj"], "kept")
    assert len(layers["model.layers.0.self_attn.qkv_proj"].kept) == 3
    assert len(layers["model.layers.0.mlp.gate_up_proj"].kept) == 1


def test_act_order_of_parts_may_differ_or_agree(tmp_path: Path) -> None:
    quantized, _ = quantised.write("llama2", "gptq4_order", tmp_path)
    tensors = load_file(quantized / "model.safetensors")
    one = tensors["model.layers.0.self_attn.q_proj.g_idx"]
    for part in ("k_proj", "v_proj"):
        tensors[f"model.layers.0.self_attn.{part}.g_idx"] = one.clone()
    save_file(tensors, quantized / "model.safetensors")
    model = Driver(quantized).model
    assert len(model.get_submodule("model.layers.0.self_attn.qkv_proj").kept) == 1
    assert len(model.get_submodule("model.layers.1.self_attn.qkv_proj").kept) == 3


def test_gptq_dynamic_settings_by_module(tmp_path: Path) -> None:
    dynamic = {"-:.*layers\\.0\\.mlp.*": {}, "+:.*down_proj": {"bits": 8}}
    quantized, plain = quantised.write(
        "llama2",
        "gptq4",
        tmp_path,
        settings={"dynamic": dynamic},
        skip=lambda module: "layers.0.mlp" in module,
        encoders=lambda module: quantised.gptq(8 if "down_proj" in module else 4, 32, sym=True),
    )
    assert differ(logits(quantized), logits(plain)) < 2e-5


def test_a_quantized_head(tmp_path: Path) -> None:
    quantized, plain = quantised.write("llama2", "gptq4", tmp_path)
    tensors, meant = load_file(quantized / "model.safetensors"), load_file(plain / "model.safetensors")
    made, matrix = quantised.gptq(4, 32)(quantised.np.random.default_rng(1), *tensors.pop("lm_head.weight").shape)
    tensors |= {f"lm_head.{suffix}": value.contiguous() for suffix, value in made.items()}
    meant["lm_head.weight"] = torch.from_numpy(matrix).float().contiguous()
    save_file(tensors, quantized / "model.safetensors")
    save_file(meant, plain / "model.safetensors")
    assert differ(logits(quantized), logits(plain)) < 2e-5


def test_biases_that_the_model_has_not(tmp_path: Path) -> None:
    """Zeros are nothing; others are added."""
    quantized, _ = quantised.write("llama2", "gptq4", tmp_path)
    before = logits(quantized)
    tensors = load_file(quantized / "model.safetensors")
    name = "model.layers.0.self_attn.q_proj.bias"
    save_file({**tensors, name: torch.zeros(64)}, quantized / "model.safetensors")
    assert Driver(quantized).model.get_submodule("model.layers.0.self_attn.qkv_proj").bias is None
    assert torch.equal(logits(quantized), before)
    save_file({**tensors, name: torch.ones(64)}, quantized / "model.safetensors")
    assert differ(logits(quantized), before) > 1e-3


def test_scales_of_the_kv_cache_are_left_out(tmp_path: Path) -> None:
    quantized, _ = quantised.write("llama2", "fp8", tmp_path)
    before = logits(quantized)
    tensors = load_file(quantized / "model.safetensors")
    for name in ("k_proj.k_scale", "v_scale", "k_proj.output_scale"):
        tensors[f"model.layers.0.self_attn.{name}"] = torch.tensor(0.5)
    save_file(tensors, quantized / "model.safetensors")
    assert torch.equal(logits(quantized), before)


@pytest.mark.parametrize("name", ["gptq4_order", "fp8_block", "nf4_nested", "ct_w8a8", "squeezellm"])
@pytest.mark.parametrize("family", ["llama2", "mixtral"])
def test_dummy_weights_of_a_quantized_config(family: str, name: str, tmp_path: Path) -> None:
    """Random pieces: but a state in JSON and an order of groups cannot be random, and need not be."""
    quantized, _ = quantised.write(family, name, tmp_path)
    for file in quantized.glob("*.safetensors"):
        file.unlink()
    driver = Driver(quantized, load_format="dummy")
    found = driver.step([(Sequence(TEXT), len(TEXT))])[0]
    assert bool(torch.isfinite(found).all())
    stacks = [m for m in driver.model.modules() if isinstance(m, ExpertStack)]
    assert all(stack.kept for stack in stacks) and bool(stacks) == (family == "mixtral")


def test_configs_in_other_files(tmp_path: Path) -> None:
    quantized, plain = quantised.write("llama2", "awq", tmp_path)
    text = json.loads((quantized / "config.json").read_text())
    section = text.pop("quantization_config")
    (quantized / "config.json").write_text(json.dumps(text))
    (quantized / "quant_config.json").write_text(
        json.dumps({"w_bit": 4, "q_group_size": section["group_size"], "zero_point": True, "version": "GEMM"})
    )
    expected = logits(plain)
    assert differ(logits(quantized), expected) < 2e-5
    (quantized / "quant_config.json").rename(quantized / "quantize_config.json")
    assert differ(logits(quantized), expected) < 2e-5
    (quantized / "quantize_config.json").unlink()
    (quantized / "config.json").write_text(json.dumps({**text, "compression_config": section}))
    assert differ(logits(quantized), expected) < 2e-5
