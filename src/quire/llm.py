"""LLM: the engine from a script or a notebook. A blocking wrapper over the client and text service of the server."""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future
from types import TracebackType
from typing import Any, cast

from quire.config import DEMO_MODEL, EngineConfig, build_engine_config
from quire.errors import QuireError, RequestError
from quire.frontend.client import Client
from quire.frontend.media import Ready as ReadyPicture
from quire.frontend.media import load_media
from quire.frontend.parsers import plan_tools
from quire.frontend.service import PreparedRequest, TextService
from quire.frontend.text_side import load_text_side
from quire.launch import start_engine
from quire.messages import EngineStats, Ready
from quire.offline.names import ABSENT_METHODS, refusal, without_neutral
from quire.offline.progress import LoadingBar, UseTqdm, progress_bar
from quire.offline.prompts import Prompt, as_prompts, one_each, refuse_content, refuse_lora, unwrap, warn_priority
from quire.offline.results import Numbered, Results
from quire.offline.running import generate_all, search_beams, stream_outputs
from quire.offline.threads import LoopThread
from quire.offline.tokenizer import PublicTokenizer
from quire.outputs import BeamSearchOutput, Metric, RequestOutput
from quire.params import BeamSearchParams, RequestOutputKind, SamplingParams
from quire.sources import model_facts

