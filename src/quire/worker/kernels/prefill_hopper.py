"""Paged attention of several query tokens per request for Hopper GPUs, in Gluon, the layer below Triton.

The order of work is that of FlashAttention 3 (Shah et al. 2024), over a block table. A program takes a tile of 128
lines as `prefill_attention` does; its warps have different trades:

    one warp         brings pages of keys and values by the tensor memory accelerator, up to STAGES tiles ahead
    twice 4 warps    64 lines each: the scores of the next tile and the sums of this one are under way together,
                     so exponentials of one group run beside products of the other

    ready[stage]     keys are there; ready[STAGES + stage]: values are           one arrival, and bytes
    free[...]        both groups have read them                                  two arrivals
    keys, values     [STAGES, DIM / 64, pages, PAGE, 64], swizzled by 128 bytes = [STAGES, BLOCK, DIM] to the products

Tiles are taken from the last to the first, so masks come first. Written for Gluon as Triton 3.6 has it, whose interface
still moves; everywhere else, and for windows and soft caps, `prefill_attention` does the same.
"""

from __future__ import annotations

import torch
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    mbarrier,
    tma,
    warpgroup_mma,
    warpgroup_mma_wait,
)
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

LINES = 128
BLOCK = 128
STAGES = 2
"""Of lines per tile, keys per tile and tiles in flight: the best of {64, 128} x {2, 3, 4} on an H200."""

HALF = gl.constexpr(64)  # lines of each group; also the columns of one copy, 128 bytes
NOTHING = gl.constexpr(float("-inf"))
LOG2_E = 1.4426950408889634


@gluon.jit
def _wait_for_inputs():
    """`gdc_wait`, which this version of Gluon has no word for."""
    gl.inline_asm_elementwise("griddepcontrol.wait; mov.u32 $0, 0;", "=r", [], dtype=gl.int32, is_pure=False, pack=1)


@gluon.jit
def _launch_dependents():
    gl.inline_asm_elementwise(
        "griddepcontrol.launch_dependents; mov.u32 $0, 0;", "=r", [], dtype=gl.int32, is_pure=False, pack=1
    )


