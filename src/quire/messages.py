"""What crosses between the three houses: plain records, nothing that can run.

    frontend ── AddRequest, AbortRequests, ResetPrefixCache, Shutdown ──► engine ── StepPlan ──► worker
    frontend ◄── Ready, StartFailed, Outputs ───────────────────────────── engine ◄── StepResult ── worker

Token ids travel as little-endian int32 bytes (`pack_ids`): a 100k-token prompt is one copy, not 100k objects.
"""

from __future__ import annotations

import sys
from array import array
from collections.abc import Iterable
from typing import Literal

import msgspec

from quire.params import SamplingParams

if sys.byteorder != "little" or array("i").itemsize != 4:
    raise ImportError("token ids travel as little-endian int32, which this machine does not have")

FinishReason = Literal["stop", "length", "abort", "error"]


def pack_ids(token_ids: Iterable[int]) -> bytes:
    """Token ids as int32 bytes."""
    return array("i", token_ids).tobytes()


def unpack_ids(data: bytes) -> array[int]:
    """The inverse of `pack_ids`."""
    token_ids = array("i")
    token_ids.frombytes(data)
    return token_ids


# ---------------------------------------------------------------------------------------------------------------
# frontend → engine


class Grammar(msgspec.Struct, array_like=True, frozen=True):
    """What an answer may look like. Equal ones are compiled once.

    Args:
        kind: how to read the text: a JSON schema, a regular expression, a JSON list of texts, a grammar in Lark or
            GBNF, or Lark made from structural tags.
        text: the source.
        whitespace: between the parts of a JSON answer, as a regular expression; None for none at all.
        lenient: leave out what a JSON schema asks for and cannot be held to.
    """

    kind: Literal["json", "regex", "choice", "grammar", "tags"]
    text: str
    whitespace: str | None = None
    lenient: bool = False


class ReasoningGate(msgspec.Struct, array_like=True, frozen=True):
    """Where the thoughts of an answer are, which no grammar holds.

    Args:
        inside: the answer begins with them.
        openers: tokens that begin them if they come first.
        ends: token ids that end them.
    """

    inside: bool = False
    openers: list[int] = []
    ends: list[list[int]] = []


class Constraint(msgspec.Struct, array_like=True, frozen=True):
    """One request's answer follows a grammar.

    Args:
        grammar: which.
        param: the request's field that it came from, for errors.
        gate: what comes before.
        min_tokens: no end token before so many, unless nothing else can follow; `params.min_tokens` is 0 then.
        endless: no end token at all, unless nothing else can follow.
    """

    grammar: Grammar
    param: str
    gate: ReasoningGate | None = None
    min_tokens: int = 0
    endless: bool = False


class Picture(msgspec.Struct, array_like=True, frozen=True):
    """A picture in a prompt, made ready for the vision tower.

    Args:
        start, length: the positions of the prompt that its vectors take.
        digest: SHA-256 of what follows; equal pictures are encoded once, and share prefix blocks.
        height, width: of the pixels.
        pixels: [height, width, 3], a byte each.
    """

    start: int
    length: int
    digest: bytes
    height: int
    width: int
    pixels: bytes

    @property
    def end(self) -> int:
        """The position after its last one."""
        return self.start + self.length


class AddRequest(msgspec.Struct, tag="add", array_like=True, frozen=True):
    """Run this prompt. The frontend has checked everything in it.

    Args:
        id: chosen by the frontend, never used again.
        prompt: `pack_ids` of at least one token.
        params: sampling values; `max_tokens` is resolved (never None), `seed` is set, `structured_outputs` is not.
        stop_token_ids: every token id that ends the output, the model's end tokens included.
        priority: smaller runs earlier under the priority policy.
        cache_salt: requests share prefix blocks only with requests of the same salt.
        group: requests of one group, from 0 on, have the same prompt: the first computes it, the others take its
            blocks, whether or not there is a prefix cache. -1 is no group.
        constraint: what the answer may look like; None leaves it free.
        tenant: who asks, where the engine is shared out between several; a name of the operator's.
        start_by: monotonic seconds of this machine; one that has not begun by then ends unbegun. 0 is no such time.
        pictures: in the prompt, in the order of their positions.
    """

    id: int
    prompt: bytes
    params: SamplingParams
    stop_token_ids: list[int] = []
    priority: int = 0
    cache_salt: str = ""
    group: int = -1
    constraint: Constraint | None = None
    tenant: str = ""
    start_by: float = 0.0
    pictures: list[Picture] = []


class AbortRequests(msgspec.Struct, tag="abort", array_like=True, frozen=True):
    """Forget these requests; those that have ended already are ignored."""

    ids: list[int]


class ResetPrefixCache(msgspec.Struct, tag="reset_prefix_cache", array_like=True, frozen=True):
    """Forget all cached prefixes that no running request holds."""


class Shutdown(msgspec.Struct, tag="shutdown", array_like=True, frozen=True):
    """End the engine process now; what still runs is dropped."""


class Ping(msgspec.Struct, tag="ping", array_like=True, frozen=True):
    """Take a turn, even if there is nothing to do: that is how a hung engine is known from an idle one."""


ToEngine = AddRequest | AbortRequests | ResetPrefixCache | Shutdown | Ping


# ---------------------------------------------------------------------------------------------------------------
# engine → frontend


