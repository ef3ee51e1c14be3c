"""Llama 2, 3, 3.1, 3.2 (Touvron et al. 2023, Dubey et al. 2024) and Mistral 7B (Jiang et al. 2023).

Pre-norm decoder with rotary positions, grouped-query attention and a SiLU-gated MLP. Llama 3.1 stretches the rope,
the small 3.2 ones tie the head to the embedding, Mistral looks back over a window.
"""

from __future__ import annotations

from torch import nn

from quire.checkpoint import ModelFacts
from quire.worker.layers.blocks import CausalLM, DecoderLayer, Shape
from quire.worker.layers.build import Build
from quire.worker.loading.names import Fuse, Rule, Skip


class LlamaForCausalLM(CausalLM):
    """Llama: biases on attention and MLP only where the config says so."""

    kv_heads: int | None = None

    def __init__(self, facts: ModelFacts, build: Build) -> None:
        config = facts.config
        shape = Shape.read(config, kv_heads=self.kv_heads)
        options = self.layer_options(facts)

        def layer(index: int) -> nn.Module:
            return DecoderLayer(shape, index, build, **options)

        super().__init__(shape, config, build, layer)

    def layer_options(self, facts: ModelFacts) -> dict[str, bool | int | None]:
        """What this family chooses among the blocks' options."""
        bias = facts.config.flag("attention_bias", False)
        return {"qkv_bias": bias, "out_bias": bias, "mlp_bias": facts.config.flag("mlp_bias", False)}

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

    kv_heads = 8

    def layer_options(self, facts: ModelFacts) -> dict[str, bool | int | None]:
        absent = 4096 if not facts.config.has("sliding_window") else None
        return {"window": facts.sliding_window or absent}
