"""Reasoning parsers, one file per family. A family imports what families share, never another family."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from quire.frontend.parsers.machine import Machine
from quire.frontend.parsers.reasoning.cohere import CohereReasoningParser
from quire.frontend.parsers.reasoning.deepseek import DeepSeekR1Parser
from quire.frontend.parsers.reasoning.gemma import Gemma4ReasoningParser
from quire.frontend.parsers.reasoning.granite import GraniteReasoningParser
from quire.frontend.parsers.reasoning.harmony import HarmonyReasoningParser
from quire.frontend.parsers.reasoning.hunyuan import HunyuanReasoningParser
from quire.frontend.parsers.reasoning.kimi import KimiReasoningParser
from quire.frontend.parsers.reasoning.mistral import MistralReasoningParser
from quire.frontend.parsers.reasoning.qwen import Qwen3ReasoningParser
from quire.frontend.parsers.reasoning.seed import SeedReasoningParser

REASONING_PARSERS: Mapping[str, Callable[[str | None], Machine]] = {
    "cohere_command3": CohereReasoningParser,
    "deepseek_r1": DeepSeekR1Parser,
    "deepseek_v3": Qwen3ReasoningParser,
    "ernie45": DeepSeekR1Parser,
    "gemma4": Gemma4ReasoningParser,
    "glm45": Qwen3ReasoningParser,
    "glm47": Qwen3ReasoningParser,
    "granite": GraniteReasoningParser,
    "holo2": Qwen3ReasoningParser,
    "hunyuan_a13b": HunyuanReasoningParser,
    "kimi_k2": KimiReasoningParser,
    "mimo": Qwen3ReasoningParser,
    "minimax_m2": DeepSeekR1Parser,
    "mistral": MistralReasoningParser,
    "nemotron_v3": Qwen3ReasoningParser,
    "olmo3": Qwen3ReasoningParser,
    "openai_gptoss": HarmonyReasoningParser,
    "qwen3": Qwen3ReasoningParser,
    "seed_oss": SeedReasoningParser,
    "step3": DeepSeekR1Parser,
}
"""By the names that vLLM's --reasoning-parser takes."""
