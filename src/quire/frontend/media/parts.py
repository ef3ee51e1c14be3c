"""Which parts of a message are pictures, and in which form they come. Nothing is decoded here.

    {"type": "image_url", "image_url": {"url": "data:image/png;base64,...", "detail": "auto"}}      OpenAI's chat
    {"type": "input_image", "image_url": "data:..."}                                                OpenAI's responses
    {"type": "image_pil", "image_pil": IMAGE}   {"type": "image", "image": IMAGE or "data:..."}     offline

A URL of any other scheme is refused: this program opens no connection and no file because a request names it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from quire.errors import RequestError

KINDS = ("image_url", "input_image", "image_pil", "image")
DETAILS = ("auto", "low", "high")
MAX_PREFIX = 200
"""Characters in which a data: URL must come to its comma."""


@dataclass(frozen=True, slots=True)
class Source:
    """Where a picture comes from.

    Attributes:
        where: the part of the request, for errors.
        data: a data: URL, or offline the picture itself.
        detail: as the request says; it has no effect, as every picture is made the same size.
    """

    where: str
    data: Any
    detail: str = "auto"

    @property
    def note(self) -> str:
        """What has no effect about it, for warnings; mostly nothing."""
        if self.detail == "auto":
            return ""
        return f"{self.where.removesuffix('.url')}.detail has no effect here: every picture is made the same size."


def is_picture(part: Any) -> bool:
    """Whether a part of a message's content is meant as a picture."""
    return isinstance(part, Mapping) and _named(part) is not None


def source_of(part: Mapping[str, Any], where: str) -> Source:
    """The picture of a part.

    Raises:
        RequestError: it has none, or one that would have to be fetched.
    """
    kind = _named(part)
    value: Any = part.get("image_url" if kind == "input_image" else str(kind))
    detail = part.get("detail")
    if isinstance(value, Mapping):
        detail, value = value.get("detail", detail), value.get("url")
        where = f"{where}.{kind}.url"
    if value is None:
        raise _refused(f"{where} has no picture, as in {{'image_url': {{'url': 'data:...'}}}}", where)
    if detail is not None and detail not in DETAILS:
        raise _refused(f"{where}: detail must be one of {', '.join(DETAILS)}, got {str(detail)[:40]!r}", where)
    if isinstance(value, str):
        _check_url(value, where)
    return Source(where, value, detail or "auto")


def sources_in(messages: Sequence[Mapping[str, Any]]) -> list[Source]:
    """The pictures of a conversation, in the order in which they stand there.

    Raises:
        RequestError: as `source_of`; or the assistant's own message has one.
    """
    found = []
    for i, message in enumerate(messages):
        content = message.get("content") if isinstance(message, Mapping) else None
        for j, part in enumerate(content if isinstance(content, list | tuple) else ()):
            if is_picture(part):
                where = f"messages[{i}].content[{j}]"
                if message.get("role") == "assistant":
                    raise _refused(f"{where} is a picture; the assistant's messages are text", where)
                found.append(part["source"] if isinstance(part.get("source"), Source) else source_of(part, where))
    return found


def _named(part: Mapping[str, Any]) -> str | None:
    """The key that a picture stands under: that of its type, or the one there is where no type is given."""
    kind = part.get("type")
    if kind is not None:
        return kind if kind in KINDS else None
    return next((name for name in KINDS if name in part), None)


def _check_url(url: str, where: str) -> None:
    """Data URLs only, in base64."""
    if not url.startswith(("data:", "DATA:")):
        shown = url[:40].encode("unicode_escape").decode("ascii")
        raise RequestError(
            f"{where} is {shown!r}: nothing is fetched here, neither from the network nor from files. Send the picture"
            " itself: data:image/png;base64,... (PNG, JPEG, WEBP or GIF).",
            param=where.split("[", 1)[0],
            code="unsupported_url",
        )
    head, comma, _ = url[len("data:") : MAX_PREFIX].partition(",")
    kind, *options = head.lower().split(";")
    if not comma or options[-1:] != ["base64"]:
        raise _refused(f"{where} must begin like data:image/png;base64, and go on in base64", where)
    if kind and not kind.startswith("image/") and kind != "application/octet-stream":
        shown = kind[:40].encode("unicode_escape").decode("ascii")
        raise _refused(f"{where} is of type {shown!r}, which is no picture", where)


def _refused(reason: str, where: str) -> RequestError:
    return RequestError(f"{reason}.", param=where.split("[", 1)[0], code="invalid_picture")
