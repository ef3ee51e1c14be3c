"""The settings of one engine and one server: a few frozen groups, one field per flag.

The fields are the single table from which the command line, the environment twins, the YAML file and the
keyword arguments of `LLM` are made (`settings.py` in `cli/` reads it). A field's `Meta` holds its range and
the sentence that `--help` prints. Nothing here reads the environment or touches a device.
"""

from __future__ import annotations

import difflib
import warnings
from collections.abc import Mapping
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from quire.errors import ConfigError

DEMO_MODEL = "demo"
"""The name of the model that ships inside the package."""


class ModelConfig(msgspec.Struct, frozen=True, kw_only=True):
    """Which model, from where, in which number format."""

    model: Annotated[
        str,
        Meta(
            description="Folder, .gguf file, s3:// or gs:// address or Hugging Face name of the model; NAME:Q4_K_M"
            " takes one of several GGUFs; 'demo' is the small one that ships with Quire."
        ),
    ] = DEMO_MODEL
    tokenizer: Annotated[str | None, Meta(description="Folder or name of the tokenizer; default: the model's own.")] = (
        None
    )
    tokenizer_mode: Annotated[
        Literal["auto", "hf", "slow"],
        Meta(description="auto takes tokenizer.json, else converts tokenizer.model; hf never converts, slow always."),
    ] = "auto"
    revision: Annotated[str | None, Meta(description="Branch, tag or commit on the Hugging Face Hub.")] = None
    tokenizer_revision: Annotated[
        str | None, Meta(description="The same for the tokenizer; default: the model's, if it is the model's own.")
    ] = None
    download_dir: Annotated[
        str | None, Meta(description="Where what is fetched or converted is kept; default: the caches of the user.")
    ] = None
    hf_overrides: Annotated[
        dict[str, Any] | None, Meta(description="Values in place of those in config.json, as a JSON object.")
    ] = None
    dtype: Annotated[
        Literal["auto", "half", "float16", "bfloat16", "float", "float32"],
        Meta(description="Number format of weights and activations; auto follows the checkpoint and the device."),
    ] = "auto"
    max_model_len: Annotated[
        Annotated[int, Meta(ge=-1)] | None,
        Meta(description="Most tokens of prompt and output together; -1: what fits the memory; default: the model's."),
    ] = None
    load_format: Annotated[
        Literal["auto", "safetensors", "gguf", "dummy"],
        Meta(description="Which weights; auto: safetensors, else a GGUF; dummy: random ones from the config alone."),
    ] = "auto"
    quantization: Annotated[
        Literal[
            "awq",
            "gptq",
            "squeezellm",
            "bitsandbytes",
            "fp8",
            "int8",
            "compressed-tensors",
            "modelopt",
            "awq_marlin",
            "gptq_marlin",
        ]
        | None,
        Meta(description="How weights are quantized: checked, where the checkpoint says it; else made while loading."),
    ] = None
    cpu_kernels: Annotated[
        Literal["auto", "native", "torch"],
        Meta(description="On a CPU: native builds C++ kernels once, torch does without; auto builds if it can."),
    ] = "auto"
    seed: Annotated[int, Meta(description="Seed of dummy weights and of requests that bring none of their own.")] = 0
    enforce_eager: Annotated[bool, Meta(description="Never use CUDA graphs.")] = False
    trust_remote_code: Annotated[
        bool,
        Meta(description="Let transformers run model code that lies in the checkpoint; without it that is refused."),
    ] = False
    model_impl: Annotated[
        Literal["auto", "quire", "transformers"],
        Meta(description="Whose model code; auto is Quire's, and transformers' for models that Quire has not."),
    ] = "auto"
    max_logprobs: Annotated[
        int,
        Meta(ge=-1, description="Most log-probabilities per token that a request may ask for; -1: no limit."),
    ] = 20
    device: Annotated[
        Literal["auto", "cpu", "cuda"], Meta(description="Where to run; auto takes a GPU if there is one.")
    ] = "auto"


