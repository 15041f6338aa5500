"""A made-up benchmark: pictures with real defects, methods of known strength, and every kind of hole."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFilter

from zsad.metrics.curve_points import curves
from zsad.metrics.exact import ExactPixelMetrics
from zsad.metrics.functional import aupro, auroc, average_precision, f1_max
from zsad.runs.store import GridFile, row_line
from zsad.studies.benchmark.cell_results import CellFiles, CellResult, ClassRow, FileProblem, write_cell

SIDE, GRID = 112, 28


@dataclass(frozen=True)
class Made:
    """A made-up data set: classes with a hue each; `normal` and `anomalous` images a class; masks or none."""

    name: str
    classes: tuple[tuple[str, tuple[int, int, int]], ...]
    normal: int
    anomalous: int
    masks: bool = True


@dataclass(frozen=True)
class Player:
    """A made-up method: how well it ranks images and finds pixels, and how much its seeds differ."""

    label: str
    method: str
    image: float
    pixel: float
    seeds: tuple[int | None, ...] = (None,)
    trained_on: tuple[str, ...] = ()
    provenance: str = ""
    milliseconds: float = 20.0
    failed: dict[str, str] = field(default_factory=dict)
    seen: tuple[str, ...] = ()
    skipped: tuple[str, ...] = ()


SETS = (
    Made("bolts", (("hex", (96, 104, 116)), ("ring", (150, 128, 84)), ("slot", (118, 96, 92))), 8, 9),
    Made("cloth", tuple((f"weave_{n}", (90 + 12 * n, 120, 150 - 9 * n)) for n in range(7)), 6, 8),
    Made("polyps", (("colon", (168, 84, 72)),), 0, 12),
    Made("scans", (("head", (70, 74, 80)),), 14, 14, masks=False),
    Made("tiles", (("tile", (176, 168, 150)),), 10, 12),
)
AUXILIARY = ("Auxiliary A",)
SEEDS = (0, 1, 2)
PLAYERS = (
    Player("clip", "clip", 0.35, 0.25, milliseconds=9.0),
    Player("winclip", "winclip", 1.1, 0.7, milliseconds=160.0),
    Player(
        "moeclip",
        "moeclip",
        1.9,
        1.5,
        SEEDS,
        AUXILIARY,
        milliseconds=31.0,
        failed={"scans": "CUDA out of memory"},
    ),
    Player(
        "mpama",
        "mpama",
        1.5,
        1.3,
        SEEDS,
        AUXILIARY,
        "re-designed from the abstract",
        35.0,
        seen=("bolts",),
    ),
    Player("promptmoe", "promptmoe", 2.0, 1.7, SEEDS, AUXILIARY, milliseconds=42.0),
    Player(
        "wmoeclip",
        "wmoeclip",
        1.2,
        1.0,
        (0,),
        AUXILIARY,
        "re-designed from the abstract",
        58.0,
        skipped=("tiles",),
    ),
)


@dataclass
class Sheet:
    """The images of a data set with labels, class names and masks (GRID, GRID)."""

    images: list[Path]
    labels: list[int]
    names: list[str]
    masks: list[np.ndarray]


def draw_set(made: Made, folder: Path) -> Sheet:
    """Writes the pictures of a data set in MVTec's layout."""
    sheet = Sheet([], [], [], [])
    generator = np.random.default_rng(len(made.name))
    for name, hue in made.classes:
        for index in range(made.normal + made.anomalous):
            label = int(index >= made.normal)
            image, mask = _picture(hue, label, generator)
            kind = "bad" if label else "good"
            path = folder / name / "test" / kind / f"{index:03d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            image.save(path)
            if label and made.masks:
                place = folder / name / "ground_truth" / kind / f"{index:03d}_mask.png"
                place.parent.mkdir(parents=True, exist_ok=True)
                mask.save(place)
            sheet.images.append(path)
            sheet.labels.append(label)
            sheet.names.append(name)
            sheet.masks.append(np.asarray(mask.resize((GRID, GRID), Image.Resampling.BOX)) > 100)
    return sheet


