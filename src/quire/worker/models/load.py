"""From a checkpoint to a model that is ready to run."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

from torch import nn

from quire.checkpoint import ModelFacts
from quire.config import ModelConfig
from quire.errors import ConfigError, StartupError
from quire.sources.files import read_locations
from quire.sources.objects import bring_here
from quire.worker.layers.build import Build
from quire.worker.loading.names import Rule
from quire.worker.loading.weights import fill_from_files, fill_with_random
from quire.worker.models.quantized import KV_SCALES, note_kv_cache, settle
from quire.worker.models.registry import find_class, unknown
from quire.worker.quantization.format import Formats
from quire.worker.quantization.recognise import recognise
from quire.worker.quantization.select import head_scheme, made_at_load
from quire.worker.quantization.stored import Later

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
    stored = recognise(folder, facts.config, config.quantization)
    formats = stored or made_at_load(config.quantization, build.scheme)
    made = None if config.model_impl == "transformers" else find_class(facts)
    if made is None:
        return _by_transformers(folder, facts, build, config, stored)
    try:
        model = made(facts, build if formats is None else replace(build, scheme=Later())).eval()
    except (RuntimeError, MemoryError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
        raise StartupError(f"{facts.config.where}: no model of these sizes on {build.device}: {reason}") from error
    rules: tuple[Rule, ...] = model.weight_map()
    is_dummy = config.load_format == "dummy"
    if formats is not None:
        rules = (KV_SCALES, *rules)
        head = head_scheme(formats, build.scheme)
        num = settle(model, rules, formats, build.scheme, head, None if is_dummy or stored is None else folder)
        log.info("%d layers are quantized: %s%s.", num, formats.summary, "" if stored else ", made while loading")
        note_kv_cache(facts.config)
    if stored is not None or config.quantization is not None:
        note = f"{config.quantization} weights made at load" if stored is None else stored.summary
        model.weights_note = note  # type: ignore[assignment]
    if is_dummy:
        fill_with_random(model, config.seed)
    else:
        fill_from_files(model, rules, folder, progress)
    return model


def _by_transformers(
    folder: Path, facts: ModelFacts, build: Build, config: ModelConfig, stored: Formats | None
) -> nn.Module:
    if config.model_impl == "quire" or find_spec("transformers") is None:
        raise unknown(facts)
    if stored is not None:
        raise ConfigError(
            f"{facts.config.where}: {stored.summary} is for models that Quire has code for: see docs/models.md."
        )
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
