"""Which scheme keeps the weights: the one table."""

from __future__ import annotations

import torch

from quire.errors import ConfigError
from quire.worker.kernels.native import NativeLibrary
from quire.worker.quantization.int8 import Int8Weights
from quire.worker.quantization.none import Unquantized
from quire.worker.quantization.packed import PackedWeights
from quire.worker.quantization.protocol import Scheme


def select_scheme(name: str | None, device: torch.device, library: NativeLibrary | None) -> Scheme:
    """The scheme of a setting; None keeps weights as they are.

    Args:
        library: the C++ kernels, None where there are none.

    Raises:
        ConfigError: a scheme that this device has no kernels for.
    """
    if name is None:
        return Unquantized() if library is None else PackedWeights(library)
    if device.type != "cpu":
        raise ConfigError(f"--quantization {name} has kernels for CPUs only so far. Leave it out, or use --device cpu.")
    return Int8Weights(library)
