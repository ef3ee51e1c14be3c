"""What the HTTP front end costs: `quire serve` around a fake engine, under a client that only counts.

    client (this process)  ── HTTP, loopback ──►  quire serve (1..N API processes)  ── the real wire ──►  fake engine

Reported per case: CPU time of the API processes (user + system, from the kernel's counters) divided by chunks or by
requests, and the rates. The engine makes one token per request and step; where the API cannot follow, it puts several
tokens into one chunk, so `chunks/tokens` below 1 marks saturation.

    python benchmarks/frontend.py                       # all cases, one API process
    python benchmarks/frontend.py --api-server-count 2 --cases chunks
"""

from __future__ import annotations

import argparse
import json
import os
import select
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import psutil

ROOT = Path(__file__).parents[1]
SERVER = ROOT / "tests" / "server" / "serve_wire.py"


def write_model(folder: Path, vocab_size: int = 16_000) -> None:
    """A checkpoint without weights: a byte-level BPE learned from Python's own library, and a Llama's config."""
    import tokenizers
    from tokenizers import decoders, models, pre_tokenizers, trainers

    core = tokenizers.Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    core.train_from_iterator([path.read_text() for path in library()[:150]], trainer)
    core.add_special_tokens(["<s>", "<|end|>", "<|user|>", "<|assistant|>"])
    core.save(str(folder / "tokenizer.json"))
    template = (
        "{{ bos_token }}{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}<|end|>{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>{% endif %}"
    )
    config = {"bos_token": "<s>", "eos_token": "<|end|>", "chat_template": template}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    model = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": core.get_vocab_size(),
        "max_position_embeddings": 32768,
        "eos_token_id": core.token_to_id("<|end|>"),
    }
    (folder / "config.json").write_text(json.dumps(model))


def library() -> list[Path]:
    """Sources of the standard library: text that is on every machine."""
    found = sorted(Path(os.__file__).parent.glob("*.py"))
    return [path for path in found if path.stat().st_size > 4_000]


def text_of(folder: Path, num_tokens: int) -> str:
    """Prose of so many tokens, from the doc strings of the library."""
    import tokenizers

    core = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    text = (Path(os.__file__).parent / "argparse.py").read_text()
    ids = core.encode(text).ids[:num_tokens]
    return str(core.decode(ids))


