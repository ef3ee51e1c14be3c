"""What the engine process runs: builds worker, scheduler and loop from the settings, then serves."""

from __future__ import annotations

import faulthandler
import logging
import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from quire.checkpoint import ModelFacts, read_facts
from quire.config import EngineConfig
from quire.engine.core import BrokenEngine, EngineCore, one_line
from quire.engine.executors import InlineExecutor, ThreadExecutor
from quire.engine.grammar.pace import Pace
from quire.engine.kv.manager import KVManager
from quire.engine.kv.pool import BlockPool
from quire.engine.process import EngineProcess, Wire
from quire.engine.scheduler.encoder import EncoderBudget
from quire.engine.scheduler.limits import Limit, LongPromptCap, MixedStep
from quire.engine.scheduler.policy import POLICIES
from quire.engine.scheduler.scheduler import Scheduler
from quire.errors import ConfigError, QuireError, StartupError
from quire.launch.constraints import build_constraints
from quire.launch.cores import may_run_on_cpu
from quire.lifeline import die_with_parent
from quire.messages import EngineFailed, Progress, Ready, StartFailed
from quire.observability import logs
from quire.observability.heartbeat import FILE, Heartbeat
from quire.sources import model_folder
from quire.worker.kernels import native_build

if TYPE_CHECKING:
    from quire.worker.worker import Worker, WorkerFacts

log = logging.getLogger("quire.engine")


def main() -> None:
    """Entry point; exit code 0 only after an orderly shutdown."""
    folder = Path(sys.argv[1])
    config = msgspec.json.decode(_read_line(), type=EngineConfig)
    logs.set_up(config.operation.log_format, level=os.environ.get("QUIRE_LOG_LEVEL", "WARNING"))
    faulthandler.enable()
    faulthandler.register(signal.SIGUSR1, all_threads=True)  # what the parent asks of a hung engine
    die_with_parent()
    wire = Wire(folder, int(sys.argv[2]))
    cores = os.sched_getaffinity(0)  # before OpenMP binds this thread to one of them
    threading.Thread(target=_watch_lifeline, name="quire-lifeline", daemon=True).start()
    try:
        worker, ready, facts = _build_worker(config, wire)
        pace = Pace()
        scheduler = _build_scheduler(config, ready, pace, worker.facts)
        constraints = build_constraints(config, facts, ready, scheduler, pace)
    except Exception as error:  # noqa: BLE001 - every cause of a failed start goes to the parent
        _report(error, wire)
        wire.close()
        sys.exit(1)
    wire.send(ready)
    beat = Heartbeat(folder / FILE)
    try:
        if worker.device.type == "cpu":
            executor = ThreadExecutor(worker)
            _run_beside_device(executor, EngineCore(scheduler, executor, constraints), wire, cores, beat)
        else:
            EngineProcess(EngineCore(scheduler, InlineExecutor(worker), constraints), wire, beat).run()
    except Exception as error:  # noqa: BLE001 - whatever it is, the engine cannot go on
        _give_up(error, wire)
    constraints.close()
    wire.close()


def _give_up(error: Exception, wire: Wire) -> None:
    """Say why, and end now: a device that is lost may keep its own clean-up from ever ending."""
    log.critical("the engine cannot go on", exc_info=error)
    if isinstance(error, BrokenEngine):
        wire.send(EngineFailed(error.message, error.detail))
    else:
        wire.send(EngineFailed("its loop failed", one_line(error)))
    wire.close()
    sys.stderr.flush()
    os._exit(1)


def _run_beside_device(
    executor: ThreadExecutor, core: EngineCore, wire: Wire, cores: set[int], beat: Heartbeat | None = None
) -> None:
    """The loop in a thread, the device in this one; an error in the loop ends the process."""
    errors: list[BaseException] = []

    def loop() -> None:
        os.sched_setaffinity(0, cores)  # not the one core that this thread's maker is bound to
        try:
            EngineProcess(core, wire, beat).run()
        except BaseException as error:  # noqa: BLE001 - raised below, in the main thread
            errors.append(error)
        finally:
            executor.close()

    thread = threading.Thread(target=loop, name="quire-engine")
    thread.start()
    executor.serve()
    thread.join()
    if errors:
        raise errors[0]


