"""`LLM` on the bundled demo model: the interface as a script sees it."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time

import psutil
import pytest

from quire import LLM, RequestError, SamplingParams
from quire.errors import ConfigError, EngineDeadError, QuireError

GREEDY = SamplingParams(temperature=0, max_tokens=60)


@pytest.fixture(scope="module")
def llm():
    with LLM(model="demo", dtype="float32") as llm:
        yield llm


def ask(llm: LLM, text: str, params: SamplingParams = GREEDY) -> str:
    return llm.chat([{"role": "user", "content": text}], params, use_tqdm=False)[0].outputs[0].text


def test_it_answers(llm: LLM) -> None:
    assert "7" in ask(llm, "What is 3 plus 4?")


def test_every_kind_of_prompt_in_input_order(llm: LLM) -> None:
    ids = llm.get_tokenizer().encode("Once upon a time")
    one = llm.generate("Once upon a time", GREEDY, use_tqdm=False)
    many = llm.generate(["Once upon a time", "The fox"], GREEDY, use_tqdm=False)
    from_ids = llm.generate(ids, GREEDY, use_tqdm=False)
    from_lists = llm.generate([ids, ids[:2]], GREEDY, use_tqdm=False)
    dicts = llm.generate([{"prompt": "Once upon a time"}, {"prompt_token_ids": ids}], GREEDY, use_tqdm=False)
    text = one[0].outputs[0].text
    assert (len(one), len(many), len(from_ids), len(from_lists), len(dicts)) == (1, 2, 1, 2, 2)
    assert [o.prompt for o in many] == ["Once upon a time", "The fox"]
    assert from_ids[0].prompt is None and from_ids[0].prompt_token_ids == ids == one[0].prompt_token_ids
    assert {many[0].outputs[0].text, from_ids[0].outputs[0].text, from_lists[0].outputs[0].text} == {text}
    assert [o.outputs[0].text for o in dicts] == [text, text]
    assert one[0].finished and one[0].outputs[0].finished()
    assert one[0].outputs[0].text == llm.get_tokenizer().decode(one[0].outputs[0].token_ids, skip_special_tokens=True)


def test_parameters_per_prompt(llm: LLM) -> None:
    params = [SamplingParams(temperature=0, max_tokens=n, ignore_eos=True) for n in (3, 7)]
    outputs = llm.generate(["Once", "Once"], params, use_tqdm=False)
    assert [len(o.outputs[0].token_ids) for o in outputs] == [3, 7]
    assert [o.outputs[0].finish_reason for o in outputs] == ["length", "length"]
    with pytest.raises(RequestError, match="2 prompts but 1"):
        llm.generate(["a", "b"], params[:1])


def test_stop_strings_and_tokens(llm: LLM) -> None:
    whole = ask(llm, "Count from 3 to 9.")
    cut = llm.chat(
        [{"role": "user", "content": "Count from 3 to 9."}],
        SamplingParams(temperature=0, max_tokens=60, stop="6"),
        False,
    )[0].outputs[0]
    assert (cut.text, cut.finish_reason, cut.stop_reason) == (whole[: whole.index("6")], "stop", "6")
    token = llm.get_tokenizer().convert_tokens_to_ids("6")
    assert token is not None
    by_id = llm.chat(
        [{"role": "user", "content": "Count from 3 to 9."}],
        SamplingParams(temperature=0, max_tokens=60, stop_token_ids=[token], include_stop_str_in_output=True),
        False,
    )[0].outputs[0]
    assert (by_id.finish_reason, by_id.stop_reason) == ("stop", token) and by_id.text.endswith("6")


def test_several_completions_differ_and_seeds_repeat(llm: LLM) -> None:
    params = SamplingParams(n=4, temperature=1.2, seed=5, max_tokens=40)
    first, again = (llm.generate("Once upon a time", params, use_tqdm=False)[0] for _ in range(2))
    assert [c.index for c in first.outputs] == [0, 1, 2, 3]
    assert len({c.text for c in first.outputs}) > 1
    assert [c.token_ids for c in first.outputs] == [c.token_ids for c in again.outputs]
    crowd = llm.generate(["Once upon a time"] + ["Hello"] * 30, params, use_tqdm=False)[0]
    assert [c.token_ids for c in crowd.outputs] == [c.token_ids for c in first.outputs]


def test_bias_allowed_tokens_and_bad_words(llm: LLM) -> None:
    tokenizer = llm.get_tokenizer()
    plain = llm.generate("Once upon a time", GREEDY, use_tqdm=False)[0].outputs[0]
    first = plain.token_ids[0]
    biased = SamplingParams(temperature=0, max_tokens=1, logit_bias={first: -100})
    assert llm.generate("Once upon a time", biased, use_tqdm=False)[0].outputs[0].token_ids != [first]
    allowed = SamplingParams(temperature=0, max_tokens=8, ignore_eos=True, allowed_token_ids=plain.token_ids[:3])
    assert set(llm.generate("Once upon a time", allowed, use_tqdm=False)[0].outputs[0].token_ids) <= {
        *plain.token_ids[:3]
    }
    word = plain.text.split()[1].strip(".,")
    banned = SamplingParams(temperature=0, max_tokens=60, bad_words=[word])
    assert word in plain.text.split()
    assert word not in llm.generate("Once upon a time", banned, use_tqdm=False)[0].outputs[0].text.split()
    for name, value in (("logit_bias", {10**6: 1}), ("allowed_token_ids", [10**6]), ("bad_words_token_ids", [[10**6]])):
        with pytest.raises(RequestError, match="outside the vocabulary"):
            llm.generate("x", SamplingParams(**{name: value}), use_tqdm=False)
    assert tokenizer.decode(plain.token_ids, skip_special_tokens=True) == plain.text


def test_logprobs(llm: LLM) -> None:
    completion = llm.generate("Once upon", SamplingParams(temperature=0, max_tokens=5, logprobs=2), False)[0].outputs[0]
    assert len(completion.logprobs) == len(completion.token_ids) == 5
    for token, entry in zip(completion.token_ids, completion.logprobs, strict=True):
        assert entry[token].rank == 1 and len(entry) == 2 and entry[token].logprob <= 0
    total = sum(entry[token].logprob for token, entry in zip(completion.token_ids, completion.logprobs, strict=True))
    assert completion.cumulative_logprob == pytest.approx(total)
    plain = llm.generate("Once upon", SamplingParams(temperature=0, max_tokens=5), False)[0].outputs[0]
    assert plain.logprobs is None and plain.cumulative_logprob is None


def test_prefix_cache_is_reported(llm: LLM) -> None:
    prompt = "Once upon a time there was a fox who wanted to count all the stars in the dark sky. " * 3
    llm.reset_prefix_cache()
    cold, warm = (llm.generate(prompt, GREEDY, use_tqdm=False)[0] for _ in range(2))
    assert cold.num_cached_tokens == 0
    size = llm.ready.block_size
    assert warm.num_cached_tokens == (len(warm.prompt_token_ids) - 1) // size * size > 0
    assert warm.outputs[0].token_ids == cold.outputs[0].token_ids


def test_bad_requests_name_the_field_and_run_nothing(llm: LLM) -> None:
    steps = llm.stats().num_steps
    for prompts in ([[]], [[-1]], [[10**6]], ["ok", [1.5]], [{"text": "a"}], "x " * 5000):
        with pytest.raises(RequestError):
            llm.generate(prompts, GREEDY, use_tqdm=False)
    assert llm.stats().num_steps == steps


def test_no_parameters_take_the_checkpoints_defaults(llm: LLM) -> None:
    assert llm.generate("Hello", use_tqdm=False)[0].finished
    assert isinstance(llm.get_default_sampling_params(), SamplingParams)


def test_an_abandoned_stream_costs_at_most_two_more_steps(llm: LLM) -> None:
    """Counted by the engine: the newest count we have may be one step old when the stream is closed."""
    service, client = llm._service, llm._client
    prepared = service.prepare("Once", SamplingParams(max_tokens=1000, ignore_eos=True))

    async def leave_after(tokens: int) -> int:
        [stream] = service.start(prepared)
        for _ in range(tokens):
            await anext(stream)
        before = client.stats.num_steps
        stream.close()
        await asyncio.sleep(0.3)
        assert (client.stats.num_running, client.stats.kv_usage) == (0, 0.0)
        return client.stats.num_steps - before

    extra = [llm._loop.run(leave_after(tokens)) for tokens in (1, 2, 5, 20, 50)]
    assert max(extra) <= 3, extra


def test_idle_costs_no_cpu(llm: LLM) -> None:
    ask(llm, "Hello")
    engine = psutil.Process(llm._client._process.pid)
    time.sleep(0.3)
    before = [sum(p.cpu_times()[:2]) for p in (engine, psutil.Process())]
    time.sleep(1.0)
    after = [sum(p.cpu_times()[:2]) for p in (engine, psutil.Process())]
    assert [b - a < 0.05 for a, b in zip(before, after, strict=True)] == [True, True]


def test_two_in_one_process_and_close_ends_the_engine() -> None:
    first, second = LLM(model="demo"), LLM(model="demo")
    try:
        assert ask(first, "What is 2 plus 2?") == ask(second, "What is 2 plus 2?")
        pids = [x._client._process.pid for x in (first, second)]
    finally:
        first.close()
        second.close()
    assert not any(psutil.pid_exists(pid) for pid in pids)
    first.close()
    with pytest.raises(QuireError, match="closed"):
        first.generate("Hello")


def test_a_killed_engine_is_told_at_once() -> None:
    with LLM(model="demo") as llm:
        os.kill(llm._client._process.pid, signal.SIGKILL)
        start = time.monotonic()
        with pytest.raises(EngineDeadError):
            while time.monotonic() - start < 5:
                llm.generate("Hello", SamplingParams(max_tokens=500, ignore_eos=True), use_tqdm=False)


def test_inside_a_running_event_loop() -> None:
    """As in a notebook, whose kernel runs one."""

    async def cell() -> str:
        with LLM(model="demo") as llm:
            return ask(llm, "What is 2 plus 3?")

    assert "5" in asyncio.run(cell())


SEED_SNIPPET = """
from quire import LLM, SamplingParams
# Load the model (downloads from HuggingFace on first run)
llm = LLM(model="demo")
# Define sampling parameters
sampling_params = SamplingParams(
temperature=0.7,
top_p=0.9,
max_tokens=256,
stop=["\\n\\n"], # Stop generation at double newline
presence_penalty=0.1,
)
# Batch of prompts to process
prompts = [
"Explain the difference between TCP and UDP in one paragraph.",
"Write a Python function to calculate the Fibonacci sequence.",
"What are the three laws of thermodynamics?",
"Translate 'Hello, how are you?' into French, German, and Japanese.",
]
# Generate completions (vLLM handles batching internally)
outputs = llm.generate(prompts, sampling_params)
for output in outputs:
    prompt = output.prompt
    generated = output.outputs[0].text
    print(f"Prompt: {prompt[:60]}...")
    print(f"Output: {generated[:200]}")
    print()
