"""How figures look: drawn without global state, readable on light and on dark pages."""

import io
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Middle tones: they stand out from white and from near-black alike.
BLUE, ORANGE, GREEN, GREY = "#3b82c4", "#d9822b", "#3f9e63", "#8a8f98"
SERIES = (BLUE, ORANGE, GREEN, "#a567c9", "#c9515e", "#2fa3a3", "#9a7b2f", GREY)
# Ink is replaced by the colour of the page's text when a figure is put into a page.
INK = "#101112"


def new_figure(width: float = 6.4, height: float = 3.4) -> "tuple[Figure, Axes]":
    """Make a figure with one set of axes, without pyplot.

    Args:
        width: inches.
        height: inches.

    Returns:
        The figure and its axes.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.add_subplot()
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color(GREY)
    axes.tick_params(colors=INK, labelsize=9)
    axes.grid(True, color=GREY, alpha=0.2, linewidth=0.6)
    axes.set_axisbelow(True)
    return figure, axes


def label(axes: "Axes", x: str, y: str) -> None:
    """Name the axes.

    Args:
        axes: the axes.
        x: what runs to the right.
        y: what runs upwards.
    """
    axes.set_xlabel(x, color=INK, fontsize=9)
    axes.set_ylabel(y, color=INK, fontsize=9)


def legend(figure: "Figure", axes: "Axes") -> None:
    """Show what is what, above the axes, where nothing is drawn.

    Args:
        figure: the figure.
        axes: its axes.
    """
    handles, labels = axes.get_legend_handles_labels()
    if labels:
        figure.legend(
            handles, labels, loc="outside upper center", ncols=_columns(labels, figure.get_figwidth()),
            frameon=False, fontsize=8, labelcolor=INK,
        )  # fmt: skip


def _columns(labels: Sequence[str], width: float) -> int:
    """Say in how many columns a legend fits, in any usual font: the page's is not known here.

    Args:
        labels: its words.
        width: of the figure, inches.

    Returns:
        The count, from 1.
    """
    most = min(len(labels), 5)
    for count in range(most, 1, -1):
        rows = -(-len(labels) // count)
        longest = [max(map(len, labels[at : at + rows])) for at in range(0, len(labels), rows)]
        # Inches of a letter of 8 points, and of a handle with the space about it.
        if sum(0.067 * letters + 0.5 for letters in longest) <= width:
            return count
    return 1


def to_svg(figure: "Figure", title: str) -> str:
    """Write a figure as SVG to be put into a page.

    Args:
        figure: the figure.
        title: what it shows, for those who cannot see it.

    Returns:
        An svg element with text in the page's own colour.
    """
    import matplotlib as mpl

    buffer = io.StringIO()
    # A fixed salt: the same figure gives the same identifiers.
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "secateur", "font.family": "sans-serif"}):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :].replace(INK, "currentColor")
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", svg, count=1)
    return svg.replace("<svg", f'<svg role="img" aria-label="{title}"', 1)
