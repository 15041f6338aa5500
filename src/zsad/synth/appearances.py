"""Appearances of defects: one function per kind, which returns the changed window (h, w, 3) in [0, 1]."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from PIL import Image, ImageFilter

from zsad.synth.noise import (
    BoolArray,
    ByteArray,
    FloatArray,
    axes,
    colour,
    fractal,
    from_bytes,
    grey,
    mix,
    smooth,
    soften,
    to_bytes,
    turned,
    white,
)
from zsad.synth.shapes import Support
from zsad.synth.textures import TEXTURES


@dataclass(frozen=True, slots=True)
class Site:
    """Place and strength of a defect.

    Attributes:
        image: (H, W, 3), the whole image without the defect.
        patch: (h, w, 3), the window without the defect.
        power: strength in [0, 1].
        contrast: change of brightness in [0, 1] that is visible here and corresponds to `power`.
        tone: (3,), mean colour under the support.
    """

    image: ByteArray
    patch: FloatArray
    support: Support
    donor: ByteArray | None
    power: float
    contrast: float
    tone: FloatArray
    foreground: BoolArray | None

    @property
    def alpha(self) -> FloatArray:
        return self.support.alpha

    @property
    def shape(self) -> tuple[int, int]:
        return (self.patch.shape[0], self.patch.shape[1])


def _sign(site: Site, rng: np.random.Generator, *, darker: float) -> float:
    """Sign of a change: -1 to darken (with probability `darker`), 1 to brighten; never towards a side without room."""
    level = float(site.tone.mean())
    if level < site.contrast * 0.6:
        return 1.0
    if level > 1 - site.contrast * 0.6:
        return -1.0
    return -1.0 if rng.random() < darker else 1.0


def _contrasting(site: Site, rng: np.random.Generator, *, tint: float = 0.6) -> FloatArray:
    """A colour (3,) that differs from the surroundings by the contrast."""
    sign = _sign(site, rng, darker=0.55)
    target = site.tone + np.float32(sign * max(site.contrast, 0.12))
    hue = colour(rng, brightness=(0.2, 1), saturation=(0.2, 0.9))
    shift = (hue - hue.mean()) * np.float32(tint * rng.random() * max(site.contrast, 0.3) * 2)
    return np.asarray(np.clip(target + shift, 0, 1), dtype=np.float32)


def _lit(height: FloatArray, rng: np.random.Generator) -> FloatArray:
    """Shading of a height field under light from a random side, scaled to a largest magnitude of 1."""
    down, right = np.gradient(height)
    angle = rng.uniform(0, 2 * np.pi)
    shade = down * np.float32(np.sin(angle)) + right * np.float32(np.cos(angle))
    return np.asarray(shade / max(float(np.abs(shade).max()), 1e-6), dtype=np.float32)


def _shaded(site: Site, shade: FloatArray, amount: float) -> FloatArray:
    """Add shading; on a dark or bright place it goes the way there is room for."""
    level = float(site.tone.mean())
    if level < 0.25:
        shade = shade + 0.5 * np.abs(shade)
    elif level > 0.8:
        shade = shade - 0.5 * np.abs(shade)
    return np.asarray(site.patch + (shade * np.float32(amount))[..., None], dtype=np.float32)


def draw_scratch(site: Site, rng: np.random.Generator) -> FloatArray:
    target = _contrasting(site, rng, tint=0.2)
    wear = np.clip(0.9 + smooth(rng, site.shape, 8) * 0.3, 0.35, 1)
    return mix(site.patch, target, site.alpha * wear)


def draw_crack(site: Site, rng: np.random.Generator) -> FloatArray:
    dark = site.tone * np.float32(max(0.0, 0.55 - 0.5 * site.power)) - 0.05
    if float(site.tone.mean()) < 0.22:
        dark = site.tone + np.float32(0.2 + 0.5 * site.power)
    return mix(site.patch, np.clip(dark, 0, 1), site.alpha)


def draw_cut(site: Site, rng: np.random.Generator) -> FloatArray:
    shift = int(rng.integers(1, 3))
    edge = np.roll(site.alpha, (shift, shift), (0, 1)) * site.alpha
    bright = np.clip(site.tone + np.float32(max(site.contrast, 0.15)), 0, 1)
    dark = np.clip(site.tone - np.float32(max(site.contrast, 0.15) * 1.2), 0, 1)
    return mix(mix(site.patch, bright, site.alpha), dark, np.clip(edge * 1.1, 0, 1))


def draw_hole(site: Site, rng: np.random.Generator) -> FloatArray:
    depth = colour(rng, brightness=(0.0, 0.15), saturation=(0, 0.2))
    if float(site.tone.mean()) < 0.25:
        depth = colour(rng, brightness=(0.45, 0.9), saturation=(0, 0.2))
    shape = soften(site.alpha, max(1.0, min(site.shape) * 0.06))
    inner = mix(site.patch, depth + (1 - shape)[..., None] * site.tone * 0.3, site.alpha)
    rim = np.clip(shape * (1 - shape) * 4, 0, 1) * site.alpha
    return np.asarray(
        inner + (_lit(shape, rng) * rim * np.float32(0.1 + 0.25 * site.power))[..., None], dtype=np.float32
    )


def draw_stain(site: Site, rng: np.random.Generator) -> FloatArray:
    target = _contrasting(site, rng)
    density = np.clip(0.85 + smooth(rng, site.shape, max(min(site.shape) / 4, 3)) * 0.25, 0.2, 1)
    if rng.random() < 0.4:
        density = density * (0.55 + 0.45 * (1 - soften(site.alpha, max(2.0, min(site.shape) * 0.08))) * 1.6)
    # A stain soaks in: the surface stays visible through it.
    wet = target + (site.patch - site.tone) * rng.uniform(0.3, 0.9)
    return mix(site.patch, wet, np.clip(site.alpha * density, 0, 1))


def draw_dent(site: Site, rng: np.random.Generator) -> FloatArray:
    height = soften(site.alpha, max(1.5, min(site.shape) * 0.1))
    return _shaded(site, _lit(height, rng) * site.alpha, max(0.22, site.contrast * 0.9))


def draw_contamination(site: Site, rng: np.random.Generator) -> FloatArray:
    target = _contrasting(site, rng, tint=1.0)
    body = target + (_lit(soften(site.alpha, 2.0), rng) * 0.18)[..., None]
    body = body + (smooth(rng, site.shape, 3) * 0.04)[..., None]
    return mix(site.patch, body, site.alpha)


def draw_missing(site: Site, rng: np.random.Generator) -> FloatArray:
    around = _surroundings(site, rng)
    drawn = mix(site.patch, around, site.alpha)
    rim = _lit(soften(site.alpha, 1.5), rng) * site.alpha
    return np.asarray(drawn + (rim * np.float32(0.05 + 0.2 * site.power))[..., None], dtype=np.float32)


def _surroundings(site: Site, rng: np.random.Generator) -> FloatArray:
    """Background behind a missing piece: pixels beside the part, or a smooth fill of another tone."""
    if site.foreground is not None and not site.foreground.all():
        outside = site.image[~site.foreground]
        picks = outside[rng.integers(0, len(outside), 256)].astype(np.float32) / 255
        middle = np.median(picks, axis=0)
        if float(np.abs(middle - site.tone).max()) > 0.12:
            grain = white(rng, site.shape)[..., None] * np.minimum(picks.std(axis=0), np.float32(0.05))
            return np.asarray(middle + grain, dtype=np.float32)
    small = Image.fromarray(to_bytes(site.patch)).resize((3, 3), Image.Resampling.BOX)
    fill = np.asarray(small.resize(site.shape[::-1], Image.Resampling.BICUBIC), dtype=np.float32) / 255
    sign = _sign(site, rng, darker=0.7)
    return np.asarray(fill + np.float32(sign * max(0.15, site.contrast)), dtype=np.float32)


def _other_place(site: Site, rng: np.random.Generator) -> FloatArray:
    """A window of the same size cut from elsewhere in the image."""
    height, width = site.image.shape[:2]
    tall, wide = site.shape
    top, left = int(rng.integers(height - tall + 1)), int(rng.integers(width - wide + 1))
    return from_bytes(site.image[top : top + tall, left : left + wide])


def draw_misplaced(site: Site, rng: np.random.Generator) -> FloatArray:
    if rng.random() < 0.5:
        turn = float(rng.choice([25, 45, 90, 135, 180])) + float(rng.normal(0, 8))
        rotated = Image.fromarray(to_bytes(site.patch)).rotate(turn, Image.Resampling.BILINEAR)
        inside = np.asarray(Image.new("L", site.shape[::-1], 255).rotate(turn), dtype=np.float32) / 255
        moved = mix(_other_place(site, rng), np.asarray(rotated, dtype=np.float32) / 255, inside)
    else:
        moved = _other_place(site, rng)
    drawn = mix(site.patch, moved, site.alpha)
    rim = _lit(soften(site.alpha, 1.2), rng) * site.alpha
    lift = np.float32(rng.choice([-1, 1]) * (0.02 + 0.06 * site.power)) * site.alpha
    return np.asarray(drawn + (rim * np.float32(0.12 + 0.3 * site.power) + lift)[..., None], dtype=np.float32)


def draw_fray(site: Site, rng: np.random.Generator) -> FloatArray:
    target = _contrasting(site, rng, tint=0.3)
    return mix(site.patch, target + (smooth(rng, site.shape, 3) * 0.05)[..., None], site.alpha)


def _sampled(patch: FloatArray, rows: FloatArray, columns: FloatArray) -> FloatArray:
    """Bilinear look-up of (h, w, 3) at fractional places, clamped to the window."""
    tall, wide = patch.shape[:2]
    rows, columns = np.clip(rows, 0, tall - 1.001), np.clip(columns, 0, wide - 1.001)
    top, left = rows.astype(np.int32), columns.astype(np.int32)
    down, right = (rows - top)[..., None], (columns - left)[..., None]
    below, beside = np.minimum(top + 1, tall - 1), np.minimum(left + 1, wide - 1)
    flat, top, below = patch.reshape(-1, 3), top * wide, below * wide
    upper = flat.take(top + left, axis=0) * (1 - right) + flat.take(top + beside, axis=0) * right
    lower = flat.take(below + left, axis=0) * (1 - right) + flat.take(below + beside, axis=0) * right
    return np.asarray(upper * (1 - down) + lower * down, dtype=np.float32)


def draw_bend(site: Site, rng: np.random.Generator) -> FloatArray:
    row, column = axes(site.shape)
    weight = soften(site.alpha, max(1.5, min(site.shape) * 0.06)) * site.alpha
    push = min(site.shape) * rng.uniform(0.12, 0.3) * (0.5 + site.power)
    if rng.random() < 0.5:
        angle = rng.uniform(0, 2 * np.pi)
        rows = row + weight * np.float32(np.sin(angle) * push)
        columns = column + weight * np.float32(np.cos(angle) * push)
    else:
        swirl = weight * np.float32(rng.choice([-1, 1]) * rng.uniform(0.6, 1.6))
        away_row, away_column = row - site.shape[0] / 2, column - site.shape[1] / 2
        rows = site.shape[0] / 2 + away_row * np.cos(swirl) - away_column * np.sin(swirl)
        columns = site.shape[1] / 2 + away_row * np.sin(swirl) + away_column * np.cos(swirl)
    warped = mix(
        site.patch,
        _sampled(site.patch, rows.astype(np.float32), columns.astype(np.float32)),
        np.clip(site.alpha * 2, 0, 1),
    )
    # Bent material catches the light; this is also what shows on a flat surface.
    shade = _lit(weight, rng) * site.alpha
    return _shaded(replace(site, patch=warped), shade, 0.12 + 0.3 * site.power)


def draw_foreign(site: Site, rng: np.random.Generator) -> FloatArray:
    other = _donated(site, rng)
    if rng.random() < 0.3:
        mean, spread = other.mean(axis=(0, 1)), other.std(axis=(0, 1)) + 0.02
        colours = site.patch.reshape(-1, 3)
        other = (other - mean) / spread * (colours.std(axis=0) + 0.05) + colours.mean(axis=0)
    if float(np.abs(other.mean(axis=(0, 1)) - site.tone).max()) < 0.1:
        other = other + np.float32(_sign(site, rng, darker=0.5) * max(0.1, site.contrast * 0.6))
    return mix(
        site.patch, np.clip(other, 0, 1), site.alpha * np.float32(0.35 + 0.65 * min(1.0, site.power + 0.3))
    )


def _donated(site: Site, rng: np.random.Generator) -> FloatArray:
    """A window of the donor, or of a texture drawn for it."""
    if site.donor is not None and rng.random() < 0.8:
        tall, wide = min(site.shape[0], site.donor.shape[0]), min(site.shape[1], site.donor.shape[1])
        top = int(rng.integers(site.donor.shape[0] - tall + 1))
        left = int(rng.integers(site.donor.shape[1] - wide + 1))
        piece = site.donor[top : top + tall, left : left + wide]
        if (tall, wide) != site.shape:
            piece = np.asarray(Image.fromarray(piece).resize(site.shape[::-1], Image.Resampling.BILINEAR))
        return from_bytes(piece)
    names = tuple(TEXTURES)
    return TEXTURES[names[int(rng.integers(len(names)))]].draw(rng, site.shape)


def draw_discoloration(site: Site, rng: np.random.Generator) -> FloatArray:
    amount = site.alpha * 0.9
    if rng.random() < 0.45:
        gain = 1 + np.float32(_sign(site, rng, darker=0.5) * (0.3 + 0.5 * site.power))
        offset = np.float32(_sign(site, rng, darker=0.5) * 0.05)
        return mix(site.patch, np.clip(site.patch * gain + offset, 0, 1), amount)
    hue = colour(rng, brightness=(0.6, 1), saturation=(0.5, 1))
    shift = (hue - hue.mean()) * np.float32(max(0.25, site.contrast * 1.2))
    return mix(site.patch, np.clip(site.patch + shift, 0, 1), amount)


def draw_print(site: Site, rng: np.random.Generator) -> FloatArray:
    return mix(site.patch, _contrasting(site, rng, tint=1.0), site.alpha * rng.uniform(0.7, 1))


def draw_smear(site: Site, rng: np.random.Generator) -> FloatArray:
    target = _contrasting(site, rng)
    along, _ = turned(site.shape, rng.uniform(0, np.pi))
    waves = np.sin(along * rng.uniform(0.2, 0.9) + smooth(rng, site.shape, 12) * 1.8)
    lines = waves * rng.uniform(0, 0.2)
    film = np.clip(0.7 + lines + fractal(rng, site.shape, 24) * 0.2, 0.15, 1)
    return mix(site.patch, target + (site.patch - site.tone) * 0.5, site.alpha * film)


def draw_pit(site: Site, rng: np.random.Generator) -> FloatArray:
    target = np.clip(site.tone + np.float32(_sign(site, rng, darker=0.75) * max(0.22, site.contrast)), 0, 1)
    glint = np.clip(np.roll(site.alpha, (1, 1), (0, 1)) - site.alpha, 0, 1) * 0.3
    return np.asarray(
        mix(site.patch, target, site.alpha) + glint[..., None] * np.float32(site.power), dtype=np.float32
    )


def draw_lesion(site: Site, rng: np.random.Generator) -> FloatArray:
    core = soften(site.alpha, max(1.2, min(site.shape) * rng.uniform(0.03, 0.12))) * np.clip(
        site.alpha * 3, 0, 1
    )
    if rng.random() < 0.25:
        core = np.clip(core - 0.8 * np.clip(core - 0.55, 0, 1) * 2, 0, 1)
    core = core * np.clip(0.9 + fractal(rng, site.shape, max(min(site.shape) / 4, 4)) * 0.15, 0.3, 1.2)
    sign = _sign(site, rng, darker=0.35)
    saturated = float(site.tone.max() - site.tone.min()) > 0.1
    tint = (
        colour(rng, brightness=(0.8, 1), saturation=(0.1, 0.5), hue=float(rng.choice([0.0, 0.05, 0.12])))
        if saturated
        else np.ones(3, np.float32)
    )
    return np.asarray(
        site.patch + core[..., None] * (tint * np.float32(sign * max(0.18, site.contrast))), dtype=np.float32
    )


def draw_texture(site: Site, rng: np.random.Generator) -> FloatArray:
    tall, wide = site.shape
    draw = rng.random()
    source = Image.fromarray(to_bytes(site.patch))
    if float(grey(site.patch).std()) < 0.02:
        other = _donated(site, rng)
    elif draw < 0.3:
        zoom = float(rng.choice([0.4, 0.5, 2.0, 3.0]))
        whole = Image.fromarray(site.image)
        if zoom < 1:
            reach = (min(whole.width, int(wide / zoom)), min(whole.height, int(tall / zoom)))
            left = int(rng.integers(whole.width - reach[0] + 1))
            top = int(rng.integers(whole.height - reach[1] + 1))
            source = whole.crop((left, top, left + reach[0], top + reach[1]))
        else:
            source = source.crop((0, 0, max(2, int(wide / zoom)), max(2, int(tall / zoom))))
        other = np.asarray(source.resize((wide, tall), Image.Resampling.BILINEAR), dtype=np.float32) / 255
    elif draw < 0.5:
        blurred = source.filter(ImageFilter.GaussianBlur(float(max(2.0, min(tall, wide) / 8))))
        other = np.asarray(blurred, dtype=np.float32) / 255
    elif draw < 0.8:
        angle = float(rng.choice([30, 45, 90]))
        other = np.asarray(source.rotate(angle, Image.Resampling.BILINEAR), dtype=np.float32) / 255
        other = np.where(other.sum(axis=2, keepdims=True) > 0, other, _other_place(site, rng))
    else:
        shift = (int(rng.integers(tall // 4, tall // 2 + 2)), int(rng.integers(wide // 4, wide // 2 + 2)))
        other = np.roll(site.patch, shift, (0, 1))
    lift = np.float32(rng.choice([-1, 1]) * (0.02 + 0.08 * site.power))
    return mix(site.patch, np.clip(other + lift, 0, 1).astype(np.float32), site.alpha)


def draw_speckle(site: Site, rng: np.random.Generator) -> FloatArray:
    return mix(site.patch, _contrasting(site, rng, tint=0.7), site.alpha * 0.9)
