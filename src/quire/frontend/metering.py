"""A Jinja sandbox in which no value can grow without bound: text and containers are weighed as they are made.

Python gives a template a dozen ways to make something huge in one call that no time limit can stop: `'a' * 3e8`,
`x ~ x` in a loop, joins, paddings, lists that hold themselves twice. Here each value has a weight, the characters
it would have if written out, and two rules hold: one value weighs at most `MAX_WEIGHT`, and all values made while
one template renders weigh at most `BUDGET` together. What could overshoot in a single call is refused beforehand.
"""

from __future__ import annotations

import functools
import re
import threading
from collections.abc import Callable, Iterable
from types import TracebackType
from typing import Any

from jinja2 import Environment, nodes, pass_environment
from jinja2.compiler import CodeGenerator, Frame
from jinja2.filters import do_indent, do_round, make_attrgetter
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment
from markupsafe import escape

MAX_WEIGHT = 1 << 24
"""Most characters of one value; four times the largest request body."""
BUDGET = 1 << 27
"""Most characters made in one rendering, those that were thrown away included."""
MAX_INT_BITS = 4096
_NODE = 8
"""Weight of one element of a container, besides its own content."""

_WIDE_FIELD = re.compile(r"\d{4}|\{[^{}]*\{|\*")
"""A field width of four digits or one that comes from an argument."""

_LEFT_OUT = frozenset(
    {"batch", "filesizeformat", "forceescape", "pprint", "random", "slice", "striptags", "urlize", "wordwrap"}
    | {"xmlattr"}
)
_REFUSED_METHODS = frozenset({"encode", "expandtabs", "format_map", "maketrans", "to_bytes", "translate"})
_PADDING_METHODS = frozenset({"center", "ljust", "rjust", "zfill"})


class TooHeavy(Exception):
    """A template made, or was about to make, more than it may."""


class Meter:
    """Owns the budget of one rendering in one thread; entered around it."""

    def __init__(self) -> None:
        self._left = BUDGET
        self._known: dict[int, tuple[Any, int]] = {}
        """Weights of containers by identity. They are kept alive, so that no id is used twice."""

    def __enter__(self) -> Meter:
        _here.meter = self
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        _here.meter = None

    def weigh(self, value: Any) -> int:
        """Characters of a value if it were written out."""
        if isinstance(value, str):
            return len(value)
        if isinstance(value, (list, tuple, dict, set, frozenset)):
            return self._weigh_container(value)
        return _NODE

    def _weigh_container(self, value: Any) -> int:
        known = self._known.get(id(value))
        if known is not None:
            return known[1]
        weight = 0
        for part in (*value.keys(), *value.values()) if isinstance(value, dict) else value:
            weight += _NODE + self.weigh(part)
        self._known[id(value)] = (value, weight)
        return weight

    def charge(self, value: Any) -> Any:
        """Pay for a value that was made; returns it."""
        if isinstance(value, (str, list, tuple, dict, set, frozenset)):
            self.pay(self.weigh(value))
        return value

    def pay(self, weight: int) -> None:
        """Take a weight off the budget."""
        if weight > MAX_WEIGHT:
            raise TooHeavy(f"it makes a value of {weight} characters, at most {MAX_WEIGHT} are taken.")
        self._left -= weight
        if self._left < 0:
            raise TooHeavy(f"it makes more than {BUDGET} characters on the way to its prompt.")


class _Here(threading.local):
    meter: Meter | None = None


_here = _Here()


def _meter() -> Meter:
    if _here.meter is None:
        raise TooHeavy("a template ran outside its meter.")
    return _here.meter


def charge(value: Any) -> Any:
    """Pay for a value in the rendering under way; returns it."""
    return _meter().charge(value)


def refuse_over(weight: int) -> None:
    """Stop before a value of this weight is made."""
    if weight > MAX_WEIGHT:
        raise TooHeavy(f"it would make a value of {weight} characters, at most {MAX_WEIGHT} are taken.")


# ---------------------------------------------------------------------------------------------------------------
# operators


