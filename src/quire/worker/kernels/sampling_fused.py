"""One kernel from raw logits to sampled tokens: mask, stop tokens, penalties, temperature, min-p, top-k, top-p, draw.

Nothing but the logits is read, a few times over, and nothing of their size is written. A row goes through passes:

    largest ──► [top-k threshold] ──► [top-p threshold] ──► mass of each segment ──► token
                 passes over the row; none if the row does not ask for it

Temperature never touches the values: order does not care, and a weight is exp2((x - largest) * log2(e) / temperature).

A threshold is the smallest x whose amount of strictly larger values, a count or a mass, is below a target. It lies in
a bracket (low, high] of values. A pass sums what is above each of 8 pivots and keeps the bracket between the two
that enclose the target. When few values are left in it they are copied out and bisected; equal values end it at once.

    amount above:   at_low >= target > above          x: ──low──┼──┼──┼──threshold──┼──high──

A row is cut into 16 segments, whatever the batch: each segment is summed by one program in one order, the segments in
another, so a row's token depends on nothing but the row. With few rows, SPLITS programs share a row's segments and
wait for each other between passes, so all of them must be on the GPU at once: `splits_for` sees to that.

The twin is `quire.worker.sampling.sampler.Sampler`.
"""

import torch
import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from quire.worker.kernels.sampling import load_finite, on_gpu

BLOCK = 2048
WARPS = 16
SEGMENTS = 16
CAPACITY = 2048
"""Values that are copied out of a bracket."""
MAX_STOPS = 32
"""Stop tokens of a row."""

# A row's line in the table: int32 words, some of them float32 bits.
FLAGS, SCALE, MIN_P, TOP_K, TOP_P, PRESENCE, FREQUENCY, REPETITION, UNTIL, NUM_STOPS, SEED, STOPS = (
    *range(11),
    12,
)
WIDTH = STOPS + MAX_STOPS
RANDOM, PENALISED = 1, 2
"""Bits of FLAGS."""

_SEGMENTS = tl.constexpr(SEGMENTS)
_WIDTH = tl.constexpr(WIDTH)
_STOPS = tl.constexpr(STOPS)
_NO_INDEX = tl.constexpr(2**31 - 1)
_LOWEST = tl.constexpr(-3.4028234663852886e38)
_LOG2_E = tl.constexpr(1.4426950408889634)
_ONE = tl.constexpr(1099511627776.0)
_ONE_BITS = tl.constexpr(40)


class FusedScratch:
    """Buffers of the kernel for up to max_samples rows at a time. Counters are 0 between calls."""

    def __init__(self, max_samples: int, device: torch.device) -> None:
        self.counters = torch.zeros(max_samples, 4, dtype=torch.int32, device=device)
        self.sums = torch.empty(max_samples, 2, SEGMENTS, 16, dtype=torch.float32, device=device)
        self.masses = torch.empty(max_samples, SEGMENTS, dtype=torch.float64, device=device)
        self.candidates = torch.empty(max_samples, CAPACITY, dtype=torch.float32, device=device)


