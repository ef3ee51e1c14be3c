"""Phi 1, 1.5 and 2 (Li et al. 2023): attention and MLP side by side behind one LayerNorm, biases everywhere, and a rope
that turns only a part of each head."""

from __future__ import annotations

from torch import nn

from quire.checkpoint import ModelFacts
from quire.worker.layers.blocks import CausalLM, Decoder, ParallelLayer
from quire.worker.layers.build import Build
from quire.worker.layers.mlp import PlainMLP
from quire.worker.layers.norm import LayerNorm
from quire.worker.layers.rope import RotaryEmbedding, rotary_dim
from quire.worker.layers.shape import Shape
from quire.worker.loading.names import Fuse, Rename, Rule, Skip


class PhiForCausalLM(CausalLM):
    """Phi 2; its config names half of what a head turns where it names nothing."""

    def __init__(self, facts: ModelFacts, build: Build) -> None:
        config = facts.config
        absent = {"hidden_act": "gelu_new", "rms_norm_eps": 1e-5}
        shape = Shape.read(config, names={"rms_norm_eps": "layer_norm_eps"}, absent=absent)
        if config.flag("qk_layernorm", False):
            config.fail("qk_layernorm", "must be false", True)
        turned = rotary_dim(config, shape.head_dim, absent=0.5)

        def norm() -> LayerNorm:
            return LayerNorm(shape.hidden_size, shape.norm_eps, build)

        def layer(index: int) -> nn.Module:
            mlp = PlainMLP(shape, build, bias=True)
            return ParallelLayer(
                shape, index, build, mlp=mlp, norm=norm, qkv_bias=True, out_bias=True, turned=turned
            )  # fmt: skip

        rope = RotaryEmbedding(shape.head_dim, config, build, turned=turned)
        super().__init__(shape, build, Decoder(shape, build, layer, (rope,), norm=norm), head_bias=True)

    def weight_map(self) -> tuple[Rule, ...]:
        """Checkpoint names to ours."""
        return (
            Fuse("qkv_proj", "q_proj", "k_proj", "v_proj"),
            Rename("self_attn.dense", "self_attn.o_proj"),
            Rename("mlp.fc1", "mlp.up_proj"),
            Rename("mlp.fc2", "mlp.down_proj"),
            Rename("model.final_layernorm", "model.norm"),
            Skip("rotary_emb.inv_freq"),
        )
