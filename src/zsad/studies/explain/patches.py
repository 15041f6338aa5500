"""Pictures whose patches are coloured by the expert that is strongest there."""

from __future__ import annotations

import colorsys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from zsad.studies.explain.charts import MARGIN, WIDEST, Figure, slug, titled
from zsad.studies.explain.collect import Bools, PatchPicture, Pool
from zsad.studies.explain.explanation import Explanation
from zsad.studies.report.canvas import Drawing, Point, shortened, text_width

_SIDE, _GAP, _BETWEEN = 150.0, 10.0, 30.0
_OPACITY = 0.62
_OKABE_ITO = ("#e69f00", "#56b4e9", "#009e73", "#f0e442", "#0072b2", "#d55e00", "#cc79a7", "#4d4d4d")


def expert_colours(count: int) -> list[str]:
    """Colours for `count` experts: Okabe and Ito's eight, told apart by colour-blind eyes, then hues in three tones."""
    colours = list(_OKABE_ITO[:count])
    for index in range(count - len(colours)):
        hue, tone = (index * 0.618034 + 0.08) % 1, (0.62, 0.38, 0.8)[index % 3]
        red, green, blue = colorsys.hls_to_rgb(hue, tone, 0.65)
        colours.append(f"#{round(255 * red):02x}{round(255 * green):02x}{round(255 * blue):02x}")
    return colours


def patch_figures(found: Explanation) -> Iterator[Figure]:
    """A figure for each pool that routes patches."""
    pictures = found.collected.pictures
    for name, pool in found.pools.items():
        if pool.unit == "patch" and pictures:
            caption = (
                "The colour is the expert with the greatest weight at each patch, laid over the picture in grey. "
                "Outlined are the patches that count as anomalous."
            )
            drawing = _sheet(name, pool, pictures)
            title = titled(found, "Which expert sees which patch", name)
            yield Figure(f"patches-{slug(name)}", title, caption, drawing)


def _sheet(name: str, pool: Pool, pictures: list[PatchPicture]) -> Drawing:
    block = (1 + len(pool.layers)) * (_SIDE + _GAP) + _BETWEEN
    beside = max(1, min(len(pictures), int((WIDEST - 2 * MARGIN + _BETWEEN) // block)))
    width = 2 * MARGIN + beside * block - _GAP - _BETWEEN
    sheet = Drawing(max(width, 480.0), 0, f"Pictures with the strongest expert of each patch, pool {name}")
    colours = expert_colours(len(pool.experts))
    y = _key(sheet, pool, colours) + 14
    for place in range(beside):
        for column, title in enumerate(("picture", *pool.layers)):
            sheet.text(MARGIN + place * block + column * (_SIDE + _GAP), y + 10, title, size=12)
    y += 18
    for start in range(0, len(pictures), beside):
        row = pictures[start : start + beside]
        ends = [
            _maps(sheet, picture, picture.strongest[name], colours, MARGIN + place * block, y, block)
            for place, picture in enumerate(row)
        ]
        y = max(ends)
    sheet.height = y + 6
    return sheet


def _key(sheet: Drawing, pool: Pool, colours: list[str]) -> float:
    x, y = MARGIN, 16.0
    for name, colour in zip(pool.experts, colours, strict=True):
        room = text_width(name, 12) + 36
        if x + room > sheet.width and x > MARGIN:
            x, y = MARGIN, y + 21
        sheet.rect(x, y, 13, 13, colour)
        sheet.text(x + 19, y + 11, name, size=12, fill="ink")
        x += room
    return y + 13


def _maps(
    sheet: Drawing,
    picture: PatchPicture,
    strongest: npt.NDArray[np.intp],
    colours: list[str],
    left: float,
    y: float,
    block: float,
) -> float:
    """The picture and its map for each layer, their name below; returns where they end."""
    image, sample = picture.picture, picture.sample
    ratio = min(1.0, image.height / image.width), min(1.0, image.width / image.height)
    height, width = _SIDE * ratio[0], _SIDE * ratio[1]
    palette = np.array([[int(colour[i : i + 2], 16) for i in (1, 3, 5)] for colour in colours], np.uint8)
    # Half the contrast around a light grey: a dark picture must not darken the experts' colours.
    grey = image.convert("L").point([96 + value // 2 for value in range(256)]).convert("RGB")
    for column in range(1 + len(strongest)):
        x = left + column * (_SIDE + _GAP)
        shown = image
        if column:
            cells = Image.fromarray(palette[strongest[column - 1]])
            shown = Image.blend(grey, cells.resize(grey.size, Image.Resampling.NEAREST), _OPACITY)
        sheet.picture(x, y, width, height, shown, title=str(sample.image))
        for stroke, thick in (("#ffffff", 3.2), ("#111111", 1.4)):
            for (x0, y0), (x1, y1) in outline(picture.defect):
                # Half a stroke longer at both ends, so that corners close.
                more = (thick / 2 * (x1 > x0), thick / 2 * (y1 > y0))
                start = (x + x0 * width - more[0], y + y0 * height - more[1])
                sheet.line(
                    [start, (x + x1 * width + more[0], y + y1 * height + more[1])], stroke, width=thick
                )
    label = {0: "normal", 1: "anomalous", None: "unlabelled"}[sample.label]
    colour = {0: "normal", 1: "anomalous", None: "soft"}[sample.label]
    sheet.circle(left + 4, y + height + 10, 4, colour)
    name = Path(sample.image).name
    told = f"{label} · {sample.dataset} · {sample.class_name} · {name}"
    sheet.text(left + 13, y + height + 14, shortened(told, 12, block - _BETWEEN - _GAP - 13), size=12)
    return y + height + 30


def outline(defect: Bools | None) -> list[tuple[Point, Point]]:
    """Border lines of the marked patches (h, w), as parts of the picture's width and height."""
    if defect is None or not defect.any():
        return []
    rows, columns = defect.shape
    framed = np.pad(defect, 1)
    lines: list[tuple[Point, Point]] = []
    for row, column in np.argwhere(framed[1:, 1:-1] != framed[:-1, 1:-1]):
        lines.append(((column / columns, row / rows), ((column + 1) / columns, row / rows)))
    for row, column in np.argwhere(framed[1:-1, 1:] != framed[1:-1, :-1]):
        lines.append(((column / columns, row / rows), (column / columns, (row + 1) / rows)))
    return lines
