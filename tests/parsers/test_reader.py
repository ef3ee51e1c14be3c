"""The primitives under every grammar, against the plain thing on the whole text."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from quire.frontend.parsers.json_text import scan_value, whole_json
from quire.frontend.parsers.python_text import whole_literal
from quire.frontend.parsers.reader import Markers, NotACall, Reader, Wait

SMALL = st.text(alphabet="ab<", max_size=12)
MARKS = st.lists(st.text(alphabet="ab<", min_size=1, max_size=4), min_size=1, max_size=3)


def run(reader: Reader, grammar: Wait[Any], text: str, cut: int) -> Any:
    """The grammar's result on a text in pieces of this size."""
    pieces = [text[start : start + cut] for start in range(0, len(text), cut)]
    try:
        next(grammar)
        for piece in pieces:
            reader.push(piece)
            next(grammar)
        reader.ended = True
        next(grammar)
    except StopIteration as end:
        return end.value
    raise AssertionError("waits behind the end")


def marks_of(texts: list[str]) -> Markers:
    try:
        return Markers(texts)
    except ValueError:
        assume(False)
        raise


@settings(max_examples=600, deadline=None, derandomize=True)
@given(SMALL, MARKS, st.integers(1, 3))
def test_until_finds_the_first_marker(text: str, texts: list[str], cut: int) -> None:
    markers = marks_of(texts)
    written: list[str] = []
    reader = Reader()
    found = run(reader, reader.until(markers, written.append), text, cut)
    places = [(text.find(mark), mark) for mark in markers.texts if mark in text]
    place, first = min(places) if places else (len(text), None)
    assert ("".join(written), found) == (text[:place], first)


@settings(max_examples=600, deadline=None, derandomize=True)
@given(SMALL, MARKS)
def test_only_what_may_become_a_marker_waits(text: str, texts: list[str]) -> None:
    markers = marks_of(texts)
    assume(not any(mark in text for mark in markers.texts))
    ends = [text[len(text) - size :] for size in range(len(text), 0, -1)]
    expected = next((len(end) for end in ends if any(m.startswith(end) for m in markers.texts)), 0)
    assert markers.num_open(text, 0) == expected


@settings(max_examples=300, deadline=None, derandomize=True)
@given(SMALL, MARKS, st.integers(1, 3))
def test_literal_takes_the_marker_that_stands_here(text: str, texts: list[str], cut: int) -> None:
    markers = marks_of(texts)
    reader = Reader()
    found = run(reader, reader.literal(markers), text, cut)
    assert found == next((mark for mark in markers.texts if text.startswith(mark)), None)


def test_markers_may_not_contain_one_another() -> None:
    for texts in (["ab", "abc"], ["abc", "b"], ["a", ""]):
        with pytest.raises(ValueError, match="contains another"):
            Markers(texts)
    assert Markers([]).search("anything", 0) is None and Markers([]).num_open("anything", 0) == 0


@settings(max_examples=300, deadline=None, derandomize=True)
@given(st.text(alphabet="ab", min_size=4, max_size=20), st.integers(1, 4), st.integers(0, 3), st.integers(1, 5))
def test_held_text_is_what_was_consumed(text: str, cut: int, skip: int, take: int) -> None:
    reader = Reader()

    def grammar() -> Wait[tuple[str, int]]:
        yield from reader.run("ab", skip)
        reader.hold()
        for _ in range(take):
            if (yield from reader.more()):
                reader.at += 1
        return reader.held(), reader.num_held

    held, count = run(reader, grammar(), text, cut)
    assert (held, count) == (text[skip : skip + take], len(text[skip : skip + take]))


VALUES: Any = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=4),
    max_leaves=12,
)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(VALUES, st.sampled_from([None, 2]), st.booleans())
def test_json_values_pass_unchanged(value: Any, indent: int | None, ascii_only: bool) -> None:
    text = json.dumps(value, indent=indent, ensure_ascii=ascii_only)
    assert whole_json(text) == text
    reader = Reader()
    written: list[str] = []
    run(reader, scan_value(reader, written.append), text + " ", 1)
    assert "".join(written) == text


@settings(max_examples=600, deadline=None, derandomize=True)
@given(st.text(alphabet='{}[]",:0 1-.eEtrufalsn\\/x', max_size=16))
def test_json_is_what_json_loads_takes(text: str) -> None:
    """Beyond the two repairs in strings, exactly RFC 8259."""
    found = whole_json(text)
    try:
        json.loads(text)
    except ValueError:
        assert found is None or "\\" in text
    else:
        assert found == text.strip()
    if found is not None:
        json.loads(found)


@settings(max_examples=400, deadline=None, derandomize=True)
@given(VALUES, st.sampled_from([None, 2]))
def test_python_literals_mean_the_same(value: Any, indent: int | None) -> None:
    found = whole_literal(repr(value))
    assert found is not None and json.loads(found) == value


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "{",
        "[1,]",
        "{,}",
        '{"a"}',
        '{"a":}',
        "01",
        "1.",
        ".5",
        "+1",
        "NaN",
        "tru",
        "1 2",
        "'a'",
        '"a',
        "[1",
        "{1:2}",
    ],
)
def test_what_is_no_json(text: str) -> None:
    assert whole_json(text) is None


def test_depth_is_limited() -> None:
    assert whole_json("[" * 64 + "]" * 64) is not None and whole_json("[" * 65 + "]" * 65) is None
    assert whole_literal("[" * 64 + "]" * 64) is not None and whole_literal("[" * 65 + "]" * 65) is None
    with pytest.raises(NotACall):
        reader = Reader("[" * 100_000, ended=True)
        list(scan_value(reader, lambda text: None))