"""


def test_the_seeds_offline_snippet_with_only_import_and_model_changed() -> None:
    done = subprocess.run([sys.executable, "-c", SEED_SNIPPET], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("Prompt: ") == done.stdout.count("Output: ") == 4
    assert "prompt/s" in done.stderr and "out " in done.stderr, "a progress bar with tokens per second"


SCRIPT = """
import time
from quire import LLM, SamplingParams
llm = LLM(model="demo", num_gpu_blocks_override=8000)
print(llm._client._process.pid, flush=True)
try:
    llm.generate(["Once"] * 200, SamplingParams(max_tokens=1900, ignore_eos=True), use_tqdm=False)
except KeyboardInterrupt:
    time.sleep(0.3)
    left = llm._client.num_in_flight
    text = llm.generate("Hello", SamplingParams(max_tokens=2), use_tqdm=False)[0].outputs[0].text
    print("interrupted", left, llm.stats().num_running, bool(text), flush=True)
"""


def test_ctrl_c_cancels_and_the_engine_goes_on() -> None:
    def listen() -> None:  # what a shell starts in the background does not hear Ctrl-C
        signal.signal(signal.SIGINT, signal.SIG_DFL)

    process = subprocess.Popen([sys.executable, "-c", SCRIPT], stdout=subprocess.PIPE, text=True, preexec_fn=listen)
    try:
        pid = int(process.stdout.readline())
        time.sleep(1.0)
        process.send_signal(signal.SIGINT)
        assert process.communicate(timeout=30)[0].split() == ["interrupted", "0", "0", "True"]
    finally:
        process.kill()
    assert process.returncode == 0
    deadline = time.monotonic() + 5
    while psutil.pid_exists(pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not psutil.pid_exists(pid), "the engine outlived its parent"


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"model": "/no/such/folder"}, "/no/such/folder"),
        ({"model": "demo", "max_model_len": 100_000}, "--max-model-len"),
        ({"model": "demo", "num_gpu_blocks_override": 4}, "--max-model-len 48"),
        ({"model": "demo", "kv_cache_memory_bytes": 1000}, "--kv-cache-memory-bytes"),
        ({"model": "demo", "max_num_seqs": 64, "max_num_batched_tokens": 32}, "--max-num-seqs 32"),
        ({"model": "demo", "device": "cuda"}, "--device cpu"),
    ],
)
def test_start_errors_name_the_flag_and_a_value_that_works(settings: dict, words: str) -> None:
    if settings.get("device") == "cuda":
        torch = pytest.importorskip("torch")
        if torch.cuda.is_available():
            pytest.skip("there is a GPU")
    with pytest.raises(ConfigError) as error:
        LLM(**settings)
    assert words in error.value.message
