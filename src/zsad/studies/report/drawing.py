"""Charts as matplotlib figures that give the same bytes for the same numbers, as SVG, PDF and PNG.

Lengths are CSS pixels from the top left. Colours are those of the pages' style sheet: inside a page they become its
variables, so that a chart follows light and dark mode.
"""

from __future__ import annotations

import base64
import io
import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from html import escape
from typing import Any, Literal

import matplotlib
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.text import Text
from matplotlib.textpath import TextToPath
from PIL import Image

COLOURS = {
    "ink": "#1d1b22",
    "soft": "#6a6672",
    "line": "#e2dfd8",
    "faint": "#f0eee9",
    "panel": "#ffffff",
    "accent": "#8a2a6c",  # one step from series4, which differs from it in dark mode
    "normal": "#2c8c85",
    "anomalous": "#d9622b",
    "series1": "#3b6fb6",
    "series2": "#d9622b",
    "series3": "#2c8c85",
    "series4": "#8a2a6b",
    "series5": "#a87c00",
    "series6": "#d4508c",
    "series7": "#5c7f2b",
    "series8": "#6a5acd",
    "series9": "#8a5a34",
    "series10": "#5b5563",
}
"""The named colours in light mode."""

INK, SOFT, LINE, FAINT, PANEL, ACCENT = (COLOURS[name] for name in list(COLOURS)[:6])
MARGIN = 16.0  # of drawings, in CSS pixels
_VARIABLES = {value: name for name, value in reversed(COLOURS.items())}
_FAMILY = "DejaVu Sans"  # ships with matplotlib; screen fonts are narrower
_FONTS = f"system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', '{_FAMILY}', sans-serif"
_DPI = 72  # a point is a CSS pixel
_MAX_SIDE = 30_000  # pixels of a PNG

styled = matplotlib.rc_context(
    {
        "font.family": [_FAMILY],
        "font.size": 12,
        "text.color": INK,
        "text.parse_math": False,
        "figure.facecolor": PANEL,
        "savefig.facecolor": "auto",
        "axes.facecolor": "none",
        "axes.edgecolor": SOFT,
        "axes.labelcolor": SOFT,
        "axes.labelsize": 11,
        "axes.titlelocation": "left",
        "axes.titlesize": 13,
        "axes.titleweight": "bold",
        "axes.titlecolor": INK,
        "axes.titlepad": 8,
        "axes.grid": True,
        "axes.axisbelow": True,
        "axes.spines.left": False,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.unicode_minus": False,
        "grid.color": LINE,
        "xtick.color": SOFT,
        "ytick.color": SOFT,
        "xtick.labelsize": 11,
        "ytick.labelsize": 11,
        "xtick.major.size": 0,
        "ytick.major.size": 0,
        "lines.linewidth": 1.8,
        "legend.frameon": False,
        "legend.fontsize": 12,
        "pdf.fonttype": 42,
        "svg.fonttype": "none",
    }
)
"""Decorator of the functions that make drawings: fonts and colours hold while they run."""


