"""Draw the lines of results.json that have a baseline and a target. Imports matplotlib.

`python -m tests.bench.picture [results.json] [out.svg]`. The same numbers produce the same file.
"""

import json
import sys
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch

_INK, _QUIET, _PANEL, _MET, _MISSED = "#1f2328", "#59636e", "#f6f8fa", "#2f81c7", "#d1642b"
_ROW = 0.36  # inches
# A fixed salt, so that the file changes only with the numbers. Text is drawn as outlines, so that it looks the same
# everywhere.
UNCHANGING = {"svg.hashsalt": "goqueue", "svg.fonttype": "path"}


def draw(results: Path, picture: Path) -> bool:
    """Draw the picture. Return False if there is nothing to draw."""
    lines = [line for line in json.loads(results.read_text(encoding="utf-8")) if _bound(line) is not None]
    more = [line for line in lines if line["target"].startswith("≥")]
    less = [line for line in lines if line["target"].startswith("≤")]
    groups = [
        (title, group)
        for title, group in (
            ("Speed, as a share of the baseline: longer is better", more),
            ("Cost, as a multiple of the baseline: shorter is better", less),
        )
        if group
    ]
    if not groups:
        return False
    style = {**UNCHANGING, "font.size": 10.5, "text.color": _INK}
    with mpl.rc_context(style):
        heights = [len(group) + 1.6 for _, group in groups]
        width, height = 10, sum(heights) * _ROW + 0.75
        figure = Figure(figsize=(width, height), facecolor="none")
        # An opaque background, so that the picture is readable on light and dark pages.
        ground = FancyBboxPatch(
            (0.008, 0.012), 0.984, 0.976, boxstyle="round,pad=0,rounding_size=0.012", transform=figure.transFigure,
            facecolor=_PANEL, edgecolor="#d1d9e0", zorder=-1, mutation_aspect=width / height,
        )  # fmt: skip
        figure.add_artist(ground)
        top = height - 0.2
        for (title, group), rows in zip(groups, heights, strict=True):
            size = len(group) * _ROW
            figure.text(0.03, (top - 0.28) / height, title, fontweight="bold", va="center")
            axes = figure.add_axes((0.40, (top - 0.45 - size) / height, 0.33, size / height))
            _bars(axes, group)
            top -= rows * _ROW
        legend = "Grey line: the baseline, measured in the same run. Black mark: the target. Orange: target missed."
        figure.text(0.03, 0.19 / height, legend, color=_QUIET, fontsize=9.5, va="center")
        save(figure, picture)
    return True


def save(figure: Figure, picture: Path) -> None:
    """Write the picture without a date or a version."""
    unchanging = {"Date": None, "Creator": None} if picture.suffix == ".svg" else {"Software": None}
    figure.savefig(picture, format=picture.suffix[1:], metadata=unchanging)


def _bound(line: dict[str, Any]) -> float | None:
    """Return the target as a ratio to the baseline; None if there is no target to draw."""
    if line["target"] is None or line["baseline"] is None:
        return None
    _, number, *of_ratio = line["target"].replace(",", "").split()
    bound = float(number) if of_ratio else float(number) / line["baseline"]
    # A target far above the baseline (10 ms for a page that takes half a millisecond) would compress the other bars.
    return bound if bound <= 3 else None


def _bars(axes: Axes, lines: list[dict[str, Any]]) -> None:
    places = range(len(lines), 0, -1)
    for place, line in zip(places, lines, strict=True):
        bound = _bound(line)
        met = line["ratio"] >= bound if line["target"].startswith("≥") else line["ratio"] <= bound
        axes.barh(place, line["ratio"], height=0.6, color=_MET if met else _MISSED)
        axes.plot([bound, bound], [place - 0.42, place + 0.42], color=_INK, linewidth=2, solid_capstyle="butt")
    widest = max(max(line["ratio"], _bound(line) or 0) for line in lines) * 1.02
    axes.axvline(1, color=_QUIET, linewidth=1, zorder=0)
    axes.set_xlim(0, max(1.05, widest))
    axes.set_ylim(0.5, len(lines) + 0.5)
    axes.set_yticks(list(places), [line["name"] for line in lines])
    axes.tick_params(length=0, pad=8, colors=_INK)
    axes.set_xticks([])
    axes.set_facecolor("none")
    for side in axes.spines.values():
        side.set_visible(False)
    for place, line in zip(places, lines, strict=True):
        figures = f"{line['ratio']:.2f} x    {_number(line['value'])} / {_number(line['baseline'])} {line['unit']}"
        axes.annotate(figures, (1.02, place), xycoords=("axes fraction", "data"), va="center", fontsize=9.5, color=_INK)


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


if __name__ == "__main__":
    source = Path(sys.argv[1] if len(sys.argv) > 1 else ".bench/results.json")
    draw(source, Path(sys.argv[2]) if len(sys.argv) > 2 else source.with_suffix(".svg"))
