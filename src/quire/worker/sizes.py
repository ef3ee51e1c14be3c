"""Defaults that depend on the device: where to run, in which format, how much at once."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch

from quire.config import SchedulerConfig
from quire.errors import ConfigError

LARGE_GPU_BYTES = 70 << 30
FREE = 0.85
"""Share of the time of the smallest step that prompts may fill."""
PATIENCE_S = 0.2
"""Prompts wait about so long at most, as far as the device can keep up."""


@dataclass(frozen=True, slots=True)
class Pace:
    """What a device can do, and how long a step may take on it. No more than the magnitude is needed.

    rate: operations per second of large products.
    read: bytes read per second.
    layer_s: the time in which a layer's kernels start and end.
    least_tokens: a step has room for so many at least.
    longest_step_s: of steps in which somebody waits for the next token.
    alone_s: of steps in which nobody does, about.
    """

    rate: float
    read: float
    layer_s: float
    least_tokens: int
    longest_step_s: float
    alone_s: float


H200 = Pace(rate=7e14, read=4.3e12, layer_s=2e-5, least_tokens=1, longest_step_s=0.06, alone_s=0.05)
LAUNCH_S = 2.8e-4
"""In which the host launches a layer's kernels on a GPU."""


def cpu_pace(rate: float) -> Pace:
    """Of a CPU, by the rate of its products. Smaller steps give the first of several prompts their token earlier;
    below some 64 tokens products lose more than that is worth. See benchmarks/NOTES.md.
    """
    return Pace(rate, rate / 10, 0.0, least_tokens=64, longest_step_s=0.15, alone_s=0.25)


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
    sizes: StepSizes, scheduler: SchedulerConfig, num_params: int, num_layers: int, pace: Pace
) -> StepSizes:
    """How large steps are that mix prompts with generation, and up to where a GPU captures them.

    A step takes at least the time of reading the weights and of its launches; the tokens that fit this time are free.
    It takes at most `longest_step_s`. Launching a layer eagerly takes the host LAUNCH_S: smaller steps get a graph.
    """
    token_s = 2 * num_params / pace.rate
    least_s = 2 * num_params / pace.read + num_layers * pace.layer_s
    captured = 1 << math.ceil(math.log2(max(1, num_layers * LAUNCH_S / token_s)))
    captured = min(max(1024, min(4096, captured)), sizes.max_num_batched_tokens)
    if scheduler.mixed_step_tokens == 0 or not scheduler.enable_chunked_prefill:
        return replace(sizes, mixed_graph_tokens=captured)
    good = good_sizes(sizes.max_num_batched_tokens)
    least = scheduler.mixed_step_tokens or max(pace.least_tokens, _last(good, FREE * least_s / token_s))
    return replace(
        sizes,
        mixed_sizes=(least, *(size for size in good if least < size <= pace.longest_step_s / token_s)),
        mixed_patience=max(1, int(PATIENCE_S / token_s)),
        mixed_alone=max(least, _last(good, pace.alone_s / token_s)),
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
