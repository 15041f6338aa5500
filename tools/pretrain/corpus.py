"""What the bundled model sees: real everyday photos, textiles and synthetic scenes, with and without defects.

Every item is made from `(seed, index)` alone, so the corpus is the same wherever and in whatever order it is made.
No image of any anomaly data set is in it.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from zsad import synth

SIDE = 256
# Share of each source. Scenes carry most of what is learned about defects, photos most of what is learned about things.
SHARES = {"scene": 0.52, "photo": 0.28, "thumbnail": 0.10, "textile": 0.10}


@dataclass(slots=True)
class Item:
    """One training image (SIDE, SIDE, 3), its defect mask and label, its own caption and that of the opposite state.

    `dense` is False where the image is defective but nobody drew the mask. `name` is the thing shown.
    """

    image: np.ndarray
    mask: np.ndarray
    label: int
    kind: str
    name: str
    caption: str
    opposite: str
    dense: bool = True


class Corpus:
    """Items by index.

    Args:
        natural: folder with one photo per ImageNet class (`wnid_name.jpg`) and, per wnid, small pictures.
        textiles: folder with `nominal`, `local` and `global`.
        names: wnid to spoken name.
        seed: of the whole corpus.
    """

    def __init__(self, natural: Path, textiles: Path, names: dict[str, str], *, seed: int) -> None:
        self.seed = seed
        self.names = names
        self.photos = sorted(natural.glob("*.jpg"))
        self.thumbnails = sorted(natural.glob("n*/*.JPEG"))
        self.textiles = {
            kind: sorted((textiles / kind).glob("*.jpg")) for kind in ("nominal", "local", "global")
        }
        for what, files in (("photos", self.photos), ("thumbnails", self.thumbnails), *self.textiles.items()):
            if not files:
                raise SystemExit(f"no {what} found in {natural} or {textiles}")

    @property
    def class_names(self) -> list[str]:
        """The thousand names in the order of ImageNet's indices, which is that of their wnids."""
        return [self._name(photo.stem.split("_")[0], photo) for photo in self.photos]

    def item(self, index: int) -> Item:
        """The item of an index, always the same."""
        rng = np.random.default_rng([self.seed, index])
        source = rng.choice(list(SHARES), p=list(SHARES.values()))
        item: Item = getattr(self, f"_{source}")(rng)
        item.image = synth.photometric(item.image, rng)
        return item

    def _name(self, wnid: str, path: Path) -> str:
        spoken = self.names.get(wnid) or path.stem.partition("_")[2].replace("_", " ")
        return spoken.split(",")[0].strip().lower()

    def _scene(self, rng: np.random.Generator) -> Item:
        defect = "random" if rng.random() < 0.6 else None
        scene = synth.generate(rng, size=(SIDE, SIDE), defect=defect)
        other = "good" if scene.label else str(rng.choice(synth.KINDS))
        opposite = synth.caption_for(scene.material, other, rng)
        return Item(scene.image, scene.mask, scene.label, scene.kind, scene.material, scene.caption, opposite)

    def _photo(self, rng: np.random.Generator) -> Item:
        path = self.photos[rng.integers(len(self.photos))]
        return self._maybe_defect(
            _crop(_open(path), rng), self._name(path.stem.split("_")[0], path), rng, share=0.5
        )

    def _thumbnail(self, rng: np.random.Generator) -> Item:
        path = self.thumbnails[rng.integers(len(self.thumbnails))]
        return self._maybe_defect(_resize(_open(path)), self._name(path.parent.name, path), rng, share=0.3)

    def _textile(self, rng: np.random.Generator) -> Item:
        state = str(rng.choice(["nominal", "nominal", "local", "global"]))
        files = self.textiles[state]
        image = _crop(_open(files[rng.integers(len(files))]), rng, least=0.8)
        if state == "nominal":
            return self._maybe_defect(image, "woven textile", rng, share=0.5)
        kind = "stain" if state == "local" else "texture"
        own = synth.caption_for("woven textile", kind, rng)
        opposite = synth.caption_for("woven textile", "good", rng)
        return Item(image, np.zeros((SIDE, SIDE), bool), 1, kind, "woven textile", own, opposite, dense=False)

    def _maybe_defect(self, image: np.ndarray, name: str, rng: np.random.Generator, *, share: float) -> Item:
        if rng.random() >= share:
            own = synth.caption_for(name, "good", rng)
            other = synth.caption_for(name, str(rng.choice(synth.KINDS)), rng)
            return Item(image, np.zeros((SIDE, SIDE), bool), 0, "good", name, own, other)
        donor = None
        if rng.random() < 0.5:
            donor = _crop(_open(self.photos[rng.integers(len(self.photos))]), rng)
        image, mask, kind = synth.add_defect(image, rng, donor=donor)
        own = synth.caption_for(name, kind, rng)
        return Item(image, mask, 1, kind, name, own, synth.caption_for(name, "good", rng))


def read_names(path: Path) -> dict[str, str]:
    """wnid to names, from a JSON file."""
    names: dict[str, str] = json.loads(path.read_text())
    return names


def token_shares(mask: np.ndarray, stride: int) -> np.ndarray:
    """Share of defective pixels in each patch, as uint8 (h, w) of 255."""
    height, width = mask.shape
    blocks = mask.reshape(height // stride, stride, width // stride, stride)
    return np.asarray(blocks.mean(axis=(1, 3)) * 255).round().astype(np.uint8)


def _open(path: Path) -> np.ndarray:
    with Image.open(path) as picture:
        return np.asarray(picture.convert("RGB"))


def _resize(image: np.ndarray) -> np.ndarray:
    return np.asarray(Image.fromarray(image).resize((SIDE, SIDE), Image.Resampling.BICUBIC))


def _crop(image: np.ndarray, rng: np.random.Generator, *, least: float = 0.35) -> np.ndarray:
    """A random part of at least `least` of the shorter side, brought to SIDE, perhaps mirrored."""
    side = int(min(image.shape[:2]) * rng.uniform(least, 1.0))
    top = int(rng.integers(image.shape[0] - side + 1))
    left = int(rng.integers(image.shape[1] - side + 1))
    part = image[top : top + side, left : left + side]
    return _resize(part[:, ::-1] if rng.random() < 0.5 else part)


def batches(count: int, size: int) -> Sequence[range]:
    """Indices 0 .. count - 1 in runs of `size`."""
    return [range(start, min(start + size, count)) for start in range(0, count, size)]