def _picture(
    hue: tuple[int, int, int], label: int, generator: np.random.Generator
) -> tuple[Image.Image, Image.Image]:
    """A round part on a bench, and with label 1 a dark scratch on it."""
    image = Image.new("RGB", (SIDE, SIDE), (214, 212, 206))
    draw = ImageDraw.Draw(image)
    draw.ellipse((12, 12, SIDE - 12, SIDE - 12), fill=hue)
    light = tuple(min(255, channel + 34) for channel in hue)
    draw.ellipse((30, 26, SIDE - 34, SIDE - 40), fill=light)
    draw.ellipse((44, 44, SIDE - 44, SIDE - 44), fill=hue)
    mask = Image.new("L", (SIDE, SIDE))
    if label:
        x, y = generator.integers(30, SIDE - 46, size=2)
        dx, dy = generator.integers(8, 22, size=2)
        for sheet, colour in ((draw, (38, 24, 20)), (ImageDraw.Draw(mask), 255)):
            sheet.line((int(x), int(y), int(x + dx), int(y + dy)), fill=colour, width=7)
    noise = generator.normal(0, 4, (SIDE, SIDE, 3))
    pixels = np.clip(np.asarray(image.filter(ImageFilter.GaussianBlur(0.8))) + noise, 0, 255)
    return Image.fromarray(pixels.astype(np.uint8)), mask


def score_grids(sheet: Sheet, strength: float, generator: np.random.Generator) -> np.ndarray:
    """Grids (N, GRID, GRID) of logits that show the defects the better the stronger a method is."""
    grids = generator.normal(0, 1, (len(sheet.images), GRID, GRID))
    spectrum = np.exp(-(np.fft.fftfreq(GRID)[:, None] ** 2 + np.fft.fftfreq(GRID)[None] ** 2) * 90)
    smooth = np.fft.ifft2(np.fft.fft2(grids) * spectrum).real
    smooth /= smooth.std()
    hot = np.fft.ifft2(np.fft.fft2(np.stack(sheet.masks).astype(float)) * spectrum).real
    return np.asarray(-3.4 + 0.9 * smooth + 14.0 * strength * hot)


def make_work(root: Path, *, players: tuple[Player, ...] = PLAYERS, sets: tuple[Made, ...] = SETS) -> Path:
    """Draws the data sets and writes a cell for each player, target and seed."""
    work = root / "work"
    for made in sets:
        sheet = draw_set(made, root / "data" / made.name)
        # What makes an image hard is hard for all methods, so that they are compared in pairs with profit.
        hard = np.random.default_rng(1).normal(size=len(sheet.images))
        for number, player in enumerate(players):
            for seed in player.seeds if made.name not in player.skipped else ():
                generator = np.random.default_rng([number, seed or 0, len(made.name)])
                write_cell(
                    work, _cell(work, root / "data" / made.name, made, sheet, player, seed, hard, generator)
                )
    return work


