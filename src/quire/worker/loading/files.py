"""Which files hold a checkpoint's weights, and what their headers say."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch

from quire.checkpoint import Fields, read_json
from quire.errors import ConfigError, StartupError
from quire.sources.files import Location, read_locations
from quire.worker.loading.gguf import gguf_entries
from quire.worker.loading.header import Entry, read_header

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
NOT_OURS = ("consolidated", "adapter")
"""Beginnings of weight files in another layout, or of something else."""
PICKLES = (".bin", ".pt", ".pth", ".ckpt")
DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "F8_E8M0": torch.float8_e8m0fnu,
}
"""The dtypes of the format that a parameter can have."""


Files = dict[Location, tuple[Entry, ...]]


def find_tensors(folder: Path) -> Files:
    """The checkpoint's weight files with their checked headers: one file, those of an index, or a GGUF's.

    Raises:
        ConfigError: there are none; pickles get a hint how to convert them.
        StartupError: a broken file or index.
    """
    elsewhere = read_locations(folder)
    if elsewhere is None:
        there: dict[str, Location] = {path.name: path for path in sorted(folder.glob("*.safetensors"))}
        others = [path.name for path in folder.iterdir()]
    else:
        there, others = {place.name: place for place in elsewhere[0]}, elsewhere[1]
    if any(name.endswith(".gguf") for name in there):
        return _no_twice(gguf_entries(list(there.values())))
    index = folder / INDEX
    if SINGLE in there:
        return {there[SINGLE]: read_header(there[SINGLE])}
    if index.exists():
        return _indexed(folder, there, index)
    weights = [place for name, place in there.items() if not name.startswith(NOT_OURS)]
    if not weights:
        raise ConfigError(_none_found(folder, others))
    return _no_twice({place: read_header(place) for place in weights})


def _indexed(folder: Path, there: Mapping[str, Location], index: Path) -> Files:
    where = Fields(read_json(index, required=True), str(index)).section("weight_map")
    if where is None:
        raise StartupError(f"{index}: weight_map is missing.")
    for name, file in where.values.items():
        if not isinstance(file, str) or Path(file).name != file or not file.endswith(".safetensors"):
            where.fail(name[:120], "must name a .safetensors file of this folder", file)
    named = {file: there.get(file, folder / file) for file in sorted(set(where.values.values()))}
    return _no_twice(_check_index({place: read_header(place) for place in named.values()}, where))


def _check_index(files: Files, where: Fields) -> Files:
    """The index and the headers agree on what is where."""
    found = {(entry.name, path.name) for path, entries in files.items() for entry in entries}
    for name, file in where.values.items():
        if (name, file) not in found:
            raise StartupError(f"{where.where}: tensor {name[:120]!r} is not in {file}.")
    for name, file in sorted(found):
        if name not in where.values:
            raise StartupError(f"{where.where}: tensor {name[:120]!r} of {file} is not in the index.")
    return files


def _no_twice(files: Files) -> Files:
    homes: dict[str, Location] = {}
    for path, entries in files.items():
        for entry in entries:
            if entry.name in homes:
                raise StartupError(f"{path}: tensor {entry.name!r} is in {homes[entry.name].name} as well.")
            homes[entry.name] = path
    return files


def _none_found(folder: Path, names: list[str]) -> str:
    pickles = sorted(name for name in names if name.endswith(PICKLES))
    if not pickles:
        return (
            f"{folder}: no *.safetensors weights here. Use --load-format gguf where there is a GGUF,"
            " --load-format dummy to run with random ones."
        )
    return (
        f"{folder}: the weights are pickles ({pickles[0]}), which can run code when read. If you trust them, convert"
        " them once: transformers.AutoModelForCausalLM.from_pretrained(folder).save_pretrained(new_folder)."
    )
