"""Quire: an LLM inference and serving engine.

    from quire import LLM, SamplingParams

The names below are loaded on first use: `import quire` needs no torch and costs milliseconds.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from quire.version import __version__

if TYPE_CHECKING:
    from quire.bounds import RepetitionDetectionParams
    from quire.errors import QuireError, RequestError
    from quire.llm import LLM
    from quire.outputs import BeamSearchOutput, CompletionOutput, FlatLogprobs, Logprob, RequestOutput
    from quire.params import BeamSearchParams, RequestOutputKind, SamplingParams
    from quire.structured import StructuredOutputsParams

__all__ = [
    "LLM",
    "BeamSearchOutput",
    "BeamSearchParams",
    "CompletionOutput",
    "FlatLogprobs",
    "Logprob",
    "QuireError",
    "RepetitionDetectionParams",
    "RequestError",
    "RequestOutput",
    "RequestOutputKind",
    "SamplingParams",
    "StructuredOutputsParams",
    "__version__",
]

_HOMES = {
    "LLM": "quire.llm",
    "BeamSearchOutput": "quire.outputs",
    "BeamSearchParams": "quire.params",
    "CompletionOutput": "quire.outputs",
    "FlatLogprobs": "quire.outputs",
    "Logprob": "quire.outputs",
    "RequestOutput": "quire.outputs",
    "QuireError": "quire.errors",
    "RepetitionDetectionParams": "quire.bounds",
    "RequestError": "quire.errors",
    "RequestOutputKind": "quire.params",
    "SamplingParams": "quire.params",
    "StructuredOutputsParams": "quire.structured",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'quire' has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