def _cell(
    work: Path,
    data: Path,
    made: Made,
    sheet: Sheet,
    player: Player,
    seed: int | None,
    hard: np.ndarray,
    generator: np.random.Generator,
) -> CellResult:
    base = CellResult(
        key=f"{made.name}-{player.label}-{seed}",
        method=player.method,
        label=player.label,
        backbone="zsad-tiny",
        backbone_sha256="5f" * 32,
        protocol="",
        trained_on=player.trained_on,
        target=made.name,
        seed=seed,
        provenance=player.provenance,
        environment={
            "zsad": "0.1.0",
            "python": "3.12.3",
            "torch": "2.9.0",
            "device": "cpu",
            "platform": "Linux",
        },
    )
    if made.name in player.failed:
        return base.model_copy(update={"state": "failed", "reason": player.failed[made.name]})
    labels, names = np.array(sheet.labels, np.int8), np.array(sheet.names)
    shift = player.image * (1 + 0.08 * generator.normal())
    scores = 1 / (1 + np.exp(-(-1 + shift * labels + 0.7 * hard + 0.6 * generator.normal(size=labels.size))))
    grids = score_grids(sheet, player.pixel * (1 + 0.08 * generator.normal()), generator)
    cells = work / "cells"
    cells.mkdir(parents=True, exist_ok=True)
    relative = [path.relative_to(data).as_posix() for path in sheet.images]
    np.savez(cells / f"{base.key}.scores.npz", image=relative, class_name=names, label=labels, score=scores)
    _write_grids(cells / f"{base.key}.grids", sheet, scores, grids)
    rows, points = [], {}
    for name, _ in made.classes:
        own = np.flatnonzero(names == name)
        rows.append(_row(made, name, labels[own], scores[own], grids[own], [sheet.masks[k] for k in own]))
        if made.masks:
            state = ExactPixelMetrics()
            for k in own:
                state.update(grids[k], sheet.masks[k])
            points |= {f"{name}/{axis}": values for axis, values in curves(state).arrays().items()}
    np.savez(cells / f"{base.key}.curves.npz", **points)
    return base.model_copy(
        update={
            "rows": tuple(rows),
            "seen": made.name in player.seen,
            "notes": () if made.masks else ("image metrics only: there are no masks",),
            "problems": (FileProblem(path="tile/test/bad/x.png", reason="the file is empty"),)
            if made.name == "tiles"
            else (),
            "seconds_per_image": player.milliseconds / 1000 * (1 + 0.05 * generator.random()),
            "seconds_training": 64.0 + 9 * generator.random() if player.trained_on else None,
            "peak_memory_mb": 612.0 + 3 * player.milliseconds,
            "files": CellFiles(
                scores=f"cells/{base.key}.scores.npz",
                curves=f"cells/{base.key}.curves.npz" if made.masks else None,
                grids=f"cells/{base.key}.grids",
            ),
        }
    )


def _row(
    made: Made, name: str, labels: np.ndarray, scores: np.ndarray, grids: np.ndarray, masks: list[np.ndarray]
) -> ClassRow:
    stacked = np.stack(masks)
    pixels = (grids, stacked) if made.masks else None
    values = {
        "image_auroc": auroc(scores, labels),
        "image_ap": average_precision(scores, labels),
        "image_f1_max": f1_max(scores, labels),
        "pixel_auroc": auroc(*pixels) if pixels else None,
        "pixel_pro": aupro(*pixels) if pixels else None,
        "pixel_ap": average_precision(*pixels) if pixels else None,
        "pixel_f1_max": f1_max(*pixels) if pixels else None,
    }
    metrics = {key: None if value is None or np.isnan(value) else value for key, value in values.items()}
    anomalous = int(labels.sum())
    return ClassRow(
        name=name,
        normal=labels.size - anomalous,
        anomalous=anomalous,
        masks=anomalous if made.masks else 0,
        metrics=metrics,
    )


def _write_grids(folder: Path, sheet: Sheet, scores: np.ndarray, grids: np.ndarray) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    spec = {"size": [SIDE, SIDE], "order": "after_softmax", "sigma": 2.0, "scale": [0.05, 0.8]}
    (folder / "run.json").write_text(json.dumps({"settings": {}, "map_spec": spec}))
    store = GridFile(folder / "grids.npy", keep=0)
    lines = []
    for path, score, grid in zip(sheet.images, scores.tolist(), grids, strict=True):
        place = store.append(grid[None].astype(np.float32))
        row = {"source": str(path), "size": [SIDE, SIDE], "score": score, "verdict": None, "ms": 1.0}
        lines.append(row_line({**row, "file": [0, 0], "grid": place}))
    store.close()
    (folder / "predictions.jsonl").write_bytes(b"".join(lines))


@pytest.fixture(scope="session")
def benchmark_work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a made-up benchmark; not to be changed."""
    return make_work(tmp_path_factory.mktemp("benchmark"))
