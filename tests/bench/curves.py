"""Draw the curves of results.json, with a panel for each quantity that grows. Imports matplotlib.

`python -m tests.bench.curves [results.json] [out.svg]`. The same numbers produce the same file.
"""

import json
import sys
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

from tests.bench.picture import UNCHANGING, save

# By the last word of a line's name: the panel's title, and whether values are drawn as multiples of the first one.
_PANELS = {
    "finished": ("Finished jobs: time, as a multiple of the first", True),
    "queues": ("Queues: milliseconds", False),
    "connections": ("Connections: jobs a second", False),
    "pruning": ("Two minutes with pruning: jobs a second", False),
}
# matplotlib repeats its colours after these.
_COLOURS = 10


def draw_curves(results: Path, picture: Path) -> bool:
    """Draw the picture. Return False if there is nothing to draw."""
    lines = [line for line in json.loads(results.read_text(encoding="utf-8")) if line.get("curve")]
    panels = [
        (title, of_first, found)
        for end, (title, of_first) in _PANELS.items()
        if (found := [line for line in lines if line["name"].endswith(end)])
    ]
    if not panels:
        return False
    style = {**UNCHANGING, "font.size": 9}
    with mpl.rc_context(style):
        figure = Figure(figsize=(10, 3.4 * ((len(panels) + 1) // 2)), facecolor="white", layout="constrained")
        for place, (title, of_first, found) in enumerate(panels, 1):
            axes = figure.add_subplot((len(panels) + 1) // 2, 2, place)
            axes.set_title(title, fontsize=10, loc="left")
            for number, line in enumerate(found):
                _curve(axes, line, of_first=of_first, dashed=number >= _COLOURS)
            axes.set_ylim(bottom=0)
            axes.spines[["top", "right"]].set_visible(False)
            axes.grid(axis="y", color="#d1d9e0", linewidth=0.6)
            if len(found) > 1:
                axes.legend(fontsize=7, frameon=False)
        save(figure, picture)
    return True


def _curve(axes: Any, line: dict[str, Any], *, of_first: bool, dashed: bool) -> None:
    values = list(line["curve"].values())
    if of_first:
        values = [value / values[0] for value in values]
    axes.plot(
        list(line["curve"]), values, "--" if dashed else "-", marker="o", markersize=3, linewidth=1.3,
        label=line["name"].rsplit(", ", 1)[0],
    )  # fmt: skip


if __name__ == "__main__":
    folder = Path(__file__).resolve().parents[2] / ".bench"
    source = Path(sys.argv[1]) if len(sys.argv) > 1 else folder / "results.json"
    draw_curves(source, Path(sys.argv[2]) if len(sys.argv) > 2 else folder / "results_growth.svg")
