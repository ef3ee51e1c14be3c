"""Small random checkpoints of every family, written by transformers itself, with a tokenizer: folders to be served."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    FalconConfig,
    FalconForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GemmaConfig,
    GemmaForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    Phi3Config,
    Phi3ForCausalLM,
    PhiConfig,
    PhiForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen2MoeConfig,
    Qwen2MoeForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)

VOCAB = 512
SIZES = {
    "vocab_size": VOCAB,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "initializer_range": 0.15,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
LLAMA31_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 10_000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
LONG_ROPE = {
    "rope_type": "longrope",
    "rope_theta": 10_000.0,
    "partial_rotary_factor": 0.5,
    "short_factor": [1.0, 1.1, 1.3, 1.6],
    "long_factor": [1.0, 1.5, 3.0, 7.0],
    "original_max_position_embeddings": 512,
}
EXPERTS = {"num_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 48}
FAMILIES: dict[str, tuple[type, type, dict[str, Any]]] = {
    "llama2": (LlamaConfig, LlamaForCausalLM, {"num_key_value_heads": 4}),
    "llama31": (LlamaConfig, LlamaForCausalLM, {"rope_parameters": LLAMA31_ROPE}),
    "llama32": (LlamaConfig, LlamaForCausalLM, {"rope_parameters": LLAMA31_ROPE, "tie_word_embeddings": True}),
    "mistral": (MistralConfig, MistralForCausalLM, {"sliding_window": 24}),
    "qwen2": (Qwen2Config, Qwen2ForCausalLM, {"tie_word_embeddings": True}),
    "qwen3": (Qwen3Config, Qwen3ForCausalLM, {"head_dim": 32}),
    "gemma": (GemmaConfig, GemmaForCausalLM, {"head_dim": 32}),
    "gemma2": (Gemma2Config, Gemma2ForCausalLM, {"head_dim": 16, "sliding_window": 24, "query_pre_attn_scalar": 20}),
    "gemma3": (
        Gemma3TextConfig,
        Gemma3ForCausalLM,
        {"head_dim": 16, "sliding_window": 24, "layer_types": ["sliding_attention", "full_attention"]},
    ),
    "phi2": (
        PhiConfig,
        PhiForCausalLM,
        {"rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0, "partial_rotary_factor": 0.5}},
    ),
    "phi3": (Phi3Config, Phi3ForCausalLM, {"pad_token_id": 0, "sliding_window": 24}),
    "phi4": (
        Phi3Config,
        Phi3ForCausalLM,
        {"pad_token_id": 0, "original_max_position_embeddings": 512, "rope_parameters": LONG_ROPE},
    ),
    "falcon7": (FalconConfig, FalconForCausalLM, {}),
    "falcon40": (FalconConfig, FalconForCausalLM, {"new_decoder_architecture": True, "num_kv_heads": 2, "bias": True}),
    "falcon_rw": (FalconConfig, FalconForCausalLM, {"multi_query": False, "parallel_attn": False, "bias": True}),
    "mixtral": (MixtralConfig, MixtralForCausalLM, {"num_local_experts": 4}),
    "qwen2_moe": (Qwen2MoeConfig, Qwen2MoeForCausalLM, {**EXPERTS, "shared_expert_intermediate_size": 80}),
    "qwen3_moe": (
        Qwen3MoeConfig,
        Qwen3MoeForCausalLM,
        {**EXPERTS, "head_dim": 32, "norm_topk_prob": True, "mlp_only_layers": [1]},
    ),
}
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SPECIAL = ["<unk>", "<s>", "</s>", "<|im_start|>", "<|im_end|>"]
TEXT = "the quick brown fox jumps over the lazy dog while seven wise owls watch from an old oak tree and hoot softly "


def write(
    family: str, folder: Path, *, max_shard_size: str = "5GB", seed: int = 0, **overrides: Any
) -> PreTrainedModel:
    """Write a checkpoint and return transformers' model of it, in float32.

    Args:
        family: one of FAMILIES.
        folder: made if it is not there.
        max_shard_size: as in save_pretrained; small ones give a sharded index.
        overrides: keys of the config.
    """
    config_class, model_class, choices = FAMILIES[family]
    torch.manual_seed(seed)
    model = model_class(config_class(**{**SIZES, **choices, **overrides})).eval()
    model.set_attn_implementation("eager")  # some versions leave soft caps out of the others
    with torch.no_grad():  # transformers starts norms at 1 and biases at 0, which would hide mistakes
        for name, param in model.named_parameters():
            if param.dim() == 1:
                param.normal_(0.0 if name.endswith("bias") else 1.0, 0.2)
    model.save_pretrained(folder, max_shard_size=max_shard_size)
    write_tokenizer(Path(folder))
    return model


def write_tokenizer(folder: Path) -> None:
    """A byte-level BPE of at most VOCAB entries: 5 special tokens, 256 bytes, merges of a little text."""
    tokenizer = Tokenizer(models.BPE(unk_token=None))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([TEXT] * 4, trainer)
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<s>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
        "chat_template": TEMPLATE,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
