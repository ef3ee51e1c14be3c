"""Pictures in the scheduler: who gets a slot, when it is encoded, and that only equal pictures share prefixes."""

from __future__ import annotations

from test_scheduler import Bench

from quire.engine.kv.hashing import pictures_in
from quire.engine.scheduler.encoder import EncoderBudget
from quire.engine.scheduler.scheduler import Step
from quire.messages import AddRequest, Picture, pack_ids
from quire.params import SamplingParams

IMAGE = 7


class PictureBench(Bench):
    """A bench whose requests have pictures."""

    def __init__(self, *, slots: int = 4, most: int = 4, **options) -> None:
        self.encoder = EncoderBudget(slots, most)
        super().__init__(limits=(self.encoder,), riders=(self.encoder,), **options)

    def see(self, *parts: int | bytes, length: int = 8, output: int = 5, salt: str = "") -> int:
        """A prompt of numbers of tokens, and of pictures by their digest."""
        tokens: list[int] = []
        pictures = []
        for part in parts:
            if isinstance(part, bytes):
                pictures.append(Picture(len(tokens), length, part, 1, 1, b"rgb"))
            tokens += [IMAGE] * length if isinstance(part, bytes) else [100] * part
        id_, self.next_id = self.next_id, self.next_id + 1
        params = SamplingParams(max_tokens=output)
        self.scheduler.add(AddRequest(id_, pack_ids(tokens), params, [], cache_salt=salt, pictures=pictures))
        return id_

    def step(self) -> tuple[dict[int, int], list[bytes], list[tuple[int, int, int]]]:
        """Plan and commit: who ran how much, digests that were encoded, (start, first, count) of what was placed."""
        step = self.scheduler.plan()
        assert isinstance(step, Step)
        ran = self.commit(step)
        if not step.plan.pictures:
            return ran, [], []
        [carried] = step.plan.pictures
        placed = [(placed.start, placed.first, placed.count) for placed in carried.placed]
        return ran, [new.picture.digest for new in carried.new], placed


def test_a_picture_cut_in_two_is_encoded_once_and_held_until_its_last_position() -> None:
    bench = PictureBench(budget=6)
    id_ = bench.see(3, b"a", 4)
    assert bench.step() == ({id_: 6}, [b"a"], [(3, 0, 3)])
    assert bench.encoder.num_held == 1
    assert bench.step() == ({id_: 6}, [], [(6, 3, 5)])
    assert bench.step() == ({id_: 3}, [], []) and bench.encoder.num_held == 0
    assert bench.step() == ({id_: 1}, [], [])


def test_the_budget_of_a_step_cuts_before_the_picture_that_is_too_much() -> None:
    bench = PictureBench(budget=100, most=1)
    first, second = bench.see(2, b"a", 2, b"b", 1), bench.see(1, b"c")
    assert bench.step() == ({first: 12, second: 1}, [b"a"], [(2, 0, 8)])
    ran, encoded, _ = bench.step()
    assert ran[first] == 9 and encoded == [b"b"] and second not in ran, "none left for the second"
    ran, encoded, _ = bench.step()
    assert ran == {first: 1, second: 8} and encoded == [b"c"]


def test_who_has_no_slot_waits_and_who_decodes_does_not() -> None:
    bench = PictureBench(budget=5, slots=1, rows=4)
    text = bench.add(1)
    bench.plan()
    first = bench.see(b"a")
    assert bench.step()[0] == {text: 1, first: 4}
    second = bench.see(b"b")
    ran, encoded, _ = bench.step()
    assert ran == {text: 1, first: 4} and not encoded
    ran, encoded, _ = bench.step()
    assert ran[text] == 1 and ran[first] == 1 and ran[second] == 3 and encoded == [b"b"]


