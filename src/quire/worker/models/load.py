"""From a checkpoint to a model that is ready to run."""

from __future__ import annotations

import logging
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

from torch import nn

from quire.checkpoint import ModelFacts
from quire.config import ModelConfig
from quire.errors import ConfigError, StartupError
from quire.sources.files import read_locations
from quire.sources.objects import bring_here
from quire.worker.layers.build import Build
from quire.worker.loading.weights import fill_from_files, fill_with_random
from quire.worker.models.registry import find_class, unknown

log = logging.getLogger("quire.engine")


def load_model(
    folder: Path,
    facts: ModelFacts,
    build: Build,
    config: ModelConfig | None = None,
    *,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> nn.Module:
    """Build the model on its device and fill it.

    Args:
        folder: the checkpoint.
        facts: `read_facts(folder)`.
        config: whose code, where weights come from, and the seed of random ones; None is the defaults.
        progress: called with (bytes done, bytes in all).

    Raises:
        ConfigError: an unknown architecture, a config that cannot be, no usable weights.
        StartupError: broken weights, or weights of another model.
    """
    config = config or ModelConfig(model=str(folder))
    quantized = facts.config.section("quantization_config") or facts.config.section("compression_config")
    if quantized is not None:
        method = quantized.values.get("quant_method", "an unnamed scheme")
        raise ConfigError(f"{facts.config.where}: weights quantized with {method} are not supported yet.")
    made = None if config.model_impl == "transformers" else find_class(facts)
    if made is None:
        return _by_transformers(folder, facts, build, config)
    try:
        model = made(facts, build).eval()
    except (RuntimeError, MemoryError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
        raise StartupError(f"{facts.config.where}: no model of these sizes on {build.device}: {reason}") from error
    if config.load_format == "dummy":
        fill_with_random(model, config.seed)
    else:
        fill_from_files(model, model.weight_map(), folder, progress)
    return model


def _by_transformers(folder: Path, facts: ModelFacts, build: Build, config: ModelConfig) -> nn.Module:
    if config.model_impl == "quire" or find_spec("transformers") is None:
        raise unknown(facts)
    if config.quantization is not None:
        raise ConfigError(f"--quantization {config.quantization}: models in transformers' own code keep their weights.")
    elsewhere = read_locations(folder)
    if elsewhere is not None and any(place.name.endswith(".gguf") for place in elsewhere[0]):
        raise ConfigError(f"{facts.config.where}: a GGUF runs in Quire's own code only; leave --model-impl auto.")
    if elsewhere is not None and config.load_format != "dummy":
        bring_here(folder)
    log.info("%s runs in transformers' own code, slower than Quire's models do.", ", ".join(facts.architectures))
    from quire.worker.models.fallback import TransformersForCausalLM

    dummy = config.load_format == "dummy"
    overrides = {key: facts.config.values[key] for key in config.hf_overrides or {}}
    return TransformersForCausalLM(
        folder, facts, build, dummy=dummy, remote_code=config.trust_remote_code, overrides=overrides
    )