@contextmanager
def serving(folder: Path, step_ms: float, flags: list[str]) -> Iterator[tuple[int, list[psutil.Process]]]:
    """(port, API processes) of a server around the fake engine."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
    paths = [str(ROOT / "src"), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "QUIRE_FAKE_STEP_MS": str(step_ms)}
    command = [sys.executable, str(SERVER), "serve", str(folder), "--port", str(port), *flags]
    command += ["--served-model-name", "m"]
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(command, env=environment, stderr=log)
        try:
            wait_until_healthy(port, process)
            own = psutil.Process(process.pid)
            others = [child for child in own.children() if "quire.server.member" in child.cmdline()]
            yield port, [own, *others]
        finally:
            process.terminate()
            process.wait(20)
            log.seek(0)
            if process.returncode:
                sys.stderr.write(log.read().decode())


def wait_until_healthy(port: int, process: subprocess.Popen[bytes]) -> None:
    """Wait for 200 from /health."""
    for _ in range(600):
        if process.poll() is not None:
            raise SystemExit("the server did not start")
        try:
            with socket.create_connection(("127.0.0.1", port), timeout=1) as sock:
                sock.sendall(b"GET /health HTTP/1.1\r\nhost: localhost\r\n\r\n")
                if b" 200 " in sock.recv(4096):
                    return
        except OSError:
            pass
        time.sleep(0.05)
    raise SystemExit("the server is not healthy")


def post(path: str, body: dict[str, object]) -> bytes:
    """A request as bytes."""
    data = json.dumps({"model": "m", **body}).encode()
    head = f"POST {path} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
    head += f"content-length: {len(data)}\r\n\r\n"
    return head.encode() + data


@dataclass
class Count:
    """What came in while counting was on."""

    chunks: int = 0
    requests: int = 0
    bytes: int = 0
    latencies: list[float] = field(default_factory=list)


class Client:
    """Keeps `concurrency` connections busy with the same request and counts what comes back."""

    def __init__(self, port: int, request: bytes, concurrency: int) -> None:
        self._request = request
        self._poll = select.epoll()
        self._socks: dict[int, socket.socket] = {}
        self._sent: dict[int, float] = {}
        self._left: dict[int, int] = {}
        for _ in range(concurrency):
            sock = socket.create_connection(("127.0.0.1", port))
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._socks[sock.fileno()] = sock
            self._poll.register(sock.fileno(), select.EPOLLIN)
            self._send(sock)

    def _send(self, sock: socket.socket) -> None:
        self._sent[sock.fileno()] = time.perf_counter()
        sock.sendall(self._request)

    def run(self, seconds: float) -> Count:
        """Count for so long."""
        count, end = Count(), time.perf_counter() + seconds
        while (now := time.perf_counter()) < end:
            for fd, _ in self._poll.poll(end - now):
                sock = self._socks[fd]
                data = sock.recv(1 << 18)
                if not data:
                    raise SystemExit("the server closed a connection")
                if data.startswith(b"HTTP/1.1 ") and not data.startswith(b"HTTP/1.1 200"):
                    raise SystemExit(data.decode())
                count.bytes += len(data)
                count.chunks += data.count(b"data: ")
                if fd in self._sent:
                    self._first(fd, data, count)
                if self._ended(fd, data):
                    count.requests += 1
                    self._send(sock)
        return count

    def _first(self, fd: int, data: bytes, count: Count) -> None:
        """The first bytes with content: text, or a whole answer."""
        if b'"content":"' not in data.replace(b'"content":""', b"") and b'"text":"' not in data:
            return
        count.latencies.append(time.perf_counter() - self._sent.pop(fd))

    def _ended(self, fd: int, data: bytes) -> bool:
        if b"data: [DONE]" in data:
            return True
        left = self._left.pop(fd, None)
        if left is None:
            head, separator, body = data.partition(b"\r\n\r\n")
            at = head.find(b"content-length: ")
            if not separator or at < 0:
                return False
            left = int(head[at + 16 :].split(b"\r\n")[0]) - len(body)
        else:
            left -= len(data)
        if left > 0:
            self._left[fd] = left
        return left == 0

    def close(self) -> None:
        """Leave."""
        for sock in self._socks.values():
            sock.close()


def cpu_seconds(processes: list[psutil.Process]) -> float:
    """User and system time of all of them, from the scheduler's nanoseconds."""
    total = 0.0
    for process in processes:
        for thread in Path(f"/proc/{process.pid}/task").iterdir():
            total += int((thread / "schedstat").read_text().split()[0]) / 1e9
    return total


def measure(port: int, processes: list[psutil.Process], request: bytes, concurrency: int, seconds: float) -> Row:
    """One case: warm up, then count and time."""
    client = Client(port, request, concurrency)
    client.run(1.0)
    before, start = cpu_seconds(processes), time.perf_counter()
    count = client.run(seconds)
    took = time.perf_counter() - start
    used = cpu_seconds(processes) - before
    client.close()
    time.sleep(0.2)
    return Row(count, took, used)


@dataclass
class Row:
    """A measured case."""

    count: Count
    seconds: float
    cpu: float

    def percentile(self, share: float) -> float:
        """Of the time to the first content, in milliseconds."""
        found = sorted(self.count.latencies)
        return 1e3 * found[int(share * (len(found) - 1))] if found else float("nan")


def bare_send_us(num_socks: int = 256) -> float:
    """The yardstick: CPU time of handing a chunk's bytes to the kernel, with nothing around it, on this machine now."""
    listener = socket.create_server(("127.0.0.1", 0), backlog=num_socks)
    reader = subprocess.Popen([sys.executable, "-c", _READER, str(listener.getsockname()[1]), str(num_socks)])
    socks = [listener.accept()[0] for _ in range(num_socks)]
    data = b"x" * 260
    start = time.process_time()
    for _ in range(200):
        for sock in socks:
            sock.send(data)
        time.sleep(0.005)
    took = time.process_time() - start
    for sock in (*socks, listener):
        sock.close()
    reader.wait()
    return took / 200 / num_socks * 1e6


