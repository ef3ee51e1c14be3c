"""Training batches for the demo model, written, tokenized and packed by worker processes.

Documents are packed into rows of fixed length; `document` numbers them, so that
attention can be kept inside each.  Batch `i` of a seed is always the same,
whichever worker makes it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from tokenizers import Tokenizer
from torch.utils.data import DataLoader

from .exchange import Pen
from .text import Document, training_document
from .tokenizer import whole_words

Array = npt.NDArray[np.generic]


@dataclass(frozen=True, slots=True)
class Batch:
    """Packed rows: token ids, how much each is learned, document numbers and positions."""

    ids: Array
    weights: Array
    documents: Array
    positions: Array
    prompts: Array
    """A hash of every prompt in the batch, for the proof that none is held out."""


def prompt_hash(prompt: str) -> int:
    """64 bits that stand for a prompt, whatever its letter case and outer spaces."""
    digest = hashlib.blake2b(prompt.strip().lower().encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little")


def _encode(tokenizer: Tokenizer, document: Document) -> tuple[list[int], list[float]]:
    """The tokens of a document and their weights in the loss."""
    ids: list[int] = []
    weights: list[float] = []
    encodings = tokenizer.encode_batch_fast([text for text, _ in document.segments], add_special_tokens=False)
    for (_, learned), encoding in zip(document.segments, encodings, strict=True):
        piece = encoding.ids
        # Without this, stories would drown out sums, which are a tenth as long.
        weight = len(piece) ** -0.5 if learned else 0.0
        ids += piece
        weights += [weight] * len(piece)
    return ids, weights


class Batches:
    """All batches of a run; reading one makes it."""

    def __init__(self, tokenizer_file: Path, seed: str, rows: int, length: int, number: int, first: int = 0) -> None:
        self._tokenizer_file = tokenizer_file
        self._seed = seed
        self._shape = (rows, length)
        self._range = range(first, first + number)
        self._tools: tuple[Tokenizer, frozenset[str]] | None = None

    def __len__(self) -> int:
        return len(self._range)

    def __getitem__(self, index: int) -> Batch:
        if self._tools is None:  # Read in the worker: a tokenizer does not travel well between processes.
            tokenizer = Tokenizer.from_file(str(self._tokenizer_file))
            self._tools = tokenizer, whole_words(tokenizer)
        tokenizer, whole = self._tools
        return self._pack(tokenizer, Pen.make(f"{self._seed}/{self._range[index]}", whole))

    def _pack(self, tokenizer: Tokenizer, pen: Pen) -> Batch:
        ids = np.zeros(self._shape, np.int16)
        weights = np.zeros(self._shape, np.float32)
        documents = np.zeros(self._shape, np.int16)
        positions = np.zeros(self._shape, np.int16)
        written, hashes = self._write(tokenizer, pen)
        used, number = [0] * len(ids), 0
        # Longest first, each into the first row with room for it: the rows end up nearly full.
        for tokens, token_weights in sorted(written, key=lambda pair: -len(pair[0])):
            row = next((row for row, length in enumerate(used) if length + len(tokens) <= self._shape[1]), None)
            if row is None:
                continue
            place = slice(used[row], used[row] + len(tokens))
            number += 1
            ids[row, place], weights[row, place] = tokens, token_weights
            documents[row, place], positions[row, place] = number, np.arange(len(tokens))
            used[row] += len(tokens)
        return Batch(ids, weights, documents, positions, np.array(hashes, np.uint64))

    def _write(self, tokenizer: Tokenizer, pen: Pen) -> tuple[list[tuple[list[int], list[float]]], list[int]]:
        """Documents with as many tokens as the rows can hold, and the hashes of their prompts."""
        rows, length = self._shape
        written: list[tuple[list[int], list[float]]] = []
        hashes: list[int] = []
        room = rows * length
        while room > 0:
            document = training_document(pen)
            tokens, weights = _encode(tokenizer, document)
            written.append((tokens[:length], weights[:length]))
            hashes += [prompt_hash(prompt) for prompt in document.prompts]
            room -= len(written[-1][0])
        return written, hashes


def _alone(batch: list[Batch]) -> Batch:
    return batch[0]


def stream(batches: Batches, workers: int) -> Iterator[Batch]:
    """The batches in order, made ahead of their use by worker processes."""
    # Arrays, unlike tensors, come back through a pipe: no shared memory is needed.
    loader = DataLoader(batches, batch_size=1, num_workers=workers, collate_fn=_alone,
                        prefetch_factor=8 if workers else None)  # fmt: skip
    yield from loader


@dataclass(frozen=True, slots=True)
class DeviceBatch:
    """A batch where the model is: inputs, targets, weights of the targets, mask."""

    ids: torch.Tensor
    positions: torch.Tensor
    mask: torch.Tensor
    targets: torch.Tensor
    weights: torch.Tensor


def to_device(batch: Batch, device: torch.device) -> DeviceBatch:
    """The batch as tensors; a token's target is its successor in the same document."""

    def move(array: Array) -> torch.Tensor:
        return torch.from_numpy(array).to(device, non_blocking=True)

    ids, documents, weights = move(batch.ids).long(), move(batch.documents), move(batch.weights)
    length = ids.shape[1]
    causal = torch.ones(length, length, dtype=torch.bool, device=device).tril()
    mask = (documents[:, None, :, None] == documents[:, None, None, :]) & causal
    # A document's first token would be guessed from the end of the one before it.
    starts = documents[:, 1:] != documents[:, :-1]
    weights = weights[:, 1:].masked_fill(starts, 0.0)
    return DeviceBatch(ids, move(batch.positions).long(), mask, ids[:, 1:], weights)
