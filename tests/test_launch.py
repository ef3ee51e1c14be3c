"""The composition root: what becomes of an error in the loop or on the device."""

from __future__ import annotations

import math
import os
import threading
from pathlib import Path

import pytest

from quire.engine.core import BrokenEngine, EngineCore
from quire.engine.executors import InlineExecutor, ThreadExecutor
from quire.engine.kv.manager import KVManager
from quire.engine.kv.pool import BlockPool
from quire.engine.process import QUIET_S, EngineProcess, Wire
from quire.engine.scheduler.scheduler import Scheduler
from quire.launch.child import _run_beside_device
from quire.messages import AddRequest, Shutdown, pack_ids
from quire.params import SamplingParams


class BrokenWorker:
    """A device that is lost at its first forward."""

    def judge(self, error: Exception) -> str:
        return "device"

    def forward(self, plan: object) -> None:
        raise RuntimeError("the device is gone")

    def sample(self, plan: object, masks: object) -> None:
        raise AssertionError("nobody waits for this any more")


class ScriptedWire:
    """Gives out one batch of messages, then asks to shut down."""

    def __init__(self, *messages: object) -> None:
        self._batches = [list(messages), [Shutdown()]]
        self.sent: list[object] = []
        self.waits: list[float] = []

    def receive(self, *, wait_s: float, others: object = ()) -> list[object]:
        self.waits.append(wait_s)
        return self._batches.pop(0) if self._batches else [Shutdown()]

    def send(self, message: object) -> None:
        self.sent.append(message)


def scheduler() -> Scheduler:
    return Scheduler(KVManager(BlockPool(9), 4), max_num_seqs=2, max_num_batched_tokens=8, max_model_len=16)


def run_beside_device(wire: ScriptedWire) -> None:
    executor = ThreadExecutor(BrokenWorker())
    _run_beside_device(executor, EngineCore(scheduler(), executor), wire, os.sched_getaffinity(0))


def test_a_device_error_ends_the_process_and_nothing_hangs() -> None:
    wire = ScriptedWire(AddRequest(0, pack_ids([1, 2]), SamplingParams()))
    wire._batches.insert(1, [])  # a turn more, in which the results are fetched
    with pytest.raises(BrokenEngine, match="the device is gone"):
        run_beside_device(wire)
    assert not [t for t in threading.enumerate() if t.name == "quire-engine"]


def test_shutdown_returns() -> None:
    run_beside_device(ScriptedWire())


def test_spare_time_is_used_after_a_moment_of_quiet() -> None:
    class Preparing(BrokenWorker):
        left = 3

        def prepare(self) -> bool:
            self.left -= 1
            return self.left >= 0

    wire = ScriptedWire()
    wire._batches = [[], [], [], [], [Shutdown()]]
    EngineProcess(EngineCore(scheduler(), InlineExecutor(Preparing())), wire).run()
    assert wire.waits == [QUIET_S, 0, 0, 0, math.inf], "a moment, then one thing after the other, then without end"


def test_what_is_no_message_of_ours_is_dropped(tmp_path: Path) -> None:
    """Pickles or noise on the socket change nothing: only typed records are read."""
    import pickle

    import zmq

    context = zmq.Context()
    to_engine, from_engine = context.socket(zmq.PUSH), context.socket(zmq.PULL)
    to_engine.bind(f"ipc://{tmp_path / 'in0'}")
    from_engine.bind(f"ipc://{tmp_path / 'out0'}")
    wire = Wire(tmp_path)
    import msgspec

    for data in (pickle.dumps(print), b"\xff" * 100, b"", msgspec.msgpack.encode(Shutdown())):
        to_engine.send(data)
    received: list[object] = []
    while not received:
        received = wire.receive(wait_s=math.inf)
    assert [type(message) for message in received] == [Shutdown]
    wire.close()
    context.destroy(linger=0)
