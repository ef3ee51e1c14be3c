"""How a checkpoint's tensor names become ours: a tuple of rules per model, applied in order.

    model.layers.3.self_attn.k_proj.weight  ── Fuse("qkv_proj", "q_proj", "k_proj", "v_proj") ──►
    model.layers.3.self_attn.qkv_proj.weight, part 1

A name is a path of words with dots between; rules see whole words only.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Target:
    """A parameter of ours, and which part of it; None is the whole."""

    name: str
    part: int | None = None


class Rule(Protocol):
    """One line of a weight map."""

    def apply(self, target: Target) -> Target | None:
        """The name after this rule; None drops the tensor."""

    def undo(self, target: Target) -> Target:
        """The name before this rule, as far as it can be told."""


@dataclass(frozen=True, slots=True, init=False)
class Fuse:
    """Several projections are one parameter of ours: Fuse("qkv_proj", "q_proj", "k_proj", "v_proj")."""

    into: str
    parts: tuple[str, ...]

    def __init__(self, into: str, *parts: str) -> None:
        object.__setattr__(self, "into", into)
        object.__setattr__(self, "parts", parts)

    def apply(self, target: Target) -> Target | None:
        words = target.name.split(".")
        for part, word in enumerate(self.parts):
            if word in words:
                words[words.index(word)] = self.into
                return Target(".".join(words), part)
        return target

    def undo(self, target: Target) -> Target:
        """See Rule."""
        words = target.name.split(".")
        if target.part is None or self.into not in words or target.part >= len(self.parts):
            return target
        words[words.index(self.into)] = self.parts[target.part]
        return Target(".".join(words))


@dataclass(frozen=True, slots=True)
class Rename:
    """A run of words has another name here: Rename("transformer.h", "model.layers")."""

    old: str
    new: str

    def apply(self, target: Target) -> Target | None:
        name = f".{target.name}.".replace(f".{self.old}.", f".{self.new}." if self.new else ".", 1)
        return Target(name.strip("."), target.part)

    def undo(self, target: Target) -> Target:
        """See Rule."""
        if not self.new:
            return Target(f"{self.old}.{target.name}", target.part)
        name = f".{target.name}.".replace(f".{self.new}.", f".{self.old}.", 1)
        return Target(name.strip("."), target.part)


@dataclass(frozen=True, slots=True)
class Skip:
    """A run of words whose tensors are not needed: Skip("rotary_emb.inv_freq")."""

    words: str

    def apply(self, target: Target) -> Target | None:
        return None if f".{self.words}." in f".{target.name}." else target

    def undo(self, target: Target) -> Target:
        """See Rule."""
        return target


@dataclass(frozen=True, slots=True)
class SkipEnds:
    """Tensors whose last word is one of these are not needed."""

    words: tuple[str, ...]

    def apply(self, target: Target) -> Target | None:
        return None if target.name.rpartition(".")[2] in self.words else target

    def undo(self, target: Target) -> Target:
        """See Rule."""
        return target


@dataclass(frozen=True, slots=True)
class StackExperts:
    """Every expert's matrices lie one below the other: experts.3.{gate}.weight is part 6 of experts.gate_up.weight,
    experts.3.{up}.weight part 7, and experts.3.{down}.weight part 3 of experts.down.weight."""

    gate: str
    up: str
    down: str

    def apply(self, target: Target) -> Target | None:
        before, found, after = target.name.partition(".experts.")
        number, _, rest = after.partition(".")
        name, _, suffix = rest.partition(".")
        if not found or not number.isdecimal() or len(number) > 6 or name not in (self.gate, self.up, self.down):
            return target
        if name == self.down:
            return Target(f"{before}.experts.down.{suffix}", int(number))
        return Target(f"{before}.experts.gate_up.{suffix}", 2 * int(number) + (name == self.up))

    def undo(self, target: Target) -> Target:
        """See Rule."""
        before, found, after = target.name.partition(".experts.")
        stack, _, suffix = after.partition(".")
        if not found or target.part is None or stack not in ("gate_up", "down"):
            return target
        number, name = target.part, self.down
        if stack == "gate_up":
            number, name = target.part // 2, (self.gate, self.up)[target.part % 2]
        return Target(f"{before}.experts.{number}.{name}.{suffix}")


def translate(name: str, rules: Iterable[Rule]) -> Target | None:
    """Where a checkpoint's tensor goes; None is nowhere, on purpose."""
    target: Target | None = Target(name)
    for rule in rules:
        if target is None:
            return None
        target = rule.apply(target)
    return target


def original(target: Target, rules: Sequence[Rule]) -> str:
    """The name in the checkpoint of what goes there, as far as it can be told."""
    for rule in reversed(rules):
        target = rule.undo(target)
    return target.name
