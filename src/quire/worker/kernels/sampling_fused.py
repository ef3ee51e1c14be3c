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
another, so a row's token depends on nothing but the row. With few rows, `splits` programs share a row's segments and
wait for each other between passes, so all of them must be on the GPU at once: `splits_for` sees to that.

The twin is `quire.worker.sampling.sampler.Sampler`.
"""

from functools import lru_cache

import torch
import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from quire.worker.kernels.launch import dependent_launch
from quire.worker.kernels.sampling import load_finite

BLOCK = 1024
WARPS = 16
REGISTERS = 64
"""Of each thread, so that two programs fit on a multiprocessor."""
SEGMENTS = 16
CAPACITY = 2048
"""Values that are copied out of a bracket."""

# A row's line in the table: int32 words, some of them float32 bits, the seed in two.
FLAGS, SCALE, MIN_P, TOP_K, TOP_P, PRESENCE, FREQUENCY, REPETITION, UNTIL, _, SEED = range(11)
WIDTH = 12
RANDOM, ADJUSTED = 1, 2
"""Bits of FLAGS: it draws | it has a line in the table of tokens seen."""
IN_PROMPT, GENERATED, STOP = 1, 2, -(2**15)
"""A token's entry in that line: is it in the prompt + times generated, up to MAX_COUNT + is it a stop token."""
MAX_COUNT = 16383