class CacheConfig(msgspec.Struct, frozen=True, kw_only=True):
    """How much memory the KV cache gets and how it is cut."""

    gpu_memory_utilization: Annotated[
        float, Meta(gt=0, le=1, description="Fraction of the device for weights, KV cache and working memory together.")
    ] = 0.9
    kv_cache_memory_bytes: Annotated[
        Annotated[int, Meta(gt=0)] | None,
        Meta(description="Exact size of the KV cache in bytes; overrides --gpu-memory-utilization."),
    ] = None
    num_gpu_blocks_override: Annotated[
        Annotated[int, Meta(ge=2)] | None, Meta(description="Exact number of KV blocks; for experiments.")
    ] = None
    block_size: Annotated[int, Meta(ge=1, le=1024, description="Tokens per KV block.")] = 16
    enable_prefix_caching: Annotated[bool, Meta(description="Reuse the KV blocks of prompts that begin alike.")] = True
    swap_space: Annotated[
        float,
        Meta(ge=0, description="GB of host memory for KV; accepted, no effect yet: preempted requests are recomputed."),
    ] = 4


class SchedulerConfig(msgspec.Struct, frozen=True, kw_only=True):
    """How many requests and tokens share one step."""

    max_num_seqs: Annotated[
        Annotated[int, Meta(ge=1, le=65536)] | None,
        Meta(description="Most requests that run at once; default 256, or 1024 on GPUs from 70 GiB."),
    ] = None
    max_num_batched_tokens: Annotated[
        Annotated[int, Meta(ge=1)] | None,
        Meta(description="Most tokens in one step; default 2048, or 8192 on GPUs from 70 GiB."),
    ] = None
    enable_chunked_prefill: Annotated[
        bool, Meta(description="Let a long prompt share steps with others, piece by piece.")
    ] = True
    long_prefill_token_threshold: Annotated[
        int, Meta(ge=0, description="Most tokens of one prompt in a step; 0 is no such limit.")
    ] = 0
    mixed_step_tokens: Annotated[
        Annotated[int, Meta(ge=0)] | None,
        Meta(description="Fewest tokens in a step where some generate, others read prompts; 0: all that fit."),
    ] = None
    scheduling_policy: Annotated[
        Literal["fcfs", "priority"], Meta(description="Who goes first: first come, or the smallest priority number.")
    ] = "fcfs"


class ParallelConfig(msgspec.Struct, frozen=True, kw_only=True):
    """Over how many devices a model is cut."""

    tensor_parallel_size: Annotated[
        int, Meta(ge=1, description="Number of GPUs that share each layer; only 1 so far.")
    ] = 1


class StructuredOutputsConfig(msgspec.Struct, frozen=True, kw_only=True):
    """What grammars may cost. They live in processes of their own."""

    structured_outputs_timeout: Annotated[
        float, Meta(gt=0, description="Seconds that compiling a grammar, or finding one token's mask, may take.")
    ] = 2.0
    structured_outputs_memory: Annotated[
        int, Meta(ge=16, description="MiB of memory that one process with grammars may take.")
    ] = 256
    structured_outputs_workers: Annotated[
        Annotated[int, Meta(ge=1, le=256)] | None,
        Meta(description="Most processes with grammars, started when needed; default: half the cores, 1 to 8."),
    ] = None
    structured_outputs_cache: Annotated[
        int, Meta(ge=0, description="Compiled grammars that are kept while nobody uses them.")
    ] = 128


class MediaConfig(msgspec.Struct, frozen=True, kw_only=True):
    """Pictures in prompts: how many, how large, and what encoding them may take."""

    limit_mm_per_prompt: Annotated[
        dict[str, Annotated[int, Meta(ge=0, le=65536)]],
        Meta(description='Most pictures in a prompt: image=4, or {"image": 4}; default: as many as fit.'),
    ] = {}
    max_picture_bytes: Annotated[
        int,
        Meta(ge=1024, le=1 << 28, description="Most bytes of all picture files in one request."),
    ] = 16 << 20
    max_picture_pixels: Annotated[
        int,
        Meta(ge=1, le=178_956_970, description="Most pixels of one picture, read from its header before decoding."),
    ] = 36_000_000
    max_pictures_per_step: Annotated[
        Annotated[int, Meta(ge=1, le=4096)] | None,
        Meta(description="Most pictures that one step encodes; default: 8 on a GPU, 1 on a CPU."),
    ] = None
    picture_cache_slots: Annotated[
        Annotated[int, Meta(ge=1, le=65536)] | None,
        Meta(description="Encoded pictures that are kept on the device; default: 32, and at least one step's."),
    ] = None