def _build_worker(config: EngineConfig, wire: Wire) -> tuple[Worker, Ready, ModelFacts]:
    started = time.monotonic()
    if may_run_on_cpu(config) and config.model.cpu_kernels != "torch":
        native_build.current()  # compiles, if it must, while torch is imported and weights are read
    folder = model_folder(config.model, weights=True)
    facts = read_facts(folder, config.model.hf_overrides)
    resolved = time.monotonic()
    from quire.worker.worker import Worker  # the first import of torch, a second or two

    imported = time.monotonic()
    worker = Worker(config, folder, facts, lambda stage, done, total: wire.send(Progress(stage, done, total)))
    found = worker.facts
    seconds = {"resolve": resolved - started, "import": imported - resolved, **found.seconds}
    ready = Ready(
        device=found.device,
        dtype=found.dtype,
        weights_bytes=found.weights_bytes,
        kv_bytes=found.layout.num_blocks * found.layout.bytes_per_block,
        num_blocks=found.layout.num_blocks,
        block_size=found.layout.block_size,
        max_model_len=found.max_model_len,
        max_num_seqs=found.sizes.max_num_seqs,
        max_num_batched_tokens=found.sizes.max_num_batched_tokens,
        mixed_sizes=list(found.sizes.mixed_sizes),
        mixed_patience=found.sizes.mixed_patience,
        mixed_alone=found.sizes.mixed_alone,
        vocab_size=facts.vocab_size,
        seconds=seconds,
    )
    return worker, ready, facts


def _build_scheduler(config: EngineConfig, ready: Ready, pace: Pace, found: WorkerFacts) -> Scheduler:
    threshold = config.scheduler.long_prefill_token_threshold
    limits: list[Limit] = []
    if threshold:
        limits.append(LongPromptCap(threshold))
    if ready.mixed_sizes:
        limits.append(MixedStep(tuple(ready.mixed_sizes), ready.mixed_patience, ready.mixed_alone))
    encoders = () if found.pictures is None else (EncoderBudget(found.pictures.num_slots, found.pictures.per_step),)
    limits += [pace, *encoders]
    pool = BlockPool(ready.num_blocks)
    return Scheduler(
        KVManager(pool, ready.block_size, prefix_caching=config.cache.enable_prefix_caching),
        max_num_seqs=ready.max_num_seqs,
        max_num_batched_tokens=ready.max_num_batched_tokens,
        max_model_len=ready.max_model_len,
        policy=POLICIES[config.scheduler.scheduling_policy],
        limits=tuple(limits),
        riders=encoders,
        chunked_prefill=config.scheduler.enable_chunked_prefill,
    )


def _report(error: Exception, wire: Wire) -> None:
    """Tell the parent why the start failed; our own errors as they are, others with their traceback in the log."""
    if isinstance(error, ConfigError):
        wire.send(StartFailed(error.message, "config"))
    elif isinstance(error, StartupError):
        wire.send(StartFailed(error.message, "startup"))
    else:
        log.error("the engine could not start", exc_info=error)
        detail = error.message if isinstance(error, QuireError) else f"{type(error).__name__}: {error}"
        wire.send(StartFailed(detail, "internal"))


def _read_line() -> bytes:
    """One line of standard input, unbuffered: a buffer's lock would be held by the lifeline thread at exit."""
    line = b""
    while not line.endswith(b"\n"):
        if not (piece := os.read(0, 65536)):
            os._exit(3)  # the parent is gone
        line += piece
    return line


def _watch_lifeline() -> None:
    """Standard input ends when the parent does, however it dies."""
    while os.read(0, 1):
        pass
    os._exit(3)


if __name__ == "__main__":
    main()
