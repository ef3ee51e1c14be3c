"""Hostile pictures against a real server with a vision model: each is a 400 that says why, and nobody else notices."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from typing import Any

import httpx
import llava_checkpoints
import pytest
from picture_files import SVG, broken_files, noise, rotated, saved, url
from PIL import Image
from replay import LEAKS
from serving import Canary, Served


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("llava")
    llava_checkpoints.write(folder)
    flags = ("--max-model-len", "400", "--max-picture-bytes", "3M", "--max-picture-pixels", "2M")
    with Served(str(folder), *flags) as server:
        yield server


class Listener:
    """Counts who connects."""

    def __init__(self) -> None:
        self.socket = socket.create_server(("127.0.0.1", 0))
        self.port = self.socket.getsockname()[1]
        self.num = 0
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                self.socket.accept()[0].close()
            except OSError:
                return
            self.num += 1


def ask(server: Served, *parts: Any) -> httpx.Response:
    content = [{"type": "text", "text": "what is this"}, *parts]
    body = {"messages": [{"role": "user", "content": content}], "max_tokens": 3, "temperature": 0}
    return httpx.post(server.url + "/v1/chat/completions", json=body, timeout=20)


def part(address: Any) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": address}}


def hostile(port: int) -> dict[str, Any]:
    """Parts by what is wrong with them."""
    fetched = (
        f"http://127.0.0.1:{port}/x.png", f"http://localhost:{port}/", f"http://[::ffff:127.0.0.1]:{port}/",
        f"http://a\\@127.0.0.1:{port}/", "http://169.254.169.254/latest/meta-data/", f"https://127.0.0.1:{port}/x",
        "file:///etc/passwd", "/etc/passwd", "ftp://127.0.0.1/x", "gopher://127.0.0.1/", "FILE:/etc/passwd", "",
    )  # fmt: skip
    large = url(saved(noise(1400, 1400)))
    assert len(large) > 4 << 20
    return {
        **{name: part(url(data)) for name, data in broken_files().items()},
        **{f"fetch {address}": part(address) for address in fetched},
        "svg": part(url(SVG, "image/svg+xml")),
        "html": part(url(b"<b>", "text/html")),
        "not base64": part("data:image/png;base64,@@@@"),
        "no base64": part("data:image/png,abcd"),
        "many pixels": part(url(saved(Image.new("RGB", (2000, 1100))))),
        "many bytes": part(large),
        "not text": part(5),
        "no url": {"type": "image_url", "image_url": {}},
        "embeddings": {"type": "image_embeds", "image_embeds": "gASVIAAAAAAAAACMBXBvc2l4lIwGc3lzdGVtlJOU"},
        "python": {"type": "image_pil", "image_pil": {"__reduce__": ["os.system", "id"]}},
        "video": {"type": "video_url", "video_url": {"url": "data:video/mp4;base64,AAAA"}},
        "audio": {"type": "input_audio", "input_audio": {"data": "AAAA", "format": "wav"}},
        "deep": {"type": "image_url", "image_url": {"url": {"url": {"url": "x"}}}},
    }


def test_each_is_refused_and_nobody_else_notices(server: Served) -> None:
    listener = Listener()
    with Canary(server.url) as canary:
        for name, wrong in hostile(listener.port).items():
            answer = ask(server, wrong)
            assert answer.status_code == 400, (name, answer.text[:300])
            error = answer.json()["error"]
            assert set(error) == {"message", "type", "param", "code"} and error["param"] == "messages", (name, error)
            assert not [leak for leak in LEAKS if leak in answer.text] and len(answer.text) < 1000, (name, answer.text)
        too_large = ask(server, *[part("data:image/png;base64," + "A" * (9 << 20))])
        assert too_large.status_code == 413
        many = ask(server, *[part(url(saved(noise(8, 8))))] * 30)
        assert many.status_code == 400 and many.json()["error"]["code"] == "context_length_exceeded"
    assert canary.complaints() == [] and listener.num == 0
    assert server.rest() == {} and server.process.poll() is None


def test_odd_ones_are_served(server: Served) -> None:
    frames = [noise(30, 30, seed) for seed in range(5)]
    odd = {
        "one pixel": saved(noise(1, 1)),
        "CMYK": saved(noise().convert("CMYK"), "JPEG"),
        "palette": saved(noise().quantize(8)),
        "16 bits": saved(Image.new("I;16", (20, 30), 40_000)),
        "animated": saved(frames[0], "GIF", save_all=True, append_images=frames[1:]),
        "rotated": rotated()[0],
        "no extension": saved(noise(), "WEBP"),
        "transparent": saved(noise().convert("RGBA")),
    }
    texts = set()
    for name, data in odd.items():
        answer = ask(server, part(url(data, "application/octet-stream")))
        assert answer.status_code == 200, (name, answer.text)
        texts.add(json.dumps(answer.json()["choices"][0]["message"]))
    assert len(texts) > 1, "what is seen must matter"


def test_large_pictures_hold_up_nobody(server: Served) -> None:
    """Each is close to every limit: bytes, pixels and the body."""
    large = url(saved(noise(990, 990)))
    assert (2 << 20) < len(large) < (4 << 20)
    with Canary(server.url) as canary:
        threads = [threading.Thread(target=ask, args=(server, part(large))) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert canary.complaints() == []
