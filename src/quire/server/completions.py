"""POST /v1/completions."""

from __future__ import annotations

from typing import Any

from quire.frontend.service import PreparedRequest
from quire.frontend.streams import Delta
from quire.frontend.validate import CompletionRequest
from quire.messages import TokenLogprobs
from quire.server.generate import Call, ChoiceWriter, GenerateRoute, to_json_number, with_usage
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
        encoded = iter(await call.service.encode_many_async(texts, add_special_tokens=add_special_tokens))
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
        return {
            "index": index,
            "text": delta.text,
            "logprobs": completion_logprobs(call, delta.logprobs, 0)[0],
            "finish_reason": delta.finish_reason,
            "stop_reason": delta.stop_reason,
        }

    def writer(self, call: Call[CompletionRequest], index: int) -> ChoiceWriter:
        return _TextWriter(call, index)


class _TextWriter(ChoiceWriter):
    def __init__(self, call: Call[CompletionRequest], index: int) -> None:
        self._call = call
        self._index = index
        self._offset = 0
        self._plain = ChunkWriter(self._chunk(Delta([], ChunkWriter.PLACE)))

    def chunks(self, delta: Delta, usage: dict[str, Any] | None) -> bytes:
        logprobs, self._offset = completion_logprobs(self._call, delta.logprobs, self._offset)
        if logprobs is not None or usage is not None or delta.finish_reason is not None:
            return event(self._chunk(delta, logprobs=logprobs, usage=usage))
        return self._plain.chunk(delta.text) if delta.text else b""

    def _chunk(
        self, delta: Delta, *, logprobs: dict[str, Any] | None = None, usage: dict[str, Any] | None = None
    ) -> Any:
        choice = {
            "index": self._index,
            "text": delta.text,
            "logprobs": logprobs,
            "finish_reason": delta.finish_reason,
            "stop_reason": delta.stop_reason,
        }
        return with_usage(self._call.frame("text_completion", [choice]), usage, self._call.request.include_usage)


def completion_logprobs(
    call: Call[CompletionRequest], positions: list[TokenLogprobs] | None, offset: int
) -> tuple[dict[str, Any] | None, int]:
    """Log-probabilities in the completion API's shape, and the text offset of the next token; None if not wanted."""
    count = call.request.logprobs
    if count is None:
        return None, offset
    shape: dict[str, list[Any]] = {"tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []}
    for position in positions or ():
        texts = [call.service.tokenizer.token_text(token_id) for token_id in position.token_ids]
        values = [to_json_number(logprob) for logprob in position.logprobs]
        shape["tokens"].append(texts[0])
        shape["token_logprobs"].append(values[0])
        # the chosen token comes first and wins where two tokens have the same text
        ranked = [*zip(texts[1 : count + 1], values[1 : count + 1], strict=True), (texts[0], values[0])]
        shape["top_logprobs"].append(dict(ranked))
        shape["text_offset"].append(offset)
        offset += len(texts[0])
    return shape, offset
