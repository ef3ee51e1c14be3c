"""Reading a checkpoint's tokenizer and template."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest
from vocabularies import TEMPLATE, byte_level_core, chat_tokenizer, write_checkpoint

from quire.config import ModelConfig
from quire.errors import ConfigError, RequestError
from quire.frontend.text_side import load_text_side
from quire.frontend.tokenizer import LONG_TEXT, Tokenizer
from quire.params import SamplingParams


def test_from_folder(tmp_path: Path) -> None:
    write_checkpoint(tmp_path)
    tokenizer, template = load_text_side(ModelConfig(model=str(tmp_path)))
    ids = tokenizer.encode("Hello world")
    assert tokenizer.decode(ids, False) == "<s>Hello world" and tokenizer.decode(ids) == "Hello world"
    assert ids[1:] == tokenizer.encode("Hello world", add_special_tokens=False)
    assert tokenizer.special_tokens == {"bos_token": "<s>", "eos_token": "<|end|>"}
    assert template.render([{"role": "user", "content": "x"}]).startswith("<s><|user|>x")
    assert tokenizer.vocab_size == byte_level_core().get_vocab_size()


def test_where_the_template_comes_from(tmp_path: Path) -> None:
    write_checkpoint(tmp_path)
    assert Tokenizer.from_folder(tmp_path).chat_template == TEMPLATE
    named = [{"name": "default", "template": "d"}, {"name": "tool_use", "template": "t"}]
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": named}))
    assert Tokenizer.from_folder(tmp_path).chat_template == {"default": "d", "tool_use": "t"}
    (tmp_path / "chat_template.json").write_text(json.dumps({"chat_template": "of a processor"}))
    assert Tokenizer.from_folder(tmp_path).chat_template == "of a processor"
    (tmp_path / "chat_template.jinja").write_text("from the file")
    assert Tokenizer.from_folder(tmp_path).chat_template == "from the file"
    (tmp_path / "mine.jinja").write_text("mine")
    _, template = load_text_side(ModelConfig(model=str(tmp_path)), str(tmp_path / "mine.jinja"))
    assert template.render([{"role": "user", "content": "x"}]) == "mine"
    (tmp_path / "tokenizer_config.json").unlink()
    (tmp_path / "chat_template.jinja").unlink()
    (tmp_path / "chat_template.json").unlink()
    assert Tokenizer.from_folder(tmp_path).chat_template is None


def test_config_errors(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no tokenizer\.json.*save_pretrained"):
        Tokenizer.from_folder(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ConfigError, match="cannot be read"):
        Tokenizer.from_folder(tmp_path)
    write_checkpoint(tmp_path)
    with pytest.raises(ConfigError, match="--chat-template"):
        load_text_side(ModelConfig(model=str(tmp_path)), "/no/such/file")


def test_unusual_texts() -> None:
    tokenizer = chat_tokenizer()
    with pytest.raises(RequestError, match="surrogate"):
        tokenizer.encode("\ud800")
    assert tokenizer.encode("", add_special_tokens=False) == []
    assert tokenizer.decode(tokenizer.encode("a\x00b\u202e", add_special_tokens=False)) == "a\x00b\u202e"
    assert tokenizer.id_to_token(2**40) is None and tokenizer.token_bytes(2**31 - 1) == b""


def test_long_texts_leave_the_loop_free() -> None:
    tokenizer = chat_tokenizer()
    text = "one two three " * 40_000
    assert len(text) > LONG_TEXT

    async def main() -> tuple[list[int], int]:
        ticks = 0
        task = asyncio.create_task(tokenizer.encode_async(text))
        while not task.done():
            await asyncio.sleep(0.001)
            ticks += 1
        return task.result(), ticks

    ids, ticks = asyncio.run(main())
    assert ids == tokenizer.encode(text) and ticks > 10


@pytest.mark.parametrize("cut", [1, 3, 100])
def test_some_special_tokens_can_be_kept(cut: int) -> None:
    tokenizer = chat_tokenizer()
    ids = tokenizer.encode("<s><|user|>hé<|end|>llo 🙂<|user|>", add_special_tokens=False)
    for keep, expected in (
        ((), "héllo 🙂"),
        (("<|user|>", "no token"), "<|user|>héllo 🙂<|user|>"),
        (("<|user|>", "<|end|>", "<s>"), "<s><|user|>hé<|end|>llo 🙂<|user|>"),
    ):
        detokenizer = tokenizer.detokenizers(SamplingParams(), 1, keep)[0]
        pieces = [detokenizer.push(ids[i : i + cut]).text for i in range(0, len(ids), cut)]
        assert "".join(pieces) + detokenizer.finish().text == expected


def test_many_texts_keep_their_order_and_much_text_leaves_the_loop() -> None:
    import threading

    tokenizer = Tokenizer(byte_level_core())
    seen: list[str] = []
    encode = tokenizer.encode_many

    def watched(texts: list[str], **options: bool) -> list[list[int]]:
        seen.append(threading.current_thread().name)
        return encode(texts, **options)

    tokenizer.encode_many = watched  # type: ignore[method-assign, assignment]
    texts = [f"{i} " * (1 + i * 7 % 50) for i in range(64)]
    found = asyncio.run(tokenizer.encode_many_async(texts))
    assert found == [tokenizer.encode(text) for text in texts]
    assert asyncio.run(tokenizer.encode_many_async(["a", "b"])) == [tokenizer.encode("a"), tokenizer.encode("b")]
    assert asyncio.run(tokenizer.encode_many_async([])) == []
    assert seen[0].startswith("quire-tokenize") and seen[1] == "MainThread"
    tokenizer.close()
