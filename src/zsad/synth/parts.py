"""Normal objects: screws, rings, gears, pills, nuts, boards …; each drawn in coordinates of its own.

A part function gets the coordinates u (along) and v (across), in which the part fills [-1, 1], and the size
of a pixel in these units; it returns its colours (h, w, 3) in about [0, 1] and its coverage (h, w) in [0, 1].
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from zsad.synth.noise import (
    FloatArray,
    colour,
    fractal,
    magnitude,
    mix,
    smooth,
    smooth_stretched,
    step,
    tint,
    white,
)

Drawn = tuple[FloatArray, FloatArray]
PartFunction = Callable[[np.random.Generator, FloatArray, FloatArray, float], Drawn]


@dataclass(frozen=True, slots=True)
class Part:
    """Drawing function of an object, its height over its length, and `many` if images may show several."""

    draw: PartFunction
    aspect: float = 1.0
    many: bool = False


def _fill(distance: FloatArray, pixel: float) -> FloatArray:
    """Coverage of a signed distance (negative inside), with edges one pixel wide."""
    return np.asarray(np.clip(np.float32(0.5) - distance * np.float32(1 / pixel), 0, 1), dtype=np.float32)


def _fraction(field: FloatArray) -> FloatArray:
    """The part after the point; faster than the remainder operator."""
    return field - np.floor(field)


def _box(u: FloatArray, v: FloatArray, half_u: float, half_v: float, corner: float = 0.0) -> FloatArray:
    """Signed distance to a rectangle with rounded corners, about."""
    across = np.maximum(np.abs(u) - np.float32(half_u - corner), 0)
    down = np.maximum(np.abs(v) - np.float32(half_v - corner), 0)
    inner = np.minimum(np.maximum(np.abs(u) - np.float32(half_u), np.abs(v) - np.float32(half_v)), 0)
    return np.asarray(
        magnitude(across, down) - np.float32(corner) + inner * np.float32(corner == 0), dtype=np.float32
    )


def _polygon(u: FloatArray, v: FloatArray, sides: int, radius: float) -> FloatArray:
    """Signed distance to a regular polygon of the given inner radius."""
    distance = np.full(np.broadcast(u, v).shape, -9.0, np.float32)
    for side in range(sides):
        angle = 2 * np.pi * side / sides
        distance = np.maximum(distance, u * np.float32(np.cos(angle)) + v * np.float32(np.sin(angle)))
    return np.asarray(distance - np.float32(radius), dtype=np.float32)


def _metal(rng: np.random.Generator, shape: tuple[int, ...]) -> FloatArray:
    """A metal colour (h, w, 3) with fine streaks."""
    hue = float(rng.choice([0.6, 0.12, 0.08]))
    base = colour(rng, brightness=(0.35, 0.8), saturation=(0, 0.12 if hue > 0.5 else 0.45), hue=hue)
    return tint(base, 1 + smooth_stretched(rng, (shape[0], shape[1]), 2, 20) * 0.03)


def _screw(rng: np.random.Generator, u: FloatArray, v: FloatArray, pixel: float) -> Drawn:
    head_end, neck = rng.uniform(-0.72, -0.6), rng.uniform(-0.6, 0.0)
    half, head = rng.uniform(0.07, 0.1), rng.uniform(0.15, 0.22)
    pitch = rng.uniform(0.05, 0.09)
    thread = (u > neck).astype(np.float32)
    wave = np.sin((u + v * 0.25) * np.float32(2 * np.pi / pitch))
    tip = np.clip((1 - u) * np.float32(4.5 / 1.0), 0, 1)
    body = np.abs(v) - (np.float32(half) + wave * 0.022 * thread) * tip
    shank = np.maximum(np.maximum(body, -u + np.float32(head_end)), u - 1)
    cone = (
        np.abs(v) - np.float32(half) - np.clip((head_end + 0.12 - u) / 0.12, 0, 1) * np.float32(head - half)
    )
    head_part = np.maximum(np.maximum(cone, u - np.float32(head_end + 0.12)), -u - rng.uniform(0.9, 0.98))
    width = np.where(u < head_end, np.float32(head), np.float32(half))
    light = np.sqrt(np.clip(1 - ((v + 0.25 * width) / (width * 1.25)) ** 2, 0.05, 1))
    shade = (0.35 + 0.75 * light) * (1 + wave * thread * 0.28)
    tone = _metal(rng, u.shape)
    return tint(tone, shade), _fill(np.minimum(shank, head_part), pixel)


def _bolt(rng: np.random.Generator, u: FloatArray, v: FloatArray, pixel: float) -> Drawn:
    half, pitch = rng.uniform(0.13, 0.17), rng.uniform(0.06, 0.1)
    wave = np.sin((u + v * 0.2) * np.float32(2 * np.pi / pitch)) * (u > rng.uniform(-0.3, 0.1))
    shank = np.maximum(np.abs(v) - np.float32(half) - wave * 0.015, np.abs(u) - 0.97)
    head = _box(u + 0.8, v, 0.17, 0.3, 0.03)
    facet = np.where(np.abs(v) < 0.13, np.float32(1.0), np.float32(0.72))
    light = np.sqrt(np.clip(1 - ((v + 0.05) / (half * 1.3)) ** 2, 0.05, 1))
    shade = np.where(head < 0, facet, (0.35 + 0.7 * light) * (1 + wave * 0.25))
    return tint(_metal(rng, u.shape), shade), _fill(np.minimum(shank, head), pixel)


def _nut(rng: np.random.Generator, u: FloatArray, v: FloatArray, pixel: float) -> Drawn:
    radius = magnitude(u, v)
    hole = rng.uniform(0.4, 0.5)
    outline = _polygon(u, v, 6, 0.86)
    ring = np.abs(radius - np.float32(hole + 0.06))
    shade = 0.85 + 0.2 * u - 0.3 * (ring < 0.03) + 0.15 * (radius < 0.8)
    return tint(_metal(rng, u.shape), shade), _fill(np.maximum(outline, np.float32(hole) - radius), pixel)


def _washer(rng: np.random.Generator, u: FloatArray, v: FloatArray, pixel: float) -> Drawn:
    radius = magnitude(u, v)
    hole = rng.uniform(0.3, 0.75)
    middle, half = (1 + hole) / 2, (1 - hole) / 2
    bulge = np.sqrt(np.clip(1 - ((radius - middle) / half) ** 2, 0, 1))
    side = (u + v) * rng.uniform(-0.3, 0.3)
    flat = rng.random() < 0.5
    shade = (0.9 + side) if flat else 0.35 + 0.7 * bulge + side
    base = _metal(rng, u.shape) if rng.random() < 0.6 else np.broadcast_to(colour(rng), (*u.shape, 3))
    return tint(base, shade), _fill(np.abs(radius - np.float32(middle)) - np.float32(half), pixel)


def _gear(rng: np.random.Generator, u: FloatArray, v: FloatArray, pixel: float) -> Drawn:
    radius, angle = magnitude(u, v), np.arctan2(v, u)
    teeth = int(rng.integers(10, 30))
    edge = 0.88 + 0.09 * np.clip(np.sin(angle * teeth) * 2.5, -1, 1)
    outline = np.maximum(radius - edge, np.float32(rng.uniform(0.12, 0.25)) - radius)
    spokes = int(rng.integers(0, 7))
    if spokes > 2:
        web = np.maximum(np.abs(radius - 0.5) - 0.14, 0.16 - np.abs(np.sin(angle * spokes / 2)) * radius)
        outline = np.maximum(outline, -web)
    shade = 0.8 + 0.2 * (u - v) * 0.5 + 0.15 * (radius > 0.72) - 0.2 * (np.abs(radius - 0.72) < 0.015)
    base = _metal(rng, u.shape) if rng.random() < 0.6 else np.broadcast_to(colour(rng), (*u.shape, 3))
    return tint(base, shade), _fill(outline.astype(np.float32), pixel)


def _plate(rng: np.random.Generator, u: FloatArray, v: FloatArray, pixel: float) -> Drawn:
    half = rng.uniform(0.45, 0.95)
    outline = _box(u, v, 0.97, half, rng.uniform(0.02, 0.25))
    image = _metal(rng, u.shape) if rng.random() < 0.5 else np.broadcast_to(colour(rng), (*u.shape, 3)).copy()
    for _ in range(int(rng.integers(0, 4))):
        x, y, radius = rng.uniform(0.2, 0.8), rng.uniform(0.1, 0.8) * half, rng.uniform(0.05, 0.12)
        mirrored_v = np.abs(v) if rng.random() < 0.7 else v
        outline = np.maximum(
            outline, np.float32(radius) - magnitude(np.abs(u) - np.float32(x), mirrored_v - np.float32(y))
        )
    if rng.random() < 0.4:
        stripe = _fill(_box(u, v, 0.8, half * 0.3, 0.05), pixel) * rng.uniform(0.4, 1)
        image = mix(image, colour(rng), stripe)
    bevel = 1 - 0.3 * step(outline, -0.05, 0.0) + 0.12 * (u + v)
    return tint(image, bevel), _fill(outline, pixel)


def _capsule(rng: np.random.Generator, u: FloatArray, v: FloatArray, pixel: float) -> Drawn:
    half = rng.uniform(0.3, 0.4)
    outline = _box(u, v, 0.98, half, half - 0.001)
    first, second = colour(rng, brightness=(0.4, 1)), colour(rng, brightness=(0.4, 1), saturation=(0, 0.8))
    seam = rng.uniform(-0.2, 0.2)
    image = mix(first, second, step(u, seam - pixel, seam + pixel))
    light = np.sqrt(np.clip(1 - (v / np.float32(half)) ** 2, 0.02, 1))
    gloss = np.clip(1 - np.abs(v + half * 0.45) / 0.06, 0, 1) * (np.abs(u) < 0.75) * rng.uniform(0, 0.5)
    shade = 0.45 + 0.55 * light - 0.15 * (np.abs(u - seam) < 0.015)
    return tint(image, shade) + gloss[..., None], _fill(outline, pixel)


def _pill(rng: np.random.Generator, u: FloatArray, v: FloatArray, pixel: float) -> Drawn:
    squash = np.float32(rng.choice([1.0, 1.0, 0.6]))
    radius = magnitude(u, v / squash)
    outline = (radius - 0.97) * squash
    base = colour(rng, brightness=(0.6, 1), saturation=(0, 0.5))
    shade = 1 - 0.35 * step(radius, 0.75, 1.05) + smooth(rng, u.shape, 2) * 0.02
    image = tint(base, shade)
    if rng.random() < 0.5:
        image = tint(image, 1 - 0.25 * _fill(np.maximum(np.abs(v) - 0.025, radius - 0.8), pixel))
    if rng.random() < 0.3:
        specks = step(smooth(rng, u.shape, 3), 1.6, 2.0)
        image = mix(image, colour(rng, saturation=(0.4, 0.9)), specks * 0.7)
    return image, _fill(outline, pixel)


def _cap(rng: np.random.Generator, u: FloatArray, v: FloatArray, pixel: float) -> Drawn:
    radius = magnitude(u, v)
    rings = rng.uniform(-0.25, 0.25, 24).astype(np.float32)
    inner = rng.uniform(0.4, 0.7)
    profile = rings[np.clip((radius * 12).astype(np.int32), 0, 23)] * (radius > inner)
    base = colour(rng, brightness=(0.2, 0.9), saturation=(0, 0.7))
    sheen = 0.15 * np.cos(2 * np.arctan2(v, u) + rng.uniform(0, 6))
    image = tint(base, 0.8 + profile + sheen)
    if rng.random() < 0.5:
        image = mix(image, colour(rng, brightness=(0.0, 0.4)), _fill(radius - np.float32(inner * 0.9), pixel))
    return image, _fill(radius - 0.97, pixel)


def _hazelnut(rng: np.random.Generator, u: FloatArray, v: FloatArray, pixel: float) -> Drawn:
    wobble = np.sin(np.arctan2(v, u) * 2 + rng.uniform(0, 6)) * rng.uniform(0, 0.06)
    radius = magnitude(u, v * rng.uniform(1.0, 1.15)) + wobble
    base = colour(rng, brightness=(0.35, 0.65), saturation=(0.5, 0.75), hue=0.065)
    depth = np.sqrt(np.clip(1 - (radius * 0.95) ** 2, 0.02, 1))
    light = 0.3 + 0.75 * depth + 0.15 * (u * rng.uniform(-1, 1) + v * rng.uniform(-1, 1))
    image = tint(base, light + smooth_stretched(rng, (u.shape[0], u.shape[1]), 14, 3) * 0.05)
    scar = magnitude(u - rng.uniform(0.1, 0.5), v * 1.2) + fractal(rng, u.shape, 12) * 0.02
    pale = base + np.array([0.28, 0.25, 0.2], np.float32)
    size = rng.uniform(0.3, 0.6)
    pale_shade = tint(pale, light * (0.9 + smooth(rng, u.shape, 3) * 0.06))
    return mix(image, pale_shade, 1 - step(scar, size, size + 0.06)), _fill(radius - 0.95, pixel)


def _food(rng: np.random.Generator, u: FloatArray, v: FloatArray, pixel: float) -> Drawn:
    angle = np.arctan2(v, u)
    bend = v + rng.uniform(0, 0.35) * (u**2 - 0.5)
    radius = magnitude(u, bend * rng.uniform(1.1, 1.7))
    for order in (2, 3, 5):
        radius = radius + np.sin(angle * order + rng.uniform(0, 6)) * np.float32(rng.uniform(0, 0.05))
    base = colour(
        rng, brightness=(0.5, 0.95), saturation=(0.15, 0.6), hue=float(rng.choice([0.07, 0.11, 0.13, 0.95]))
    )
    light = 0.5 + 0.5 * np.sqrt(np.clip(1 - radius**2, 0.02, 1)) + fractal(rng, u.shape, 18) * 0.05
    return tint(base, light), _fill(radius - 0.92, pixel)


def _cable(rng: np.random.Generator, u: FloatArray, v: FloatArray, pixel: float) -> Drawn:
    image = np.broadcast_to(colour(rng, brightness=(0.5, 0.9), saturation=(0, 0.2)), (*u.shape, 3)).copy()
    count = int(rng.integers(2, 5))
    reach, size = (0.52, 0.38) if count < 4 else (0.58, 0.33)
    start = rng.uniform(0, 2 * np.pi)
    strands = step(smooth(rng, u.shape, max(3.0, 0.05 / pixel)), -0.3, 0.4)
    copper = colour(rng, brightness=(0.6, 0.9), saturation=(0.3, 0.6), hue=0.06)
    for wire in range(count):
        angle = start + 2 * np.pi * wire / count
        radius = magnitude(u - np.float32(reach * np.cos(angle)), v - np.float32(reach * np.sin(angle)))
        sleeve = colour(rng, brightness=(0.3, 0.9), saturation=(0.2, 0.9))
        image = mix(image, sleeve, _fill(radius - np.float32(size), pixel))
        core = tint(copper, 0.55 + 0.45 * strands)
        image = mix(image, core, _fill(radius - np.float32(size * 0.68), pixel))
    return image, _fill(magnitude(u, v) - 0.98, pixel)


def _tyre(rng: np.random.Generator, u: FloatArray, v: FloatArray, pixel: float) -> Drawn:
    radius, angle = magnitude(u, v), np.arctan2(v, u)
    hole = rng.uniform(0.45, 0.65)
    tread = np.sin(angle * int(rng.integers(20, 50)) + radius * 12) * (radius > 0.82)
    ridges = np.sin(radius * rng.uniform(25, 60)) * (radius < 0.82)
    shade = 0.17 + 0.06 * tread + 0.03 * ridges + 0.06 * u + white(rng, u.shape) * 0.012
    base = colour(rng, brightness=(0.8, 1), saturation=(0, 0.15))
    return tint(base, shade), _fill(np.maximum(radius - 0.98, np.float32(hole) - radius), pixel)


def _board(rng: np.random.Generator, u: FloatArray, v: FloatArray, pixel: float) -> Drawn:
    half = rng.uniform(0.6, 0.98)
    hue = float(rng.choice([0.36, 0.36, 0.6, 0.0]))
    base = colour(rng, brightness=(0.2, 0.5), saturation=(0.5, 0.9), hue=hue)
    lane = np.abs(_fraction(u * 9 + np.floor(v * 3) * 0.4) - 0.5) < 0.12
    image = tint(base, 1 + 0.25 * lane * (np.sin(v * 7) > 0))
    gold = np.array([0.85, 0.72, 0.4], np.float32)
    pad = magnitude(_fraction(u * 8) - 0.5, _fraction(v * 8) - 0.5) - 0.22
    image = mix(image, gold, _fill(pad / 8, pixel) * (np.abs(v) > half * 0.8))
    rows = _fraction(v * 24) < 0.5
    for _ in range(int(rng.integers(4, 10))):
        x, y = rng.uniform(-0.75, 0.75), rng.uniform(-0.6, 0.6) * half
        wide, tall = rng.uniform(0.05, 0.22), rng.uniform(0.05, 0.2)
        across, down = np.abs(u - np.float32(x)) - np.float32(wide), np.abs(v - np.float32(y)) < tall
        image[(across < 0.03) & down & rows] = rng.uniform(0.6, 0.9)
        image[(across < 0) & down] = colour(rng, brightness=(0.05, 0.5), saturation=(0, 0.3))
    return image, _fill(_box(u, v, 0.98, half, 0.02), pixel)


def _connector(rng: np.random.Generator, u: FloatArray, v: FloatArray, pixel: float) -> Drawn:
    half = rng.uniform(0.3, 0.45)
    pins = int(rng.integers(4, 11))
    body = _box(u, v - np.float32(-0.15), 0.95, half, 0.04)
    image = tint(colour(rng, brightness=(0.1, 0.9)), 0.85 + 0.15 * v)
    place = _fraction((u + 0.9) * np.float32(pins / 1.8)) - 0.5
    inside = np.abs(u) < 0.9
    slot = np.where(
        inside, np.maximum(np.abs(place) - 0.28, np.abs(v + 0.15) - np.float32(half * 0.5)), 9
    ).astype(np.float32)
    image = mix(image, image * 0.35, _fill(slot * 0.5, pixel))
    leg = np.where(
        inside, np.maximum((np.abs(place) - 0.12) * np.float32(1.8 / pins), np.abs(v - 0.45) - 0.35), 9
    ).astype(np.float32)
    silver = np.full(3, rng.uniform(0.6, 0.9), np.float32)
    image = mix(image, silver, _fill(leg, pixel) * (body > 0))
    return image, _fill(np.minimum(body, leg), pixel)


def _spring(rng: np.random.Generator, u: FloatArray, v: FloatArray, pixel: float) -> Drawn:
    pitch, half = rng.uniform(0.12, 0.25), rng.uniform(0.22, 0.34)
    phase = np.abs(_fraction((u + v * np.float32(pitch / half / 4)) * np.float32(1 / pitch)) - 0.5)
    wire = np.maximum((phase - 0.3) * np.float32(pitch), np.maximum(np.abs(v) - half, np.abs(u) - 0.97))
    shade = (0.4 + 0.7 * np.sqrt(np.clip(1 - (phase / 0.32) ** 2, 0, 1))) * (1 - 0.4 * (v / half) ** 2)
    return tint(_metal(rng, u.shape), shade), _fill(wire.astype(np.float32), pixel)


PARTS: dict[str, Part] = {
    "screw": Part(_screw, aspect=0.25, many=True),
    "bolt": Part(_bolt, aspect=0.33, many=True),
    "hex nut": Part(_nut, many=True),
    "washer": Part(_washer, many=True),
    "gear": Part(_gear),
    "plate": Part(_plate),
    "capsule": Part(_capsule, aspect=0.42, many=True),
    "pill": Part(_pill, many=True),
    "bottle cap": Part(_cap),
    "hazelnut": Part(_hazelnut, many=True),
    "food piece": Part(_food, aspect=0.9, many=True),
    "cable": Part(_cable),
    "tyre": Part(_tyre),
    "circuit board": Part(_board),
    "connector": Part(_connector),
    "spring": Part(_spring, aspect=0.35, many=True),
}
