"""Tool parsers, one file per family. A family imports what families share, never another family."""

from __future__ import annotations

from collections.abc import Mapping

from quire.frontend.parsers.calls import ToolParser
from quire.frontend.parsers.tools.cohere import CohereParser
from quire.frontend.parsers.tools.deepseek import DeepSeekV3Parser
from quire.frontend.parsers.tools.deepseek_v32 import DeepSeekV32Parser
from quire.frontend.parsers.tools.gemma import FunctionGemmaParser, Gemma4Parser
from quire.frontend.parsers.tools.generic import GenericJsonParser
from quire.frontend.parsers.tools.glm import GlmParser
from quire.frontend.parsers.tools.granite import Granite20bParser, GraniteParser
from quire.frontend.parsers.tools.harmony import HarmonyToolParser
from quire.frontend.parsers.tools.hermes import HermesParser, LongcatParser
from quire.frontend.parsers.tools.internlm import InternLmParser
from quire.frontend.parsers.tools.kimi import KimiK2Parser
from quire.frontend.parsers.tools.listed import HunyuanParser, JambaParser, NemotronParser
from quire.frontend.parsers.tools.llama import LlamaJsonParser
from quire.frontend.parsers.tools.minimax import MiniMaxM2Parser
from quire.frontend.parsers.tools.mistral import MistralParser
from quire.frontend.parsers.tools.phi import Phi4MiniParser
from quire.frontend.parsers.tools.pythonic import Lfm2Parser, Llama4PythonicParser, Olmo3Parser, PythonicParser
from quire.frontend.parsers.tools.qwen import Qwen3CoderParser, SeedOssParser

TOOL_PARSERS: Mapping[str, type[ToolParser]] = {
    "cohere_command3": CohereParser,
    "deepseek_v3": DeepSeekV3Parser,
    "deepseek_v31": DeepSeekV3Parser,
    "deepseek_v32": DeepSeekV32Parser,
    "ernie45": HermesParser,
    "functiongemma": FunctionGemmaParser,
    "gemma4": Gemma4Parser,
    "glm45": GlmParser,
    "glm47": GlmParser,
    "granite": GraniteParser,
    "granite-20b-fc": Granite20bParser,
    "granite4": HermesParser,
    "hermes": HermesParser,
    "hunyuan_a13b": HunyuanParser,
    "internlm": InternLmParser,
    "jamba": JambaParser,
    "json": GenericJsonParser,
    "kimi_k2": KimiK2Parser,
    "lfm2": Lfm2Parser,
    "llama3_json": LlamaJsonParser,
    "llama4_json": LlamaJsonParser,
    "llama4_pythonic": Llama4PythonicParser,
    "longcat": LongcatParser,
    "minimax_m2": MiniMaxM2Parser,
    "mistral": MistralParser,
    "nemotron_json": NemotronParser,
    "olmo3": Olmo3Parser,
    "openai": HarmonyToolParser,
    "phi4_mini_json": Phi4MiniParser,
    "pythonic": PythonicParser,
    "qwen3_coder": Qwen3CoderParser,
    "qwen3_xml": Qwen3CoderParser,
    "seed_oss": SeedOssParser,
    "xlam": GenericJsonParser,
}
"""By the names that vLLM's --tool-call-parser takes, and `json` for models of no known family."""
