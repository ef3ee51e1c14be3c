"""s3:// against a server that speaks S3 (moto's), gs:// by its addresses: fetched, read by ranges, refused."""

from __future__ import annotations

import http.client
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import checkpoints
import obstore
import pytest
import torch
from gguf_files import write_gguf
from moto.server import ThreadedMotoServer
from obstore.store import S3Store
from paged import Driver, Sequence
from safetensors.torch import load_file

from quire import LLM, SamplingParams
from quire.config import ModelConfig
from quire.errors import ConfigError, StartupError
from quire.frontend.text_side import load_text_side
from quire.sources import model_facts, objects, resolve
from quire.sources.files import Remote, open_reader, read_locations
from quire.worker.loading import stream
from quire.worker.loading.files import find_tensors


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    yield "{}:{}".format(*server.get_host_and_port())
    server.stop()


class Bucket:
    """Put files there."""

    def __init__(self, server: str) -> None:
        connection = http.client.HTTPConnection(server)
        connection.request("PUT", "/bucket")
        assert connection.getresponse().status == 200
        self._store = S3Store("bucket", client_options={"allow_http": True})

    def put(self, path: str, content: bytes) -> None:
        obstore.put(self._store, path, content)

    def delete(self, path: str) -> None:
        obstore.delete(self._store, path)

    def put_folder(self, folder: Path, prefix: str) -> None:
        for path in folder.iterdir():
            self.put(f"{prefix}/{path.name}", path.read_bytes())


