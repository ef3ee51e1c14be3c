"""Which scheme keeps the weights: the one table."""

from __future__ import annotations

import torch

from quire.errors import ConfigError
from quire.worker.kernels.native import NativeLibrary
from quire.worker.quantization.fitted import FITS, FittedFormats
from quire.worker.quantization.format import Formats
from quire.worker.quantization.int8 import Int8Weights
from quire.worker.quantization.none import Unquantized
from quire.worker.quantization.packed import PackedWeights
from quire.worker.quantization.protocol import Scheme
from quire.worker.quantization.recognise import SAME


def select_scheme(name: str | None, device: torch.device, library: NativeLibrary | None) -> Scheme:
    """The scheme of layers that no format of a checkpoint is about.

    Args:
        library: the C++ kernels, None where there are none.
    """
    if name == "int8" and device.type == "cpu":
        return Int8Weights(library)
    return Unquantized() if library is None else PackedWeights(library)


def head_scheme(formats: Formats, plain: Scheme) -> Scheme:
    """Of an output head that no format is about: 8 bits on CPUs, where whole numbers of 4 bits are made and int8 is
    fast, for the head is a large part of what a step reads there; else what other plain layers have."""
    fast = isinstance(plain, PackedWeights) and plain.library.fast_int8
    return Int8Weights(plain.library) if fast and formats == FittedFormats(FITS["awq"]) else plain  # type: ignore[attr-defined]


def made_at_load(name: str | None, scheme: Scheme) -> Formats | None:
    """What --quantization makes of a checkpoint that is not quantized; None: the scheme sees to it, or nothing is made.

    Raises:
        ConfigError: a method that only reads what others have made.
    """
    if name is None or isinstance(scheme, Int8Weights):
        return None
    fitted = FITS.get(SAME.get(name, name))
    if fitted is None:
        raise ConfigError(
            f"--quantization {name}: the checkpoint is not quantized, and this form is not made while loading."
            f" Those that are: {', '.join(FITS)}."
        )
    return FittedFormats(fitted)
