"""Every file in a folder is an image or named: pictures by suffix and content, masks, results, system folders."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from zsad.errors import DataError, ImageError, InputWarning
from zsad.images.decode import load_image
from zsad.images.inputs import LeftOut, expand_inputs, is_image, walk_images, walk_pairs
from zsad.images.masks import load_mask, mask_size
from zsad.images.open import WRITTEN_BY, content_format, is_heat_map


def photo(path: Path, *, seed: int = 0, **options: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (16, 24, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path, **options)
    return path


def mask(path: Path, size: tuple[int, int] = (16, 24)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    values = np.zeros(size, np.uint8)
    values[4:9, 6:12] = 255
    Image.fromarray(values).save(path)
    return path


def taken(folder: Path) -> tuple[list[str], str]:
    """Names of the images of a folder, and all that is said of what is left out."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        names = [sample.image.relative_to(folder).as_posix() for sample in expand_inputs([folder])]
    return names, "\n".join(str(w.message) for w in caught if issubclass(w.category, InputWarning))


@pytest.mark.parametrize(
    ("suffix", "kind"),
    [
        (".jfif", "JPEG"),
        (".jpe", "JPEG"),
        (".mpo", "MPO"),
        (".dib", "DIB"),
        (".pnm", "PPM"),
        (".apng", "PNG"),
    ],
)
def test_what_can_be_read_when_named_is_read_in_a_folder(tmp_path: Path, suffix: str, kind: str) -> None:
    photo(tmp_path / f"a{suffix}", format=kind)
    assert taken(tmp_path) == ([f"a{suffix}"], "")


def test_pictures_without_suffix_are_known_by_content(tmp_path: Path) -> None:
    photo(tmp_path / "frame", format="PNG")
    photo(tmp_path / "1.2.840.5", format="JPEG")
    photo(tmp_path / "raw.nef", format="TIFF")  # raw photos begin as TIFF and hold a thumbnail first
    (tmp_path / "README").write_text("BM is no bitmap")
    (tmp_path / "b.txt").write_text("text")
    names, said = taken(tmp_path)
    assert names == ["1.2.840.5", "frame"]
    assert said == "left out, of no known image format: 1 .nef, 1 .txt, 1 without suffix"
    assert content_format(tmp_path / "frame") == "PNG" and not is_image(tmp_path / "README")


def test_heic_is_named_with_how_to_get_it(tmp_path: Path) -> None:
    head = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic"
    (tmp_path / "IMG_1.HEIC").write_bytes(head)
    with pytest.raises(DataError, match=r"pillow-heif.*IMG_1\.HEIC"):
        expand_inputs([tmp_path])
    photo(tmp_path / "a.png")
    names, said = taken(tmp_path)
    assert names == ["a.png"] and "IMG_1.HEIC" in said and "pip install pillow-heif" in said
    for source in (tmp_path / "IMG_1.HEIC", head):
        with pytest.raises(ImageError, match="needs pillow-heif"):
            load_image(source)


def test_videos_and_system_folders(tmp_path: Path) -> None:
    photo(tmp_path / "a.png")
    for folder in ("@eaDir", "#recycle", "$RECYCLE.BIN", "__MACOSX", ".thumbs", "System Volume Information"):
        photo(tmp_path / folder / "a.png")
    (tmp_path / "clip.mp4").write_bytes(b"\0")
    names, said = taken(tmp_path)
    assert names == ["a.png"] and "clip.mp4" in said and "@eaDir" not in said


def test_what_zsad_wrote_is_no_picture(tmp_path: Path) -> None:
    photo(tmp_path / "a.png")
    for name in ("run.json", "predictions.jsonl"):
        (tmp_path / "results").mkdir(exist_ok=True)
        (tmp_path / "results" / name).write_text("{}")
    photo(tmp_path / "results" / "overlays" / "a-0123456789.jpg", comment=WRITTEN_BY)
    photo(tmp_path / "moved" / "a-0123456789.jpg", comment=WRITTEN_BY)
    photo(tmp_path / "moved" / "b-0123456789.jpg")  # a name of this form alone says nothing
    names, said = taken(tmp_path)
    assert names == ["a.png", "moved/b-0123456789.jpg"]
    assert "results" in said and "a-0123456789.jpg" in said
    assert is_heat_map(tmp_path / "moved" / "a-0123456789.jpg")


