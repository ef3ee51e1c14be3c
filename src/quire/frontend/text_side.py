"""Reads what the frontend needs of a checkpoint: tokenizer and chat template."""

from __future__ import annotations

from pathlib import Path

from quire.config import ModelConfig
from quire.errors import ConfigError
from quire.frontend.templates import ChatTemplate
from quire.frontend.tokenizer import Tokenizer
from quire.sources import tokenizer_folder


def load_text_side(model: ModelConfig, template_file: str | None = None) -> tuple[Tokenizer, ChatTemplate]:
    """The tokenizer and the chat template of a model.

    Args:
        model: names the model, or the tokenizer if that is another one.
        template_file: a file that replaces the checkpoint's chat template.

    Raises:
        ConfigError: something is missing or cannot be read.
    """
    tokenizer = Tokenizer.from_folder(tokenizer_folder(model))
    source = tokenizer.chat_template if template_file is None else _read(template_file)
    return tokenizer, ChatTemplate(source, tokenizer.special_tokens)


def _read(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--chat-template {path!r} cannot be read: {error}.") from None
