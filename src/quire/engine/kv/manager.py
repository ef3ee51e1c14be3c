"""KVManager: owns the pool and the rule by which requests get, share and return blocks.

tokens of a request   [0, cached) shared | [cached, computed) ours | [computed, known) to run
its blocks            shared ........... | ours ................... | allocated when a step needs them
"""

from __future__ import annotations

from collections.abc import Iterable

from quire.engine.kv.hashing import HashFunction, chain, picture_marks, root
from quire.engine.kv.pool import ROOT, BlockPool
from quire.engine.scheduler.request import Request


class KVManager:
    """Blocks for requests.

    Args:
        pool: the blocks.
        block_size: tokens per block.
        prefix_caching: whether contents are remembered and looked up; if not, only within a group of requests.
        hash_function: for tests that force collisions.
    """

    def __init__(
        self, pool: BlockPool, block_size: int, *, prefix_caching: bool = True, hash_function: HashFunction = chain
    ) -> None:
        self.pool = pool
        self.block_size = block_size
        self.num_queries = 0
        self.num_hits = 0
        self._prefix_caching = prefix_caching
        self._hash = hash_function

    def blocks_for(self, num_tokens: int) -> int:
        """Blocks that hold this many tokens."""
        return -(-num_tokens // self.block_size)

    def match(self, request: Request) -> list[int]:
        """Blocks of the longest cached prefix. At least one token is left to run, for its logits."""
        if not self._shares(request):
            return []
        self._begin_chain(request)
        blocks: list[int] = []
        parent = ROOT
        for index in range(request.num_readable // self.block_size):
            found = self.pool.find(self._digest(request, index), self._token_bytes(request, index), parent)
            if found is None:
                break
            block, parent = found
            blocks.append(block)
        return blocks

    def admit(self, request: Request, prefix: list[int], num_tokens: int) -> bool:
        """Give a waiting request its cached prefix and room for `num_tokens` in all; False, taking nothing, if short.

        There must be room for all tokens it has, not only for this chunk: else half-run prompts evict each other.
        """
        request.needs_free = self._lacking(request, prefix)
        if request.needs_free > self.pool.num_free:
            return False
        for block in prefix:
            self.pool.hold(block)
        request.blocks = prefix + self.pool.allocate(self.blocks_for(num_tokens) - len(prefix))
        request.num_cached = len(prefix) * self.block_size
        request.num_remembered = len(prefix)
        request.parent_serial = self.pool.serial_of(prefix[-1]) if prefix else ROOT
        self.num_queries += request.known
        self.num_hits += request.num_cached
        return True

    def look_ahead(self, request: Request) -> None:
        """Set `needs_free` of a request that was not tried yet."""
        if not request.needs_free:
            request.needs_free = self._lacking(request, self.match(request))

    def _lacking(self, request: Request, prefix: list[int]) -> int:
        """Free blocks that all its tokens ask for, of which a cached prefix may take some."""
        return self.blocks_for(request.known) - len(prefix) + sum(self.pool.is_free(block) for block in prefix)

    def grow(self, request: Request, num_tokens: int) -> list[int] | None:
        """Make room for `num_tokens` in all; the new blocks, or None, and nothing taken, if the pool is short."""
        needed = self.blocks_for(num_tokens) - len(request.blocks)
        if needed <= 0:
            return []
        if needed > self.pool.num_free:
            return None
        new = self.pool.allocate(needed)
        request.blocks.extend(new)
        return new

    def remember(self, request: Request, num_tokens: int) -> None:
        """Cache the full blocks of tokens [0, num_tokens): committed by the device, so their content is certain."""
        if not self._shares(request):
            return
        for index in range(request.num_remembered, num_tokens // self.block_size):
            request.parent_serial = self.pool.remember(
                request.blocks[index],
                self._digest(request, index),
                self._token_bytes(request, index),
                request.parent_serial,
            )
            request.num_remembered = index + 1

    def release(self, request: Request) -> None:
        """Take a request's blocks back; what was remembered stays to be hit until evicted."""
        self.pool.release(request.blocks)
        request.blocks = []
        request.num_remembered = 0
        request.parent_serial = ROOT

    def check_integrity(self, requests: Iterable[Request]) -> None:
        """Raise RuntimeError unless the pool agrees with what these requests hold."""
        self.pool.check_integrity(request.blocks for request in requests)

    def _shares(self, request: Request) -> bool:
        """Whether its blocks are remembered: of a group always, for the others in it."""
        return self._prefix_caching or request.group >= 0

    def _begin_chain(self, request: Request) -> None:
        if not request.digests:
            salt = request.cache_salt if self._prefix_caching else f"group {request.group}"
            request.digests.append(root(salt))

    def _digest(self, request: Request, index: int) -> bytes:
        """Digest of full block `index`; digests[0] is the root, so block i is at i + 1. Each is computed once."""
        self._begin_chain(request)
        digests = request.digests
        while len(digests) <= index + 1:
            digests.append(self._hash(digests[-1], self._token_bytes(request, len(digests) - 1)))
        return digests[index + 1]

    def _token_bytes(self, request: Request, index: int) -> bytes:
        """What block `index` is known by: its token ids, and the pictures that any of them stand for."""
        start = index * self.block_size
        end = start + self.block_size
        data = request.tokens[start:end].tobytes()
        return data + picture_marks(request.pictures, start, end) if request.pictures else data
