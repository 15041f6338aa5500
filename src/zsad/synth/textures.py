"""Normal surfaces: one short function a material, each drawing (H, W, 3) float32 in about [0, 1]."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from zsad.synth.noise import (
    FloatArray,
    Shape,
    colour,
    fractal,
    magnitude,
    mix,
    smooth,
    smooth_stretched,
    step,
    tint,
    turned,
    voronoi,
    white,
)


@dataclass(frozen=True, slots=True)
class Texture:
    """Drawing function of a material; on `regular`, repeating ones a misplaced block is visible."""

    draw: Callable[[np.random.Generator, Shape], FloatArray]
    regular: bool = False


def _scale(shape: Shape) -> float:
    return max(min(shape) / 256.0, 0.15)


def _angle(rng: np.random.Generator) -> float:
    """A direction: mostly straight, as products lie under a camera, sometimes any."""
    straight = int(rng.integers(2)) * np.pi / 2 + rng.normal(0, 0.03)
    return float(straight if rng.random() < 0.7 else rng.uniform(0, np.pi))


def _period(rng: np.random.Generator, shape: Shape, low: float, high: float) -> float:
    return max(3.0, float(np.exp(rng.uniform(np.log(low), np.log(high)))) * _scale(shape))


def _two_tones(rng: np.random.Generator, *, contrast: float = 0.35) -> tuple[FloatArray, FloatArray]:
    """A base colour and a darker or lighter relative of it."""
    base = colour(rng, brightness=(0.25, 0.9))
    other = base * np.float32(1 - rng.uniform(0.15, contrast + 0.2)) + rng.normal(0, 0.03, 3).astype(
        np.float32
    )
    return base, np.clip(other, 0, 1)


def _sine(field: FloatArray, period: float) -> FloatArray:
    return np.asarray(np.sin(field * np.float32(2 * np.pi / period)) * 0.5 + 0.5, dtype=np.float32)


def _saw(field: FloatArray, period: float) -> FloatArray:
    """The position inside a period, in [0, 1)."""
    scaled = field * np.float32(1 / period)
    return np.asarray(scaled - np.floor(scaled), dtype=np.float32)


def _fabric(rng: np.random.Generator, shape: Shape) -> FloatArray:
    period, angle = _period(rng, shape, 4, 16), _angle(rng)
    along, across = turned(shape, angle)
    along = along + smooth(rng, shape, 60) * np.float32(rng.uniform(0, 0.15) * period)
    across = across * rng.uniform(0.8, 1.25)
    over = np.floor(along / period) + np.floor(across / period) * rng.integers(1, 3)
    warp, weft = np.abs(_saw(along, period) - 0.5), np.abs(_saw(across, period) - 0.5)
    upper = (over % 2) < 1
    height = np.float32(1) - 4 * np.square(np.where(upper, warp, weft))
    base, other = _two_tones(rng)
    thread = mix(other, base, upper.astype(np.float32))
    shade = height * 0.5 + 0.5 + white(rng, shape) * 0.04
    return tint(thread, shade)


def _knit(rng: np.random.Generator, shape: Shape) -> FloatArray:
    period, angle = _period(rng, shape, 7, 18), _angle(rng)
    along, across = turned(shape, angle)
    side = np.abs(_saw(across, period) - 0.5)
    loop = _sine(along + side * np.float32(period * 1.2), period * rng.uniform(0.5, 0.8))
    height = loop * (1 - np.abs(side - 0.25) * 2.2)
    base, other = _two_tones(rng, contrast=0.5)
    return mix(other, base, np.clip(height + white(rng, shape) * 0.06, 0, 1))


def _metal(rng: np.random.Generator, shape: Shape) -> FloatArray:
    length = rng.uniform(30, 200)
    streaks = smooth_stretched(rng, shape, 1, length) + smooth_stretched(rng, shape, 4, length * 2) * 0.5
    if rng.random() < 0.4:
        streaks = (smooth_stretched(rng, shape[::-1], 1, length)).T
    base = colour(rng, brightness=(0.35, 0.85), saturation=(0, 0.12))
    along, _ = turned(shape, rng.uniform(0, np.pi))
    sheen = np.sin(along * np.float32(rng.uniform(1, 4) / max(shape)) + rng.uniform(0, 6))
    tone = 1 + streaks * rng.uniform(0.02, 0.08) + sheen * 0.12
    return tint(base, tone)


def _wood(rng: np.random.Generator, shape: Shape) -> FloatArray:
    scale = _scale(shape)
    bend = smooth_stretched(rng, shape, 40 * scale, 160 * scale) * np.float32(18 * scale)
    _, across = turned(shape, rng.normal(0, 0.05))
    rings = _saw(across + bend, _period(rng, shape, 10, 36))
    fibres = smooth_stretched(rng, shape, 1.2, 24)
    base = colour(rng, brightness=(0.45, 0.85), saturation=(0.35, 0.6), hue=0.08)
    tone = 1 - 0.35 * rings * rng.uniform(0.4, 1) + fibres * 0.05
    image = tint(base, tone)
    return np.ascontiguousarray(image) if rng.random() < 0.5 else _turn_quarter(image, shape)


def _turn_quarter(image: FloatArray, shape: Shape) -> FloatArray:
    """A quarter turn where the image is square; other shapes are only mirrored."""
    return np.ascontiguousarray(image.transpose(1, 0, 2) if shape[0] == shape[1] else image[::-1])


def _stripes(rng: np.random.Generator, shape: Shape) -> FloatArray:
    along, _ = turned(shape, _angle(rng))
    period, sharp = _period(rng, shape, 8, 50), rng.uniform(0.05, 0.5)
    wave = step(_sine(along, period), 0.5 - sharp, 0.5 + sharp)
    base, other = _two_tones(rng, contrast=0.6)
    image = mix(base, other, wave)
    return np.asarray(image + (smooth(rng, shape, 2) * rng.uniform(0, 0.05))[..., None], dtype=np.float32)


def _mesh(rng: np.random.Generator, shape: Shape) -> FloatArray:
    period, angle = _period(rng, shape, 10, 40), _angle(rng)
    along, across = turned(shape, angle)
    if rng.random() < 0.3:
        along = along + np.floor(across / period) * np.float32(period / 2)
    thickness = rng.uniform(0.12, 0.35)
    wire = np.minimum(np.abs(_saw(along, period) - 0.5), np.abs(_saw(across, period) - 0.5)) * 2
    soft = 3.0 / period
    bars = 1 - step(wire, thickness - soft / 2, thickness + soft / 2)
    round_wire = np.float32(1.1) - step(wire, 0, thickness) * 0.45
    ground, metal = colour(rng, saturation=(0, 0.3)), colour(rng, saturation=(0, 0.3))
    if abs(float(ground.mean() - metal.mean())) < 0.2:
        ground = ground * 0.25
    lower = tint(ground, 1 + smooth(rng, shape, 30) * 0.05)
    return mix(lower, tint(metal, round_wire), bars)


def _perforated(rng: np.random.Generator, shape: Shape) -> FloatArray:
    period = _period(rng, shape, 12, 44)
    along, across = turned(shape, _angle(rng))
    along = along + (np.floor(across / period) % 2) * np.float32(period / 2 * int(rng.integers(2)))
    distance = magnitude(_saw(along, period) - 0.5, _saw(across, period) - 0.5)
    radius, soft = rng.uniform(0.15, 0.36), 1.0 / period
    dots = 1 - step(distance, radius - soft, radius + soft)
    sheet = colour(rng, brightness=(0.4, 0.9), saturation=(0, 0.4))
    under = sheet * rng.uniform(0.08, 0.55) if rng.random() < 0.7 else colour(rng)
    tone = 1 + smooth(rng, shape, 2) * 0.03
    return np.asarray(mix(sheet, under, dots) * tone[..., None], dtype=np.float32)


def _tiles(rng: np.random.Generator, shape: Shape) -> FloatArray:
    period = _period(rng, shape, 28, 110)
    along, across = turned(shape, _angle(rng))
    across = across * np.float32(rng.choice([1.0, 1.0, 2.0]))
    along = along + (np.floor(across / period) % 2) * np.float32(period / 2 * int(rng.integers(2)))
    row, column = np.floor(across / period).astype(np.int32), np.floor(along / period).astype(np.int32)
    tones = rng.normal(1, rng.uniform(0.0, 0.08), 1024).astype(np.float32)
    tile_tone = tones[(row * 37 + column * 11) % 1024]
    edge = 0.5 - np.maximum(np.abs(_saw(along, period) - 0.5), np.abs(_saw(across, period) - 0.5))
    width = rng.uniform(0.015, 0.05)
    grout = 1 - step(edge, width, width + 1.5 / period)
    base, other = _two_tones(rng)
    vein = fractal(rng, shape, 30 * _scale(shape)) * rng.uniform(0.0, 0.12)
    body = tint(base, tile_tone + vein)
    return mix(body, other * 0.8, grout)


def _granite(rng: np.random.Generator, shape: Shape) -> FloatArray:
    grain = rng.uniform(1.5, 7) * max(_scale(shape), 0.6)
    field = smooth(rng, shape, grain) + white(rng, shape) * 0.2
    other = smooth(rng, shape, grain * 1.5)
    base, dark = _two_tones(rng, contrast=0.7)
    image = mix(base, dark, step(field, 0.3, 0.8))
    third = colour(rng, brightness=(0.5, 1.0), saturation=(0, 0.3))
    return mix(image, third, step(other, 0.8, 1.4) * rng.uniform(0.2, 1))


def _leather(rng: np.random.Generator, shape: Shape) -> FloatArray:
    wall, tone = voronoi(rng, shape, _period(rng, shape, 5, 16))
    base = colour(
        rng, brightness=(0.25, 0.75), saturation=(0.2, 0.65), hue=float(rng.choice([0.05, 0.08, 0.0, 0.6]))
    )
    shade = 0.72 + step(wall, 0.0, 0.45) * 0.3 + (tone - 0.5) * 0.06
    return tint(base, shade + smooth(rng, shape, 45) * 0.04)


def _carpet(rng: np.random.Generator, shape: Shape) -> FloatArray:
    base, other = _two_tones(rng, contrast=0.7)
    tufts = smooth(rng, shape, 2) + smooth(rng, shape, 4) * 0.6
    if rng.random() < 0.5:
        along, across = turned(shape, _angle(rng))
        period = _period(rng, shape, 5, 12)
        tufts = tufts * 0.6 + (_sine(along, period) + _sine(across, period) - 1) * 1.2
    return mix(base, other, np.clip(tufts * 0.35 + 0.5, 0, 1))


def _plastic(rng: np.random.Generator, shape: Shape) -> FloatArray:
    base = colour(rng, brightness=(0.1, 0.95), saturation=(0, 0.8))
    grain = smooth(rng, shape, float(rng.choice([1, 2, 3]))) * rng.uniform(0.0, 0.03)
    cloud = smooth(rng, shape, 120 * _scale(shape)) * rng.uniform(0, 0.04)
    return tint(base, 1 + grain + cloud)


def _concrete(rng: np.random.Generator, shape: Shape) -> FloatArray:
    base = colour(rng, brightness=(0.4, 0.8), saturation=(0, 0.15))
    cloud = fractal(rng, shape, 70 * _scale(shape), octaves=6) * rng.uniform(0.04, 0.12)
    pores = step(smooth(rng, shape, 3), 2.0, 2.6) * rng.uniform(0, 0.35)
    return tint(base, 1 + cloud - pores)


def _asphalt(rng: np.random.Generator, shape: Shape) -> FloatArray:
    wall, tone = voronoi(rng, shape, _period(rng, shape, 4, 9))
    shade = 0.15 + step(wall, 0.05, 0.3) * (0.12 + tone * rng.uniform(0.2, 0.5))
    base = colour(rng, brightness=(0.7, 1), saturation=(0, 0.1))
    return tint(base, shade + white(rng, shape) * 0.04)


def _marble(rng: np.random.Generator, shape: Shape) -> FloatArray:
    field = fractal(rng, shape, 60 * _scale(shape), octaves=5)
    veins = 1 - step(np.abs(field), 0.0, rng.uniform(0.1, 0.5))
    base, other = _two_tones(rng, contrast=0.5)
    return mix(base, other, veins * rng.uniform(0.3, 0.9))


def _foam(rng: np.random.Generator, shape: Shape) -> FloatArray:
    wall, tone = voronoi(rng, shape, _period(rng, shape, 8, 30))
    base, other = _two_tones(rng, contrast=0.6)
    return mix(other, base, np.clip(1 - step(wall, 0.05, 0.5) * (0.5 + 0.5 * tone), 0, 1))


def _paper(rng: np.random.Generator, shape: Shape) -> FloatArray:
    base = colour(rng, brightness=(0.75, 0.97), saturation=(0, 0.12))
    fibres = smooth(rng, shape, 2) * 0.015 + smooth(rng, shape, 8) * 0.012
    return tint(base, 1 + fibres)


def _solar(rng: np.random.Generator, shape: Shape) -> FloatArray:
    _, tone = voronoi(rng, shape, 40 * _scale(shape))
    base = colour(rng, brightness=(0.25, 0.6), saturation=(0.0, 0.7), hue=0.62)
    grain = white(rng, shape) * 0.02
    image = tint(base, 0.8 + tone * rng.uniform(0, 0.35) + grain)
    along, across = turned(shape, int(rng.integers(2)) * np.pi / 2)
    bars = int(rng.integers(2, 5))
    bus = np.abs(_saw(along, max(shape) / bars) - 0.5) * np.float32(max(shape) / bars)
    fingers = np.abs(_saw(across, _period(rng, shape, 4, 9)) - 0.5) < 0.12
    image = tint(image, 1 + fingers * 0.25)
    silver = np.full(3, rng.uniform(0.6, 0.9), np.float32)
    return mix(image, silver, 1 - step(bus, 1.5 * _scale(shape), 3.5 * _scale(shape)))


def _corrugated(rng: np.random.Generator, shape: Shape) -> FloatArray:
    along, _ = turned(shape, _angle(rng))
    period = _period(rng, shape, 14, 60)
    base = colour(rng, brightness=(0.3, 0.9), saturation=(0, 0.5))
    tone = 0.6 + 0.45 * _sine(along, period) ** rng.uniform(0.7, 3) + smooth(rng, shape, 2) * 0.02
    return tint(base, tone)


def _rubber(rng: np.random.Generator, shape: Shape) -> FloatArray:
    period = _period(rng, shape, 10, 26)
    along, across = turned(shape, np.pi / 4)
    bumps = step(np.maximum(_sine(along, period), _sine(across, period)), 0.8, 1.0)
    tone = 0.16 + bumps * 0.18 + smooth(rng, shape, 2) * 0.02
    return tint(colour(rng, brightness=(0.6, 1), saturation=(0, 0.2)), tone)


TEXTURES: dict[str, Texture] = {
    "woven fabric": Texture(_fabric, regular=True),
    "knitted fabric": Texture(_knit, regular=True),
    "brushed metal": Texture(_metal),
    "wood": Texture(_wood, regular=True),
    "striped surface": Texture(_stripes, regular=True),
    "wire mesh": Texture(_mesh, regular=True),
    "perforated sheet": Texture(_perforated, regular=True),
    "tile": Texture(_tiles, regular=True),
    "granite": Texture(_granite),
    "leather": Texture(_leather),
    "carpet": Texture(_carpet),
    "plastic": Texture(_plastic),
    "concrete": Texture(_concrete),
    "asphalt": Texture(_asphalt),
    "marble": Texture(_marble),
    "foam": Texture(_foam),
    "paper": Texture(_paper),
    "solar cell": Texture(_solar, regular=True),
    "corrugated sheet": Texture(_corrugated, regular=True),
    "rubber mat": Texture(_rubber, regular=True),
}

PLAIN = ("plastic", "paper", "brushed metal", "concrete", "wood", "woven fabric", "leather", "granite")