@gluon.jit
def _produce(
    pages, table, num_tiles, head_row, block_rows, kind_rows, keys, values, ready, free,
    PAGES: gl.constexpr, PAGE: gl.constexpr, DIM: gl.constexpr, NUM_STAGES: gl.constexpr,
):  # fmt: skip
    """Bring tiles of keys and values, the last first."""
    CUTS: gl.constexpr = DIM // HALF
    SIZE: gl.constexpr = PAGES * PAGE * DIM * 2
    for i in range(num_tiles):
        stage = i % NUM_STAGES
        phase = (i // NUM_STAGES) & 1
        first = (num_tiles - 1 - i) * PAGES
        mbarrier.wait(free.index(stage), phase ^ 1)
        mbarrier.expect(ready.index(stage), SIZE)
        for page in gl.static_range(PAGES):
            row = gl.load(table + first + page) * block_rows + head_row
            for cut in gl.static_range(CUTS):
                target = keys.index((stage * CUTS + cut) * PAGES + page)
                tma.async_copy_global_to_shared(pages, [row, cut * HALF], ready.index(stage), target)
        mbarrier.wait(free.index(NUM_STAGES + stage), phase ^ 1)
        mbarrier.expect(ready.index(NUM_STAGES + stage), SIZE)
        for page in gl.static_range(PAGES):
            row = gl.load(table + first + page) * block_rows + head_row + kind_rows
            for cut in gl.static_range(CUTS):
                target = values.index((stage * CUTS + cut) * PAGES + page)
                tma.async_copy_global_to_shared(pages, [row, cut * HALF], ready.index(NUM_STAGES + stage), target)


@gluon.jit
def _soften(scores, most, mass, scale):
    """Weights of a tile of scores [HALF, keys]; the new maximum and mass of each line; what earlier sums shrink by.

    Lines that have seen nothing yet stay at -inf: large finite numbers would leave a rounding error as large.
    """
    new_most = gl.maximum(most, gl.max(scores, 1))
    peak = gl.where(new_most == NOTHING, 0.0, new_most)
    shrink = gl.exp2((most - peak) * scale)
    weights = gl.exp2(scores * scale - (peak * scale)[:, None])
    return weights, new_most, mass * shrink + gl.sum(weights, 1), shrink


@gluon.jit
def _clear_beyond(values, first, end, KEYS: gl.constexpr, PAGE: gl.constexpr, DIM: gl.constexpr):
    """Zero the values of stage 0 from `end` on: a weight of nothing times what may be no number is no number."""
    layout: gl.constexpr = gl.BlockedLayout([1, 4], [2, 16], [4, 1], [1, 0])
    row = gl.arange(0, PAGE, gl.SliceLayout(1, layout))
    for page in gl.static_range(KEYS // PAGE):
        if first + (page + 1) * PAGE > end:
            for cut in gl.static_range(DIM // HALF):
                memory = values.index(cut * (KEYS // PAGE) + page)
                there = memory.load(layout)
                valid = (first + page * PAGE + row < end)[:, None]
                memory.store(gl.where(valid, there, gl.full([PAGE, HALF], 0.0, there.dtype, layout)))
    fence_async_shared()
    gl.thread_barrier()


@gluon.jit
def _consume(
    part: gl.constexpr, q, out, keys, values, ready, free, num_tiles, num_masked, begin, count, before, offset, end,
    head, scale, q_stride,
    NUM_KV: gl.constexpr, GROUP: gl.constexpr, DIM: gl.constexpr, KEYS: gl.constexpr, PAGE: gl.constexpr,
    TOKENS: gl.constexpr, NUM_STAGES: gl.constexpr,
):  # fmt: skip
    """Half of the tile's lines."""
    dtype: gl.constexpr = q.dtype.element_ty
    product: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, min(KEYS, DIM), 16])
    left: gl.constexpr = gl.DotOperandLayout(0, product, 2)
    lines: gl.constexpr = gl.SliceLayout(1, product)
    coalesced: gl.constexpr = gl.BlockedLayout([1, 8], [32 * 8 // DIM, DIM // 8], [4, 1], [1, 0])
    swizzled: gl.constexpr = gl.NVMMASharedLayout(128, 16, 2)
    all_keys = keys._reinterpret(dtype, [NUM_STAGES, KEYS, DIM], swizzled)
    all_values = values._reinterpret(dtype, [NUM_STAGES, KEYS, DIM], swizzled)

    line = part * HALF + gl.arange(0, HALF, gl.SliceLayout(1, coalesced))
    token = offset + line // GROUP
    used = (line < TOKENS * GROUP) & (token < count)
    at = (begin + token).to(gl.int64) * q_stride + (head * GROUP + line % GROUP) * DIM
    column = gl.arange(0, DIM, gl.SliceLayout(0, coalesced))
    queries = gl.convert_layout(gl.load(q + at[:, None] + column[None, :], mask=used[:, None], other=0.0), left)

    position = before + offset + (part * HALF + gl.arange(0, HALF, lines)) // GROUP
    key = gl.arange(0, KEYS, gl.SliceLayout(0, product))
    most = gl.full([HALF], NOTHING, gl.float32, lines)
    mass = gl.full([HALF], 0.0, gl.float32, lines)
    zeros = gl.full([HALF, KEYS], 0.0, gl.float32, product)
    sums = gl.full([HALF, DIM], 0.0, gl.float32, product)

    first = (num_tiles - 1) * KEYS
    mbarrier.wait(ready.index(0), 0)
    scores = warpgroup_mma(queries, all_keys.index(0).permute([1, 0]), zeros, use_acc=False)
    mbarrier.arrive(free.index(0))
    seen = (first + key)[None, :] <= gl.minimum(position, end - 1)[:, None]
    weights, most, mass, shrink = _soften(gl.where(seen, scores, NOTHING), most, mass, scale)
    half = gl.convert_layout(weights.to(dtype), left)
    mbarrier.wait(ready.index(NUM_STAGES), 0)
    _clear_beyond(values, first, end, KEYS, PAGE, DIM)

    for i in range(1, num_tiles):
        stage = i % NUM_STAGES
        previous = (i - 1) % NUM_STAGES
        mbarrier.wait(ready.index(stage), (i // NUM_STAGES) & 1)
        next_scores = warpgroup_mma(queries, all_keys.index(stage).permute([1, 0]), zeros, use_acc=False, is_async=True)
        mbarrier.wait(ready.index(NUM_STAGES + previous), ((i - 1) // NUM_STAGES) & 1)
        next_sums = warpgroup_mma(half, all_values.index(previous), sums, is_async=True)
        scores = warpgroup_mma_wait(1, deps=[next_scores])
        mbarrier.arrive(free.index(stage))
        if i < num_masked:
            seen = (first - i * KEYS + key)[None, :] <= position[:, None]
            scores = gl.where(seen, scores, NOTHING)
        weights, most, mass, shrink = _soften(scores, most, mass, scale)
        sums = warpgroup_mma_wait(0, deps=[next_sums])
        mbarrier.arrive(free.index(NUM_STAGES + previous))
        sums = sums * shrink[:, None]
        half = gl.convert_layout(weights.to(dtype), left)

    last = num_tiles - 1
    mbarrier.wait(ready.index(NUM_STAGES + last % NUM_STAGES), (last // NUM_STAGES) & 1)
    sums = warpgroup_mma(half, all_values.index(last % NUM_STAGES), sums)
    sums = sums / mass[:, None]
    line_out = part * HALF + gl.arange(0, HALF, lines)
    token_out = offset + line_out // GROUP
    used_out = (line_out < TOKENS * GROUP) & (token_out < count)
    to = (begin + token_out).to(gl.int64) * (NUM_KV * GROUP * DIM) + (head * GROUP + line_out % GROUP) * DIM
    column_out = gl.arange(0, DIM, gl.SliceLayout(0, product))
    gl.store(out + to[:, None] + column_out[None, :], sums.to(dtype), mask=used_out[:, None])


@gluon.jit(do_not_specialize_on_alignment=["rows", "query_starts", "kv_lens", "tile_requests", "tile_starts"])
def _attend(
    q, pages, out, tables, rows, query_starts, kv_lens, tile_requests, tile_starts, scale, q_stride, table_stride,
    NUM_KV: gl.constexpr, GROUP: gl.constexpr, DIM: gl.constexpr, PAGE: gl.constexpr, KEYS: gl.constexpr,
    TOKENS: gl.constexpr, NUM_STAGES: gl.constexpr,
):  # fmt: skip
    """One tile of one KV head: TOKENS query tokens, TOKENS * GROUP of the 128 lines.

    The next kernel may come once all that this one reads is there, since decode attention beside it reads the same.
    """
    _wait_for_inputs()
    _launch_dependents()
    dtype: gl.constexpr = q.dtype.element_ty
    PAGES: gl.constexpr = KEYS // PAGE
    COPIES: gl.constexpr = NUM_STAGES * PAGES * (DIM // HALF)
    swizzled: gl.constexpr = gl.NVMMASharedLayout(128, 16, 2)
    head = gl.program_id(0)
    tile = gl.program_id(1)
    request = gl.load(tile_requests + tile)
    if request >= 0:
        offset = gl.load(tile_starts + tile)
        begin = gl.load(query_starts + request)
        count = gl.load(query_starts + request + 1) - begin
        before = gl.load(kv_lens + request) - count  # tokens that were there before this step
        table = tables + gl.load(rows + request).to(gl.int64) * table_stride
        end = before + gl.minimum(offset + TOKENS, count)
        num_tiles = (end + KEYS - 1) // KEYS
        num_masked = num_tiles - (before + offset + 1) // KEYS
        keys = gl.allocate_shared_memory(dtype, [COPIES, PAGE, HALF], swizzled)
        values = gl.allocate_shared_memory(dtype, [COPIES, PAGE, HALF], swizzled)
        ready = gl.allocate_shared_memory(gl.int64, [2 * NUM_STAGES, 1], mbarrier.MBarrierLayout())
        free = gl.allocate_shared_memory(gl.int64, [2 * NUM_STAGES, 1], mbarrier.MBarrierLayout())
        for i in gl.static_range(2 * NUM_STAGES):
            mbarrier.init(ready.index(i), count=1)
            mbarrier.init(free.index(i), count=2)
        fence_async_shared()
        gl.warp_specialize(  # tuples made elsewhere would lose what is constant in them
            [
                (_consume, (
                    0, q, out, keys, values, ready, free, num_tiles, num_masked, begin, count, before, offset, end,
                    head, scale, q_stride, NUM_KV, GROUP, DIM, KEYS, PAGE, TOKENS, NUM_STAGES,
                )),
                (_consume, (
                    1, q, out, keys, values, ready, free, num_tiles, num_masked, begin, count, before, offset, end,
                    head, scale, q_stride, NUM_KV, GROUP, DIM, KEYS, PAGE, TOKENS, NUM_STAGES,
                )),
                (_produce, (
                    pages, table, num_tiles, head * PAGE, 2 * NUM_KV * PAGE, NUM_KV * PAGE, keys, values, ready, free,
                    PAGES, PAGE, DIM, NUM_STAGES,
                )),
            ],
            [4, 1],
            [240, 24],
        )  # fmt: skip


def fits(dim: int, page: int, dtype: torch.dtype, device: torch.device) -> bool:
    """Whether heads of this size, pages of so many tokens and numbers of this kind can be had on this device."""
    if device.type != "cuda" or dtype.itemsize != 2:
        return False
    return torch.cuda.get_device_capability(device) == (9, 0) and dim in (64, 128) and page in (16, 32, 64)


def prefill_attention_hopper(
    q: torch.Tensor,  # [tokens, num_heads, head_dim], lines may be apart
    kv: torch.Tensor,  # [blocks, 2, num_kv_heads, block_size, head_dim]
    out: torch.Tensor,  # [tokens, num_heads * head_dim]
    tables: torch.Tensor,  # [rows, blocks]
    rows: torch.Tensor,  # [requests]
    query_starts: torch.Tensor,  # [requests + 1]
    kv_lens: torch.Tensor,  # [requests]
    tile_requests: torch.Tensor,  # [tiles] request of each tile, -1 where none
    tile_starts: torch.Tensor,  # [tiles] its first query token, counted within the step's tokens of the request
    tile_tokens: int,  # query tokens of a tile
    *,
    scale: float,
) -> None:
    """Attend causally for every query token of the tiles, into its line of `out`."""
    num_heads, dim = q.shape[1:]
    num_kv, page = kv.shape[2], kv.shape[3]
    flat = kv.view(-1, dim)
    pages = TensorDescriptor(flat, list(flat.shape), list(flat.stride()), [page, 64], gl.NVMMASharedLayout(128, 16, 2))
    _attend[(num_kv, len(tile_requests))](
        q, pages, out, tables, rows, query_starts, kv_lens, tile_requests, tile_starts, scale * LOG2_E,
        q.stride(0), tables.stride(0),
        NUM_KV=num_kv, GROUP=num_heads // num_kv, DIM=dim, PAGE=page, KEYS=BLOCK, TOKENS=tile_tokens,
        NUM_STAGES=STAGES, num_warps=4, launch_pdl=True,
    )  # fmt: skip
