"""POST /v1/chat/completions."""

from __future__ import annotations

from typing import Any

from quire.frontend.service import PreparedRequest
from quire.frontend.streams import Delta
from quire.frontend.tokenizer import Tokenizer
from quire.frontend.validate import ChatRequest
from quire.messages import TokenLogprobs
from quire.server.generate import Call, ChoiceWriter, GenerateRoute, to_json_number, with_usage
from quire.server.sse import ChunkWriter, event


class ChatCompletions(GenerateRoute[ChatRequest]):
    """Messages in, an assistant's message out."""

    kind = ChatRequest
    id_prefix = "chatcmpl"
    answer_object = "chat.completion"
    chunk_object = "chat.completion.chunk"

    async def prepare(self, call: Call[ChatRequest]) -> list[PreparedRequest]:
        request, service = call.request, call.service
        params = request.sampling_params(service.default_sampling)
        text = await service.render_chat_async(
            request.messages,
            add_generation_prompt=request.add_generation_prompt,
            continue_final_message=request.continue_final_message,
            documents=request.documents,
            kwargs=request.template_kwargs(),
        )
        if request.reasoning_effort is not None and not service.template.uses("reasoning_effort"):
            call.warnings.append("reasoning_effort has no effect on this model.")
        ids = await service.encode_async(text, add_special_tokens=bool(request.add_special_tokens))
        return [
            service.prepare(
                ids,
                params,
                text=text,
                param="messages",
                default_max_tokens=service.default_max_tokens,
                priority=request.priority,
                cache_salt=request.cache_salt,
                name=call.id,
                arrival=call.arrival,
            )
        ]

    def choice(self, call: Call[ChatRequest], index: int, delta: Delta) -> dict[str, Any]:
        return {
            "index": index,
            "message": {"role": "assistant", "content": delta.text, "refusal": None},
            "logprobs": chat_logprobs(call, delta.logprobs),
            "finish_reason": delta.finish_reason,
            "stop_reason": delta.stop_reason,
        }

    def writer(self, call: Call[ChatRequest], index: int) -> ChoiceWriter:
        return _ChatWriter(call, index)


class _ChatWriter(ChoiceWriter):
    """First chunk: role; then text; last chunk: finish_reason."""

    def __init__(self, call: Call[ChatRequest], index: int) -> None:
        self._call = call
        self._index = index
        self._plain = ChunkWriter(self._chunk({"content": ChunkWriter.PLACE}))
        self._opened = False

    def chunks(self, delta: Delta, usage: dict[str, Any] | None) -> bytes:
        logprobs = chat_logprobs(self._call, delta.logprobs)
        data = b""
        if not self._opened:
            self._opened = True
            data = event(self._chunk({"role": "assistant", "content": ""}))
        if logprobs is not None or usage is not None:
            data += event(self._chunk({"content": delta.text}, logprobs=logprobs, usage=usage))
        elif delta.text:
            data += self._plain.chunk(delta.text)
        if delta.finish_reason is not None:
            data += event(self._chunk({}, delta, usage=usage))
        return data

    def _chunk(
        self,
        content: dict[str, Any],
        end: Delta | None = None,
        *,
        logprobs: dict[str, Any] | None = None,
        usage: dict[str, Any] | None = None,
    ) -> Any:
        choice = {"index": self._index, "delta": content, "logprobs": logprobs, "finish_reason": None}
        if end is not None:
            choice |= {"finish_reason": end.finish_reason, "stop_reason": end.stop_reason}
        chunk = self._call.frame("chat.completion.chunk", [choice])
        return with_usage(chunk, usage, self._call.request.include_usage)


def chat_logprobs(call: Call[ChatRequest], positions: list[TokenLogprobs] | None) -> dict[str, Any] | None:
    """Log-probabilities in chat's shape; None if the request wants none."""
    if not call.request.logprobs:
        return None
    tokenizer, count = call.service.tokenizer, call.request.top_logprobs
    return {"content": [_position(tokenizer, position, count) for position in positions or ()], "refusal": None}


def _position(tokenizer: Tokenizer, position: TokenLogprobs, count: int) -> dict[str, Any]:
    entries = [
        _entry(tokenizer, token_id, logprob)
        for token_id, logprob in zip(position.token_ids, position.logprobs, strict=True)
    ]
    return {**entries[0], "top_logprobs": entries[1 : count + 1]}


def _entry(tokenizer: Tokenizer, token_id: int, logprob: float) -> dict[str, Any]:
    data = tokenizer.token_bytes(token_id)
    return {"token": data.decode("utf-8", "replace"), "logprob": to_json_number(logprob), "bytes": list(data)}
