"""A device made of dictionaries, and what it must agree with.

`FakeWorker` follows plans as the real one does: rows, block tables, a paged cache. Each cache slot holds the token
that was written there; the next token is a hash of what is read back *through the block table*. So a wrong block, a
stale slot, a lost row change or a shared block with another prefix changes the output. `expected_output` is the same
function of the tokens alone.
"""

from __future__ import annotations

import zlib
from array import array
from collections.abc import Sequence
from random import Random

from quire.engine.grammar import Masks, NoConstraints
from quire.engine.scheduler.request import Request
from quire.engine.scheduler.scheduler import Scheduler, Step
from quire.messages import AddRequest, StepPlan, StepResult, TokenLogprobs, unpack_ids

VOCAB = 64
POISON = -7
PLACEHOLDER = VOCAB - 1
"""The token of all positions of a picture."""


def vector(digest: bytes, offset: int) -> int:
    """What the cache holds where a picture is: unlike any token."""
    return 1000 + 100 * digest[0] + offset


def contents(message: AddRequest) -> list[int]:
    """What the cache holds of a prompt."""
    found = list(unpack_ids(message.prompt))
    for picture in message.pictures:
        found[picture.start : picture.end] = [vector(picture.digest, i) for i in range(picture.length)]
    return found


def next_token(tokens: Sequence[int], allowed: frozenset[int] | None = None) -> int:
    """The "model": a hash of everything before, moved to the next allowed token."""
    token = zlib.crc32(array("i", tokens).tobytes()) % VOCAB
    while allowed is not None and token not in allowed:
        token = (token + 1) % VOCAB
    return token


def allowed_after(tokens: Sequence[int]) -> frozenset[int]:
    """The "grammar": what may follow depends on the last token."""
    return frozenset(t for t in range(VOCAB) if (t + tokens[-1]) % 3 != 0)


def expected_output(message: AddRequest, *, constrained: int | None, max_model_len: int) -> tuple[list[int], str]:
    """Token ids and finish reason of a request served alone, one token at a time; constrained from that one on."""
    tokens, held = list(unpack_ids(message.prompt)), contents(message)
    prompt = len(tokens)
    limit = min(max_model_len, prompt + (message.params.max_tokens or max_model_len))
    while True:
        holds = constrained is not None and len(tokens) - prompt >= constrained
        tokens.append(next_token(held, allowed_after(tokens) if holds else None))
        held.append(tokens[-1])
        if tokens[-1] in message.stop_token_ids and len(tokens) - prompt > message.params.min_tokens:
            return tokens[prompt:], "stop"
        if len(tokens) >= limit:
            return tokens[prompt:], "length"


def expected_scores(message: AddRequest) -> list[TokenLogprobs]:
    """What `prompt_logprobs` gives: for each prompt token but the first, what was seen before it."""
    prompt, held = list(unpack_ids(message.prompt)), contents(message)
    return [score(held[:end], prompt[end]) for end in range(1, len(prompt))]


def score(seen: Sequence[int], token: int) -> TokenLogprobs:
    """The "log-probability" of a token: a hash of everything before it."""
    return TokenLogprobs([token], [float(next_token(seen))], len(seen))


