# SPDX-License-Identifier: Apache-2.0
"""What bench/compare_gpu has found: ratios, targets met or not, and tables in Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from statistics import median
from typing import Any

from comparison.gpu_peers import EAGER
from comparison.ratios import ratio
from comparison.report import NONE, gibibytes, table

Json = dict[str, Any]
OURS, COMPILED = "dosemap", "compile"
TITLES = {OURS: "dosemap", EAGER: "PyTorch eager", COMPILED: "torch.compile"}
# What dosemap wants to reach, as a ratio of speed: of the network alone, of whole volumes.
NETWORK_TARGET, VOLUME_TARGET = 1.5, 3.0


def dosemap_rates(benches: Iterable[Json], edge: list[int]) -> Json:
    """Return windows per second of `dosemap bench` by precision, of its offline scenario.

    Not of other windows, nor of an emulated device, whose times mean nothing.
    """
    found: Json = {}
    for bench in benches:
        same = bench["settings"]["tile"] == edge
        if bench.get("offline") and same and not bench.get("emulated"):
            found[bench["settings"]["precision"]] = {
                "rate": bench["offline"]["patches_per_s"],
                "batch": bench["offline"]["batch"],
            }
    return found


def rate_of(part: Json, name: str) -> float | None:
    """Return the rate of a kind in its interleaved rounds, or of its search if there are none."""
    rounds = part.get("rounds", {}).get(name, {}).get("rates")
    if rounds:
        return median(rounds)
    setting = part.get("best", {}).get(name)
    rates = [row["rate"] for row in part["rows"] if row["setting"] == setting and "rate" in row]
    return max(rates, default=None)


def targets(results: Json) -> list[Json]:
    """Return what was to be reached and what was, where both were measured, on a GPU."""
    found = []
    if results["device"]["device"] == "cpu":
        return found
    ours = results.get("dosemap_network", {})
    for precision, part in results.get("network", {}).items():
        peer, rounds = rate_of(part, COMPILED), part.get("rounds", {}).get(OURS, {}).get("rates")
        mine = median(rounds) if rounds else ours.get(precision, {}).get("rate")
        if mine and peer:
            speed = mine / peer
            found.append(
                _target(f"network alone, {precision}: torch.compile", NETWORK_TARGET, speed)
            )
    for precision, lines in results.get("volume", {}).items():
        if precision not in results["settings"]["precisions"]:
            continue
        mine, peer = lines.get(OURS, {}), lines.get(EAGER, {})
        measured = mine.get("seconds") and peer.get("seconds")
        if not measured or "error" in mine or "error" in peer:
            continue
        speed = median(peer["seconds"]) / median(mine["seconds"])
        name = f"whole volume, {precision}: PyTorch eager and sliding window"
        found.append(_target(name, VOLUME_TARGET, speed))
    return found


def _target(name: str, wanted: float, found: float) -> Json:
    return {"against": name, "wanted": wanted, "found": found, "met": found >= wanted}


def _cell(values: list[float], digits: int) -> str:
    low, high = (f"{f(values):.{digits}f}" for f in (min, max))
    return f"{median(values):.{digits}f} ({low}–{high})"


def _network(results: Json) -> str:
    text = f"### The network alone, windows of {results['settings']['edge'][0]}³\n\n"
    ours = results.get("dosemap_network", {})
    for precision, part in results["network"].items():
        rows = []
        mine = part.get("rounds", {}).get(OURS, {}).get("rates")
        if not mine and precision in ours:
            mine = [ours[precision]["rate"]]
        if mine:
            joules = part.get("rounds", {}).get(OURS, {}).get("joules_per_window")
            energy = f"{median(joules):.4f}" if joules else NONE
            rows.append([TITLES[OURS], _cell(mine, 0), NONE, NONE, energy, NONE, NONE])
        for name in (COMPILED, EAGER):
            row = _network_row(part, name, mine)
            rows += [row] if row else []
        for name, row in part.get("best_not_folded", {}).items():
            title = f"{TITLES[name]}, BatchNorm not folded (search)"
            speed = f"{median(mine) / row['rate']:.2f}" if mine else NONE
            setting = setting_text(row["setting"])
            rows.append([title, f"{row['rate']:.0f}", speed, NONE, NONE, NONE, setting])
        head = ["windows/s", "speed of dosemap / its", "p50 of one window, ms", "J/window"]
        text += table([f"**{precision}**", *head, "difference", "setting"], rows) + "\n"
        failed = [r for r in part["rows"] if "error" in r]
        for row in failed:
            text += f"- {setting_text(row['setting'])}: {row['error']}\n"
        text += "\n" * bool(failed)
    return text


def _network_row(part: Json, name: str, mine: list[float] | None) -> list[str] | None:
    if name not in part.get("best", {}):
        return None
    setting = part["best"][name]
    searched = max(
        (r for r in part["rows"] if r["setting"] == setting and "rate" in r),
        key=lambda r: r["rate"],
    )
    rates = part.get("rounds", {}).get(name, {}).get("rates") or [searched["rate"]]
    speed = NONE
    if mine and len(mine) == len(rates):
        speed = ratio(mine, rates).text()
    elif mine:
        speed = f"{median(mine) / median(rates):.2f}"
    latency = part.get("latency", {}).get(name)
    joules = part.get("rounds", {}).get(name, {}).get("joules_per_window")
    return [
        TITLES[name],
        _cell(rates, 0),
        speed,
        f"{1000 * latency['p50']:.2f}" if latency else NONE,
        f"{median(joules):.4f}" if joules else NONE,
        f"{searched['difference']:.1e}",
        f"{setting_text(setting)}; made ready in {searched['prepare_seconds']:.0f} s",
    ]


def setting_text(setting: Json) -> str:
    """Return a setting in words."""
    return f"{setting['option']}, batch {setting['batch']}"


def _volume(results: Json) -> str:
    part = results["volume"]
    shape = "×".join(map(str, part["shape"]))
    text = f"### A whole volume, {shape}, .nii.gz in and out, air not skipped\n\n"
    for precision in results["settings"]["precisions"]:
        lines = part.get(precision, {})
        mine = lines.get(OURS, {}).get("seconds")
        rows = []
        for name, row in lines.items():
            if not row["seconds"]:
                rows.append([TITLES[name], NONE, NONE, NONE, NONE, NONE, row.get("error", NONE)])
                continue
            speed = NONE
            if mine and name != OURS:
                pairs = min(len(mine), len(row["seconds"]))
                speed = ratio(mine[:pairs], row["seconds"][:pairs], of_times=True).text()
            parts = row["parts"][-1]
            rows.append(
                [
                    TITLES[name],
                    _cell(row["seconds"], 2),
                    speed,
                    " + ".join(f"{parts[k]:.2f}" for k in parts) or NONE,
                    gibibytes(row.get("device_bytes", 0)),
                    f"{row['difference']:.1e}" if "difference" in row else NONE,
                    row.get("error") or (setting_text(row["setting"]) if row["setting"] else NONE),
                ]
            )
        head = ["s", "speed of dosemap / its", "read + predict + write", "GiB of the device"]
        head += ["difference from dosemap", "setting"]
        if rows:
            text += table([f"**{precision}**", *head], rows) + "\n"
    if "small" in part:
        text += "The sliding window in float32, a small volume, against dosemap on the CPU: "
        text += f"{part['small']['difference']:.1e}.\n\n"
    return text


def tables(results: Json) -> str:
    """Return all that was measured."""
    device = results["device"]
    facts = ", ".join(f"{k} {v}" for k, v in device.items() if k != "device")
    text = f"{results['date']}, {device['device']}: {facts}; dosemap {results['commit']}. "
    text += f"`{results['command']}`\n\n"
    if device["device"] == "cpu":
        text += "**Tried on the CPU: these figures mean nothing.**\n\n"
    text += _network(results) if results.get("network") else ""
    text += _volume(results) if results.get("volume") else ""
    for name, why in results.get("absent", {}).items():
        text += f"- {name}: not compared, {why}\n"
    for target in results.get("targets", []):
        verdict = "met" if target["met"] else "NOT met"
        text += f"- {target['against']}: {target['found']:.2f} times as fast, wanted "
        text += f"{target['wanted']:.1f}: **{verdict}**\n"
    for error in results.get("errors", []):
        text += f"- **{error}**\n"
    return text


def absent(importable: Mapping[str, object]) -> Json:
    """Return which other engines cannot be compared, and why; `importable`: name -> module."""
    runtime = importable.get("onnxruntime")
    providers = runtime.get_available_providers() if runtime else []
    reason = "it is not installed"
    if runtime:
        reason = f"its package knows {', '.join(providers)} only"
        if "CUDAExecutionProvider" in providers:
            reason = "its CUDA provider is there, but this program does not drive it"
    found = {"ONNX Runtime on the GPU": reason}
    there = importable.get("tensorrt") is not None
    found["TensorRT"] = (
        "it is there, but this program does not drive it" if there else "it is not installed"
    )
    return found
