"""The tensors of a GGUF as entries that the loader takes, and the order of their rows.

Two kinds of files have rows elsewhere than a checkpoint of transformers. A row i of the file goes to row order[i]:

    q, k of Llama, per head      file  a0 b0 a1 b1 ...         checkpoint  a0 a1 ... b0 b1 ...     (a, b: of one turn)
    q, k, v of Falcon            file  q q q q k k v v         checkpoint  q q k v | q q k v       (per group)
"""

from __future__ import annotations

from functools import lru_cache

import torch

from quire.sources.files import Location
from quire.sources.gguf.header import read_header
from quire.sources.gguf.metadata import Metadata
from quire.sources.gguf.weights import named_tensors
from quire.worker.loading.header import Entry


def gguf_entries(places: list[Location]) -> dict[Location, tuple[Entry, ...]]:
    """The tensors of each file, in the order of their bytes.

    Raises:
        ConfigError, StartupError: broken headers, or names of which nothing is known.
    """
    found: dict[Location, list[Entry]] = {place: [] for place in places}
    for tensor in named_tensors(Metadata([read_header(place) for place in places])):
        found[tensor.location].append(
            Entry(
                tensor.name,
                tensor.type,
                tensor.shape,
                tensor.start,
                tensor.end,
                heads=tensor.heads,
                groups=tensor.groups,
                less=tensor.less,
            )
        )
    return {place: tuple(entries) for place, entries in found.items()}


def row_order(entry: Entry) -> torch.Tensor | None:
    """Where the rows of a tensor go; None is where they are."""
    return _order(entry.shape[0], entry.heads, entry.groups) if entry.heads else None


@lru_cache(maxsize=16)
def _order(rows: int, heads: int, groups: int) -> torch.Tensor | None:
    if groups:
        if heads % groups or rows % (heads + 2 * groups):
            return None
        size = rows // (heads + 2 * groups)
        grouped = torch.arange(rows).view(groups, -1, size)
        return torch.cat([grouped[:, :-2].flatten(), grouped[:, -2].flatten(), grouped[:, -1].flatten()])
    if rows % (2 * heads):
        return None
    return torch.arange(rows).view(heads, 2, -1).transpose(1, 2).flatten()