class Drawing:
    """A figure of a fixed size.

    Args:
        width: in CSS pixels.
        height: in CSS pixels.
        summary: description for readers who cannot see the drawing; empty for an ornament.
    """

    def __init__(self, width: float, height: float, summary: str) -> None:
        self.width, self.height, self.summary = width, height, summary
        self.figure = Figure(figsize=(width / _DPI, height / _DPI), dpi=_DPI)
        self.tips: list[str] = []
        self._sheet: Axes | None = None

    def axes(self, x: float, y: float, width: float, height: float, **options: Any) -> Axes:
        """Axes in a box of the drawing."""
        box = (x / self.width, 1 - (y + height) / self.height, width / self.width, height / self.height)
        return self.figure.add_axes(box, **options)

    @property
    def sheet(self) -> Axes:
        """Axes that cover the drawing and whose data are its pixels, y downwards."""
        if self._sheet is None:
            self._sheet = self.axes(0, 0, self.width, self.height, zorder=-1)
            self._sheet.set(xlim=(0, self.width), ylim=(self.height, 0))
            self._sheet.axis("off")
        return self._sheet

    def text(self, x: float, y: float, text: str, **options: Any) -> Text:
        """A line of text on the sheet, its base line at `y`."""
        return self.sheet.text(x, y, text, **{"color": SOFT, **options})

    def rectangle(self, x: float, y: float, width: float, height: float, **options: Any) -> Rectangle:
        """A rectangle on the sheet."""
        patch = Rectangle((x, y), width, height, **{"linewidth": 0, "clip_on": False, **options})
        self.sheet.add_patch(patch)
        return patch

    def line(self, x: tuple[float, float], y: tuple[float, float], **options: Any) -> Line2D:
        """A line on the sheet."""
        line = Line2D(x, y, **{"color": LINE, "linewidth": 1, "clip_on": False, **options})
        return self.sheet.add_line(line)

    def image(self, picture: Image.Image, x: float, y: float, width: float, height: float) -> Artist:
        """A raster image in a box of whole pixels on the sheet, stored with two pixels for each."""
        box = (round(x), round(y), max(1, round(width)), max(1, round(height)))
        pixels = picture.convert("RGB").resize((2 * box[2], 2 * box[3]), Image.Resampling.LANCZOS)
        extent = (box[0], box[0] + box[2], box[1] + box[3], box[1])
        return self.sheet.imshow(pixels, extent=extent, aspect="auto", zorder=2)

    def tip(self, artist: Artist, text: str) -> None:
        """Shows a text where the pointer of a browser rests on the artist."""
        artist.set_gid(f"tip{len(self.tips)}")
        self.tips.append(text)

    def to_svg(self, *, inline: bool = False) -> str:
        """Return the drawing as an SVG element.

        Args:
            inline: for a page: colours are the style sheet's variables, no background; else a file of its own.
        """
        source = self._save("svg", facecolor="none" if inline else "auto").decode("utf-8")
        body = source[source.index(">", source.index("<svg")) + 1 :]
        unused = r'<metadata>.*?</metadata>|<defs>\s*<style.*?</style>\s*</defs>|<g id="[^"]*"/>'
        body = re.sub(unused, "", body, flags=re.S)
        body = re.sub(r'<g id="([^"]*)">', self._group, body)
        body = re.sub(r' id="image\w+"', "", body)
        body = re.sub(r"data:image/png;base64,([^\"]+)", _jpeg, body)
        body = body.replace(f"'{_FAMILY}'", _FONTS)
        width, height = f"{self.width:.6g}", f"{self.height:.6g}"
        label = f'role="img" aria-label="{escape(self.summary)}"' if self.summary else 'aria-hidden="true"'
        label = f'viewBox="0 0 {width} {height}" {label}'
        if not inline:
            space = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
            size = f'width="{width}" height="{height}" style="stroke-linejoin:round"'
            return f"<svg {space} {label} {size}>{body}"
        body = re.sub(r'style="[^"]*"', lambda style: re.sub("#[0-9a-f]{6}", _variable, style[0]), body)
        # Readable on a phone: there the drawing is wider than the screen, and its panel scrolls.
        least = f"{min(self.width, 620):.6g}"
        size = f"width:{width}px;max-width:100%;min-width:{least}px;height:auto;display:block"
        return f'<svg class="drawing" {label} style="stroke-linejoin:round;{size}">{body}'.rstrip()

    def to_png(self, *, scale: int = 2) -> bytes:
        """Return the drawing as a PNG file of `scale` pixels a CSS pixel, fewer where it would be too large."""
        dots = min(scale * _DPI, int(_MAX_SIDE * _DPI / max(self.width, self.height)))
        return self._save("png", dpi=dots)

    def to_pdf(self) -> bytes:
        """Return the drawing as a PDF file of one page."""
        return self._save("pdf")

    def files(self, stem: str) -> dict[str, bytes]:
        """Return the drawing as SVG, PDF and PNG, by the names of the files."""
        svg = self.to_svg().encode("utf-8", "backslashreplace")
        return {f"{stem}.svg": svg, f"{stem}.pdf": self.to_pdf(), f"{stem}.png": self.to_png()}

    @styled
    def _save(self, form: Literal["svg", "png", "pdf"], **options: Any) -> bytes:
        matplotlib.rcParams["svg.hashsalt"] = self.summary  # ids differ between the drawings of a page
        nothing = {
            "svg": ("Date", "Creator"),
            "png": ("Software",),
            "pdf": ("CreationDate", "Creator", "Producer"),
        }
        content = io.BytesIO()
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Glyph .* missing")
            options = {"dpi": 2 * _DPI, "metadata": dict.fromkeys(nothing[form]), **options}
            self.figure.savefig(content, format=form, **options)
        return content.getvalue()

    def _group(self, match: re.Match[str]) -> str:
        """A group of the SVG without its id; one with a tip gets it as title."""
        number = match[1].removeprefix("tip")
        return f"<g><title>{escape(self.tips[int(number)])}</title>" if number != match[1] else "<g>"


