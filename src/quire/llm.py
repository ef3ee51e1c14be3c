"""LLM: the engine from a script or a notebook. A blocking wrapper over the client and text service of the server."""

from __future__ import annotations

import asyncio
import itertools
import threading
import time
import weakref
from collections.abc import Coroutine, Mapping, Sequence
from types import TracebackType
from typing import Any, TypeVar, cast

from tqdm import tqdm

from quire.checkpoint import read_facts, resolve
from quire.config import DEMO_MODEL, EngineConfig, build_engine_config
from quire.errors import QuireError, RequestError
from quire.frontend.client import Client
from quire.frontend.parsers import plan_tools
from quire.frontend.service import PreparedRequest, TextService
from quire.frontend.streams import Delta, RequestStream
from quire.frontend.text_side import load_text_side
from quire.frontend.tokenizer import Tokenizer
from quire.launch import start_engine
from quire.messages import EngineStats, Progress, Ready, TokenLogprobs
from quire.outputs import CompletionOutput, Logprob, PositionLogprobs, RequestOutput
from quire.params import SamplingParams

Prompt = str | Sequence[int] | Mapping[str, Any]
Message = Mapping[str, Any]
T = TypeVar("T")


class LLM:
    """A model, ready to generate.

    The engine runs in a child process of its own, so no `__main__` guard is needed, several can live in one program,
    and `close()` gives back all of its memory. Waiting costs no CPU time.

        with LLM(model="demo") as llm:
            print(llm.generate("Once upon a time")[0].outputs[0].text)

    Args:
        model: folder or Hugging Face name; "demo" is the model inside the package.
        tokenizer: folder or name, if not the model's own.
        dtype: auto, float16, bfloat16 or float32.
        max_model_len: most tokens of prompt and output together; None is the model's, -1 what fits the memory.
        gpu_memory_utilization: fraction of the GPU for weights, KV cache and working memory together.
        max_num_seqs: most requests that run at once.
        enforce_eager: never use CUDA graphs.
        seed: of requests that bring none of their own.
        trust_remote_code: accepted; no code from a checkpoint is ever run.
        tensor_parallel_size: number of GPUs.
        quantization: scheme of the weights.
        swap_space: GB of host memory for preempted requests.
        chat_template: file with a Jinja template, instead of the checkpoint's.
        **settings: every other field of `quire.config`, under its own name.

    Raises:
        ConfigError: a setting that cannot work, with one that would.
        StartupError: the engine could not start.
    """

    def __init__(
        self,
        model: str = DEMO_MODEL,
        *,
        tokenizer: str | None = None,
        dtype: str = "auto",
        max_model_len: int | None = None,
        gpu_memory_utilization: float = 0.9,
        max_num_seqs: int | None = None,
        enforce_eager: bool = False,
        seed: int = 0,
        trust_remote_code: bool = False,
        tensor_parallel_size: int = 1,
        quantization: str | None = None,
        swap_space: float = 4,
        chat_template: str | None = None,
        **settings: Any,
    ) -> None:
        config = build_engine_config(
            {
                "model": model,
                "tokenizer": tokenizer,
                "dtype": dtype,
                "max_model_len": max_model_len,
                "gpu_memory_utilization": gpu_memory_utilization,
                "max_num_seqs": max_num_seqs,
                "enforce_eager": enforce_eager,
                "seed": seed,
                "trust_remote_code": trust_remote_code,
                "tensor_parallel_size": tensor_parallel_size,
                "quantization": quantization,
                "swap_space": swap_space,
                **settings,
            }
        )
        self._request_ids = itertools.count()
        self._loop = _LoopThread()
        try:
            self._client, self._service = self._loop.run(_start(config, chat_template))
        except BaseException:
            self._loop.stop()
            raise
        self._finalizer = weakref.finalize(self, _end, self._loop, self._client, self._service)  # also at exit

    # ---- generation ----------------------------------------------------------------------------------------------

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        use_tqdm: bool = True,
    ) -> list[RequestOutput]:
        """Complete prompts; all of them run together, the outputs come in the order of the inputs.

        Args:
            prompts: one or many; each a text, a list of token ids, or a dict with "prompt" or "prompt_token_ids".
            sampling_params: one for all or one per prompt; None takes the model's generation_config.json.
            use_tqdm: show a progress bar.

        Raises:
            RequestError: a prompt or parameter that cannot be served; nothing was run then.
            EngineDeadError: the engine ended.
        """
        items = _as_prompts(prompts)
        return self._run([(item, True) for item in items], sampling_params, use_tqdm)

    def chat(
        self,
        messages: Sequence[Message] | Sequence[Sequence[Message]],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        use_tqdm: bool = True,
        *,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        tools: Sequence[Mapping[str, Any]] | None = None,
        chat_template_kwargs: Mapping[str, Any] | None = None,
    ) -> list[RequestOutput]:
        """Answer one conversation or many, each a list of {"role": ..., "content": ...}.

        Args and errors as in `generate`, and:
            add_generation_prompt: open the assistant's turn.
            continue_final_message: go on with the last message instead.
            tools: functions that the template shows to the model, as in the OpenAI API; calls come back as text.
            chat_template_kwargs: further variables for the template.
        """
        single = not messages or isinstance(messages[0], Mapping)
        conversations = cast(Sequence[Sequence[Message]], [messages] if single else messages)
        texts = [
            self._service.render_chat(
                conversation,
                add_generation_prompt=add_generation_prompt and not continue_final_message,
                continue_final_message=continue_final_message,
                tools=plan_tools(list(tools) if tools else None).tools,
                kwargs=chat_template_kwargs,
            )
            for conversation in conversations
        ]
        return self._run([(text, False) for text in texts], sampling_params, use_tqdm)

    def _run(
        self,
        prompts: Sequence[tuple[Prompt, bool]],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None,
        use_tqdm: bool,
    ) -> list[RequestOutput]:
        loop = self._alive()
        params = _one_each(sampling_params, len(prompts), self._service.default_params())
        prepared = [
            self._prepare(prompt, add_special_tokens, one)
            for (prompt, add_special_tokens), one in zip(prompts, params, strict=True)
        ]
        return loop.run(self._generate(prepared, use_tqdm))

    def _prepare(self, prompt: Prompt, add_special_tokens: bool, params: SamplingParams) -> PreparedRequest:
        text_or_ids, salt = _unwrap(prompt)
        open_ended = params.clone()  # offline, max_tokens is an upper bound: the context may end earlier
        open_ended.max_tokens = None
        return self._service.prepare(
            text_or_ids,
            open_ended,
            add_special_tokens=add_special_tokens,
            default_max_tokens=params.max_tokens,
            cache_salt=salt,
        )

    async def _generate(self, prepared: Sequence[PreparedRequest], use_tqdm: bool) -> list[RequestOutput]:
        streams: list[list[RequestStream]] = []
        bar = _ProgressBar(len(prepared)) if use_tqdm else None
        try:
            for request in prepared:
                streams.append(self._service.start(request))
            return await asyncio.gather(
                *(self._collect(request, own, bar) for request, own in zip(prepared, streams, strict=True))
            )
        finally:  # after Ctrl-C or an error nothing keeps running for nobody
            for own in streams:
                for stream in own:
                    stream.close()
            if bar:
                bar.close()

    async def _collect(
        self, request: PreparedRequest, streams: Sequence[RequestStream], bar: _ProgressBar | None
    ) -> RequestOutput:
        deltas = await asyncio.gather(*(stream.collect() for stream in streams))
        if bar:
            bar.add(len(request.prompt_ids), sum(len(delta.token_ids) for delta in deltas))
        return RequestOutput(
            request_id=str(next(self._request_ids)),
            prompt=request.prompt,
            prompt_token_ids=request.prompt_ids,
            outputs=[self._completion(index, delta) for index, delta in enumerate(deltas)],
            finished=True,
            num_cached_tokens=streams[0].num_cached_tokens,
        )

    def _completion(self, index: int, delta: Delta) -> CompletionOutput:
        found = delta.logprobs
        return CompletionOutput(
            index=index,
            text=delta.text,
            token_ids=delta.token_ids,
            cumulative_logprob=sum(entry.logprobs[0] for entry in found) if found is not None else None,
            logprobs=[self._position(entry) for entry in found] if found is not None else None,
            finish_reason=delta.finish_reason,
            stop_reason=delta.stop_reason,
        )

    def _position(self, entry: TokenLogprobs) -> PositionLogprobs:
        """Chosen token first, then the most likely ones."""
        ranks = [entry.rank, *range(1, len(entry.token_ids))]
        lines = zip(entry.token_ids, entry.logprobs, ranks, strict=True)
        text = self._service.tokenizer.token_text
        result: PositionLogprobs = {}
        for token, logprob, rank in lines:
            result.setdefault(token, Logprob(logprob, rank, text(token)))
        return result

    # ---- the rest ------------------------------------------------------------------------------------------------

    def get_tokenizer(self) -> Tokenizer:
        """The model's tokenizer."""
        return self._service.tokenizer

    def get_default_sampling_params(self) -> SamplingParams:
        """What `generate` uses when it is given no parameters."""
        return self._service.default_params()

    def reset_prefix_cache(self) -> None:
        """Forget cached prefixes."""
        loop = self._alive()
        loop.run(_call(self._client.reset_prefix_cache))

    def stats(self) -> EngineStats:
        """Gauges and counters of the engine, as of its last step."""
        return self._client.stats

    @property
    def ready(self) -> Ready:
        """What the engine settled on: device, dtype, KV blocks, limits."""
        assert self._client.ready is not None
        return self._client.ready

    def close(self) -> None:
        """End the engine and give back all of its memory. A second call does nothing."""
        self._finalizer()

    def __enter__(self) -> LLM:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _alive(self) -> _LoopThread:
        if not self._finalizer.alive:
            raise QuireError("This LLM is closed.")
        return self._loop


