"""Tokenizers out of GGUF files and SentencePiece models: the ids of those who made the formats."""

from __future__ import annotations

import io
import json
import random
from pathlib import Path
from typing import Any

import gguf
import pytest
import sentencepiece
from mutations import mutations
from tokenizers import Regex, Tokenizer, pre_tokenizers

from quire.config import ModelConfig
from quire.errors import ConfigError
from quire.frontend.text_side import load_text_side
from quire.frontend.tokenizer import Tokenizer as OurTokenizer
from quire.sources import tokenizer_folder
from quire.sources.gguf.header import read_header
from quire.sources.gguf.metadata import Metadata
from quire.sources.gguf.tokenizer import end_ids, make_tokenizer
from quire.sources.slow_tokenizer import convert, with_fast_tokenizer
from quire.sources.vocabulary import CONTROL, SPLITTINGS, USER_DEFINED

SENTENCE = "the quick brown fox jumps over lazy dogs while seven wise owls watch from an old oak and hoot softly 1234"
WORDS = SENTENCE.split()
TEXTS = [
    "", "the fox", " the  fox ", "fox\njumps\tover", "Zwölf Boxkämpfer 🦊 jagen", "don't 12345 3.14", "   ", "a" * 40,
    "<s>the</s>", "the<user>fox", "日本語 text", "…\u00a0x",
]  # fmt: skip


def train(kind: str, **options: Any) -> bytes:
    rng = random.Random(0)
    lines = [" ".join(rng.choices(WORDS, k=12)) for _ in range(300)]
    made = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines), model_writer=made, model_type=kind, minloglevel=2,
        **{"vocab_size": 330, "byte_fallback": True, "normalization_rule_name": "identity",
           "user_defined_symbols": ["<user>"], "remove_extra_whitespaces": False, **options},
    )  # fmt: skip
    return made.getvalue()


MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("bpe", {}),
    "gemma": ("bpe", {"add_dummy_prefix": False}),
    "unigram": (
        "unigram",
        {"vocab_size": 300, "normalization_rule_name": "nmt_nfkc", "remove_extra_whitespaces": True},
    ),
}


@pytest.mark.parametrize("name", MODELS)
def test_a_sentencepiece_model(name: str, tmp_path: Path) -> None:
    kind, options = MODELS[name]
    model = train(kind, **options)
    (tmp_path / "tokenizer.model").write_bytes(model)
    core = convert(tmp_path / "tokenizer.model")
    theirs = sentencepiece.SentencePieceProcessor(model_proto=model)
    rng = random.Random(1)
    texts = [text for text in TEXTS if "<" not in text]
    texts += ["".join(rng.choices("theoqwl 1é\n", k=rng.randint(1, 30))) for _ in range(60)]
    for text in texts:
        ids = core.encode(text, add_special_tokens=False).ids
        assert ids == theirs.encode(text), text
        assert core.decode(ids, skip_special_tokens=False) == theirs.decode(ids), text
    assert core.encode("the fox").ids == [theirs.bos_id(), *theirs.encode("the fox")]
    user = core.token_to_id("<user>")
    assert user in core.encode("the<user>fox").ids and core.encode("</s>", add_special_tokens=False).ids == [2]


def test_the_files_beside_it(tmp_path: Path) -> None:
    model = tmp_path / "m"
    model.mkdir()
    (model / "tokenizer.model").write_bytes(train("bpe"))
    config: dict[str, Any] = {
        "bos_token": "<s>", "eos_token": "</s>", "add_bos_token": False, "add_eos_token": True,
        "chat_template": "{{ messages[0].content }}",
        "added_tokens_decoder": {"330": {"content": "<|call|>", "special": True}, "1": {"content": "<s>"}},
    }  # fmt: skip
    (model / "tokenizer_config.json").write_text(json.dumps(config))
    tokenizer, template = load_text_side(ModelConfig(model=str(model)))
    assert tokenizer.encode("the")[-1] == 2 and tokenizer.encode("<|call|>")[0] == 330
    assert template.render([{"role": "user", "content": "x"}]) == "x"
    made = with_fast_tokenizer(model)
    assert made != model and with_fast_tokenizer(model) == made
    stamp = (made / "tokenizer.json").stat().st_mtime_ns
    assert with_fast_tokenizer(model, "slow") == made and (made / "tokenizer.json").stat().st_mtime_ns == stamp
    config["added_tokens_decoder"]["400"] = {"content": "<|far|>"}
    (model / "tokenizer_config.json").write_text(json.dumps(config))
    with pytest.raises(ConfigError, match=r"added token '<\|far\|>' would be 331, is 400"):
        with_fast_tokenizer(model)


