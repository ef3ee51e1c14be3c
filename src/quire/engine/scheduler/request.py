"""Request: what the engine knows of one request. Counts only; the scheduler is the one who changes them.

tokens, in order   prompt ........... | output .......... |
                   [0, computed) planned into steps | [computed, known) to run | pending: sampled, not yet seen

known = len(tokens),  want = known + pending - computed
"""

from __future__ import annotations

from array import array
from typing import Literal

from quire.engine.kv.hashing import Digest
from quire.messages import AddRequest, FinishReason, unpack_ids

NO_ROW = -1
State = Literal["held", "waiting", "running", "finished"]


class Request:
    """One request's counts.

    Attributes:
        seq: order of arrival; keeps its place when the request is preempted.
        max_tokens: prompt and output together may reach this many.
        num_computed: tokens planned into steps so far.
        num_pending: tokens sampled, or about to be, that the host has not seen.
        num_cached: tokens that the prefix cache gave at the latest admission.
        void_epoch: a token that was sampled before this many preemptions and not seen yet is thrown away.
        needs_free: free blocks that the last failed admission asked for; no use trying with fewer.
        group: of requests with the same prompt; -1 is none.
        stale: the device may not have the row as it is here; it is written anew.
        tenant: who asks; the scheduler shares the device out between tenants.
        start_by: on the scheduler's clock; not begun by then it ends. 0 is never.
        pictures: in the prompt, in the order of their positions; mostly none.
        num_scored: prompt tokens whose log-probability was given out, where they are asked for; the first has none.
    """

    __slots__ = (
        "arrival",
        "blocks",
        "cache_salt",
        "digests",
        "finish_reason",
        "group",
        "id",
        "max_tokens",
        "min_tokens",
        "needs_free",
        "num_cached",
        "num_computed",
        "num_pending",
        "num_preemptions",
        "num_prompt",
        "num_remembered",
        "num_scored",
        "params",
        "parent_serial",
        "pictures",
        "priority",
        "row",
        "seq",
        "stale",
        "start_by",
        "started",
        "state",
        "stop_token_ids",
        "tenant",
        "tokens",
        "void_epoch",
    )

    def __init__(self, message: AddRequest, *, seq: int, max_model_len: int, arrival: float) -> None:
        self.id = message.id
        self.params = message.params
        self.priority = message.priority
        self.cache_salt = message.cache_salt
        self.group = message.group
        self.tenant = message.tenant
        self.start_by = message.start_by
        self.pictures = message.pictures
        self.stop_token_ids = frozenset(message.stop_token_ids)
        self.tokens: array[int] = unpack_ids(message.prompt)
        self.num_prompt = len(self.tokens)
        output = message.params.max_tokens
        self.max_tokens = min(max_model_len, self.num_prompt + output) if output is not None else max_model_len
        self.min_tokens = self.num_prompt + message.params.min_tokens
        self.seq = seq
        self.arrival = arrival
        self.started: float | None = None
        self.state: State = "held"
        self.finish_reason: FinishReason | None = None
        self.row = NO_ROW
        self.stale = False
        self.num_computed = 0
        self.num_pending = 0
        self.num_preemptions = 0
        self.num_cached = 0
        self.num_scored = 1
        self.needs_free = 0
        self.void_epoch = -1
        # kept by the KV manager
        self.blocks: list[int] = []
        self.digests: list[Digest] = []
        self.num_remembered = 0
        self.parent_serial = -1

    @property
    def known(self) -> int:
        """Tokens whose ids the host has."""
        return len(self.tokens)

    @property
    def num_output(self) -> int:
        """Generated tokens whose ids the host has."""
        return len(self.tokens) - self.num_prompt

    @property
    def num_readable(self) -> int:
        """Tokens that may come from the prefix cache; the others must run, at least the last one, for their logits.

        To score token t the one before it must run: those up to num_scored - 2 are not needed any more.
        """
        if self.params.skip_reading_prefix_cache:
            return 0
        if self.params.prompt_logprobs is not None and self.num_scored < self.num_prompt:
            return self.num_scored - 1
        return self.known - 1

    @property
    def want(self) -> int:
        """Tokens that could run now; 0 once the length limit is certain to be reached."""
        total = self.known + self.num_pending
        return 0 if total >= self.max_tokens else total - self.num_computed

    def ends_with(self, token: int) -> FinishReason | None:
        """Why the request is over now that `token` was appended, or None."""
        if token in self.stop_token_ids and self.known > self.min_tokens:
            return "stop"
        return "length" if self.known >= self.max_tokens else None
