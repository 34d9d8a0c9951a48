"""Colours and dashes: a method has its own colour in every picture, here and in docs/."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from matplotlib.typing import RcKeyType

# Two of no algorithm of this package, then Okabe and Ito's, which colour-blind readers can tell
# apart, with grey for their black. Algorithms declare theirs; others take what is free.
COLOURS = (
    "#7a5195",
    "#8c6d31",
    "#009e73",
    "#cc79a7",
    "#56b4e9",
    "#e69f00",
    "#d55e00",
    "#0072b2",
    "#999999",
)
DASHES: tuple[Any, ...] = ("solid", (0, (5, 2)), (0, (1, 1.2)), (0, (5, 2, 1, 2)))
INK, FAINT, GRID, SHADE, PAPER = "#333333", "#666666", "#e4e4e4", "#f3f5f8", "#ffffff"
"""Of what is no data: text and lines, lesser ones, the grid, stripes, the background."""
STYLE: dict[RcKeyType, Any] = {
    "font.family": "sans-serif",
    "font.size": 10,
    "text.color": INK,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": FAINT,
    "axes.labelcolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "legend.fontsize": 9,
    "legend.frameon": False,
    "svg.fonttype": "none",
}


class Look(NamedTuple):
    """How the lines of a run or a method are drawn.

    Attributes:
        colour: ``#rrggbb``.
        dashes: As matplotlib has them.
    """

    colour: str
    dashes: Any

    @property
    def line(self) -> dict[str, Any]:
        """Arguments of matplotlib's lines."""
        return {"color": self.colour, "linestyle": self.dashes}

    @property
    def stroke_dasharray(self) -> str:
        """The dashes as SVG has them, for a line three units wide."""
        if self.dashes == "solid":
            return ""
        return ",".join(str(2 * length) for length in self.dashes[1])


def looks(declared: Iterable[str | None]) -> list[Look]:
    """Return a look for each of several runs or methods, no two alike as far as there are enough.

    Args:
        declared: The colour that the algorithm of each declares, None for one that is free. Where
            several have one colour, dashes tell them apart.
    """
    wanted = [None if colour is None else colour.lower() for colour in declared]
    free = [colour for colour in COLOURS if colour not in wanted] or list(COLOURS)
    used: dict[str, int] = {}
    found = []
    others = 0
    for colour in wanted:
        if colour is None:
            colour, others = free[others % len(free)], others + 1
        number = used.get(colour, 0)
        used[colour] = number + 1
        found.append(Look(colour, DASHES[number % len(DASHES)]))
    return found
