# SPDX-License-Identifier: Apache-2.0
"""Results as tables in Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from comparison.ratios import best_peer, ratio, spread

Json = dict[str, Any]
BEGIN = "<!-- comparison: written by bench/compare -->"
END = "<!-- comparison: end -->"
PRECISIONS = ("float32", "bf16")
OURS = "dosemap"
TITLES = {
    OURS: "dosemap",
    "eager": "PyTorch eager",
    "compile": "torch.compile, frozen",
    "onnxruntime": "ONNX Runtime",
    "openvino": "OpenVINO",
}
NONE = "–"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table in Markdown."""
    rows = list(rows)
    for row in rows:
        if len(row) != len(head):
            raise ValueError(f"a row of {len(row)} cells in a table of {len(head)}: {row}")
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def setting_text(setting: Json | None) -> str:
    """Return a peer's setting in words."""
    if setting is None:
        return "a window a core"
    workers, threads = setting["workers"], setting["threads"]
    parts = [setting["option"], f"batch {setting['batch']}"]
    if workers > 1:
        parts.append(f"{workers} at once, {threads} thread{'s' * (threads > 1)} each")
    return ", ".join(parts)


def gibibytes(count: float) -> str:
    """Return bytes in GiB."""
    return f"{count / 2**30:.2f}" if count else NONE


def _ceilings(results: Json) -> str:
    rows = []
    titles = {"fma_ceiling": "multiply-add from registers", "matmul_ceiling": "oneDNN, 2048³"}
    for key, title in titles.items():
        cells = [results["ceilings"][p][key] for p in PRECISIONS]
        rows.append([title, *(f"{c:.0f}" if c else NONE for c in cells)])
    return "### Ceilings, GFLOP/s\n\n" + table(["", *PRECISIONS], rows)


def _network(results: Json) -> str:
    text = "### The network alone, windows of 32³\n\n"
    for precision in PRECISIONS:
        part = results["network"][precision]
        rates = {name: row["rates"] for name, row in part["programs"].items()}
        flops = part["facts"]["useful_flops"]
        ceiling = results["ceilings"][precision]["fma_ceiling"]
        rows = []
        for name in sorted(rates, key=lambda n: -median(rates[n])):
            row, middle = part["programs"][name], median(rates[name])
            gflops = middle * flops * 1e-9
            rows.append(
                [
                    TITLES[name],
                    spread(rates[name]),
                    NONE if name == OURS else ratio(rates[OURS], rates[name]).text(),
                    f"{gflops:.0f}",
                    f"{100 * gflops / ceiling:.0f} %" if ceiling else NONE,
                    f"{row['difference']:.1e}",
                    setting_text(row["setting"]),
                ]
            )
        if precision == "bf16" and "onnxruntime" in results["network"]["float32"]["programs"]:
            rows.append([TITLES["onnxruntime"], *[NONE] * 5, "has no bf16 convolution on CPUs"])
        head = ["windows/s: median (range)", "speed of dosemap / its: median (range)"]
        head += ["direct-convolution GFLOP/s", "of the multiply-add ceiling", "difference"]
        text += table([f"**{precision}**", *head, "setting"], rows) + "\n"
    return text


