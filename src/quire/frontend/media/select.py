"""Which pictures a model takes, from its checkpoint."""

from __future__ import annotations

from importlib.util import find_spec

from quire.checkpoint import ModelFacts
from quire.config import MediaConfig
from quire.errors import ConfigError
from quire.frontend.media.pictures import TakesPictures
from quire.frontend.media.protocol import Media, TextOnly
from quire.frontend.tokenizer import Tokenizer
from quire.pictures import picture_facts


def load_media(facts: ModelFacts, config: MediaConfig, tokenizer: Tokenizer, name: str) -> Media:
    """What knows about a model's pictures.

    Args:
        name: the model's, for errors.

    Raises:
        ConfigError: the checkpoint says what cannot be, or Pillow is missing.
    """
    found = picture_facts(facts)
    if found is None:
        return TextOnly(name)
    if find_spec("PIL") is None:
        raise ConfigError(
            f"{facts.config.where}: {', '.join(facts.architectures)} takes pictures, which needs Pillow."
            " pip install 'quire[vision]'."
        )
    placeholder = tokenizer.id_to_token(found.token_id)
    if placeholder is None:
        raise ConfigError(f"{facts.config.where}: the tokenizer has no token {found.token_id}, the one for pictures.")
    return TakesPictures(found, config, placeholder)
