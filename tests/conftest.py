"""Without a GPU Triton's kernels run in its interpreter. That is chosen before triton is imported, which transformers
does too: so here, before any test is. Tests marked `native` are skipped where the C++ kernels cannot be built."""

import os

import pytest
import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"

from quire.worker.kernels import native_build


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Long runs only where they are asked for: pytest -m soak."""
    if "soak" in config.option.markexpr:
        return
    long = [item for item in items if item.get_closest_marker("soak")]
    if long:
        items[:] = [item for item in items if item not in long]
        config.hook.pytest_deselected(items=long)


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip what needs a compiler on a machine without one; a compiler that fails is an error, not a reason."""
    if item.get_closest_marker("native") and native_build.find_compiler() is None:
        pytest.skip("no C++ compiler here")
