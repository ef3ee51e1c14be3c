"""What the text side asks of whoever knows pictures, and the one who takes none."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol

from quire.errors import RequestError
from quire.frontend.media.parts import Source, sources_in
from quire.frontend.templates import ChatTemplate
from quire.messages import Picture

Messages = Sequence[Mapping[str, Any]]


class Ready(NamedTuple):
    """A picture, made ready for the vision tower. Pixels are [height, width, 3], a byte each."""

    digest: bytes
    height: int
    width: int
    pixels: bytes


class Media(Protocol):
    """One model's pictures.

    Attributes:
        more_body_bytes: by which the body of a request may be larger than without pictures.
    """

    more_body_bytes: int

    def sources(self, messages: Messages) -> list[Source]:
        """The pictures of a conversation, in their order.

        Raises:
            RequestError: a part is not as it should be, or there are too many.
        """

    def for_template(self, template: ChatTemplate, messages: Messages) -> Messages:
        """The messages as this template reads them."""

    def read(self, sources: Sequence[Source]) -> list[Ready]:
        """Decode and make ready, in this thread.

        Raises:
            RequestError: one cannot be read, or is too large.
        """

    async def read_async(self, sources: Sequence[Source]) -> list[Ready]:
        """The same in threads, without holding up the event loop."""

    def placed(self, ids: list[int], pictures: Sequence[Ready], param: str) -> tuple[list[int], list[Picture]]:
        """The prompt's tokens with as many positions for each placeholder as its picture takes.

        Raises:
            RequestError: there are more placeholders than pictures, or fewer.
        """

    def close(self) -> None:
        """Give back threads."""


class TextOnly:
    """Of a model that takes no pictures.

    Args:
        name: the model's, for errors.
    """

    more_body_bytes = 0

    def __init__(self, name: str = "") -> None:
        self._name = f" {name!r}" if name else ""

    def sources(self, messages: Messages) -> list[Source]:
        """There may be none."""
        if found := sources_in(messages):
            raise self.refusal(found[0].where)
        return []

    def for_template(self, template: ChatTemplate, messages: Messages) -> Messages:
        """As they are."""
        return messages

    def read(self, sources: Sequence[Source]) -> list[Ready]:
        """There may be none."""
        if sources:
            raise self.refusal(sources[0].where)
        return []

    async def read_async(self, sources: Sequence[Source]) -> list[Ready]:
        """There may be none."""
        return self.read(sources)

    def placed(self, ids: list[int], pictures: Sequence[Ready], param: str) -> tuple[list[int], list[Picture]]:
        """As it is."""
        return ids, []

    def close(self) -> None:
        """Nothing is held."""

    def refusal(self, where: str) -> RequestError:
        """What to say of a picture."""
        return RequestError(
            f"{where}: the model{self._name} takes text only, no pictures.",
            param=where.split("[", 1)[0].split(".", 1)[0],
            code="unsupported_content",
        )