_SEGMENTS = tl.constexpr(SEGMENTS)
_WIDTH = tl.constexpr(WIDTH)
UNROLL = tl.constexpr(4)
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
    line, offsets, vocab: tl.constexpr, seen_line, repetition, frequency, presence, adjusted, early,
    mask_line, ADJUST: tl.constexpr, HAS_MASK: tl.constexpr,
):  # fmt: skip
    """The row's logits at these offsets, before temperature; -inf where forbidden or beyond the vocabulary."""
    inside = offsets < vocab
    x = load_finite(line + offsets, inside)
    if HAS_MASK:
        word = tl.load(mask_line + offsets // 32, mask=inside, other=0)
        x = tl.where((word >> (offsets % 32)) & 1 != 0, x, float("-inf"))
    if ADJUST:  # noqa: SIM102 - known when compiled, the other is not
        if adjusted != 0:
            seen = tl.load(seen_line + offsets, mask=inside, other=0).to(tl.int32)
            count = (seen & 0x7FFF) >> 1
            x = tl.where(seen & 0x7FFF > 0, tl.where(x > 0, x / repetition, x * repetition), x)
            x = x - frequency * count.to(tl.float32) - tl.where(count > 0, presence, 0.0)
            x = tl.where((seen < 0) & early, float("-inf"), x)
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
    """float32 → int32 in the same order."""
    bits = x.to(tl.int32, bitcast=True)
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


@triton.jit
def _unkey(key):
    return (key ^ ((key >> 31) & 0x7FFFFFFF)).to(tl.float32, bitcast=True)


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
    """The first index with weight whose running sum exceeds the goal; the last with weight if rounding left none."""
    first = tl.min(tl.where((running > goal) & (weights > 0), index, _NO_INDEX), axis=0)
    return tl.where(first == _NO_INDEX, tl.max(tl.where(weights > 0, index, last), axis=0), first)


@triton.jit(do_not_specialize=["null_row", "splits"])
def _sample_kernel(
    logits, rows, places, positions, table, tokens, counters, sums, masses, candidates, seen, mask_bits, mask_lines,
    stride, mask_stride, null_row, splits,
    vocab: tl.constexpr, BLOCK: tl.constexpr, SEGMENT_BLOCKS: tl.constexpr, MANY: tl.constexpr,
    CAPACITY: tl.constexpr, ADJUST: tl.constexpr, HAS_MASK: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    if PDL:
        gdc_wait()
    NUM_BLOCKS: tl.constexpr = (vocab + BLOCK - 1) // BLOCK
    NUM_SEGMENTS: tl.constexpr = (NUM_BLOCKS + SEGMENT_BLOCKS - 1) // SEGMENT_BLOCKS
    per_part = _SEGMENTS // splits
    sample = tl.program_id(0) // splits
    part = tl.program_id(0) % splits
    first_segment = part * per_part
    last_segment = tl.minimum(first_segment + per_part, NUM_SEGMENTS)
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
    position = tl.load(positions + tl.load(places + sample)).to(tl.int64)
    early = position < tl.load(row_line + 8)  # to stop
    adjusted = flags & 2
    line = logits + sample.to(tl.int64) * stride
    seen_line = seen
    if ADJUST:
        seen_line = seen + row * vocab
    mask_line = mask_bits
    if HAS_MASK:
        mask_line = mask_bits + tl.load(mask_lines + sample).to(tl.int64) * mask_stride
    lane = tl.arange(0, BLOCK)

    # The largest value, and its first token.
    best = tl.full((BLOCK,), float("-inf"), tl.float32)
    best_index = first_block * BLOCK + lane
    for block in tl.range(first_block, last_block, loop_unroll_factor=UNROLL):
        offsets = block * BLOCK + lane
        x = _values(
            line, offsets, vocab, seen_line, repetition, frequency, presence, adjusted, early,
            mask_line, ADJUST, HAS_MASK,
        )  # fmt: skip
        better = x > best
        best = tl.where(better, x, best)
        best_index = tl.where(better, offsets, best_index)
    largest = tl.max(best, axis=0)
    token = tl.min(tl.where(best == largest, best_index, _NO_INDEX), axis=0)
    if MANY:
        tl.store(sums + first_segment * 16 + 8, largest)
        tl.store(sums + first_segment * 16 + 9, token.to(tl.float32, bitcast=True))
        rounds += 1
        _meet(counter, rounds * splits)
        each = tl.arange(0, _SEGMENTS)
        parts, there = each * per_part * 16, each < splits
        each_largest = tl.load(sums + parts + 8, mask=there, other=float("-inf"), cache_modifier=".cg")
        each_token = tl.load(sums + parts + 9, mask=there, other=0.0, cache_modifier=".cg").to(tl.int32, bitcast=True)
        largest = tl.max(each_largest, axis=0)
        token = tl.min(tl.where(there & (each_largest == largest), each_token, _NO_INDEX), axis=0)

    peak = tl.maximum(largest, _LOWEST)
    floor = peak + min_p  # the smallest value kept
    if flags & 1 != 0:
        begin = float("-inf") + peak * 0.0  # where the search begins: nothing at or below it is cut
        extra = peak * 0.0  # mass kept besides what is above `begin`
        pivot = tl.arange(0, 8)
        fraction = pivot.to(tl.float32) * 0.125
        distance = (0.25 * pivot * pivot + 0.75 * pivot) * (_LOG2_E / scale)  # 0, 1, 2.5, 4.5, 7, 10, 13.5, 17.5 nats
        for phase in range(2):  # 0: top-k counts values, 1: top-p adds their weights
            counting = phase == 0
            target = tl.where(counting, top_k.to(tl.float32), top_p)
            searching = tl.where(counting, (top_k > 0).to(tl.int32), (top_p < 1.0).to(tl.int32))
            opening = searching
            cut = 0
            below = tl.where(floor == float("-inf"), floor, _unkey(_key(floor) - 1))  # x > below is x >= floor
            low = tl.maximum(begin, below)
            high = peak
            smallest = begin
            above = peak * 0.0
            at_low = peak * 0.0 + float("inf")
            while searching > 0:
                spaced = smallest * (1.0 - fraction) + high * fraction
                pivots = tl.maximum(tl.where(opening > 0, tl.where(pivot == 0, low, peak - distance), spaced), below)
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
                    for block in tl.range(segment * SEGMENT_BLOCKS, end_block, loop_unroll_factor=UNROLL):
                        x = _values(
                            line, block * BLOCK + lane, vocab, seen_line, repetition, frequency, presence, adjusted,
                            early, mask_line, ADJUST, HAS_MASK,
                        )  # fmt: skip
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
                bottom = tl.min(lowest, axis=0)
                top = tl.max(highest, axis=0)  # of the bracket
                rounds += 1
                if MANY:
                    tl.store(round_sums + first_segment * 16 + 8, top)
                    tl.store(round_sums + first_segment * 16 + 9, bottom)
                    _meet(counter, rounds * splits)
                    each = tl.arange(0, _SEGMENTS)
                    ends, there = round_sums + each * per_part * 16 + 8, each < splits
                    top = tl.max(tl.load(ends, mask=there, other=float("-inf"), cache_modifier=".cg"), axis=0)
                    bottom = tl.min(tl.load(ends + 1, mask=there, other=float("inf"), cache_modifier=".cg"), axis=0)
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
                everything = tl.sum(tl.where(pivot == 0, amounts, 0.0), axis=0)
                target = tl.where((opening > 0) & (phase == 1), top_p * (everything + extra), target)
                nothing = (opening > 0) & tl.where(counting, everything <= target, everything < target)
                reach = amounts >= target
                low = tl.maximum(low, tl.max(tl.where(reach, pivots, float("-inf")), axis=0))
                at_low = tl.minimum(at_low, tl.min(tl.where(reach, amounts, float("inf")), axis=0))
                high = tl.minimum(tl.minimum(high, top), tl.min(tl.where(reach, float("inf"), pivots), axis=0))
                above = tl.maximum(above, tl.max(tl.where(reach, 0.0, amounts), axis=0))
                smallest = tl.maximum(low, bottom)
                opening = 0
                ended = nothing | (bottom >= top)  # one value, however often, is left
                cut = tl.where(ended & (nothing == 0) & (bottom == top), 1, 0)
                floor = tl.where(cut > 0, top, floor)
                least = tl.where(counting, 1.0, tl.exp2((smallest - peak) * scale))
                few = (at_low - above) <= least * (CAPACITY * 0.98)
                searching = tl.where(ended, 0, 1)
                if (searching > 0) & few:
                    # Copy the bracket out. Sums over the copies are exact, as integers, since their order is any.
                    found = counter + 1 + phase
                    for block in tl.range(first_block, last_block, loop_unroll_factor=UNROLL):
                        x = _values(
                            line, block * BLOCK + lane, vocab, seen_line, repetition, frequency, presence, adjusted,
                            early, mask_line, ADJUST, HAS_MASK,
                        )  # fmt: skip
                        inside = (x > low) & (x <= high)
                        slot = tl.atomic_add(found + tl.zeros_like(lane), 1, mask=inside, sem="relaxed")
                        tl.store(candidates + slot, x, mask=inside & (slot < CAPACITY))
                    if MANY:
                        rounds += 1
                        _meet(counter, rounds * splits)
                    else:
                        tl.debug_barrier()
                    num_found = tl.atomic_add(found, 0, sem="relaxed")
                    index = tl.arange(0, CAPACITY)
                    copied = tl.load(
                        candidates + index, mask=index < num_found, other=float("-inf"), cache_modifier=".cg"
                    )
                    largest_weight = tl.where(counting, 1.0, tl.exp2((high - peak) * scale))
                    weights = tl.where(counting, 1.0, tl.exp2((copied - high) * scale))
                    exact = tl.where(index < num_found, weights * _ONE, 0.0).to(tl.int64)
                    goal = ((target - above) / largest_weight * _ONE).to(tl.int64)
                    keys = _key(copied)
                    low_key = _key(low).to(tl.int64)
                    high_key = _key(high).to(tl.int64)
                    while high_key - low_key > 1:
                        middle = (low_key + high_key) >> 1
                        enough = tl.sum(tl.where(keys > middle.to(tl.int32), exact, 0), axis=0) >= goal
                        low_key = tl.where(enough, middle, low_key)
                        high_key = tl.where(enough, high_key, middle)
                    threshold = high_key.to(tl.int32)
                    above += (tl.sum(tl.where(keys > threshold, exact, 0), axis=0) >> _ONE_BITS).to(tl.float32)
                    floor = _unkey(threshold)
                    cut = 1
                    searching = 0
            if cut > 0:  # of equal values at the top-k threshold all are kept, but only k values count as mass
                begin = floor
                extra = (target - above) * tl.exp2((floor - peak) * scale)

        # The mass that is kept, in each segment.
        for segment in range(first_segment, last_segment):
            mass = tl.zeros((BLOCK,), tl.float64)
            end_block = tl.minimum((segment + 1) * SEGMENT_BLOCKS, NUM_BLOCKS)
            for block in tl.range(segment * SEGMENT_BLOCKS, end_block, loop_unroll_factor=UNROLL):
                x = _values(
                    line, block * BLOCK + lane, vocab, seen_line, repetition, frequency, presence, adjusted,
                    early, mask_line, ADJUST, HAS_MASK,
                )  # fmt: skip
                mass += tl.where(x >= floor, tl.exp2((x - peak) * scale), 0.0).to(tl.float64)
            tl.store(masses + sample * _SEGMENTS + segment, tl.sum(mass, axis=0))

    tl.debug_barrier()
    arrived = splits - 1
    if MANY:
        arrived = tl.atomic_add(counter, 1, sem="acq_rel") - rounds * splits
        tl.debug_barrier()
    if arrived == splits - 1:
        if flags & 1 != 0:
            segments = tl.arange(0, _SEGMENTS)
            mass_of = tl.load(
                masses + sample * _SEGMENTS + segments, mask=segments < NUM_SEGMENTS, other=0.0, cache_modifier=".cg"
            )
            total = tl.sum(mass_of, axis=0)
            if total > 0:  # otherwise nothing is possible, and the first token is as good as any
                seed = (tl.load(row_line + 11).to(tl.int64) << 32) | (tl.load(row_line + 10).to(tl.int64) & 0xFFFFFFFF)
                goal = tl.minimum(_uniform(seed, position) * total, total * (1 - 1e-12))
                segment = _first_above(tl.cumsum(mass_of, axis=0), mass_of, goal, segments, 0)
                running = tl.sum(tl.where(segments < segment, mass_of, 0.0), axis=0)
                chosen = segment * SEGMENT_BLOCKS
                before = running
                weight = running * 0.0
                for block in range(segment * SEGMENT_BLOCKS, tl.minimum((segment + 1) * SEGMENT_BLOCKS, NUM_BLOCKS)):
                    x = _values(
                        line, block * BLOCK + lane, vocab, seen_line, repetition, frequency, presence, adjusted,
                        early, mask_line, ADJUST, HAS_MASK,
                    )  # fmt: skip
                    mass = tl.where(x >= floor, tl.exp2((x - peak) * scale), 0.0).to(tl.float64)
                    here = tl.sum(mass, axis=0)
                    take = (here > 0) & ((running <= goal) | (weight == 0))
                    chosen = tl.where(take, block, chosen)
                    before = tl.where(take, running, before)
                    weight = tl.where(take, here, weight)
                    running += here
                x = _values(
                    line, chosen * BLOCK + lane, vocab, seen_line, repetition, frequency, presence, adjusted, early,
                    mask_line, ADJUST, HAS_MASK,
                )  # fmt: skip
                mass = tl.where(x >= floor, tl.exp2((x - peak) * scale), 0.0).to(tl.float64)
                token = _first_above(tl.cumsum(mass, axis=0), mass, goal - before, chosen * BLOCK + lane, 0)
        tl.store(tokens + sample, token.to(tl.int64))
        if ADJUST:  # noqa: SIM102 - known when compiled, the other is not
            if (adjusted != 0) & (row != null_row):
                seen_token = tl.load(seen_line + token).to(tl.int32)
                more = tl.where(seen_token & 0x7FFF < 32766, seen_token + 2, seen_token)
                tl.store(seen_line + token, more.to(tl.int16))
        tl.store(counter + tl.arange(0, 4), tl.zeros((4,), tl.int32))
    if PDL:
        gdc_launch_dependents()


def splits_for(num_samples: int, device: torch.device) -> int:
    """Programs per row, such that all run at once: they wait for each other."""
    if device.type != "cuda":
        return 1
    splits = SEGMENTS
    while num_samples * splits > _num_multiprocessors(device) and splits > 1:
        splits //= 2
    return splits


@lru_cache
def _num_multiprocessors(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count


def sample(
    logits: torch.Tensor,
    rows: torch.Tensor,
    places: torch.Tensor,
    positions: torch.Tensor,
    table: torch.Tensor,
    scratch: FusedScratch,
    tokens: torch.Tensor,
    *,
    seen: torch.Tensor | None = None,
    masks: tuple[torch.Tensor, torch.Tensor] | None = None,
    block: int = BLOCK,
    splits: int | None = None,
) -> torch.Tensor:
    """Sample a token for each row. One launch; it adds the new tokens to `seen`.

    Args:
        logits: [samples, vocab], any float type, not changed.
        rows: [samples] int32 or int64; lines of `table`, the last of which is for padding.
        places: [samples] int; where in `positions` each sample's is.
        positions: int32, the new token's index in its request.
        table: [rows + 1, WIDTH] int32.
        scratch: for at least that many samples.
        tokens: [samples] int64, written.
        seen: [rows + 1, vocab] int16, see STOP; None if no row has penalties or stop tokens to forbid: faster.
        masks: ([samples] int32, [lines, words] int32): line of bits of each sample, bit t of a line allows token t.
    """
    num_samples, vocab = logits.shape
    assert logits.stride(1) == 1 and num_samples <= len(scratch.counters) and table.shape[1] == WIDTH
    splits = splits_for(num_samples, logits.device) if splits is None else splits
    mask_lines, mask_bits = masks if masks is not None else (rows, table)
    _sample_kernel[(num_samples * splits,)](
        logits, rows, places, positions, table, tokens,
        scratch.counters, scratch.sums, scratch.masses, scratch.candidates,
        table if seen is None else seen, mask_bits, mask_lines, logits.stride(0), mask_bits.stride(0), len(table) - 1,
        splits, vocab=vocab, BLOCK=block, SEGMENT_BLOCKS=triton.cdiv(triton.cdiv(vocab, block), SEGMENTS),
        MANY=splits > 1, CAPACITY=CAPACITY, ADJUST=seen is not None, HAS_MASK=masks is not None, num_warps=WARPS,
        maxnreg=REGISTERS, **dependent_launch(logits),
    )  # fmt: skip
    return tokens
