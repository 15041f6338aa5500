"""Normal medical images: scans, endoscopy, retina, skin; each with its foreground."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from PIL import Image, ImageDraw

from zsad.synth.noise import (
    BoolArray,
    FloatArray,
    Shape,
    colour,
    fractal,
    magnitude,
    mix,
    smooth,
    soften,
    step,
    tint,
    turned,
    white,
)

Scan = tuple[FloatArray, BoolArray]


def _grey_image(field: FloatArray) -> FloatArray:
    return tint(np.ones(3, np.float32), np.clip(field, 0, 1))


def _brain(rng: np.random.Generator, shape: Shape) -> Scan:
    """A head from above: skull, folded rim, darker middle, symmetric left and right."""
    half = min(shape) / 2
    along, across = turned(shape, np.pi / 2 + rng.normal(0, 0.06))
    u = along / np.float32(half * rng.uniform(0.8, 0.95))
    v = across / np.float32(half * rng.uniform(0.62, 0.8))
    radius = magnitude(u, v)
    folds = fractal(rng, shape, half * 0.16, octaves=3)
    mirrored = (folds + folds[:, ::-1]) * 0.5 + folds * 0.25
    tissue = rng.uniform(0.35, 0.55) + mirrored * rng.uniform(0.05, 0.1) * step(radius, 0.2, 0.7)
    side = np.abs(v)
    hollow = magnitude((side - 0.17) * 3.2, (u + 0.02) * 1.5) + mirrored * np.float32(0.05)
    tissue = tissue * (1 - (1 - step(hollow, 0.3, 0.48)) * rng.uniform(0.35, 0.7))
    gap = 1 - step(side, 0.0, 0.035)
    tissue = tissue * (1 - gap * 0.35)
    skull = np.clip(1 - np.abs(radius - 0.95) / 0.05, 0, 1) * rng.uniform(0.2, 0.6)
    inside = 1 - step(radius, 0.84, 0.9)
    field = tissue * inside + skull + np.abs(white(rng, shape)) * rng.uniform(0.0, 0.02)
    return _grey_image(field), radius < 0.85


def _body(rng: np.random.Generator, shape: Shape) -> Scan:
    """A slice through a body: an ellipse with organs of even brightness and a spine."""
    along, across = turned(shape, rng.normal(0, 0.05))
    u, v = along / np.float32(shape[1] * 0.46), across / np.float32(shape[0] * rng.uniform(0.32, 0.42))
    radius = magnitude(u, v)
    field = np.full(shape, 0.3, np.float32) * (1 - step(radius, 0.97, 1.0))
    inner = 1 - step(radius, 0.84, 0.88)
    field = field + inner * rng.uniform(0.05, 0.15)
    warp = smooth(rng, shape, min(shape) * 0.2) * 0.12
    organs = [(-0.38, -0.1, 0.42, 0.5, 0.2), (0.45, -0.15, 0.22, 0.3, 0.17), (0.1, 0.1, 0.2, 0.2, -0.12)]
    for x, y, wide, tall, tone in organs:
        place = magnitude((u - x + rng.normal(0, 0.03)) / np.float32(wide), (v - y) / np.float32(tall)) + warp
        field = field + (1 - step(place, 0.9, 1.0)) * np.float32(tone * rng.uniform(0.6, 1.2)) * inner
    spine = magnitude(u * 5.5, (v - 0.6) * 4.5)
    field = field + (1 - step(spine, 0.8, 1.0)) * 0.45
    grain = smooth(rng, shape, 2) * rng.uniform(0.01, 0.035) * (radius < 1)
    return _grey_image(field + grain), radius < 0.86


def _endoscopy(rng: np.random.Generator, shape: Shape) -> Scan:
    """A reddish tube with folds, a dark way on and wet highlights, seen through a round or cut-off lens."""
    centre = (shape[0] * rng.uniform(0.25, 0.75), shape[1] * rng.uniform(0.25, 0.75))
    along, across = turned(shape, 0.0, centre=centre)
    bend = fractal(rng, shape, min(shape) * 0.25, octaves=3)
    radius = magnitude(along, across) / np.float32(min(shape) / 2) + bend * 0.08
    folds = np.sin(np.sqrt(np.abs(radius)) * rng.uniform(8, 18) + bend) * np.float32(rng.uniform(0.02, 0.08))
    base = colour(
        rng, brightness=(0.6, 0.85), saturation=(0.4, 0.65), hue=float(rng.choice([0.0, 0.02, 0.05]))
    )
    light = step(radius, -0.05, rng.uniform(0.4, 0.8)) * 0.75 + 0.25 + folds
    veins = 1 - step(np.abs(fractal(rng, shape, min(shape) * 0.12, octaves=3)), 0.0, 0.12)
    image = tint(base, light + smooth(rng, shape, 20) * 0.02)
    image = mix(image, image * np.array([0.95, 0.6, 0.6], np.float32), veins * rng.uniform(0.1, 0.5))
    gloss = step(smooth(rng, shape, 8) + folds * 6, 2.0, 2.4) * rng.uniform(0, 0.7)
    image = mix(image, np.ones(3, np.float32), gloss)
    middle_u, middle_v = turned(shape, 0.0)
    lens = magnitude(middle_u / shape[1], middle_v / shape[0]) * 2
    limit = rng.uniform(1.05, 1.5)
    inside = lens < limit
    return tint(image, 1 - step(lens, limit - 0.02, limit)), inside


def _vessels(rng: np.random.Generator, shape: Shape, start: tuple[float, float]) -> FloatArray:
    """Branching dark lines from a place (row, column)."""
    canvas = Image.new("L", (shape[1], shape[0]))
    pen = ImageDraw.Draw(canvas)
    size = min(shape)
    stack = [(start[1], start[0], float(angle), size / 50) for angle in rng.uniform(0, 2 * np.pi, 7)]
    while stack:
        x, y, heading, width = stack.pop()
        for _ in range(int(rng.integers(8, 14))):
            heading += float(rng.normal(0, 0.22))
            further = (x + np.cos(heading) * size / 28, y + np.sin(heading) * size / 28)
            pen.line([(x, y), further], fill=255, width=max(1, round(width)))
            x, y = further
        if width > size / 150 and 0 < x < shape[1] and 0 < y < shape[0]:
            stack += [(x, y, heading + turn, width * 0.62) for turn in (-0.5, 0.45)]
    return soften(np.asarray(canvas, dtype=np.float32) / 255, 0.8)


def _retina(rng: np.random.Generator, shape: Shape) -> Scan:
    """The back of an eye: an orange disc with vessels, a bright nerve head and a darker spot."""
    half = min(shape) / 2
    along, across = turned(shape, 0.0)
    radius = magnitude(along, across) / np.float32(half * 0.97)
    base = colour(rng, brightness=(0.6, 0.9), saturation=(0.55, 0.8), hue=0.05)
    light = 1 - 0.35 * radius**2 + smooth(rng, shape, half * 0.3) * 0.05
    image = tint(base, light)
    side = rng.choice([-1, 1])
    nerve = (shape[0] / 2 + rng.normal(0, 0.05) * half, shape[1] / 2 + side * half * rng.uniform(0.4, 0.6))
    spot = magnitude(
        *turned(shape, 0.0, centre=(shape[0] / 2, shape[1] / 2 - side * half * 0.1))
    ) / np.float32(half)
    image = tint(image, 1 - 0.35 * (1 - step(spot, 0.02, 0.22)))
    image = mix(image, image * np.array([0.6, 0.35, 0.4], np.float32), _vessels(rng, shape, nerve) * 0.75)
    disc = magnitude(*turned(shape, 0.0, centre=nerve)) / np.float32(half)
    image = mix(image, np.array([1.0, 0.88, 0.6], np.float32), (1 - step(disc, 0.1, 0.17)) * 0.8)
    inside = radius < 0.97
    return tint(image, 1 - step(radius, 0.98, 1.0)), inside


def _skin(rng: np.random.Generator, shape: Shape) -> Scan:
    """Skin with fine relief, at times with a few hairs."""
    base = colour(rng, brightness=(0.5, 0.95), saturation=(0.2, 0.45), hue=0.05)
    relief = fractal(rng, shape, 40, octaves=5) * 0.03 + smooth(rng, shape, 3) * 0.015
    image = tint(base, 1 + relief)
    if rng.random() < 0.4:
        canvas = Image.new("L", (shape[1], shape[0]))
        pen = ImageDraw.Draw(canvas)
        for _ in range(int(rng.integers(3, 16))):
            x, y, reach = (
                rng.uniform(0, shape[1]),
                rng.uniform(0, shape[0]),
                rng.uniform(0.2, 0.8) * min(shape),
            )
            start = float(rng.uniform(0, 360))
            pen.arc((x, y, x + reach, y + reach), start, start + float(rng.uniform(30, 100)), fill=220)
        hairs = np.asarray(canvas, dtype=np.float32) / 255
        image = mix(image, base * 0.3, hairs)
    return image, np.ones(shape, np.bool_)


def _ultrasound(rng: np.random.Generator, shape: Shape) -> Scan:
    """A fan of grainy layers."""
    along, across = turned(shape, 0.0, centre=(-0.15 * shape[0], shape[1] / 2))
    depth = magnitude(along, across) / np.float32(shape[0] * 1.15)
    angle = np.abs(along) / np.maximum(across, 1)
    inside = (angle < rng.uniform(0.5, 0.8)) & (depth > 0.15) & (depth < 1)
    layers = 0.3 + 0.12 * np.sin(depth * rng.uniform(10, 30) + smooth(rng, shape, 60))
    layers = layers + fractal(rng, shape, min(shape) * 0.2, octaves=3) * 0.08
    grain = np.abs(smooth(rng, shape, 2)) * 0.5 + 0.6
    return _grey_image((layers * grain * (1.1 - 0.6 * depth)).astype(np.float32) * inside), inside


def _xray(rng: np.random.Generator, shape: Shape) -> Scan:
    """A chest: bright spine and shoulders, two dark lungs crossed by ribs."""
    along, across = turned(shape, rng.normal(0, 0.03))
    u, v = along / np.float32(shape[1] / 2), across / np.float32(shape[0] / 2)
    side = np.abs(u)
    lung = (
        magnitude((side - 0.42) / np.float32(0.3), (v - 0.02) / np.float32(0.72))
        + smooth(rng, shape, 40) * 0.03
    )
    field = 0.62 + 0.22 * np.exp(-((u * 7) ** 2)) - 0.15 * side**2 + 0.05 * v
    dark = 1 - step(lung, 0.75, 1.05)
    ribs = step(np.sin((v + side**2 * 0.5) * rng.uniform(18, 24)), 0.3, 0.9) * 0.08
    field = field - dark * rng.uniform(0.3, 0.42) + ribs * (side < 0.85)
    field = field + fractal(rng, shape, 30, octaves=4) * 0.015
    return _grey_image(field.astype(np.float32)), lung < 1.0


TISSUES: dict[str, Callable[[np.random.Generator, Shape], Scan]] = {
    "brain scan": _brain,
    "abdominal scan": _body,
    "endoscopy image": _endoscopy,
    "retina": _retina,
    "skin": _skin,
    "ultrasound image": _ultrasound,
    "chest x-ray": _xray,
}
