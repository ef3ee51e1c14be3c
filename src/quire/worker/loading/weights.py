"""Fill a model's parameters: from files, tensor by tensor, or with random numbers.

Everything that can be wrong with a checkpoint is found from its headers, before the first byte of data is read.
"""

from __future__ import annotations

import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from quire.errors import StartupError
from quire.sources.files import Location
from quire.worker.loading.blocks import BLOCKS
from quire.worker.loading.files import DTYPES, Files, find_tensors
from quire.worker.loading.header import Entry
from quire.worker.loading.names import Rule, Target, original, translate
from quire.worker.loading.stream import Job, Stream
from quire.worker.quantization.format import FormatError
from quire.worker.quantization.pieces import Pieces
from quire.worker.quantization.protocol import shard_of

Progress = Callable[[int, int], None]
"""Called with (bytes done, bytes in all)."""


@dataclass(frozen=True, slots=True)
class _Move:
    """One tensor of a file and what it fills; None is skipped. `pieces`: it is one of these, named `suffix`."""

    entry: Entry
    target: Target | None
    owner: str = ""
    pieces: Pieces | None = None
    suffix: str = ""


def fill_from_files(model: nn.Module, rules: tuple[Rule, ...], folder: Path, progress: Progress) -> None:
    """Stream a checkpoint into the model, casting to the parameters' number format, and finish each
    layer as soon as it is full: a scheme that makes weights smaller never meets all of them in full size.

    Raises:
        ConfigError, StartupError: no weights, broken files, tensors missing, unknown or of another shape.
    """
    files = find_tensors(folder)
    plan = _plan(model, rules, files, _home(folder, files))
    total = sum(move.entry.end - move.entry.start for moves in plan.values() for move in moves)
    done = 0

    def advance(num_bytes: int) -> None:
        nonlocal done
        done += num_bytes
        progress(done, total)

    progress(0, total)
    left = Counter(move.owner for moves in plan.values() for move in moves if move.target)

    def jobs() -> Iterator[Job[str]]:
        for path, moves in plan.items():
            for move in moves:
                if move.target is None:
                    advance(move.entry.end - move.entry.start)
                else:
                    yield Job(path, move.entry, _memory(model, move, move.target), move.owner)

    with torch.no_grad(), Stream(advance) as stream:
        for owner in stream.fill(jobs()):
            left[owner] -= 1
            if left[owner] == 0:
                _finish(model.get_submodule(owner), f"{folder}: {owner}")
    _finish_sharing(model, set(left))


def fill_with_random(model: nn.Module, seed: int) -> None:
    """Weights from a normal law of deviation 0.02, norms 1, biases 0: activations stay finite at any depth.

    Each parameter has its own stream, keyed by seed and name: the same on every run of one device type.
    """
    full = set()
    with torch.no_grad():
        for owner, module in model.named_modules():
            for name, param in module.named_parameters(owner, recurse=False):
                if param.dim() > 1:
                    generator = torch.Generator(param.device).manual_seed(zlib.crc32(f"{seed}:{name}".encode()))
                    param.normal_(0.0, 0.02, generator=generator)
                else:
                    param.fill_(0.0 if name.endswith("bias") else 1.0)
                full.add(owner)
            pieces = getattr(module, "pieces", None)
            if pieces is not None:
                device = next((p.device for p in model.parameters()), torch.device("cpu"))
                pieces.fill_with_random(torch.Generator(device).manual_seed(zlib.crc32(f"{seed}:{owner}".encode())))
                full.add(owner)
            if owner in full:
                _finish(module, owner)
    _finish_sharing(model, full)


def _finish(module: nn.Module, name: str) -> None:
    """Tell a layer that its parameters are filled."""
    done = getattr(module, "finish", None)
    if done is None:
        return
    try:
        done()
    except FormatError as error:
        raise StartupError(f"{name}: {error.message}.") from None


def _memory(model: nn.Module, move: _Move, target: Target) -> torch.Tensor:
    """Where a tensor goes; pieces get theirs now."""
    if move.pieces is None:
        return _place(model.get_parameter(target.name), target)
    return move.pieces.place(target.part, move.suffix, move.entry.shape, _dtype(move.entry) or torch.float32)


def _dtype(entry: Entry) -> torch.dtype | None:
    """What a tensor's numbers arrive in; those of block formats are decoded."""
    return DTYPES.get(entry.dtype) or (torch.float32 if entry.dtype in BLOCKS else None)


def _finish_sharing(model: nn.Module, finished: set[str]) -> None:
    """The layers that have no parameters of their own."""
    for name, module in model.named_modules():
        if name not in finished:
            _finish(module, name)


def _owner(target: Target) -> str:
    """The module that has the parameter."""
    return target.name.rpartition(".")[0]


def _place(param: torch.Tensor, target: Target) -> torch.Tensor:
    """The part of the parameter that a tensor fills."""
    return shard_of(param).part(param.detach(), target.part)


