"""A table, and how it is written: on a page, as CSV, as LaTeX."""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

DASH = "—"
"""What stands where there is no number."""
LONGEST = 1000
"""Characters of a foreign text that are shown."""


class Part(NamedTuple):
    """A piece of text.

    Attributes:
        text: The text.
        kind: "small" of a lesser text, "bad" of what went wrong.
    """

    text: str
    kind: Literal["", "small", "bad"] = ""


def small(text: str) -> Part:
    """A lesser text."""
    return Part(text, "small")


def bad(text: str) -> Part:
    """What went wrong."""
    return Part(text, "bad")


Line = tuple[Part, ...]


class Cell(NamedTuple):
    """What stands in one place of a table.

    Attributes:
        lines: For people, on a page and in LaTeX.
        fields: For a CSV file, one for each name of its column.
    """

    lines: tuple[Line, ...]
    fields: tuple[Any, ...]


def cell(*lines: str | Part | Sequence[str | Part], fields: Sequence[Any] = ()) -> Cell:
    """Return a cell of some lines, each a text, a part or several of them."""

    def parts(line: str | Part | Sequence[str | Part]) -> Line:
        pieces = [line] if isinstance(line, (str, Part)) else line
        return tuple(Part(piece) if isinstance(piece, str) else piece for piece in pieces)

    return Cell(tuple(map(parts, lines)), tuple(fields))


class Column(NamedTuple):
    """A column.

    Attributes:
        heading: On a page and in LaTeX; empty of a column that only CSV files have.
        cells: One for each row.
        names: In a CSV file; none of a column that has no place there.
        numeric: Whether its cells are aligned as numbers.
    """

    heading: str
    cells: Sequence[Cell]
    names: tuple[str, ...] = ()
    numeric: bool = True


def words(heading: str, cells: Sequence[Any], name: str = "") -> Column:
    """Return a column of words."""
    found = [cell(str(value), fields=(value,)) for value in cells]
    return Column(heading, found, (name,) if name else (), numeric=False)


def hidden(name: str, fields: Sequence[Any]) -> Column:
    """Return a column that only a CSV file has."""
    return Column("", [cell(fields=(value,)) for value in fields], (name,))


@dataclass(frozen=True)
class Table:
    """Columns of cells; the first one that has a heading names the rows.

    Attributes:
        columns: All of one length.
        sections: Headings by the row that they stand above.
    """

    columns: Sequence[Column]
    sections: Mapping[int, str] = field(default_factory=dict)

    def pick(self, *headings: str) -> Table:
        """Return a table of some of the columns, in another order."""
        by_heading = {column.heading: column for column in self.columns}
        return Table([by_heading[heading] for heading in headings], self.sections)

    def upright(self) -> Table:
        """Return the only row as a table of two columns: headings and what stands below them."""
        head, *others = self.shown
        (name,) = head.cells
        title = " ".join(part.text for part in name.lines[0])
        values = Column(title, [column.cells[0] for column in others], numeric=False)
        return Table([words(head.heading, [column.heading for column in others]), values])

    @property
    def shown(self) -> list[Column]:
        """Columns that people see."""
        return [column for column in self.columns if column.heading]

    @property
    def rows(self) -> list[list[tuple[Column, Cell]]]:
        """What people see, row by row."""
        length = len(self.columns[0].cells)
        return [[(column, column.cells[row]) for column in self.shown] for row in range(length)]

    def csv(self) -> str:
        """Return a CSV file of the columns that have names."""
        named = [column for column in self.columns if column.names]
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(name for column in named for name in column.names)
        for cells in zip(*(column.cells for column in named), strict=True):
            writer.writerow(plain(value) for one in cells for value in one.fields)
        return text.getvalue()

    def latex(self) -> list[str]:
        """Return the lines of a LaTeX tabular, with the rules of booktabs."""
        width = len(self.shown)
        lines = [rf"\begin{{tabular}}{{l{'r' * (width - 1)}}}", r"\toprule"]
        lines.append(latex_row(escape_latex(column.heading) for column in self.shown))
        lines += [] if 0 in self.sections else [r"\midrule"]
        for number, row in enumerate(self.rows):
            if number in self.sections:
                section = rf"\multicolumn{{{width}}}{{l}}{{\emph{{{self.sections[number]}}}}} \\"
                lines += [r"\midrule", section]
            lines.append(latex_row(latex_cell(one) for _, one in row))
        return [*lines, r"\bottomrule", r"\end{tabular}"]


def plain(value: Any) -> str:
    """Return a value as a CSV file has it: numbers with six digits, nothing where there is none."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    return f"{value:.6g}" if isinstance(value, float) else str(value)


SPECIAL = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "_": r"\_", "%": r"\%", "&": r"\&",
    "#": r"\#", "$": r"\$", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
    "<": r"\textless{}", ">": r"\textgreater{}", DASH: "---", "±": r"$\pm$",
}  # fmt: skip


def escape_latex(text: str) -> str:
    """Return a text with LaTeX's own characters escaped."""
    return "".join(SPECIAL.get(letter, letter) for letter in text)


def latex_row(cells: Any) -> str:
    """Return a row of cells that are LaTeX already."""
    return " & ".join(cells) + r" \\"


def latex_cell(found: Cell) -> str:
    """Return the first line of a cell, lesser texts small."""
    pieces = [
        rf"{{\scriptsize {escape_latex(part.text)}}}"
        if part.kind == "small"
        else escape_latex(part.text)
        for part in found.lines[0]
    ]
    return " ".join(pieces)


def breakable(text: str) -> list[str]:
    """Return a name in the pieces between which a line may be broken."""
    return re.findall(r"[^_/-]*[_/-]|[^_/-]+$", text) or [text]
