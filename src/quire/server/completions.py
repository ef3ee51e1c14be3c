"""POST /v1/completions."""

from __future__ import annotations

from typing import Any

from quire.frontend.service import PreparedRequest
from quire.frontend.streams import Delta
from quire.frontend.validate import CompletionRequest
from quire.messages import TokenLogprobs
from quire.server.generate import Call, ChoiceWriter, GenerateRoute, with_usage
from quire.server.logprobs import CompletionShape, prompt_logprobs
from quire.server.outcome import nothing_after
from quire.server.sse import ChunkWriter, event

DEFAULT_MAX_TOKENS = 16


class Completions(GenerateRoute[CompletionRequest]):
    """Prompts in, their continuations out. Choice index = prompt index * n + choice of that prompt."""

    kind = CompletionRequest
    id_prefix = "cmpl"
    answer_object = "text_completion"
    chunk_object = "text_completion"

    async def prepare(self, call: Call[CompletionRequest]) -> list[PreparedRequest]:
        params = call.request.sampling_params(call.service.default_sampling)
        add_special_tokens = call.request.add_special_tokens is not False
        prepared = []
        prompts = call.request.prompts()
        texts = [prompt for prompt in prompts if isinstance(prompt, str)]
        cut = call.request.truncate_prompt_tokens is not None
        found = await call.service.encode_prompts_async(texts, add_special_tokens=add_special_tokens, cut=cut)
        encoded = iter(found)
        for prompt in prompts:
            text = prompt if isinstance(prompt, str) else None
            ids = next(encoded) if isinstance(prompt, str) else prompt
            prepared.append(
                call.service.prepare(
                    ids,
                    params,
                    text=text,
                    default_max_tokens=DEFAULT_MAX_TOKENS,
                    priority=call.request.priority,
                    cache_salt=call.request.cache_salt,
                    name=call.id,
                    arrival=call.arrival,
                )
            )
        return prepared

    def choice(self, call: Call[CompletionRequest], index: int, delta: Delta) -> dict[str, Any]:
        request = call.request
        echo = _Echo.of(call, index)
        delta = nothing_after(delta) if request.only_prompt else delta
        return {
            "index": index,
            "text": (echo.text if echo else "") + delta.text,
            "logprobs": _shape(call).of(delta.logprobs, echo.scored(call, index) if echo else None),
            "finish_reason": delta.finish_reason,
            "stop_reason": delta.stop_reason,
            **({"token_ids": delta.token_ids} if request.return_token_ids else {}),
            **_of_prompt(call, index),
        }

    def writer(self, call: Call[CompletionRequest], index: int) -> ChoiceWriter:
        return _TextWriter(call, index)


def _shape(call: Call[CompletionRequest]) -> CompletionShape:
    request = call.request
    return CompletionShape(
        call.service.tokenizer,
        request.shown_logprobs(),
        prompt_count=request.logprobs,
        as_ids=request.return_tokens_as_token_ids,
    )


def _of_prompt(call: Call[CompletionRequest], index: int) -> dict[str, Any]:
    """What a choice, or the first chunk of one, tells about its prompt."""
    request, found = call.request, dict[str, Any]()
    if request.prompt_logprobs is not None:
        entries = call.first_stream(index).prompt_logprobs
        found["prompt_logprobs"] = prompt_logprobs(call.service.tokenizer, entries, request.prompt_logprobs)
    if request.return_token_ids:
        found["prompt_token_ids"] = call.prompt(index).prompt_ids
    return found


class _Echo:
    """The prompt in front of its completion.

    Attributes:
        text: as it was given, or of the token ids that were given or left.
    """

    def __init__(self, call: Call[CompletionRequest], index: int) -> None:
        request, prepared = call.request, call.prompt(index)
        given = prepared.prompt if request.truncate_prompt_tokens is None else None
        decode = call.service.tokenizer.decode
        self.text = decode(prepared.prompt_ids, request.skip_special_tokens) if given is None else given

    @classmethod
    def of(cls, call: Call[CompletionRequest], index: int) -> _Echo | None:
        """None if the request wants none."""
        return cls(call, index) if call.request.echo else None

    def scored(self, call: Call[CompletionRequest], index: int) -> tuple[str, list[int], list[TokenLogprobs]] | None:
        """Text, tokens and their log-probabilities, if the request wants those."""
        if call.request.logprobs is None:
            return None
        return self.text, call.prompt(index).prompt_ids, call.first_stream(index).prompt_logprobs


class _TextWriter(ChoiceWriter):
    """First chunk: what is asked about the prompt; last chunk: finish_reason."""

    __slots__ = ("_call", "_index", "_shape")

    def __init__(self, call: Call[CompletionRequest], index: int) -> None:
        request = call.request
        self._call = call
        self._index = index
        self._shape = _shape(call)
        told = request.logprobs is not None or request.return_token_ids or request.only_prompt
        super().__init__(ChunkWriter(self._chunk(Delta([], ChunkWriter.PLACE))), only_text=not told)

    def whole_chunks(self, delta: Delta, usage: dict[str, Any] | None) -> bytes:
        request = self._call.request
        if request.only_prompt:
            delta = nothing_after(delta)
        logprobs = self._shape.of(delta.logprobs)
        return event(self._chunk(delta, logprobs=logprobs, usage=usage, tell=request.return_token_ids))

    def opening(self, usage: dict[str, Any] | None) -> bytes:
        call = self._call
        if not (call.request.echo or call.request.return_token_ids):
            return b""
        echo = _Echo.of(call, self._index)
        logprobs = self._shape.of((), echo.scored(call, self._index)) if echo else None
        delta = Delta([], echo.text if echo else "")
        return event(self._chunk(delta, logprobs=logprobs, usage=usage, more=_of_prompt(call, self._index)))

    def _chunk(
        self,
        delta: Delta,
        *,
        logprobs: dict[str, Any] | None = None,
        usage: dict[str, Any] | None = None,
        tell: bool = False,
        more: dict[str, Any] | None = None,
    ) -> Any:
        choice = {
            "index": self._index,
            "text": delta.text,
            "logprobs": logprobs,
            "finish_reason": delta.finish_reason,
            "stop_reason": delta.stop_reason,
            **({"token_ids": delta.token_ids} if tell else {}),
            **(more or {}),
        }
        return with_usage(self._call.frame("text_completion", [choice]), usage, self._call.request.include_usage)