@triton.jit
def _values(
    line, offsets, vocab: tl.constexpr, row_line, num_stops, seen_line, repetition, frequency, presence, penalised,
    mask_line, HAS_SEEN: tl.constexpr, HAS_MASK: tl.constexpr,
):  # fmt: skip
    """The row's logits at these offsets, before temperature; -inf where forbidden or beyond the vocabulary."""
    inside = offsets < vocab
    x = load_finite(line + offsets, inside)
    if HAS_MASK:
        word = tl.load(mask_line + offsets // 32, mask=inside, other=0)
        x = tl.where((word >> (offsets % 32)) & 1 != 0, x, float("-inf"))
    for index in range(0, num_stops):
        x = tl.where(offsets == tl.load(row_line + _STOPS + index), float("-inf"), x)
    if HAS_SEEN:
        if penalised != 0:
            seen = tl.load(seen_line + offsets, mask=inside, other=0).to(tl.int32)
            count = seen >> 1
            x = tl.where(seen > 0, tl.where(x > 0, x / repetition, x * repetition), x)
            x = x - frequency * count.to(tl.float32) - tl.where(count > 0, presence, 0.0)
    return x


@triton.jit
def _meet(counter, goal):
    """Wait until all programs of the row were here `goal / programs` times; what they stored before can be read."""
    tl.debug_barrier()
    tl.atomic_add(counter, 1, sem="acq_rel")
    while tl.atomic_add(counter, 0, sem="acquire") < goal:
        pass
    tl.debug_barrier()


@triton.jit
def _as_float(word):
    return word.to(tl.float32, bitcast=True)


@triton.jit
def _key(x):
    """float32 → int32 in the same order; its own inverse on the bits."""
    bits = x.to(tl.int32, bitcast=True)
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


@triton.jit
def _mix(z):
    z = (z ^ ((z >> 30) & 0x3FFFFFFFF)) * -4658895280553007687
    z = (z ^ ((z >> 27) & 0x1FFFFFFFFF)) * -7723592293110705685
    return z ^ ((z >> 31) & 0x1FFFFFFFF)


@triton.jit
def _uniform(seed, position):
    """`draw.uniform`: [0, 1) float64 from two int64."""
    z = _mix(_mix(seed) + position * -7046029254386353131)
    return ((z >> 11) & 0x1FFFFFFFFFFFFF).to(tl.float64) * 1.1102230246251565e-16


@triton.jit
def _first_above(running, weights, goal, index, last):
    """The first index with weight whose running sum exceeds the goal; the last one with weight if rounding left none."""
    first = tl.min(tl.where((running > goal) & (weights > 0), index, _NO_INDEX), axis=0)
    return tl.where(first == _NO_INDEX, tl.max(tl.where(weights > 0, index, last), axis=0), first)


@triton.jit
def _sample_kernel(
    logits, rows, positions, table, tokens, counters, sums, masses, candidates, seen, mask_bits, mask_lines,
    stride, mask_stride, null_row,
    vocab: tl.constexpr, BLOCK: tl.constexpr, SEGMENT_BLOCKS: tl.constexpr, SPLITS: tl.constexpr,
    CAPACITY: tl.constexpr, BY_ROW: tl.constexpr, HAS_SEEN: tl.constexpr, HAS_MASK: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    if PDL:
        gdc_wait()
    NUM_BLOCKS: tl.constexpr = (vocab + BLOCK - 1) // BLOCK
    NUM_SEGMENTS: tl.constexpr = (NUM_BLOCKS + SEGMENT_BLOCKS - 1) // SEGMENT_BLOCKS
    PER_PART: tl.constexpr = _SEGMENTS // SPLITS
    sample = tl.program_id(0) // SPLITS
    part = tl.program_id(0) % SPLITS
    first_segment = part * PER_PART
    last_segment = tl.minimum(first_segment + PER_PART, NUM_SEGMENTS)
    first_block = first_segment * SEGMENT_BLOCKS
    last_block = tl.minimum(last_segment * SEGMENT_BLOCKS, NUM_BLOCKS)
    counter = counters + sample * 4
    sums += sample * 2 * _SEGMENTS * 16
    candidates += sample * CAPACITY
    rounds = 0

    # What the row wants.
    row = tl.load(rows + sample).to(tl.int64)
    row_line = table + row * _WIDTH
    flags = tl.load(row_line)
    scale = _as_float(tl.load(row_line + 1))
    min_p = _as_float(tl.load(row_line + 2))
    top_k = tl.load(row_line + 3)
    top_p = _as_float(tl.load(row_line + 4))
    presence = _as_float(tl.load(row_line + 5))
    frequency = _as_float(tl.load(row_line + 6))
    repetition = _as_float(tl.load(row_line + 7))
    position = tl.load(positions + (row if BY_ROW else sample)).to(tl.int64)
    num_stops = tl.where(position < tl.load(row_line + 8), tl.load(row_line + 9), 0)
    penalised = flags & 2
    line = logits + sample.to(tl.int64) * stride
    seen_line = seen
    if HAS_SEEN:
        seen_line = seen + row * vocab
    mask_line = mask_bits
    if HAS_MASK:
        mask_line = mask_bits + tl.load(mask_lines + sample).to(tl.int64) * mask_stride
    lane = tl.arange(0, BLOCK)

    # The largest value, and its first token.
    best = tl.full((BLOCK,), float("-inf"), tl.float32)
    best_index = first_block * BLOCK + lane
    for block in tl.range(first_block, last_block, loop_unroll_factor=2):
        offsets = block * BLOCK + lane
        x = _values(
            line, offsets, vocab, row_line, num_stops, seen_line, repetition, frequency, presence, penalised,
            mask_line, HAS_SEEN, HAS_MASK,
        )  # fmt: skip
        better = x > best
        best = tl.where(better, x, best)
        best_index = tl.where(better, offsets, best_index)
    largest = tl.max(best, axis=0)
    token = tl.min(tl.where(best == largest, best_index, _NO_INDEX), axis=0)
    if SPLITS > 1:
        parts = tl.arange(0, SPLITS) * PER_PART * 16
        tl.store(sums + first_segment * 16 + 8, largest)
        tl.store(sums + first_segment * 16 + 9, token.to(tl.float32, bitcast=True))
        rounds += 1
        _meet(counter, rounds * SPLITS)
        each_largest = tl.load(sums + parts + 8, cache_modifier=".cg")
        each_token = tl.load(sums + parts + 9, cache_modifier=".cg").to(tl.int32, bitcast=True)
        largest = tl.max(each_largest, axis=0)
        token = tl.min(tl.where(each_largest == largest, each_token, _NO_INDEX), axis=0)

    if flags & 1 != 0:
        peak = tl.maximum(largest, _LOWEST)
        floor = peak + min_p  # the smallest value kept
        begin = float("-inf") + peak * 0.0  # where the search begins: nothing at or below it is cut
        extra = peak * 0.0  # mass kept besides what is above `begin`
        pivot = tl.arange(0, 8)
        fraction = pivot.to(tl.float32) * 0.125
        distance = (0.25 * pivot * pivot + 0.75 * pivot) * (_LOG2_E / scale)  # 0, 1, 2.5, 4.5, 7, 10, 13.5, 17.5 nats
        for phase in range(0, 2):  # 0: top-k counts values, 1: top-p adds their weights
            counting = phase == 0
            target = tl.where(counting, top_k.to(tl.float32), top_p)
            searching = tl.where(counting, (top_k > 0).to(tl.int32), (top_p < 1.0).to(tl.int32))
            opening = searching
            cut = 0
            low = begin
            high = peak
            smallest = begin
            above = peak * 0.0
            at_low = peak * 0.0 + float("inf")
            while searching > 0:
                spaced = smallest * (1.0 - fraction) + high * fraction
                pivots = tl.where(opening > 0, tl.where(pivot == 0, low, peak - distance), spaced)
                v0 = tl.sum(tl.where(pivot == 0, pivots, 0.0), axis=0)
                v1 = tl.sum(tl.where(pivot == 1, pivots, 0.0), axis=0)
                v2 = tl.sum(tl.where(pivot == 2, pivots, 0.0), axis=0)
                v3 = tl.sum(tl.where(pivot == 3, pivots, 0.0), axis=0)
                v4 = tl.sum(tl.where(pivot == 4, pivots, 0.0), axis=0)
                v5 = tl.sum(tl.where(pivot == 5, pivots, 0.0), axis=0)
                v6 = tl.sum(tl.where(pivot == 6, pivots, 0.0), axis=0)
                v7 = tl.sum(tl.where(pivot == 7, pivots, 0.0), axis=0)
                round_sums = sums + (rounds % 2) * _SEGMENTS * 16
                lowest = tl.full((BLOCK,), float("inf"), tl.float32)
                highest = tl.full((BLOCK,), float("-inf"), tl.float32)
                for segment in range(first_segment, last_segment):
                    a0 = tl.zeros((BLOCK,), tl.float32)
                    a1 = tl.zeros((BLOCK,), tl.float32)
                    a2 = tl.zeros((BLOCK,), tl.float32)
                    a3 = tl.zeros((BLOCK,), tl.float32)
                    a4 = tl.zeros((BLOCK,), tl.float32)
                    a5 = tl.zeros((BLOCK,), tl.float32)
                    a6 = tl.zeros((BLOCK,), tl.float32)
                    a7 = tl.zeros((BLOCK,), tl.float32)
                    end_block = tl.minimum((segment + 1) * SEGMENT_BLOCKS, NUM_BLOCKS)
                    for block in range(segment * SEGMENT_BLOCKS, end_block):
                        x = _values(
                            line, block * BLOCK + lane, vocab, row_line, num_stops, seen_line, repetition, frequency,
                            presence, penalised, mask_line, HAS_SEEN, HAS_MASK,
                        )  # fmt: skip
                        x = tl.where(x >= floor, x, float("-inf"))
                        amount = tl.where(counting, 1.0, tl.exp2((x - peak) * scale))
                        a0 += tl.where(x > v0, amount, 0.0)
                        a1 += tl.where(x > v1, amount, 0.0)
                        a2 += tl.where(x > v2, amount, 0.0)
                        a3 += tl.where(x > v3, amount, 0.0)
                        a4 += tl.where(x > v4, amount, 0.0)
                        a5 += tl.where(x > v5, amount, 0.0)
                        a6 += tl.where(x > v6, amount, 0.0)
                        a7 += tl.where(x > v7, amount, 0.0)
                        inside = (x > low) & (x <= high)
                        lowest = tl.minimum(lowest, tl.where(inside, x, float("inf")))
                        highest = tl.maximum(highest, tl.where(inside, x, float("-inf")))
                    # [BLOCK, 2, 2, 2] with pivot j at (j & 1, j >> 1 & 1, j >> 2), so that one sum serves all
                    even = tl.join(tl.join(a0, a4), tl.join(a2, a6))
                    odd = tl.join(tl.join(a1, a5), tl.join(a3, a7))
                    of_segment = tl.reshape(tl.sum(tl.join(even, odd), axis=0), (8,))
                    tl.store(round_sums + segment * 16 + pivot, of_segment)
                mine = tl.min(lowest, axis=0)
                maxe = tl.max(highest, axis=0)
                if SPLITS > 1:
                    tl.store(round_sums + first_segment * 16 + 8, maxe)
                    tl.store(round_sums + first_segment * 16 + 9, mine)
                    rounds += 1
                    _meet(counter, rounds * SPLITS)
                    parts = tl.arange(0, SPLITS) * PER_PART * 16
                    maxe = tl.max(tl.load(round_sums + parts + 8, cache_modifier=".cg"), axis=0)
                    mine = tl.min(tl.load(round_sums + parts + 9, cache_modifier=".cg"), axis=0)
                else:
                    tl.debug_barrier()
                segments = tl.arange(0, _SEGMENTS)
                amounts = tl.sum(
                    tl.load(
                        round_sums + segments[:, None] * 16 + pivot[None, :],
                        mask=(segments < NUM_SEGMENTS)[:, None],
                        other=0.0,
                        cache_modifier=".cg",
                    ),
                    axis=0,
                )
