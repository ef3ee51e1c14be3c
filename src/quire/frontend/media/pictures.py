"""TakesPictures: the text side of a model with a vision tower. Owns the threads in which pictures are decoded.

Templates read a message's content in one of two ways, which a trial rendering tells apart:

    parts   [{"type": "image"}, {"type": "text", "text": "..."}]     the template writes the placeholder
    text    "<image>\\n..."                                           the placeholders come first, as vLLM has it
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

from quire.config import MediaConfig
from quire.errors import RequestError
from quire.frontend.media.decode import make_ready, num_bytes
from quire.frontend.media.parts import Source, is_picture, sources_in
from quire.frontend.media.protocol import Messages, Ready
from quire.frontend.templates import ChatTemplate
from quire.messages import Picture
from quire.pictures import PictureFacts

NUM_THREADS = 2
"""More would decode more pictures at once, and hold as much more memory: at most 3 bytes per pixel each, some times."""
WORD = "quire-sees-this"


class TakesPictures:
    """See `protocol.Media`.

    Args:
        facts: of the model's pictures.
        config: the limits.
        placeholder: the text of the placeholder's token.
    """

    def __init__(self, facts: PictureFacts, config: MediaConfig, placeholder: str) -> None:
        self._facts = facts
        self._config = config
        self._placeholder = placeholder
        self._most = config.limit_mm_per_prompt.get("image")
        self.more_body_bytes = (config.max_picture_bytes // 3 + 1) * 4
        self._known_template: tuple[str | None, bool] = (None, False)
        self._pool = ThreadPoolExecutor(NUM_THREADS, thread_name_prefix="quire-picture")

    def close(self) -> None:
        """Give back the threads."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def sources(self, messages: Messages) -> list[Source]:
        """See `Media`."""
        return sources_in(messages)

    # ---- messages ------------------------------------------------------------------------------------------------

    def for_template(self, template: ChatTemplate, messages: Messages) -> Messages:
        """See `Media`."""
        form = self._in_parts if self._reads_parts(template) else self._in_text
        return [
            {**message, "content": form(message.get("content"))} if isinstance(message, Mapping) else message
            for message in messages
        ]

    def _in_parts(self, content: Any) -> Any:
        if isinstance(content, str):
            return [{"type": "text", "text": content}]
        if not isinstance(content, list | tuple):
            return content
        return [{"type": "image"} if is_picture(part) else part for part in content]

    def _in_text(self, content: Any) -> Any:
        if not isinstance(content, list | tuple):
            return content
        pictures = [self._placeholder for part in content if is_picture(part)]
        texts = [part["text"] for part in content if isinstance(part, Mapping) and isinstance(part.get("text"), str)]
        return "\n".join(pictures + texts)

    def _reads_parts(self, template: ChatTemplate) -> bool:
        source = template.source
        if self._known_template[0] != source:
            self._known_template = (source, self._tried(template))
        return self._known_template[1]

    def _tried(self, template: ChatTemplate) -> bool:
        trial = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": WORD}]}]
        try:
            text = template.render(trial)
        except RequestError:
            return False
        return WORD in text and self._placeholder in text and "'type'" not in text

    # ---- pictures ------------------------------------------------------------------------------------------------

    def read(self, sources: Sequence[Source]) -> list[Ready]:
        """See `Media`."""
        self._check(sources)
        return [make_ready(source, self._facts, self._config.max_picture_pixels) for source in sources]

    async def read_async(self, sources: Sequence[Source]) -> list[Ready]:
        """See `Media`."""
        self._check(sources)
        loop = asyncio.get_running_loop()
        found = []
        for source in sources:  # one at a time: a request with many does not keep others from theirs
            work = partial(make_ready, source, self._facts, self._config.max_picture_pixels)
            found.append(await loop.run_in_executor(self._pool, work))
        return found

    def _check(self, sources: Sequence[Source]) -> None:
        if self._most is not None and len(sources) > self._most:
            raise RequestError(
                f"There are {len(sources)} pictures; a prompt may have {self._most} (--limit-mm-per-prompt image=N).",
                param=_param(sources[0]),
                code="too_many_pictures",
            )
        total, most = sum(map(num_bytes, sources)), self._config.max_picture_bytes
        if total > most:
            raise RequestError(
                f"The picture files have {total} bytes, {most} are the most in one request (--max-picture-bytes).",
                param=_param(sources[0]),
                code="too_many_pictures",
            )

    def placed(self, ids: list[int], pictures: Sequence[Ready], param: str) -> tuple[list[int], list[Picture]]:
        """See `Media`."""
        token, length = self._facts.token_id, self._facts.num_tokens
        num = ids.count(token)
        if num != len(pictures):
            raise RequestError(
                f"The prompt has {num} placeholders {self._placeholder!r} and {len(pictures)} pictures; each of those"
                " has one placeholder, which stands nowhere else.",
                param=param,
                code="picture_placeholders",
            )
        if not num:
            return ids, []
        out: list[int] = []
        placed = []
        done = 0
        for ready in pictures:
            place = ids.index(token, done)
            out += ids[done:place]
            placed.append(Picture(len(out), length, ready.digest, ready.height, ready.width, ready.pixels))
            out += [token] * length
            done = place + 1
        return out + ids[done:], placed


def _param(source: Source) -> str:
    return source.where.split("[", 1)[0].split(".", 1)[0]
