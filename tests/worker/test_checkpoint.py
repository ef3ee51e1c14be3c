"""Where a checkpoint is found, and what its JSON says."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from quire.checkpoint import Fields, read_facts, rope_fields
from quire.errors import ConfigError, StartupError
from quire.sources import resolve

CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 512,
    "max_position_embeddings": 1024,
    "eos_token_id": 2,
    "bos_token_id": 1,
    "torch_dtype": "bfloat16",
}


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any, **kwargs: Any) -> Any:
        raise AssertionError("a network call")

    monkeypatch.setattr(socket, "create_connection", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)


def write(folder: Path, generation: dict[str, Any] | None = None, **changes: Any) -> Path:
    (folder / "config.json").write_text(json.dumps({**CONFIG, **changes}))
    if generation is not None:
        (folder / "generation_config.json").write_text(json.dumps(generation))
    return folder


# ---------------------------------------------------------------------------------------------------------------
# resolve


@pytest.mark.usefixtures("no_network")
def test_a_local_folder_is_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "owner" / "model").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in (str(tmp_path), "owner/model", "./owner/model", "owner", "~/owner"):
        assert resolve(name, weights=True).is_dir()


@pytest.mark.usefixtures("no_network")
@pytest.mark.parametrize("name", ["/no/such", "./nothing", "../x/y", "~/nope", "C:\\models\\x", "a/b/c", "here/model"])
def test_a_path_that_is_not_there(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match="no such folder"):
        resolve(name, weights=True)


@pytest.mark.usefixtures("no_network")
@pytest.mark.parametrize("name", ["", "no spaces/in names", "owner/", "-x", "owner/mo\0del", "x" * 5000, "é/model"])
def test_a_name_that_cannot_be(name: str) -> None:
    with pytest.raises(ConfigError, match=r"neither a folder here nor a Hugging Face name|no such folder"):
        resolve(name, weights=True)


@pytest.mark.usefixtures("no_network")
def test_a_file_is_not_a_folder(tmp_path: Path) -> None:
    (tmp_path / "model.gguf").touch()
    (tmp_path / "model.bin").touch()
    with pytest.raises(ConfigError, match="is a file"):
        resolve(str(tmp_path / "model.bin"), weights=True)
    with pytest.raises(StartupError, match="too few for a GGUF"):
        resolve(str(tmp_path / "model.gguf"), weights=True, download_dir=str(tmp_path / "cache"))


class Hub:
    """Stands for snapshot_download; keeps what it was asked."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, answer: Path | Exception) -> None:
        self.asked: dict[str, Any] = {}
        self.answer = answer
        if isinstance(answer, Path):
            (answer / "config.json").touch()  # without one a GGUF would be looked for
        for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_HUB_OFFLINE"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setattr("huggingface_hub.snapshot_download", self.download)

    def download(self, name: str, **options: Any) -> str:
        self.asked = {"name": name, **options}
        if isinstance(self.answer, Exception):
            raise self.answer
        return str(self.answer)


def test_the_hub_is_asked_for_what_is_needed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub = Hub(monkeypatch, tmp_path)
    assert resolve("owner/model", "v1", weights=False) == tmp_path
    assert hub.asked["name"] == "owner/model"
    assert hub.asked["revision"] == "v1"
    assert hub.asked["token"] is None
    assert not hub.asked["local_files_only"]
    assert "*.safetensors" not in hub.asked["allow_patterns"]
    resolve("gpt2", weights=True)
    assert "*.safetensors" in hub.asked["allow_patterns"]
    assert "*.bin" in hub.asked["ignore_patterns"]


def test_tokens_old_and_new_and_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub = Hub(monkeypatch, tmp_path)
    monkeypatch.setenv("HUGGING_FACE_HUB_TOKEN", "old")
    resolve("owner/model", weights=True)
    assert hub.asked["token"] == "old"
    monkeypatch.setenv("HF_TOKEN", "new")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    resolve("owner/model", weights=True)
    assert hub.asked["token"] == "new"
    assert hub.asked["local_files_only"]