@pytest.mark.parametrize("name", ["b_mask.png", "b_label.png", "b_GT.png", "b.png", "b_mask.jpg"])
def test_a_mask_beside_its_image_is_no_image(tmp_path: Path, name: str) -> None:
    image = photo(tmp_path / "b.jpg")
    twin = mask(tmp_path / name)
    names, said = taken(tmp_path)
    assert names == ["b.jpg"] and name in said
    assert list(walk_pairs(tmp_path)) == [(image, twin)]
    assert set(walk_images(tmp_path)) == {image, twin}  # folders of masks are walked as they are


def test_pictures_that_only_have_the_name_of_a_mask_stay(tmp_path: Path) -> None:
    photo(tmp_path / "shot.jpg")
    photo(tmp_path / "shot_label.png", seed=1)  # the photo of a sticker
    photo(tmp_path / "twice.jpg", seed=2)
    photo(tmp_path / "twice.png", seed=3)
    photo(tmp_path / "small.jpg", seed=4)
    mask(tmp_path / "small.png", (8, 8))  # of another size
    mask(tmp_path / "alone_mask.png")
    names, said = taken(tmp_path)
    assert len(names) == 7 and said == ""


def test_labelme_data_set_folder_is_one_picture(tmp_path: Path) -> None:
    photo(tmp_path / "a_json" / "img.png")
    mask(tmp_path / "a_json" / "label.png")
    photo(tmp_path / "a_json" / "label_viz.png", seed=1)
    left_out = LeftOut()
    assert list(walk_images(tmp_path, skip_masks=True, left_out=left_out)) == [tmp_path / "a_json/img.png"]
    assert "label.png" in "".join(left_out.notes())


def test_a_mask_in_several_files_is_their_union(tmp_path: Path) -> None:
    mask(tmp_path / "000" / "000.png")
    other = np.zeros((16, 24), np.uint8)
    other[12:, :3] = 254
    Image.fromarray(other).save(tmp_path / "000" / "001.png")
    joined = load_mask(tmp_path / "000")
    assert joined.sum() == 5 * 6 + 4 * 3 and mask_size(tmp_path / "000") == (16, 24)
    Image.fromarray(other[:8]).save(tmp_path / "000" / "002.png")
    with pytest.raises(ImageError, match=r"002\.png has another size"):
        load_mask(tmp_path / "000")


@pytest.mark.parametrize(
    ("shape", "pixels"),
    [
        ({"points": [[2, 3], [6, 3], [6, 8], [2, 8]]}, 5 * 6),
        ({"shape_type": "rectangle", "points": [[6, 8], [2, 3]]}, 5 * 6),
        ({"shape_type": "circle", "points": [[10, 8], [13, 8]]}, 37),
    ],
)
def test_labelme_shapes_are_drawn(tmp_path: Path, shape: dict[str, object], pixels: int) -> None:
    import json

    path = tmp_path / "a.json"
    path.write_text(json.dumps({"shapes": [shape], "imageHeight": 16, "imageWidth": 24}))
    drawn = load_mask(path)
    assert drawn.shape == mask_size(path) == (16, 24)
    assert drawn.sum() == pixels


@pytest.mark.parametrize(
    "content",
    [
        "{",
        "[]",
        '{"shapes": [], "imageHeight": 16}',
        '{"shapes": [], "imageHeight": 0, "imageWidth": 24}',
        '{"shapes": [], "imageHeight": 4000000, "imageWidth": 4000000}',
        '{"shapes": [{"points": [[1]]}], "imageHeight": 16, "imageWidth": 24}',
        '{"shapes": [{"shape_type": "mask", "points": [[1, 2]]}], "imageHeight": 16, "imageWidth": 24}',
        '{"shapes": [3], "imageHeight": 16, "imageWidth": 24}',
    ],
)
def test_broken_annotations_end_in_one_line(tmp_path: Path, content: str) -> None:
    path = tmp_path / "a.json"
    path.write_text(content)
    with pytest.raises(ImageError) as error:
        load_mask(path)
    assert "\n" not in str(error.value) and "a.json" in str(error.value)