def _end(loop: _LoopThread, client: Client, service: TextService) -> None:
    """End engine and threads. The garbage collector may call this anywhere, even in the loop's own thread."""
    service.close()
    if loop.is_current():
        client.kill()
    else:
        loop.run(client.close())
        loop.stop()


async def _call(function: Any) -> None:
    function()


async def _start(config: EngineConfig, chat_template: str | None) -> tuple[Client, TextService]:
    """Start the engine; read the tokenizer while it loads."""
    bar = _LoadingBar()
    client = await start_engine(config, bar.show)
    try:
        tokenizer, template = load_text_side(config.model, chat_template)
        facts = read_facts(resolve(config.model.model, config.model.revision, weights=False))
        service = TextService(tokenizer, template, facts, client, seed=config.model.seed)
        await client.wait_ready()
    except BaseException:
        await client.close()
        raise
    finally:
        bar.close()
    return client, service


def _as_prompts(prompts: Prompt | Sequence[Prompt]) -> list[Prompt]:
    """A list of prompts from one or many; a flat list of integers is one prompt."""
    if isinstance(prompts, (str, Mapping)):
        return [prompts]
    items = list(prompts)
    if items and not isinstance(items[0], (str, Mapping, Sequence)) and not hasattr(items[0], "__len__"):
        return [cast(Prompt, items)]
    return cast(list[Prompt], items)


