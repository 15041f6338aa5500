"""Tables of text for terminals and Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from zsad.metrics.table import plain_table

if TYPE_CHECKING:
    from rich.table import Table


@dataclass(slots=True)
class TextTable:
    """A table of text.

    Attributes:
        headings: of the columns.
        rows: as many cells as headings each.
        left: how many columns stand on the left of theirs; the others are numbers.
        title: above the table.
        bold: the title is set in bold face.
        sections: numbers of the rows that a section begins with.
    """

    headings: Sequence[str]
    rows: list[list[str]] = field(default_factory=list)
    left: int = 1
    title: str = ""
    bold: bool = False
    sections: set[int] = field(default_factory=set)

    def to_rich(self) -> Table:
        """Return the table for a terminal."""
        from rich.text import Text

        style = "bold" if self.bold else "table.title"
        table = plain_table(
            title=Text(self.title) if self.title else None, title_justify="left", title_style=style
        )
        for index, heading in enumerate(self.headings):
            if index < self.left:
                table.add_column(Text(heading), overflow="fold")
            else:
                table.add_column(Text(heading), justify="right")
        for index, row in enumerate(self.rows):
            if index and index in self.sections:
                table.add_section()
            table.add_row(*map(Text, row))
        return table

    def to_markdown(self) -> list[str]:
        """Return the lines of the table in Markdown."""
        rule = ["---"] * self.left + ["---:"] * (len(self.headings) - self.left)
        return [_markdown_row(row) for row in (self.headings, rule, *self.rows)]


def _markdown_row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(map(escaped, cells)) + " |"


def escaped(text: str) -> str:
    """Return text on one line that does not end a cell of a Markdown table."""
    return text.replace("|", "\\|").replace("\n", " ")
