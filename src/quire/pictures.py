"""What a checkpoint says of the pictures that its model takes: how they are made ready, and how many tokens they are.

Read by the frontend, which makes pictures ready, and by the worker, which encodes them:

    file ── resize ── cut to height x width ──► bytes [height, width, 3] ── (x * factor - mean) / std ──► vision tower
    |                 frontend                                          |            worker             |
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from quire.checkpoint import Fields, ModelFacts, read_json
from quire.errors import ConfigError

IMAGE_FILES = ("preprocessor_config.json", "processor_config.json")
"""Older checkpoints have the first; newer ones an object `image_processor` in the second."""
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
ABSENT_IN_VISION = {
    "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12,
    "image_size": 224, "patch_size": 32, "num_channels": 3, "hidden_act": "quick_gelu", "layer_norm_eps": 1e-5,
}  # fmt: skip
"""What a vision_config need not name. Where there is none at all, it is ViT-L/14 at 336 pixels:"""
ABSENT_VISION = {
    **ABSENT_IN_VISION, "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24,
    "num_attention_heads": 16, "image_size": 336, "patch_size": 14,
}  # fmt: skip
RESAMPLINGS = range(6)
"""Pillow's numbers: nearest, Lanczos, bilinear, bicubic, box, Hamming."""


@dataclass(frozen=True, slots=True)
class PictureFacts:
    """The pictures of one model.

    Attributes:
        token_id: the placeholder in a prompt, which becomes `num_tokens` positions.
        num_tokens: of every picture.
        height, width: of what the vision tower takes, in pixels.
        shortest_edge: a picture is resized until its shorter edge has so many pixels; 0 resizes both edges, to...
        resized: (height, width), where `shortest_edge` is 0; None leaves a picture in its size.
        resampling: Pillow's number of the filter.
        factor, mean, std: of the numbers that the tower takes; each of the three colours has a mean and a deviation.
    """

    token_id: int
    num_tokens: int
    height: int
    width: int
    shortest_edge: int
    resized: tuple[int, int] | None
    resampling: int
    factor: float
    mean: tuple[float, ...]
    std: tuple[float, ...]


def picture_facts(facts: ModelFacts) -> PictureFacts | None:
    """What a model takes; None if it takes text only.

    Raises:
        ConfigError: a file is missing or says what cannot be.
    """
    read = next((READERS[name] for name in facts.architectures if name in READERS), None)
    return None if read is None else read(facts)


def feature_layers(config: Fields, num_layers: int) -> tuple[int, ...]:
    """Which of the tower's hidden states are features: 0 is its embedding, `num_layers` its last layer's output."""
    found = config.values.get("vision_feature_layer")
    layers = (-2,) if found is None else config.integers("vision_feature_layer", low=-num_layers - 1, high=num_layers)
    if not layers:
        config.fail("vision_feature_layer", "must name a layer", found)
    return tuple(layer % (num_layers + 1) for layer in layers)


def keeps_class_token(config: Fields) -> bool:
    """Whether the tower's first token, which is no patch, is a feature too."""
    strategy = config.text("vision_feature_select_strategy", "default")
    if strategy not in ("default", "full"):
        config.fail("vision_feature_select_strategy", "must be default or full", strategy)
    return strategy == "full"


def vision_part(config: Fields, *kinds: str) -> Fields:
    """The settings of the vision tower.

    Raises:
        ConfigError: it is of another kind than these.
    """
    found = config.section("vision_config")
    vision = found or Fields({}, f"{config.where}: vision_config")
    kind = vision.text("model_type", kinds[0])
    if kind not in kinds:
        vision.fail("model_type", f"must be {' or '.join(kinds)} for a vision tower that is known here", kind)
    named = {key: value for key, value in vision.values.items() if value is not None}
    return Fields({**(ABSENT_IN_VISION if found else ABSENT_VISION), **named}, vision.where)


