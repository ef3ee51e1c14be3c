"""Asking for stories."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from .exchange import Exchange, Pen, command, worded
from .stories import draw_cast, tell, tells_of, unasked_cast

_STORY_COMMANDS = [
    "tell me a story about {who}", "tell me a story about {who}", "tell me a short story about {who}",
    "tell a story about {who}", "write a story about {who}", "write a short story about {who}",
    "write me a story about {who}", "make up a story about {who}", "give me a short story about {who}",
    "tell me a tale about {who}", "tell me a bedtime story about {who}", "write a little tale about {who}",
    "invent a story about {who}", "create a story about {who}", "tell me something about {who} in a story",
    "tell me a funny story about {who}", "tell me another story, about {who}", "write a tiny story about {who}",
    "tell us a story about {who}", "tell me the story of {who}", "generate a short story about {who}",
]  # fmt: skip
_STORY_QUESTIONS = [
    "do you know a story about {who}", "can I hear a story about {who}", "may I have a story about {who}",
    "how about a story about {who}", "a story about {who}", "story about {who}", "a short story about {who}",
]  # fmt: skip
_BARE_STORIES = [
    "tell me a story", "tell a story", "write a story", "tell me a short story", "I want to hear a story",
    "tell me another story", "make up a story", "write a short story", "once more, a story", "tell me a bedtime story",
]  # fmt: skip


def story(pen: Pen) -> Exchange:
    """A short story, mostly about a subject that the prompt names."""
    if pen.chance(0.06):
        cast = unasked_cast(pen.rng)
        text = tell(pen.rng, cast)
        asked = replace(cast, mentions=())
        prompt = command(pen, pen.rng.choice(_BARE_STORIES), {})
        return Exchange("story", prompt, text, "", partial(tells_of, asked))
    cast = draw_cast(pen.rng)
    prompt = worded(pen, _STORY_COMMANDS, _STORY_QUESTIONS, {"who": cast.request})
    return Exchange("story", prompt, tell(pen.rng, cast), f"story:{cast.request}", partial(tells_of, cast))
