"""The loader against broken, foreign and hostile checkpoints: one clear line each, nothing read, nothing run."""

from __future__ import annotations

import itertools
import json
import os
import random
import shutil
import struct
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import checkpoints
import pytest
import torch
from safetensors.torch import load_file, save_file

from quire.checkpoint import read_facts
from quire.config import ModelConfig
from quire.errors import ConfigError, QuireError, StartupError
from quire.worker.attention.torch_backend import TorchAttention
from quire.worker.kernels.plain import PlainKernels
from quire.worker.layers.build import Build
from quire.worker.loading import stream
from quire.worker.loading.header import read_header
from quire.worker.loading.names import Fuse, Rename, Skip, Target, translate
from quire.worker.models.load import load_model
from quire.worker.quantization.none import Unquantized
from quire.worker.quantization.protocol import Shard

Header = dict[str, Any]


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("llama")
    checkpoints.write("llama31", folder)
    return folder


@pytest.fixture
def folder(original: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(original, tmp_path / "model"))


def load(folder: Path, progress: Any = lambda done, total: None, **options: Any) -> torch.nn.Module:
    build = Build(torch.float32, torch.device("cpu"), TorchAttention(), Unquantized(), PlainKernels())
    return load_model(folder, read_facts(folder), build, ModelConfig(model=str(folder), **options), progress=progress)


def refused(folder: Path, kind: type[QuireError], *words: str) -> str:
    with pytest.raises(kind) as caught:
        load(folder)
    message = caught.value.message
    assert "\n" not in message
    assert len(message) < 700
    for word in words:
        assert word in message
    return message


# ---------------------------------------------------------------------------------------------------------------
# headers

SMALL: Header = {
    "__metadata__": {"format": "pt"},
    "a": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]},
    "b": {"dtype": "BF16", "shape": [4], "data_offsets": [24, 32]},
    "c": {"dtype": "F16", "shape": [], "data_offsets": [32, 34]},
    "d": {"dtype": "U8", "shape": [0, 5], "data_offsets": [34, 34]},
}


def file_bytes(header: Any, data: int = 34) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + bytes(data)


def entry(**changes: Any) -> bytes:
    """The small header with a changed first tensor."""
    return file_bytes({**SMALL, "a": {**SMALL["a"], **changes}})


def without(key: str) -> bytes:
    return file_bytes({**SMALL, "a": {k: v for k, v in SMALL["a"].items() if k != key}})


