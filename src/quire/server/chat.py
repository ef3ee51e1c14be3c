"""POST /v1/chat/completions."""

from __future__ import annotations

from typing import Any

from quire.errors import RequestError
from quire.frontend.aliases import REASONING
from quire.frontend.called import held_to_calls
from quire.frontend.parsers import (
    Content,
    Event,
    Parser,
    Reasoning,
    ToolCall,
    ToolCallArguments,
    ToolCallStart,
    read_whole,
)
from quire.frontend.parsers.compose import PlainParser
from quire.frontend.service import PreparedRequest, TextService
from quire.frontend.streams import Delta
from quire.frontend.validate import ChatRequest
from quire.server.generate import Call, ChoiceWriter, GenerateRoute, with_usage
from quire.server.logprobs import ChatShape, prompt_logprobs
from quire.server.sse import ChunkWriter, event


class ChatCompletions(GenerateRoute[ChatRequest]):
    """Messages in, an assistant's message out."""

    kind = ChatRequest
    id_prefix = "chatcmpl"
    answer_object = "chat.completion"
    chunk_object = "chat.completion.chunk"

    def more_body_bytes(self, service: TextService) -> int:
        return service.media.more_body_bytes

    async def prepare(self, call: Call[ChatRequest]) -> list[PreparedRequest]:
        request, service = call.request, call.service
        if request.chat_template is not None and not self._state.trust_request_chat_template:
            raise RequestError(
                "chat_template: this server takes no templates from requests (--trust-request-chat-template).",
                param="chat_template",
                code="unsupported_parameter",
            )
        service.fit.check_logprobs("top_logprobs", request.wanted_logprobs())
        params = request.sampling_params(service.default_sampling)
        plan = request.tool_plan()
        grammar = held_to_calls(plan, params.structured_outputs, service, call.warnings)
        tools = request.tools if request.tool_choice != "none" else None
        if tools and service.tool_parser is None and plan.schema is None:
            call.warnings.append("tools has no effect: this model's chat template takes none.")
        sources = service.media.sources(request.messages)
        call.warnings += [note for source in sources if (note := source.note)]
        pictures = await service.media.read_async(sources)
        text = await service.render_chat_async(
            request.messages,
            template=request.chat_template,
            tools=tools,
            add_generation_prompt=request.add_generation_prompt,
            continue_final_message=request.continue_final_message,
            documents=request.documents,
            kwargs=request.template_kwargs(),
        )
        if request.reasoning_effort is not None and not service.template.uses("reasoning_effort"):
            call.warnings.append("reasoning_effort has no effect on this model.")
        [ids] = await service.encode_prompts_async(
            [text],
            add_special_tokens=bool(request.add_special_tokens),
            cut=request.truncate_prompt_tokens is not None,
            param="messages",
        )
        try:
            prepared = service.prepare(
                ids,
                params,
                text=text,
                param="messages",
                default_max_tokens=service.default_max_tokens,
                priority=request.priority,
                cache_salt=request.cache_salt,
                name=call.id,
                arrival=call.arrival,
                markers=service.answer_parser(plan, text).markers,
                grammar=grammar,
                thinks=True,
                pictures=pictures,
            )
        except RequestError as error:
            if error.param == "max_tokens" and request.max_completion_tokens is not None:
                error.param = "max_completion_tokens"
            raise
        return [prepared]

    def extras(self, call: Call[ChatRequest]) -> dict[str, Any]:
        request, found = call.request, dict[str, Any]()
        if request.prompt_logprobs is not None:
            entries = call.first_stream(0).prompt_logprobs
            found["prompt_logprobs"] = prompt_logprobs(call.service.tokenizer, entries, request.prompt_logprobs)
        if request.return_token_ids:
            found["prompt_token_ids"] = call.prepared[0].prompt_ids
        if request.return_prompt_text:
            found["prompt_text"] = call.prepared[0].prompt
        return found

    def choice(self, call: Call[ChatRequest], index: int, delta: Delta) -> dict[str, Any]:
        found = read_whole(_parser(call), delta.text)
        message: dict[str, Any] = {"role": "assistant", "content": found.content, "refusal": None}
        if echo := _echo(call):
            message["content"] = echo + (found.content or "")
        if found.reasoning and call.request.include_reasoning:
            message |= dict.fromkeys(REASONING, found.reasoning)
        if found.tool_calls:
            message["content"] = message["content"] or None
            message["tool_calls"] = [_whole_call(tool_call) for tool_call in found.tool_calls]
        return {
            "index": index,
            "message": message,
            "logprobs": _shape(call).of(delta.logprobs),
            "finish_reason": _finish_reason(delta, calls=bool(found.tool_calls)),
            "stop_reason": delta.stop_reason,
            **({"token_ids": delta.token_ids} if call.request.return_token_ids else {}),
        }

    def writer(self, call: Call[ChatRequest], index: int) -> ChoiceWriter:
        return _ChatWriter(call, index, self.extras(call) if index == 0 else {})


