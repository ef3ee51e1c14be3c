"""Train the demo model that ships with Quire, and its draft model, from nothing.

    python tools/train_demo_model.py --out src/quire/demo

writes `model/`, `draft/` and `EVALUATION.md` below the folder.  All text comes
from the generators beside this file; nothing is downloaded.  On one data-centre
GPU it takes minutes.  `--evaluate-only` grades what the folder holds already.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
import transformers
from demo_training.batches import Batches, DeviceBatch, prompt_hash, stream, to_device
from demo_training.evaluation import TARGET, TRY_OUT, Report, evaluate, load_model, load_tokenizer, say
from demo_training.text import ASSISTANT, END, USER, held_out_questions
from demo_training.tokenizer import VOCABULARY_SIZE, build_tokenizer, save_tokenizer, whole_words
from transformers import LlamaConfig, LlamaForCausalLM

SIZE_LIMIT = 6_000_000
Forward = Callable[..., Any]
"""A model, compiled or not."""
LossFunction = Callable[[Forward, DeviceBatch], torch.Tensor]


@dataclass(frozen=True, slots=True)
class Shape:
    """The size of a Llama model."""

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    intermediate: int
    head_dim: int = 32

    def config(self) -> dict[str, object]:
        """The contents of config.json, in the names that every Llama loader knows."""
        return {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "vocab_size": VOCABULARY_SIZE,
            "hidden_size": self.hidden,
            "intermediate_size": self.intermediate,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "head_dim": self.head_dim,
            "hidden_act": "silu",
            "max_position_embeddings": 2048,
            "rms_norm_eps": 1e-5,
            "rope_theta": 10000.0,
            "tie_word_embeddings": True,
            "attention_bias": False,
            "mlp_bias": False,
            "initializer_range": 0.02,
            "bos_token_id": None,
            "eos_token_id": 0,
            "pad_token_id": 1,
            "torch_dtype": "bfloat16",
        }

    def build(self, device: torch.device) -> LlamaForCausalLM:
        """A new model with random weights."""
        return LlamaForCausalLM(LlamaConfig(**self.config())).float().to(device)


MAIN = Shape(hidden=256, layers=5, heads=8, kv_heads=4, intermediate=320)
DRAFT = Shape(hidden=128, layers=2, heads=4, kv_heads=2, intermediate=256)


@dataclass(frozen=True, slots=True)
class Schedule:
    """How long and how fast one model learns."""

    steps: int
    seconds: float
    learning_rate: float
    rows: int
    length: int
    workers: int
    warmup: float = 0.02

    def progress(self, step: int, elapsed: float) -> float:
        """How much of the training is done; time counts where it runs out before the steps."""
        return min(1.0, max(step / self.steps, elapsed / self.seconds))

    def rate(self, progress: float) -> float:
        """The learning rate: a short rise, then a cosine down to nearly nothing."""
        if progress < self.warmup:
            return self.learning_rate * (progress + 1e-4) / self.warmup
        return self.learning_rate * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * progress)))


def _logits(forward: Forward, batch: DeviceBatch) -> torch.Tensor:
    output = forward(input_ids=batch.ids, attention_mask=batch.mask, position_ids=batch.positions, use_cache=False)
    logits: torch.Tensor = output.logits[:, :-1].float()
    return logits


def _compiled(model: LlamaForCausalLM) -> Forward:
    """The model as it is best called: compiled on a GPU, where that halves the time of a step."""
    forward: Forward = torch.compile(model) if model.device.type == "cuda" else model
    return forward


def _weighted(losses: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    return (losses * weights).sum() / weights.sum()


def learn_text(forward: Forward, batch: DeviceBatch) -> torch.Tensor:
    """The loss of the main model: the next token of every answer."""
    losses = F.cross_entropy(_logits(forward, batch).transpose(1, 2), batch.targets, reduction="none")
    return _weighted(losses, batch.weights)


def learn_from(teacher: Forward) -> LossFunction:
    """The loss of the draft: the main model's probabilities, since agreeing with it is the draft's task."""

    def loss(forward: Forward, batch: DeviceBatch) -> torch.Tensor:
        with torch.no_grad():
            wanted = _logits(teacher, batch).softmax(-1)
        losses = -(wanted * _logits(forward, batch).log_softmax(-1)).sum(-1)
        return _weighted(losses, batch.weights)

    return loss


def _optimizer(model: LlamaForCausalLM, device: torch.device) -> torch.optim.AdamW:
    matrices = [p for p in model.parameters() if p.dim() >= 2]
    vectors = [p for p in model.parameters() if p.dim() < 2]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=0.0, betas=(0.9, 0.95), fused=device.type == "cuda")


@dataclass(frozen=True, slots=True)
class Training:
    """What a training run did."""

    steps: int
    seconds: float
    tokens: int
    leaked: int


def train(
    name: str,
    model: LlamaForCausalLM,
    loss_function: LossFunction,
    batches: Batches,
    schedule: Schedule,
    asked: set[int],
) -> Training:
    """Train until the steps or the seconds are used up, watching for held-out prompts."""
    device, forward = model.device, _compiled(model)
    optimizer = _optimizer(model, device)
    started, leaked, step, tokens = time.monotonic(), 0, 0, 0
    model.train()
    for step, made in enumerate(stream(batches, schedule.workers), start=1):
        progress = schedule.progress(step, time.monotonic() - started)
        for group in optimizer.param_groups:
            group["lr"] = schedule.rate(progress)
        leaked += len(asked.intersection(made.prompts.tolist()))
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            loss = loss_function(forward, to_device(made, device))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        tokens += made.ids.size
        if step == 1 or step % max(1, schedule.steps // 40) == 0 or progress >= 1.0:
            elapsed = time.monotonic() - started
            print(
                f"{name} step {step} loss {loss.item():.4f} {elapsed:.0f} s {tokens / elapsed:,.0f} tokens/s",
                flush=True,
            )
        if progress >= 1.0:
            break
    return Training(step, time.monotonic() - started, tokens, leaked)


def save(model: LlamaForCausalLM, shape: Shape, folder: Path) -> None:
    """Write weights in bfloat16, config.json and generation_config.json."""
    folder.mkdir(parents=True, exist_ok=True)
    model.bfloat16().save_pretrained(folder)
    # The library lets only the owner read it; a package's files are for everyone.
    (folder / "model.safetensors").chmod(0o644)
    # Written over what the library wrote: its names change from release to release, these do not.
    (folder / "config.json").write_text(json.dumps(shape.config(), indent=2) + "\n")
    generation = {"do_sample": False, "eos_token_id": 0, "pad_token_id": 1}
    (folder / "generation_config.json").write_text(json.dumps(generation, indent=2) + "\n")
    model.float()


def _bytes_below(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file() and "__pycache__" not in file.parts)


def _try_out(folder: Path, device: torch.device) -> str:
    tokenizer = load_tokenizer(folder)
    texts = [f"{USER}{prompt}{END}{ASSISTANT}" for prompt in TRY_OUT]
    replies = say(load_model(folder, device), tokenizer, texts, limit=300)
    return "\n".join(f"- {asked} → {tokenizer.decode(ids)}" for asked, (ids, _) in zip(TRY_OUT, replies, strict=True))


def _machine(device: torch.device) -> str:
    if device.type == "cuda":
        return f"one {torch.cuda.get_device_name(device)}"
    return f"{platform.machine()} CPU, {torch.get_num_threads()} threads"


def _parameters(folder: Path) -> int:
    return int(load_model(folder, torch.device("cpu")).num_parameters())


def describe(out: Path, report: Report, device: torch.device, trained: str) -> str:
    """The text of EVALUATION.md."""
    main, draft = out / "model", out / "draft"
    sizes = [(name, _parameters(folder), (folder / "model.safetensors").stat().st_size)
             for name, folder in (("model", main), ("draft", draft))]  # fmt: skip
    lines = [
        "# Evaluation of the demo model",
        "",
        "Greedy answers to held-out prompts: content that training never showed in any wording. An answer",
        "counts as right only if the turn is ended too. *Draft agrees*: the share of the main model's greedy",
        "tokens that the draft model, given all tokens before, would have picked; *draft alone*: its own score.",
        "",
        report.table(),
        "",
        f"Kinds below the target of {100 * TARGET:.0f} %: {', '.join(report.below_target()) or 'none'}.",
        f"Greedy stories that differ from each other after the first sentence: {100 * report.distinct_stories:.0f} %.",
        f"Stories that differ when sampled twice at temperature 1: {100 * report.distinct_samples:.0f} %.",
        f"Right answers of all kinds when sampled at temperature 1: {100 * report.sampled_right:.1f} %.",
        "",
        "| part | parameters | bytes of weights |",
        "|---|---:|---:|",
        *(f"| {name} | {parameters:,} | {size:,} |" for name, parameters, size in sizes),
        "",
        f"Everything in the folders `model` and `draft` together: {_bytes_below(main) + _bytes_below(draft):,} bytes.",
        "",
        trained,
        f"Evaluated on {_machine(device)} with torch {torch.__version__} and transformers {transformers.__version__}.",
        "",
        "Some answers, as they come (not graded; some of these prompts were trained):",
        "",
        _try_out(main, device),
        "",
    ]
    return "\n".join(lines)


def run_training(args: argparse.Namespace, device: torch.device) -> str:
    """Train and save both models; tell how, for the report."""
    torch.manual_seed(args.seed)
    torch.set_float32_matmul_precision("high")
    main_folder, draft_folder = args.out / "model", args.out / "draft"
    for folder in (main_folder, draft_folder):
        shutil.rmtree(folder, ignore_errors=True)
    tokenizer = build_tokenizer(str(args.seed))
    save_tokenizer(tokenizer, main_folder)
    asked = {prompt_hash(q.asked) for q in held_out_questions(_seed(args), whole_words(tokenizer), args.per_kind)}

    def schedule(steps: int, share: float, learning_rate: float) -> Schedule:
        seconds = args.max_minutes * 60 * share
        return Schedule(steps, seconds, learning_rate, args.rows, args.length, args.workers)

    def batches(plan: Schedule, first: int) -> Batches:
        return Batches(main_folder / "tokenizer.json", str(args.seed), plan.rows, plan.length, plan.steps, first)

    plan = schedule(args.steps, 0.7, args.learning_rate)
    main = MAIN.build(device)
    done = train("main", main, learn_text, batches(plan, 0), plan, asked)
    save(main, MAIN, main_folder)
    teacher = main.eval().requires_grad_(False)
    draft_plan = schedule(args.steps // 2, 0.3, args.learning_rate * 1.5)
    draft = DRAFT.build(device)
    draft_done = train(
        "draft", draft, learn_from(_compiled(teacher)), batches(draft_plan, args.steps), draft_plan, asked
    )
    save(draft, DRAFT, draft_folder)
    leaked = done.leaked + draft_done.leaked
    if leaked:
        raise SystemExit(f"{leaked} held-out prompts were trained")
    return (
        f"Made by `python tools/train_demo_model.py --out src/quire/demo --steps {args.steps} "
        f"--max-minutes {args.max_minutes:g} --seed {args.seed}`\n"
        f"in {done.seconds:.0f} s for the model ({done.steps} steps, {done.tokens / 1e6:.0f} million tokens) and "
        f"{draft_done.seconds:.0f} s for the draft ({draft_done.steps} steps) on {_machine(device)}.\n"
        f"Of the held-out prompts, {leaked} occurred in training.\n"
    )


def _seed(args: argparse.Namespace) -> str:
    return f"{args.seed}/evaluation"


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder to write model/, draft/ and EVALUATION.md to")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--steps", type=int, default=6000, help="steps of the main model; the draft takes half as many")
    parser.add_argument("--max-minutes", type=float, default=60.0, help="end training, annealed, after this time")
    parser.add_argument("--rows", type=int, default=32, help="rows in a batch")
    parser.add_argument("--length", type=int, default=2048, help="tokens in a row")
    parser.add_argument("--learning-rate", type=float, default=2e-3)
    parser.add_argument(
        "--workers", type=int, default=max(0, (os.cpu_count() or 1) - 1), help="processes that write text"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--per-kind", type=int, default=200, help="held-out prompts asked of each kind")
    parser.add_argument("--show-wrong", type=int, default=0, help="wrong answers to print of each kind")
    parser.add_argument("--evaluate-only", action="store_true", help="train nothing; grade what --out holds")
    return parser.parse_args()


def _show_wrong(report: Report, most: int) -> None:
    shown: dict[str, int] = {}
    for one in report.wrong:
        row = one.question.row
        shown[row] = shown.get(row, 0) + 1
        if shown[row] <= most:
            print(f"[{row}] {one.question.text!r}\n   said {one.text!r}\n   want {one.question.exchange.answer!r}")


def main() -> None:
    """Train unless told not to, evaluate, and print the table last."""
    args = _arguments()
    device = torch.device(args.device)
    trained = "" if args.evaluate_only else run_training(args, device)
    report = evaluate(args.out / "model", args.out / "draft", device, _seed(args), args.per_kind)
    _show_wrong(report, args.show_wrong)
    text = describe(args.out, report, device, trained)
    if not args.evaluate_only:
        (args.out / "EVALUATION.md").write_text(text)
    print(text)
    size = _bytes_below(args.out)
    if size > SIZE_LIMIT:
        raise SystemExit(f"{args.out} holds {size:,} bytes, more than {SIZE_LIMIT:,}")


if __name__ == "__main__":
    main()