class OperationConfig(msgspec.Struct, frozen=True, kw_only=True):
    """How the engine is watched over, and what it says."""

    step_timeout: Annotated[
        float,
        Meta(gt=0, description="Seconds that one step may take; an engine that takes longer counts as hung, and ends."),
    ] = 120
    log_format: Annotated[
        Literal["text", "json"], Meta(description="Lines of the log: for people, or one JSON object each.")
    ] = "text"


class EngineConfig(msgspec.Struct, frozen=True, kw_only=True):
    """All that the engine process needs to know."""

    model: ModelConfig = ModelConfig()
    cache: CacheConfig = CacheConfig()
    scheduler: SchedulerConfig = SchedulerConfig()
    parallel: ParallelConfig = ParallelConfig()
    structured: StructuredOutputsConfig = StructuredOutputsConfig()
    media: MediaConfig = MediaConfig()
    operation: OperationConfig = OperationConfig()


class ServerConfig(msgspec.Struct, frozen=True, kw_only=True):
    """The HTTP side."""

    host: Annotated[str, Meta(description="Address to listen on; 0.0.0.0 is every interface.")] = "127.0.0.1"
    port: Annotated[int, Meta(ge=0, le=65535, description="Port to listen on; 0 takes a free one.")] = 8000
    served_model_name: Annotated[
        tuple[str, ...], Meta(description="Name that clients use for the model; may be given more than once.")
    ] = ()
    api_key: Annotated[
        tuple[str, ...], Meta(description="Key that clients must send; may be given more than once.")
    ] = ()
    api_key_file: Annotated[
        str | None, Meta(description="YAML file of keys with names, scopes and limits; read again on SIGHUP.")
    ] = None
    allowed_hosts: Annotated[
        tuple[str, ...],
        Meta(description="Host name that clients may use, or *.name; default: local ones where no key is needed."),
    ] = ()
    ssl_keyfile: Annotated[str | None, Meta(description="Private key of the certificate, PEM.")] = None
    ssl_certfile: Annotated[str | None, Meta(description="Certificate, PEM: serves HTTPS instead of HTTP.")] = None
    ssl_ca_certs: Annotated[
        str | None, Meta(description="Certificates of those who may sign clients' certificates, PEM.")
    ] = None
    ssl_cert_reqs: Annotated[
        int, Meta(ge=0, le=2, description="Certificates of clients: 0 not asked for, 1 taken, 2 needed.")
    ] = 0
    max_num_queued_reqs: Annotated[
        int,
        Meta(ge=-1, description="Most requests that wait, besides those that can run at once; -1: no limit."),
    ] = 1024
    max_num_queued_tokens: Annotated[
        Annotated[int, Meta(ge=-1)] | None,
        Meta(description="Most prompt tokens that wait; -1: no limit; default: 512 x --max-num-batched-tokens."),
    ] = None
    max_queue_time: Annotated[
        float, Meta(ge=0, le=86400, description="Seconds that a request may wait to be begun; 0: any time.")
    ] = 300
    max_connections: Annotated[
        int, Meta(ge=1, le=1048576, description="Most connections of one API process that are open at once.")
    ] = 4096
    chat_template: Annotated[
        str | None, Meta(description="File with a Jinja chat template, instead of the checkpoint's.")
    ] = None
    trust_request_chat_template: Annotated[
        bool, Meta(description="Take a chat template from a request; it runs in the same sandbox as the model's own.")
    ] = False
    tool_call_parser: Annotated[
        str | None, Meta(description="How tool calls are written; found from the chat template if not given.")
    ] = None
    reasoning_parser: Annotated[
        str | None, Meta(description="How reasoning is set apart; found from the chat template if not given.")
    ] = None
    enable_auto_tool_choice: Annotated[bool, Meta(description="Accepted for vLLM's sake: tools need no flag.")] = True
    generation_config: Annotated[
        Literal["auto", "none"],
        Meta(description="auto takes default sampling values from the checkpoint's generation_config.json."),
    ] = "auto"
    api_server_count: Annotated[
        int, Meta(ge=1, le=64, description="Processes that answer HTTP, on one port; each costs about 60 MB.")
    ] = 1
    enable_metrics: Annotated[bool, Meta(description="Accepted for vLLM's sake: /metrics is always there.")] = True
    metrics_port: Annotated[
        Annotated[int, Meta(ge=1, le=65535)] | None, Meta(description="A further port, with /metrics and /health only.")
    ] = None
    stream_interval: Annotated[
        int, Meta(ge=1, le=1024, description="Tokens per chunk of a stream; the first token always goes out at once.")
    ] = 1
    strict: Annotated[
        bool, Meta(description="Refuse requests with fields that have no effect, instead of naming them in warnings.")
    ] = False
    shutdown_timeout: Annotated[
        float, Meta(ge=0, description="Seconds that running requests get to finish after a stop signal.")
    ] = 30
    reuse_port: Annotated[
        bool, Meta(description="Share the port with a server that runs: take requests when ready, then stop that one.")
    ] = False
    max_restarts: Annotated[
        int, Meta(ge=0, description="How often in 10 minutes an engine that has ended is started again.")
    ] = 3


