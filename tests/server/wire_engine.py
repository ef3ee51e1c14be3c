"""An engine process that knows no model, at the real end of the real wire.

Run in place of `quire.launch.child`. Every step gives each running request one token, four of its prompt's tokens in a
circle, until `max_tokens` of them; a step takes QUIRE_FAKE_STEP_MS milliseconds (default 1), however many requests
there are. With QUIRE_FAKE_FAIL it never comes up.
"""

from __future__ import annotations

import math
import os
import sys
import threading
import time
from pathlib import Path

from quire.engine.process import Wire
from quire.messages import (
    AbortRequests,
    AddRequest,
    EngineStats,
    Outputs,
    Ready,
    Shutdown,
    StartFailed,
    TokenOutput,
    unpack_ids,
)

VOCAB_SIZE = 1 << 17
MAX_MODEL_LEN = 1 << 15
READY = Ready(
    device="fake",
    dtype="none",
    weights_bytes=0,
    kv_bytes=1 << 20,
    num_blocks=(1 << 20) + 1,
    block_size=16,
    max_model_len=MAX_MODEL_LEN,
    max_num_seqs=4096,
    max_num_batched_tokens=1 << 16,
    mixed_sizes=[],
    mixed_patience=0,
    mixed_alone=0,
    vocab_size=VOCAB_SIZE,
    seconds={"weights": 0.0},
)


class WireEngine:
    """Owns the requests that run."""

    def __init__(self, wire: Wire, step_s: float) -> None:
        self._wire = wire
        self._step_s = step_s
        self._requests: dict[int, tuple[list[int], int]] = {}
        self._num_tokens: dict[int, int] = {}
        self._num_steps = 0

    def run(self) -> None:
        """Serve until told to shut down."""
        self._wire.send(READY)
        next_step = time.perf_counter()
        while True:
            wait = max(next_step - time.perf_counter(), 0.0) if self._requests else math.inf
            for message in self._wire.receive(wait_s=wait):
                if isinstance(message, AddRequest):
                    self._requests[message.id] = (self._answer(message), message.params.max_tokens or 1)
                    self._num_tokens[message.id] = 0
                elif isinstance(message, AbortRequests):
                    for id_ in message.ids:
                        self._forget(id_)
                elif isinstance(message, Shutdown):
                    return
            now = time.perf_counter()
            if now >= next_step:
                next_step = max(next_step + self._step_s, now)
                self._step()

    @staticmethod
    def _answer(message: AddRequest) -> list[int]:
        """From the middle, where a chat's template has no special tokens."""
        prompt = list(unpack_ids(message.prompt))
        return prompt[len(prompt) // 3 :][:4]

    def _step(self) -> None:
        outputs = []
        for id_, (answer, most) in self._requests.items():
            count = self._num_tokens[id_] = self._num_tokens[id_] + 1
            token = answer[(count - 1) % len(answer)]
            outputs.append(TokenOutput(id_, [token], "length" if count == most else None))
        for output in outputs:
            if output.finish_reason is not None:
                self._forget(output.id)
        self._num_steps += 1
        stats = EngineStats(num_running=len(self._requests), num_steps=self._num_steps)
        self._wire.send(Outputs(outputs, stats))

    def _forget(self, id_: int) -> None:
        self._requests.pop(id_, None)
        self._num_tokens.pop(id_, None)


def main() -> None:
    """Entry point: the folder of the sockets, and how many API processes there are."""
    sys.stdin.buffer.readline()

    def die_with_parent() -> None:
        while os.read(0, 1):
            pass
        os._exit(3)

    threading.Thread(target=die_with_parent, daemon=True).start()
    wire = Wire(Path(sys.argv[1]), *map(int, sys.argv[2:]))
    if "QUIRE_FAKE_FAIL" in os.environ:
        wire.send(StartFailed("No room for the KV cache: lower --max-model-len to 77.", "config"))
        wire.close()
        sys.exit(1)
    WireEngine(wire, float(os.environ.get("QUIRE_FAKE_STEP_MS", "1")) / 1e3).run()
    wire.close()


if __name__ == "__main__":
    main()