_READER = """
import select, socket, sys
poll, socks = select.epoll(), {}
for _ in range(int(sys.argv[2])):
    sock = socket.create_connection(("127.0.0.1", int(sys.argv[1])))
    socks[sock.fileno()] = sock
    poll.register(sock.fileno(), select.EPOLLIN)
while socks:
    for fd, _ in poll.poll():
        if not socks[fd].recv(1 << 16):
            poll.unregister(fd)
            socks.pop(fd).close()
"""


def chunk_cases(folder: Path, flags: list[str], seconds: float, offers: list[tuple[int, float]]) -> None:
    """Long streams: what a chunk costs."""
    print(
        "| API | streams | offered chunks/s | chunks/s | CPU us/chunk | a bare send | chunks/tokens | API cores busy |"
    )
    print("|---|---|---|---|---|---|---|---|")
    for streams, step_ms in offers:
        with serving(folder, step_ms, flags) as (port, processes):
            for name, request in (
                ("chat", post("/v1/chat/completions", {**_CHAT, "max_tokens": 30_000, "stream": True})),
                ("completions", post("/v1/completions", {**_TEXT, "max_tokens": 30_000, "stream": True})),
            ):
                row = measure(port, processes, request, streams, seconds)
                rate, offered = row.count.chunks / row.seconds, streams / step_ms * 1e3
                print(
                    f"| {name} | {streams} | {offered:,.0f} | {rate:,.0f} | {row.cpu / row.count.chunks * 1e6:.1f} "
                    f"| {bare_send_us():.1f} | {min(rate / offered, 1):.2f} | {row.cpu / row.seconds:.2f} |",
                    flush=True,
                )


_CHAT: dict[str, object] = {"messages": [{"role": "user", "content": "Tell me a story about a fox and a bear."}]}
_TEXT: dict[str, object] = {"prompt": "Once upon a time there was a fox that met a bear."}


def request_cases(folder: Path, flags: list[str], seconds: float, concurrency: int) -> None:
    """Short answers: what a request costs."""
    long_text = text_of(folder, 512)
    long_chat = {"messages": [{"role": "user", "content": long_text}]}
    cases = [
        ("GET /health", b"GET /health HTTP/1.1\r\nhost: localhost\r\n\r\n"),
        ("completions, 12 tokens in, 1 out", post("/v1/completions", {**_TEXT, "max_tokens": 1})),
        ("completions, 12 in, 8 out, stream", post("/v1/completions", {**_TEXT, "max_tokens": 8, "stream": True})),
        ("chat, 12 in, 1 out", post("/v1/chat/completions", {**_CHAT, "max_tokens": 1})),
        ("completions, 512 in as text, 1 out", post("/v1/completions", {"prompt": long_text, "max_tokens": 1})),
        ("completions, 512 in as ids, 1 out", post("/v1/completions", {"prompt": [9] * 512, "max_tokens": 1})),
        ("chat, 512 in, 1 out", post("/v1/chat/completions", {**long_chat, "max_tokens": 1})),
    ]
    print(f"| request, {concurrency} connections | requests/s | CPU us/request | TTFT p50, ms | p99 |")
    print("|---|---|---|---|---|")
    with serving(folder, 0.5, flags) as (port, processes):
        for name, request in cases:
            row = measure(port, processes, request, concurrency, seconds)
            print(
                f"| {name} | {row.count.requests / row.seconds:,.0f} | {row.cpu / max(row.count.requests, 1) * 1e6:.0f}"
                f" | {row.percentile(0.5):.2f} | {row.percentile(0.99):.2f} |",
                flush=True,
            )


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", choices=("all", "chunks", "requests"), default="all")
    parser.add_argument("--api-server-count", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--concurrency", type=int, default=16)
    parser.add_argument("--offers", default="1:1,64:4,256:16,256:10,256:6", help="streams:step_ms, ...")
    arguments = parser.parse_args()
    flags = []
    if arguments.api_server_count > 1:
        flags = ["--api-server-count", str(arguments.api_server_count)]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_model(folder)
        if arguments.cases in ("all", "chunks"):
            offers = [(int(s), float(ms)) for s, ms in (offer.split(":") for offer in arguments.offers.split(","))]
            chunk_cases(folder, flags, arguments.seconds, offers)
        if arguments.cases in ("all", "requests"):
            request_cases(folder, flags, arguments.seconds, arguments.concurrency)
            request_cases(folder, flags, arguments.seconds, 1)


if __name__ == "__main__":
    main()