BROKEN_FILES: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "too few"),
    "seven bytes": (b"1234567", "too few"),
    "only a length": (struct.pack("<Q", 10), "cut short"),
    "length beyond file": (struct.pack("<Q", 1000) + b"{}", "cut short"),
    "length over 100 MB": (struct.pack("<Q", 100_000_001) + b"{}", "not a safetensors file"),
    "length 2^63": (struct.pack("<Q", 1 << 63) + b"{}", "not a safetensors file"),
    "length 2^64-1": (b"\xff" * 8 + b"{}", "not a safetensors file"),
    "a pickle": (b"\x80\x02}q\x00." + bytes(100), "not a safetensors file"),
    "a zip": (b"PK\x03\x04" + b"\x14\x00\x00\x08" + bytes(200), "not a safetensors file"),
    "a git-lfs pointer": (b"version https://git-lfs.github.com/spec/v1\n", "not a safetensors file"),
    "no JSON": (file_bytes(b"{not json"), "broken header"),
    "not UTF-8": (file_bytes(b'{"\xff\xfe": 1}'), "broken header"),
    "a list": (file_bytes([1, 2]), "not an object"),
    "deep nesting": (file_bytes(b"[" * 200_000), "broken header"),
    "name twice": (file_bytes(b'{"a": 1, "a": 2}'), "twice"),
    "huge number": (file_bytes(b'{"a": ' + b"9" * 5000 + b"}"), "broken header"),
    "entry is null": (file_bytes({**SMALL, "a": None}), "'a': needs dtype"),
    "entry is a list": (file_bytes({**SMALL, "a": []}), "'a': needs dtype"),
    "no dtype": (without("dtype"), "'a': needs dtype"),
    "no shape": (without("shape"), "'a': needs dtype"),
    "no offsets": (without("data_offsets"), "'a': needs dtype"),
    "unknown dtype": (entry(dtype="F33"), "unknown dtype 'F33'"),
    "dtype is a number": (entry(dtype=32), "unknown dtype"),
    "dtype is a dict": (entry(dtype={"x": 1}), "unknown dtype"),
    "shape is a number": (entry(shape=6), "not a list of sizes"),
    "negative size": (entry(shape=[-2, -3]), "not a list of sizes"),
    "size is text": (entry(shape=["2", 3]), "not a list of sizes"),
    "size is a float": (entry(shape=[2.0, 3]), "not a list of sizes"),
    "size is a boolean": (entry(shape=[True, 6]), "not a list of sizes"),
    "100 dims": (entry(shape=[1] * 100), "not a list of sizes"),
    "size 2^63": (entry(shape=[1 << 63]), "too large"),
    "product wraps to 6": (entry(shape=[1 << 32, 1 << 32]), "too large"),
    "product wraps past zero": (entry(shape=[0, 1 << 63]), "too large"),
    "product too small": (entry(shape=[2, 2]), "does not fill its 24 bytes"),
    "offsets is a number": (entry(data_offsets=24), "is not [start, end]"),
    "three offsets": (entry(data_offsets=[0, 24, 48]), "is not [start, end]"),
    "offset is null": (entry(data_offsets=[0, None]), "is not [start, end]"),
    "negative offset": (entry(data_offsets=[-8, 16]), "outside the file"),
    "end before start": (entry(data_offsets=[24, 0]), "outside the file"),
    "end outside": (entry(shape=[1 << 20], data_offsets=[0, 1 << 22]), "cut short"),
    "end 2^64": (entry(data_offsets=[0, 1 << 64]), "outside the file"),
    "overlap": (file_bytes({**SMALL, "b": {"dtype": "BF16", "shape": [4], "data_offsets": [20, 28]}}), "'b' overlaps"),
    "same bytes twice": (file_bytes({**SMALL, "e": SMALL["a"]}), "overlaps"),
    "hole": (file_bytes({k: v for k, v in SMALL.items() if k != "b"}), "'c' follows a hole"),
    "hole at the start": (file_bytes({"b": SMALL["b"]}), "'b' follows a hole"),
    "bytes left over": (file_bytes(SMALL, 40), "6 bytes at its end"),
    "cut short by one": (file_bytes(SMALL, 33), "cut short"),
}