def _shape(call: Call[ChatRequest]) -> ChatShape:
    as_ids = call.request.return_tokens_as_token_ids
    return ChatShape(call.service.tokenizer, call.request.shown_logprobs(), as_ids=as_ids)


def _echo(call: Call[ChatRequest]) -> str:
    """The last message, if the answer is to begin with it: when it is the assistant's too."""
    last = call.request.messages[-1]
    return last["content"] or "" if call.request.echo and last["role"] == "assistant" else ""


def _parser(call: Call[ChatRequest]) -> Parser:
    return call.service.answer_parser(call.request.tool_plan(), call.prepared[0].prompt)


def _finish_reason(delta: Delta, *, calls: bool) -> str | None:
    """An answer that ends by itself with calls in it asks for them to be made."""
    return "tool_calls" if calls and delta.finish_reason == "stop" else delta.finish_reason


def _whole_call(call: ToolCall) -> dict[str, Any]:
    function = {"name": call.name, "arguments": call.arguments}
    return {"id": call.id, "type": "function", "function": function}


class _ChatWriter(ChoiceWriter):
    """First chunk: role; then text, reasoning and calls as the parser finds them; last chunk: finish_reason."""

    __slots__ = ("_call", "_extras", "_has_calls", "_index", "_parser", "_shape", "_thought")

    def __init__(self, call: Call[ChatRequest], index: int, extras: dict[str, Any]) -> None:
        request = call.request
        self._call = call
        self._index = index
        self._extras = extras
        self._shape = _shape(call)
        self._parser = _parser(call)
        self._has_calls = False
        told = request.logprobs or request.return_token_ids or not isinstance(self._parser, PlainParser)
        super().__init__(ChunkWriter(self._chunk({"content": ChunkWriter.PLACE})), only_text=not told)
        self._thought = ChunkWriter(self._chunk(dict.fromkeys(REASONING, ChunkWriter.PLACE)))

    def whole_chunks(self, delta: Delta, usage: dict[str, Any] | None) -> bytes:
        logprobs = self._shape.of(delta.logprobs)
        ids = delta.token_ids if self._call.request.return_token_ids else None
        events = self._parser.feed(delta.text)
        if delta.finish_reason is not None:
            events = [*events, *self._parser.finish()]
        if logprobs is None and usage is None and ids is None:
            data = b"".join([self._plain_chunk(found) for found in events])
        else:
            data = b""
            for content in [content for found in events if (content := self._content(found))] or [{"content": ""}]:
                data += event(self._chunk(content, logprobs=logprobs, usage=usage, ids=ids))
                logprobs = ids = None  # with the first of them
        if delta.finish_reason is not None:
            data += event(self._chunk({}, delta, usage=usage))
        return data

    def opening(self, usage: dict[str, Any] | None) -> bytes:
        data = event({**self._chunk({"role": "assistant", "content": ""}), **self._extras})
        echo = _echo(self._call)
        return data + (event(self._chunk({"content": echo})) if echo else b"")

    def _plain_chunk(self, found: Event) -> bytes:
        """The event for something that was found, where there is nothing else to tell."""
        if type(found) is Content:
            return self._text.chunk(found.text)
        content = self._content(found)
        if type(found) is Reasoning and content is not None:
            return self._thought.chunk(found.text)
        return b"" if content is None else event(self._chunk(content))

    def _content(self, found: Event) -> dict[str, Any] | None:
        match found:
            case Content(text):
                return {"content": text}
            case Reasoning(text):
                return dict.fromkeys(REASONING, text) if self._call.request.include_reasoning else None
            case ToolCallStart(index, id_, name):
                self._has_calls = True
                function = {"name": name, "arguments": ""}
                return {"tool_calls": [{"index": index, "id": id_, "type": "function", "function": function}]}
            case ToolCallArguments(index, text):
                return {"tool_calls": [{"index": index, "function": {"arguments": text}}]}
        return None

    def _chunk(
        self,
        content: dict[str, Any],
        end: Delta | None = None,
        *,
        logprobs: dict[str, Any] | None = None,
        usage: dict[str, Any] | None = None,
        ids: list[int] | None = None,
    ) -> Any:
        choice = {"index": self._index, "delta": content, "logprobs": logprobs, "finish_reason": None}
        if ids is not None:
            choice["token_ids"] = ids
        if end is not None:
            reason = _finish_reason(end, calls=self._has_calls)
            choice |= {"finish_reason": reason, "stop_reason": end.stop_reason}
        chunk = self._call.frame("chat.completion.chunk", [choice])
        return with_usage(chunk, usage, self._call.request.include_usage)
