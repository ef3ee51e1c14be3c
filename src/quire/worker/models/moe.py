"""Mixtral (Jiang et al. 2024), Qwen 2 MoE and Qwen 3 MoE (Yang et al. 2024, 2025): Mistral and Qwen with experts."""

from __future__ import annotations

from dataclasses import replace

from torch import nn

from quire.checkpoint import Fields, ModelFacts
from quire.worker.layers.build import Build
from quire.worker.layers.experts import MixtureOfExperts, SharedExpert
from quire.worker.layers.mlp import GatedMLP
from quire.worker.layers.shape import Shape
from quire.worker.loading.names import Rename, Rule, StackExperts
from quire.worker.models.llama import MistralForCausalLM
from quire.worker.models.qwen2 import Qwen2ForCausalLM
from quire.worker.models.qwen3 import Qwen3ForCausalLM


class MixtralForCausalLM(MistralForCausalLM):
    """Mixtral: every layer has experts; no window unless its config names one."""

    def mlp(self, facts: ModelFacts, shape: Shape, build: Build, index: int) -> nn.Module:
        """See LlamaForCausalLM."""
        num, k = _counts(facts.config, "num_local_experts", 8, 2)
        return MixtureOfExperts(shape, build, num=num, k=k, width=shape.intermediate_size, rescale=True)

    def weight_map(self) -> tuple[Rule, ...]:
        """Checkpoint names to ours."""
        return (Rename("block_sparse_moe", "mlp"), StackExperts("w1", "w3", "w2"), *super().weight_map())


class Qwen2MoeForCausalLM(Qwen2ForCausalLM):
    """Qwen 2 MoE: an expert for all tokens beside the chosen ones."""

    absent = {"num_key_value_heads": 16}
    experts = (60, 4)

    def mlp(self, facts: ModelFacts, shape: Shape, build: Build, index: int) -> nn.Module:
        """See LlamaForCausalLM."""
        return _qwen_mlp(facts.config, shape, build, index, self.experts, shared=True)

    def weight_map(self) -> tuple[Rule, ...]:
        """Checkpoint names to ours."""
        return (_EXPERTS, Rename("shared_expert_gate.weight", "shared_expert.gate"), *super().weight_map())


class Qwen3MoeForCausalLM(Qwen3ForCausalLM):
    """Qwen 3 MoE."""

    absent = {"num_key_value_heads": 4, "head_dim": 128}
    experts = (128, 8)

    def mlp(self, facts: ModelFacts, shape: Shape, build: Build, index: int) -> nn.Module:
        """See LlamaForCausalLM."""
        return _qwen_mlp(facts.config, shape, build, index, self.experts, shared=False)

    def weight_map(self) -> tuple[Rule, ...]:
        """Checkpoint names to ours."""
        return (_EXPERTS, *super().weight_map())


_EXPERTS = StackExperts("gate_proj", "up_proj", "down_proj")


def _qwen_mlp(
    config: Fields, shape: Shape, build: Build, index: int, absent: tuple[int, int], *, shared: bool
) -> nn.Module:
    """Some layers may be dense: each but every so manieth, and those that are named."""
    step = config.integer("decoder_sparse_step", 1)
    if index in config.integers("mlp_only_layers") or (index + 1) % step:
        return GatedMLP(shape, build)
    num, k = _counts(config, "num_experts" if config.has("num_experts") else "num_local_experts", *absent)
    wide = replace(shape, intermediate_size=config.integer("shared_expert_intermediate_size", 5632)) if shared else None
    return MixtureOfExperts(
        shape,
        build,
        num=num,
        k=k,
        width=config.integer("moe_intermediate_size", 1408 if shared else 768),
        rescale=config.flag("norm_topk_prob", False),
        shared=SharedExpert(wide, build) if wide else None,
    )


def _counts(config: Fields, key: str, num: int, k: int) -> tuple[int, int]:
    num = config.integer(key, num, high=1 << 14)
    return num, config.integer("num_experts_per_tok", k, high=num)