class FakeGrammar(NoConstraints):
    """Constrains the requests whose ids it was given. Now and then a mask is late, or a constraint begins only after a
    few free tokens, as behind thoughts: then the request loses the token that was sampled without its mask.

    Args:
        constrained: from which output token on, by request id.
        late: how often a mask is late.
    """

    def __init__(self, scheduler: Scheduler, random: Random, late: float) -> None:
        self.constrained: dict[int, int] = {}
        self.num_lost = 0
        self._scheduler = scheduler
        self._random = random
        self._late = late
        self._held: list[Request] = []

    def poll(self) -> None:
        for request in [request for request in self._held if self._random.random() < 0.5]:
            self._held.remove(request)
            self._scheduler.release_hold(request)

    @property
    def waits(self) -> bool:
        return bool(self._held)

    def _holds(self, request: Request) -> bool:
        return request.num_output >= self.constrained.get(request.id, 1000)

    def mark(self, step: Step) -> None:
        samples = [share.request for share in step.shares if share.samples]
        step.plan.masked.extend(i for i, request in enumerate(samples) if self._holds(request))

    def masks(self, step: Step) -> Masks:
        masks: Masks = {}
        samples = (share for share in step.shares if share.samples)
        for index, share in enumerate(samples):
            request = share.request
            if request.state == "finished" or not self._holds(request):
                continue
            # every token before the one to sample is committed
            assert request.num_pending == 1 and share.end == request.known, (request.id, request.num_pending)
            if index not in step.plan.masked or self._random.random() < self._late:
                self._scheduler.hold(request, void=True)
                self._held.append(request)
                self.num_lost += 1
                continue
            bits = bytearray(VOCAB // 8)
            for token in allowed_after(request.tokens):
                bits[token // 8] |= 1 << token % 8
            masks[index] = bytes(bits)
        return masks


class FakePending:
    """Results that can be read once."""

    def __init__(self, result: StepResult) -> None:
        self._result = result

    def wait(self) -> StepResult:
        return self._result


class FakeWorker:
    """Follows plans. Raises if a plan breaks a rule that the real worker relies on."""

    def __init__(self, *, num_rows: int, num_blocks: int, block_size: int, max_tokens: int) -> None:
        self.block_size = block_size
        self.max_tokens = max_tokens
        self.cache = [POISON] * (num_blocks * block_size)
        self.tokens: list[list[int]] = [[] for _ in range(num_rows)]
        self.tables: list[list[int]] = [[] for _ in range(num_rows)]
        self.computed = [0] * num_rows
        self.scored = [0] * num_rows
        self.scores: dict[int, list[TokenLogprobs]] = {}
        self.logits: list[list[int]] = []
        self.slots: dict[int, bytes] = {}
        self.num_encoded = 0
        self.num_steps = 0

    def forward(self, plan: StepPlan) -> None:
        assert plan.step == self.num_steps, "steps must arrive in order"
        self.num_steps += 1
        assert len(set(plan.rows)) == len(plan.rows) > 0, "a row twice in one step"
        assert sum(plan.counts) <= self.max_tokens and min(plan.counts) > 0, "over budget, or an empty share"
        for new in plan.new_rows:
            self.tokens[new.row] = list(unpack_ids(new.tokens))
            self.computed[new.row] = new.num_computed
            self.tables[new.row] = []
            self.scored[new.row] = new.num_prompt if new.params.prompt_logprobs is not None else 0
        for blocks in plan.new_blocks:
            table = self.tables[blocks.row]
            assert len(table) == blocks.first and 0 not in blocks.blocks
            table.extend(blocks.blocks)
        # all writes come before all reads, as on a device where requests of a step do not see an order
        for row, start, count in zip(plan.rows, plan.starts, plan.counts, strict=True):
            assert self.computed[row] == start and start + count <= len(self.tokens[row])
            for position in range(start, start + count):
                self.cache[self._slot(row, position)] = self.tokens[row][position]
            self.computed[row] = start + count
        self._place(plan)
        self.scores = {}
        for index, (row, start, count) in enumerate(zip(plan.rows, plan.starts, plan.counts, strict=True)):
            for position in range(start, min(start + count, self.scored[row] - 1)):
                seen = [self.cache[self._slot(row, p)] for p in range(position + 1)]
                assert POISON not in seen, "scored from a slot that nobody wrote"
                self.scores.setdefault(index, []).append(score(seen, self.tokens[row][position + 1]))
        self.logits = [[self.cache[self._slot(row, p)] for p in range(self.computed[row])] for row in plan.rows]

    def _place(self, plan: StepPlan) -> None:
        """Encode the step's pictures, then write their vectors over the placeholders."""
        if not plan.pictures:
            return
        [pictures] = plan.pictures
        shares = {row: (start, start + n) for row, start, n in zip(plan.rows, plan.starts, plan.counts, strict=True)}
        for new in pictures.new:
            self.slots[new.slot] = new.picture.digest
            self.num_encoded += 1
        for placed in pictures.placed:
            start, end = shares[placed.row]
            assert start <= placed.start and placed.start + placed.count <= end, "placed outside of the step"
            for i in range(placed.count):
                self.cache[self._slot(placed.row, placed.start + i)] = vector(self.slots[placed.slot], placed.first + i)

    def sample(self, plan: StepPlan, masks: Masks) -> FakePending:
        sampled = []
        for index, sample in enumerate(plan.samples):
            seen = self.logits[sample]
            assert POISON not in seen, "read a slot that nobody wrote"
            mask = masks.get(index)
            allowed = frozenset(t for t in range(VOCAB) if mask[t // 8] >> t % 8 & 1) if mask else None
            token = next_token(seen, allowed)
            self.tokens[plan.rows[sample]].append(token)
            sampled.append(token)
        return FakePending(StepResult(sampled, {}, self.scores))

    def _slot(self, row: int, position: int) -> int:
        return self.tables[row][position // self.block_size] * self.block_size + position % self.block_size
