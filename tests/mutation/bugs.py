"""The bugs that `tools/mutate.py` plants, one at a time: each a small mistake of the kind that really happens.

A bug replaces a piece of text that stands in its file exactly once. Its tests are those that run with every change.
"""

from __future__ import annotations

from typing import NamedTuple

SIM = "tests/sim tests/engine/test_scheduler.py tests/engine/test_pool.py"
SERVER = "tests/server/test_errors.py tests/server/test_bad_input.py tests/server/test_answers.py"
TEXT = "tests/frontend/test_detokenizer.py tests/frontend/test_stops.py tests/frontend/test_streams.py"
SERVICE = "tests/frontend/test_service.py tests/frontend/test_validate.py tests/test_params.py"
SAMPLING = "tests/worker/test_sampling.py"
PICTURES = "tests/engine/test_encoder.py tests/frontend/test_picture_files.py"


class Bug(NamedTuple):
    """What is wrong, in which file below src/quire, the text that is replaced, and the tests that should notice."""

    what: str
    file: str
    old: str
    new: str
    tests: str


BUGS: tuple[Bug, ...] = (
    # ---- scheduler
    Bug(
        "a finished request keeps its blocks",
        "engine/scheduler/scheduler.py",
        "        self._kv.release(request)\n        self._free_rows.append(request.row)",
        "        self._free_rows.append(request.row)",
        SIM,
    ),
    Bug(
        "a finished request keeps its row",
        "engine/scheduler/scheduler.py",
        "        self._free_rows.append(request.row)\n",
        "",
        SIM,
    ),
    Bug(
        "a preempted request keeps its place in the step's count",
        "engine/scheduler/scheduler.py",
        "        self._leave_device(request)\n        request.num_preemptions += 1\n        self._num_preemptions += 1",
        "        self._leave_device(request)\n        self._num_preemptions += 1",
        SIM,
    ),
    Bug(
        "blocks are cached before the device has written them",
        "engine/scheduler/scheduler.py",
        "self._kv.remember(request, share.end)",
        "self._kv.remember(request, request.num_computed)",
        SIM,
    ),
    Bug(
        "the token budget is not lowered by what was given",
        "engine/scheduler/scheduler.py",
        "                    self._run(request, count, plan, shares)\n                    budget -= count",
        "                    self._run(request, count, plan, shares)",
        SIM,
    ),
    Bug(
        "the best request is preempted instead of the last",
        "engine/scheduler/scheduler.py",
        "self._preempt(self._victim(request, self._running[index:]))",
        "self._preempt(self._running[0])",
        SIM,
    ),
    Bug(
        "a row is not written anew after a failed step",
        "engine/scheduler/scheduler.py",
        "                request.stale = True\n",
        "",
        "tests/sim/test_failing_steps.py",
    ),
    Bug(
        "tokens of a failed step stay pending",
        "engine/scheduler/scheduler.py",
        "            request.num_pending -= share.samples\n",
        "",
        "tests/sim/test_failing_steps.py",
    ),
    Bug(
        "the first of a failed step is blamed unheard",
        "engine/trial.py",
        "        if len(step.shares) == 1:",
        "        if suspects:",
        "tests/sim/test_failing_steps.py",
    ),
    Bug(
        "a prompt of exactly the model's length is taken",
        "engine/scheduler/scheduler.py",
        "if request.num_prompt >= self._max_model_len:",
        "if request.num_prompt > self._max_model_len:",
        SIM,
    ),
    Bug(
        "length is one token late",
        "engine/scheduler/request.py",
        'return "length" if self.known >= self.max_tokens else None',
        'return "length" if self.known > self.max_tokens else None',
        SIM,
    ),
    Bug(
        "min_tokens is one token short",
        "engine/scheduler/request.py",
        "if token in self.stop_token_ids and self.known > self.min_tokens:",
        "if token in self.stop_token_ids and self.known >= self.min_tokens:",
        SIM,
    ),
    Bug(
        "siblings are let in before the prompt is computed",
        "engine/scheduler/siblings.py",
        "if self._first.get(request.group) is not request or num_tokens < self._needed(request):",
        "if self._first.get(request.group) is not request:",
        SIM,
    ),
    # ---- block pool and prefix cache
    Bug(
        "a block more than there is room for",
        "engine/kv/manager.py",
        "        if needed > self.pool.num_free:\n            return None",
        "        if needed > self.pool.num_free + 1:\n            return None",
        SIM,
    ),
    Bug(
        "one block too few for a length that is not a multiple",
        "engine/kv/manager.py",
        "return -(-num_tokens // self.block_size)",
        "return max(1, num_tokens // self.block_size)",
        SIM,
    ),
    Bug(
        "a hit takes no reference",
        "engine/kv/pool.py",
        "            del self._free[block]\n        self._counts[block] += 1",
        "            del self._free[block]\n        self._counts[block] = 1",
        SIM,
    ),
    Bug(
        "an evicted block stays in the index",
        "engine/kv/pool.py",
        "            self._forget(block)\n            self._counts[block] = 1",
        "            self._counts[block] = 1",
        SIM,
    ),
    Bug(
        "token ids are not compared on a hit",
        "engine/kv/pool.py",
        "if entry is None or entry.token_bytes != token_bytes or entry.parent != parent:",
        "if entry is None or entry.parent != parent:",
        SIM,
    ),
    Bug(
        "the salt is left out of the hash",
        "engine/kv/hashing.py",
        "return sha256(salt.encode()).digest()",
        'return sha256(b"").digest()',
        SIM + " tests/e2e/test_serve.py",
    ),
    Bug(
        "the last token of a prompt comes from the cache",
        "engine/scheduler/request.py",
        "        return self.known - 1\n",
        "        return self.known\n",
        SIM,
    ),
    # ---- deadlines, tenants, the line
    Bug(
        "a request that has begun ends at its queue deadline",
        "engine/scheduler/deadlines.py",
        "return request is not None and request.started is None",
        "return request is not None",
        "tests/engine/test_tenants.py tests/sim",
    ),
    Bug(
        "what waits too long is never ended",
        "engine/scheduler/deadlines.py",
        "while self._heap and self._heap[0][0] <= now:",
        "while self._heap and self._heap[0][0] > now:",
        "tests/engine/test_tenants.py tests/sim",
    ),
    Bug(
        "a heavy tenant is never above its share",
        "engine/scheduler/tenants.py",
        "if count > share and self._num_rows.get(other, 0) > 1]",
        "if count > 2 * share and self._num_rows.get(other, 0) > 1]",
        "tests/engine/test_tenants.py",
    ),
    Bug(
        "the line holds one request too many",
        "server/admission.py",
        "if room < 0 or (self.apart and num_in > running and",
        "if room < -1 or (self.apart and num_in > running and",
        "tests/server/test_admission.py",
    ),
    # ---- text
    Bug(
        "a stop string at the very beginning of a piece is missed",
        "frontend/stops.py",
        "        if self._state == 0 and automaton.first.isdisjoint(text):",
        "        if self._state == 0 and automaton.first.isdisjoint(text[1:]):",
        TEXT,
    ),
    Bug(
        "the stop string is part of the text",
        "frontend/stops.py",
        "buffer[: end if self._include_stop else end - len(stop)]",
        "buffer[: end if not self._include_stop else end - len(stop)]",
        TEXT,
    ),
    Bug(
        "what was held back is lost at the end",
        "frontend/stops.py",
        '        rest, self._held, self._state = self._held, "", 0\n        return rest',
        '        self._held, self._state = "", 0\n        return ""',
        TEXT,
    ),
    Bug(
        "the text of the end token is shown",
        "frontend/detokenizer.py",
        "token_ids[:-1] if stop_token and not self._include_stop else token_ids",
        "token_ids",
        TEXT + " tests/frontend/test_service.py",
    ),
    Bug(
        "a client that goes away leaves its request running",
        "frontend/streams.py",
        "            if self._abort:\n                self._abort(self._id)\n            self._new = Delta",
        "            self._new = Delta",
        TEXT + " tests/server/test_disconnect.py",
    ),
    # ---- the door
    Bug(
        "a token id of the vocabulary's size is taken",
        "frontend/fitting.py",
        "if low < 0 or high >= self.vocab_size:",
        "if low < 0 or high > self.vocab_size:",
        SERVICE,
    ),
    Bug(
        "negative token ids are taken",
        "frontend/fitting.py",
        "if low < 0 or high >= self.vocab_size:",
        "if high >= self.vocab_size:",
        SERVICE,
    ),
    Bug(
        "temperature may be negative",
        "ranges.py",
        '"temperature": (lambda v: 0 <= v <= 1e6',
        '"temperature": (lambda v: v <= 1e6',
        SERVICE,
    ),
    Bug(
        "a prompt that fills the context leaves no room for an answer",
        "frontend/fitting.py",
        "        if room < 1:",
        "        if room < 0:",
        SERVICE,
    ),
    Bug(
        "the key is compared by its first characters",
        "server/keys.py",
        "return hashlib.sha256(key.encode",
        "return hashlib.sha256(key[:3].encode",
        "tests/server/test_keys.py",
    ),
    Bug(
        "health opens all that begins like it",
        "server/auth.py",
        'scope["path"] in OPEN_PATHS',
        'scope["path"].startswith(("/health", "/v1/models"))',
        SERVER,
    ),
    Bug(
        "an internal error's text reaches the client",
        "server/errors.py",
        'message = f"Internal error; the server',
        'message = f"{error} Internal error; the server',
        SERVER,
    ),
    Bug(
        "a body of any size is read",
        "server/limits.py",
        "        if size > MAX_BODY_BYTES:\n            raise _too_large()",
        "        pass",
        SERVER,
    ),
    # ---- sampling
    Bug(
        "an end token is allowed one token too early",
        "worker/sampling/min_tokens.py",
        "early = (batch.positions < self._until.of(batch.rows))[sample]",
        "early = (batch.positions < self._until.of(batch.rows) - 1)[sample]",
        SAMPLING,
    ),
    Bug(
        "the presence penalty counts the prompt",
        "worker/sampling/penalties.py",
        "[:, None] * (count > 0)",
        "[:, None] * (seen > 0)",
        SAMPLING,
    ),
    Bug(
        "siblings share one seed",
        "frontend/candidates.py",
        "spread = (seed + i * _SEED_STEP) & (2**64 - 1)",
        "spread = seed & (2**64 - 1)",
        SERVICE + " tests/e2e/test_serve.py tests/e2e/test_llm.py",
    ),
    # ---- what keeps the service up
    Bug(
        "one output that cannot be read loses those beside it",
        "frontend/client.py",
        "            except Exception as error:  # noqa: BLE001 - it ends this request, and nobody else\n"
        "                self._drop(stream, output, error)",
        "            except ZeroDivisionError as error:\n                self._drop(stream, output, error)",
        "tests/frontend/test_client.py",
    ),
    Bug(
        "a heart that stands still is not noticed",
        "frontend/watchdog.py",
        "still + passed if count and count == seen else 0.0",
        "still + passed if count and count != seen else 0.0",
        "tests/frontend/test_client.py",
    ),
    Bug(
        "restarts are not counted",
        "server/supervisor.py",
        "        self._restarts.append(self._clock())\n",
        "",
        "tests/server/test_supervisor.py",
    ),
    # ---- pictures
    Bug(
        "a picture's blocks go by their token ids alone",
        "engine/kv/manager.py",
        "        return data + picture_marks(request.pictures, start, end) if request.pictures else data",
        "        return data",
        PICTURES,
    ),
    Bug(
        "a picture keeps its slot after its last position",
        "engine/scheduler/encoder.py",
        "            if last == picture.end:\n                self._leaving.append((request.id, picture.start))\n",
        "",
        PICTURES,
    ),
    Bug(
        "the vectors of a failed step are taken for good",
        "engine/scheduler/encoder.py",
        "            if key is not None and key[1] == new.picture.digest:",
        "            if key is None:",
        PICTURES,
    ),
    Bug(
        "pictures are shared across salts",
        "engine/scheduler/encoder.py",
        "        key = salt, picture.digest\n",
        '        key = "", picture.digest\n',
        PICTURES,
    ),
    Bug(
        "a second part of a picture begins with its first vector",
        "engine/scheduler/encoder.py",
        "PlacedPicture(request.row, first, first - picture.start,",
        "PlacedPicture(request.row, first, 0,",
        PICTURES,
    ),
    Bug(
        "the header's size is not looked at",
        "frontend/media/decode.py",
        "    _check_size(source, width, height, max_pixels)\n    try:",
        "    try:",
        PICTURES,
    ),
    Bug(
        "a picture is not turned as its EXIF data says",
        "frontend/media/decode.py",
        "    if image.getexif().get(ORIENTATION, 1) != 1:",
        "    if image.getexif().get(ORIENTATION, 1) == 0:",
        PICTURES,
    ),
)
