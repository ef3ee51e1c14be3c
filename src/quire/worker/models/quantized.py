"""Which layer of a model keeps its weights how: what a checkpoint says of its modules, or what --quantization makes.

Where there are files, what they hold decides: a module whose tensors are packed is quantized, one with a plain `weight`
is not, whatever lists of exceptions say. Without files (dummy weights) the lists decide.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import nn

from quire.checkpoint import Fields
from quire.worker.layers.embedding import TiedHead
from quire.worker.layers.experts import ExpertStack
from quire.worker.layers.linear import Linear
from quire.worker.loading.files import DTYPES, find_tensors
from quire.worker.loading.names import Rule, SkipEnds, Target, original, translate
from quire.worker.quantization.format import Format, Formats
from quire.worker.quantization.protocol import Scheme
from quire.worker.quantization.stored import Stored

log = logging.getLogger("quire.engine")

HEAD = "lm_head"
KV_SCALES = SkipEnds(("k_scale", "v_scale", "q_scale", "kv_scale", "prob_scale", "output_scale"))
"""Of a quantized KV cache: ours is in the format of the activations."""

Stored_ = Mapping[tuple[str, int | None], torch.dtype | None]


def settle(
    model: nn.Module, rules: Sequence[Rule], formats: Formats, plain: Scheme, head: Scheme, folder: Path | None
) -> int:
    """Give every layer its scheme; the number of those that are quantized.

    Args:
        model: made with the scheme `Later`; layers that have another one (a vision tower's) keep it, unless the
            checkpoint's are quantized.
        rules: its weight map.
        formats: what is said of modules by their names in the checkpoint.
        plain: of layers that are not quantized.
        head: of the output head, if that is not quantized.
        folder: the checkpoint whose tensors decide; None: the lists do.
    """
    present = None if folder is None else _present(folder, rules)
    num = 0
    for name, module in model.named_modules():
        if isinstance(module, TiedHead):
            module.settle(head)
        if not isinstance(module, Linear | ExpertStack):
            continue
        found = _formats(name, len(module.out_parts), rules, formats, present)
        if any(found) and (present is not None or not module.is_settled):
            num += 1
            module.settle(Stored(found))
        elif not module.is_settled:
            other = head if _is_head(name) else plain
            module.settle(None if isinstance(module, ExpertStack) else other)  # type: ignore[arg-type]
    return num


def _is_head(name: str) -> bool:
    return name.rpartition(".")[2] == HEAD


def _formats(
    name: str, num: int, rules: Sequence[Rule], formats: Formats, present: Stored_ | None
) -> tuple[Format | None, ...]:
    """Of every part of a layer."""
    found = []
    for part in range(num):
        index = part if num > 1 else None
        module = original(Target(f"{name}.weight", index), rules).removesuffix(".weight")
        made = formats.of(module)
        if present is None:
            found.append(made if formats.head() or not _is_head(name) else None)
            continue
        made = made or formats.of("")  # the lists may say otherwise, the tensors decide
        there = made is not None and any(
            present.get((f"{name}.{made.marker[0]}", key)) in made.marker[1] for key in (index, None)
        )
        found.append(made if there else None)
    return tuple(found)


def _present(folder: Path, rules: Sequence[Rule]) -> Stored_:
    """Number formats of the checkpoint's tensors, by our names."""
    found = {}
    for entries in find_tensors(folder).values():
        for entry in entries:
            target = translate(entry.name, rules)
            if target is not None:
                found[(target.name, target.part)] = DTYPES.get(entry.dtype)
    return found


def note_kv_cache(config: Fields) -> None:
    """Say that a checkpoint's scales of the KV cache are not used."""
    section = config.section("quantization_config")
    if section is not None and (section.values.get("kv_cache_scheme") or section.values.get("kv_cache_quant_algo")):
        log.info(
            "The checkpoint has scales for a quantized KV cache, which is not used: keys and values stay unquantized."
        )
