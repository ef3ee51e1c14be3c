"""The beginning and the end of a step on the device, in Triton.

Rows know everything but which of them run; so a step needs only that list from the host. A captured step reads it
from pinned host memory: a ring of slots, one per step in flight, of which the device counts the steps itself. The new
tokens go back the same way. So a step in which nobody comes or goes is one graph launch, and no copy at all.

    inbox   [slots, 2, most]   rows of the step | its new blocks, 0 where none        written by the host
    outbox  [slots, most]      new token ids                                           written by the device
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from quire.worker.kernels.launch import dependent_launch, padded


@triton.jit(
    do_not_specialize=["num_tokens", "num_requests", "null_row"],
    do_not_specialize_on_alignment=["rows", "query_starts", "requests", "input_ids", "positions", "slots", "kv_lens"],
)
def _gather(
    rows, query_starts, requests, computed, tokens, tables, input_ids, positions, slots, kv_lens,
    num_tokens, num_requests, null_row, tokens_stride, tables_stride,
    PAGE: tl.constexpr, BLOCK: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """Per token: its request, position, id and slot; per request: how much attention sees. All tokens of the null row
    are at position 0."""
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
    index = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    if PDL:
        tl.extra.cuda.gdc_wait()
    inside = index < num_tokens
    request = tl.load(requests + index, mask=inside, other=0)
    row = tl.load(rows + request, mask=inside, other=0).to(tl.int64)
    position = tl.load(computed + row, mask=inside, other=0) + index
    position -= tl.load(query_starts + request, mask=inside, other=0)
    position = tl.where(row == null_row, 0, position)
    tl.store(input_ids + index, tl.load(tokens + row * tokens_stride + position, mask=inside, other=0), mask=inside)
    tl.store(positions + index, position, mask=inside)
    block = tl.load(tables + row * tables_stride + position // PAGE, mask=inside, other=0).to(tl.int64)
    tl.store(slots + index, block * PAGE + position % PAGE, mask=inside)
    own = index < num_requests
    row = tl.load(rows + index, mask=own, other=0).to(tl.int64)
    count = tl.load(query_starts + index + 1, mask=own, other=0) - tl.load(query_starts + index, mask=own, other=0)
    tl.store(kv_lens + index, tl.load(computed + row, mask=own, other=0) + count, mask=own)


def gather(
    rows: torch.Tensor,  # [requests]
    query_starts: torch.Tensor,  # [requests + 1]
    requests: torch.Tensor,  # [tokens] request of each token
    computed: torch.Tensor,  # [rows]
    tokens: torch.Tensor,  # [rows, length]
    tables: torch.Tensor,  # [rows, blocks]
    block_size: int,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """(input_ids, positions, slots) of each token and kv_lens of each request; all int32 but the slots.

    The last row is the null row.
    """
    num_tokens, num_requests = len(requests), len(rows)
    # Zeros, for steps that compile and launch nothing: ids are looked up in the embedding.
    made = torch.zeros(2 * num_tokens + num_requests, dtype=torch.int32, device=rows.device)
    input_ids, positions, kv_lens = made.split([num_tokens, num_tokens, num_requests])
    slots = torch.empty(num_tokens, dtype=torch.int64, device=rows.device)
    _gather[(triton.cdiv(num_tokens, 128),)](
        rows, query_starts, requests, computed, tokens, tables, input_ids, positions, slots, kv_lens,
        num_tokens, num_requests, len(computed) - 1, tokens.stride(0), tables.stride(0),
        PAGE=block_size, BLOCK=128, num_warps=4, **dependent_launch(rows),
    )  # fmt: skip
    return input_ids, positions, slots, kv_lens


@triton.jit(
    do_not_specialize=["num", "most", "null_row", "num_slots"],
    do_not_specialize_on_alignment=["rows", "input_ids", "positions", "slots", "kv_lens"],
)
def _begin(
    inbox, counter, rows, computed, tokens, tables, input_ids, positions, slots, kv_lens,
    num, most, null_row, num_slots, tokens_stride, tables_stride,
    PAGE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One program: one token of each row in the inbox's current slot. The null row stays where it is."""
    index = tl.arange(0, BLOCK)
    inside = index < num
    slot = tl.load(counter) % num_slots
    row = tl.load(inbox + slot * 2 * most + index, mask=inside, other=0, volatile=True).to(tl.int64)
    block = tl.load(inbox + (slot * 2 + 1) * most + index, mask=inside, other=0, volatile=True)
    position = tl.load(computed + row, mask=inside, other=0)
    entry = tables + row * tables_stride + position // PAGE
    known = tl.load(entry, mask=inside, other=0)
    tl.store(entry, block, mask=inside & (block != 0))
    block = tl.where(block != 0, block, known).to(tl.int64)
    tl.store(rows + index, row.to(tl.int32), mask=inside)
    tl.store(input_ids + index, tl.load(tokens + row * tokens_stride + position, mask=inside, other=0), mask=inside)
    tl.store(positions + index, position, mask=inside)
    tl.store(slots + index, block * PAGE + position % PAGE, mask=inside)
    tl.store(kv_lens + index, position + 1, mask=inside)
    tl.store(computed + row, position + 1, mask=inside & (row != null_row))