def test_the_same_picture_is_not_encoded_again_until_its_slot_is_needed() -> None:
    bench = PictureBench(budget=100, slots=2)
    bench.see(1, b"a", output=1), bench.see(2, b"a", output=1)
    assert bench.step()[1] == [b"a"]
    bench.see(3, b"a", b"a", output=1)
    assert bench.step()[1:] == ([], [(3, 0, 8), (11, 0, 8)])
    bench.see(4, b"b", output=1)
    assert bench.step()[1] == [b"b"]
    bench.see(5, b"a", output=1)
    assert bench.step()[1] == []
    bench.see(6, b"c", output=1)
    assert bench.step()[1] == [b"c"], "in the place of b, which was used longest ago"
    bench.see(7, b"a", output=1)
    assert bench.step()[1] == []
    bench.see(8, b"b", output=1)
    assert bench.step()[1] == [b"b"]
    assert bench.encoder.num_queries - bench.encoder.num_hits == 4
    bench.see(9, b"b", output=1, salt="another")
    assert bench.step()[1] == [b"b"], "others' salts are others' pictures"


def test_abort_and_preemption_give_slots_back() -> None:
    bench = PictureBench(budget=6, slots=1)
    first = bench.see(b"a")
    bench.step()
    assert bench.encoder.num_held == 1
    bench.scheduler.abort([first])
    assert bench.encoder.num_held == 0
    second = bench.see(b"b")
    assert bench.step()[1] == [b"b"]
    bench.scheduler.hold(next(iter(bench.scheduler._running)))
    assert bench.encoder.num_held == 0
    bench.scheduler.release_hold(bench.scheduler._requests[second])
    assert bench.step() == ({second: 6}, [], [(0, 0, 6)]), "its vectors are there yet"


def test_after_a_step_that_failed_its_pictures_are_encoded_again() -> None:
    bench = PictureBench(budget=20)
    id_ = bench.see(2, b"a", 1)
    step = bench.scheduler.plan()
    assert step is not None and len(step.plan.pictures[0].new) == 1
    bench.scheduler.rewind(step)
    assert bench.encoder.num_held == 0
    assert bench.step() == ({id_: 11}, [b"a"], [(2, 0, 8)])


def test_without_chunks_all_pictures_of_a_prompt_come_together() -> None:
    bench = PictureBench(budget=40, slots=3, most=3, chunked_prefill=False)
    first, second = bench.see(b"a", b"b"), bench.see(b"c", b"d")
    assert bench.step()[:2] == ({first: 16}, [b"a", b"b"])
    ran, encoded, _ = bench.step()
    assert ran == {first: 1, second: 16} and encoded == [b"c", b"d"]


def test_prefixes_are_shared_by_equal_pictures_only() -> None:
    bench = PictureBench(budget=100, prefix_caching=True, block_size=4)

    def cached(*parts: int | bytes) -> int:
        id_ = bench.see(*parts, output=1)
        bench.step()
        return next(out.num_cached_tokens for out in bench.outputs if out.id == id_)

    assert cached(6, b"a", 6) == 0
    assert cached(6, b"a", 6) == 16, "all full blocks but the last token's"
    assert cached(6, b"b", 6) == 4, "the block before the picture"
    assert cached(6, b"b", 6) == 16
    assert cached(6, 8, 6) == 4, "text in the same places"
    assert cached(5, b"a", 7) == 4, "another place: only the block that is text in both"
    assert cached(b"a", b"b", 4) == 0 and cached(b"a", b"b", 4) == 16
    assert cached(b"a", b"a", 4) == 8 and cached(b"b", b"a", 4) == 0


def test_a_prefix_hit_needs_no_encoder_and_one_that_ends_inside_does() -> None:
    bench = PictureBench(budget=100, prefix_caching=True, block_size=4, slots=1)
    bench.see(2, b"a", 5, output=1)
    bench.step()
    bench.see(9, b"b", output=1)
    bench.step()
    bench.see(2, b"a", 5, output=1)
    assert bench.step()[1:] == ([], []), "its blocks are there: nothing to encode"
    bench.see(2, b"a", b"c", output=1)
    ran, encoded, placed = bench.step()
    assert encoded == [b"a"] and placed == [(8, 6, 2)] and list(ran.values()) == [2], "the slot that there is is a's"
    assert bench.step()[1] == [b"c"]


def test_pictures_in_a_range() -> None:
    pictures = [Picture(2, 3, b"a", 1, 1, b""), Picture(5, 2, b"b", 1, 1, b""), Picture(9, 1, b"c", 1, 1, b"")]
    for start in range(12):
        for end in range(start + 1, 12):
            expected = [p for p in pictures if p.start < end and p.end > start]
            assert list(pictures_in(pictures, start, end)) == expected
