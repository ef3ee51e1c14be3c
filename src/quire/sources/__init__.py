"""Where models come from. Every source ends as a folder on this machine:

    demo                    the folder inside the package
    a folder, a .gguf file  as it lies there
    s3://…  gs://…          small files fetched; weights stay where they are and are read range by range
    owner/model             what huggingface_hub has fetched
    a GGUF of any of these  config and tokenizer written out of its header

The folder holds config.json, tokenizer.json and their like, and either the weights or, beside it, `weights.json`, which
says where those lie. No torch, and nothing of a checkpoint is ever run.
"""

from __future__ import annotations

from pathlib import Path

from quire.checkpoint import ModelFacts, read_facts
from quire.config import ModelConfig
from quire.sources.find import resolve
from quire.sources.slow_tokenizer import with_fast_tokenizer

__all__ = ["model_facts", "model_folder", "resolve", "tokenizer_folder"]


def model_folder(model: ModelConfig, *, weights: bool) -> Path:
    """The folder of the model, fetched if it must be.

    Args:
        weights: fetch those too, where a source has to; dummy ones never are.

    Raises:
        ConfigError: nothing there, or no access.
    """
    return resolve(
        model.model,
        model.revision,
        weights=weights and model.load_format != "dummy",
        download_dir=model.download_dir,
        load_format=model.load_format,
    )


def model_facts(model: ModelConfig) -> ModelFacts:
    """What the model's config says, --hf-overrides applied."""
    return read_facts(model_folder(model, weights=False), model.hf_overrides)


def tokenizer_folder(model: ModelConfig) -> Path:
    """A folder with the tokenizer.json of the model, or of the one that --tokenizer names.

    Raises:
        ConfigError: there is none, nor anything to make it from.
    """
    if model.tokenizer is None and model.tokenizer_revision is None:
        folder = model_folder(model, weights=False)
    else:
        revision = model.tokenizer_revision or (None if model.tokenizer else model.revision)
        name = model.tokenizer or model.model
        folder = resolve(name, revision, weights=False, download_dir=model.download_dir)
    return with_fast_tokenizer(folder, model.tokenizer_mode, model.download_dir)