def _multiply(left: Any, right: Any) -> Any:
    if isinstance(left, int) and isinstance(right, int):
        if left.bit_length() + right.bit_length() > MAX_INT_BITS:
            raise TooHeavy(f"it multiplies integers beyond {MAX_INT_BITS} bits.")
        return left * right
    for value, count in ((left, right), (right, left)):
        if isinstance(value, (str, list, tuple)) and isinstance(count, int):
            refuse_over(_meter().weigh(value) * max(count, 0))
    return charge(left * right)


def _power(left: Any, right: Any) -> Any:
    if isinstance(left, int) and isinstance(right, int) and abs(left) > 1 and left.bit_length() * right > MAX_INT_BITS:
        raise TooHeavy(f"it raises an integer beyond {MAX_INT_BITS} bits.")
    return left**right


def _percent(left: Any, right: Any) -> Any:
    if isinstance(left, str):
        _check_format(left, left.count("%"), (right,))
        return charge(left % right)
    return left % right


def _add(left: Any, right: Any) -> Any:
    return charge(left + right)


def _check_format(text: str, fields: int, values: Iterable[Any]) -> None:
    """Refuse a format whose result could be huge: by width, or by naming a large value many times."""
    if _WIDE_FIELD.search(text):
        raise TooHeavy("it formats text with a width of 1000 or more, or one taken from an argument.")
    meter = _meter()
    refuse_over(len(text) + fields * (1000 + sum(meter.weigh(value) for value in values)))


# ---------------------------------------------------------------------------------------------------------------
# methods


def _checked_args(method: Any, args: tuple[Any, ...]) -> tuple[Any, ...]:
    """The arguments of a call; refused where a text method's result could be huge."""
    owner, name = getattr(method, "__self__", None), getattr(method, "__name__", "")
    if not isinstance(owner, (str, bytes, int)):
        return args
    if name in _REFUSED_METHODS:
        raise TooHeavy(f"it calls {name}(), which the sandbox does not offer.")
    if not isinstance(owner, str) or not args:
        return args
    if name in _PADDING_METHODS and isinstance(args[0], int):
        refuse_over(args[0])
    elif name == "replace" and len(args) >= 2:
        _check_replace(owner, args[0], args[1])
    elif name == "join":
        return (_checked_parts(args[0], owner),)
    return args


def _check_replace(text: str, old: Any, new: Any) -> None:
    if isinstance(old, str) and isinstance(new, str):
        refuse_over(len(text) + text.count(old) * max(len(new) - len(old), 0))


def _checked_parts(parts: Any, separator: str) -> list[Any]:
    """What is about to be joined, as a list."""
    items = list(parts)
    refuse_over(_meter().weigh(items) + len(separator) * len(items))
    return items


# ---------------------------------------------------------------------------------------------------------------
# filters that could make much out of little


@pass_environment
def _join(environment: Environment, value: Any, d: str = "", attribute: str | int | None = None) -> str:
    if attribute is not None:
        value = map(make_attrgetter(environment, attribute), value)
    separator = str(d)
    return separator.join([str(part) for part in _checked_parts(value, separator)])


def _replace(s: Any, old: Any, new: Any, count: int | None = None) -> str:
    text, old, new = str(s), str(old), str(new)
    _check_replace(text, old, new)
    return text.replace(old, new, -1 if count is None else count)


def _format(value: Any, *args: Any, **kwargs: Any) -> Any:
    return _percent(str(value), kwargs or args)


def _indent(s: Any, width: int | str = 4, first: bool = False, blank: bool = False) -> str:
    text, margin = str(s), width if isinstance(width, str) else " " * min(width, 1001)
    if len(margin) > 1000:
        raise TooHeavy("it indents by more than 1000 characters.")
    refuse_over(len(text) + (text.count("\n") + 1) * len(margin))
    return do_indent(text, margin, first, blank)


def _center(value: Any, width: int = 80) -> str:
    refuse_over(width)
    return str(value).center(width)


def _sum(value: Any, attribute: str | int | None = None, start: float = 0) -> Any:
    if not isinstance(start, (int, float)):
        raise TooHeavy("it sums things that are no numbers.")
    items = value if attribute is None else [item[attribute] for item in value]
    return sum(items, start)