def _variable(match: re.Match[str]) -> str:
    name = _VARIABLES.get(match[0])
    return f"var(--{name})" if name else match[0]


def _jpeg(match: re.Match[str]) -> str:
    """An embedded PNG as JPEG, which for photographs takes a fifth of the bytes."""
    content = io.BytesIO()
    picture = Image.open(io.BytesIO(base64.b64decode(match[1]))).convert("RGB")
    picture.save(content, format="JPEG", quality=88, subsampling=0)
    return "data:image/jpeg;base64," + base64.b64encode(content.getvalue()).decode("ascii")


@dataclass(frozen=True, slots=True)
class KeyEntry:
    """A name in a key, with its colour, its marker and the style of its line; either may be empty."""

    name: str
    colour: str
    marker: str = ""
    line: str | tuple[int, tuple[float, ...]] = ""


def key_places(entries: Sequence[KeyEntry], width: float) -> tuple[list[tuple[float, float]], float]:
    """Return where the entries of a key begin (x, base line) on a drawing of a width, and the key's height."""
    places = []
    x, y = MARGIN, 22.0
    for entry in entries:
        room = 56 + text_width(entry.name, 12)
        if x + room - 22 > width - MARGIN and x > MARGIN:
            x, y = MARGIN, y + 20
        places.append((x, y))
        x += room
    return places, y + 4


def draw_key(drawing: Drawing, entries: Sequence[KeyEntry], *, top: float = 0.0) -> float:
    """Draw a key below `top`; return where it ends."""
    places, height = key_places(entries, drawing.width)
    for entry, (x, y) in zip(entries, places, strict=True):
        middle = (top + y - 4, top + y - 4)
        if entry.line:
            drawing.line((x, x + 26), middle, color=entry.colour, linewidth=2, linestyle=entry.line)
        if entry.marker:
            drawing.line((x + 13, x + 13), middle, color=entry.colour, marker=entry.marker, markersize=9)
        drawing.text(x + 34, top + y, entry.name, color=INK)
    return top + height


@lru_cache(maxsize=4096)
def text_width(text: str, size: float, *, bold: bool = False) -> float:
    """Width in CSS pixels of a line of text."""
    font = FontProperties(family=_FAMILY, size=size, weight="bold" if bold else "normal")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")
        return float(TextToPath().get_text_width_height_descent(text, font, ismath=False)[0])


def shortened(text: str, size: float, room: float, *, bold: bool = False) -> str:
    """The text, its middle left out where it would not fit into `room` CSS pixels."""
    if text_width(text, size, bold=bold) <= room:
        return text
    for kept in range(len(text) - 1, 1, -1):
        cut = f"{text[: (kept + 1) // 2]}…{text[len(text) - kept // 2 :]}"
        if text_width(cut, size, bold=bold) <= room:
            return cut
    return "…"


def round_values(low: float, high: float, *, most: int = 5) -> list[float]:
    """Return at most `most` round values within [low, high]."""
    from matplotlib.ticker import MaxNLocator

    values = MaxNLocator(most - 1, steps=[1, 2, 2.5, 5, 10]).tick_values(low, high)
    return [float(value) for value in values if low - 1e-9 <= value <= high + 1e-9]
