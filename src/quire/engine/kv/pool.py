"""BlockPool: owns the reference count, the place in the free list and the content of every KV block.

A block is in exactly one of three states; every move is O(1):

    in use (count > 0)  ──release──►  cached: free, content known, can be hit or evicted
          ▲   ▲                           │ evict
          │   └────────── hit ────────────┤
          └──────────── allocate ──────── blank: free, content forgotten

The free list is in eviction order: blank blocks first, then cached ones, least recently used first.
Block 0 is the null block; padding points to it and it is never handed out.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from quire.engine.kv.hashing import Digest

NULL_BLOCK = 0
ROOT = -1
"""The serial of the empty prefix."""


class Cached(NamedTuple):
    """What a full block holds. `serial` names this very entry; `parent` is the serial of the block before it."""

    digest: Digest
    token_bytes: bytes
    serial: int
    parent: int


class BlockPool:
    """Fixed-size blocks, numbered 1 .. num_blocks - 1.

    Args:
        num_blocks: blocks on the device, the null block included.
    """

    def __init__(self, num_blocks: int) -> None:
        if num_blocks < 2:
            raise ValueError(f"a pool needs the null block and at least one more, got {num_blocks}")
        self.num_blocks = num_blocks
        self._counts = [0] * num_blocks
        self._cached: list[Cached | None] = [None] * num_blocks
        self._by_digest: dict[Digest, int] = {}
        self._free: OrderedDict[int, None] = OrderedDict.fromkeys(range(1, num_blocks))
        self._next_serial = 0

    @property
    def num_free(self) -> int:
        """Blocks that can be allocated now; cached ones count, since they can be evicted."""
        return len(self._free)

    @property
    def num_usable(self) -> int:
        """All blocks but the null block."""
        return self.num_blocks - 1

    @property
    def usage(self) -> float:
        """Share of usable blocks in use, 0..1."""
        return 1.0 - self.num_free / self.num_usable

    def allocate(self, count: int) -> list[int]:
        """Take `count` blocks, evicting the least recently used content where needed. The caller checked `num_free`."""
        taken = []
        for _ in range(count):
            block, _ = self._free.popitem(last=False)
            self._forget(block)
            self._counts[block] = 1
            taken.append(block)
        return taken

    def hold(self, block: int) -> None:
        """One more user of a block that was found by `find`."""
        if self._counts[block] == 0:
            del self._free[block]
        self._counts[block] += 1

    def release(self, blocks: Sequence[int]) -> None:
        """Give back a request's blocks, first to last. Its tail is evicted before its head: heads are shared more."""
        for block in reversed(blocks):
            count = self._counts[block] - 1
            if count < 0:
                raise RuntimeError(f"block {block} released more often than held")
            self._counts[block] = count
            if count == 0:
                self._free[block] = None
                if self._cached[block] is None:
                    self._free.move_to_end(block, last=False)

    def find(self, digest: Digest, token_bytes: bytes, parent: int) -> tuple[int, int] | None:
        """(block, serial) of the block with this content after this parent.

        The digest only finds the candidate: token ids and parent are compared too, so a collision is a miss.
        """
        block = self._by_digest.get(digest)
        if block is None:
            return None
        entry = self._cached[block]
        if entry is None or entry.token_bytes != token_bytes or entry.parent != parent:
            return None
        return block, entry.serial

    def is_free(self, block: int) -> bool:
        """Whether nobody holds the block."""
        return self._counts[block] == 0

    def serial_of(self, block: int) -> int:
        """The serial of a cached block's content."""
        entry = self._cached[block]
        if entry is None:
            raise RuntimeError(f"block {block} holds no cached content")
        return entry.serial

    def remember(self, block: int, digest: Digest, token_bytes: bytes, parent: int) -> int:
        """Record the content of a full block in use; returns the serial of the entry that holds this content.

        If the same content is cached already, that entry stays and its serial is returned: the chain goes on from it.
        """
        found = self.find(digest, token_bytes, parent)
        if found is not None:
            return found[1]
        serial = self._next_serial
        self._next_serial += 1
        if self._cached[block] is None and digest not in self._by_digest:
            self._cached[block] = Cached(digest, token_bytes, serial, parent)
            self._by_digest[digest] = block
        return serial

    def forget_all(self) -> None:
        """Drop the content of all free blocks, and unlink that of blocks in use."""
        for block in range(1, self.num_blocks):
            self._forget(block)

    def check_integrity(self, held: Iterable[Sequence[int]]) -> None:
        """Raise RuntimeError unless counts, free list and index agree with the block lists that are held."""
        held = list(held)
        if not held and self._counts.count(0) == self.num_blocks and len(self._free) == self.num_usable:
            return  # idle, the common case: nothing is held and all is free
        expected = [0] * self.num_blocks
        for blocks in held:
            for block in blocks:
                expected[block] += 1
        if expected != self._counts:
            wrong = [b for b in range(self.num_blocks) if expected[b] != self._counts[b]]
            raise RuntimeError(f"reference counts differ from holders at blocks {wrong[:8]}")
        free = {block for block in range(1, self.num_blocks) if self._counts[block] == 0}
        if free != set(self._free):
            raise RuntimeError("free list differs from the unreferenced blocks")
        for digest, block in self._by_digest.items():
            entry = self._cached[block]
            if entry is None or entry.digest != digest:
                raise RuntimeError(f"index points to block {block}, which holds something else")
        if sum(entry is not None for entry in self._cached) != len(self._by_digest):
            raise RuntimeError("a cached block is missing from the index")

    def _forget(self, block: int) -> None:
        entry = self._cached[block]
        if entry is not None:
            self._cached[block] = None
            del self._by_digest[entry.digest]
