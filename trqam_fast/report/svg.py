"""Pictures as SVG: in a page's own colours, light or dark, with values where the pointer is."""

from __future__ import annotations

import html
import io
import re

import matplotlib.pyplot as plt

from trqam_fast.runs.looks import FAINT, GRID, INK, PAPER, SHADE
from trqam_fast.runs.plots import Picture

VARIABLES = {
    INK: "currentColor", FAINT: "currentColor", "#000000": "currentColor", GRID: "var(--grid)",
    SHADE: "var(--shade)", PAPER: "var(--paper)",
}  # fmt: skip
"""What the colours of no data become."""
FONT = re.compile(r"font-family: [^;\"]*sans-serif")
REACH = 5
"""Radius around a point, in SVG's units, within which its value is told."""
ALONE = """<style>
svg { color: #1d2430; --grid: #e4e4e4; --shade: #f3f5f8; --paper: #fff; background: #fff;
  font-family: system-ui, "DejaVu Sans", Arial, sans-serif; }
@media (prefers-color-scheme: dark) {
  svg { color: #e3e8f0; --grid: #39414f; --shade: #232a36; --paper: #151a22; background: #151a22; }
}
.hover { fill: transparent; stroke: none; }
.hover:hover { fill: currentColor; fill-opacity: 0.3; }
</style>
"""
"""What a page has in its own style, for a picture in a file of its own."""


def svg_of(picture: Picture, name: str, alt: str) -> str:
    """Return a picture as an SVG element that depends on nothing but the style around it.

    Args:
        picture: The picture; it is closed.
        name: Letters that make its ids differ from those of others on the page.
        alt: What it shows.
    """
    text, figure = io.StringIO(), picture.figure
    plain = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    with plt.rc_context({"svg.hashsalt": name, "svg.fonttype": "none"}):
        figure.savefig(text, format="svg", metadata=plain, transparent=True)
    width, height = (72 * inches for inches in figure.get_size_inches())
    points = "".join(hover_points(picture, height))
    plt.close(figure)
    drawing = text.getvalue().partition("</style>\n </defs>")[2].rpartition("</svg>")[0]
    for colour, variable in VARIABLES.items():
        drawing = drawing.replace(f": {colour}", f": {variable}")
    drawing = FONT.sub("font-family: inherit", drawing).replace("xlink:href", "href")
    drawing = own_ids(re.sub(r"\s*\n\s*", "\n", drawing), re.sub(r"\W", "_", name))
    return (
        f'<svg class="picture" viewBox="0 0 {width:g} {height:g}" role="img" '
        f'aria-label="{html.escape(alt)}">{drawing}{points}</svg>'
    )


def own_ids(drawing: str, prefix: str) -> str:
    """Return a drawing with a prefix before the ids that it refers to, and without the others."""
    used = set(re.findall(r"(?:url\(|href=\")#([\w.-]+)", drawing))
    drawing = re.sub(
        r' id="([^"]*)"',
        lambda found: f' id="{prefix}-{found[1]}"' if found[1] in used else "",
        drawing,
    )
    return re.sub(r'(url\(|href=")#', rf"\1#{prefix}-", drawing)


def hover_points(picture: Picture, height: float) -> list[str]:
    """Return a transparent circle with a title for each value that can be told."""
    scale = 72 / picture.figure.dpi
    found = []
    for axis, x, y, text in picture.hovers:
        across, up = axis.transData.transform((x, y))
        if axis.bbox.x0 - 1 <= across <= axis.bbox.x1 + 1 and axis.bbox.contains(
            axis.bbox.x0, min(max(up, axis.bbox.y0), axis.bbox.y1)
        ):
            place = f'cx="{scale * across:.1f}" cy="{height - scale * up:.1f}"'
            title = f"<title>{html.escape(text)}</title>"
            found.append(f'<circle class="hover" {place} r="{REACH}">{title}</circle>')
    return found


def alone(svg: str) -> str:
    """Return a picture as a file of its own."""
    head, _, rest = svg.partition(">")
    [(width, height)] = re.findall(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', head)
    size = f'width="{width}pt" height="{height}pt"'
    head = head.replace("<svg ", f'<svg xmlns="http://www.w3.org/2000/svg" {size} ')
    return f"{head}>\n{ALONE}{rest}\n"
