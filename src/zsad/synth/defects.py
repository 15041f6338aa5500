"""Puts one defect on any image and returns where it truly changed: `add_defect`.

A kind is a support (a soft shape in a window) and an appearance (what the pixels become). The mask is not what was
meant to be drawn but what is seen: pixels of the support that changed by more than `VISIBLE`, closed to a region
and freed of dust; the dust itself is put back: outside the mask no pixel changed by more than `VISIBLE`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from PIL import Image

from zsad.errors import ConfigError, ImageError
from zsad.synth import appearances, shapes
from zsad.synth.appearances import Site
from zsad.synth.noise import BoolArray, ByteArray, FloatArray, from_bytes, grow, shrink, to_bytes
from zsad.synth.shapes import Support


@dataclass(frozen=True, slots=True)
class _Kind:
    """Functions that draw a kind, and the smallest and largest share of the image it covers, on a log scale."""

    shape: Callable[[np.random.Generator, float, float], FloatArray]
    appearance: Callable[[Site, np.random.Generator], FloatArray]
    area: tuple[float, float]


_KINDS = {
    "scratch": _Kind(shapes.scratch, appearances.draw_scratch, (0.0005, 0.02)),
    "hole": _Kind(shapes.hard_blob, appearances.draw_hole, (0.0006, 0.06)),
    "stain": _Kind(shapes.soft_blob, appearances.draw_stain, (0.001, 0.2)),
    "crack": _Kind(shapes.crack, appearances.draw_crack, (0.0008, 0.03)),
    "dent": _Kind(shapes.round_blob, appearances.draw_dent, (0.002, 0.1)),
    "contamination": _Kind(shapes.particle, appearances.draw_contamination, (0.0005, 0.05)),
    "missing": _Kind(shapes.any_blob, appearances.draw_missing, (0.003, 0.2)),
    "misplaced": _Kind(shapes.any_blob, appearances.draw_misplaced, (0.004, 0.15)),
    "fray": _Kind(shapes.fibres, appearances.draw_fray, (0.001, 0.05)),
    "bend": _Kind(shapes.round_blob, appearances.draw_bend, (0.006, 0.15)),
    "foreign": _Kind(shapes.any_blob, appearances.draw_foreign, (0.001, 0.2)),
    "discoloration": _Kind(shapes.soft_or_any_blob, appearances.draw_discoloration, (0.001, 0.2)),
    "print": _Kind(shapes.glyphs, appearances.draw_print, (0.001, 0.05)),
    "smear": _Kind(shapes.streak, appearances.draw_smear, (0.002, 0.12)),
    "pit": _Kind(shapes.pits, appearances.draw_pit, (0.0005, 0.01)),
    "cut": _Kind(shapes.cut, appearances.draw_cut, (0.0005, 0.02)),
    "lesion": _Kind(shapes.round_blob, appearances.draw_lesion, (0.001, 0.1)),
    "texture": _Kind(shapes.any_blob, appearances.draw_texture, (0.003, 0.2)),
    "speckle": _Kind(shapes.dots, appearances.draw_speckle, (0.001, 0.03)),
}
KINDS: tuple[str, ...] = tuple(_KINDS)
VISIBLE = 10
"""The smallest change of a channel, of 255, that counts as seen."""

_TRIES = 8
_REGIONS = frozenset({"dent", "bend", "missing", "misplaced", "foreign", "texture", "lesion", "hole"})
# Parts break, fray and bend at their rims.
_AT_EDGES = frozenset({"missing", "fray", "bend", "crack"})


def add_defect(
    image: ByteArray,
    rng: np.random.Generator,
    *,
    kind: str | None = None,
    foreground: BoolArray | None = None,
    donor: ByteArray | None = None,
    strength: float | None = None,
) -> tuple[ByteArray, BoolArray, str]:
    """Put one visible defect on an image.

    Args:
        image: (H, W, 3) uint8, at least 8 pixels a side; not changed.
        rng: the only source of chance; the same state gives the same defect.
        kind: one of `KINDS`; None draws one.
        foreground: (H, W) bool, where a part is; the defect stays on it. None or empty: anywhere.
        donor: (H', W', 3) uint8, an image whose pixels a "foreign" defect may take.
        strength: contrast from 0 (subtle) to 1 (strong); None draws one.

    Returns:
        The image (H, W, 3) uint8, the mask (H, W) bool of changed pixels, never empty, and the kind.

    Raises:
        ImageError: an array of another shape or type.
        ConfigError: an unknown kind or a strength outside [0, 1].
    """
    _check(image, kind=kind, foreground=foreground, donor=donor, strength=strength)
    chosen = kind if kind is not None else KINDS[int(rng.integers(len(KINDS)))]
    where = foreground if foreground is not None and foreground.sum() >= 16 else None
    places = np.flatnonzero(where) if where is not None else None
    power = strength if strength is not None else float(rng.beta(1.3, 1.6))
    share = _share(rng, chosen, places.size / image[..., 0].size if places is not None else 1.0)
    for attempt in range(_TRIES):
        site_power = min(1.0, power + 0.12 * attempt)
        support = _place(image.shape[:2], rng, chosen, share * 1.3**attempt, places, where)
        if support is None:
            continue
        drawn = _draw(image, rng, chosen, support, donor, site_power, where)
        finished = _finish(image, drawn, chosen, support, forced=attempt >= _TRIES - 3)
        if finished is not None:
            return (*finished, chosen)
    return (*_last_resort(image, rng, places), chosen)


def _check(
    image: ByteArray,
    *,
    kind: str | None,
    foreground: BoolArray | None,
    donor: ByteArray | None,
    strength: float | None,
) -> None:
    check_image(image, name="image")
    if donor is not None:
        check_image(donor, name="donor")
    if kind is not None and kind not in _KINDS:
        raise ConfigError(f"unknown defect kind {kind!r}; expected one of {', '.join(KINDS)}")
    if strength is not None and not 0 <= strength <= 1:
        raise ConfigError(f"strength is {strength}; expected a number from 0 (subtle) to 1 (strong)")
    if foreground is not None and (foreground.shape != image.shape[:2] or foreground.dtype != np.bool_):
        raise ImageError(
            f"foreground is {foreground.dtype} of shape {foreground.shape}; "
            f"expected bool of shape {image.shape[:2]}, the image's height and width"
        )


def check_image(image: ByteArray, *, name: str) -> None:
    """Refuse what is not a colour image of uint8 (H, W, 3) with sides of at least 8 pixels."""
    if not isinstance(image, np.ndarray) or image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        got = (
            f"{image.dtype} of shape {image.shape}" if isinstance(image, np.ndarray) else type(image).__name__
        )
        raise ImageError(f"{name} is {got}; expected a uint8 array of shape (height, width, 3)")
    if min(image.shape[:2]) < 8:
        raise ImageError(f"{name} is {image.shape[1]}x{image.shape[0]} pixels; expected sides of at least 8")


def _share(rng: np.random.Generator, kind: str, room: float) -> float:
    """The share of the image that the defect should cover; a small part gets smaller defects."""
    low, high = _KINDS[kind].area
    return float(low * (high / low) ** rng.beta(1.1, 1.5)) * min(1.0, 0.15 + room)


def _place(
    shape: tuple[int, ...],
    rng: np.random.Generator,
    kind: str,
    share: float,
    places: np.ndarray[tuple[int, ...], np.dtype[np.int64]] | None,
    where: BoolArray | None,
) -> Support | None:
    """Draw the support around a random place and cut it to the image and to the foreground."""
    height, width = shape[0], shape[1]
    if places is None:
        row, column = int(rng.integers(height)), int(rng.integers(width))
    else:
        if where is not None and kind in _AT_EDGES and rng.random() < 0.6:
            edge = np.flatnonzero(where & ~shrink(where, 2))
            places = edge if edge.size else places
        row, column = divmod(int(places[int(rng.integers(places.size))]), width)
    pixels = float(np.clip(share * height * width, 8.0, 0.3 * height * width))
    alpha = _KINDS[kind].shape(rng, pixels, min(height, width) / 256.0)
    tall, wide = alpha.shape
    top, left = row - tall // 2, column - wide // 2
    inner_top, inner_left = max(0, -top), max(0, -left)
    bottom, right = min(height, top + tall), min(width, left + wide)
    alpha = alpha[inner_top : bottom - top, inner_left : right - left]
    top, left = max(0, top), max(0, left)
    if where is not None:
        alpha = alpha * where[top:bottom, left:right]
    if alpha.shape[0] < 2 or alpha.shape[1] < 2 or float(alpha.sum()) < 5:
        return None
    return Support(alpha=np.ascontiguousarray(alpha), top=top, left=left)


def _draw(
    image: ByteArray,
    rng: np.random.Generator,
    kind: str,
    support: Support,
    donor: ByteArray | None,
    power: float,
    where: BoolArray | None,
) -> ByteArray:
    """The window (h, w, 3) uint8 with the defect in it."""
    tall, wide = support.alpha.shape
    window = image[support.top : support.top + tall, support.left : support.left + wide]
    patch = from_bytes(window)
    inside = support.alpha > 0.3
    values = patch[inside] if inside.any() else patch.reshape(-1, 3)
    spread = float(values.mean(axis=1).std())
    contrast = 0.08 + 0.55 * power**1.3 + 0.7 * spread
    site = Site(image, patch, support, donor, power, min(contrast, 0.95), values.mean(axis=0), where)
    drawn = to_bytes(_KINDS[kind].appearance(site, rng))
    if _is_grey(image):
        # On a grey image a coloured defect would give itself away.
        drawn = np.repeat(np.asarray(Image.fromarray(drawn).convert("L"))[..., None], 3, axis=2)
    return drawn


def _finish(
    image: ByteArray, drawn: ByteArray, kind: str, support: Support, *, forced: bool
) -> tuple[ByteArray, BoolArray] | None:
    """Measure what changed; None when that is too little to be seen."""
    tall, wide = support.alpha.shape
    rows, columns = slice(support.top, support.top + tall), slice(support.left, support.left + wide)
    window = image[rows, columns]
    difference = _largest(np.maximum(window, drawn) - np.minimum(window, drawn))
    changed = (difference > VISIBLE) & (support.alpha > 0.02)
    region = _clean(changed, support.alpha, radius=_closing(kind, support))
    count = int(region.sum())
    least = max(5, int(0.0003 * image.shape[0] * image.shape[1]))
    if count < least:
        return None
    level = float(difference[region].mean())
    if level < (1.4 if forced else 1.8) * VISIBLE or not _is_visible(window, drawn, region):
        return None
    result = image.copy()
    # A rim below the visible threshold is kept: cutting it would draw a hard edge that no defect has.
    keep = region | ~(difference > VISIBLE)
    keep &= grow(region, 3) & (support.alpha > 0)
    result[rows, columns] = np.where(keep[..., None], drawn, window)
    mask = np.zeros(image.shape[:2], np.bool_)
    mask[rows, columns] = region
    return result, mask


def _closing(kind: str, support: Support) -> int:
    """Width of the gaps that are closed, in pixels: a dent is one region even if its middle looks unchanged."""
    if kind not in _REGIONS:
        return 2
    return int(np.clip(np.sqrt(float(support.alpha.sum())) / 4, 2, 16))


def _is_grey(image: ByteArray) -> bool:
    sample = image[::7, ::5].astype(np.int16)
    red, green, blue = sample[..., 0], sample[..., 1], sample[..., 2]
    return int(np.abs(red - green).max()) <= 2 and int(np.abs(green - blue).max()) <= 2


def _largest(difference: ByteArray) -> ByteArray:
    """The largest of three channels; far faster than a reduction along an axis of three."""
    return np.maximum(np.maximum(difference[..., 0], difference[..., 1]), difference[..., 2])


def _clean(changed: BoolArray, alpha: FloatArray, *, radius: int) -> BoolArray:
    """Close the gaps of a changed region and drop lone pixels; thin lines stay whole."""
    padded = np.pad(changed, radius + 1)
    inner = slice(radius + 1, -radius - 1)
    closed = shrink(grow(padded, radius), radius)[inner, inner] & (alpha > 0.02)
    near = np.pad(closed, 2).astype(np.uint8)
    across = near[:, :-4] + near[:, 1:-3] + near[:, 2:-2] + near[:, 3:-1] + near[:, 4:]
    count = across[:-4] + across[1:-3] + across[2:-2] + across[3:-1] + across[4:]
    cleaned: BoolArray = closed & (count >= 4)
    return cleaned


def _is_visible(window: ByteArray, drawn: ByteArray, region: BoolArray) -> bool:
    """Return True if the change survives a 2x2 mean, which shuffled noise does not."""
    before = np.asarray(Image.fromarray(window).reduce(2), dtype=np.int16)
    after = np.asarray(Image.fromarray(drawn).reduce(2), dtype=np.int16)
    inside = np.asarray(Image.fromarray(region.astype(np.uint8) * 255).reduce(2)) > 100
    if not inside.any():
        return True
    return float(np.abs(after - before)[inside].max(axis=1).mean()) >= 0.8 * VISIBLE


def _last_resort(
    image: ByteArray, rng: np.random.Generator, places: np.ndarray[tuple[int, ...], np.dtype[np.int64]] | None
) -> tuple[ByteArray, BoolArray]:
    """A plain contrasting spot: a labelled defect is never invisible, however odd the image is."""
    height, width = image.shape[:2]
    place = (
        int(places[int(rng.integers(places.size))])
        if places is not None
        else int(rng.integers(height * width))
    )
    row, column = divmod(place, width)
    radius = max(2, min(height, width) // 40)
    rows, columns = np.ogrid[:height, :width]
    mask = (rows - row) ** 2 + (columns - column) ** 2 <= radius**2
    if places is not None:
        allowed = np.zeros(height * width, np.bool_)
        allowed[places] = True
        mask &= allowed.reshape(height, width)
    result = image.copy()
    result[mask] = np.where(image[mask] > 127, image[mask] - 70, image[mask] + 70)
    return result, mask