def _plan(model: nn.Module, rules: tuple[Rule, ...], files: Files, folder: Location) -> dict[Location, list[_Move]]:
    """What goes where; checks names, shapes and number formats, and that nothing stays empty."""
    params, pieces = dict(model.named_parameters()), _all_pieces(model)
    seen_pieces: dict[str, set[tuple[int | None, str]]] = {owner: set() for owner, _, _ in pieces.values()}
    filled: dict[str, set[int | None]] = {name: set() for name in params}
    unexpected: list[str] = []
    plan: dict[Location, list[_Move]] = {path: [] for path in files}
    for path, entry in ((path, entry) for path, entries in files.items() for entry in entries):
        target = translate(entry.name, rules)
        owner, waiting, suffix = pieces.get(target.name, ("", None, "")) if target else ("", None, "")
        if target is not None and waiting is not None and waiting.piece(target.part, suffix) is not None:
            _check_piece(waiting, target, suffix, entry, path, seen_pieces[owner])
            plan[path].append(_Move(entry, target, owner, waiting, suffix))
            continue
        if target is not None and not _has_place(params, target):
            unexpected.append(entry.name)
            continue
        if target is not None:
            _check(params[target.name], target, entry, path)
            seen = filled[target.name]
            if target.part in seen or None in seen or (target.part is None and seen):
                raise StartupError(f"{path}: tensor {entry.name!r} fills {target.name} for the second time.")
            seen.add(target.part)
        plan[path].append(_Move(entry, target, _owner(target) if target else ""))
    missing = _missing(params, filled, rules) + _missing_pieces(pieces, seen_pieces, rules)
    if missing:
        raise StartupError(f"{folder}: the weights lack {_listed(missing)}{_and_has(unexpected)}.")
    if unexpected:
        raise StartupError(f"{folder}: the weights hold what this model has no place for: {_listed(unexpected)}.")
    return plan


def _all_pieces(model: nn.Module) -> dict[str, tuple[str, Pieces, str]]:
    """What quantized layers wait for, by our names: the layer, its pieces, the suffix."""
    found = {}
    for owner, module in model.named_modules():
        pieces = getattr(module, "pieces", None)
        for suffix in pieces.suffixes() if pieces is not None else ():
            found[f"{owner}.{suffix}"] = (owner, pieces, suffix)
    return found


def _check_piece(
    pieces: Pieces, target: Target, suffix: str, entry: Entry, path: Location, seen: set[tuple[int | None, str]]
) -> None:
    """Whether a tensor can be this piece, and is the only one."""
    why = pieces.why_not(target.part, suffix, entry.shape, _dtype(entry))
    if why is not None:
        raise StartupError(f"{path}: tensor {entry.name!r} {why}.")
    if (target.part, suffix) in seen or (
        suffix != "bias" and any((part is None) != (target.part is None) for part, _ in seen)
    ):
        raise StartupError(f"{path}: tensor {entry.name!r} fills {target.name} for the second time.")
    seen.add((target.part, suffix))


def _missing_pieces(
    pieces: dict[str, tuple[str, Pieces, str]],
    seen: dict[str, set[tuple[int | None, str]]],
    rules: Sequence[Rule],
) -> list[str]:
    """What no tensor is, under its name in the checkpoint."""
    owners = {owner: waiting for owner, waiting, _ in pieces.values()}
    return [
        original(Target(f"{owner}.{suffix}", part if waiting.num > 1 else None), rules)
        for owner, waiting in owners.items()
        for part, suffix in waiting.missing(seen[owner])
    ]


def _home(folder: Path, files: Files) -> Location:
    """What errors about all files name: the folder, or the first file where they are elsewhere."""
    first = next(iter(files), folder)
    return folder if isinstance(first, Path) and first.parent == folder else first


def _has_place(params: dict[str, nn.Parameter], target: Target) -> bool:
    return target.name in params and (target.part is None or target.part < len(shard_of(params[target.name]).parts))


def _check(param: torch.Tensor, target: Target, entry: Entry, path: Location) -> None:
    """Whether a tensor can fill its part of the parameter."""
    view = _place(param, target)
    if tuple(view.shape) != entry.shape:
        raise StartupError(
            f"{path}: tensor {entry.name!r} has shape {list(entry.shape)}, config.json makes it {list(view.shape)}."
        )
    stored = _dtype(entry)
    wide_floats = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
    if stored is None or (stored != param.dtype and not (stored in wide_floats and param.dtype in wide_floats)):
        raise StartupError(
            f"{path}: tensor {entry.name!r} holds {entry.dtype}, which cannot become {str(param.dtype)[6:]};"
            " is the checkpoint quantized?"
        )


def _missing(params: dict[str, nn.Parameter], filled: dict[str, set[int | None]], rules: Iterable[Rule]) -> list[str]:
    """What no tensor filled, under its name in the checkpoint where a fused part is meant."""
    missing = []
    for name, param in params.items():
        parts = shard_of(param).parts
        wanted: list[int | None] = list(range(len(parts))) if len(parts) > 1 else [None]
        if None in filled[name]:
            continue
        for part in wanted:
            if part not in filled[name]:
                missing.append(_checkpoint_name(Target(name, part), rules))
    return missing


def _checkpoint_name(target: Target, rules: Iterable[Rule]) -> str:
    for rule in rules:
        into, parts = getattr(rule, "into", None), getattr(rule, "parts", ())
        if target.part is not None and into in target.name.split("."):
            return target.name.replace(into, parts[target.part])
    return target.name


def _listed(names: list[str]) -> str:
    shown = ", ".join(repr(name[:120]) for name in names[:4])
    return shown + (f" and {len(names) - 4} more" if len(names) > 4 else "")


def _and_has(unexpected: list[str]) -> str:
    return f", and hold unknown ones: {_listed(unexpected)}" if unexpected else ""
