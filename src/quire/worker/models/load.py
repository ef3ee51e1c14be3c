"""From a checkpoint to a model that is ready to run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from torch import nn

from quire.checkpoint import ModelFacts
from quire.errors import ConfigError
from quire.worker.layers.build import Build
from quire.worker.loading.weights import fill_from_files, fill_with_random
from quire.worker.models.registry import build_model


def load_model(
    folder: Path,
    facts: ModelFacts,
    build: Build,
    *,
    load_format: str = "auto",
    seed: int = 0,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> nn.Module:
    """Build the model on its device and fill it.

    Args:
        folder: the checkpoint.
        facts: `read_facts(folder)`.
        load_format: auto and safetensors stream the files; dummy fills with random numbers and needs no weight files.
        seed: of the dummy weights.
        progress: called with (bytes done, bytes in all).

    Raises:
        ConfigError: an unknown architecture, a config that cannot be, no usable weights.
        StartupError: broken weights, or weights of another model.
    """
    quantized = facts.config.section("quantization_config") or facts.config.section("compression_config")
    if quantized is not None:
        method = quantized.values.get("quant_method", "an unnamed scheme")
        raise ConfigError(f"{facts.config.where}: weights quantized with {method} are not supported yet.")
    model = build_model(facts, build).eval()
    if load_format == "dummy":
        fill_with_random(model, seed)
    else:
        fill_from_files(model, model.weight_map(), folder, progress)
    return model
