from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from zsad.errors import ConfigError
from zsad.predict.overlay import anchored_scale, blend, colour_table, levels, opacity_table


def lightness(table: np.ndarray) -> np.ndarray:
    """CIE L* of sRGB colours, another lightness than the one the table is made with."""
    share = table / 255.0
    linear = np.where(share <= 0.04045, share / 12.92, ((share + 0.055) / 1.055) ** 2.4)
    luminance = linear @ np.array([0.2126, 0.7152, 0.0722])
    cube = luminance > (6 / 29) ** 3
    return 116 * np.where(cube, np.cbrt(luminance), luminance / (3 * (6 / 29) ** 2) + 4 / 29) - 16


def test_lightness_rises_from_cold_to_hot() -> None:
    seen = lightness(colour_table())
    assert (np.diff(seen[::8]) > 0).all()
    assert seen[-1] - seen[0] > 60


def test_colours_are_told_apart() -> None:
    table = colour_table().astype(int)
    assert table.shape == (256, 3)
    assert len({tuple(colour) for colour in table.tolist()}) > 250
    assert np.abs(np.diff(table, axis=0)).max() <= 4  # no seam between neighbours


def test_levels_follow_the_scale() -> None:
    values = np.array([[-1.0, 0.2, 0.5, 0.8, 2.0]], np.float32)
    assert levels(values, (0.2, 0.8)).tolist() == [[0, 0, 128, 255, 255]]


@pytest.mark.parametrize("threshold", [0.2, 0.7, 0.8, 0.9, 0.999, 0.99995])
def test_what_exceeds_the_threshold_shows_and_nothing_else(threshold: float) -> None:
    scale = anchored_scale((0.65, 0.85), threshold)
    opacity = opacity_table(1.0)
    at, top = (opacity[place] for place in levels(np.array([[threshold, 1.0]], np.float32), scale)[0])
    assert at == 0 and top == 255


@pytest.mark.parametrize("threshold", [1.0, 1 - 1e-9, 1.5])
def test_a_threshold_that_no_map_exceeds_still_gives_a_scale(threshold: float) -> None:
    values = np.linspace(0, 1, 9, dtype=np.float32)[None]
    assert (
        max(opacity_table(1.0)[place] for place in levels(values, anchored_scale((0.1, 0.5), threshold))[0])
        == 0
    )


def test_opacity_is_zero_where_normal_and_never_falls() -> None:
    table = opacity_table(0.7)
    assert table[:26] == [0] * 26
    assert table == sorted(table)
    assert table[-1] == round(0.7 * 255)


def test_normal_picture_is_unaltered_and_hot_spot_is_not() -> None:
    rng = np.random.default_rng(0)
    picture = Image.fromarray(rng.integers(0, 256, (20, 30, 3), np.uint8))
    values = np.full((20, 30), 0.05, np.float32)
    assert blend(picture, values, scale=(0, 1)).tobytes() == picture.tobytes()
    values[5:9, 10:14] = 1.0
    mixed = np.asarray(blend(picture, values, scale=(0, 1), opacity=1.0))
    assert (mixed[5:9, 10:14] == colour_table()[255]).all()
    mixed = mixed.copy()
    mixed[5:9, 10:14] = np.asarray(picture)[5:9, 10:14]
    assert (mixed == np.asarray(picture)).all()


def test_map_of_another_size_is_stretched_over_the_picture() -> None:
    picture = Image.new("RGB", (64, 48), (128, 128, 128))
    values = np.array([[0.0, 0.0], [0.0, 1.0]], np.float32)
    changed = np.asarray(blend(picture, values, scale=(0, 1))) != 128
    assert changed[40, 56].any() and not changed[:12].any() and not changed[:, :16].any()


@pytest.mark.parametrize(("scale", "opacity", "said"), [((1, 1), 0.5, "rising"), ((0, 1), 1.5, "opacity")])
def test_nonsense_is_refused(scale: tuple[float, float], opacity: float, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        blend(Image.new("RGB", (4, 4)), np.zeros((4, 4), np.float32), scale=scale, opacity=opacity)
