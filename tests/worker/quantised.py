"""Quantized checkpoints, made of random numbers by the definitions of their formats: slow, plain, and with nothing of
Quire's in it. Every encoder returns a module's tensors and the matrix [outs, inputs] that they mean."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import checkpoints
import numpy as np
import torch
from safetensors.torch import load_file, save_file

Encoded = tuple[dict[str, torch.Tensor], np.ndarray]
Encoder = Callable[[np.random.Generator, int, int], Encoded]

AWQ_PLACES = [0, 2, 4, 6, 1, 3, 5, 7]
NF4 = [-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
       -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
       0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0]  # fmt: skip
FP4 = [0.0, 0.005208333333, 0.66666667, 1.0, 0.33333333, 0.5, 0.16666667, 0.25]


def stream(values: list[int], bits: int) -> list[int]:
    """Words of 32 bits of values one after the other, low bits first."""
    whole = sum(int(value) << (bits * i) for i, value in enumerate(values))
    return [whole >> (32 * i) & 0xFFFFFFFF for i in range(-(-len(values) * bits // 32))]


def words(values: np.ndarray, bits: int) -> torch.Tensor:
    """int32 [lines, words] of [lines, values]."""
    packed = np.array([stream(list(line), bits) for line in values], dtype=np.uint32)
    return torch.from_numpy(packed.view(np.int32).copy())


def scale(rng: np.random.Generator, *shape: int, top: float = 0.02) -> np.ndarray:
    """As 16-bit floats keep them."""
    return (rng.uniform(0.2, 1.0, shape) * top).astype(np.float16)


def half(values: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(values))


def gptq(bits: int, group: int, *, sym: bool = False, act_order: bool = False, v2: bool = False) -> Encoder:
    def encode(rng: np.random.Generator, outs: int, inputs: int) -> Encoded:
        size = inputs if group == -1 else group
        groups, top = -(-inputs // size), 2**bits
        q = rng.integers(0, top, (inputs, outs))
        zeros = np.full((groups, outs), top // 2) if sym else rng.integers(0, top, (groups, outs))
        scales = scale(rng, groups, outs, top=0.3 / top)
        g_idx = np.arange(inputs) // size
        if act_order:
            g_idx = rng.permutation(g_idx)
        matrix = np.empty((outs, inputs))
        for k in range(inputs):
            matrix[:, k] = (q[k] - zeros[g_idx[k]]) * scales[g_idx[k]].astype(np.float64)
        stored = zeros if v2 else (zeros - 1) % top
        tensors = {"qweight": words(q.T, bits).T, "qzeros": words(stored, bits), "scales": half(scales)}
        return {**tensors, "g_idx": torch.from_numpy(g_idx.astype(np.int32))}, matrix

    return encode


def awq(group: int) -> Encoder:
    def pack(values: np.ndarray) -> torch.Tensor:  # [lines, outs]
        lines = values.reshape(len(values), -1, 8)[:, :, AWQ_PLACES].reshape(len(values), -1)
        return words(lines, 4)

    def encode(rng: np.random.Generator, outs: int, inputs: int) -> Encoded:
        size = inputs if group == -1 else group
        q, zeros = rng.integers(0, 16, (inputs, outs)), rng.integers(0, 16, (inputs // size, outs))
        scales = scale(rng, inputs // size, outs)
        matrix = (q - zeros.repeat(size, 0)) * scales.astype(np.float64).repeat(size, 0)
        return {"qweight": pack(q), "qzeros": pack(zeros), "scales": half(scales)}, matrix.T

    return encode


def squeezellm(bits: int, sparse: bool) -> Encoder:
    def encode(rng: np.random.Generator, outs: int, inputs: int) -> Encoded:
        table = rng.normal(0, 0.1, (outs, 2**bits)).astype(np.float32)
        q = rng.integers(0, 2**bits, (outs, inputs))
        matrix = np.take_along_axis(table, q, 1).astype(np.float64)
        tensors = {"qweight": words(q, bits).T, "lookup_table": half(table)}
        if sparse:
            extra = rng.normal(0, 0.5, (outs, inputs)).astype(np.float32) * (rng.random((outs, inputs)) < 0.02)
            line, column = np.nonzero(extra)
            counts = np.concatenate([[0], np.cumsum(np.bincount(line, minlength=outs))])
            tensors |= {"rows": half(counts.astype(np.int32)), "cols": half(column.astype(np.int32))}
            tensors |= {"vals": half(extra[line, column])}
            full = rng.normal(0, 0.1, (inputs, 2)).astype(np.float32)
            tensors |= {"full_rows": half(full), "full_row_indices": torch.tensor([3, 1], dtype=torch.int32)}
            matrix += extra
            matrix[[3, 1]] += full.T
        return tensors, matrix

    return encode


def float8(values: np.ndarray) -> tuple[torch.Tensor, np.ndarray]:
    stored = torch.from_numpy(values.astype(np.float32)).to(torch.float8_e4m3fn)
    return stored, stored.float().numpy().astype(np.float64)


def fp8(kind: str, *, static: bool = False, name: str = "weight_scale") -> Encoder:
    """kind: tensor, channel or block (of 32 x 16)."""

    def encode(rng: np.random.Generator, outs: int, inputs: int) -> Encoded:
        weight, q = float8(rng.normal(0, 60, (outs, inputs)))
        shape = {"tensor": (), "channel": (outs, 1), "block": (-(-outs // 32), -(-inputs // 16))}[kind]
        scales = np.asarray(rng.uniform(0.2, 1.0, shape) * 2e-3, dtype=np.float32)
        wide = scales.repeat(32, 0)[:outs].repeat(16, 1)[:, :inputs] if kind == "block" else scales
        tensors = {"weight": weight, name: torch.tensor(scales)}
        if static:
            tensors["input_scale"] = torch.tensor(0.05)
        return tensors, q * wide.astype(np.float64)

    return encode


def bnb8(rng: np.random.Generator, outs: int, inputs: int) -> Encoded:
    q, top = rng.integers(-127, 128, (outs, inputs)), rng.uniform(0.1, 0.5, outs).astype(np.float32)
    tensors = {
        "weight": torch.from_numpy(q.astype(np.int8)),
        "SCB": half(top),
        "weight_format": torch.tensor(0, dtype=torch.uint8),
    }
    return tensors, q * top[:, None].astype(np.float64) / 127


def bnb4(kind: str, *, nested: bool) -> Encoder:
    def encode(rng: np.random.Generator, outs: int, inputs: int) -> Encoded:
        table = np.array(NF4 if kind == "nf4" else [*FP4, *(-v for v in FP4)], dtype=np.float32)
        q = rng.integers(0, 16, outs * inputs)
        blocks = -(-outs * inputs // 64)
        state: dict[str, Any] = {"quant_type": kind, "blocksize": 64, "dtype": "float32", "shape": [outs, inputs]}
        tensors = {"weight.quant_map": torch.from_numpy(table)}
        if nested:
            nested_map = np.sort(rng.uniform(-1, 1, 256)).astype(np.float32)
            codes, tops = rng.integers(0, 256, blocks), rng.uniform(0.01, 0.05, -(-blocks // 256)).astype(np.float32)
            absmax = nested_map[codes].astype(np.float64) * tops[np.arange(blocks) // 256] + 0.1
            tensors |= {"weight.absmax": half(codes.astype(np.uint8)), "weight.nested_absmax": half(tops)}
            tensors |= {"weight.nested_quant_map": half(nested_map)}
            state |= {"nested_blocksize": 256, "nested_dtype": "float32", "nested_offset": 0.1}
        else:
            absmax = rng.uniform(0.1, 0.4, blocks).astype(np.float32)
            tensors["weight.absmax"] = half(absmax)
        tensors["weight"] = torch.from_numpy((q[0::2] << 4 | q[1::2]).astype(np.uint8))[:, None]
        text = torch.tensor(list(json.dumps(state).encode()), dtype=torch.uint8)
        tensors[f"weight.quant_state.bitsandbytes__{kind}"] = text
        return tensors, (table[q].astype(np.float64) * absmax[np.arange(outs * inputs) // 64]).reshape(outs, inputs)

    return encode


def packed(bits: int, group: int, *, sym: bool = True, act_order: bool = False) -> Encoder:
    """compressed-tensors, pack-quantized; group 0 is one scale per output."""

    def encode(rng: np.random.Generator, outs: int, inputs: int) -> Encoded:
        size, middle = group or inputs, 2 ** (bits - 1)
        q = rng.integers(-middle, middle, (outs, inputs))
        scales = scale(rng, outs, inputs // size, top=0.3 / middle)
        zeros = np.zeros(scales.shape, dtype=np.int64) if sym else rng.integers(-middle, middle, scales.shape)
        g_idx = rng.permutation(np.arange(inputs) // size) if act_order else np.arange(inputs) // size
        matrix = (q - zeros[:, g_idx]) * scales[:, g_idx].astype(np.float64)
        tensors = {"weight_packed": words(q + middle, bits), "weight_scale": half(scales)}
        tensors["weight_shape"] = torch.tensor([outs, inputs])
        if not sym:
            tensors["weight_zero_point"] = words((zeros + middle).T, bits).T
        if act_order:
            tensors["weight_g_idx"] = torch.from_numpy(g_idx.astype(np.int32))
        return tensors, matrix

    return encode


def whole(rng: np.random.Generator, outs: int, inputs: int) -> Encoded:
    """compressed-tensors, int-quantized, by output."""
    q, scales = rng.integers(-127, 128, (outs, inputs)), scale(rng, outs, 1, top=2e-3)
    return {"weight": half(q.astype(np.int8)), "weight_scale": half(scales)}, q * scales.astype(np.float64)


def nvfp4(scale_name: str, weight: str, *, reciprocal: bool) -> Encoder:
    values = np.array([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0])

    def encode(rng: np.random.Generator, outs: int, inputs: int) -> Encoded:
        q = rng.integers(0, 16, (outs, inputs))
        stored, scales = float8(rng.uniform(10, 200, (outs, inputs // 16)))
        number = float(np.float32(3e-4))
        matrix = values[q & 7] * np.where(q & 8, -1, 1) * scales.repeat(16, 1) * number
        made = torch.tensor([1 / number if reciprocal else number], dtype=torch.float32)
        bytes_ = torch.from_numpy((q[:, 0::2] | q[:, 1::2] << 4).astype(np.uint8))
        return {weight: bytes_, "weight_scale": stored, scale_name: made}, matrix

    return encode


def compressed(layout: str, weights: dict[str, Any], **more: Any) -> dict[str, Any]:
    group = {"targets": ["Linear"], "weights": {"symmetric": True, **weights}, **more}
    return {
        "quant_method": "compressed-tensors",
        "format": layout,
        "config_groups": {"group_0": group},
        "ignore": ["lm_head"],
    }


GPTQ = {"quant_method": "gptq", "desc_act": False, "sym": False}
BNB4 = {"quant_method": "bitsandbytes", "load_in_4bit": True}
INT4 = {"num_bits": 4, "type": "int", "strategy": "group", "group_size": 32}
FORMATS: dict[str, tuple[dict[str, Any], Encoder]] = {
    "gptq2": ({**GPTQ, "bits": 2, "group_size": 32}, gptq(2, 32)),
    "gptq3": ({**GPTQ, "bits": 3, "group_size": 32}, gptq(3, 32)),
    "gptq4": ({**GPTQ, "bits": 4, "group_size": 32, "sym": True}, gptq(4, 32, sym=True)),
    "gptq4_whole": ({**GPTQ, "bits": 4, "group_size": -1}, gptq(4, -1)),
    "gptq4_order": ({**GPTQ, "bits": 4, "group_size": 32, "desc_act": True}, gptq(4, 32, act_order=True)),
    "gptq4_v2": ({**GPTQ, "bits": 4, "group_size": 32, "checkpoint_format": "gptq_v2"}, gptq(4, 32, v2=True)),
    "gptq8": ({**GPTQ, "bits": 8, "group_size": 32}, gptq(8, 32)),
    "awq": ({"quant_method": "awq", "bits": 4, "group_size": 32, "version": "gemm", "zero_point": True}, awq(32)),
    "squeezellm": ({"quant_method": "squeezellm", "wbits": 4}, squeezellm(4, sparse=False)),
    "squeezellm_sparse": ({"quant_method": "squeezellm", "wbits": 4}, squeezellm(4, sparse=True)),
    "squeezellm3": ({"quant_method": "squeezellm", "wbits": 3}, squeezellm(3, sparse=False)),
    "fp8": ({"quant_method": "fp8", "activation_scheme": "dynamic"}, fp8("tensor")),
    "fp8_static": ({"quant_method": "fp8", "activation_scheme": "static"}, fp8("tensor", static=True)),
    "fp8_block": (
        {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [32, 16]},
        fp8("block", name="weight_scale_inv"),
    ),
    "bnb8": ({"quant_method": "bitsandbytes", "load_in_8bit": True, "llm_int8_threshold": 6.0}, bnb8),
    "nf4": ({**BNB4, "bnb_4bit_quant_type": "nf4"}, bnb4("nf4", nested=False)),
    "nf4_nested": ({**BNB4, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True}, bnb4("nf4", nested=True)),
    "fp4": ({**BNB4, "bnb_4bit_quant_type": "fp4"}, bnb4("fp4", nested=False)),
    "ct_w4a16": (compressed("pack-quantized", INT4), packed(4, 32)),
    "ct_w4a16_zeros": (compressed("pack-quantized", {**INT4, "symmetric": False}), packed(4, 32, sym=False)),
    "ct_w4a16_order": (compressed("pack-quantized", {**INT4, "actorder": "group"}), packed(4, 32, act_order=True)),
    "ct_w8a16": (
        compressed("pack-quantized", {"num_bits": 8, "type": "int", "strategy": "channel", "group_size": None}),
        packed(8, 0),
    ),
    "ct_w8a8": (
        compressed(
            "int-quantized",
            {"num_bits": 8, "type": "int", "strategy": "channel"},
            input_activations={"num_bits": 8, "type": "int", "strategy": "token", "dynamic": True},
        ),
        whole,
    ),
    "ct_fp8": (compressed("float-quantized", {"num_bits": 8, "type": "float", "strategy": "channel"}), fp8("channel")),
    "ct_nvfp4": (
        compressed(
            "nvfp4-pack-quantized", {"num_bits": 4, "type": "float", "strategy": "tensor_group", "group_size": 16}
        ),
        nvfp4("weight_global_scale", "weight_packed", reciprocal=True),
    ),
    "modelopt_fp8": (
        {"quant_method": "modelopt", "quant_algo": "FP8", "ignore": ["lm_head"]},
        fp8("tensor", static=True),
    ),
    "modelopt_nvfp4": (
        {"quant_method": "modelopt", "quant_algo": "NVFP4", "ignore": ["lm_head"]},
        nvfp4("weight_scale_2", "weight", reciprocal=False),
    ),
}
"""quantization_config of config.json, and the encoder of a module."""
PLAIN = ("embed", "lm_head", "norm", "mlp.gate.", "block_sparse_moe.gate.", "shared_expert_gate", "ln_")


def is_linear(name: str, tensor: torch.Tensor) -> bool:
    return tensor.dim() == 2 and name.endswith(".weight") and not any(word in name for word in PLAIN)


def write(
    family: str,
    name: str,
    folder: Path,
    *,
    skip: Callable[[str], bool] = lambda module: False,
    settings: dict[str, Any] | None = None,
    encoders: Callable[[str], Encoder] | None = None,
    source: Path | None = None,
    **overrides: Any,
) -> tuple[Path, Path]:
    """A quantized checkpoint, and a plain one of the numbers that it means: (quantized, plain).

    Args:
        skip: modules that stay plain.
        settings: more of the quantization_config.
        encoders: of a module, where it is not the format's.
    """
    config, usual = FORMATS[name]
    plain, quantized = folder / "plain", folder / "quantized"
    for to in (plain, quantized):
        checkpoints.write(family, to, **overrides)
    rng = np.random.default_rng(0)
    tensors, meant = {}, {}
    for key, tensor in load_file(plain / "model.safetensors").items():
        module = key.removesuffix(".weight")
        if not is_linear(key, tensor) or skip(module):
            tensors[key] = meant[key] = tensor
            continue
        encode = encoders(module) if encoders else usual
        made, matrix = encode(rng, *tensor.shape)
        tensors |= {f"{module}.{suffix}": value.contiguous() for suffix, value in made.items()}
        meant[key] = torch.from_numpy(matrix).float().contiguous()
    save_file(meant, plain / "model.safetensors")
    save_file(tensors, quantized / "model.safetensors")
    text = json.loads((quantized / "config.json").read_text())
    text["quantization_config"] = {**config, **(settings or {})}
    (quantized / "config.json").write_text(json.dumps(text))
    return quantized, plain
