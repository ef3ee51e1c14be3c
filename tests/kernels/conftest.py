"""The C++ kernels in every form, built once for all tests of them."""

import sys
from pathlib import Path

import pytest

from quire.worker.kernels import native
from quire.worker.kernels.native import NativeLibrary
from quire.worker.kernels.native_build import Build

sys.path.insert(0, str(Path(__file__).parents[1] / "worker"))


@pytest.fixture(scope="session", params=["vectors", "tiles", "portable"])
def library(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> NativeLibrary:
    """As this machine has them; with AMX tiles written out in C; and for a machine with nothing special."""
    if request.param == "vectors":
        found = native.library()
        found.use_tiles(False)
        return found
    flags = {"tiles": ("-DEMULATED_TILES",), "portable": ("-march=x86-64",)}[request.param]
    made = NativeLibrary(Build(tmp_path_factory.mktemp("built"), more_flags=flags).wait())
    assert made.has_tiles == (request.param == "tiles")
    return made