class TokenLogprobs(msgspec.Struct, array_like=True, frozen=True):
    """Log-probabilities at one position, from the raw logits.

    `token_ids[0]` is the chosen token with rank `rank` (1 = most likely); the rest are the most likely ones in order.
    """

    token_ids: list[int]
    logprobs: list[float]
    rank: int


class TokenOutput(msgspec.Struct, array_like=True, frozen=True):
    """New tokens of one request; `finish_reason` is set exactly once in a request's life."""

    id: int
    token_ids: list[int]
    finish_reason: FinishReason | None = None
    num_cached_tokens: int = 0
    logprobs: list[TokenLogprobs] | None = None
    queued_s: float = 0.0
    """Seconds between arrival in the engine and the first step; sent with the first output."""
    error: str | None = None
    prompt_logprobs: list[TokenLogprobs] | None = None
    """Of the prompt's next tokens, the second one first: they come in parts, all before the first new token."""
    param: str | None = None
    """The request's field that the error is about, if the request is to blame."""
    late: bool = False
    """It ended because it had not begun by its `start_by`."""


class EngineStats(msgspec.Struct, array_like=True, frozen=True):
    """Gauges as of now, and counters since the start."""

    num_running: int = 0
    num_waiting: int = 0
    kv_usage: float = 0.0
    num_preemptions: int = 0
    prefix_queries: int = 0
    prefix_hits: int = 0
    num_steps: int = 0
    num_step_tokens: int = 0
    """Tokens run in all steps."""
    full: bool = False
    """Whether the next in line waits for a row or for blocks."""
    picture_queries: int = 0
    """Pictures that requests came to in their prompts,"""
    picture_hits: int = 0
    """and those among them that were encoded already."""


class Outputs(msgspec.Struct, tag="outputs", array_like=True, frozen=True):
    """What one step brought."""

    outputs: list[TokenOutput]
    stats: EngineStats


class Ready(msgspec.Struct, tag="ready", array_like=True, frozen=True):
    """The engine takes requests; facts for the banner and for validation."""

    device: str
    dtype: str
    weights_bytes: int
    kv_bytes: int
    num_blocks: int
    block_size: int
    max_model_len: int
    max_num_seqs: int
    max_num_batched_tokens: int
    mixed_sizes: list[int]
    mixed_patience: int
    mixed_alone: int
    vocab_size: int
    seconds: dict[str, float]


class Progress(msgspec.Struct, tag="progress", array_like=True, frozen=True):
    """How far loading is; `done` and `total` in bytes."""

    stage: str
    done: int
    total: int


class StartFailed(msgspec.Struct, tag="start_failed", array_like=True, frozen=True):
    """The engine could not start; `message` names the cause and the setting that would work."""

    message: str
    kind: Literal["config", "startup", "internal"]


class EngineFailed(msgspec.Struct, tag="engine_failed", array_like=True, frozen=True):
    """The last words of an engine that cannot go on: what clients may know, and the error itself."""

    message: str
    detail: str


FromEngine = Outputs | Ready | Progress | StartFailed | EngineFailed


# ---------------------------------------------------------------------------------------------------------------
# engine → worker and back


class NewRow(msgspec.Struct, array_like=True, frozen=True):
    """A request takes a row.

    tokens: [0, num_computed) are in the KV cache already | [num_computed, len) are to run.
    """

    row: int
    tokens: bytes
    num_prompt: int
    num_computed: int
    params: SamplingParams
    stop_token_ids: list[int]


class NewBlocks(msgspec.Struct, array_like=True, frozen=True):
    """Entries [first, first + len(blocks)) of the row's block table."""

    row: int
    first: int
    blocks: list[int]


class NewPicture(msgspec.Struct, array_like=True, frozen=True):
    """A picture to encode; its vectors go to a slot, whatever was there before."""

    slot: int
    picture: Picture


class PlacedPicture(msgspec.Struct, array_like=True, frozen=True):
    """Positions [start, start + count) of a row take vectors [first, first + count) of a slot."""

    row: int
    start: int
    first: int
    count: int
    slot: int


class PictureStep(msgspec.Struct, array_like=True, frozen=True):
    """What a step does with pictures: first encode, then put in place."""

    new: list[NewPicture]
    placed: list[PlacedPicture]


class StepPlan(msgspec.Struct, array_like=True, frozen=True):
    """One step: row changes, then which rows run how many tokens. `starts`, `rows` and `counts` run in parallel.

    starts: tokens computed before this step; an upper bound where the device may have rejected some.
    samples: indices into `rows` of those whose last token of the step yields a new token.
    masked: indices into `samples` of those that must not be sampled before their masks are there.
    pictures: what there is to do with pictures; mostly nothing.
    """

    step: int
    new_rows: list[NewRow]
    new_blocks: list[NewBlocks]
    rows: list[int]
    starts: list[int]
    counts: list[int]
    samples: list[int]
    masked: list[int] = []
    pictures: list[PictureStep] = []


class StepResult(msgspec.Struct, array_like=True, frozen=True):
    """New token ids in the order of `StepPlan.samples`, with log-probabilities where asked for."""

    token_ids: list[int]
    logprobs: dict[int, TokenLogprobs] = {}
    """Keyed by index into `samples`."""
    prompt_logprobs: dict[int, list[TokenLogprobs]] = {}
    """Keyed by index into `rows`: of the prompt tokens at positions starts[index] + 1 and on."""