def _unwrap(prompt: Prompt) -> tuple[str | Sequence[int], str]:
    """(text or token ids, cache salt) of one prompt."""
    if not isinstance(prompt, Mapping):
        return prompt, ""
    for key in ("prompt_token_ids", "prompt"):
        if prompt.get(key) is not None:
            return prompt[key], prompt.get("cache_salt") or ""
    raise RequestError(f"A prompt dict needs 'prompt' or 'prompt_token_ids', got {sorted(prompt)}.", param="prompts")


def _one_each(
    given: SamplingParams | Sequence[SamplingParams] | None, count: int, default: SamplingParams
) -> Sequence[SamplingParams]:
    if given is None or isinstance(given, SamplingParams):
        return [given or default] * count
    if len(given) != count:
        raise RequestError(f"{count} prompts but {len(given)} sampling_params.", param="sampling_params")
    return given


class _LoopThread:
    """An asyncio loop in a thread of its own: works beside any loop that the caller has, as in a notebook."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="quire-llm", daemon=True)
        self._thread.start()

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Run to the end and return the result; Ctrl-C cancels it and waits until it is wound up."""
        future = asyncio.run_coroutine_threadsafe(coroutine, self._loop)
        try:
            return future.result()
        except KeyboardInterrupt:
            future.cancel()
            asyncio.run_coroutine_threadsafe(_settle(), self._loop).result()
            raise

    def is_current(self) -> bool:
        """Whether the caller is this thread."""
        return threading.current_thread() is self._thread

    def stop(self) -> None:
        """End the thread."""
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


async def _settle() -> None:
    """Let what was cancelled run its clean-up."""
    for _ in range(3):
        await asyncio.sleep(0)


class _ProgressBar:
    """Prompts done, with input and output tokens per second."""

    def __init__(self, total: int) -> None:
        self._bar = tqdm(total=total, desc="Prompts", unit="prompt", dynamic_ncols=True)
        self._start = time.monotonic()
        self._input = self._output = 0

    def add(self, input_tokens: int, output_tokens: int) -> None:
        """One more prompt is done."""
        self._input += input_tokens
        self._output += output_tokens
        seconds = max(time.monotonic() - self._start, 1e-9)
        self._bar.set_postfix_str(
            f"in {self._input / seconds:,.0f} tok/s, out {self._output / seconds:,.0f} tok/s", refresh=False
        )
        self._bar.update()

    def close(self) -> None:
        """Leave the last state on the screen."""
        self._bar.close()


class _LoadingBar:
    """Bytes of weights loaded; only shown for models that take a while."""

    def __init__(self) -> None:
        self._bar: tqdm[Any] | None = None

    def show(self, progress: Progress) -> None:
        """Take in one report."""
        if progress.total < 200 << 20:
            return
        if self._bar is None:
            self._bar = tqdm(total=progress.total, desc="Loading weights", unit="B", unit_scale=True)
        self._bar.update(progress.done - self._bar.n)

    def close(self) -> None:
        """Done."""
        if self._bar is not None:
            self._bar.close()