Message = Mapping[str, Any]


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
        trust_remote_code: let transformers run model code that lies in the checkpoint.
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
                **without_neutral(settings),
            }
        )
        self._request_ids = itertools.count()
        self._queued: list[tuple[Numbered, Future[list[RequestOutput]]]] = []
        self._loop = LoopThread()
        try:
            self._client, self._service = self._loop.run(_start(config, chat_template))
        except BaseException:
            self._loop.stop()
            raise
        self._results = Results(self._service.tokenizer)
        self._finalizer = weakref.finalize(self, _end, self._loop, self._client, self._service)  # also at exit

    # ---- generation ----------------------------------------------------------------------------------------------

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        use_tqdm: UseTqdm = True,
        lora_request: None = None,
        priority: int | Sequence[int] | None = None,
    ) -> list[RequestOutput]:
        """Complete prompts; all of them run together, the outputs come in the order of the inputs.

        Args:
            prompts: one or many; each a text, a list of token ids, or a dict with "prompt" or "prompt_token_ids", and
                a "cache_salt" if it is to share cached prefixes only with prompts of the same salt, and
                "multi_modal_data" {"image": PIL image, uint8 array, data: URL, or a list of them}, each of which has a
                placeholder in the text.
            sampling_params: one for all or one per prompt; None takes the model's generation_config.json.
            use_tqdm: show a progress bar; a callable takes the place of tqdm.
            lora_request: not offered yet.
            priority: one for all or one per prompt; smaller runs earlier with scheduling_policy="priority".

        Raises:
            RequestError: a prompt or parameter that cannot be served; nothing was run then.
            EngineDeadError: the engine ended.
        """
        numbered = self._prepare_all(prompts, sampling_params, lora_request, priority)
        return self._run_all(numbered, use_tqdm)

    def chat(
        self,
        messages: Sequence[Message] | Sequence[Sequence[Message]],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        use_tqdm: UseTqdm = True,
        lora_request: None = None,
        chat_template: str | None = None,
        chat_template_content_format: str = "auto",
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        tools: Sequence[Mapping[str, Any]] | None = None,
        chat_template_kwargs: Mapping[str, Any] | None = None,
        mm_processor_kwargs: Mapping[str, Any] | None = None,
        *,
        priority: int | Sequence[int] | None = None,
    ) -> list[RequestOutput]:
        """Answer one conversation or many, each a list of {"role": ..., "content": ...}.

        Args and errors as in `generate`, and:
            chat_template: a Jinja template's text, instead of the model's.
            chat_template_content_format: "auto" or "string": templates get each message's content as one text.
            add_generation_prompt: open the assistant's turn.
            continue_final_message: go on with the last message instead.
            tools: functions that the template shows to the model, as in the OpenAI API; calls come back as text.
            chat_template_kwargs: further variables for the template.
            mm_processor_kwargs: not offered: pictures are made ready as the checkpoint says.

        Pictures are parts of a message's content: {"type": "image_url", "image_url": {"url": "data:..."}}, or
        {"type": "image_pil", "image_pil": IMAGE}.
        """
        refuse_content(chat_template_content_format, mm_processor_kwargs)
        single = not messages or isinstance(messages[0], Mapping)
        conversations = cast(Sequence[Sequence[Message]], [messages] if single else messages)
        pictures = [self._service.media.read(self._service.media.sources(one)) for one in conversations]
        texts = [
            self._service.render_chat(
                conversation,
                template=chat_template,
                add_generation_prompt=add_generation_prompt and not continue_final_message,
                continue_final_message=continue_final_message,
                tools=plan_tools(list(tools) if tools else None).tools,
                kwargs=chat_template_kwargs,
            )
            for conversation in conversations
        ]
        numbered = self._prepare_all(texts, sampling_params, lora_request, priority, pictures)
        return self._run_all(numbered, use_tqdm)

    def stream(
        self,
        prompts: Prompt | Sequence[Prompt],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        lora_request: None = None,
        priority: int | Sequence[int] | None = None,
    ) -> Iterator[RequestOutput]:
        """As `generate`, but outputs come while they grow, of all prompts as they come.

        `output_kind` of the parameters says what each holds: with CUMULATIVE and DELTA the one completion that has
        grown, with FINAL_ONLY all of them at the end. Whoever stops reading ends what still runs.

        Raises:
            RequestError: as in `generate`; and best_of > n with another kind than FINAL_ONLY.
        """
        numbered = self._prepare_all(prompts, sampling_params, lora_request, priority)
        for _, request in numbered:
            params = request.params
            if params.num_candidates > params.n and params.output_kind != RequestOutputKind.FINAL_ONLY:
                raise RequestError("best_of > n is known at the end only: use FINAL_ONLY.", param="best_of")
        return self._alive().iterate(stream_outputs(self._service, self._results, numbered))

    def beam_search(
        self,
        prompts: Prompt | Sequence[Prompt],
        params: BeamSearchParams,
        lora_request: None = None,
        use_tqdm: UseTqdm = False,
        concurrency_limit: int | None = None,
    ) -> list[BeamSearchOutput]:
        """The most likely continuations of each prompt, by beam search.

        Args:
            prompts: as in `generate`.
            params: width, length and how lengths are weighed.
            lora_request: not offered yet.
            use_tqdm: show a progress bar.
            concurrency_limit: most prompts at a time; None is all of them.

        Raises:
            RequestError: a prompt or parameter that cannot be served; nothing was run then.
        """
        plain = SamplingParams(temperature=0, max_tokens=params.max_tokens, ignore_eos=params.ignore_eos)
        numbered = self._prepare_all(prompts, plain, lora_request, None)
        bar = progress_bar(use_tqdm, len(numbered))
        return self._alive().run(search_beams(self._service, self._results, numbered, params, concurrency_limit, bar))

    def enqueue(
        self,
        prompts: Prompt | Sequence[Prompt],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        lora_request: None = None,
        priority: int | Sequence[int] | None = None,
    ) -> list[str]:
        """Begin as `generate` does, without waiting; returns request ids. `wait_for_completion` has the outputs."""
        numbered = self._prepare_all(prompts, sampling_params, lora_request, priority)
        loop = self._alive()
        self._queued += [(one, loop.begin(generate_all(self._service, self._results, [one], None))) for one in numbered]
        return [one.id for one in numbered]

    def wait_for_completion(self, use_tqdm: UseTqdm = True) -> list[RequestOutput]:
        """The outputs of all that was enqueued, in that order."""
        queued, self._queued = self._queued, []
        loop, bar = self._alive(), progress_bar(use_tqdm, len(queued))
        outputs: list[RequestOutput] = []
        try:
            for one, future in queued:
                found: list[RequestOutput] = loop.wait(future)
                outputs += found
                if bar:
                    bar.add(len(one.request.prompt_ids), sum(len(c.token_ids) for c in outputs[-1].outputs))
        finally:
            for _, future in queued:
                future.cancel()
            if bar:
                bar.close()
        return outputs

    def _prepare_all(
        self,
        prompts: Prompt | Sequence[Prompt],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None,
        lora_request: None,
        priority: int | Sequence[int] | None,
        pictures: Sequence[Sequence[ReadyPicture]] | None = None,
    ) -> list[Numbered]:
        """Check everything before anything runs; `pictures` where the prompts are conversations, rendered."""
        self._alive()
        refuse_lora(lora_request)
        items = as_prompts(prompts)
        default = self._service.default_params()
        params = one_each(sampling_params, len(items), default, "sampling_params")
        priorities = one_each(priority, len(items), 0, "priority")
        warn_priority(priorities, self._service.by_priority)
        own = pictures if pictures is not None else [None] * len(items)
        prepared = [
            self._prepare(prompt, one, rank, seen)
            for prompt, one, rank, seen in zip(items, params, priorities, own, strict=True)
        ]
        return [Numbered(str(next(self._request_ids)), request) for request in prepared]

    def _prepare(
        self, prompt: Prompt, params: SamplingParams, priority: int, pictures: Sequence[ReadyPicture] | None
    ) -> PreparedRequest:
        """One prompt; with `pictures` given, even if they are none, it is a conversation and has its special tokens."""
        if not isinstance(params, SamplingParams):
            raise RequestError(f"sampling_params must be SamplingParams, got {params!r}.", param="sampling_params")
        given = unwrap(prompt)
        open_ended = params.clone()  # offline, max_tokens is an upper bound: the context may end earlier
        open_ended.max_tokens = None
        is_chat = pictures is not None
        return self._service.prepare(
            given.prompt,
            open_ended,
            add_special_tokens=not is_chat,
            text=given.text,
            default_max_tokens=params.max_tokens,
            priority=priority,
            cache_salt=given.cache_salt,
            thinks=is_chat,  # its prompt shows where thoughts begin
            pictures=self._service.media.read(given.pictures) if pictures is None else pictures,
        )

    def _run_all(self, numbered: Sequence[Numbered], use_tqdm: UseTqdm) -> list[RequestOutput]:
        bar = progress_bar(use_tqdm, len(numbered))
        return self._alive().run(generate_all(self._service, self._results, numbered, bar))

    # ---- the rest ------------------------------------------------------------------------------------------------

    def get_tokenizer(self) -> PublicTokenizer:
        """The model's tokenizer, with the names that transformers has."""
        return PublicTokenizer(self._service.tokenizer, self._service.template)

    def get_default_sampling_params(self) -> SamplingParams:
        """What `generate` uses when it is given no parameters."""
        return self._service.default_params()

    def reset_prefix_cache(self) -> bool:
        """Forget cached prefixes; True, since what runs keeps what it needs."""
        loop = self._alive()
        loop.run(_call(self._client.reset_prefix_cache))
        return True

    def get_metrics(self) -> list[Metric]:
        """The engine's gauges and counters, each with its name."""
        stats = self.stats()
        return [Metric(f"quire:{name}", float(getattr(stats, name))) for name in stats.__struct_fields__]

    def stats(self) -> EngineStats:
        """Gauges and counters of the engine, as of its last step."""
        return self._client.stats

    @property
    def llm_engine(self) -> Any:
        """Not offered: the engine is another process."""
        raise AttributeError("LLM.llm_engine: the engine is another process; LLM.ready and LLM.stats() tell about it.")

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

    def _alive(self) -> LoopThread:
        if not self._finalizer.alive:
            raise QuireError("This LLM is closed.")
        return self._loop


def _end(loop: LoopThread, client: Client, service: TextService) -> None:
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
    bar = LoadingBar()
    client = await start_engine(config, bar.show)
    try:
        tokenizer, template = load_text_side(config.model, chat_template)
        facts = model_facts(config.model)
        service = TextService(
            tokenizer,
            template,
            facts,
            client,
            seed=config.model.seed,
            max_logprobs=config.model.max_logprobs,
            by_priority=config.scheduler.scheduling_policy == "priority",
            media=load_media(facts, config.media, tokenizer, config.model.model),
        )
        await client.wait_ready()
    except BaseException:
        await client.close()
        raise
    finally:
        bar.close()
    return client, service


for _name in ABSENT_METHODS:
    setattr(LLM, _name, refusal(_name))
