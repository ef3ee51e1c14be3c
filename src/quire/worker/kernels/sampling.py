"""Sampling kernels without state of their own: the largest logit, and what log-probabilities need.

Both spread a row over several programs, so that a single row fills the GPU too. Each program leaves its part in
scratch memory; the one that arrives last at the row's counter merges them and sets the counter back to 0:

    row ── [part 0 | part 1 | ... ] ──► scratch[row, part] ──► last to arrive ──► result[row]

The drawing of tokens is in `sampling_fused`.
"""

import torch
import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from quire.worker.kernels.launch import dependent_launch

BLOCK = 2048
WARPS = 8
PROGRAMS = 264
"""Two for each multiprocessor of the largest GPUs."""
MAX_SPLITS = 64
_NO_INDEX = tl.constexpr(2**31 - 1)


class Scratch:
    """What programs of one row leave for each other; counters are 0 between calls."""

    def __init__(self, max_rows: int, device: torch.device) -> None:
        self.counters = torch.zeros(max_rows, dtype=torch.int32, device=device)
        self.values = torch.empty(max_rows, 2, MAX_SPLITS, dtype=torch.float32, device=device)
        self.counts = torch.empty(max_rows, MAX_SPLITS, dtype=torch.int32, device=device)


@triton.jit
def load_finite(pointer, mask):
    """Logits as float32, -inf where masked, +inf as the largest number. NaN stays: compare so that it never wins."""
    x = tl.load(pointer, mask=mask, other=float("-inf")).to(tl.float32)
    return tl.minimum(x, 3.4028234663852886e38, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def _argmax_kernel(
    logits, tokens, counters, values, indices, stride, vocab, chunk,
    SPLITS: tl.constexpr, MAX: tl.constexpr, BLOCK: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    if PDL:
        gdc_wait()
    row = tl.program_id(0) // SPLITS
    part = tl.program_id(0) % SPLITS
    start = part * chunk
    end = tl.minimum(start + chunk, vocab)
    line = logits + row.to(tl.int64) * stride
    lane = tl.arange(0, BLOCK)
    best = tl.full((BLOCK,), float("-inf"), tl.float32)
    index = start + lane
    for begin in range(start, end, BLOCK):
        offsets = begin + lane
        x = load_finite(line + offsets, offsets < end)
        better = x > best
        best = tl.where(better, x, best)
        index = tl.where(better, offsets, index)
    largest = tl.max(best, axis=0)
    token = tl.min(tl.where(best == largest, index, _NO_INDEX), axis=0)
    if SPLITS == 1:
        tl.store(tokens + row, token.to(tl.int64))
    else:
        tl.store(values + row * 2 * MAX + part, largest)
        tl.store(indices + row * MAX + part, token)
        tl.debug_barrier()
        if tl.atomic_add(counters + row, 1, sem="acq_rel") == SPLITS - 1:
            tl.debug_barrier()
            parts = tl.arange(0, SPLITS)
            all_largest = tl.load(values + row * 2 * MAX + parts, cache_modifier=".cg")
            all_tokens = tl.load(indices + row * MAX + parts, cache_modifier=".cg")
            winner = tl.max(all_largest, axis=0)
            tl.store(tokens + row, tl.min(tl.where(all_largest == winner, all_tokens, _NO_INDEX), axis=0).to(tl.int64))
            tl.store(counters + row, 0)
    if PDL:
        gdc_launch_dependents()


def splits_of(num_rows: int, vocab: int, block: int) -> int:
    """Programs per row, a power of two: enough of them to fill a GPU, none without a block of its own."""
    splits = 1
    while splits < MAX_SPLITS and num_rows * splits < PROGRAMS and vocab > splits * block:
        splits *= 2
    return splits


def argmax(
    logits: torch.Tensor, scratch: Scratch, tokens: torch.Tensor, block: int = BLOCK, splits: int | None = None
) -> torch.Tensor:
    """The first of the largest logits [rows, vocab] of each row, into tokens [rows] int64. One launch, vocab * 2 bytes.

    NaN counts as -inf; a row without any other value gives token 0.
    """
    num_rows, vocab = logits.shape
    assert logits.stride(1) == 1 and num_rows <= len(scratch.counters)
    splits = splits_of(num_rows, vocab, block) if splits is None else splits
    chunk = triton.cdiv(triton.cdiv(vocab, splits), block) * block
    _argmax_kernel[(num_rows * splits,)](
        logits, tokens, scratch.counters, scratch.values, scratch.counts, logits.stride(0), vocab, chunk,
        SPLITS=splits, MAX=MAX_SPLITS, BLOCK=block, num_warps=WARPS, **dependent_launch(logits),
    )  # fmt: skip
    return tokens


def argmax_twin(logits: torch.Tensor) -> torch.Tensor:
    """The same in plain torch."""
    return logits.float().nan_to_num(float("-inf"), posinf=None, neginf=float("-inf")).max(dim=1).indices


@triton.jit
def _logprob_kernel(
    logits, lines, tokens, logprobs_of, log_mass_of, ranks, counters, values, counts, stride, vocab, chunk,
    SPLITS: tl.constexpr, MAX: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    line = tl.program_id(0) // SPLITS
    part = tl.program_id(0) % SPLITS
    row = tl.load(lines + line).to(tl.int64)
    start = part * chunk
    end = tl.minimum(start + chunk, vocab)
    source = logits + row * stride
    chosen = load_finite(source + tl.load(tokens + row), row >= 0)
    lane = tl.arange(0, BLOCK)
    best = tl.full((BLOCK,), -3.4028234663852886e38, tl.float32)
    mass = tl.zeros((BLOCK,), tl.float32)
    larger = tl.zeros((BLOCK,), tl.int32)
    for begin in range(start, end, BLOCK):
        offsets = begin + lane
        x = load_finite(source + offsets, offsets < end)
        top = tl.maximum(best, x)
        mass = mass * tl.exp(best - top) + tl.exp(x - top)
        best = top
        larger += (x > chosen).to(tl.int32)
    peak = tl.max(best, axis=0)
    tl.store(values + line * 2 * MAX + part, peak)
    tl.store(values + line * 2 * MAX + MAX + part, tl.sum(mass * tl.exp(best - peak), axis=0))
    tl.store(counts + line * MAX + part, tl.sum(larger, axis=0))
    tl.debug_barrier()
    if tl.atomic_add(counters + line, 1, sem="acq_rel") == SPLITS - 1:
        tl.debug_barrier()
        parts = tl.arange(0, SPLITS)
        peaks = tl.load(values + line * 2 * MAX + parts, cache_modifier=".cg")
        masses = tl.load(values + line * 2 * MAX + MAX + parts, cache_modifier=".cg")
        peak = tl.max(peaks, axis=0)
        log_mass = peak + tl.log(tl.sum(masses * tl.exp(peaks - peak), axis=0))
        rank = tl.sum(tl.load(counts + line * MAX + parts, cache_modifier=".cg"), axis=0) + 1
        tl.store(log_mass_of + line, log_mass)
        tl.store(logprobs_of + line, chosen - log_mass)
        tl.store(ranks + line, rank.to(tl.int64))
        tl.store(counters + line, 0)


def logprobs(
    logits: torch.Tensor, lines: torch.Tensor, tokens: torch.Tensor, scratch: Scratch, block: int = BLOCK
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(log-probability of the chosen token, log of the mass of all, rank of the chosen) for some lines of the logits.

    logits [rows, vocab], tokens [rows] int64, lines [n] int64; float32, float32, int64 [n]. One pass, one launch.
    """
    n, vocab = len(lines), logits.shape[1]
    assert logits.stride(1) == 1 and n <= len(scratch.counters)
    chosen = torch.empty(n, dtype=torch.float32, device=logits.device)
    log_mass, ranks = torch.empty_like(chosen), torch.empty(n, dtype=torch.int64, device=logits.device)
    splits = splits_of(n, vocab, block)
    chunk = triton.cdiv(triton.cdiv(vocab, splits), block) * block
    _logprob_kernel[(n * splits,)](
        logits, lines, tokens, chosen, log_mass, ranks, scratch.counters, scratch.values, scratch.counts,
        logits.stride(0), vocab, chunk, SPLITS=splits, MAX=MAX_SPLITS, BLOCK=block, num_warps=WARPS,
    )  # fmt: skip
    return chosen, log_mass, ranks


def logprobs_twin(
    logits: torch.Tensor, lines: torch.Tensor, tokens: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The same in plain torch."""
    values = logits[lines].float()
    of_chosen = values.gather(1, tokens[lines, None])
    log_mass = values.logsumexp(dim=1)
    return of_chosen[:, 0] - log_mass, log_mass, (values > of_chosen).sum(dim=1) + 1
