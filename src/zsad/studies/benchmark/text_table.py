"""Tables of text for terminals, Markdown, LaTeX and HTML, and documents of several with what there is to say."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from zsad.files import write_text
from zsad.metrics.table import plain_table

if TYPE_CHECKING:
    from rich.table import Table

_LATEX = str.maketrans(
    {
        **{char: f"\\{char}" for char in "&%$#_{}"},
        "\\": r"\textbackslash{}",
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
        "–": "--",
        "±": r"$\pm$",
        "†": r"\textdagger{}",
        "‡": r"\textdaggerdbl{}",
        "§": r"\S{}",
    }
)
_MARKED = re.compile(r"(?P<value>[^±]*?)(?: ± (?P<deviation>[\d.]+))?(?P<marks>[†‡§]*)")


class Bold(str):
    """A cell in bold face."""

    __slots__ = ()


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
            table.add_row(*(Text(cell, style="bold" if isinstance(cell, Bold) else "") for cell in row))
        return table

    def to_markdown(self) -> list[str]:
        """Return the lines of the table in Markdown, an empty one last."""
        rule = ["---"] * self.left + ["---:"] * (len(self.headings) - self.left)
        rows = [
            [f"**{escaped(cell)}**" if isinstance(cell, Bold) else escaped(cell) for cell in row]
            for row in self.rows
        ]
        lines = [list(map(escaped, self.headings)), rule, *rows]
        return ["| " + " | ".join(row) + " |" for row in lines] + [""]

    def to_latex(self, *, below: Sequence[str] = ()) -> list[str]:
        """Return the lines of the table for the packages booktabs and textcomp, with sentences `below` it."""
        columns = "l" * self.left + "c" * (len(self.headings) - self.left)
        body = []
        for index, row in enumerate(self.rows):
            body += [r"  \midrule"] if index and index in self.sections else []
            body.append("  " + " & ".join(map(_latex_cell, row)) + r" \\")
        label = re.sub(r"\W+", "-", self.title.lower()).strip("-")
        return [
            r"\begin{table}[t]",
            r"  \centering\small",
            f"  \\caption{{{latex(self.title)}}}",
            f"  \\label{{tab:{label}}}",
            f"  \\begin{{tabular}}{{{columns}}}",
            r"  \toprule",
            "  " + " & ".join(map(latex, self.headings)) + r" \\",
            r"  \midrule",
            *body,
            r"  \bottomrule",
            r"  \end{tabular}",
            *(f"  \\par\\smallskip\\footnotesize {latex(line)}" for line in below),
            r"\end{table}",
            "",
        ]


@dataclass(slots=True)
class TableDocument:
    """Tables with what is to be known before reading them.

    Attributes:
        title: in a line.
        head: sentences above the tables, which go into every form.
        tables: with titles.
        notes: sentences below the tables.
    """

    title: str
    head: list[str]
    tables: list[TextTable]
    notes: list[str] = field(default_factory=list)

    def to_markdown(self) -> str:
        """Return all of it for reading."""
        lines = [f"# {escaped(self.title)}", ""]
        for line in self.head:
            lines += [escaped(line), ""]
        for table in self.tables:
            lines += [f"## {escaped(table.title)}", "", *table.to_markdown()]
        if self.notes:
            lines += ["## Notes", "", *(f"- {escaped(note)}" for note in self.notes), ""]
        return "\n".join(lines)

    def to_latex(self) -> str:
        """Return the tables for LaTeX, the head below each, the notes as comments."""
        lines = latex_packages()
        for table in self.tables:
            lines += table.to_latex(below=self.head)
        return "\n".join([*lines, *(f"% {' '.join(note.split())}" for note in self.notes)]) + "\n"

    def to_html(self) -> str:
        """Return a page that loads nothing.

        Raises:
            ConfigError: jinja2 is not installed.
        """
        import zsad
        from zsad.runs.page import render_page

        template = Path(__file__).parents[1] / "templates" / "tables.html"
        return render_page(
            template, {"document": self, "tiles": [], "notes": [], "version": zsad.__version__}
        )

    def write(self, folder: Path, stem: str) -> Iterator[str]:
        """Write STEM.md, STEM.tex and, with jinja2, STEM.html; yields their names.

        Raises:
            StorageError: the disk is full or the folder cannot be written.
        """
        texts = {"md": self.to_markdown, "tex": self.to_latex}
        if find_spec("jinja2") is not None:
            texts["html"] = self.to_html
        for suffix, text in texts.items():
            write_text(folder / f"{stem}.{suffix}", text())
            yield f"{stem}.{suffix}"


def latex_packages() -> list[str]:
    """Return the comment that tables for LaTeX begin with."""
    return ["% needs \\usepackage{booktabs} and \\usepackage{textcomp}", ""]


def latex(text: str) -> str:
    """Return text on one line, escaped for LaTeX."""
    return " ".join(text.split()).translate(_LATEX)


def _latex_cell(cell: str) -> str:
    """Return a cell for LaTeX: its deviation small, its marks raised."""
    parts = _MARKED.fullmatch(cell)
    if parts is None:
        return latex(cell)
    text = latex(parts["value"])
    text = f"\\textbf{{{text}}}" if isinstance(cell, Bold) else text
    text += f" {{\\scriptsize $\\pm$ {parts['deviation']}}}" if parts["deviation"] else ""
    return text + (f"\\textsuperscript{{{latex(parts['marks'])}}}" if parts["marks"] else "")


def escaped(text: str) -> str:
    """Return text on one line that ends no cell of a Markdown table and is no markup."""
    text = " ".join(text.split()).replace("\\", "\\\\").replace("|", "\\|")
    return text.replace("<", "&lt;").replace("*", "\\*")
