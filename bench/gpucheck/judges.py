# SPDX-License-Identifier: Apache-2.0
"""What a job has to have done to pass, and the figures that are read from its output."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import re
import statistics
from pathlib import Path

from gpucheck import images
from gpucheck.jobs import Figures, Finished, Judge, WrongError

# Relative L2 of a dose map from the CPU's float32, where a test case does not say another.
TOLERANCES = {"float32": 1e-5, "tf32": 5e-3, "bf16": 2e-2, "fp16": 2e-2}


def json_of(finished: Finished) -> Figures:
    """Return the JSON object that a command printed, whatever it printed before."""
    begin = finished.output.find("{")
    if begin < 0:
        raise WrongError("it printed no JSON")
    return json.JSONDecoder().raw_decode(finished.output[begin:])[0]


def doctor(emulated: bool) -> Judge:
    """Ask that the device can be used, and is the one that was meant."""

    def judge(finished: Finished) -> Figures:
        facts = json_of(finished)
        cuda = facts["cuda"]
        if not cuda["usable"]:
            raise WrongError(f"{cuda['problem']}; {cuda['remedy']}", facts)
        if cuda["emulated"] != emulated:
            raise WrongError("the device is emulated" if cuda["emulated"] else "no emulation")
        return facts

    return judge


def close(result: Path, reference: Path, tolerance: float) -> Judge:
    """Ask that the dose map is as close to another as it should be."""

    def judge(_: Finished) -> Figures:
        apart = images.distance(result, reference)
        figures: Figures = {"relative_l2": apart, "tolerance": tolerance}
        if not apart <= tolerance:
            raise WrongError(f"relative L2 {apart:.3g}, allowed {tolerance:.3g}", figures)
        return figures

    return judge


def _table(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(path.read_text()), delimiter="\t"))


def _organs_apart(result: Path, reference: Path, tolerance: float) -> float:
    """Return the largest deviation of a mean dose; volumes have to be the same."""
    rows, expected = _table(result), _table(reference)
    if len(rows) != len(expected) or not rows:
        raise WrongError(f"{result.name} has {len(rows)} rows, {reference.name} {len(expected)}")
    worst = 0.0
    for row, wanted in zip(rows, expected, strict=True):
        for key, value in row.items():
            if key in ("id", "name", "voxels", "volume_cm3") and value != wanted[key]:
                raise WrongError(f"{row['name']}: {key} is {value}, on the CPU {wanted[key]}")
            if key.startswith("mean_") and value != wanted[key]:
                off = abs(float(value) / float(wanted[key]) - 1)
                if not off <= tolerance:
                    raise WrongError(f"a mean organ dose is {off:.3g} off, allowed {tolerance:.3g}")
                worst = max(worst, off)
    return worst


def close_with_organs(result: Path, reference: Path, tolerance: float) -> Judge:
    """Ask the same of the mean dose of every structure, too."""
    by_voxel = close(result, reference, tolerance)

    def beside(path: Path) -> Path:
        return path.with_name(path.name.partition(".")[0] + "_organs.tsv")

    def judge(finished: Finished) -> Figures:
        figures = by_voxel(finished)
        worst = _organs_apart(beside(result), beside(reference), tolerance)
        return {**figures, "organ_means_apart": worst}

    return judge


def sanitizer(finished: Finished) -> Figures:
    """Ask that compute-sanitizer looked at something and found nothing."""
    found = re.findall(r"ERROR SUMMARY: (\d+) error", finished.output)
    hazards = re.findall(r"RACECHECK SUMMARY: (\d+) hazard", finished.output)
    if not found and not hazards:
        raise WrongError("compute-sanitizer gave no summary")
    errors = sum(map(int, found + hazards))
    if errors:
        raise WrongError(f"{errors} errors", {"errors": errors})
    return {"errors": 0}


def whole_process(out: Path, windows: int | None, target_s: float | None) -> Judge:
    """Take the wall times of a whole process, and what its sidecar says of its stages."""

    def judge(finished: Finished) -> Figures:
        sidecar = json.loads(out.with_name(out.name.partition(".")[0] + ".json").read_text())
        run = sidecar["Windows"]["Run"] + sidecar["Windows"].get("Skipped", 0)
        if windows is not None and run != windows:
            raise WrongError(f"{run} windows instead of {windows}")
        seconds = sorted(finished.seconds)
        figures: Figures = {
            "windows": run,
            "median_s": statistics.median(seconds),
            "fastest_s": seconds[0],
            "stages_s": sidecar["Seconds"],
            "output_sha256": hashlib.sha256(out.read_bytes()).hexdigest(),
        }
        if target_s is not None:
            figures["target_s"] = target_s
            figures["target_met"] = figures["median_s"] < target_s
        return figures

    return judge


def same_bytes(a: Path, b: Path) -> Judge:
    """Ask that two files hold the same."""

    def judge(_: Finished) -> Figures:
        if a.read_bytes() != b.read_bytes():
            raise WrongError(f"{a.name} and {b.name} differ")
        return {}

    return judge


def bench(path: Path, precision: str) -> Judge:
    """Take what `dosemap bench` wrote, and ask that what was timed is right."""

    def judge(_: Finished) -> Figures:
        report = json.loads(path.read_text())

        def found(*keys: str) -> object:
            value = report
            for key in keys:
                value = (value or {}).get(key)
            return value

        figures = {
            "patches_per_s": found("offline", "patches_per_s"),
            "share_of_product": found("offline", "share_of_product"),
            "joules_per_patch": found("offline", "joules_per_patch"),
            "latency_p50_s": found("single_stream", "latency", "p50"),
            "volume_s": found("volume", "median"),
            "relative_l2": found("error", "relative_l2"),
        }
        figures = {key: value for key, value in figures.items() if value is not None}
        figures["report"] = report
        apart = figures.get("relative_l2", float("nan"))
        if not apart <= TOLERANCES[precision]:
            limit = TOLERANCES[precision]
            raise WrongError(f"relative L2 {apart:.3g} from the CPU, allowed {limit:.3g}", figures)
        return figures

    return judge


# What an account of launches says, each operand once: with caches emptied before each launch
# (--cache-control all) memory is read once, and what is written reaches the second-level cache, of
# which memory sees the rest only later, if at all. "srcunit_tex": by kernels, not from one half of
# that cache to the other.
COUNTERS = ("dram__bytes_read.sum", "lts__t_sectors_srcunit_tex_op_write.sum")


def launch_bytes(output: str) -> float:
    """Sum the bytes that ncu counted, in what it prints with --csv; every unit in bytes."""
    lines = output.splitlines()
    first = next((i for i, line in enumerate(lines) if line.startswith('"ID"')), None)
    if first is None:
        raise WrongError("ncu printed no table")
    unit_of = {"byte": 1, "Kbyte": 1e3, "Mbyte": 1e6, "Gbyte": 1e9, "sector": 32}
    total = 0.0
    for row in csv.DictReader(lines[first:]):
        if row["Metric Name"] in COUNTERS:
            total += float(row["Metric Value"].replace(",", "")) * unit_of[row["Metric Unit"]]
    if total <= 0:
        raise WrongError("ncu counted no bytes")
    return total
