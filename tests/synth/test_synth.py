"""Synthetic scenes and defects: visible, honestly masked, reproducible and refusing nonsense."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zsad.errors import ConfigError, ImageError
from zsad.synth import (
    GOOD,
    KINDS,
    MATERIALS,
    VISIBLE,
    add_defect,
    caption,
    caption_for,
    generate,
    guess_foreground,
    pair,
    photometric,
)
from zsad.synth.captions import NOUNS
from zsad.synth.noise import grow, magnitude, mix, shrink, tint, voronoi
from zsad.synth.parts import PARTS
from zsad.synth.textures import TEXTURES
from zsad.synth.tissue import TISSUES

GOOD_WORDS = ("flawless", "without", "normal", "perfect", "undamaged", "good", "free of")
BAD_WORDS = ("damaged", "defect", "abnormal", "flawed")


def flat(level: int, size: tuple[int, int] = (96, 96)) -> np.ndarray:
    return np.full((*size, 3), level, np.uint8)


def checker(size: tuple[int, int] = (96, 96)) -> np.ndarray:
    rows, columns = np.indices(size)
    board = ((rows // 6 + columns // 6) % 2 * 90 + 70).astype(np.uint8)
    return np.stack([board, board // 2 + 40, 255 - board], axis=2)


def difference(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    return np.abs(first.astype(int) - second.astype(int)).max(axis=2)


def assert_honest(before: np.ndarray, after: np.ndarray, mask: np.ndarray) -> None:
    """The mask covers every visible change, and what it covers did change for the most part."""
    change = difference(before, after)
    assert mask.dtype == np.bool_ and mask.shape == before.shape[:2] and mask.any()
    assert after.dtype == np.uint8 and after.shape == before.shape
    assert change[~mask].max(initial=0) <= VISIBLE
    assert change[~grow(mask, 4)].max(initial=0) == 0
    assert change[mask].mean() >= 1.3 * VISIBLE
    assert (change[mask] > VISIBLE).mean() > 0.3


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["dark", "grey", "bright", "checker", "noise"])
def test_every_kind_is_visible_on_flat_and_textured_images(kind: str, name: str) -> None:
    noise = np.random.default_rng(5).integers(60, 200, (96, 96, 3), dtype=np.uint8)
    image = {"dark": flat(0), "grey": flat(128), "bright": flat(255), "checker": checker(), "noise": noise}[
        name
    ]
    for seed in range(3):
        before = image.copy()
        after, mask, named = add_defect(image, np.random.default_rng(seed), kind=kind)
        assert named == kind
        assert (image == before).all()
        assert_honest(image, after, mask)


@settings(max_examples=60)
@given(
    seed=st.integers(0, 2**32 - 1),
    height=st.integers(8, 130),
    width=st.integers(8, 130),
    level=st.integers(0, 255),
    strength=st.one_of(st.none(), st.floats(0, 1)),
)
def test_mask_matches_changed_pixels(
    seed: int, height: int, width: int, level: int, strength: float | None
) -> None:
    rng = np.random.default_rng(seed)
    image = np.clip(rng.normal(level, 12, (height, width, 3)), 0, 255).astype(np.uint8)
    after, mask, kind = add_defect(image, rng, strength=strength)
    assert kind in KINDS
    assert_honest(image, after, mask)


@settings(max_examples=25)
@given(seed=st.integers(0, 2**32 - 1))
def test_defect_stays_on_the_foreground(seed: int) -> None:
    rng = np.random.default_rng(seed)
    part = np.zeros((90, 110), np.bool_)
    part[30:60, 40:90] = True
    after, mask, _ = add_defect(checker((90, 110)), rng, foreground=part)
    assert not (mask & ~part).any()
    assert (after[~part] == checker((90, 110))[~part]).all()


def test_empty_foreground_means_anywhere() -> None:
    _, mask, _ = add_defect(checker(), np.random.default_rng(0), foreground=np.zeros((96, 96), np.bool_))
    assert mask.any()


def test_grey_images_get_grey_defects() -> None:
    image = np.repeat(np.random.default_rng(0).integers(90, 120, (80, 80, 1), dtype=np.uint8), 3, axis=2)
    for seed, kind in enumerate(KINDS):
        after, _, _ = add_defect(image, np.random.default_rng(seed), kind=kind)
        assert (after[..., 0] == after[..., 1]).all() and (after[..., 1] == after[..., 2]).all()


def test_donor_is_used_by_foreign_defects() -> None:
    donor = np.zeros((40, 40, 3), np.uint8)
    donor[..., 1] = 255
    greenest = 0
    for seed in range(12):
        image = flat(120)
        image[::2] += 1
        image[..., 0] += 10
        after, mask, _ = add_defect(
            image, np.random.default_rng(seed), kind="foreign", donor=donor, strength=1.0
        )
        greenest = max(greenest, int(after[mask][:, 1].max()))
    assert greenest > 230


def test_stronger_defects_change_more() -> None:
    def change(strength: float) -> float:
        levels = []
        for seed in range(25):
            image = flat(120)
            image[..., 0] += 20
            after, mask, _ = add_defect(image, np.random.default_rng(seed), kind="stain", strength=strength)
            levels.append(difference(image, after)[mask].mean())
        return float(np.mean(levels))

    assert change(1.0) > 2 * change(0.0)


def test_defect_sizes_span_tiny_to_large() -> None:
    shares = [add_defect(checker((128, 128)), np.random.default_rng(seed))[1].mean() for seed in range(250)]
    assert min(shares) < 0.002 and max(shares) > 0.06
    assert np.median(shares) < 0.03


@pytest.mark.parametrize("size", [(32, 32), (48, 80), (90, 33)])
def test_shapes_and_types_of_scenes(size: tuple[int, int]) -> None:
    for seed in range(25):
        scene = generate(np.random.default_rng(seed), size=size)
        assert scene.image.shape == (*size, 3) and scene.image.dtype == np.uint8
        assert scene.image.flags.c_contiguous
        assert scene.mask.shape == size and scene.mask.dtype == np.bool_
        assert scene.foreground is None or (
            scene.foreground.shape == size and scene.foreground.dtype == np.bool_
        )
        assert scene.material in MATERIALS
        assert (scene.label == 1) == scene.mask.any() == (scene.kind != GOOD)
        words = BAD_WORDS if scene.label else GOOD_WORDS
        nouns = NOUNS.get(scene.kind, ())
        assert any(word in scene.caption for word in (*words, *nouns))


@pytest.mark.parametrize("name", MATERIALS)
def test_every_material_draws_a_finite_image(name: str) -> None:
    for shape in ((32, 32), (40, 96), (97, 41)):
        rng = np.random.default_rng(3)
        if name in TEXTURES:
            image = TEXTURES[name].draw(rng, shape)
        elif name in TISSUES:
            image, foreground = TISSUES[name](rng, shape)
            assert foreground.shape == shape and foreground.any()
        else:
            grid = np.meshgrid(np.linspace(-1, 1, shape[1]), np.linspace(-1, 1, shape[0]))
            across, down = (axis.astype(np.float32) for axis in grid)
            image, cover = PARTS[name].draw(rng, across, down, 0.03)
            assert cover.min() >= 0 and cover.max() == 1
        assert image.shape == (*shape, 3)
        assert image.dtype == np.float32
        assert np.isfinite(image).all()


@pytest.mark.parametrize("seed", [0, 1, 2, 3])
def test_the_same_state_gives_the_same_scene(seed: int) -> None:
    first, second = (generate(np.random.default_rng(seed), size=(64, 72)) for _ in range(2))
    assert (first.image == second.image).all() and (first.mask == second.mask).all()
    assert (first.kind, first.material, first.caption) == (second.kind, second.material, second.caption)
    other = generate(np.random.default_rng(seed + 100), size=(64, 72))
    assert (first.image != other.image).any()


def test_normal_scene_has_an_empty_mask() -> None:
    for seed in range(8):
        scene = generate(np.random.default_rng(seed), size=(48, 48), defect=None)
        assert not scene.mask.any() and scene.label == 0 and scene.kind == GOOD


def test_chosen_defect_is_drawn() -> None:
    for kind in KINDS:
        scene = generate(np.random.default_rng(1), size=(64, 64), defect=kind)
        assert scene.kind == kind and scene.label == 1 and scene.mask.any()


def test_random_defects_come_every_second_time_and_of_all_kinds() -> None:
    rng = np.random.default_rng(0)
    scenes = [generate(rng, size=(32, 32)) for _ in range(300)]
    assert 0.4 < np.mean([scene.label for scene in scenes]) < 0.6
    assert len({scene.kind for scene in scenes}) >= len(KINDS)
    assert len({scene.material for scene in scenes}) > 0.9 * len(MATERIALS)


def test_pair_differs_where_the_mask_is() -> None:
    for seed in range(12):
        normal, defective = pair(np.random.default_rng(seed), size=(96, 96))
        assert normal.material == defective.material and not normal.mask.any() and defective.mask.any()
        change = difference(normal.image, defective.image).astype(float)
        assert change[defective.mask].mean() > 3 * change[~grow(defective.mask, 6)].mean() + 1


def test_background_is_laid_under_the_part() -> None:
    ground = flat(10, (50, 70))
    ground[..., 1] = 200
    scene = generate(np.random.default_rng(2), size=(100, 100), defect=None, background=ground)
    assert scene.foreground is not None and scene.material in PARTS
    corner = scene.image[~grow(scene.foreground, 12)].astype(float).mean(axis=0)
    assert corner[1] > 2 * max(corner[0], corner[2])


def test_guess_foreground_finds_a_part_and_declines_textures() -> None:
    image = flat(30, (120, 150))
    image[40:90, 50:110] = (200, 120, 60)
    found = guess_foreground(image)
    assert found is not None
    truth = np.zeros((120, 150), np.bool_)
    truth[40:90, 50:110] = True
    assert (found & truth).sum() / (found | truth).sum() > 0.85
    assert guess_foreground(flat(128)) is None
    assert guess_foreground(np.random.default_rng(0).integers(0, 255, (96, 96, 3), dtype=np.uint8)) is None


def test_photometric_keeps_shape_content_and_input() -> None:
    image = generate(np.random.default_rng(4), size=(64, 80), defect=None).image
    before = image.copy()
    for seed in range(20):
        taken = photometric(image, np.random.default_rng(seed))
        assert taken.shape == image.shape and taken.dtype == np.uint8
        assert np.corrcoef(taken.ravel(), image.ravel())[0, 1] > 0.7
    assert (image == before).all()
    assert (
        photometric(image, np.random.default_rng(3)) == photometric(image, np.random.default_rng(3))
    ).all()


def test_captions_name_the_object_and_its_state() -> None:
    assert caption is caption_for
    rng = np.random.default_rng(0)
    for _ in range(60):
        good = caption_for("metal_nut", GOOD, rng)
        assert "metal nut" in good and any(word in good for word in GOOD_WORDS)
        assert not any(
            word
            in good.replace("without defects", "").replace("free of defects", "").replace("undamaged", "")
            for word in BAD_WORDS
        )
        bad = caption_for("metal_nut", "scratch", rng)
        assert "metal nut" in bad and any(word in bad for word in (*BAD_WORDS, *NOUNS["scratch"]))
        assert " a a" not in bad and " a un" not in good
    assert any("melted corner" in caption_for("part", "melted_corner", rng) for _ in range(10))
    assert len({caption_for("screw", "crack", rng) for _ in range(80)}) > 30
    assert set(NOUNS) == set(KINDS)


def test_errors_say_what_is_wrong() -> None:
    rng = np.random.default_rng(0)
    with pytest.raises(ConfigError, match="unknown defect kind 'explosion'"):
        add_defect(flat(10), rng, kind="explosion")
    with pytest.raises(ConfigError, match="unknown defect 'explosion'"):
        generate(rng, defect="explosion")
    with pytest.raises(ConfigError, match="strength is 2"):
        add_defect(flat(10), rng, strength=2.0)
    with pytest.raises(ConfigError, match="at least 32"):
        generate(rng, size=(16, 64))
    with pytest.raises(ConfigError, match="non-empty"):
        caption_for(" ", "scratch", rng)
    with pytest.raises(ImageError, match="float64"):
        add_defect(np.zeros((32, 32, 3)), rng)  # type: ignore[arg-type]
    with pytest.raises(ImageError, match="sides of at least 8"):
        add_defect(np.zeros((4, 32, 3), np.uint8), rng)
    with pytest.raises(ImageError, match="foreground"):
        add_defect(flat(10), rng, foreground=np.ones((3, 3), np.bool_))
    with pytest.raises(ImageError, match="donor"):
        add_defect(flat(10), rng, donor=np.zeros((32, 32), np.uint8))
    with pytest.raises(ImageError, match="background"):
        generate(rng, background=np.zeros((32, 32), np.uint8))


def test_array_tools_match_their_formulas() -> None:
    rng = np.random.default_rng(0)
    first, second = rng.random((2, 7, 9, 3)).astype(np.float32)
    amount = rng.random((7, 9)).astype(np.float32)
    assert np.allclose(
        mix(first, second, amount), first * (1 - amount[..., None]) + second * amount[..., None]
    )
    assert np.allclose(tint(first[0, 0], amount), first[0, 0] * amount[..., None])
    assert np.allclose(magnitude(first[..., 0], amount), np.hypot(first[..., 0], amount))
    mask = rng.random((20, 23)) > 0.9
    slow = np.zeros_like(mask)
    for row, column in zip(*np.nonzero(mask), strict=True):
        slow[max(0, row - 2) : row + 3, max(0, column - 2) : column + 3] = True
    assert (grow(mask, 2) == slow).all()
    assert (shrink(slow, 2) >= mask).all()
    wall, tone = voronoi(rng, (40, 50), 9.0)
    assert wall.shape == tone.shape == (40, 50) and wall.min() >= -1e-3 and 0 <= tone.min() <= tone.max() <= 1
