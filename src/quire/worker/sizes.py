"""Defaults that depend on the device: where to run, in which format, how much at once."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch

from quire.config import SchedulerConfig
from quire.errors import ConfigError

LARGE_GPU_BYTES = 70 << 30
_DTYPES = {
    "half": torch.float16,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "float": torch.float32,
    "float32": torch.float32,
}


@dataclass(frozen=True, slots=True)
class StepSizes:
    """How many requests and tokens one step may hold.

    mixed_step_tokens: unit of those in which some generate and others read prompts; 0 is no bound.
    mixed_graph_tokens: up to so many a step that is not all decodes is captured as well.
    """

    max_num_seqs: int
    max_num_batched_tokens: int
    mixed_step_tokens: int = 0
    mixed_graph_tokens: int = 0


def pick_device(wanted: str) -> torch.device:
    """The device to run on.

    Raises:
        ConfigError: a GPU is asked for and there is none.
    """
    if wanted == "cpu" or (wanted == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise ConfigError("--device cuda: no NVIDIA GPU is visible to torch here. Use --device cpu.")
    return torch.device("cuda", 0)


def pick_dtype(wanted: str, checkpoint: str | None, device: torch.device) -> torch.dtype:
    """The number format of weights and activations.

    auto is the checkpoint's own; float32 ones become bfloat16 on a GPU. A CPU takes 16-bit checkpoints as bfloat16
    where it has instructions for that, else as float32.
    """
    if wanted != "auto":
        return _DTYPES[wanted]
    stored = _DTYPES.get(checkpoint or "float32", torch.float32)
    if device.type == "cuda":
        return torch.bfloat16 if stored == torch.float32 else stored
    if stored == torch.float32:
        return torch.float32
    return torch.bfloat16 if torch.ops.mkldnn._is_mkldnn_bf16_supported() else torch.float32


def pick_sizes(scheduler: SchedulerConfig, device: torch.device) -> StepSizes:
    """The sizes of a step; a large GPU gets larger ones.

    Raises:
        ConfigError: fewer tokens than requests.
    """
    large = device.type == "cuda" and torch.cuda.get_device_properties(device).total_memory >= LARGE_GPU_BYTES
    max_num_seqs = scheduler.max_num_seqs or (1024 if large else 256)
    max_tokens = scheduler.max_num_batched_tokens or max(max_num_seqs, 8192 if large else 2048)
    if max_tokens < max_num_seqs:
        raise ConfigError(
            f"--max-num-batched-tokens {max_tokens} is less than --max-num-seqs {max_num_seqs}: every running request"
            f" needs one token a step. Use --max-num-seqs {max_tokens} or less."
        )
    return StepSizes(max_num_seqs, max_tokens)


def pick_max_model_len(wanted: int | None, checkpoint: int) -> int:
    """The longest request; -1 is left to the memory.

    Raises:
        ConfigError: longer than the model was made for.
    """
    if wanted is None:
        return checkpoint
    if wanted > checkpoint:
        raise ConfigError(
            f"--max-model-len {wanted} is longer than the {checkpoint} positions of the model."
            f" Use --max-model-len {checkpoint} or less."
        )
    if wanted == 0:
        raise ConfigError("--max-model-len 0: use a positive number, or -1 for what fits the memory.")
    return wanted


def pick_mixed_sizes(
    sizes: StepSizes, scheduler: SchedulerConfig, num_params: int, num_layers: int, device: torch.device
) -> StepSizes:
    """How large steps are that mix prompts with generation, and up to where they are captured; nothing on a CPU.

    Launching a layer takes the host about 0.28 ms, a token takes the GPU 2 * num_params operations at 0.7 PFLOP/s:
    steps with fewer tokens than that balances are worth a graph.
    """
    if device.type != "cuda":
        return sizes
    balance = num_layers * 2.8e-4 / (2 * num_params / 7e14)
    balance = 1 << math.ceil(math.log2(balance))
    captured = min(max(1024, min(4096, balance)), sizes.max_num_batched_tokens)
    unit = 256 if scheduler.mixed_step_tokens is None else scheduler.mixed_step_tokens
    if not scheduler.enable_chunked_prefill:
        unit = 0
    return replace(sizes, mixed_step_tokens=unit, mixed_graph_tokens=captured)
