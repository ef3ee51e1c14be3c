"""Phi 3, 3.5 and 4 (Abdin et al. 2024): Llama with q, k, v and gate, up fused in the checkpoint, and a rope that is
stretched frequency by frequency; the small Phi 4 turns three quarters of a head."""

from __future__ import annotations

from typing import Any

from quire.checkpoint import ModelFacts
from quire.worker.layers.build import Build
from quire.worker.layers.rope import rotary_dim
from quire.worker.layers.shape import Shape
from quire.worker.loading.names import Rule, Skip
from quire.worker.models.dense import DenseCausalLM


class Phi3ForCausalLM(DenseCausalLM):
    """Phi 3 and 4."""

    absent = {"rms_norm_eps": 1e-5}

    def attention(self, facts: ModelFacts, shape: Shape, build: Build, index: int) -> dict[str, Any]:
        """See DenseCausalLM."""
        return {"window": facts.sliding_window, "turned": rotary_dim(facts.config, shape.head_dim)}

    def weight_map(self) -> tuple[Rule, ...]:
        """Checkpoint names are ours."""
        return (Skip("rotary_emb.inv_freq"), *((Skip("lm_head"),) if self.tied else ()))
