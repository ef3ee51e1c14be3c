"""What must not be in the source at all, found by reading it: code from data, and guards that -O takes away."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[2] / "src" / "quire"
FILES = sorted(SOURCE.rglob("*.py"))
BANNED_MODULES = {
    "pickle",
    "cPickle",
    "dill",
    "cloudpickle",
    "marshal",
    "shelve",
    "jsonpickle",
    "code",
    "codeop",
    "pty",
}
BANNED_NAMES = {"eval", "exec", "compile", "__import__"}
BANNED_CALLS = {
    ("torch", "load"), ("yaml", "load"), ("yaml", "unsafe_load"), ("yaml", "full_load"), ("numpy", "load"),
    ("np", "load"), ("os", "system"), ("os", "popen"), ("joblib", "load"), ("pandas", "read_pickle"),
}  # fmt: skip
BANNED_WORDS = {"allow_pickle", "shell", "trust_remote_code"}
"""Arguments that may not be True."""
ASSERTING_IS_FINE = {
    "bench": "a client, run by its own user",
    "cli/settings.py": "about our own classes",
    "worker/kernels": "shapes that our own code made",
    "worker/sampling": "shapes that our own code made",
    "worker/runner.py": "plans that our own code made",
}
"""Where no request's data decides."""
NARROWING = re.compile(r"assert [\w.\[\]()]+( and [\w.]+)? is not None$|assert isinstance\(.*\)$")
"""`assert x is not None` tells the type checker what holds by construction; without it the next line fails, too."""


def trees() -> Iterator[tuple[str, ast.AST]]:
    for path in FILES:
        yield str(path.relative_to(SOURCE)), ast.parse(path.read_text())


def dotted(node: ast.expr) -> tuple[str, ...]:
    if isinstance(node, ast.Name):
        return (node.id,)
    return (*dotted(node.value), node.attr) if isinstance(node, ast.Attribute) else ()


def unsafe(name: str, tree: ast.AST) -> Iterator[str]:
    """Each place that could run what it was given."""
    for node in ast.walk(tree):
        where = f"{name}:{getattr(node, 'lineno', 0)}"
        if isinstance(node, ast.Import):
            yield from (
                f"{where} import {alias.name}" for alias in node.names if alias.name.split(".")[0] in BANNED_MODULES
            )
        elif isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] in BANNED_MODULES:
            yield f"{where} from {node.module}"
        elif isinstance(node, ast.Call):
            called = dotted(node.func)
            if isinstance(node.func, ast.Name) and node.func.id in BANNED_NAMES:
                yield f"{where} {node.func.id}()"
            if called[-2:] in BANNED_CALLS:
                yield f"{where} {'.'.join(called)}()"
            if called[-1:] == ("import_module",) and not (node.args and isinstance(node.args[0], ast.Constant)):
                yield f"{where} import_module() of a name that is computed"
            for keyword in node.keywords:
                if (
                    keyword.arg in BANNED_WORDS
                    and isinstance(keyword.value, ast.Constant)
                    and keyword.value.value is True
                ):
                    yield f"{where} {keyword.arg}=True"


REVIEWED = {
    "__init__.py": ("import_module",),
    "cli/main.py": ("import_module",),
    "worker/attention/select.py": ("import_module",),
    "worker/models/load.py": ("import_module",),
    "worker/models/registry.py": ("import_module",),
    "frontend/parsers/__init__.py": ("import_module",),
}
"""Names from tables of our own."""


def test_nothing_runs_what_it_is_given() -> None:
    found = [
        place
        for name, tree in trees()
        for place in unsafe(name, tree)
        if not any(word in place for word in REVIEWED.get(name, ()))
    ]
    assert not found, found


def test_no_guard_is_an_assertion() -> None:
    found = []
    for name, tree in trees():
        if any(name.startswith(place) for place in ASSERTING_IS_FINE):
            continue
        for node in ast.walk(tree):
            if isinstance(node, ast.Assert) and not NARROWING.match(ast.unparse(node)):
                found.append(f"{name}:{node.lineno} {ast.unparse(node)}")
    assert not found, found


PATTERN_CALLS = {"compile", "match", "fullmatch", "search", "sub", "split", "findall", "finditer"}
NESTED = re.compile(r"\((?:[^()\\]|\\.)*[*+}](?:[^()\\]|\\.)*\)[*+{]")
"""A repeat around a group with a repeat in it: what can take exponential time."""


def test_regular_expressions_are_constants_without_nested_repeats() -> None:
    """Of client text only what a fixed, plain pattern says. Those that nest are looked at and listed."""
    found = []
    for name, tree in trees():
        if name.startswith(("bench", "worker/kernels")):
            continue
        for node in ast.walk(tree):
            if not (
                isinstance(node, ast.Call)
                and dotted(node.func)[:1] == ("re",)
                and dotted(node.func)[-1] in PATTERN_CALLS
            ):
                continue
            pattern = node.args[0] if node.args else None
            if isinstance(pattern, ast.Constant):
                text = pattern.value if isinstance(pattern.value, str) else pattern.value.decode("latin-1")
                if NESTED.search(text) and (name, text) not in LOOKED_AT:
                    found.append(f"{name}:{node.lineno} nested repeats in {text!r}")
            elif name not in COMPUTED_PATTERNS:
                found.append(f"{name}:{node.lineno} a pattern that is computed")
    assert not found, found


LOOKED_AT = {
    ("frontend/decode.py", r'"[^"\\]*(?:\\.[^"\\]*)*"'),  # each part begins with another character
}
COMPUTED_PATTERNS = {
    "frontend/parsers/python_text.py": "from a constant of its own",
    "frontend/parsers/reader.py": "escaped texts of a format",
    "frontend/tags.py": "escaped special tokens of the vocabulary",
    "worker/quantization/format.py": "a checkpoint's own names of modules, read once, before anything is served",
    "worker/quantization/modelopt.py": "wildcards of such names, translated by fnmatch",
}


@pytest.mark.parametrize(
    "source",
    [
        "import pickle", "from dill import loads", "eval('1')", "torch.load(f)", "yaml.load(f)",
        "np.load(f, allow_pickle=True)", "subprocess.run(x, shell=True)", "importlib.import_module(name)",
        "os.system(x)", "__import__(x)",
    ],
)  # fmt: skip
def test_the_check_can_fail(source: str) -> None:
    assert list(unsafe("x.py", ast.parse(source)))
