"""Which source a name belongs to, and which files of it are taken."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from quire.config import ModelConfig
from quire.errors import ConfigError
from quire.sources import hub, model_folder, resolve, tokenizer_folder
from quire.sources.cache import is_made, made_once
from quire.sources.choose import choose_gguf, siblings
from quire.sources.files import Remote, read_locations, write_locations

FILES = ["a-Q4_K_M.gguf", "a-Q4_K_S.gguf", "a.Q8_0.gguf", "a_IQ4_NL.gguf", "BF16/a-BF16-00001-of-00002.gguf",
         "BF16/a-BF16-00002-of-00002.gguf", "mmproj-F16.gguf", "README.md"]  # fmt: skip


@pytest.mark.parametrize(
    ("quant", "taken"),
    [("Q4_K_M", [0]), ("q4_k_s", [1]), ("Q8_0", [2]), ("IQ4_NL", [3]), ("BF16", [4, 5])],
)
def test_a_word_chooses_a_gguf(quant: str, taken: list[int]) -> None:
    assert choose_gguf(dict.fromkeys(FILES), quant, "x") == [FILES[i] for i in taken]


@pytest.mark.parametrize(
    ("files", "quant", "words"),
    [
        (FILES, None, r"several GGUFs; name one as MODEL:BF16. There are: BF16/a-BF16.gguf, a-Q4_K_M.gguf"),
        (FILES, "Q4_K", r"no GGUF with 'Q4_K' in its name"),
        (FILES, "gguf", r"several GGUFs"),
        (["README.md"], None, r"no \*\.gguf there"),
        (["a-00001-of-00003.gguf", "a-00003-of-00003.gguf"], None, r"part of 3 files; missing: 00002"),
        (["a-00002-of-99999.gguf"], None, r"missing: 00001, 00003, 00004, 00005 \.\.\."),
        (["a-00001-of-00001.gguf", "a-00004-of-00001.gguf"], None, r"one is too many"),
    ],
)
def test_what_cannot_be_chosen(files: list[str], quant: str | None, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        choose_gguf(dict.fromkeys(files), quant, "x")


def test_parts_that_belong_together() -> None:
    files = dict.fromkeys(["a-00001-of-00002.gguf", "a-00002-of-00002.gguf", "b-00001-of-00002.gguf", "a.gguf"])
    assert siblings("a-00002-of-00002.gguf", files) == ["a-00001-of-00002.gguf", "a-00002-of-00002.gguf"]
    assert siblings("a.gguf", files) == ["a.gguf"]


# ---- the Hub -------------------------------------------------------------------------------------------------------


class Hub:
    """Stands for the Hub's client: a repository that lies in a folder."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder = folder
        self.asked: list[dict[str, Any]] = []
        for name in ("HF_TOKEN", "HF_HUB_OFFLINE"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setattr("huggingface_hub.snapshot_download", self.download)
        monkeypatch.setattr("huggingface_hub.HfApi.list_repo_files", self.list_files)

    def download(self, name: str, **options: Any) -> str:
        self.asked.append({"name": name, **options})
        return str(self.folder)

    def list_files(self, name: str, revision: str | None = None) -> list[str]:
        return [str(path.relative_to(self.folder)) for path in self.folder.rglob("*") if path.is_file()]


@pytest.fixture
def repo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    for name in FILES:
        (tmp_path / "repo" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "repo" / name).touch()
    return Hub(tmp_path / "repo", monkeypatch)


def test_a_gguf_of_the_hub(repo: Hub) -> None:
    found = hub.fetch("owner/model", "v1", weights=False, quant="BF16")
    assert found == [repo.folder / FILES[4], repo.folder / FILES[5]]
    assert repo.asked == [
        {"name": "owner/model", "revision": "v1", "token": None, "local_files_only": False,
         "allow_patterns": FILES[4:6], "ignore_patterns": [], "cache_dir": None},
    ]  # fmt: skip
    with pytest.raises(ConfigError, match="several GGUFs; name one as MODEL:"):
        hub.fetch("owner/model", None, weights=True)
    with pytest.raises(ConfigError, match="owner/model on the Hugging Face Hub: no GGUF with 'Q3_K' in its name"):
        resolve("owner/model:Q3_K", weights=True)


def test_offline_the_cache_is_listed(repo: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert hub.fetch("owner/model", None, weights=True, quant="Q8_0") == [repo.folder / "a.Q8_0.gguf"]
    assert all(asked["local_files_only"] for asked in repo.asked)


def test_settings_reach_the_hub(repo: Hub, tmp_path: Path) -> None:
    (repo.folder / "config.json").write_text("{}")
    (repo.folder / "tokenizer.json").write_text("{}")
    model = ModelConfig(model="owner/model", revision="r1", download_dir=str(tmp_path / "d"), load_format="dummy")
    assert model_folder(model, weights=True) == repo.folder
    assert repo.asked[-1]["cache_dir"] == tmp_path / "d" and repo.asked[-1]["revision"] == "r1"
    assert "*.safetensors" not in repo.asked[-1]["allow_patterns"]
    for options, name, revision in (
        ({}, "owner/model", "r1"),
        ({"tokenizer": "owner/other"}, "owner/other", None),
        ({"tokenizer": "owner/other", "tokenizer_revision": "t1"}, "owner/other", "t1"),
        ({"tokenizer_revision": "t1"}, "owner/model", "t1"),
    ):
        tokenizer_folder(ModelConfig(model="owner/model", revision="r1", **options))
        assert (repo.asked[-1]["name"], repo.asked[-1]["revision"]) == (name, revision)


# ---- names and folders ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("ftp://x/y", "addresses begin with s3:// or gs://"),
        ("s3://", "names no bucket"),
        ("demo:Q4_K_M", "cannot be fetched|neither a folder|reached"),
    ],
)
def test_names_that_cannot_be(name: str, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ConfigError, match=words + "|HF_HUB_OFFLINE"):
        resolve(name, weights=True)


def test_revisions_are_for_the_hub() -> None:
    with pytest.raises(ConfigError, match="--revision 'main'"):
        resolve("s3://bucket/model", "main", weights=True)


def test_a_folder_of_a_checkpoint_cannot_say_where_weights_are(tmp_path: Path) -> None:
    """Only what we have made ourselves does, and beside the folder."""
    (tmp_path / "weights.json").write_text('{"weights": [{"path": "/etc/passwd"}], "others": []}')
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "weights.json").write_text('{"weights": [{"path": "/etc/passwd"}], "others": []}')
    assert read_locations(tmp_path) is None and read_locations(tmp_path / "model") is None
    places = [Path("/a/b"), Remote("s3://a/b", 7)]
    made = made_once(tmp_path, "kind", "a b/c", [1], lambda folder: write_locations(folder, places, ["x.bin"]))
    assert is_made(made) and read_locations(made) == (places, ["x.bin"])


def test_a_folder_is_whole_or_not_there(tmp_path: Path) -> None:
    def fail(folder: Path) -> None:
        (folder / "half").touch()
        raise ValueError

    for _ in range(2):
        with pytest.raises(ValueError):
            made_once(tmp_path, "kind", "x", [1], fail)
    assert list((tmp_path / "kind").iterdir()) == []
