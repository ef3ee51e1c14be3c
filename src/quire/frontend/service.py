"""TextService: requests of text in, streams of text out. The server and `LLM` both stand on it.

    prompt or messages ── prepare: tokens, limits, defaults ──► PreparedRequest ── start ──► a RequestStream per choice

Every user error is found in `prepare`, before anything is sent to the engine.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from copy import copy
from dataclasses import dataclass, field
from typing import Any, Protocol

from quire.bounds import ThinkingLimit
from quire.checkpoint import ModelFacts
from quire.errors import RequestError, UnavailableError
from quire.frontend.candidates import candidates
from quire.frontend.fitting import CONTEXT_CODE, Fit
from quire.frontend.media import Media, TextOnly
from quire.frontend.media import Ready as ReadyPicture
from quire.frontend.parsers import Parser, ToolPlan, detect, find_thoughts, make_parser
from quire.frontend.repetition import RepetitionWatch
from quire.frontend.streams import RequestStream
from quire.frontend.structured import HeldTo, gate_of, grammar_of
from quire.frontend.templates import ChatTemplate
from quire.frontend.tokenizer import Tokenizer
from quire.messages import Constraint, EngineStats, Picture, Ready
from quire.observability.metrics import Metrics
from quire.params import SamplingParams
from quire.ranges import MAX_LOGPROBS
from quire.structured import StructuredOutputsParams

CHARS_OF_TOKEN = 16
"""More than a token of usual text has: the beginning of a long prompt that is read before the rest."""
MARGIN = 64
"""Tokens by which a text may have fewer than its beginning alone: words are cut there."""
LAST_TOKENS = 64
"""Of a prompt of token ids, to see whether it ends inside of thoughts."""
_FROM_GENERATION_CONFIG = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")


class EngineClient(Protocol):
    """What the service asks of `client.Client`."""

    ready: Ready | None
    stats: EngineStats
    dead: bool
    reason: str

    def submit(
        self,
        prompt_ids: Sequence[int],
        params: SamplingParams,
        stream: RequestStream,
        *,
        stop_token_ids: list[int],
        priority: int = 0,
        cache_salt: str = "",
        first: RequestStream | None = None,
        constraint: Constraint | None = None,
        tenant: str = "",
        start_by: float = 0.0,
        pictures: Sequence[Picture] = (),
    ) -> None: ...


class Follower(Protocol):
    """Told how a request gets on."""

    def begun(self, waited_s: float) -> None:
        """The first token came, after so many seconds in the engine's line."""

    def ended(self, tokens: int) -> None:
        """A completion has ended, after so many tokens."""


@dataclass(slots=True)
class PreparedRequest:
    """A request that has passed every check.

    Attributes:
        prompt_ids: at least one token, all in the vocabulary.
        params: `max_tokens` is a number that fits the context.
        stop_token_ids: every id that ends the output, the model's own included.
        prompt: the text, None if the prompt came as ids.
        name: the id that log lines show.
        arrival: monotonic seconds.
        markers: special tokens that whoever reads the answer wants to see in its text.
        constraint: what the answer may look like.
        tenant: who asks, where the engine is shared out.
        start_by: monotonic seconds; not begun by then it ends. 0 is never.
        follower: told how it gets on.
        pictures: where in the prompt they are.
    """

    prompt_ids: list[int]
    params: SamplingParams
    stop_token_ids: list[int]
    prompt: str | None = None
    priority: int = 0
    cache_salt: str = ""
    name: str = ""
    arrival: float = field(default_factory=time.monotonic)
    markers: tuple[str, ...] = ()
    constraint: Constraint | None = None
    tenant: str = ""
    start_by: float = 0.0
    follower: Follower | None = None
    pictures: Sequence[Picture] = ()