def _round(value: float, precision: int = 0, method: str = "common") -> float:
    if not -100 <= precision <= 100:
        raise TooHeavy(f"it rounds to {precision} digits.")
    return do_round(value, precision, method)  # type: ignore[arg-type]


def _plain(value: Any) -> str:
    """`safe`: prompts are not escaped, so everything is."""
    return str(value)


def _escape(value: Any) -> str:
    return str(escape(str(value)))


_OUR_FILTERS: dict[str, Callable[..., Any]] = {
    "center": _center,
    "e": _escape,
    "escape": _escape,
    "format": _format,
    "indent": _indent,
    "join": _join,
    "replace": _replace,
    "round": _round,
    "safe": _plain,
    "string": _plain,
    "sum": _sum,
}


# ---------------------------------------------------------------------------------------------------------------
# the sandbox


class MeteredCodeGenerator(CodeGenerator):
    """Routes what makes containers, texts and slices through the environment."""

    def visit_Concat(self, node: nodes.Concat, frame: Frame) -> None:
        self.write("environment.joined((")
        for part in node.nodes:
            self.visit(part, frame)
            self.write(", ")
        self.write("))")

    def visit_List(self, node: nodes.List, frame: Frame) -> None:
        self._charged(super().visit_List, node, frame)

    def visit_Dict(self, node: nodes.Dict, frame: Frame) -> None:
        self._charged(super().visit_Dict, node, frame)

    def visit_Tuple(self, node: nodes.Tuple, frame: Frame) -> None:
        if node.ctx == "load":
            self._charged(super().visit_Tuple, node, frame)
        else:
            super().visit_Tuple(node, frame)

    def visit_Getitem(self, node: nodes.Getitem, frame: Frame) -> None:
        if isinstance(node.arg, nodes.Slice):
            self._charged(super().visit_Getitem, node, frame)
        else:
            super().visit_Getitem(node, frame)

    def _charged(self, visit: Callable[[Any, Frame], None], node: Any, frame: Frame) -> None:
        self.write("environment.charge(")
        visit(node, frame)
        self.write(")")


class MeteredEnvironment(ImmutableSandboxedEnvironment):
    """The sandbox; only usable inside a `Meter`."""

    code_generator_class = MeteredCodeGenerator
    intercepted_binops = frozenset({"+", "*", "**", "%"})

    def __init__(self, **options: Any) -> None:
        super().__init__(finalize=charge_output, **options)
        self.binop_table |= {"+": _add, "*": _multiply, "**": _power, "%": _percent}
        filters = {**self.filters, **_OUR_FILTERS}
        self.filters = {name: self.metered(f) for name, f in filters.items() if name not in _LEFT_OUT}
        self.globals.pop("lipsum", None)

    charge = staticmethod(charge)

    @staticmethod
    def metered(function: Callable[..., Any]) -> Callable[..., Any]:
        """A filter that pays for what it returns."""

        @functools.wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            return charge(function(*args, **kwargs))

        return call

    @staticmethod
    def joined(parts: tuple[Any, ...]) -> str:
        """`a ~ b`."""
        meter = _meter()
        refuse_over(sum(meter.weigh(part) for part in parts))
        text = "".join([str(part) for part in parts])
        meter.pay(len(text))
        return text

    @staticmethod
    def concat(parts: Iterable[str]) -> str:
        """What a macro, a block or the whole template has put out."""
        pieces = list(parts)
        meter = _meter()
        meter.pay(sum(map(len, pieces)))
        return "".join(pieces)

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        """`text.format`, with its widths and repeats checked."""
        wrapped = super().wrap_str_format(value)
        if wrapped is None:
            return None
        text: str = value.__self__

        def call(*args: Any, **kwargs: Any) -> str:
            _check_format(text, text.count("{"), (*args, *kwargs.values()))
            return wrapped(*args, **kwargs)

        return call

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        """Any call in a template."""
        args = _checked_args(__obj, args)
        return charge(super().call(__context, __obj, *args, **kwargs))


def charge_output(value: Any) -> Any:
    """What `{{ value }}` puts out; text is paid for where the output is joined."""
    return value if isinstance(value, str) else charge(value)
