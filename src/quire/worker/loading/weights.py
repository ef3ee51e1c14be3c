"""Fill a model's parameters: from files, tensor by tensor, or with random numbers.

Everything that can be wrong with a checkpoint is found from its headers, before the first byte of data is read.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from quire.errors import StartupError
from quire.worker.loading.files import DTYPES, TensorFile, find_tensors
from quire.worker.loading.header import Entry
from quire.worker.loading.names import Rule, Target, translate
from quire.worker.quantization.protocol import shard_of

Progress = Callable[[int, int], None]
"""Called with (bytes done, bytes in all)."""


@dataclass(frozen=True, slots=True)
class _Move:
    """One tensor of a file and the view that it fills; None is skipped."""

    entry: Entry
    view: torch.Tensor | None


def fill_from_files(model: nn.Module, rules: tuple[Rule, ...], folder: Path, progress: Progress) -> None:
    """Stream a checkpoint's safetensors into the model, casting to the parameters' number format.

    Raises:
        ConfigError, StartupError: no weights, broken files, tensors missing, unknown or of another shape.
    """
    plan = _plan(model, rules, find_tensors(folder), folder)
    total = sum(move.entry.end - move.entry.start for moves in plan.values() for move in moves)
    done = 0

    def advance(num_bytes: int) -> None:
        nonlocal done
        done += num_bytes
        progress(done, total)

    progress(0, total)
    with torch.no_grad():
        for path, moves in plan.items():
            with TensorFile(path) as file:
                for entry, view in ((move.entry, move.view) for move in moves):
                    if view is None:
                        advance(entry.end - entry.start)
                    else:
                        file.copy(entry, view, advance)


def fill_with_random(model: nn.Module, seed: int) -> None:
    """Weights from a normal law of deviation 0.02, norms 1, biases 0: activations stay finite at any depth.

    Each parameter has its own stream, keyed by seed and name: the same on every run of one device type.
    """
    with torch.no_grad():
        for name, param in model.named_parameters():
            if param.dim() > 1:
                generator = torch.Generator(param.device).manual_seed(zlib.crc32(f"{seed}:{name}".encode()))
                param.normal_(0.0, 0.02, generator=generator)
            else:
                param.fill_(0.0 if name.endswith("bias") else 1.0)


def finish(model: nn.Module) -> None:
    """Tell every layer that its parameters are filled."""
    for module in model.modules():
        done = getattr(module, "finish", None)
        if done is not None:
            done()


def _plan(
    model: nn.Module, rules: tuple[Rule, ...], files: dict[Path, tuple[Entry, ...]], folder: Path
) -> dict[Path, list[_Move]]:
    """What goes where; checks names, shapes and number formats, and that nothing stays empty."""
    params = dict(model.named_parameters())
    filled: dict[str, set[int | None]] = {name: set() for name in params}
    unexpected: list[str] = []
    plan: dict[Path, list[_Move]] = {path: [] for path in files}
    for path, entry in ((path, entry) for path, entries in files.items() for entry in entries):
        target = translate(entry.name, rules)
        if target is not None and target.name not in params:
            unexpected.append(entry.name)
            continue
        view = None if target is None else _view(params[target.name], target, entry, path)
        if target is not None:
            seen = filled[target.name]
            if target.part in seen or None in seen or (target.part is None and seen):
                raise StartupError(f"{path}: tensor {entry.name!r} fills {target.name} for the second time.")
            seen.add(target.part)
        plan[path].append(_Move(entry, view))
    missing = _missing(params, filled, rules)
    if missing:
        raise StartupError(f"{folder}: the weights lack {_listed(missing)}{_and_has(unexpected)}.")
    if unexpected:
        raise StartupError(f"{folder}: the weights hold what this model has no place for: {_listed(unexpected)}.")
    return plan


def _view(param: torch.Tensor, target: Target, entry: Entry, path: Path) -> torch.Tensor:
    """The part of the parameter that a tensor fills."""
    view = shard_of(param).part(param.detach(), target.part)
    if tuple(view.shape) != entry.shape:
        raise StartupError(
            f"{path}: tensor {entry.name!r} has shape {list(entry.shape)}, config.json makes it {list(view.shape)}."
        )
    stored = DTYPES.get(entry.dtype)
    wide_floats = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
    if stored is None or (stored != param.dtype and not (stored in wide_floats and param.dtype in wide_floats)):
        raise StartupError(
            f"{path}: tensor {entry.name!r} holds {entry.dtype}, which cannot become {str(param.dtype)[6:]};"
            " is the checkpoint quantized?"
        )
    return view


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
