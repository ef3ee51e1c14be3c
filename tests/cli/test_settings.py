"""Flags, environment and file all come from the config classes, and agree."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from quire.cli.numbers import whole_number
from quire.cli.serve import build_configs, serve_settings
from quire.cli.settings import from_environment, from_file
from quire.config import ENGINE_GROUPS, EngineConfig, ServerConfig, fields_of
from quire.errors import ConfigError

SETTINGS = serve_settings()


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("4096", 4096), ("4k", 4000), ("4K", 4096), ("25.6k", 25_600), ("1M", 1 << 20), ("1m", 10**6), ("2G", 2 << 30),
        ("-1", -1), ("1_000", 1000), (" 7 ", 7), ("1.5K", 1536), ("0", 0), ("3g", 3 * 10**9),
    ],
)  # fmt: skip
def test_numbers(text: str, value: int) -> None:
    assert whole_number(text) == value


@pytest.mark.parametrize("text", ["", "k", "4kk", "1.0001k5", "0x10", "4.5", "ten", "1e3", "--4", "4 k"])
def test_no_numbers(text: str) -> None:
    with pytest.raises(ValueError):
        whole_number(text)


def test_the_table_has_every_field() -> None:
    names = {name for group in (*ENGINE_GROUPS.values(), ServerConfig) for name in fields_of(group)}
    assert {setting.name for setting in SETTINGS} == names and len(SETTINGS) == len(names)
    assert all(setting.help for setting in SETTINGS)


def env(**values: str) -> dict[str, Any]:
    return from_environment(SETTINGS, values)


def test_environment() -> None:
    assert env(QUIRE_MAX_MODEL_LEN="4k", QUIRE_PORT="", QUIRE_ENFORCE_EAGER="on", HOME="x", QUIRE_API_KEY="k") == {
        "max_model_len": 4000,
        "enforce_eager": True,
        "api_key": ("k",),
    }
    assert env(QUIRE_ENABLE_PREFIX_CACHING="0", QUIRE_MAX_MODEL_LEN="auto", QUIRE_GPU_MEMORY_UTILIZATION="0.5") == {
        "enable_prefix_caching": False,
        "max_model_len": -1,
        "gpu_memory_utilization": 0.5,
    }
    for name, text in (("QUIRE_PORT", "x"), ("QUIRE_DTYPE", "int4"), ("QUIRE_ENFORCE_EAGER", "maybe")):
        with pytest.raises(ConfigError, match=name):
            env(**{name: text})


def test_file(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"

    def read(text: str) -> dict[str, Any]:
        path.write_text(text)
        return from_file(path, SETTINGS)

    text = "max-model-len: 4K\nenforce_eager: true\napi-key: [a, b]\nserved-model-name: m\nseed: 3\nswap-space: 1.5\n"
    assert read(text) == {
        "max_model_len": 4096,
        "enforce_eager": True,
        "api_key": ("a", "b"),
        "served_model_name": ("m",),
        "seed": 3,
        "swap_space": 1.5,
    }
    assert read("") == {} and read("port:\n") == {}
    for text, words in (
        ("max-modl-len: 4", "Did you mean 'max-model-len'"),
        ("port: [1]", "single value"),
        ("port: true", "true or false"),
        ("- a", "name: value"),
        ("a: b: c", "cannot be read"),
        ("!!python/object/apply:os.system ['true']", "cannot be read"),
    ):
        with pytest.raises(ConfigError, match=words):
            read(text)
    with pytest.raises(ConfigError, match="cannot be read"):
        from_file(tmp_path / "none.yaml", SETTINGS)


def test_counts(tmp_path: Path) -> None:
    """How many of what, in the spellings that vLLM has had."""
    setting = next(setting for setting in SETTINGS if setting.name == "limit_mm_per_prompt")
    for text in ("image=4", '{"image": 4}', "image=4,video=0", "image = 4"):
        assert setting.parse(text, "here")["image"] == 4
        assert env(QUIRE_LIMIT_MM_PER_PROMPT=text)["limit_mm_per_prompt"]["image"] == 4
    for text in ("4", "image", "image=many", '{"image": "4"}', '{"image": [4]}', "{"):
        with pytest.raises(ConfigError, match=r"here: .*image"):
            setting.parse(text, "here")
    path = tmp_path / "c.yaml"
    path.write_text("limit-mm-per-prompt: {image: 3}\n")
    assert from_file(path, SETTINGS) == {"limit_mm_per_prompt": {"image": 3}}
    engine, _ = build_configs({"limit_mm_per_prompt": {"image": 2}}, str(path), SETTINGS)
    assert engine.media.limit_mm_per_prompt == {"image": 2}
    for wrong, word in (({"image": -1}, "-1"), ({"video": 1}, "video=1"), ({"image": 1 << 20}, "65536")):
        with pytest.raises(ConfigError, match=f"--limit-mm-per-prompt.*{word}"):
            build_configs({"limit_mm_per_prompt": wrong}, None, SETTINGS)


def test_precedence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("port: 1\nseed: 1\nblock-size: 1\n")

    def built(**flags: Any) -> tuple[EngineConfig, ServerConfig]:
        return build_configs(flags, str(path), SETTINGS)

    monkeypatch.setenv("QUIRE_PORT", "2")
    monkeypatch.setenv("QUIRE_SEED", "2")
    engine, server = built(port=3, host=None, api_key=())
    assert (server.port, engine.model.seed, engine.cache.block_size, server.host) == (3, 2, 1, "127.0.0.1")
    with pytest.raises(ConfigError, match="--port 70000"):
        built(port=70_000)


def test_objects() -> None:
    """--hf-overrides: JSON on the command line and in the environment, a mapping in the file."""
    wanted = {"rope_scaling": {"factor": 2.0}, "vocab_size": 7}
    text = '{"rope_scaling": {"factor": 2.0}, "vocab_size": 7}'
    assert env(QUIRE_HF_OVERRIDES=text) == {"hf_overrides": wanted}
    setting = next(setting for setting in SETTINGS if setting.name == "hf_overrides")
    assert setting.parse(text, "x") == wanted
    for wrong in ("{", "[1]", "7", "x=y", "{" * 5000):
        with pytest.raises(ConfigError, match=r"QUIRE_HF_OVERRIDES: .{,70} is not (JSON|a JSON object)"):
            env(QUIRE_HF_OVERRIDES=wrong)


def test_objects_in_a_file(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("hf-overrides:\n  rope_scaling: {factor: 2.0}\ntokenizer-mode: slow\nload-format: gguf\n")
    found = from_file(path, SETTINGS)
    assert found == {"hf_overrides": {"rope_scaling": {"factor": 2.0}}, "tokenizer_mode": "slow", "load_format": "gguf"}
    engine, _ = build_configs({"hf_overrides": {"a": 1}, "download_dir": "/d"}, str(path), SETTINGS)
    assert engine.model.hf_overrides == {"a": 1} and engine.model.download_dir == "/d"
    with pytest.raises(ConfigError, match="tokenizer-mode"):
        build_configs({"tokenizer_mode": "mistral"}, None, SETTINGS)
