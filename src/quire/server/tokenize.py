"""POST /tokenize and /detokenize: what a text or a conversation is for the model, and back."""

from __future__ import annotations

from typing import Any

from quire.frontend.decode import decode
from quire.frontend.service import TextService
from quire.frontend.validate import DetokenizeRequest, TokenizeRequest
from quire.server.asgi import Receive, Scope, Send, answer
from quire.server.generate import warnings_header
from quire.server.limits import MAX_BODY_BYTES, read_json_body
from quire.server.sse import encode
from quire.server.state import ServerState


class Tokenize:
    """Token ids of a text or a conversation, and how many there are."""

    def __init__(self, state: ServerState) -> None:
        self._state = state

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        service = self._state.require_service()
        body = await read_json_body(scope, receive, MAX_BODY_BYTES + service.media.more_body_bytes)
        request, warnings = decode(body, TokenizeRequest, strict=self._state.strict)
        self._state.check_model(request.model)
        pictures = await service.media.read_async(service.media.sources(request.messages or []))
        text, special = await _text(request, service)
        ids = await service.encode_any_async(text, add_special_tokens=special)
        if request.messages is not None:
            ids, _ = service.media.placed(ids, pictures, "messages")
        texts = [service.tokenizer.token_text(i) for i in ids] if request.return_token_strs else None
        found: dict[str, Any] = {"count": len(ids), "max_model_len": service.max_model_len, "tokens": ids}
        await answer(send, encode({**found, "token_strs": texts}), headers=warnings_header(warnings))


class Detokenize:
    """The text of token ids, special ones included."""

    def __init__(self, state: ServerState) -> None:
        self._state = state

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        service = self._state.require_service()
        request, warnings = decode(await read_json_body(scope, receive), DetokenizeRequest, strict=self._state.strict)
        self._state.check_model(request.model)
        ids = service.fit.checked_ids(request.tokens, "tokens") if request.tokens else []
        text = service.tokenizer.decode(ids, skip_special_tokens=False)
        await answer(send, encode({"prompt": text}), headers=warnings_header(warnings))


async def _text(request: TokenizeRequest, service: TextService) -> tuple[str, bool]:
    """The text, and whether it gets the tokens around it that the checkpoint asks for."""
    if request.prompt is not None:
        return request.prompt, request.add_special_tokens is not False
    text = await service.render_chat_async(
        request.messages or [],
        add_generation_prompt=request.add_generation_prompt and not request.continue_final_message,
        continue_final_message=request.continue_final_message,
        tools=request.tools,
        kwargs=request.chat_template_kwargs,
    )
    return text, bool(request.add_special_tokens)
