"""Llama 2, 3, 3.1, 3.2 (Touvron et al. 2023, Dubey et al. 2024) and Mistral 7B (Jiang et al. 2023).

Pre-norm decoder with rotary positions, grouped-query attention and a SiLU-gated MLP. Llama 3.1 stretches the rope,
the small 3.2 ones tie the head to the embedding, Mistral looks back over a window.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from quire.checkpoint import ModelFacts
from quire.worker.layers.blocks import CausalLM, Decoder, DecoderLayer
from quire.worker.layers.build import Build
from quire.worker.layers.mlp import GatedMLP
from quire.worker.layers.rope import RotaryEmbedding
from quire.worker.layers.shape import Shape
from quire.worker.loading.names import Fuse, Rule, Skip


class LlamaForCausalLM(CausalLM):
    """Llama: biases on attention and MLP only where the config says so."""

    absent: dict[str, Any] = {}
    """Values of this family where a config names none."""

    def __init__(self, facts: ModelFacts, build: Build) -> None:
        shape = Shape.read(facts.config, absent=self.absent)

        def layer(index: int) -> nn.Module:
            where = (facts, shape, build, index)
            return DecoderLayer(shape, index, build, mlp=self.mlp(*where), **self.attention(*where))

        rope = RotaryEmbedding(shape.head_dim, facts.config, build)
        super().__init__(shape, build, Decoder(shape, build, layer, (rope,)))

    def attention(self, facts: ModelFacts, shape: Shape, build: Build, index: int) -> dict[str, Any]:
        """What this family chooses among the options of `SelfAttention`."""
        bias = facts.config.flag("attention_bias", False)
        return {"qkv_bias": bias, "out_bias": bias}

    def mlp(self, facts: ModelFacts, shape: Shape, build: Build, index: int) -> nn.Module:
        """What stands between two attentions."""
        return GatedMLP(shape, build, bias=facts.config.flag("mlp_bias", False))

    def weight_map(self) -> tuple[Rule, ...]:
        """Checkpoint names to ours."""
        return (
            Fuse("qkv_proj", "q_proj", "k_proj", "v_proj"),
            Fuse("gate_up_proj", "gate_proj", "up_proj"),
            Skip("rotary_emb.inv_freq"),
            *((Skip("lm_head"),) if self.tied else ()),
        )


class MistralForCausalLM(LlamaForCausalLM):
    """Mistral: every layer sees the last `sliding_window` positions; null is all, 4096 where the key is absent."""

    absent = {"num_key_value_heads": 8}

    def attention(self, facts: ModelFacts, shape: Shape, build: Build, index: int) -> dict[str, Any]:
        """See LlamaForCausalLM."""
        absent = 4096 if not facts.config.has("sliding_window") else None
        return {"window": facts.sliding_window or absent}