class TextService:
    """Owns what turns text into requests for one model.

    Args:
        tokenizer: the model's.
        template: its chat template; may be empty.
        facts: of config.json and generation_config.json.
        client: the engine; must be ready before `prepare` is called.
        seed: where the seeds of requests that bring none come from.
        use_generation_config: take default sampling values from generation_config.json.
        metrics: counts every request; None counts nothing.
        stream_interval: tokens in a piece of a stream.
        max_logprobs: most log-probabilities per token; -1 is no limit.
        by_priority: whether the engine minds the priority of requests.
        tool_parser, reasoning_parser: names; None finds them from the template and the model's type.
        media: what knows about the model's pictures; default: it takes none.

    Raises:
        ConfigError: there is no parser of that name.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        template: ChatTemplate,
        facts: ModelFacts,
        client: EngineClient,
        *,
        seed: int = 0,
        use_generation_config: bool = True,
        metrics: Metrics | None = None,
        stream_interval: int = 1,
        max_logprobs: int = MAX_LOGPROBS,
        by_priority: bool = False,
        tool_parser: str | None = None,
        reasoning_parser: str | None = None,
        media: Media | None = None,
    ) -> None:
        self.tokenizer = tokenizer
        self.media: Media = media or TextOnly()
        self.template = template
        self.client = client
        self.default_sampling = _default_sampling(facts.sampling if use_generation_config else {})
        self.default_max_tokens = _whole(facts.sampling.get("max_new_tokens")) if use_generation_config else None
        self.end_token_ids = tuple(facts.eos_token_ids) or tokenizer.end_token_ids()
        model_type = facts.config.values.get("model_type")
        found = detect(template.source, model_type if isinstance(model_type, str) else None, facts.architectures)
        self.tool_parser, self.reasoning_parser = tool_parser or found[0], reasoning_parser or found[1]
        self.answer_parser(ToolPlan("auto"), "")  # a wrong name is told now
        self.max_logprobs = max_logprobs
        self.by_priority = by_priority
        self._metrics = metrics
        self._stream_interval = stream_interval
        self._random = random.Random(seed)
        self._pool = ThreadPoolExecutor(max_workers=4, thread_name_prefix="quire-template")

    def close(self) -> None:
        """Give back the threads."""
        self._pool.shutdown(wait=False, cancel_futures=True)
        self.media.close()
        self.tokenizer.close()

    def answer_parser(self, plan: ToolPlan, prompt: str | None) -> Parser:
        """What reads one answer to this prompt: reasoning, tool calls, and the rest."""
        return make_parser(plan, tool_parser=self.tool_parser, reasoning_parser=self.reasoning_parser, prompt=prompt)

    # ---- facts ---------------------------------------------------------------------------------------------------

    @property
    def max_model_len(self) -> int:
        """Most tokens of prompt and output together."""
        return self._ready.max_model_len

    @property
    def vocab_size(self) -> int:
        """Number of token ids."""
        return self._ready.vocab_size

    @property
    def fit(self) -> Fit:
        """What requests are checked against."""
        return Fit(self.max_model_len, self.vocab_size, self.max_logprobs)

    @property
    def _ready(self) -> Ready:
        if self.client.ready is None:
            raise UnavailableError("The model is still loading.")
        return self.client.ready

    def default_params(self) -> SamplingParams:
        """What a request gets that says nothing: generation_config.json decides."""
        values: dict[str, Any] = dict(self.default_sampling)
        if self.default_max_tokens is not None:
            values["max_tokens"] = self.default_max_tokens
        return SamplingParams(**values)

    # ---- text → tokens -------------------------------------------------------------------------------------------

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """Token ids of a prompt's text; refused unread when it cannot possibly fit."""
        self._check_text_len(text)
        return self.tokenizer.encode(text, add_special_tokens=add_special_tokens)

    async def encode_async(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """The same, without holding up the event loop."""
        self._check_text_len(text)
        return await self.tokenizer.encode_async(text, add_special_tokens=add_special_tokens)

    async def encode_any_async(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """The same for a text that need not be a prompt: it may be longer than the context, within reason."""
        self._check_text_len(text, 4 * CHARS_OF_TOKEN)
        return await self.tokenizer.encode_async(text, add_special_tokens=add_special_tokens)

    async def encode_many_async(self, texts: Sequence[str], *, add_special_tokens: bool = True) -> list[list[int]]:
        """Token ids of several prompts, in their order, without holding up the event loop."""
        for text in texts:
            self._check_text_len(text)
        return await self.tokenizer.encode_many_async(texts, add_special_tokens=add_special_tokens)

    async def encode_prompts_async(
        self, texts: Sequence[str], *, add_special_tokens: bool = True, cut: bool = False, param: str = "prompt"
    ) -> list[list[int]]:
        """The same for what is to be a prompt: one that is far too long is refused after reading its beginning.

        cut: it is cut to size afterwards, so it may be as long as it likes.
        """
        size = CHARS_OF_TOKEN * self.max_model_len
        for text in () if cut else texts:
            if len(text) > 2 * size:
                beginning = await self.tokenizer.encode_async(text[:size], add_special_tokens=False)
                if len(beginning) > self.max_model_len + MARGIN:
                    raise RequestError(
                        f"The prompt has {len(text)} characters, of which the first {size} are {len(beginning)} tokens "
                        f"already; the context holds {self.max_model_len} (--max-model-len).",
                        param=param,
                        code=CONTEXT_CODE,
                    )
        return await self.encode_many_async(texts, add_special_tokens=add_special_tokens)

    def render_chat(self, messages: Sequence[Mapping[str, Any]], *, template: str | None = None, **options: Any) -> str:
        """The prompt text of a conversation; `options` as in `ChatTemplate.render`.

        Its special tokens are in the text already: encode it with add_special_tokens=False.

        template: a Jinja template's text, instead of the model's own.
        """
        if len(messages) > self.max_model_len:  # a token for each is not too much to expect
            raise RequestError(
                f"There are {len(messages)} messages; the context holds {self.max_model_len} tokens (--max-model-len).",
                param="messages",
                code=CONTEXT_CODE,
            )
        chosen = self.template if template is None else ChatTemplate(template, self.tokenizer.special_tokens)
        return chosen.render(self.media.for_template(chosen, messages), **options)

    async def render_chat_async(self, messages: Sequence[Mapping[str, Any]], **options: Any) -> str:
        """The same in a thread, since a template may take its time."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._pool, lambda: self.render_chat(messages, **options))

    def _check_text_len(self, text: str, chars: int = 512) -> None:
        """A token is at least one byte, mostly more; the longest in any known vocabulary has under 512 characters."""
        if len(text) > chars * self.max_model_len:
            raise RequestError(
                f"The prompt has {len(text)} characters; the context holds {self.max_model_len} tokens.",
                code=CONTEXT_CODE,
            )

    # ---- prepare -------------------------------------------------------------------------------------------------

    def prepare(
        self,
        prompt: str | Sequence[int],
        params: SamplingParams,
        *,
        add_special_tokens: bool = True,
        text: str | None = None,
        param: str = "prompt",
        default_max_tokens: int | None = None,
        priority: int = 0,
        cache_salt: str = "",
        name: str = "",
        arrival: float | None = None,
        markers: tuple[str, ...] = (),
        grammar: HeldTo | None = None,
        thinks: bool = False,
        pictures: Sequence[ReadyPicture] = (),
    ) -> PreparedRequest:
        """Check a request against the model and fill what it leaves open.

        Args:
            prompt: text, or token ids.
            params: not changed; `max_tokens=None` means as many as fit.
            add_special_tokens: whether a text gets the tokens around it that the checkpoint asks for.
            text: the text that the ids in `prompt` came from, if any.
            param: the field to name in errors about the prompt.
            default_max_tokens: where `params.max_tokens` is None, at most this many.
            priority: smaller runs earlier under the priority policy.
            cache_salt: shares prefix blocks only with the same salt.
            name: an id for the log.
            arrival: monotonic seconds; default now.
            markers: special tokens that stay in the text of the answer.
            grammar: what the answer is held to; default: what params.structured_outputs say.
            thinks: the answer may begin with thoughts, which no grammar holds.
            pictures: one for each placeholder in the prompt.

        Raises:
            RequestError: with the field, what was seen and the limit.
            UnavailableError: the model is still loading.
        """
        arrival = time.monotonic() if arrival is None else arrival
        if isinstance(prompt, str):
            text, prompt = prompt, self.encode(prompt, add_special_tokens=add_special_tokens)
        fit = self.fit
        whole, placed = self.media.placed(fit.checked_ids(prompt, param), pictures, param)
        prompt_ids = fit.truncated(whole, params, default_max_tokens)
        if placed and prompt_ids is not whole:
            raise RequestError(
                f"truncate_prompt_tokens: the prompt has {len(whole)} tokens, and with pictures in it none is cut off.",
                param="truncate_prompt_tokens",
            )
        params = copy(params)
        params.max_tokens = fit.max_tokens(len(prompt_ids), params, param, default_max_tokens)
        if params.thinking_token_budget is not None:
            params.thinking_limit = self._thinking_limit(params.thinking_token_budget, text, prompt_ids)
        if params.bad_words:
            params.bad_words_token_ids = params.bad_words_token_ids + self._bad_words(params.bad_words)
        fit.check_params(params)
        held = grammar is not None or params.structured_outputs is not None
        ends = () if params.ignore_eos and not held else self.end_token_ids
        return PreparedRequest(
            prompt_ids,
            params,
            list(dict.fromkeys((*params.stop_token_ids, *ends))),
            text,
            priority,
            cache_salt,
            name,
            arrival,
            markers,
            self._constraint(params, grammar, text if thinks else None),
            pictures=placed,
        )

    def held_to(self, wanted: StructuredOutputsParams) -> HeldTo:
        """The grammar that a request asks for.

        Raises:
            RequestError: it is too large, or not of the right shape.
        """
        return HeldTo(grammar_of(wanted, self.tokenizer), wanted.source)

    def _constraint(self, params: SamplingParams, held: HeldTo | None, prompt: str | None) -> Constraint | None:
        wanted, params.structured_outputs = params.structured_outputs, None
        if held is None and wanted is not None:
            held = self.held_to(wanted)
        if held is None:
            return None
        if not self.end_token_ids:
            raise RequestError(f"{held.param}: this model has no end token, so no answer can be whole.", held.param)
        thoughts = find_thoughts(self.reasoning_parser, prompt) if prompt is not None else None
        gate = gate_of(thoughts, self.tokenizer) if thoughts is not None else None
        return Constraint(held.grammar, held.param, gate, params.min_tokens, params.ignore_eos)

    def _thinking_limit(self, budget: int, text: str | None, prompt_ids: Sequence[int]) -> ThinkingLimit | None:
        """In tokens; None where this prompt lets the model think no more."""
        name = "thinking_token_budget"
        if self.reasoning_parser is None:
            raise RequestError(f"{name}: this model shows no thoughts that could be bounded.", param=name)
        end = self.tokenizer.decode(prompt_ids[-LAST_TOKENS:], skip_special_tokens=False) if text is None else text
        gate = gate_of(find_thoughts(self.reasoning_parser, end), self.tokenizer)
        return ThinkingLimit(budget, gate.ends[0], gate.inside, gate.openers) if gate is not None else None

    def _bad_words(self, words: Sequence[str]) -> list[list[int]]:
        """Token ids of each word, as it stands at the beginning of a text and after a space."""
        found = []
        for word in words:
            forms = (self.tokenizer.encode(form, add_special_tokens=False) for form in (word, " " + word.lstrip()))
            found += [list(ids) for ids in dict.fromkeys(tuple(ids) for ids in forms if ids)]
        return found

    # ---- start ---------------------------------------------------------------------------------------------------

    def start(self, prepared: PreparedRequest) -> list[RequestStream]:
        """Send a request to the engine; one stream per candidate. Whoever called closes them.

        The first computes the prompt, and scores it if that is asked for; the others share its blocks.

        Raises:
            UnavailableError: the engine is not up, or has ended.
        """
        params = prepared.params
        count = params.num_candidates
        detokenizers = self.tokenizer.detokenizers(params, count, prepared.markers)
        streams: list[RequestStream] = []
        first: RequestStream | None = None
        try:
            for detokenizer, one in zip(detokenizers, candidates(params, self._random), strict=True):
                if prepared.constraint is not None:
                    one.min_tokens = 0  # the grammar sees to it, unless nothing but the end can follow
                watch = None if params.repetition_detection is None else RepetitionWatch(params.repetition_detection)
                interval = params.stream_interval or self._stream_interval
                stream = RequestStream(detokenizer, self.end_token_ids, self.observer(prepared), interval, watch)
                first = first or (stream if count > 1 else None)
                self.client.submit(
                    prepared.prompt_ids,
                    one,
                    stream,
                    stop_token_ids=prepared.stop_token_ids,
                    priority=prepared.priority,
                    cache_salt=prepared.cache_salt,
                    first=first,
                    constraint=prepared.constraint,
                    tenant=prepared.tenant,
                    start_by=prepared.start_by,
                    pictures=prepared.pictures,
                )
                streams.append(stream)
        except BaseException:
            for stream in streams:
                stream.close()
            raise
        return streams

    def observer(self, prepared: PreparedRequest) -> Any:
        """What counts this request's tokens, if anything does."""
        if self._metrics is None:
            return None
        return self._metrics.start_request(
            len(prepared.prompt_ids), name=prepared.name, arrival=prepared.arrival, follower=prepared.follower
        )


def _default_sampling(found: Mapping[str, float | int]) -> dict[str, float | int]:
    """The sampling values among what generation_config.json says."""
    return {name: found[name] for name in _FROM_GENERATION_CONFIG if name in found}


def _whole(value: float | None) -> int | None:
    return None if value is None else int(value)