def test_modes(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.model").write_bytes(train("bpe"))
    with pytest.raises(ConfigError, match=r"no tokenizer\.json"):
        load_text_side(ModelConfig(model=str(tmp_path), tokenizer_mode="hf"))
    made = tokenizer_folder(ModelConfig(model=str(tmp_path)))
    (tmp_path / "tokenizer.json").write_text((made / "tokenizer.json").read_text())
    assert tokenizer_folder(ModelConfig(model=str(tmp_path))) == tmp_path
    assert tokenizer_folder(ModelConfig(model=str(tmp_path), tokenizer_mode="slow")) != tmp_path
    (tmp_path / "tokenizer.model").unlink()
    with pytest.raises(ConfigError, match="--tokenizer-mode slow: "):
        tokenizer_folder(ModelConfig(model=str(tmp_path), tokenizer_mode="slow"))


def test_a_damaged_model_is_one_line(tmp_path: Path) -> None:
    whole = train("bpe")
    path = tmp_path / "tokenizer.model"
    refused = 0
    for damaged in mutations(whole, len(whole), 80, random.Random(2)):
        path.write_bytes(damaged)
        try:
            convert(path)
        except ConfigError as error:
            refused += 1
            assert "\n" not in error.message and str(path) in error.message
    assert refused > 20


# ---- GGUF ----------------------------------------------------------------------------------------------------------


def metadata(path: Path, fill: Any) -> Metadata:
    writer = gguf.GGUFWriter(path, "llama")
    fill(writer)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return Metadata([read_header(path)])


def test_sentencepiece_in_a_gguf(tmp_path: Path) -> None:
    model = train("bpe")
    theirs = sentencepiece.SentencePieceProcessor(model_proto=model)
    size = theirs.get_piece_size()
    kinds = [
        2 if theirs.is_unknown(i) else 3 if theirs.is_control(i) else 6 if theirs.is_byte(i) else 1 for i in range(size)
    ]
    kinds[theirs.piece_to_id("<user>")] = USER_DEFINED

    def fill(writer: gguf.GGUFWriter) -> None:
        writer.add_tokenizer_model("llama")
        writer.add_token_list([theirs.id_to_piece(i) for i in range(size)])
        writer.add_token_scores([theirs.get_score(i) for i in range(size)])
        writer.add_token_types(kinds)
        writer.add_bos_token_id(1)
        writer.add_eos_token_id(2)
        writer.add_unk_token_id(0)

    core, config = make_tokenizer(metadata(tmp_path / "x.gguf", fill))
    for text in [text for text in TEXTS if "<" not in text]:
        assert core.encode(text, add_special_tokens=False).ids == theirs.encode(text), text
    assert core.encode("the fox").ids[0] == 1
    assert {name: config[name] for name in ("bos_token", "eos_token", "unk_token")} == {
        "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>",
    }  # fmt: skip
    ids = core.encode("the fox", add_special_tokens=False).ids
    assert OurTokenizer(core, config).decode(ids) == "the fox"


@pytest.mark.parametrize("pre", ["gpt-2", "llama-bpe", "qwen2", "tekken", "default", "smollm", "gpt-4o", "falcon"])
def test_byte_pairs_in_a_gguf(pre: str, tmp_path: Path) -> None:
    """Against a tokenizer trained with the same cuts."""
    from tokenizers import models, normalizers, trainers

    theirs = Tokenizer(models.BPE())
    cuts = [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in SPLITTINGS[pre].patterns]
    theirs.pre_tokenizer = pre_tokenizers.Sequence([*cuts, pre_tokenizers.ByteLevel(False, use_regex=False)])
    if SPLITTINGS[pre].nfc:
        theirs.normalizer = normalizers.NFC()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet, special_tokens=["<s>", "<|eot_id|>"],
                                  show_progress=False)  # fmt: skip
    theirs.train_from_iterator([" ".join(WORDS) * 3, "don't 123 456"], trainer)
    said = json.loads(theirs.to_str())["model"]
    texts = sorted(said["vocab"], key=lambda text: said["vocab"][text])

    def fill(writer: gguf.GGUFWriter) -> None:
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre(pre)
        writer.add_token_list(texts)
        writer.add_token_types([CONTROL, CONTROL] + [1] * (len(texts) - 2))
        writer.add_token_merges([" ".join(pair) for pair in said["merges"]])
        writer.add_bos_token_id(0)
        writer.add_eos_token_id(0)
        writer.add_chat_template("{{ x }}")

    data = metadata(tmp_path / "x.gguf", fill)
    core, config = make_tokenizer(data)
    assert config["chat_template"] == "{{ x }}" and end_ids(data) == [0, 1]
    for text in TEXTS:
        assert core.encode(text, add_special_tokens=False).ids == theirs.encode(text).ids, text
    begun = [0] if SPLITTINGS[pre].bos else []
    assert core.encode("fox").ids == begun + theirs.encode("fox").ids


def test_known_cuts() -> None:
    """What the patterns of a few models do to a text, as those models are documented."""
    text = "I'LL see 12345 x's\n\n  end"
    cut = {
        name: [part for part, _ in pre_tokenizers.Split(Regex(SPLITTINGS[name].patterns[0]), "isolated")
               .pre_tokenize_str(text)]
        for name in ("llama-bpe", "qwen2", "gpt-2")
    }  # fmt: skip
    assert cut["llama-bpe"] == ["I", "'LL", " see", " ", "123", "45", " x", "'s", "\n\n", " ", " end"]
    assert cut["qwen2"] == ["I", "'LL", " see", " ", "1", "2", "3", "4", "5", " x", "'s", "\n\n", " ", " end"]
    assert cut["gpt-2"] == ["I", "'", "LL", " see", " 12345", " x", "'s", "\n\n ", " end"]