def _volume(results: Json) -> str:
    part = results["volume"]
    shape = "×".join(map(str, part["shape"]))
    text = f"### A whole volume, {shape}, .nii.gz in and out, air not skipped\n\n"
    for precision in PRECISIONS:
        lines = part[precision]
        times = {key: row["seconds"] for key, row in lines.items()}
        same = {key: t for key, t in times.items() if lines[key]["tile"] == 32}
        best = best_peer(same, f"{OURS} 32", of_times=True)
        rows = []
        for key in sorted(times, key=lambda k: (str(lines[k]["tile"]), median(times[k]))):
            row, name = lines[key], key.split()[0]
            own = f"{OURS} {row['tile']}"
            rows.append(
                [
                    f"{TITLES[name]}, tile {row['tile']}, overlap {row['overlap']}",
                    spread(times[key]),
                    NONE if key == own else ratio(times[own], times[key], of_times=True).text(),
                    gibibytes(row["bytes"]),
                    f"{row['difference']:.1e}",
                    NONE if name == OURS else setting_text(row["setting"]),
                ]
            )
        head = [
            "s: median (range)",
            "speed of dosemap with the same tile / its: median (range)",
            "peak GiB",
        ]
        head += ["difference from dosemap float32 with the same tile", "setting"]
        text += table([f"**{precision}**", *head], rows)
        if best:
            gain = ratio(times[f"{OURS} whole"], times[best], of_times=True)
            text += "\ndosemap with `--tile whole` against the best peer at 32³ and 0.5 "
            text += f"({TITLES[best.split()[0]]}): {gain.text()} times as fast. "
            apart = lines[f"{OURS} whole"]["against_32"]["relative_l2"]
            text += f"Its result lies {apart:.1e} (relative L2) from dosemap's at 32³ and 0.5 with "
            text += "these random weights, which weigh the padding at a window's border like any "
            text += "voxel; for the shipped weights see the table by tile.\n\n"
    return text


def _tiles(results: Json) -> str:
    text = "### dosemap by tile, the same volume, shipped weights, one run each\n\n"
    for precision in PRECISIONS:
        rows = [
            [
                str(row["tile"]),
                str(row["overlap"]),
                row["skip_air"],
                f"{row['seconds']:.2f}",
                gibibytes(row["bytes"]),
                f"{row['relative_l2']:.1e}",
                f"{row['largest']:.1e}",
            ]
            for row in results["tiles"][precision]
        ]
        head = ["overlap", "skip air below", "s", "peak GiB"]
        head += ["relative L2 against the first line", "largest / largest dose"]
        text += table([f"**{precision}**, tile", *head], rows) + "\n"
    return text


def _memory(results: Json) -> str:
    rows = [
        [
            "×".join(map(str, row["shape"])),
            row["network"],
            f"{row['tile']}, {row['overlap']}",
            gibibytes(row["bytes"]),
            f"{row['seconds']:.0f}",
        ]
        for row in results["memory"]
    ]
    head = ["volume, float32", "network", "tile, overlap", "peak GiB", "s"]
    return "### Peak memory of dosemap predict\n\n" + table(head, rows)


def _facts(results: Json, picture: Path | None) -> str:
    machine, versions = results["machine"], results["versions"]
    listed = ", ".join(f"{name} {version}" for name, version in versions.items())
    library = ""
    if "network" in results:
        library = f", {results['network']['float32']['facts']['library']}"
    text = (
        f"{results['date']}, {machine['cpu']}, {results['threads']} threads of "
        f"{machine['cores']} cores, {machine['memory_gib']} GiB, Linux {machine['kernel']}, load "
        f"{machine['load_before']:.2f} before the run. dosemap {results['commit']}{library}; "
        f"{listed}. `{results['command']}`\n"
    )
    if picture is not None:
        text += f"\n![The comparison as bars]({picture.parent.name}/{picture.name})\n"
    return text


def tables(results: Json, picture: Path | None) -> str:
    """Return all tables of the parts that were measured."""
    parts = [_facts(results, picture), _ceilings(results)]
    writers = {"network": _network, "volume": _volume, "tiles": _tiles, "memory": _memory}
    parts += [write(results) for name, write in writers.items() if name in results]
    return "\n".join(part.rstrip("\n") + "\n" for part in parts)


def insert(page: Path, text: str) -> None:
    """Replace what lies between the markers of a page."""
    old = page.read_text()
    if old.count(BEGIN) != 1 or old.count(END) != 1 or old.index(BEGIN) > old.index(END):
        raise ValueError(f"{page}: needs {BEGIN} and, after it, {END}, once each")
    before, after = old[: old.index(BEGIN)], old[old.index(END) :]
    page.write_text(f"{before}{BEGIN}\n{text}{after}")
