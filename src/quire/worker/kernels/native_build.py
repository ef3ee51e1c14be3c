"""Builds the C++ kernels of `cpp/` with the compiler that is on this machine; no torch is needed, none is imported.

A build is named by a hash of everything that goes into it: sources, flags, compiler, processor. It is made in a private
folder and moved into its place at once, so any number of processes may build at the same time. Files are compiled side
by side: about a second of two cores, which the start spends on importing torch and reading weights.
"""

from __future__ import annotations

import functools
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Sequence
from pathlib import Path

from quire.version import __version__

SOURCES = Path(__file__).parent / "cpp"
FLAGS = ("-O2", "-march=native", "-fopenmp", "-fno-math-errno", "-fPIC", "-std=c++17", "-w")
COMPILERS = ("g++", "c++")
TIMEOUT_S = 120


class BuildError(Exception):
    """No library: why, in one line."""


class Build:
    """One build, running in a thread from the moment it is made.

    Args:
        folder: where finished libraries are kept.
        compilers: names to look for, in order; $CXX goes before them.
        more_flags: after the usual ones.
    """

    def __init__(self, folder: Path, compilers: Sequence[str] = COMPILERS, more_flags: tuple[str, ...] = ()) -> None:
        self._folder = folder
        self._flags = (*FLAGS, *more_flags)
        self._compilers = compilers
        self._path: Path | None = None
        self._error: BuildError | None = None
        self._thread = threading.Thread(target=self._run, name="quire-build", daemon=True)
        self._thread.start()

    def wait(self) -> Path:
        """The library.

        Raises:
            BuildError: there is none.
        """
        self._thread.join()
        if self._error is not None:
            raise self._error
        assert self._path is not None
        return self._path

    def _run(self) -> None:
        try:
            self._path = self._find_or_build()
        except BuildError as error:
            self._error = error
        except (OSError, subprocess.SubprocessError) as error:
            self._error = BuildError(f"the C++ kernels could not be built: {error}")

    def _find_or_build(self) -> Path:
        compiler = find_compiler(self._compilers)
        if compiler is None:
            raise BuildError(f"no C++ compiler here ({', '.join(_wanted(self._compilers))})")
        library = self._folder / f"{_key(compiler, self._flags)}.so"
        if not library.exists():
            self._folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=self._folder) as private:
                _compile(compiler, self._flags, Path(private), library)
        return library


def find_compiler(names: Sequence[str] = COMPILERS) -> str | None:
    """The path of the first that is there; $CXX goes before them."""
    return next((found for name in _wanted(names) if (found := shutil.which(name))), None)


def _wanted(names: Sequence[str]) -> list[str]:
    return [*filter(None, [os.environ.get("CXX")]), *names]


@functools.cache
def current() -> Build:
    """The one build of this process; the first call begins it."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Build(Path(base) / "quire" / "kernels" / __version__ / "cpu")


def _compile(compiler: str, flags: tuple[str, ...], private: Path, library: Path) -> None:
    objects = [private / f"{source.stem}.o" for source in sorted(SOURCES.glob("*.cpp"))]
    commands = [[compiler, *flags, "-c", str(SOURCES / f"{path.stem}.cpp"), "-o", str(path)] for path in objects]
    running = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for command in commands]
    try:
        for process in running:
            _, said = process.communicate(timeout=TIMEOUT_S)
            if process.returncode != 0:
                raise BuildError(f"{compiler} failed: {_first_error(said)}")
    finally:
        for process in running:
            if process.poll() is None:
                process.kill()
    # Not linked with an OpenMP of its own: at loading it finds the one that torch has brought.
    linked = private / "library.so"
    made = subprocess.run(
        [compiler, "-shared", "-o", str(linked), *map(str, objects)],
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    if made.returncode != 0:
        raise BuildError(f"{compiler} could not link: {_first_error(made.stderr)}")
    linked.replace(library)


def _first_error(said: str) -> str:
    lines = [line for line in said.splitlines() if "error" in line] or said.splitlines() or ["no message"]
    return lines[0][:300]


def _key(compiler: str, flags: tuple[str, ...]) -> str:
    digest = hashlib.sha256()
    for source in sorted(SOURCES.iterdir()):
        if source.is_file():
            digest.update(source.name.encode() + b"\0" + source.read_bytes())
    version = subprocess.run([compiler, "--version"], capture_output=True, timeout=TIMEOUT_S, check=False).stdout
    for part in (" ".join(flags).encode(), compiler.encode(), version, _processor().encode()):
        digest.update(part + b"\0")
    return digest.hexdigest()[:32]


def _processor() -> str:
    """What -march=native looks at."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    wanted = ("model name", "flags", "Features", "CPU part")
    first: dict[str, str] = {}
    for line in lines:
        name, _, value = line.partition(":")
        if name.strip() in wanted:
            first.setdefault(name.strip(), value.strip())
    return platform.machine() + repr(sorted(first.items()))
