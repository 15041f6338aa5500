"""Composes a picture: a surface, a part on a ground or a medical view, with a defect or without."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from PIL import Image, ImageDraw

from zsad.errors import ConfigError
from zsad.synth.camera import photometric
from zsad.synth.captions import GOOD, caption_for
from zsad.synth.defects import KINDS, add_defect, check_image
from zsad.synth.noise import (
    BoolArray,
    ByteArray,
    FloatArray,
    colour,
    from_bytes,
    mix,
    smooth,
    soften,
    tint,
    to_bytes,
    turned,
)
from zsad.synth.parts import PARTS, Part
from zsad.synth.textures import PLAIN, TEXTURES
from zsad.synth.tissue import TISSUES

MATERIALS: tuple[str, ...] = (*TEXTURES, *PARTS, *TISSUES)

_MEDICAL = (
    "lesion",
    "lesion",
    "lesion",
    "stain",
    "discoloration",
    "texture",
    "bend",
    "foreign",
    "speckle",
    "crack",
)
_PRINTED = frozenset({"plate", "pill", "bottle cap", "capsule"})
# On a surface without order a moved block is no defect: nobody could tell.
_NEEDS_ORDER = frozenset({"misplaced", "bend", "texture"})


@dataclass(slots=True)
class Scene:
    """A drawn image with its ground truth.

    Attributes:
        image: (H, W, 3) uint8.
        mask: (H, W), pixels of the defect; all False when normal.
        label: 1 with a defect, else 0.
        kind: "good" or one of `KINDS`.
        material: one of `MATERIALS`.
        caption: an English description.
        foreground: (H, W), pixels of the part; None if the surface fills the image.
    """

    image: ByteArray
    mask: BoolArray
    label: int
    kind: str
    material: str
    caption: str
    foreground: BoolArray | None


@dataclass(frozen=True, slots=True)
class _Normal:
    image: ByteArray
    foreground: BoolArray | None
    material: str
    kinds: tuple[str, ...]


def generate(
    rng: np.random.Generator,
    *,
    size: tuple[int, int] = (256, 256),
    defect: str | None = "random",
    background: ByteArray | None = None,
) -> Scene:
    """Draw one image.

    Args:
        rng: the only source of chance; the same state draws the same scene.
        size: (H, W) in pixels, sides of at least 32.
        defect: one of `KINDS`, None for a normal image, "random" for a defect every second time.
        background: (H', W', 3) uint8, an image to lay parts on; None draws grounds. Given, parts only.

    Raises:
        ConfigError: an unknown defect or too small a size. ImageError: a background that is no colour image.
    """
    _check(size, defect, background)
    normal = _normal(rng, size, background)
    bad = rng.random() < 0.5 if defect == "random" else defect is not None
    camera_seed = int(rng.integers(2**63))
    return _scene(normal, rng, _kind(normal, rng, defect) if bad else None, camera_seed)


def pair(
    rng: np.random.Generator,
    *,
    size: tuple[int, int] = (256, 256),
    defect: str = "random",
    background: ByteArray | None = None,
) -> tuple[Scene, Scene]:
    """The same scene, taken by the same camera, without and with a defect; arguments as of `generate`."""
    _check(size, defect, background)
    normal = _normal(rng, size, background)
    camera_seed = int(rng.integers(2**63))
    return _scene(normal, rng, None, camera_seed), _scene(
        normal, rng, _kind(normal, rng, defect), camera_seed
    )


def _check(size: tuple[int, int], defect: str | None, background: ByteArray | None) -> None:
    if len(size) != 2 or min(size) < 32:
        raise ConfigError(f"size is {size}; expected (height, width) of at least 32 pixels each")
    if defect is not None and defect != "random" and defect not in KINDS:
        raise ConfigError(f"unknown defect {defect!r}; expected None, 'random' or one of {', '.join(KINDS)}")
    if background is not None:
        check_image(background, name="background")


def _pick(rng: np.random.Generator, choices: tuple[str, ...]) -> str:
    return choices[int(rng.integers(len(choices)))]


def _kind(normal: _Normal, rng: np.random.Generator, defect: str | None) -> str:
    return defect if defect is not None and defect != "random" else _pick(rng, normal.kinds)


def _scene(normal: _Normal, rng: np.random.Generator, kind: str | None, camera_seed: int) -> Scene:
    image = normal.image
    mask = np.zeros(image.shape[:2], np.bool_)
    if kind is not None:
        image, mask, kind = add_defect(image, rng, kind=kind, foreground=normal.foreground)
    image = photometric(image, np.random.default_rng(camera_seed))
    named = kind if kind is not None else GOOD
    text = caption_for(normal.material, named, rng)
    return Scene(image, mask, int(kind is not None), named, normal.material, text, normal.foreground)


def _normal(rng: np.random.Generator, size: tuple[int, int], background: ByteArray | None) -> _Normal:
    """A scene without a defect; one in eight as a grey camera sees it."""
    normal = _coloured(rng, size, background)
    if rng.random() > 1 / 8:
        return normal
    grey = np.asarray(Image.fromarray(normal.image).convert("L").convert("RGB"))
    return replace(normal, image=grey)


def _coloured(rng: np.random.Generator, size: tuple[int, int], background: ByteArray | None) -> _Normal:
    draw = rng.random()
    if background is not None or draw < 0.48:
        return _part_scene(rng, size, background)
    if draw < 0.62:
        name = _pick(rng, tuple(TISSUES))
        image, foreground = TISSUES[name](rng, size)
        return _Normal(to_bytes(image), foreground, name, _MEDICAL)
    name = _pick(rng, tuple(TEXTURES))
    texture = TEXTURES[name]
    image = texture.draw(rng, size)
    if rng.random() < 0.25:
        image = _decorated(image, rng)
    kinds = tuple(kind for kind in KINDS if texture.regular or kind not in _NEEDS_ORDER)
    return _Normal(to_bytes(image), None, name, kinds)


def _part_scene(rng: np.random.Generator, size: tuple[int, int], background: ByteArray | None) -> _Normal:
    name = _pick(rng, tuple(PARTS))
    part = PARTS[name]
    image = _ground(rng, size) if background is None else _fitted(background, size)
    cover = np.zeros(size, np.float32)
    style = int(rng.integers(2**63))
    poses = _poses(rng, part, size)
    for centre, half, angle in poses:
        # Parts of one image are of one make: they share the style's seed.
        image, cover = _put(
            image, cover, np.random.default_rng(style), part, centre=centre, half=half, angle=angle
        )
    if name in _PRINTED and len(poses) == 1 and rng.random() < 0.4:
        image = _lettered(image, cover, rng, poses[0])
    return _Normal(to_bytes(image), cover > 0.5, name, KINDS)


def _fitted(background: ByteArray, size: tuple[int, int]) -> FloatArray:
    return from_bytes(Image.fromarray(background).resize((size[1], size[0]), Image.Resampling.BILINEAR))


def _ground(rng: np.random.Generator, size: tuple[int, int]) -> FloatArray:
    """Background of a part: an even sheet as in most inspection cells, or a quiet material."""
    draw = rng.random()
    if draw < 0.65:
        dark_or_bright = (0.0, 0.12) if rng.random() < 0.35 else (0.55, 1.0)
        base = colour(rng, brightness=dark_or_bright, saturation=(0, 0.15))
        along, _ = turned(size, rng.uniform(0, 2 * np.pi))
        slope = along * np.float32(rng.uniform(0, 0.3) / max(size))
        return tint(base, 1 + slope + smooth(rng, size, 2) * rng.uniform(0, 0.02))
    return TEXTURES[_pick(rng, PLAIN)].draw(rng, size)


def _poses(
    rng: np.random.Generator, part: Part, size: tuple[int, int]
) -> list[tuple[tuple[float, float], float, float]]:
    """(centre (row, column), half length, angle) of each copy."""
    angle = float(
        rng.choice([0, np.pi / 2]) + rng.normal(0, 0.05) if rng.random() < 0.4 else rng.uniform(0, 2 * np.pi)
    )
    shorter = min(size)
    if part.many and rng.random() < 0.22:
        count = int(rng.integers(2, 4))
        cell = (size[0] / count, size[1] / count)
        half = min(cell) * rng.uniform(0.34, 0.44)
        aligned = rng.random() < 0.6
        return [
            (
                ((row + 0.5) * cell[0] + rng.normal(0, 0.02) * cell[0], (column + 0.5) * cell[1]),
                half,
                angle + float(rng.normal(0, 0.05) if aligned else rng.uniform(0, 6)),
            )
            for row in range(count)
            for column in range(count)
        ]
    half = shorter * float(rng.uniform(0.28, 0.49 if part.aspect > 0.6 else 0.6))
    shift = rng.normal(0, 0.04, 2) * shorter
    return [((size[0] / 2 + float(shift[0]), size[1] / 2 + float(shift[1])), half, angle)]


def _put(
    image: FloatArray,
    cover: FloatArray,
    rng: np.random.Generator,
    part: Part,
    *,
    centre: tuple[float, float],
    half: float,
    angle: float,
) -> tuple[FloatArray, FloatArray]:
    """Draw one part and its shadow into the image."""
    height, width = cover.shape
    reach = int(half * 1.2) + 6
    top, bottom = max(0, int(centre[0]) - reach), min(height, int(centre[0]) + reach)
    left, right = max(0, int(centre[1]) - reach), min(width, int(centre[1]) + reach)
    shape = (bottom - top, right - left)
    u, v = turned(shape, angle, centre=(centre[0] - top, centre[1] - left))
    colours, alpha = part.draw(rng, u / np.float32(half), v / np.float32(half), 1.2 / half)
    alpha = np.asarray(alpha, dtype=np.float32)
    window = image[top:bottom, left:right]
    depth = float(rng.uniform(0, 0.5)) if rng.random() < 0.6 else 0.0
    if depth > 0.05:
        far = max(1, int(half * rng.uniform(0.01, 0.06)))
        turn = rng.uniform(0, 2 * np.pi)
        moved = np.roll(alpha, (int(np.sin(turn) * far), int(np.cos(turn) * far)), (0, 1))
        window = tint(window, 1 - soften(moved, max(1.0, far * 0.8)) * np.float32(depth))
    light = 1 + rng.uniform(0, 0.15) * (v / np.float32(half))
    image[top:bottom, left:right] = mix(window, tint(colours, light), alpha)
    cover[top:bottom, left:right] = np.maximum(cover[top:bottom, left:right], alpha)
    return image, cover


def _lettered(
    image: FloatArray,
    cover: FloatArray,
    rng: np.random.Generator,
    pose: tuple[tuple[float, float], float, float],
) -> FloatArray:
    """Print a word on the middle of a part, along its length, as makers do."""
    (row, column), half, angle = pose
    text = "".join(rng.choice(list("ABCDEFGHIKLMNOPRSTUVXZ0123456789"), int(rng.integers(2, 7))))
    size = max(7, int(half * rng.uniform(0.7, 1.1) / len(text) ** 0.7))
    word = Image.new("L", (size * len(text) + 8, size * 2))
    ImageDraw.Draw(word).text((word.width / 2, word.height / 2), text, fill=255, font_size=size, anchor="mm")
    word = word.rotate(-float(np.degrees(angle)), Image.Resampling.BILINEAR, expand=True)
    canvas = Image.new("L", (cover.shape[1], cover.shape[0]))
    canvas.paste(word, (int(column - word.width / 2), int(row - word.height / 2)))
    marks = np.asarray(canvas, dtype=np.float32) * np.float32(rng.uniform(0.4, 0.9) / 255) * cover
    level = float(
        image[min(max(int(row), 0), cover.shape[0] - 1), min(max(int(column), 0), cover.shape[1] - 1)].mean()
    )
    ink = colour(rng, brightness=(0, 0.3)) if level > 0.45 else colour(rng, brightness=(0.7, 1))
    return mix(image, ink, marks)


def _decorated(image: FloatArray, rng: np.random.Generator) -> FloatArray:
    """Add what looks odd and is fine: lettering, rows of marks, evenly drilled holes, glare, dust."""
    height, width = image.shape[:2]
    draw = rng.random()
    if draw < 0.2:
        along, across = turned(
            (height, width), rng.uniform(0, np.pi), centre=(height * rng.random(), width * rng.random())
        )
        reach = np.float32(min(height, width) * rng.uniform(0.2, 0.6))
        glare = np.exp(-((along / reach) ** 2 + (across / (reach * 0.6)) ** 2))
        return np.asarray(image + (glare * rng.uniform(0.08, 0.25))[..., None], dtype=np.float32)
    if draw < 0.35:
        dust = smooth(rng, (height, width), 2) > 3.1
        return mix(image, colour(rng, brightness=(0.3, 1)), dust.astype(np.float32) * 0.35)
    canvas = Image.new("L", (width, height))
    _marks(ImageDraw.Draw(canvas), rng, width, height, lettered=draw < 0.7)
    marks = np.asarray(canvas, dtype=np.float32) * np.float32(rng.uniform(0.5, 1) / 255)
    ink = colour(rng, brightness=(0, 0.35)) if float(image.mean()) > 0.4 else colour(rng, brightness=(0.6, 1))
    return mix(image, ink, marks)


def _marks(
    pen: ImageDraw.ImageDraw, rng: np.random.Generator, width: int, height: int, *, lettered: bool
) -> None:
    """Lines of text with a frame or a ring, or a row of dots mirrored about the middle."""
    if lettered:
        size = int(rng.integers(9, 20)) * min(width, height) // 256 + 4
        row, column = int(rng.uniform(0.05, 0.8) * height), int(rng.uniform(0.05, 0.5) * width)
        for line in range(int(rng.integers(1, 4))):
            text = "".join(rng.choice(list("ABCDEFGHIKLMNOPRSTUVXZ0123456789 -/"), int(rng.integers(4, 14))))
            pen.text((column, row + line * size * 1.3), text, fill=255, font_size=size)
        if rng.random() < 0.4:
            pen.rectangle((column - 6, row - 5, column + size * 7, row + size * 4), outline=255)
        return
    count, radius = int(rng.integers(2, 7)), max(1.5, rng.uniform(0.01, 0.035) * min(width, height))
    for row in sorted({0.5, rng.choice([0.15, 0.25])}):
        for index in range(count):
            x = (index + 0.5) / count * width
            for y in (row * height, (1 - row) * height):
                pen.ellipse((x - radius, y - radius, x + radius, y + radius), fill=255)
