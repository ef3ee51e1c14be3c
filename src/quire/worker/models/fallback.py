"""Any other decoder that transformers knows, by transformers' own modelling code, over our paged cache.

transformers looks its attention function up by name; ours is entered there. A first pass of two tokens shows what each
attention asks for, so nothing has to be known about the family:

    base model  [1, tokens] ── q, k, v of a layer ──► store, attend over pages ──► back
    tail        the rest of its class on given hidden states: final scales and caps stay its own

Slower than a model of our own: its layers are launched one operation at a time and not captured.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn

from quire.checkpoint import ModelFacts
from quire.errors import ConfigError, StartupError
from quire.worker.attention.protocol import AttentionSpec, KVSpec
from quire.worker.batch import Batch
from quire.worker.layers.attention import Attention
from quire.worker.layers.build import Build
from quire.worker.loading.names import Rule
from quire.worker.loading.weights import fill_with_random
from quire.worker.models.registry import unknown

log = logging.getLogger("quire.engine")
NAME = "quire_paged"


class TransformersForCausalLM(nn.Module):
    """A checkpoint in transformers' own code.

    Args:
        dummy: random weights.
        remote_code: run code of the checkpoint.
        overrides: keys of its config that have other values.

    Raises:
        ConfigError: transformers is missing or does not know the architecture, or its attention cannot be replaced.
        StartupError: the weights cannot be read.
    """

    routes = launched_only = True

    def __init__(
        self,
        folder: Path,
        facts: ModelFacts,
        build: Build,
        *,
        dummy: bool,
        remote_code: bool,
        overrides: Mapping[str, Any],
    ) -> None:
        super().__init__()
        model = _load(folder, facts, build, dummy=dummy, remote_code=remote_code, overrides=overrides)
        prefix = model.base_model_prefix
        self.base = getattr(model, prefix)
        setattr(model, prefix, _Given())
        self.tail = model
        self._attentions: list[Attention] = []
        self._batch: Batch | None = None
        self._find_attentions(build, facts)

    def forward(self, batch: Batch) -> torch.Tensor:
        """Hidden states: [tokens, hidden]."""
        self._batch = batch
        try:
            return self._run(batch.input_ids, batch.positions)
        finally:
            self._batch = None

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """[n, hidden] -> [n, vocab]."""
        ids = torch.zeros(1, len(hidden), dtype=torch.long, device=hidden.device)
        with self.tail.get_submodule(self.tail.base_model_prefix).giving(hidden):
            return self.tail(input_ids=ids, use_cache=False).logits[0]

    def kv_specs(self) -> tuple[KVSpec, ...]:
        """What each layer keeps per token."""
        return tuple(attention.kv_spec for attention in self._attentions)

    def weight_map(self) -> tuple[Rule, ...]:
        """transformers loads by itself."""
        return ()

    def _run(self, ids: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        _CURRENT.append(self)
        try:
            out = self.base(input_ids=ids[None].long(), position_ids=positions[None].long(), use_cache=False)
        finally:
            _CURRENT.pop()
        return out.last_hidden_state[0]

    def _find_attentions(self, build: Build, facts: ModelFacts) -> None:
        self._seen: list[tuple[nn.Module, AttentionSpec]] = []
        two = torch.zeros(2, dtype=torch.long, device=build.device)
        with torch.inference_mode():
            self._run(two, torch.arange(2, device=build.device))
        if not self._seen:
            raise ConfigError(f"{facts.config.where}: {', '.join(facts.architectures)} has attention of its own kind.")
        for index, (module, spec) in enumerate(self._seen):
            module.quire_index = index  # type: ignore[assignment]
            self._attentions.append(Attention(spec, index, build))
        del self._seen

    def attend(
        self, module: nn.Module, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, how: dict[str, Any]
    ) -> torch.Tensor:
        """q [1, heads, tokens, dim], k and v [1, kv_heads, tokens, dim] -> [1, tokens, heads, dim]."""
        _, heads, tokens, dim = q.shape
        if self._batch is None:  # the first pass, which only looks
            scale = how.get("scaling")
            spec = AttentionSpec(
                heads,
                k.shape[1],
                dim,
                scale=dim**-0.5 if scale is None else float(scale),
                window=how.get("sliding_window"),
                soft_cap=how.get("softcap"),
            )
            if v.shape != k.shape or q.shape[3] != k.shape[3]:
                raise ConfigError(f"{type(module).__name__}: heads of q, k and v differ in size.")
            self._seen.append((module, spec))
            return torch.zeros(1, tokens, heads, dim, dtype=q.dtype, device=q.device)
        qkv = torch.cat([part[0].transpose(0, 1).flatten(1) for part in (q, k, v)], dim=1)
        return self._attentions[module.quire_index](qkv, self._batch).view(1, tokens, heads, dim)


_CURRENT: list[TransformersForCausalLM] = []
"""Whose pass this is: transformers' attention functions are found by name, so they cannot be bound."""


def _attend(
    module: nn.Module, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, attention_mask: Any, **how: Any
) -> tuple[torch.Tensor, None]:
    """What transformers calls."""
    return _CURRENT[-1].attend(module, query, key, value, how), None


class _Given(nn.Module):
    """Stands where the base model was, and returns the hidden states it is given."""

    def giving(self, hidden: torch.Tensor) -> _Given:
        """For one call."""
        self._hidden = hidden
        return self

    @property
    def decoder(self) -> _Given:
        """Some heads ask the base model's decoder."""
        return self

    def __enter__(self) -> None:
        return None

    def __exit__(self, *error: object) -> None:
        del self._hidden

    def forward(self, *args: Any, **how: Any) -> Any:
        return _Output(last_hidden_state=self._hidden[None])


class _Output(SimpleNamespace):
    """As transformers' outputs: by name, or the first by number."""

    past_key_values = hidden_states = attentions = cross_attentions = router_logits = None

    def __getitem__(self, index: int) -> Any:
        return (self.last_hidden_state,)[index]


def _load(
    folder: Path, facts: ModelFacts, build: Build, *, dummy: bool, remote_code: bool, overrides: Mapping[str, Any]
) -> Any:
    try:
        import transformers
    except ImportError:
        raise ConfigError(
            f"{facts.config.where}: architecture {', '.join(facts.architectures)} needs transformers' own code."
            " pip install 'quire[transformers]'."
        ) from None
    if facts.config.has("auto_map") and not remote_code:
        raise ConfigError(
            f"{facts.config.where}: auto_map names code in the checkpoint, which runs only with --trust-remote-code."
        )
    transformers.AttentionInterface.register(NAME, _attend)
    how = {"trust_remote_code": remote_code, "attn_implementation": NAME, "dtype": build.dtype}
    try:
        config = transformers.AutoConfig.from_pretrained(folder, trust_remote_code=remote_code, **overrides)
        known = transformers.AutoModelForCausalLM._model_mapping.get(type(config), None)
        if not remote_code and (known is None or known.__name__ not in facts.architectures):
            raise unknown(facts)  # its code would run something else under this name
        if dummy:
            with torch.device(build.device):
                model = transformers.AutoModelForCausalLM.from_config(config, **how)
            fill_with_random(model, 0)
        else:
            model = transformers.AutoModelForCausalLM.from_pretrained(
                folder, config=config, local_files_only=True, use_safetensors=True, **how
            ).to(build.device)
    except (ValueError, KeyError, ImportError) as error:
        raise ConfigError(f"{facts.config.where}: transformers cannot run it: {_first_line(error)}") from error
    except (OSError, RuntimeError) as error:
        raise StartupError(f"{folder}: transformers cannot load it: {_first_line(error)}") from error
    return model.eval()


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
