"""From a request's parts to pixels: what is taken, what is refused and how, and that pixels are transformers' own."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import llava_checkpoints
import numpy as np
import pytest
from picture_files import SVG, broken_files, noise, rotated, saved, url
from PIL import Image
from transformers import CLIPImageProcessorPil

from quire.checkpoint import read_facts
from quire.config import MediaConfig
from quire.errors import ConfigError, RequestError
from quire.frontend.decode import without_pictures
from quire.frontend.media import load_media
from quire.frontend.media.decode import fitted, make_ready, upright_rgb
from quire.frontend.media.header import BadHeader, look
from quire.frontend.media.parts import Source, source_of, sources_in
from quire.frontend.media.pictures import TakesPictures
from quire.frontend.media.protocol import TextOnly
from quire.frontend.plain_messages import plain_message
from quire.frontend.templates import ChatTemplate
from quire.frontend.tokenizer import Tokenizer
from quire.pictures import CLIP_MEAN, CLIP_STD, PictureFacts

FACTS = PictureFacts(
    token_id=7,
    num_tokens=4,
    height=24,
    width=24,
    shortest_edge=24,
    resized=None,
    resampling=3,
    factor=1 / 255,
    mean=CLIP_MEAN,
    std=CLIP_STD,
)
MOST = 1_000_000


def taken(data: bytes, kind: str = "image/png") -> np.ndarray:
    ready = make_ready(Source("messages[0].content[1]", url(data, kind)), FACTS, MOST)
    return np.frombuffer(ready.pixels, np.uint8).reshape(ready.height, ready.width, 3)


# ---- pixels ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(24, 24), (40, 30), (31, 77), (500, 333), (23, 9), (1, 1), (25, 24), (199, 1)])
@pytest.mark.parametrize("shortest", [24, 37])
def test_pixels_are_those_of_transformers(size: tuple[int, int], shortest: int) -> None:
    image = noise(*size, seed=sum(size))
    theirs = CLIPImageProcessorPil(size={"shortest_edge": shortest}, crop_size={"height": 24, "width": 24})
    wanted = theirs(image, return_tensors="np")["pixel_values"][0]
    pixels = np.asarray(fitted(image, replace(FACTS, shortest_edge=shortest))).astype(np.float32)
    found = (pixels / 255 - np.array(CLIP_MEAN)) / np.array(CLIP_STD)
    assert np.abs(found.transpose(2, 0, 1) - wanted).max() < 1e-5


@pytest.mark.parametrize("options", [{"do_resize": False}, {"size": {"height": 30, "width": 26}}])
def test_other_steps_are_those_of_transformers(options: dict[str, Any]) -> None:
    own = {"resized": (30, 26)} if "size" in options else {}
    theirs = CLIPImageProcessorPil(**options, crop_size={"height": 24, "width": 24}, resample=2)
    for image in (noise(60, 40), noise(11, 23)):
        wanted = theirs(image, return_tensors="np")["pixel_values"][0]
        pixels = np.asarray(fitted(image, replace(FACTS, shortest_edge=0, resampling=2, **own))).astype(np.float32)
        found = (pixels / 255 - np.array(CLIP_MEAN)) / np.array(CLIP_STD)
        assert np.abs(found.transpose(2, 0, 1) - wanted).max() < 1e-5


def test_every_format_is_the_same_picture() -> None:
    image = noise(24, 24)
    for kind, options in (("PNG", {}), ("WEBP", {"lossless": True})):
        assert np.array_equal(taken(saved(image, kind, **options)), np.asarray(image))
    few = image.quantize(16)
    assert np.array_equal(taken(saved(few, "GIF")), np.asarray(few.convert("RGB")))
    smooth = Image.linear_gradient("L").resize((24, 24)).convert("RGB")
    assert np.abs(taken(saved(smooth, "JPEG", quality=95), "image/jpeg").astype(int) - np.asarray(smooth)).max() < 12


def test_modes() -> None:
    grey = Image.linear_gradient("L").resize((24, 24))
    sixteen = Image.fromarray(np.asarray(grey).astype(np.uint16) * 257)
    assert np.array_equal(taken(saved(sixteen)), np.asarray(grey.convert("RGB"))), "scaled, not cut off at 255"
    assert np.array_equal(taken(saved(grey)), np.asarray(grey.convert("RGB")))
    palette = noise(24, 24).quantize(16)
    assert np.array_equal(taken(saved(palette)), np.asarray(palette.convert("RGB")))
    assert np.array_equal(taken(saved(grey.convert("1"))), np.asarray(grey.convert("1").convert("RGB")))
    cmyk = Image.new("CMYK", (24, 24), (0, 255, 255, 0))
    red, green, blue = taken(saved(cmyk, "JPEG"), "image/jpeg")[5, 5]
    assert red > 200 and green < 60 and blue < 60


def test_transparency_is_white() -> None:
    clear = Image.new("RGBA", (24, 24), (200, 0, 0, 0))
    assert (taken(saved(clear)) == 255).all()
    palette = Image.new("P", (24, 24), 0)
    palette.putpalette([10, 20, 30])
    assert (taken(saved(palette, transparency=0)) == 255).all()


def test_the_first_frame_of_many() -> None:
    frames = [Image.new("RGB", (24, 24), colour) for colour in ("red", "green", "blue")]
    for kind in ("GIF", "WEBP"):
        data = saved(frames[0], kind, save_all=True, append_images=frames[1:], lossless=True)
        assert tuple(taken(data)[3, 3]) == (255, 0, 0)


def test_turned_as_exif_says() -> None:
    data, wanted = rotated()
    assert np.abs(taken(data, "image/jpeg").astype(int) - np.asarray(fitted(wanted, FACTS))).max() < 25
    assert upright_rgb(wanted).size == (16, 32)


def test_one_pixel_makes_another_digest() -> None:
    image = noise(24, 24)
    other = image.copy()
    other.putpixel((11, 3), tuple(255 - c for c in other.getpixel((11, 3))))
    digests = [make_ready(Source("x", url(saved(one))), FACTS, MOST).digest for one in (image, image, other)]
    assert digests[0] == digests[1] != digests[2]


# ---- refusals --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", broken_files())
def test_broken_files(name: str) -> None:
    started = time.monotonic()
    with pytest.raises(RequestError) as caught:
        taken(broken_files()[name])
    assert caught.value.param == "messages" and "messages[0].content[1]" in caught.value.message
    assert "0x" not in caught.value.message and time.monotonic() - started < 2


def test_a_bomb_says_its_size_and_the_flag() -> None:
    with pytest.raises(RequestError, match=r"50000 x 50000.*1000000.*--max-picture-pixels"):
        taken(broken_files()["bomb"])


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "WEBP"])
def test_headers(kind: str) -> None:
    for size in ((40, 30), (1, 1), (300, 77)):
        assert look(saved(noise(*size), kind)) == (kind, *size)
    if kind == "WEBP":
        assert look(saved(noise(), kind, lossless=True)) == (kind, 40, 30)
        assert look(saved(noise(), kind, save_all=True, append_images=[noise(seed=1)])) == (kind, 40, 30)
    data = saved(noise(), kind)
    for end in range(30):
        try:
            assert look(data[:end])[0] == kind
        except BadHeader:
            continue


@pytest.mark.parametrize(
    ("given", "word"),
    [
        ("http://127.0.0.1/x.png", "nothing is fetched"),
        ("https://example.org/x.png", "nothing is fetched"),
        ("file:///etc/passwd", "nothing is fetched"),
        ("/etc/passwd", "nothing is fetched"),
        ("ftp://a\\@b", "nothing is fetched"),
        ("", "nothing is fetched"),
        ("data:image/png,abc", "base64"),
        ("data:text/html;base64,PGI+", "no picture"),
        ("data:" + "a" * 400, "base64"),
    ],
)
def test_urls(given: str, word: str) -> None:
    for part in (
        {"type": "image_url", "image_url": {"url": given}},
        {"type": "image_url", "image_url": given},
        {"type": "input_image", "image_url": given},
        {"image_url": {"url": given}},
    ):
        with pytest.raises(RequestError, match=word) as caught:
            source_of(part, "messages[3].content[2]")
        assert caught.value.param == "messages" and "messages[3].content[2]" in caught.value.message


@pytest.mark.parametrize("text", ["%%%%", "a", "aGk", "aGk=aGk=", "é", "aGVsbG8=\n", "aGVs bG8="])
def test_base64(text: str) -> None:
    with pytest.raises(RequestError, match=r"base64|no PNG"):
        make_ready(Source("messages[0]", f"data:image/png;base64,{text}"), FACTS, MOST)


def test_base64_without_its_end_signs_and_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    for width in range(20, 24):
        data = saved(noise(width, 40))
        monkeypatch.setattr("quire.frontend.media.decode.PIECE", 64)
        source = Source("x", url(data).rstrip("="))
        assert make_ready(source, FACTS, MOST) == make_ready(Source("x", noise(width, 40)), FACTS, MOST)


def test_parts_of_messages() -> None:
    picture = url(saved(noise()))
    parts = [{"type": "text", "text": "a"}, {"type": "image_url", "image_url": {"url": picture, "detail": "high"}}]
    message = plain_message({"role": "user", "content": parts}, 0)
    assert message["content"][0] == {"type": "text", "text": "a"} and message["content"][1]["type"] == "image"
    [source] = sources_in([message])
    assert source.data == picture and "detail has no effect" in source.note
    assert plain_message({"role": "user", "content": parts[:1]}, 0)["content"] == "a"
    for part in (
        {"type": "image_url"},
        {"type": "image_url", "image_url": {}},
        {"type": "image_url", "image_url": {"url": 5}},
        {"type": "image_url", "image_url": {"url": picture, "detail": "best"}},
        {"type": "image_pil", "image_pil": {"a": 1}},
        {"type": "image_embeds", "image_embeds": "x"},
        {"type": "video_url", "video_url": {"url": "data:"}},
        {"type": "input_audio", "input_audio": {}},
    ):
        with pytest.raises(RequestError):
            plain_message({"role": "user", "content": [part]}, 0)
    with pytest.raises(RequestError, match="assistant"):
        sources_in([plain_message({"role": "assistant", "content": parts}, 0)])


# ---- where pictures stand in prompts ---------------------------------------------------------------------------------


def media(**limits: Any) -> TakesPictures:
    return TakesPictures(FACTS, MediaConfig(**limits), "<image>")


def test_placeholders_become_positions() -> None:
    takes = media()
    ready = takes.read([Source("x", noise(seed=seed)) for seed in (1, 2)])
    ids, pictures = takes.placed([1, 7, 2, 3, 7], ready, "prompt")
    assert ids == [1, 7, 7, 7, 7, 2, 3, 7, 7, 7, 7]
    assert [(p.start, p.length, p.digest) for p in pictures] == [(1, 4, ready[0].digest), (7, 4, ready[1].digest)]
    assert takes.placed([1, 2], [], "prompt") == ([1, 2], [])
    for prompt, given in (([1, 7], []), ([1], ready[:1]), ([7, 7, 7], ready)):
        with pytest.raises(RequestError, match="placeholder"):
            takes.placed(prompt, given, "prompt")
    takes.close()


def test_limits_of_a_request() -> None:
    data = url(saved(noise(100, 100)))
    sources = [Source(f"messages[0].content[{i}]", data) for i in range(3)]
    takes = media(limit_mm_per_prompt={"image": 2})
    assert len(asyncio.run(takes.read_async(sources[:2]))) == 2
    with pytest.raises(RequestError, match=r"3 pictures.*2.*--limit-mm-per-prompt"):
        asyncio.run(takes.read_async(sources))
    takes.close()
    with pytest.raises(RequestError, match="--max-picture-bytes"):
        media(max_picture_bytes=2 * len(data) // 3).read(sources)
    with pytest.raises(RequestError, match="--max-picture-pixels"):
        media(max_picture_pixels=9_999).read(sources[:1])
    assert media(max_picture_pixels=10_000).read(sources[:1])


PARTS = (
    "{% for m in messages %}{% for p in m['content'] %}{% if p['type'] == 'image' %}<image>{% else %}{{ p['text'] }}"
)
PARTS += "{% endif %}{% endfor %}|{% endfor %}"
TEXT = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}|{% endfor %}"


@pytest.mark.parametrize(
    ("source", "expected"), [(PARTS, "sys|a<image>b|"), (TEXT, "system: sys|user: <image>\na\nb|")]
)
def test_templates_of_both_kinds(source: str, expected: str) -> None:
    picture = {"type": "image", "source": Source("x", "data:,")}
    texts = [{"type": "text", "text": text} for text in "ab"]
    messages = [{"role": "system", "content": "sys"}, {"role": "user", "content": [texts[0], picture, texts[1]]}]
    takes, template = media(), ChatTemplate(source, {})
    assert template.render(takes.for_template(template, messages)) == expected
    opened = takes.for_template(template, messages[:1])
    assert template.render(opened, continue_final_message=True) == expected.split("|")[0]


def test_without_pillow_a_model_with_pictures_does_not_start(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    llava_checkpoints.write_configs(tmp_path)
    facts, tokenizer = read_facts(tmp_path), Tokenizer.from_folder(tmp_path)
    takes = load_media(facts, MediaConfig(), tokenizer, "x")
    assert takes.more_body_bytes > 16 << 20
    takes.close()
    monkeypatch.setattr("quire.frontend.media.select.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install 'quire\[vision\]'"):
        load_media(facts, MediaConfig(), tokenizer, "x")
    config = replace(facts.config, values={**facts.config.values, "image_token_index": 500})
    monkeypatch.undo()
    with pytest.raises(ConfigError, match="no token 500"):
        load_media(replace(facts, config=config), MediaConfig(), tokenizer, "x")


def test_a_model_of_text_names_itself() -> None:
    part = {"type": "image_url", "image_url": {"url": url(saved(noise()))}}
    with pytest.raises(RequestError, match="model 'llama-7b' takes text only") as caught:
        TextOnly("llama-7b").sources([{"role": "user", "content": [part]}])
    assert caught.value.param == "messages" and caught.value.code == "unsupported_content"
    assert TextOnly().sources([{"role": "user", "content": [{"type": "text", "text": "x"}]}]) == []
    assert sources_in(["no message", {"content": [5, "x", {"type": 7}]}]) == []  # type: ignore[list-item]


def test_long_data_urls_are_left_out_of_the_search_for_names() -> None:
    long = "data:image/png;base64," + "A:" * 4000
    for body, left in (
        (b'{"a":"x"}', b'{"a":"x"}'),
        (f'{{"a":"{long}","b":1}}'.encode(), b'{"a":"","b":1}'),
        (f'{{"a":"\\"{long}"}}'.encode(), None),
        (f'{{"a":"{long}\\n"}}'.encode(), None),
        (f'["{long}","{long}"]'.encode(), b'["",""]'),
    ):
        assert without_pictures(body) == (body if left is None else left)


def test_what_svg_is_told() -> None:
    with pytest.raises(RequestError, match="is no PNG, JPEG, WEBP or GIF"):
        taken(SVG, "image/svg+xml")
