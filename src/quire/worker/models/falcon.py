"""Falcon (Almazrouei et al. 2023): 7B with one KV head, 40B and 180B with several; LayerNorm, no gate, the head is the
embedding. Attention and MLP stand side by side, in the larger ones each behind a norm of its own."""

from __future__ import annotations

import torch
from torch import nn

from quire.checkpoint import Fields, ModelFacts
from quire.worker.layers.blocks import CausalLM, Decoder, DecoderLayer, ParallelLayer
from quire.worker.layers.build import Build
from quire.worker.layers.mlp import PlainMLP
from quire.worker.layers.norm import LayerNorm
from quire.worker.layers.rope import RotaryEmbedding
from quire.worker.layers.shape import FOUR_TIMES, Shape
from quire.worker.loading.names import Rename, Rule, Skip

NAMES = {
    "num_key_value_heads": "num_kv_heads",
    "intermediate_size": "ffn_hidden_size",
    "rms_norm_eps": "layer_norm_epsilon",
    "hidden_act": "activation",
}
ABSENT = {"hidden_act": "gelu", "intermediate_size": FOUR_TIMES, "rms_norm_eps": 1e-5, "tie_word_embeddings": True}


class FalconForCausalLM(CausalLM):
    """Falcon, all but the ones with ALiBi."""

    def __init__(self, facts: ModelFacts, build: Build) -> None:
        config = facts.config
        if config.flag("alibi", False):
            config.fail("alibi", "must be false: positions by ALiBi are not supported", True)
        new = config.flag("new_decoder_architecture", False)
        shape = Shape.read(_with_kv_heads(config, new), names=NAMES, absent=ABSENT)
        bias = config.flag("bias", False)
        own_norm = new and config.integer("num_ln_in_parallel_attn", 2) == 2
        order = _order(shape) if new or shape.num_kv_heads > 1 else None
        self._own_norm = own_norm

        def norm() -> LayerNorm:
            return LayerNorm(shape.hidden_size, shape.norm_eps, build)

        def layer(index: int) -> nn.Module:
            options = {"mlp": PlainMLP(shape, build, bias=bias), "norm": norm}
            options |= {"qkv_bias": bias, "out_bias": bias, "order": order}
            if new or config.flag("parallel_attn", True):
                return ParallelLayer(shape, index, build, own_norm=own_norm, **options)
            return DecoderLayer(shape, index, build, **options)

        rope = RotaryEmbedding(shape.head_dim, config, build)
        super().__init__(shape, build, Decoder(shape, build, layer, (rope,), norm=norm))

    def weight_map(self) -> tuple[Rule, ...]:
        """Checkpoint names to ours."""
        return (
            Rename("transformer.h", "model.layers"),
            Rename("transformer.word_embeddings", "model.embed_tokens"),
            Rename("transformer.ln_f", "model.norm"),
            Rename("self_attention.query_key_value", "self_attn.qkv_proj"),
            Rename("self_attention.dense", "self_attn.o_proj"),
            Rename("mlp.dense_h_to_4h", "mlp.up_proj"),
            Rename("mlp.dense_4h_to_h", "mlp.down_proj"),
            Rename("ln_attn", "input_layernorm"),
            Rename("ln_mlp", "mlp_layernorm"),
            Skip("self_attention.rotary_emb.inv_freq"),
            *((Skip("lm_head"),) if self.tied else ()),
        )


def _with_kv_heads(config: Fields, new: bool) -> Fields:
    """Before 40B a config names one KV head, or as many as heads, by a flag of its own."""
    if new:
        return config
    heads = 1 if config.flag("multi_query", True) else config.integer("num_attention_heads")
    return Fields({**config.values, "num_kv_heads": heads}, config.where)


def _order(shape: Shape) -> torch.Tensor:
    """The checkpoint's rows lie group by group: the group's q heads, its k, its v."""
    groups, dim = shape.num_kv_heads, shape.head_dim
    rows = torch.arange((shape.num_heads + 2 * groups) * dim).view(groups, -1, dim)
    return torch.cat([rows[:, :-2].flatten(), rows[:, -2].flatten(), rows[:, -1].flatten()])