def hub_error(name: str) -> Exception:
    from huggingface_hub import errors

    kind = getattr(errors, name)
    return kind.__new__(kind, "a long story")


@pytest.mark.parametrize(
    ("error", "message"),
    [
        ("GatedRepoError", "gated.*HF_TOKEN"),
        ("RepositoryNotFoundError", "neither a folder here nor a model on the Hugging Face Hub"),
        ("RevisionNotFoundError", "no revision 'v9'"),
        ("LocalEntryNotFoundError", "cannot be reached"),
        ("OfflineModeIsEnabled", "cannot be reached"),
    ],
)
def test_errors_of_the_hub(error: str, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    Hub(monkeypatch, hub_error(error))
    with pytest.raises(ConfigError, match=message) as caught:
        resolve("owner/model", "v9", weights=True)
    assert "\n" not in caught.value.message


def test_offline_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    Hub(monkeypatch, hub_error("LocalEntryNotFoundError"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ConfigError, match="HF_HUB_OFFLINE is set"):
        resolve("owner/model", weights=True)


def test_any_other_failure_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    Hub(monkeypatch, RuntimeError("first\nsecond"))
    with pytest.raises(ConfigError, match=r"cannot be fetched from the Hugging Face Hub: first\.$"):
        resolve("owner/model", weights=True)


def test_the_real_hub_client_when_offline(tmp_path: Path) -> None:
    """No stand-in: huggingface_hub itself with an empty cache and no network."""
    call = "from quire.sources import resolve; resolve('owner/model', weights=True)"
    env = {"HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1", "PYTHONPATH": ":".join(sys.path)}
    done = subprocess.run([sys.executable, "-c", call], env=env, capture_output=True, text=True, timeout=60)
    assert "HF_HUB_OFFLINE is set" in done.stderr.splitlines()[-1]


# ---------------------------------------------------------------------------------------------------------------
# facts


def test_facts(tmp_path: Path) -> None:
    generation = {
        "eos_token_id": [2, 7],
        "temperature": 0.6,
        "top_p": 0.9,
        "top_k": 50,
        "max_new_tokens": 99,
        "min_p": None,
        "do_sample": True,
    }
    facts = read_facts(write(tmp_path, generation, sliding_window=64))
    assert facts.architectures == ("LlamaForCausalLM",)
    assert (facts.vocab_size, facts.max_model_len, facts.sliding_window) == (512, 1024, 64)
    assert (facts.eos_token_ids, facts.bos_token_id, facts.dtype) == ((2, 7), 1, "bfloat16")
    assert facts.sampling == {"temperature": 0.6, "top_p": 0.9, "top_k": 50, "max_new_tokens": 99}
    assert facts.config.values["vocab_size"] == 512


def test_what_may_be_absent(tmp_path: Path) -> None:
    facts = read_facts(write(tmp_path, eos_token_id=None, torch_dtype=None, bos_token_id=None))
    assert (facts.eos_token_ids, facts.dtype, facts.bos_token_id, facts.sampling) == ((), None, None, {})


def test_dtype_is_written_in_several_ways(tmp_path: Path) -> None:
    assert read_facts(write(tmp_path, torch_dtype=None, dtype="float16")).dtype == "float16"
    assert read_facts(write(tmp_path, torch_dtype="torch.float32")).dtype == "float32"


@pytest.mark.parametrize(
    ("changes", "length"),
    [
        ({}, 1024),
        ({"rope_scaling": {"type": "linear", "factor": 4.0}}, 4096),
        ({"rope_scaling": {"type": "dynamic", "factor": 2.0}}, 2048),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, 1024),
        ({"rope_scaling": {"type": "yarn", "factor": 4.0}}, 4096),
        ({"rope_parameters": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 256}}, 1024),
        ({"rope_scaling": {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 1024}}, 4096),
        ({"rope_scaling": None}, 1024),
    ],
)
def test_length_after_stretching(changes: dict[str, Any], length: int, tmp_path: Path) -> None:
    assert read_facts(write(tmp_path, **changes)).max_model_len == length