@pytest.fixture
def bucket(server: str, monkeypatch: pytest.MonkeyPatch) -> Bucket:
    for name, value in {
        "AWS_ENDPOINT_URL": f"http://{server}", "AWS_ACCESS_KEY_ID": "k", "AWS_SECRET_ACCESS_KEY": "s",
        "AWS_REGION": "us-east-1",
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    return Bucket(server)


def logits(folder: Path) -> list[torch.Tensor]:
    return Driver(folder).step([(Sequence([5, 6, 7, 8]), 4)])


def test_a_model_in_a_bucket(bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoints.write("llama31", tmp_path / "m", max_shard_size="200KB")
    bucket.put_folder(tmp_path / "m", "some/models/m")
    bucket.put("some/models/m/original/weights.pth", b"of another layout")
    monkeypatch.setattr(stream, "PIECE_BYTES", 20_000)  # several ranges of a tensor
    made = resolve("s3://bucket/some/models/m", weights=True)
    assert not list(made.glob("*.safetensors")) and (made / "model.safetensors.index.json").exists()
    files = find_tensors(made)
    assert len(files) > 2 and all(isinstance(place, Remote) for place in files)
    assert torch.equal(logits(made)[0], logits(tmp_path / "m")[0])
    tokenizer, _ = load_text_side(ModelConfig(model="s3://bucket/some/models/m/"))
    assert tokenizer.decode(tokenizer.encode("the fox")) == "the fox"
    assert model_facts(ModelConfig(model="s3://bucket/some/models/m")).vocab_size == checkpoints.VOCAB


def test_the_engine_reads_it(bucket: Bucket, tmp_path: Path) -> None:
    checkpoints.write("qwen3", tmp_path / "m")
    bucket.put_folder(tmp_path / "m", "q")
    params = SamplingParams(temperature=0, max_tokens=8, ignore_eos=True)
    with LLM(model="s3://bucket/q", dtype="float32", max_model_len=128, cpu_kernels="torch") as llm:
        [output] = llm.generate("the quick brown fox", params, use_tqdm=False)
    assert Driver(tmp_path / "m").greedy([output.prompt_token_ids], 8) == [output.outputs[0].token_ids]


def test_a_gguf_in_a_bucket(bucket: Bucket, tmp_path: Path) -> None:
    checkpoints.write("llama2", tmp_path / "m")
    parts = write_gguf(tmp_path / "m", tmp_path / "x-Q8_0.gguf", split_max_tensors=10)
    for part in parts:
        bucket.put(f"g/{part.name}", part.read_bytes())
    expected = logits(resolve(str(parts[0]), weights=True))[0]
    for name in ("s3://bucket/g", "s3://bucket/g:Q8_0", f"s3://bucket/g/{parts[1].name}"):
        assert torch.equal(logits(resolve(name, weights=True))[0], expected)
    with pytest.raises(ConfigError, match="no GGUF with 'Q4_0' in its name"):
        resolve("s3://bucket/g:Q4_0", weights=True)


def test_what_changes_is_fetched_again(bucket: Bucket, tmp_path: Path, own_cache: Path) -> None:
    checkpoints.write("qwen2", tmp_path / "m")
    bucket.put_folder(tmp_path / "m", "c")
    first = resolve("s3://bucket/c", weights=True)
    assert first.is_relative_to(own_cache) and resolve("s3://bucket/c", weights=True) == first
    config = (tmp_path / "m" / "config.json").read_bytes()
    bucket.put("c/config.json", config.replace(b'"max_position_embeddings": 512', b'"max_position_embeddings": 256'))
    assert model_facts(ModelConfig(model="s3://bucket/c")).max_model_len == 256


def test_transformers_gets_files(bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoints.write("qwen2", tmp_path / "m", max_shard_size="200KB")
    bucket.put_folder(tmp_path / "m", "t")
    made = resolve("s3://bucket/t", weights=True)
    monkeypatch.setattr(objects, "PART_BYTES", 30_000)
    objects.bring_here(made)
    assert read_locations(made) is None
    for path in (tmp_path / "m").glob("*.safetensors"):
        theirs, ours = load_file(path), load_file(made / path.name)
        assert all(torch.equal(ours[name], tensor) for name, tensor in theirs.items())
    Driver(made, impl="transformers")


REFUSED: dict[str, tuple[str, str]] = {
    "nothing there": ("s3://bucket/nothing", "nothing under that address"),
    "no such bucket": ("s3://elsewhere/m", "NoSuchBucket"),
    "no such file": ("s3://bucket/g/absent.gguf", "no such object"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_not_there_is_one_line(case: str, bucket: Bucket) -> None:
    name, words = REFUSED[case]
    with pytest.raises(ConfigError, match=words) as caught:
        resolve(name, weights=True)
    assert "\n" not in caught.value.message and name in caught.value.message


def test_pickles_are_refused_there_too(bucket: Bucket, tmp_path: Path) -> None:
    checkpoints.write("qwen2", tmp_path / "m")
    bucket.put_folder(tmp_path / "m", "p")
    bucket.delete("p/model.safetensors")
    bucket.put("p/pytorch_model.bin", b"x")
    with pytest.raises(ConfigError, match=r"pickles \(pytorch_model.bin\)"):
        find_tensors(resolve("s3://bucket/p", weights=True))


def test_weights_that_go_away_or_shrink(bucket: Bucket, tmp_path: Path) -> None:
    bucket.put("w/x", b"0123456789")
    with pytest.raises(StartupError, match="cut short: it ends at byte 10"):
        open_reader(Remote("s3://bucket/w/x", 20)).read(5, 10)
    buffer = bytearray(4)
    open_reader(Remote("s3://bucket/w/x", 10)).read_into(3, memoryview(buffer))
    assert buffer == b"3456"
    bucket.delete("w/x")
    with pytest.raises(StartupError, match=r"NoSuchKey|not found") as caught:
        open_reader(Remote("s3://bucket/w/x", 10)).read(0, 1)
    assert "\n" not in caught.value.message


def test_nobody_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "k")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "s")
    monkeypatch.setitem(objects.RETRIES, "max_retries", 0)
    objects._bucket.cache_clear()
    with pytest.raises(ConfigError, match="s3://bucket/m' cannot be read: ") as caught:
        resolve("s3://bucket/m", weights=True)
    objects._bucket.cache_clear()
    assert "\n" not in caught.value.message


def test_addresses_of_google(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def listed(store: Any, prefix: str | None) -> dict[str, Any]:
        asked.append((type(store).__name__, prefix))
        return {"objects": [], "common_prefixes": []}

    monkeypatch.setattr("obstore.list_with_delimiter", listed)
    with pytest.raises(ConfigError, match="nothing under that address"):
        resolve("gs://bucket/models/m/", weights=True)
    assert asked == [("GCSStore", "models/m")]