ENGINE_GROUPS: dict[str, type[msgspec.Struct]] = {
    "model": ModelConfig,
    "cache": CacheConfig,
    "scheduler": SchedulerConfig,
    "parallel": ParallelConfig,
    "structured": StructuredOutputsConfig,
    "media": MediaConfig,
    "operation": OperationConfig,
}


def fields_of(group: type[msgspec.Struct]) -> tuple[str, ...]:
    """The setting names of a group."""
    return group.__struct_fields__


def build_group(group: type[msgspec.Struct], values: Mapping[str, Any]) -> Any:
    """One group from plain values; a value out of range is a ConfigError that names its flag."""
    chosen = {name: values[name] for name in fields_of(group) if name in values}
    for name, value in chosen.items():
        try:
            msgspec.convert({name: value}, group, strict=True)
        except msgspec.ValidationError as error:
            reason = str(error).split(" - at ")[0]
            raise ConfigError(f"--{name.replace('_', '-')} {value!r}: {reason}.") from None
    return msgspec.convert(chosen, group, strict=True)


def build_engine_config(values: Mapping[str, Any]) -> EngineConfig:
    """An engine's settings from one flat mapping of field names, as `LLM(**kwargs)` and the command line give it.

    Raises:
        ConfigError: for an unknown name (with the nearest known one) or a value out of range.
    """
    known = {name for group in ENGINE_GROUPS.values() for name in fields_of(group)}
    for name in values:
        if name not in known:
            raise ConfigError(f"Unknown setting {name!r}.{did_you_mean(name, known)}")
    config = EngineConfig(**{key: build_group(group, values) for key, group in ENGINE_GROUPS.items()})
    _check_offered(config)
    return config


def _check_offered(config: EngineConfig) -> None:
    """Refuse, or say, what is accepted by name but not there yet: nothing is ignored in silence."""
    if config.parallel.tensor_parallel_size > 1:
        raise ConfigError(
            f"--tensor-parallel-size {config.parallel.tensor_parallel_size}: only 1 is supported so far."
            " Use --tensor-parallel-size 1."
        )
    for kind, most in config.media.limit_mm_per_prompt.items():
        if kind != "image" and most:
            raise ConfigError(f"--limit-mm-per-prompt: {kind}={most}: pictures are all that is taken, as image=N.")
    if config.cache.swap_space not in (0, CacheConfig().swap_space):
        warnings.warn(
            f"--swap-space {config.cache.swap_space:g} has no effect yet: preempted requests are recomputed.",
            stacklevel=3,
        )


def did_you_mean(name: str, known: set[str]) -> str:
    """' Did you mean X?' for the nearest known word, or nothing."""
    near = difflib.get_close_matches(name, sorted(known), n=1, cutoff=0.6)
    return f" Did you mean {near[0]!r}?" if near else ""
