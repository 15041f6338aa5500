"""Supports of defects: soft shapes (h, w) in [0, 1] drawn in a window of their own.

Every function takes the generator, the wanted area in pixels and the scale (1 for an image of 256 pixels).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

from zsad.synth.noise import FloatArray, from_bytes, magnitude, smooth, soften, step, turned


@dataclass(frozen=True, slots=True)
class Support:
    """A soft shape `alpha` (h, w) in [0, 1] and where its window lies in the image."""

    alpha: FloatArray
    top: int
    left: int


def blob(
    rng: np.random.Generator,
    pixels: float,
    *,
    rough: tuple[float, float] = (0.0, 0.45),
    soft: tuple[float, float] = (0.04, 0.3),
    stretch: float = 2.5,
) -> FloatArray:
    """An ellipse of random stretch with an outline bent by noise; `soft` is the width of its rim in radii."""
    aspect = float(np.exp(abs(rng.normal(0, 0.4)) * np.log(stretch)))
    radius = np.sqrt(pixels / np.pi)
    aspect = min(aspect, radius**2 / 2 + 1)
    long, short = radius * np.sqrt(aspect), max(radius / np.sqrt(aspect), 1.2)
    angle = rng.uniform(0, np.pi)
    roughness = rng.uniform(*rough)
    reach = 1.25 + roughness
    half_tall = magnitude(long * np.sin(angle), short * np.cos(angle)) * reach + 2
    half_wide = magnitude(long * np.cos(angle), short * np.sin(angle)) * reach + 2
    shape = (2 * int(half_tall) + 1, 2 * int(half_wide) + 1)
    along, across = turned(shape, angle)
    distance = magnitude(along / np.float32(long), across / np.float32(short))
    if roughness > 0.02:
        distance = distance + smooth(rng, shape, max(short * rng.uniform(0.4, 1.2), 2)) * np.float32(
            roughness * 0.5
        )
    rim = max(rng.uniform(*soft), 0.7 / short)
    return 1 - step(distance, 1 - rim / 2, 1 + rim / 2)


def hard_blob(rng: np.random.Generator, pixels: float, scale: float) -> FloatArray:
    """A blob with a sharp outline."""
    return blob(rng, pixels, rough=(0.0, 0.35), soft=(0.02, 0.1), stretch=1.8)


def soft_blob(rng: np.random.Generator, pixels: float, scale: float) -> FloatArray:
    """A blob that fades out."""
    return blob(rng, pixels, soft=(0.15, 0.9))


def round_blob(rng: np.random.Generator, pixels: float, scale: float) -> FloatArray:
    """A smooth ellipse-like blob."""
    return blob(rng, pixels, rough=(0.0, 0.12), soft=(0.3, 0.9), stretch=1.6)


def any_blob(rng: np.random.Generator, pixels: float, scale: float) -> FloatArray:
    """A blob, a ragged patch or a turned box."""
    draw = rng.random()
    if draw < 0.3:
        return box(rng, pixels, scale)
    if draw < 0.55:
        return ragged(rng, pixels, scale)
    return blob(rng, pixels)


def soft_or_any_blob(rng: np.random.Generator, pixels: float, scale: float) -> FloatArray:
    """A fading blob, or any other."""
    return (soft_blob if rng.random() < 0.7 else any_blob)(rng, pixels, scale)


def ragged(rng: np.random.Generator, pixels: float, scale: float) -> FloatArray:
    """Thresholded smooth noise inside a soft disc: one or several irregular pieces."""
    radius = np.sqrt(pixels / np.pi) * 1.5
    shape = (2 * int(radius * 1.2) + 5, 2 * int(radius * 1.2) + 5)
    along, across = turned(shape, 0.0)
    field = smooth(rng, shape, max(radius * rng.uniform(0.3, 0.8), 2)) - magnitude(
        along, across
    ) * np.float32(1.6 / radius)
    rank = max(0, field.size - int(pixels) - 1)
    threshold = float(np.partition(field.ravel(), rank)[rank])
    return step(field, threshold - 0.06, threshold + 0.06)


def box(rng: np.random.Generator, pixels: float, scale: float) -> FloatArray:
    """A turned rectangle."""
    aspect = float(np.exp(rng.normal(0, 0.5)))
    long, short = np.sqrt(pixels * aspect) / 2, np.sqrt(pixels / aspect) / 2
    angle = 0.0 if rng.random() < 0.5 else rng.uniform(0, np.pi)
    half = int(magnitude(long, short)) + 3
    along, across = turned((2 * half + 1, 2 * half + 1), angle)
    inside = np.maximum(np.abs(along) - np.float32(long), np.abs(across) - np.float32(short))
    return 1 - step(inside, -0.5, 0.7)


def _path(rng: np.random.Generator, length: float, *, jag: float, curve: float) -> FloatArray:
    """Points (n, 2) of a wandering line of about `length` pixels."""
    count = int(np.clip(length / 4, 4, 60))
    turns = rng.normal(0, jag, count) + np.cumsum(rng.normal(0, curve / np.sqrt(count), count))
    heading = rng.uniform(0, 2 * np.pi) + turns
    steps = np.stack([np.cos(heading), np.sin(heading)], axis=1) * (length / count)
    return np.asarray(np.cumsum(steps, axis=0), dtype=np.float32)


def _strokes(paths: list[FloatArray], widths: list[FloatArray], *, fade: float = 0.0) -> FloatArray:
    """Draw lines of varying width at twice the size and halve: smooth edges. Widths in pixels, per point."""
    points = np.concatenate(paths)
    low, high = points.min(axis=0), points.max(axis=0)
    margin = float(max(width.max() for width in widths)) + 3
    size = np.ceil(high - low + 2 * margin).astype(int) + 1
    factor = 3
    canvas = Image.new("L", (int(size[0]) * factor, int(size[1]) * factor))
    pen = ImageDraw.Draw(canvas)
    for path, width in zip(paths, widths, strict=True):
        scaled = (path - low + margin) * factor
        for index in range(len(path) - 1):
            line = [tuple(scaled[index].tolist()), tuple(scaled[index + 1].tolist())]
            thick = max(2, round(float(width[index]) * factor))
            pen.line(line, fill=255, width=thick)
            if thick > 5:
                x, y = scaled[index + 1].tolist()
                half = thick / 2 - 0.5
                pen.ellipse((x - half, y - half, x + half, y + half), fill=255)
    return from_bytes(canvas.reduce(factor))


def _line_size(rng: np.random.Generator, pixels: float, scale: float, widest: float) -> tuple[float, float]:
    """Length and width of a line that covers `pixels`; short lines are thin."""
    width = float(np.clip(rng.uniform(0.9, widest) * max(scale, 0.5), 1.0, max(1.0, np.sqrt(pixels) / 3)))
    return float(np.clip(pixels / width, 5.0, 330.0 * max(scale, 0.1))), width


def scratch(rng: np.random.Generator, pixels: float, scale: float) -> FloatArray:
    """One to four nearly straight lines side by side that thin out at their ends."""
    length, width = _line_size(rng, pixels, scale, 3.0)
    count = int(rng.choice([1, 1, 1, 2, 3, 4])) if length > 24 * scale else 1
    base = _path(rng, length / count**0.5, jag=0.04, curve=rng.choice([0.05, 0.4, 1.5]))
    paths, widths = [], []
    for _ in range(count):
        start, stop = sorted(rng.uniform(0, 1, 2)) if count > 1 else (0.0, 1.0)
        first, last = int(start * len(base) * 0.5), max(int((0.5 + stop / 2) * len(base)), 3)
        paths.append(base[first:last] + rng.normal(0, 5 * scale if count > 1 else 0, 2).astype(np.float32))
        taper = np.sin(np.linspace(0.25, np.pi - 0.25, len(paths[-1])))
        widths.append((width * taper).astype(np.float32))
    return _strokes(paths, widths)


def crack(rng: np.random.Generator, pixels: float, scale: float) -> FloatArray:
    """A jagged line with branches."""
    length, width = _line_size(rng, pixels, scale, 3.2)
    trunk = _path(rng, length * 0.7, jag=rng.uniform(0.3, 0.7), curve=0.5)
    paths, widths = [trunk], [np.linspace(width, max(width * 0.4, 0.7), len(trunk)).astype(np.float32)]
    for _ in range(int(rng.integers(0, 5))):
        start = trunk[int(rng.integers(len(trunk)))]
        branch = _path(rng, length * rng.uniform(0.08, 0.3), jag=0.5, curve=0.4) + start
        paths.append(branch)
        widths.append(np.linspace(width * 0.6, 0.6, len(branch)).astype(np.float32))
    return _strokes(paths, widths)


def cut(rng: np.random.Generator, pixels: float, scale: float) -> FloatArray:
    """One clean line, straight or bent; wide enough for a bright and a dark edge."""
    length, width = _line_size(rng, pixels * 1.5, scale, 4.0)
    path = _path(rng, length, jag=0.02, curve=rng.choice([0.1, 0.8]))
    return _strokes([path], [np.full(len(path), max(width, 2.0), np.float32)])


def fibres(rng: np.random.Generator, pixels: float, scale: float) -> FloatArray:
    """A tuft of loose, curved threads."""
    count = int(rng.integers(3, 14))
    width = max(0.9, rng.uniform(0.8, 1.6) * scale)
    length = np.clip(pixels / (count * width), 5, 80 * max(scale, 0.2))
    spread = length * rng.uniform(0.1, 0.5)
    paths = [
        _path(rng, length * rng.uniform(0.5, 1.3), jag=0.05, curve=1.5)
        + rng.normal(0, spread, 2).astype(np.float32)
        for _ in range(count)
    ]
    return _strokes(paths, [np.full(len(path), width, np.float32) for path in paths])


def dots(
    rng: np.random.Generator, pixels: float, scale: float, *, most: int = 40, least: int = 3
) -> FloatArray:
    """A cluster of small round dots of mixed size."""
    count = int(rng.integers(least, most + 1))
    radius = max(0.9, np.sqrt(pixels / count / np.pi))
    reach = radius * np.sqrt(count) * rng.uniform(1.0, 2.6)
    half = int(reach * 2 + radius * 3) + 2
    factor = 2
    canvas = Image.new("L", (2 * half * factor, 2 * half * factor))
    pen = ImageDraw.Draw(canvas)
    for x, y in rng.normal(0, reach * 0.6, (count, 2)):
        size = radius * rng.uniform(0.6, 1.5)
        place = (np.clip(x, -reach * 2, reach * 2) + half, np.clip(y, -reach * 2, reach * 2) + half)
        left, top = (place[0] - size) * factor, (place[1] - size) * factor
        pen.ellipse((left, top, left + 2 * size * factor, top + 2 * size * factor), fill=255)
    return from_bytes(canvas.reduce(factor))


def pits(rng: np.random.Generator, pixels: float, scale: float) -> FloatArray:
    """One to eight tiny dots."""
    return dots(rng, pixels, scale, most=8, least=1)


def particle(rng: np.random.Generator, pixels: float, scale: float) -> FloatArray:
    """A crumb, a hair or a scatter of crumbs."""
    draw = rng.random()
    if draw < 0.2:
        length, width = _line_size(rng, pixels, scale, 2.0)
        path = _path(rng, length, jag=0.05, curve=2.5)
        return _strokes([path], [np.full(len(path), width, np.float32)])
    if draw < 0.4:
        return dots(rng, pixels, scale, most=12)
    return blob(rng, pixels, rough=(0.1, 0.5), soft=(0.05, 0.2))


def streak(rng: np.random.Generator, pixels: float, scale: float) -> FloatArray:
    """A wide, soft, elongated stroke."""
    length = np.sqrt(pixels) * rng.uniform(1.8, 4)
    path = _path(rng, length, jag=0.02, curve=rng.choice([0.1, 1.0]))
    width = np.full(len(path), max(2.0, pixels / length), np.float32) * rng.uniform(0.8, 1.2, len(path))
    return soften(_strokes([path], [width.astype(np.float32)]), max(0.6, pixels / length * 0.12))


def glyphs(rng: np.random.Generator, pixels: float, scale: float) -> FloatArray:
    """Letters or simple marks, as a stray print."""
    text = "".join(rng.choice(list("ABCDEFHKLMNPRSTUXZ0123456789#/-+"), int(rng.integers(1, 7))))
    size = float(np.clip(np.sqrt(pixels * 3.5 / len(text)), 8, 120 * max(scale, 0.2)))
    canvas = Image.new("L", (int(len(text) * 7) + 6, 15))
    ImageDraw.Draw(canvas).text((3, 2), text, fill=255)
    box_ = canvas.getbbox() or (0, 0, *canvas.size)
    canvas = canvas.crop((box_[0] - 1, box_[1] - 1, box_[2] + 1, box_[3] + 1))
    zoom = size / canvas.height
    canvas = canvas.resize(
        (max(4, int(canvas.width * zoom)), max(4, int(canvas.height * zoom))), Image.Resampling.BICUBIC
    )
    return from_bytes(canvas.rotate(float(rng.uniform(0, 360)), Image.Resampling.BILINEAR, expand=True))
