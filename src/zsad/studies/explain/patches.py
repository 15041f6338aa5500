"""Images whose patches are coloured by the expert with the greatest weight."""

from __future__ import annotations

import colorsys
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from matplotlib.collections import LineCollection
from PIL import Image

from zsad.studies.explain.collect import Bools, PatchPicture, Pool
from zsad.studies.explain.explanation import Explanation
from zsad.studies.explain.figure_parts import GROUP_COLOURS, MAX_WIDTH, ExplanationFigure, slug, titled
from zsad.studies.report.drawing import MARGIN, Drawing, KeyEntry, draw_key, key_places, shortened, styled

_SIDE, _GAP, _BETWEEN, _BELOW = 150, 10, 30, 30
_LABELS = {0: "normal", 1: "anomalous", None: "unlabelled"}
_OPACITY = 0.62

Segment = tuple[tuple[float, float], tuple[float, float]]

_OKABE_ITO = ("#e69f00", "#56b4e9", "#009e73", "#f0e442", "#0072b2", "#d55e00", "#cc79a7", "#4d4d4d")


def expert_colours(count: int) -> list[str]:
    """Return colours for `count` experts: Okabe and Ito's eight for colour-blind readers, then hues in three tones."""
    colours = list(_OKABE_ITO[:count])
    for index in range(count - len(colours)):
        hue, tone = (index * 0.618034 + 0.08) % 1, (0.62, 0.38, 0.8)[index % 3]
        red, green, blue = colorsys.hls_to_rgb(hue, tone, 0.65)
        colours.append(f"#{round(255 * red):02x}{round(255 * green):02x}{round(255 * blue):02x}")
    return colours


def patch_figures(explanation: Explanation) -> Iterator[ExplanationFigure]:
    """Draw a figure for each pool that routes patches."""
    pictures = explanation.collected.pictures
    caption = (
        "The colour is the expert with the greatest weight at each patch, laid over the picture in grey. "
        "Outlined are the patches that count as anomalous."
    )
    for name, pool in explanation.pools.items():
        if pool.unit == "patch" and pictures:
            title = titled(explanation, "Which expert sees which patch", name)
            yield ExplanationFigure(f"patches-{slug(name)}", title, caption, _maps(name, pool, pictures))


@styled
def _maps(name: str, pool: Pool, pictures: Sequence[PatchPicture]) -> Drawing:
    """Each image and its map for each layer in a row, as many images side by side as fit."""
    block = (1 + len(pool.layers)) * (_SIDE + _GAP) + _BETWEEN
    beside = max(1, min(len(pictures), int((MAX_WIDTH - 2 * MARGIN + _BETWEEN) // block)))
    width = max(2 * MARGIN + beside * block - _GAP - _BETWEEN, 480.0)
    colours = expert_colours(len(pool.experts))
    key = [KeyEntry(expert, colour, "s") for expert, colour in zip(pool.experts, colours, strict=True)]
    top = key_places(key, width)[1] + 32
    rows = [pictures[start : start + beside] for start in range(0, len(pictures), beside)]
    heights = [max(_size(picture.picture)[1] for picture in row) + _BELOW for row in rows]
    drawing = Drawing(
        width, top + sum(heights) + 6, f"Pictures with the strongest expert of each patch, pool {name}"
    )
    draw_key(drawing, key)
    for index in range(beside):
        for column, title in enumerate(("picture", *pool.layers)):
            drawing.text(MARGIN + index * block + column * (_SIDE + _GAP), top - 8, title)
    y = top
    for row, height in zip(rows, heights, strict=True):
        for index, picture in enumerate(row):
            x = MARGIN + index * block
            _draw_maps(drawing, picture, picture.strongest[name], colours, x, y)
            _draw_label(drawing, picture, x, y + _size(picture.picture)[1] + 14, block - _BETWEEN - _GAP)
        y += height
    return drawing


def _size(image: Image.Image) -> tuple[int, int]:
    """Width and height of an image on the drawing."""
    scale = _SIDE / max(image.size)
    return round(image.width * scale), round(image.height * scale)


def _draw_maps(
    drawing: Drawing,
    picture: PatchPicture,
    strongest: npt.NDArray[np.intp],
    colours: Sequence[str],
    left: float,
    y: float,
) -> None:
    """The image, then for each layer the experts' colours over it in grey; the defect's patches are outlined."""
    image = picture.picture
    width, height = _size(image)
    palette = np.array([[int(colour[i : i + 2], 16) for i in (1, 3, 5)] for colour in colours], np.uint8)
    # Half the contrast around a light grey: a dark picture must not darken the experts' colours.
    grey = image.convert("L").point([96 + value // 2 for value in range(256)]).convert("RGB")
    segments = [
        [(x0 * width, y + y0 * height), (x1 * width, y + y1 * height)]
        for (x0, y0), (x1, y1) in outline(picture.defect)
    ]
    for column, layer in enumerate((None, *strongest)):
        x, shown = left + column * (_SIDE + _GAP), image
        if layer is not None:
            cells = Image.fromarray(palette[layer]).resize(grey.size, Image.Resampling.NEAREST)
            shown = Image.blend(grey, cells, _OPACITY)
        drawing.image(shown, x, y, width, height)
        moved = [[(x + across, down) for across, down in segment] for segment in segments]
        for colour, thick in (("#fefefe", 3.2), ("#111111", 1.4)):  # white in dark mode, too
            lines = LineCollection(moved, colors=colour, linewidths=thick, capstyle="projecting", zorder=3)
            drawing.sheet.add_collection(lines, autolim=False)


def _draw_label(drawing: Drawing, picture: PatchPicture, x: float, y: float, room: float) -> None:
    """The label, data set, class and file name of an image."""
    sample = picture.sample
    label = _LABELS[sample.label]
    drawing.line((x + 4, x + 4), (y - 4, y - 4), color=GROUP_COLOURS[label], marker="o", markersize=8)
    text = f"{label} · {sample.dataset} · {sample.class_name} · {Path(sample.image).name}"
    drawing.text(x + 13, y, shortened(text, 12, room - 13))


def outline(defect: Bools | None) -> list[Segment]:
    """Return border lines of the marked patches (h, w), as parts of the picture's width and height."""
    if defect is None or not defect.any():
        return []
    rows, columns = defect.shape
    framed = np.pad(defect, 1)
    lines: list[Segment] = []
    for row, column in np.argwhere(framed[1:, 1:-1] != framed[:-1, 1:-1]):
        lines.append(((column / columns, row / rows), ((column + 1) / columns, row / rows)))
    for row, column in np.argwhere(framed[1:-1, 1:] != framed[1:-1, :-1]):
        lines.append(((column / columns, row / rows), (column / columns, (row + 1) / rows)))
    return lines
