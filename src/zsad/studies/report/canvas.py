"""Drawings of a few primitives that come out alike as SVG (for pages, scalable) and as PNG (for papers and slides).

Coordinates are CSS pixels from the top left. Colours are "#rrggbb" or a name of `COLOURS`: in a page such a name is
the style sheet's variable, so that a drawing follows light and dark mode.
"""

from __future__ import annotations

import base64
import io
import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from html import escape
from typing import Literal

from PIL import Image, ImageDraw, ImageFont

Anchor = Literal["start", "middle", "end"]
Point = tuple[float, float]

COLOURS = {
    "ink": "#1d1b22",
    "soft": "#6a6672",
    "line": "#e2dfd8",
    "faint": "#f0eee9",
    "panel": "#ffffff",
    "accent": "#8a2a6b",
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
"""The named colours, as they are in light mode: those of the pages' style sheet."""

_FONT = 'system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", "DejaVu Sans", sans-serif'
_WIDER = 1.12  # screen fonts run up to this much wider than the one that measures
_OVERSAMPLING, _MOST_PIXELS = 2, 100_000_000
_FALLBACK_FONTS = ("DejaVuSans.ttf", "NotoSans-Regular.ttf", "Arial.ttf", "Helvetica.ttc", "arial.ttf")
_OWN_GLYPHS = frozenset(map(chr, range(32, 127))) | set("·…±")


@dataclass(frozen=True, slots=True)
class Shape:
    """A filled polygon, a polyline (no `fill`), or a circle (one point and a radius)."""

    points: tuple[Point, ...]
    fill: str | None = None
    stroke: str | None = None
    width: float = 1.0
    radius: float = 0.0
    opacity: float = 1.0
    dashed: bool = False
    title: str = ""


@dataclass(frozen=True, slots=True)
class Label:
    """Text with its base line at `y`."""

    x: float
    y: float
    text: str
    size: float
    fill: str
    anchor: Anchor
    bold: bool = False


@dataclass(frozen=True, slots=True)
class Picture:
    """A raster image, stretched into its box."""

    x: float
    y: float
    width: float
    height: float
    image: Image.Image
    title: str


@dataclass(slots=True)
class Drawing:
    """Primitives in the order in which they are painted.

    Attributes:
        width: in CSS pixels.
        height: in CSS pixels.
        summary: what the drawing shows, for those who cannot see it.
    """

    width: float
    height: float
    summary: str
    parts: list[Shape | Label | Picture] = field(default_factory=list)

    def rect(
        self,
        x: float,
        y: float,
        width: float,
        height: float,
        fill: str,
        *,
        opacity: float = 1,
        title: str = "",
    ) -> None:
        """A filled rectangle."""
        corners = ((x, y), (x + width, y), (x + width, y + height), (x, y + height))
        self.parts.append(Shape(corners, fill=fill, opacity=opacity, title=title))

    def polygon(self, points: Sequence[Point], fill: str, *, opacity: float = 1, title: str = "") -> None:
        """A filled polygon."""
        self.parts.append(Shape(tuple(points), fill=fill, opacity=opacity, title=title))

    def circle(self, x: float, y: float, radius: float, fill: str, *, title: str = "") -> None:
        """A filled circle."""
        self.parts.append(Shape(((x, y),), fill=fill, radius=radius, title=title))

    def line(self, points: Sequence[Point], stroke: str, *, width: float = 1, dashed: bool = False) -> None:
        """A polyline."""
        self.parts.append(Shape(tuple(points), stroke=stroke, width=width, dashed=dashed))

    def text(
        self,
        x: float,
        y: float,
        text: str,
        *,
        size: float = 12,
        fill: str = "soft",
        anchor: Anchor = "start",
        bold: bool = False,
    ) -> None:
        """A line of text, its base line at `y`."""
        self.parts.append(Label(x, y, text, size, fill, anchor, bold))

    def picture(
        self, x: float, y: float, width: float, height: float, image: Image.Image, *, title: str = ""
    ) -> None:
        """A raster image in a box."""
        self.parts.append(Picture(x, y, width, height, image.convert("RGB"), title))

    def to_svg(self, *, inline: bool = False) -> str:
        """The drawing as an SVG element.

        Args:
            inline: for a page: colours by the style sheet's names, no background; else a file of its own.
        """
        box = f'viewBox="0 0 {_number(self.width)} {_number(self.height)}"'
        body = "".join(_svg_part(part, inline=inline) for part in self.parts)
        said = f'role="img" aria-label="{escape(self.summary)}"'
        if inline:
            # Readable on a phone: there the drawing is wider than the screen, and its panel scrolls.
            least = _number(min(self.width, 620))
            size = f'style="width:{_number(self.width)}px;max-width:100%;min-width:{least}px;height:auto;display:block"'
            return f'<svg class="drawing" {box} {size} {said}>{body}</svg>'
        head = f'xmlns="http://www.w3.org/2000/svg" {box} width="{_number(self.width)}" height="{_number(self.height)}"'
        family = escape(_FONT)
        back = f'<rect width="100%" height="100%" fill="{COLOURS["panel"]}"/>'
        return f'<svg {head} {said} font-family="{family}">{back}{body}</svg>\n'

    def to_png(self, *, scale: int = 2) -> bytes:
        """The drawing as a PNG file of `scale` pixels a CSS pixel."""
        over = _OVERSAMPLING
        if self.width * self.height * (scale * over) ** 2 > _MOST_PIXELS:
            over = 1
        factor = scale * over
        size = (max(1, round(self.width * factor)), max(1, round(self.height * factor)))
        image = Image.new("RGB", size, COLOURS["panel"])
        painter = _Painter(image, factor)
        for part in self.parts:
            painter.paint(part)
        content = io.BytesIO()
        (image.reduce(over) if over > 1 else image).save(content, format="PNG")
        return content.getvalue()


def text_width(text: str, size: float) -> float:
    """Width in CSS pixels that a line of text needs, with room for wider fonts."""
    return float(_font(_covered(text), 100).getlength(text)) * size / 100 * _WIDER


def shortened(text: str, size: float, room: float) -> str:
    """The text, its middle left out where it would not fit into `room` CSS pixels."""
    if text_width(text, size) <= room:
        return text
    for kept in range(len(text) - 1, 1, -1):
        cut = f"{text[: (kept + 1) // 2]}…{text[len(text) - kept // 2 :]}"
        if text_width(cut, size) <= room:
            return cut
    return "…"


def _number(value: float) -> str:
    return f"{value:.2f}".rstrip("0").rstrip(".")


def _colour(name: str, *, inline: bool) -> str:
    if name not in COLOURS:
        return name
    return f"var(--{name})" if inline else COLOURS[name]


def _svg_part(part: Shape | Label | Picture, *, inline: bool) -> str:
    # Styles, not attributes: the page's style sheet has rules for text, and those would win over attributes.
    if isinstance(part, Label):
        style = f"fill:{_colour(part.fill, inline=inline)};font-size:{_number(part.size)}px"
        style += ";font-weight:650" if part.bold else ""
        place = f'x="{_number(part.x)}" y="{_number(part.y)}" text-anchor="{part.anchor}"'
        return f'<text {place} style="{style}">{escape(part.text)}</text>'
    title = f"<title>{escape(part.title)}</title>" if part.title else ""
    if isinstance(part, Picture):
        content = io.BytesIO()
        part.image.save(content, format="JPEG", quality=88, subsampling=0)
        uri = "data:image/jpeg;base64," + base64.b64encode(content.getvalue()).decode("ascii")
        box = " ".join(f'{name}="{_number(getattr(part, name))}"' for name in ("x", "y", "width", "height"))
        return f'<image {box} preserveAspectRatio="none" href="{uri}">{title}</image>'
    fill = "none" if part.fill is None else _colour(part.fill, inline=inline)
    style = f"fill:{fill}"
    if part.stroke is not None:
        stroke = _colour(part.stroke, inline=inline)
        style += f";stroke:{stroke};stroke-width:{_number(part.width)};stroke-linejoin:round"
    if part.dashed:
        style += f";stroke-dasharray:{_number(4 * part.width)} {_number(2.5 * part.width)}"
    if part.opacity < 1:
        style += f";fill-opacity:{part.opacity:.3f}"
    if part.radius:
        (x, y), r = part.points[0], _number(part.radius)
        return f'<circle cx="{_number(x)}" cy="{_number(y)}" r="{r}" style="{style}">{title}</circle>'
    points = " ".join(f"{_number(x)},{_number(y)}" for x, y in part.points)
    kind = "polyline" if part.fill is None else "polygon"
    return f'<{kind} points="{points}" style="{style}">{title}</{kind}>'


class _Painter:
    """Paints primitives onto a Pillow image with `factor` pixels a CSS pixel."""

    def __init__(self, image: Image.Image, factor: int) -> None:
        self.image, self.factor = image, factor
        self.draw = ImageDraw.Draw(image)

    def paint(self, part: Shape | Label | Picture) -> None:
        if isinstance(part, Label):
            self._label(part)
        elif isinstance(part, Picture):
            left, top = round(part.x * self.factor), round(part.y * self.factor)
            size = (max(1, round(part.width * self.factor)), max(1, round(part.height * self.factor)))
            self.image.paste(part.image.resize(size, Image.Resampling.BICUBIC), (left, top))
        else:
            self._shape(part)

    def _label(self, part: Label) -> None:
        covered = _covered(part.text)
        font = _font(covered, round(part.size * self.factor))
        text = part.text if covered or not _is_own(font) else part.text.encode("ascii", "replace").decode()
        anchor = {"start": "ls", "middle": "ms", "end": "rs"}[part.anchor]
        place = (part.x * self.factor, part.y * self.factor)
        # Pillow's own font has one weight: a thin outline makes it bold.
        outline = max(1, round(part.size * self.factor / 45)) if part.bold else 0
        colour = _colour(part.fill, inline=False)
        self.draw.text(place, text, font=font, fill=colour, anchor=anchor, stroke_width=outline)

    def _shape(self, part: Shape) -> None:
        points = [(x * self.factor, y * self.factor) for x, y in part.points]
        if part.fill is None:
            pieces = _dashes(points, 4 * part.width * self.factor, 2.5 * part.width * self.factor)
            stroke = _colour(part.stroke or "ink", inline=False)
            for piece in pieces if part.dashed else [points]:
                self.draw.line(
                    piece, fill=stroke, width=max(1, round(part.width * self.factor)), joint="curve"
                )
            return
        fill = _colour(part.fill, inline=False)
        if part.radius:
            (x, y), r = points[0], part.radius * self.factor
            self.draw.ellipse((x - r, y - r, x + r, y + r), fill=fill)
        elif part.opacity >= 1:
            # Pillow counts the last row and column as inside; half a pixel less keeps neighbours apart.
            self.draw.polygon([(x - 0.5, y - 0.5) for x, y in points], fill=fill)
        else:
            self._blend(points, fill, part.opacity)

    def _blend(self, points: list[Point], fill: str, opacity: float) -> None:
        left, top = int(min(x for x, _ in points)), int(min(y for _, y in points))
        right, bottom = (int(max(values)) + 1 for values in zip(*points, strict=True))
        mask = Image.new("L", (max(1, right - left), max(1, bottom - top)))
        inside = [(x - left - 0.5, y - top - 0.5) for x, y in points]
        ImageDraw.Draw(mask).polygon(inside, fill=round(255 * opacity))
        self.image.paste(fill, (left, top, left + mask.width, top + mask.height), mask)


def _dashes(points: list[Point], dash: float, gap: float) -> list[list[Point]]:
    """The pieces of a polyline that a dashed stroke shows."""
    pieces: list[list[Point]] = [[points[0]]]
    left, drawn = dash, True
    for (x0, y0), (x1, y1) in itertools.pairwise(points):
        length = ((x1 - x0) ** 2 + (y1 - y0) ** 2) ** 0.5
        done = 0.0
        while length - done > left:
            done += left
            place = (x0 + (x1 - x0) * done / length, y0 + (y1 - y0) * done / length)
            if drawn:
                pieces[-1].append(place)
            else:
                pieces.append([place])
            drawn = not drawn
            left = dash if drawn else gap
        left -= length - done
        if drawn:
            pieces[-1].append((x1, y1))
    return [piece for piece in pieces if len(piece) > 1]


def _covered(text: str) -> bool:
    """Whether Pillow's own font has every glyph."""
    return _OWN_GLYPHS.issuperset(text)


@lru_cache(maxsize=64)
def _font(covered: bool, size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """Pillow's own font, alike on every machine; for other scripts one that is installed, where there is one."""
    if not covered:
        for name in _FALLBACK_FONTS:
            try:
                return ImageFont.truetype(name, size)
            except OSError:
                continue
    return ImageFont.load_default(size)


def _is_own(font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> bool:
    return isinstance(font, ImageFont.ImageFont) or font.getname()[0] == "Aileron"