def test_a_good_header(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(file_bytes(SMALL))
    entries = read_header(path)
    assert [e.name for e in entries] == ["a", "b", "c", "d"]
    assert entries[0].end - entries[0].start == 24
    assert entries[-1].end == path.stat().st_size


@pytest.mark.parametrize("case", BROKEN_FILES)
def test_a_broken_file_is_one_clear_line(case: str, folder: Path) -> None:
    content, reason = BROKEN_FILES[case]
    (folder / "model.safetensors").write_bytes(content)
    refused(folder, StartupError, reason, "model.safetensors")


def test_random_damage_never_crashes(folder: Path) -> None:
    """Bytes of the header changed, cut or doubled: it loads, or it is one line."""
    path = folder / "model.safetensors"
    whole = path.read_bytes()
    end = 8 + int.from_bytes(whole[:8], "little")
    rng = random.Random(0)
    outcomes = {"loaded": 0, "refused": 0}
    for _ in range(150):
        damaged = bytearray(whole)
        for _ in range(rng.choice([1, 1, 2, 8])):
            place = rng.randrange(end)
            kind = rng.randrange(3)
            if kind == 0:
                damaged[place] = rng.randrange(256)
            elif kind == 1:
                del damaged[place : place + rng.randint(1, 9)]
            else:
                damaged[place:place] = damaged[place : place + rng.randint(1, 9)]
        path.write_bytes(damaged if rng.random() < 0.8 else damaged[: rng.randrange(len(damaged))])
        try:
            load(folder)
            outcomes["loaded"] += 1
        except (ConfigError, StartupError) as error:
            outcomes["refused"] += 1
            assert "\n" not in error.message
    assert outcomes["refused"] > 100


# ---------------------------------------------------------------------------------------------------------------
# contents


def rewrite(folder: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    path = folder / "model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)


K0 = "model.layers.0.self_attn.k_proj.weight"
NORM = "model.norm.weight"


def test_missing_tensors_are_named_as_in_the_checkpoint(folder: Path) -> None:
    rewrite(folder, lambda t: (t.pop(K0), t.pop(NORM)))
    refused(folder, StartupError, "lack", repr(K0), repr(NORM))


def test_many_missing_tensors_are_counted(folder: Path) -> None:
    rewrite(folder, lambda t: [t.pop(name) for name in list(t) if ".layers.1." in name])
    refused(folder, StartupError, "and 5 more")


def test_unexpected_tensors_are_named(folder: Path) -> None:
    rewrite(folder, lambda t: t.update({"model.layers.0.mystery.weight": torch.zeros(2)}))
    refused(folder, StartupError, "no place for", "'model.layers.0.mystery.weight'")


def test_a_renamed_tensor_shows_both_sides(folder: Path) -> None:
    rewrite(folder, lambda t: t.update({"final.weight": t.pop(NORM)}))
    refused(folder, StartupError, repr(NORM), "unknown ones: 'final.weight'")


@pytest.mark.parametrize("shape", [(64, 32), (32, 65), (2048,), (32, 64, 1)])
def test_a_wrong_shape_is_shown_beside_the_right_one(shape: tuple[int, ...], folder: Path) -> None:
    rewrite(folder, lambda t: t.update({K0: torch.zeros(shape)}))
    refused(folder, StartupError, repr(K0), str(list(shape)), "[32, 64]")


@pytest.mark.parametrize("dtype", [torch.int32, torch.uint8, torch.float8_e4m3fn, torch.bool])
def test_a_dtype_that_cannot_become_a_weight(dtype: torch.dtype, folder: Path) -> None:
    rewrite(folder, lambda t: t.update({K0: torch.zeros(32, 64).to(dtype)}))
    refused(folder, StartupError, repr(K0), "quantized?")


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_other_floats_are_cast(dtype: torch.dtype, folder: Path) -> None:
    values = torch.randn(64).to(dtype)
    rewrite(folder, lambda t: t.update({NORM: values}))
    assert torch.equal(load(folder).model.norm.weight, values.float())


def test_a_fused_part_given_twice(folder: Path) -> None:
    rewrite(folder, lambda t: t.update({K0.replace("k_proj", "qkv_proj"): torch.zeros(128, 64)}))
    refused(folder, StartupError, "second time")


def test_fused_parts_lie_where_they_should(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    model = load_plain(folder)
    attention = "model.layers.1.self_attn."
    fused = model.model.layers[1].self_attn.qkv_proj.weight
    assert torch.equal(fused, torch.cat([tensors[f"{attention}{p}_proj.weight"] for p in "qkv"]))


def load_plain(folder: Path) -> torch.nn.Module:
    """With the weights left as they are, not packed for the CPU."""

    class Plain(Unquantized):
        def finish(self, layer: torch.nn.Module) -> None:
            pass

    build = Build(torch.float32, torch.device("cpu"), TorchAttention(), Plain(), PlainKernels())
    return load_model(folder, read_facts(folder), build)


def test_an_odd_header_length_is_read_right(folder: Path) -> None:
    """Files written by old tools have unaligned tensors."""
    path = folder / "model.safetensors"
    whole = path.read_bytes()
    length = int.from_bytes(whole[:8], "little")
    text = whole[8 : 8 + length].rstrip()
    padded = text + b" " * (3 - len(text) % 2)
    aligned = load_plain(folder).state_dict()
    path.write_bytes(struct.pack("<Q", len(padded)) + padded + whole[8 + length :])
    assert (8 + len(padded)) % 2
    for name, tensor in load_plain(folder).state_dict().items():
        assert torch.equal(tensor, aligned[name])


def test_progress_ends_at_the_total(folder: Path) -> None:
    calls: list[tuple[int, int]] = []
    load(folder, progress=lambda done, total: calls.append((done, total)))
    assert calls[0][0] == 0
    assert calls[-1][0] == calls[-1][1] == sum(t.nbytes for t in load_file(folder / "model.safetensors").values())
    assert [done for done, _ in calls] == sorted(done for done, _ in calls)


def test_large_tensors_are_copied_in_pieces(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = load_plain(folder).state_dict()
    monkeypatch.setattr(stream, "PIECE_BYTES", 5000)
    calls: list[int] = []
    for name, tensor in load_plain(folder).state_dict().items():
        assert torch.equal(tensor, expected[name])
    load(folder, progress=lambda done, total: calls.append(done))
    assert max(b - a for a, b in itertools.pairwise(calls)) <= 5000


# ---------------------------------------------------------------------------------------------------------------
# folders


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "consolidated.00.pth"])
def test_pickles_are_refused_and_never_opened(name: str, folder: Path) -> None:
    marker = folder / "touched"

    class Evil:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.touch, (marker,)

    (folder / "model.safetensors").unlink()
    torch.save({"weight": Evil()}, folder / name)
    refused(folder, ConfigError, name, "convert", "save_pretrained")
    assert not marker.exists()


def test_no_weights_at_all(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    refused(folder, ConfigError, "no *.safetensors", "--load-format dummy")
    load(folder, load_format="dummy")


def sharded(original: Path, folder: Path) -> dict[str, Any]:
    """Cut the checkpoint in two files with an index."""
    tensors = load_file(original / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(tensors)
    index: dict[str, Any] = {"metadata": {}, "weight_map": {}}
    for number, part in enumerate((names[::2], names[1::2])):
        save_file({name: tensors[name] for name in part}, folder / f"part{number}.safetensors")
        index["weight_map"].update(dict.fromkeys(part, f"part{number}.safetensors"))
    return index


BROKEN_INDEXES: dict[str, tuple[Any, str]] = {
    "no weight_map": (lambda i: {"metadata": {}}, "weight_map is missing"),
    "a list": (lambda i: [1], "must hold a JSON object"),
    "weight_map is a list": (lambda i: {"weight_map": [1]}, "must be an object"),
    "file is null": (lambda i: {"weight_map": {**i["weight_map"], NORM: None}}, "must name a .safetensors file"),
    "file elsewhere": (lambda i: {"weight_map": {NORM: "../model.safetensors"}}, "of this folder"),
    "file absolute": (lambda i: {"weight_map": {NORM: "/etc/passwd"}}, "of this folder"),
    "file is a pickle": (lambda i: {"weight_map": {NORM: "model.bin"}}, "must name a .safetensors file"),
    "file not there": (lambda i: {"weight_map": {**i["weight_map"], NORM: "part7.safetensors"}}, "part7.safetensors"),
    "tensor not there": (lambda i: {"weight_map": {**i["weight_map"], "x": "part0.safetensors"}}, "'x' is not in"),
    "tensor not listed": (
        lambda i: {"weight_map": {n: f for n, f in i["weight_map"].items() if n != NORM}},
        "is not in the index",
    ),
}


@pytest.mark.parametrize("case", BROKEN_INDEXES)
def test_a_broken_index_is_one_clear_line(case: str, original: Path, folder: Path) -> None:
    change, reason = BROKEN_INDEXES[case]
    index = change(sharded(original, folder))
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    refused(folder, QuireError, reason)


def test_files_without_an_index(original: Path, folder: Path) -> None:
    sharded(original, folder)
    load(folder)
    shutil.copy(folder / "part0.safetensors", folder / "copy.safetensors")
    refused(folder, StartupError, "as well")


def test_broken_index_json(original: Path, folder: Path) -> None:
    sharded(original, folder)
    (folder / "model.safetensors.index.json").write_text('{"weight_map": ')
    refused(folder, ConfigError, "broken JSON")


# ---------------------------------------------------------------------------------------------------------------
# names and parts


def test_rules() -> None:
    rules = (Rename("transformer.h", "model.layers"), Fuse("qkv", "q", "k", "v"), Skip("inv_freq"), Rename("x", ""))
    assert translate("transformer.h.3.k.bias", rules) == Target("model.layers.3.qkv.bias", 1)
    assert translate("model.q_norm.weight", rules) == Target("model.q_norm.weight")  # whole words only
    assert translate("a.inv_freq", rules) is None
    assert translate("x.a.weight", rules) == Target("a.weight")


def test_shard_parts_are_views() -> None:
    whole = torch.zeros(2, 9)
    Shard(1, (2, 3, 4)).part(whole, 1).fill_(1)
    assert whole[0].tolist() == [0, 0, 1, 1, 1, 0, 0, 0, 0]
    assert Shard(1, (9,)).part(whole, None) is whole


def test_reading_threads_are_not_bound_to_the_core_of_their_maker() -> None:
    """OpenMP binds the main thread to one core on larger machines."""
    everywhere, waiting = os.sched_getaffinity(0), threading.Event()
    other = threading.Thread(target=waiting.wait)
    other.start()
    try:
        os.sched_setaffinity(0, {min(everywhere)})
        with stream.Stream(lambda count: None) as made:
            assert made._pool.submit(os.sched_getaffinity, 0).result() == everywhere
    finally:
        os.sched_setaffinity(0, everywhere)
        waiting.set()
        other.join()
