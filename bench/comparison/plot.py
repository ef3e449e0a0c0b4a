# SPDX-License-Identifier: Apache-2.0
"""Results as bars: how fast everybody is, relative to the best peer."""

from __future__ import annotations

from pathlib import Path
from statistics import median
from typing import Any

from comparison.ratios import best_peer
from comparison.report import OURS, PRECISIONS, TITLES

Json = dict[str, Any]
OURS_COLOUR, PEER_COLOUR = "#b3402a", "#8a97a6"


def _network(results: Json, precision: str) -> dict[str, list[float]]:
    """Return windows per second relative to the best peer's median, a list of rounds each."""
    rates = {n: r["rates"] for n, r in results["network"][precision]["programs"].items()}
    best = median(rates[best_peer(rates, OURS)])
    return {TITLES[name]: [v / best for v in values] for name, values in rates.items()}


def _volume(results: Json, precision: str) -> dict[str, list[float]]:
    """Return volumes per second relative to the best peer's at 32, a list of rounds each."""
    lines = results["volume"][precision]
    times = {k: row["seconds"] for k, row in lines.items() if row["tile"] == 32}
    best = median(times[best_peer(times, f"{OURS} 32", of_times=True)])
    return {
        f"{TITLES[key.split()[0]]}, {'32³ at 0.5' if row['tile'] == 32 else 'one tile'}": [
            best / t for t in row["seconds"]
        ]
        for key, row in lines.items()
    }


def draw(results: Json, path: Path) -> Path | None:
    """Write the plot; nothing is drawn where neither network nor volumes were measured."""
    import matplotlib as mpl

    mpl.use("svg")
    mpl.rcParams["svg.hashsalt"] = "dosemap"
    mpl.rcParams["svg.fonttype"] = "none"
    from matplotlib import pyplot

    kinds = {"network": ("network alone", _network), "volume": ("file to file", _volume)}
    parts = [kinds[key] for key in kinds if key in results]
    if not parts:
        return None
    panels = [(title, p, get(results, p)) for title, get in parts for p in PRECISIONS]
    figure, axes = pyplot.subplots(
        len(parts), 2, figsize=(10, 2.6 * len(parts)), squeeze=False, layout="constrained"
    )
    for axis, (title, precision, bars) in zip(axes.flat, panels, strict=True):
        ordered = sorted(bars.items(), key=lambda item: median(item[1]))
        names = [name for name, _ in ordered]
        middle = [median(values) for _, values in ordered]
        low = [m - min(values) for m, (_, values) in zip(middle, ordered, strict=True)]
        high = [max(values) - m for m, (_, values) in zip(middle, ordered, strict=True)]
        colours = [OURS_COLOUR if n.startswith(OURS) else PEER_COLOUR for n in names]
        axis.barh(names, middle, xerr=[low, high], color=colours, error_kw={"lw": 0.8})
        axis.axvline(1, color="black", lw=0.8, ls=":")
        axis.set_title(f"{title}, {precision}", fontsize=10)
        axis.set_xlabel("speed, best peer with 32³ windows = 1", fontsize=8)
        axis.tick_params(labelsize=8)
        axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)
    return path
