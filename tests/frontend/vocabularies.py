"""Small tokenizers of the kinds that real checkpoints have, made on the spot."""

from __future__ import annotations

import functools
import json
from pathlib import Path

import tokenizers
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, processors, trainers

from quire.frontend.tokenizer import Tokenizer

TEXTS = [
    "Hello world, how are you today? I am fine. 你好世界 — naïve café 👩‍👩‍👧 emoji 🙂🙃",
    "one two three four five six seven eight nine ten; the end.\n\n def f(x):\n    return x + 1\n",
]
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] | trim }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


@functools.cache
def byte_level_core() -> tokenizers.Tokenizer:
    """Byte-level BPE, as Llama 3 and Qwen have it."""
    core = tokenizers.Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=400, initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    core.train_from_iterator(TEXTS, trainer)
    core.add_special_tokens(["<s>", "<|end|>", "<|user|>", "<|assistant|>", "<|system|>"])
    core.add_tokens([AddedToken("plain added", special=False), AddedToken("naïve 词", special=False)])
    core.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", core.token_to_id("<s>"))]
    )
    return core


@functools.cache
def byte_fallback_core(strip: bool = True) -> tokenizers.Tokenizer:
    """SentencePiece-like BPE with <0xNN> tokens, as Llama 2 and Mistral have it."""
    words = ["▁", "H", "e", "l", "o", "▁Hello", "▁world", "世", "é", "▁▁▁", "a", "b", "c", "▁the", "\n", "x▁y"]
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{b:02X}>" for b in range(256)), *words, "<0xZZ>"]
    vocab = {token: i for i, token in enumerate(tokens)}
    core = tokenizers.Tokenizer(models.BPE(vocab, [], unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    core.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    core.decoder = decoders.Sequence([*steps, decoders.Strip(" ", 1, 0)] if strip else steps)
    core.add_special_tokens(["<unk>", "<s>", "</s>"])
    return core


@functools.cache
def metaspace_core(scheme: str = "always") -> tokenizers.Tokenizer:
    """Metaspace without byte fallback, as T5-like tokenizers have it."""
    vocab = {token: i for i, token in enumerate(["<unk>", "</s>", "▁", "▁a", "▁the", "b", "c▁", "▁▁d", "世"])}
    core = tokenizers.Tokenizer(models.BPE(vocab, [], unk_token="<unk>"))
    core.decoder = decoders.Metaspace(prepend_scheme=scheme)
    core.add_special_tokens(["<unk>", "</s>"])
    return core


@functools.cache
def wordpiece_core() -> tokenizers.Tokenizer:
    """A decoder that only the windows lane serves."""
    tokens = ["[UNK]", "[SEP]", "a", "##b", "##c", "the", ",", "don", "'", "t", "世"]
    vocab = {token: i for i, token in enumerate(tokens)}
    core = tokenizers.Tokenizer(models.WordPiece(vocab, unk_token="[UNK]"))
    core.decoder = decoders.WordPiece(cleanup=False)
    core.add_special_tokens(["[UNK]", "[SEP]"])
    return core


@functools.cache
def chat_tokenizer() -> Tokenizer:
    """The byte-level one, with a chat template."""
    return Tokenizer(byte_level_core(), {"bos_token": "<s>", "eos_token": {"content": "<|end|>"}}, TEMPLATE)


def write_checkpoint(folder: Path) -> Path:
    """A folder with tokenizer, template and config, but no weights."""
    byte_level_core().save(str(folder / "tokenizer.json"))
    config = {"bos_token": "<s>", "eos_token": "<|end|>", "chat_template": TEMPLATE}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    model = {
        "architectures": ["LlamaForCausalLM"],
        "vocab_size": 512,
        "max_position_embeddings": 256,
        "eos_token_id": byte_level_core().token_to_id("<|end|>"),
    }
    (folder / "config.json").write_text(json.dumps(model))
    return folder
