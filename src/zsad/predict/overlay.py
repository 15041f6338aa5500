"""Heat maps laid over pictures: a perceptually ordered colour table, and an opacity that grows with the value.

Where nothing is wrong the picture shows unaltered: the opacity is exactly zero up to a tenth of the scale. The
scale is fixed for a whole run, never stretched to an image's own extremes, so good parts do not glow.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from zsad.errors import ConfigError

_SILENT = 0.10  # share of the scale below which the picture is left as it is
_NARROWEST = 1e-6  # of a scale: some steps of single precision near 1
_FULL = 0.60  # share of the scale from which the heat map has its whole opacity
_OKLAB_TO_LMS = np.array(
    [[1, 0.3963377774, 0.2158037573], [1, -0.1055613458, -0.0638541728], [1, -0.0894841775, -1.2914855480]]
)
_LMS_TO_RGB = np.array(
    [
        [4.0767416621, -3.3077115913, 0.2309699292],
        [-1.2684380046, 2.6097574011, -0.3413193965],
        [-0.0041960863, -0.7034186147, 1.7076147010],
    ]
)


@lru_cache(maxsize=1)
def colour_table() -> npt.NDArray[np.uint8]:
    """The 256 colours (256, 3) from cold to hot: violet, magenta, red, orange, pale yellow.

    A path through OKLab (Ottosson, 2020) on which lightness rises by equal steps while the hue turns once, so
    that the order of two values is seen even in grey print and with colour-blind eyes.
    """
    share = np.linspace(0, 1, 256)
    lightness = 0.32 + 0.62 * share
    hue = np.deg2rad(295 + 170 * share)
    chroma = 0.17 + 0.07 * np.sin(np.pi * np.minimum(share * 1.15, 1.0))
    for _ in range(200):  # shrink the chroma of colours that a screen cannot show
        linear = _linear_rgb(lightness, chroma, hue)
        outside = (linear < 0).any(axis=1) | (linear > 1).any(axis=1)
        if not outside.any():
            break
        chroma = np.where(outside, chroma * 0.99, chroma)
    # The border of what a screen can show has corners; smoothed, they leave no visible seams.
    margin = 12
    window = np.hanning(2 * margin + 3)[1:-1]
    chroma = np.convolve(np.pad(chroma, margin, mode="edge"), window / window.sum(), mode="valid")
    linear = _linear_rgb(lightness, 0.94 * chroma, hue)
    linear = np.clip(linear, 0, 1)
    encoded = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    table: npt.NDArray[np.uint8] = np.rint(encoded * 255).astype(np.uint8)
    table.setflags(write=False)
    return table


def _linear_rgb(
    lightness: npt.NDArray[np.float64], chroma: npt.NDArray[np.float64], hue: npt.NDArray[np.float64]
) -> npt.NDArray[np.float64]:
    lab = np.stack([lightness, chroma * np.cos(hue), chroma * np.sin(hue)], axis=1)
    linear: npt.NDArray[np.float64] = (lab @ _OKLAB_TO_LMS.T) ** 3 @ _LMS_TO_RGB.T
    return linear


def anchored_scale(scale: tuple[float, float], threshold: float) -> tuple[float, float]:
    """`scale` moved so that whatever does not exceed `threshold` leaves the picture unaltered.

    The hottest colour stays where it is, unless the threshold reaches into the hotter half of the scale; it never
    lies above 1, which maps cannot exceed, or else what a threshold just below lets through would not show.

    Args:
        scale: map values of the coldest and the hottest colour.
        threshold: of map values.

    Example:
        >>> low, high = anchored_scale((0.1, 0.5), 0.2)
        >>> round(low + 0.1 * (high - low), 9), high
        (0.2, 0.5)
    """
    low, high = scale
    high = max(high, threshold + (high - low) / 2)
    if threshold < 1 - _NARROWEST:
        high = min(high, 1.0)
    return threshold - (high - threshold) * _SILENT / (1 - _SILENT), high


def outline(
    image: Image.Image, polygons: Sequence[Sequence[tuple[float, float]]], *, size: tuple[int, int]
) -> Image.Image:
    """`image` (RGB) with polygons drawn as thin lines, light on dark so that they show on any picture.

    Args:
        image: the picture; not altered.
        polygons: (x, y) in pixels of an image of `size`.
        size: (H, W).
    """
    drawn = image.copy()
    draw = ImageDraw.Draw(drawn)
    across, down = image.width / size[1], image.height / size[0]
    thin = max(1, round(max(image.size) / 600))
    for colour, width in (((20, 16, 26), thin + 2), ((255, 255, 255), thin)):
        for polygon in polygons:
            points = [(x * across - 0.5, y * down - 0.5) for x, y in polygon]
            draw.line([*points, *points[:2]], fill=colour, width=width, joint="curve")
    return drawn


def levels(values: npt.NDArray[np.float32], scale: tuple[float, float]) -> npt.NDArray[np.uint8]:
    """Map values (H, W) as places 0 to 255 of the colour table, `scale` giving the first and the last.

    Raises:
        ConfigError: a scale that does not rise.
    """
    low, high = scale
    if not high > low:
        raise ConfigError(f"colour scale is {low:g} to {high:g}, expected a rising pair")
    share = (values - np.float32(low)) * np.float32(255 / (high - low))
    places: npt.NDArray[np.uint8] = np.clip(np.rint(share), 0, 255).astype(np.uint8)
    return places


def opacity_table(opacity: float) -> list[int]:
    """Opacity (0 to 255) of each of the 256 levels: zero, then a smooth rise to `opacity`."""
    share = np.clip((np.linspace(0, 1, 256) - _SILENT) / (_FULL - _SILENT), 0, 1)
    smooth = share * share * (3 - 2 * share)
    return [int(value) for value in np.rint(smooth * opacity * 255)]


def blend(
    image: Image.Image,
    values: npt.NDArray[np.float32],
    *,
    scale: tuple[float, float],
    opacity: float = 0.7,
) -> Image.Image:
    """`image` (RGB) with the map laid over it; untouched wherever the map is low.

    Args:
        image: the picture.
        values: (H, W) map values, resized to the picture in 256 levels: all that colours can show, and cheap.
        scale: values of the coldest and the hottest colour.
        opacity: in [0, 1], of the hottest places.

    Raises:
        ConfigError: an opacity outside [0, 1] or a scale that does not rise.
    """
    if not 0 <= opacity <= 1:
        raise ConfigError(f"opacity is {opacity}, expected 0 to 1")
    level = Image.fromarray(levels(values, scale)).resize(image.size, Image.Resampling.BILINEAR)
    colours = level.copy()
    colours.putpalette(colour_table().tobytes())
    return Image.composite(colours.convert("RGB"), image, level.point(opacity_table(opacity)))