def test_rope_keys_old_and_new() -> None:
    old = rope_fields(Fields({"rope_theta": 5.0, "rope_scaling": {"type": "linear", "factor": 2}}, "x"))
    new = rope_fields(Fields({"rope_parameters": {"rope_type": "linear", "rope_theta": 5.0, "factor": 2}}, "x"))
    for rope in (old, new):
        assert (rope.text("rope_type"), rope.number("rope_theta"), rope.number("factor")) == ("linear", 5.0, 2.0)
    assert rope_fields(Fields({}, "x")).text("rope_type") == "default"


BROKEN: dict[str, tuple[str, str]] = {
    "no JSON": ("{", "broken JSON"),
    "empty": ("", "broken JSON"),
    "binary": ("\x00\x01", "broken JSON"),
    "a list": ("[]", "must hold a JSON object"),
    "null": ("null", "must hold a JSON object"),
    "deep": ("[" * 100_000, "broken JSON"),
    "long number": ('{"vocab_size": ' + "9" * 5000 + "}", "broken JSON"),
    "empty object": ("{}", "architectures is missing"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_broken_config_files(case: str, tmp_path: Path) -> None:
    content, message = BROKEN[case]
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(ConfigError, match=message) as caught:
        read_facts(tmp_path)
    assert "config.json" in caught.value.message
    assert "\n" not in caught.value.message


def test_no_config(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"config\.json: no such file"):
        read_facts(tmp_path)


def test_config_is_a_folder_or_not_utf8(tmp_path: Path) -> None:
    (tmp_path / "a" / "config.json").mkdir(parents=True)
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "config.json").write_bytes(b"\xff\xfe{}")
    for name in "ab":
        with pytest.raises(ConfigError):
            read_facts(tmp_path / name)


@pytest.mark.parametrize(
    ("file", "key", "value"),
    [
        ("config", "vocab_size", float("nan")),
        ("config", "vocab_size", 1 << 40),
        ("config", "max_position_embeddings", "1k"),
        ("config", "eos_token_id", -1),
        ("config", "eos_token_id", {"id": 1}),
        ("config", "bos_token_id", 1.5),
        ("config", "torch_dtype", 16),
        ("config", "rope_scaling", "yes"),
        ("config", "rope_scaling", {"type": 3}),
        ("config", "rope_scaling", {"type": "linear", "factor": float("inf")}),
        ("generation", "temperature", -1),
        ("generation", "temperature", float("nan")),
        ("generation", "top_p", 2),
        ("generation", "top_k", "many"),
        ("generation", "repetition_penalty", 0),
        ("generation", "max_new_tokens", -5),
        ("generation", "eos_token_id", [[2]]),
    ],
)
def test_values_that_cannot_be(file: str, key: str, value: Any, tmp_path: Path) -> None:
    write(tmp_path, {key: value} if file == "generation" else {}, **({key: value} if file == "config" else {}))
    with pytest.raises(ConfigError) as caught:
        read_facts(tmp_path)
    assert ("generation_config.json" in caught.value.message) == (file == "generation")
    assert (key in caught.value.message) or key == "torch_dtype"


def test_nothing_of_torch_is_imported() -> None:
    code = "import sys, quire.checkpoint; assert not {'torch', 'huggingface_hub', 'transformers'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], env={"PYTHONPATH": ":".join(sys.path)}, check=True, timeout=60)


def test_overrides_go_into_objects(tmp_path: Path) -> None:
    folder = write(tmp_path, rope_scaling={"rope_type": "linear", "factor": 2.0})
    facts = read_facts(folder, {"rope_scaling": {"factor": 4.0}, "eos_token_id": [5, 6], "sliding_window": None})
    assert facts.max_model_len == 4096 and facts.eos_token_ids == (5, 6)
    assert rope_fields(facts.config).text("rope_type") == "linear" and facts.config.has("sliding_window")
    with pytest.raises(ConfigError, match="with --hf-overrides: vocab_size must be"):
        read_facts(folder, {"vocab_size": "many"})
