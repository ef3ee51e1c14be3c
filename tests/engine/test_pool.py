"""BlockPool and KVManager: states, order of eviction, sharing, collisions."""

from __future__ import annotations

import pytest

from quire.engine.kv.hashing import chain, root
from quire.engine.kv.manager import KVManager
from quire.engine.kv.pool import ROOT, BlockPool
from quire.engine.scheduler.request import Request
from quire.messages import AddRequest, pack_ids
from quire.params import SamplingParams


def request(id_: int, tokens: list[int], salt: str = "") -> Request:
    message = AddRequest(id_, pack_ids(tokens), SamplingParams(max_tokens=50), [], 0, salt)
    return Request(message, seq=id_, max_model_len=1000, arrival=0.0)


def test_the_null_block_is_never_handed_out() -> None:
    pool = BlockPool(5)
    assert sorted(pool.allocate(4)) == [1, 2, 3, 4]
    assert (pool.num_free, pool.usage) == (0, 1.0)


def test_blank_blocks_go_before_cached_ones_and_tails_before_heads() -> None:
    pool = BlockPool(8)
    head, middle, tail, blank = pool.allocate(4)
    parent, digest = ROOT, root("")
    for block, content in ((head, b"a"), (middle, b"b"), (tail, b"c")):
        digest = chain(digest, content)
        parent = pool.remember(block, digest, content, parent)
    never_used = pool.allocate(3)
    pool.release(never_used)
    pool.release([head, middle, tail, blank])
    order = [pool.allocate(1)[0] for _ in range(7)]
    assert set(order[:4]) == {*never_used, blank} and order[4:] == [tail, middle, head]


def test_a_held_block_is_not_evicted_and_comes_back_once() -> None:
    pool = BlockPool(3)
    [block] = pool.allocate(1)
    serial = pool.remember(block, b"d", b"tokens", ROOT)
    pool.release([block])
    assert pool.find(b"d", b"tokens", ROOT) == (block, serial)
    pool.hold(block)
    pool.hold(block)
    assert pool.num_free == 1
    pool.release([block])
    assert pool.num_free == 1
    pool.release([block])
    assert pool.num_free == 2
    with pytest.raises(RuntimeError, match="more often"):
        pool.release([block])


def test_a_collision_of_digests_is_a_miss() -> None:
    pool = BlockPool(4)
    first, second = pool.allocate(2)
    serial = pool.remember(first, b"same", b"one", ROOT)
    assert pool.find(b"same", b"two", ROOT) is None, "other tokens"
    assert pool.find(b"same", b"one", serial) is None, "other parent"
    pool.remember(second, b"same", b"two", ROOT)
    assert pool.find(b"same", b"one", ROOT) == (first, serial), "the first content stays"
    pool.check_integrity([[first], [second]])


@pytest.mark.parametrize("damage", ["lost", "doubled", "index"])
def test_integrity_check_finds_damage(damage: str) -> None:
    pool = BlockPool(6)
    a, b = pool.allocate(2)
    pool.remember(a, b"a", b"a", ROOT)
    pool.check_integrity([[a, b]])
    if damage == "lost":
        held = [[a]]
    elif damage == "doubled":
        held = [[a, b], [b]]
    else:
        held = [[a, b]]
        pool._cached[a] = None
    with pytest.raises(RuntimeError):
        pool.check_integrity(held)


def admitted(manager: KVManager, req: Request) -> Request:
    assert manager.admit(req, manager.match(req), req.known)
    return req


def test_prefix_is_shared_by_full_blocks_and_one_token_is_left_to_run() -> None:
    manager = KVManager(BlockPool(20), 4)
    first = admitted(manager, request(0, list(range(12))))
    manager.remember(first, 12)
    same = admitted(manager, request(1, list(range(12))))
    longer = admitted(manager, request(2, [*range(12), 99]))
    other = admitted(manager, request(3, [*range(4), 7, *range(5, 12)]))
    assert (same.num_cached, longer.num_cached, other.num_cached) == (8, 12, 4)
    assert same.blocks[:2] == first.blocks[:2] and longer.blocks[:3] == first.blocks
    manager.check_integrity([first, same, longer, other])


def test_salts_do_not_share() -> None:
    manager = KVManager(BlockPool(20), 4)
    first = admitted(manager, request(0, list(range(12)), "a"))
    manager.remember(first, 12)
    assert admitted(manager, request(1, list(range(12)), "b")).num_cached == 0
    assert admitted(manager, request(2, list(range(12)), "a")).num_cached == 8


def test_admission_takes_nothing_when_short() -> None:
    manager = KVManager(BlockPool(4), 4)
    first = admitted(manager, request(0, list(range(8))))
    manager.remember(first, 8)
    second = request(1, list(range(16)))
    assert not manager.admit(second, manager.match(second), 9)
    assert second.blocks == [] and second.needs_free == 2 > manager.pool.num_free
    manager.check_integrity([first, second])


def test_equal_content_computed_twice_is_cached_once() -> None:
    manager = KVManager(BlockPool(20), 4)
    first, twin = (admitted(manager, request(i, list(range(12)))) for i in range(2))
    for req in (first, twin):
        manager.remember(req, 12)
    third = admitted(manager, request(2, list(range(13))))
    assert third.blocks[:3] == first.blocks
    for req in (first, twin, third):
        manager.release(req)
    manager.check_integrity([])