def num_patches(vision: Fields) -> tuple[int, int]:
    """(patches, pixels along an edge) of a picture in the tower."""
    size, patch = vision.integer("image_size", high=1 << 14), vision.integer("patch_size", high=1 << 12)
    if vision.integer("num_channels") != 3:
        vision.fail("num_channels", "must be 3", vision.values["num_channels"])
    if patch > size:
        vision.fail("patch_size", f"must be at most image_size ({size})", patch)
    return (size // patch) ** 2, size


# ---------------------------------------------------------------------------------------------------------------
# families


def _llava(facts: ModelFacts) -> PictureFacts:
    """LLaVA 1.5: square pictures of one size, a token for each patch."""
    config = facts.config
    patches, size = num_patches(vision_part(config, "clip_vision_model"))
    key = "image_token_id" if config.values.get("image_token_id") is not None else "image_token_index"
    token_id = config.integer(key, 32_000, low=0)
    if token_id >= facts.vocab_size:
        config.fail(key, f"must be in the vocabulary, 0..{facts.vocab_size - 1}", token_id)
    return _with_steps(facts, token_id, patches + keeps_class_token(config), size)


READERS: dict[str, Callable[[ModelFacts], PictureFacts]] = {"LlavaForConditionalGeneration": _llava}
"""Architecture to how its pictures are described."""


# ---------------------------------------------------------------------------------------------------------------
# how transformers' image processors are described


def _with_steps(facts: ModelFacts, token_id: int, num_tokens: int, size: int) -> PictureFacts:
    steps = _image_processor(facts)
    if not steps.flag("do_convert_rgb", True):
        steps.fail("do_convert_rgb", "must be true: the vision tower takes three colours", False)
    resizes, cuts = steps.flag("do_resize", True), steps.flag("do_center_crop", True)
    shortest, resized = _size(steps, "size", size) if resizes else (0, None)
    height, width = _size(steps, "crop_size", size)[1] or (size, size) if cuts else resized or (0, 0)
    if (height, width) != (size, size):
        found = f"{height} x {width}" if height else "pictures of any size"
        raise ConfigError(f"{steps.where}: gives {found}, the vision tower takes {size} x {size} (image_size).")
    resampling = steps.integer("resample", 3, low=0)
    if resampling not in RESAMPLINGS:
        steps.fail("resample", "must be in 0..5", resampling)
    normalises = steps.flag("do_normalize", True)
    return PictureFacts(
        token_id=token_id,
        num_tokens=num_tokens,
        height=height,
        width=width,
        shortest_edge=shortest,
        resized=resized,
        resampling=resampling,
        factor=steps.number("rescale_factor", 1 / 255) if steps.flag("do_rescale", True) else 1.0,
        mean=_three(steps, "image_mean", CLIP_MEAN) if normalises else (0.0, 0.0, 0.0),
        std=_three(steps, "image_std", CLIP_STD, low=1e-6) if normalises else (1.0, 1.0, 1.0),
    )


def _image_processor(facts: ModelFacts) -> Fields:
    for name in IMAGE_FILES:
        path = facts.folder / name
        values = read_json(path, required=False)
        if name == "processor_config.json":
            inner = values.get("image_processor")
            values = inner if isinstance(inner, dict) else {}
        if values:
            return Fields(values, str(path))
    raise ConfigError(
        f"{facts.folder}: neither {IMAGE_FILES[0]} nor an image_processor in {IMAGE_FILES[1]}; one of them says how"
        " pictures are made ready for this model."
    )


def _size(steps: Fields, key: str, default: int) -> tuple[int, tuple[int, int] | None]:
    """(shortest edge, None) or (0, (height, width)) of a size in any of its spellings."""
    value = steps.values.get(key)
    if isinstance(value, dict):
        inner = Fields(value, f"{steps.where}: {key}")
        if inner.values.get("longest_edge") is not None:
            inner.fail("longest_edge", "is not known here beside shortest_edge, or height and width", value)
        if inner.values.get("shortest_edge") is not None:
            return inner.integer("shortest_edge", high=1 << 14), None
        return 0, (inner.integer("height", high=1 << 14), inner.integer("width", high=1 << 14))
    number = steps.integer(key, default, high=1 << 14)
    return (number, None) if key == "size" else (0, (number, number))


def _three(steps: Fields, key: str, default: tuple[float, ...], *, low: float = 0.0) -> tuple[float, ...]:
    """One number for each colour."""
    if steps.values.get(key) is None:
        return default
    found = steps.numbers(key, low=low, high=1e6)
    if len(found) != 3:
        steps.fail(key, "must have three numbers", list(found))
    return found
