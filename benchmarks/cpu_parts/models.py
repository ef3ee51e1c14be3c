"""Random checkpoints for `cpu.py` in a FOLDER, written by transformers so that every engine loads the same folder."""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path
from typing import Any

VOCAB = 32_000


def llama_125m(folder: Path) -> None:
    """A Llama shape of the GPT-2 small size: 12 layers of 768; 110 M parameters besides the input embedding."""
    from transformers import LlamaConfig, LlamaForCausalLM

    _write(
        folder,
        LlamaForCausalLM,
        LlamaConfig(
            vocab_size=VOCAB,
            hidden_size=768,
            intermediate_size=2048,
            num_hidden_layers=12,
            num_attention_heads=12,
            num_key_value_heads=12,
            max_position_embeddings=16384,
            tie_word_embeddings=False,
            bos_token_id=1,
            eos_token_id=2,
        ),
    )


def qwen3_600m(folder: Path) -> None:
    """The shape of Qwen3-0.6B, its head tied to the embedding."""
    from transformers import Qwen3Config, Qwen3ForCausalLM

    _write(
        folder,
        Qwen3ForCausalLM,
        Qwen3Config(
            vocab_size=151_936,
            hidden_size=1024,
            intermediate_size=3072,
            num_hidden_layers=28,
            num_attention_heads=16,
            num_key_value_heads=8,
            head_dim=128,
            max_position_embeddings=16384,
            rope_theta=1_000_000.0,
            tie_word_embeddings=True,
            bos_token_id=1,
            eos_token_id=2,
        ),
    )


def _write(folder: Path, kind: Any, config: Any) -> None:
    """Model and a tokenizer of made-up words; nothing if they are there."""
    import torch
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import WhitespaceSplit

    if (folder / "tokenizer_config.json").exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    config.dtype = torch.bfloat16
    kind(config).to(torch.bfloat16).save_pretrained(folder)
    tokenizer = Tokenizer(WordLevel({f"w{i}": i for i in range(VOCAB)}, unk_token="w0"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    tokenizer.save(str(folder / "tokenizer.json"))
    words = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "w2", "bos_token": "w1"}
    (folder / "tokenizer_config.json").write_text(json.dumps(words))


def prompts(count: int, length: int) -> list[list[int]]:
    """Random token ids, the same for all."""
    rng = random.Random(0)
    return [[rng.randrange(3, VOCAB) for _ in range(length)] for _ in range(count)]


if __name__ == "__main__":
    llama_125m(Path(sys.argv[1]) / "llama-125m")
    qwen3_600m(Path(sys.argv[1]) / "qwen3-600m")
