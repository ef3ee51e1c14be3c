"""Defaults that depend on the device: where to run, in which format, how much at once."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch

from quire.config import SchedulerConfig
from quire.errors import ConfigError

LARGE_GPU_BYTES = 70 << 30
RATE = 7e14
"""Operations per second of large products, and in the same way:"""
READ = 4.3e12
"""bytes read per second,"""
LAYER_S = 2e-5
"""the time in which a layer's kernels start and end,"""
LAUNCH_S = 2.8e-4
"""and that of launching them. An H200's; what is derived from them needs no more than the magnitude."""
FREE = 0.85
"""Share of the time of the smallest step that prompts may fill."""
LONGEST_STEP_S = 0.06
"""Of steps in which somebody waits for the next token."""
ALONE_S = 0.05
"""Of steps in which nobody does, about."""
PATIENCE_S = 0.2
"""Prompts wait about so long at most, as far as the GPU can keep up."""
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

    mixed_sizes: tokens of those in which some generate and others read prompts, ascending; none is no bound.
    mixed_patience: prompt tokens that should not wait longer than it takes to run them.
    mixed_alone: tokens of a step in which nobody generates.
    mixed_graph_tokens: up to so many a step that is not all decodes is captured as well.
    """

    max_num_seqs: int
    max_num_batched_tokens: int
    mixed_sizes: tuple[int, ...] = ()
    mixed_patience: int = 0
    mixed_alone: int = 0
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

    A step takes at least the time of reading the weights and of its launches; the tokens that fit this time are free.
    It takes at most LONGEST_STEP_S. Launching a layer eagerly takes the host LAUNCH_S: smaller steps get a graph.
    """
    if device.type != "cuda":
        return sizes
    token_s = 2 * num_params / RATE
    least_s = 2 * num_params / READ + num_layers * LAYER_S
    captured = 1 << math.ceil(math.log2(num_layers * LAUNCH_S / token_s))
    captured = min(max(1024, min(4096, captured)), sizes.max_num_batched_tokens)
    if scheduler.mixed_step_tokens == 0 or not scheduler.enable_chunked_prefill:
        return replace(sizes, mixed_graph_tokens=captured)
    good = good_sizes(sizes.max_num_batched_tokens)
    least = scheduler.mixed_step_tokens or _last(good, FREE * least_s / token_s)
    return replace(
        sizes,
        mixed_sizes=(least, *(size for size in good if least < size <= LONGEST_STEP_S / token_s)),
        mixed_patience=max(1, int(PATIENCE_S / token_s)),
        mixed_alone=max(least, _last(good, ALONE_S / token_s)),
        mixed_graph_tokens=captured,
    )


def good_sizes(most: int) -> tuple[int, ...]:
    """Tokens of a step that matrix products like, up to and including `most`: between them it often costs as much as
    the next, or more, since products are cut into tiles. Measured on an H200, benchmarks/NOTES.md.
    """
    sizes = [*range(32, 192, 32), *range(192, 384, 64), 384, *range(512, 768, 128), 768]
    sizes += [*range(1024, 2048, 256), *range(2048, 4096, 512), *range(4096, max(most, 4097), 1024)]
    return (*(size for size in sizes if size < most), most)


def _last(sizes: tuple[int, ...], most: float) -> int:
    """The last of ascending sizes that is not above `most`, else the number itself."""
    return max((size for size in sizes if size <= most), default=max(1, int(most)))