def begin(
    inbox: torch.Tensor,  # [slots, 2, most] int32, pinned
    counter: torch.Tensor,  # [1] int64; steps ended so far
    rows: torch.Tensor,  # [n] int32, filled here, as are the next four
    input_ids: torch.Tensor,
    positions: torch.Tensor,
    slots: torch.Tensor,  # int64
    kv_lens: torch.Tensor,
    computed: torch.Tensor,  # [rows + 1], advanced here
    tokens: torch.Tensor,  # [rows + 1, length]
    tables: torch.Tensor,  # [rows + 1, blocks], new blocks are entered here
    block_size: int,
) -> None:
    """Inputs of a step in which every row runs one token. Row `len(computed) - 1` is padding."""
    num = len(rows)
    _begin[(1,)](
        inbox, counter, rows, computed, tokens, tables, input_ids, positions, slots, kv_lens,
        num, inbox.shape[2], len(computed) - 1, inbox.shape[0], tokens.stride(0), tables.stride(0),
        PAGE=block_size, BLOCK=padded(num), num_warps=4,
    )  # fmt: skip


@triton.jit(
    do_not_specialize=["num", "most", "null_row", "num_slots"], do_not_specialize_on_alignment=["token_ids", "rows"]
)
def _append(
    token_ids, rows, lens, tokens, outbox, counter, num, most, null_row, num_slots, tokens_stride,
    BLOCK: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """One program: new tokens go to the end of their rows and to the outbox; the step is over."""
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
    index = tl.arange(0, BLOCK)
    inside = index < num
    if PDL:
        tl.extra.cuda.gdc_wait()
    row = tl.load(rows + index, mask=inside, other=0).to(tl.int64)
    real = inside & (row != null_row)
    token = tl.load(token_ids + index, mask=inside, other=0).to(tl.int32)
    length = tl.load(lens + row, mask=real, other=0)
    tl.store(tokens + row * tokens_stride + length, token, mask=real)
    tl.store(lens + row, length + 1, mask=real)
    step = tl.load(counter)
    tl.store(outbox + (step % num_slots) * most + index, token, mask=inside)
    tl.debug_barrier()
    tl.store(counter, step + 1)


def append(
    token_ids: torch.Tensor,  # [n] int64
    rows: torch.Tensor,  # [n] int32
    lens: torch.Tensor,  # [rows + 1]
    tokens: torch.Tensor,  # [rows + 1, length]
    outbox: torch.Tensor,  # [slots, most] int32, pinned
    counter: torch.Tensor,  # [1] int64
) -> None:
    """The end of a captured step."""
    num = len(rows)
    _append[(1,)](
        token_ids, rows, lens, tokens, outbox, counter, num, outbox.shape[1], len(lens) - 1, outbox.shape[0],
        tokens.stride(0), BLOCK=padded(num), num_warps=4, **dependent_launch(token_ids),
    )  # fmt: skip


@triton.jit(do_not_specialize=["num", "null_row"], do_not_specialize_on_alignment=["rows", "kv_lens"])
def _advance(rows, kv_lens, computed, num, null_row, BLOCK: tl.constexpr, PDL: tl.constexpr):
    """One program: the step's tokens are in the cache."""
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
    index = tl.arange(0, BLOCK)
    inside = index < num
    if PDL:
        tl.extra.cuda.gdc_wait()
    row = tl.load(rows + index, mask=inside, other=0)
    tl.store(computed + row, tl.load(kv_lens + index, mask=inside, other=0), mask=inside & (row != null_row))


def advance(
    rows: torch.Tensor,  # [requests]
    kv_lens: torch.Tensor,  # [requests]
    computed: torch.Tensor,  # [rows + 1]
) -> None:
    """computed[rows] = kv_lens, but for the null row, the last one."""
    num = len(rows)
    _advance[(1,)](
        rows, kv_lens, computed, num, len(computed) - 1, BLOCK=padded(num), num_warps=4, **dependent_launch(rows)
    )
