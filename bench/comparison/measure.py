# SPDX-License-Identifier: Apache-2.0
"""The parts of the comparison: results are checked first, then timed in interleaved rounds."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from dosemap_tools import nifti

from comparison import inputs
from comparison.environment import ROOT, versions
from comparison.processes import Ours, Peer, Program, ProgramError, check_idle, difference

Json = dict[str, Any]
NETWORK = "dosegan"
PRECISIONS = ("float32", "bf16")
NETWORK_PEERS = {
    "float32": ("eager", "compile", "onnxruntime", "openvino"),
    "bf16": ("eager", "compile", "openvino"),
}
VOLUME_PEERS = ("eager", "compile", "openvino")
WHOLE_PEERS = ("eager", "openvino")
# Relative L2 against dosemap's float32 in which a result counts as the same.
LIMIT = {"float32": 1e-5, "bf16": 2e-2}
OURS = "dosemap"
WHOLE = "whole"


@dataclass
class Run:
    """What was asked for, and where things lie."""

    folder: Path
    threads: int
    rounds: int
    volume_rounds: int
    seconds: float
    quick: bool
    search: bool
    deadline: float
    shape: tuple[int, int, int]
    reference: np.ndarray | None = None
    windows: np.ndarray | None = None
    settings: Json = field(default_factory=dict)

    def path(self, name: str) -> Path:
        """Return a file of the build folder."""
        return self.folder / name


def say(text: str) -> None:
    """Tell what is going on."""
    print(f"[{time.strftime('%H:%M:%S')}] {text}", file=sys.stderr, flush=True)


def prepare(run: Run) -> None:
    """Make weights, windows and their reference result."""
    if not run.path("random.safetensors.zst").exists():
        inputs.make_weights(NETWORK, run.path("state.pt"), run.path("random.safetensors.zst"), 1)
    run.windows = inputs.cut_windows(6, [32, 32, 32], 7)
    with Ours(run.folder, "float32", 1, [32, 32, 32]) as ours:
        run.reference = ours.outputs(run.windows)
    if not np.std(run.reference) > 0.1:
        raise ProgramError("the reference result is nearly constant; nothing could be compared")


def check(name: str, precision: str, result: np.ndarray, reference: np.ndarray) -> float:
    """Return the difference from the reference; raise an error if it is too large."""
    found = difference(result, reference)
    if not found <= LIMIT[precision]:
        raise ProgramError(
            f"{name} {precision} differs from dosemap float32 by {found:.2e}, more than "
            f"{LIMIT[precision]:.0e}; it is not timed"
        )
    return found


def best_setting(run: Run, peer: str, precision: str) -> Json:
    """Return a peer's best setting: remembered for these versions and threads, or looked for."""
    seconds = 0.2 if run.quick else 1.0
    store = run.path("settings.json")
    known = json.loads(store.read_text()) if store.exists() else {}
    kind = " quick" if run.quick else ""
    key = f"{peer} {precision} {run.threads} threads{kind} {sorted(versions().items())}"
    if key not in known or (run.search and key not in run.settings):
        say(f"{peer} {precision}: looking for its best setting")
        with Peer(run.folder, peer, precision, NETWORK, run.threads) as program:
            found = program.ask("search", seconds, int(run.quick))
        if not found:
            raise ProgramError(f"{peer} {precision}: no setting works; see {program.log}")
        known[key] = found
        store.write_text(json.dumps(known, indent=1))
    run.settings[key] = known[key]  # searched once a run, and part of the results
    return known[key][0]["setting"]


def open_peer(run: Run, stack: ExitStack, peer: str, precision: str) -> tuple[Peer, Json]:
    """Start a peer with its best setting and check its windows."""
    setting = best_setting(run, peer, precision)
    program = stack.enter_context(Peer(run.folder, peer, precision, NETWORK, run.threads))
    program.use(setting, [32, 32, 32])
    found = check(peer, precision, program.outputs(run.windows), run.reference)
    say(f"{peer} {precision}: result differs by {found:.1e}")
    return program, {"setting": setting, "difference": found}


def ceilings(run: Run) -> Json:
    """Measure what the cores and a large matrix product reach, as programs to be interleaved."""
    found: Json = {}
    for precision in PRECISIONS:
        found[precision] = {}
        for name, argument in (("fma_ceiling", run.threads), ("matmul_ceiling", 2048)):
            command = [str(run.path("ours/bench") / name), precision, str(argument)]
            env = {"OMP_NUM_THREADS": str(run.threads)}
            with Program(name, command, env, run.path("log-ceilings.txt")) as program:
                rates = [program.ask("run", run.seconds / 2)["rate"] for _ in range(3)]
            found[precision][name] = max(rates) if rates[0] else None
        say(f"ceilings {precision}: {found[precision]}")
    return found


def network(run: Run) -> Json:
    """Time the network alone."""
    result: Json = {}
    for precision in PRECISIONS:
        with ExitStack() as stack:
            ours = stack.enter_context(Ours(run.folder, precision, run.threads, [32, 32, 32]))
            found = check(OURS, precision, ours.outputs(run.windows), run.reference)
            programs: dict[str, Program] = {OURS: ours}
            rows: Json = {OURS: {"setting": None, "difference": found}}
            for peer in NETWORK_PEERS[precision]:
                programs[peer], rows[peer] = open_peer(run, stack, peer, precision)
            for name, program in programs.items():
                program.ask("run", run.seconds / 2)
                rows[name] |= {"rates": [], "cpu": []}
            check_idle(list(programs.values()))
            for number in range(run.rounds):
                order = list(programs)
                for name in order[number % len(order) :] + order[: number % len(order)]:
                    answer = programs[name].ask("run", run.seconds)
                    rows[name]["rates"].append(answer["rate"])
                    rows[name]["cpu"].append(answer["cpu"])
                rates = {n: round(rows[n]["rates"][-1], 2) for n in rows}
                say(f"network {precision} round {number + 1}: {rates}")
            result[precision] = {"facts": ours.facts, "programs": rows}
    return result


def predict(
    run: Run, pet: Path, out: Path, precision: str, *options: str, weights: Path | None = None
) -> Json:
    """Run `dosemap predict`; return wall time of the whole process and its peak memory."""
    weights = weights or run.path("random.safetensors.zst")
    program, threads = run.path("ours/host/dosemap"), ("--threads", str(run.threads))
    return run_timed(predict_command(program, pet, out, weights, precision, *threads, *options))


def predict_command(
    program: Path, pet: Path, out: Path, weights: Path, precision: str, *options: str
) -> list[str]:
    """Return `dosemap predict` for a PET of inputs.write_pet()."""
    command = [str(program), "predict", str(pet), "-o", str(out), "--quiet", "-m", str(weights)]
    return [*command, "--units", "suv", "--body-weight", "78.7", "--precision", precision, *options]


def run_timed(command: list[str], env: dict[str, str] | None = None) -> Json:
    """Run a command in an environment (this one); return its seconds and peak memory."""
    timed = [sys.executable, "-I", "-S", str(Path(__file__).with_name("timed_process.py"))]
    done = subprocess.run(
        [*timed, *command], stdout=subprocess.PIPE, text=True, check=True, env=env
    )
    answer = json.loads(done.stdout.splitlines()[-1])
    if answer["code"]:
        raise ProgramError(f"{' '.join(command)} ended with {answer['code']}")
    return {"seconds": answer["seconds"], "bytes": answer["bytes"]}


def tile_options(tile: int | str, overlap: float) -> list[str]:
    """Return the options for a tile."""
    return ["--tile", str(tile), "--overlap", str(overlap), "--skip-air", "off"]


def dose(path: Path) -> np.ndarray:
    """Read a dose map."""
    return nifti.read(path)[0]


def deviation(result: np.ndarray, reference: np.ndarray) -> Json:
    """Return relative L2, and the largest difference as a share of the largest dose."""
    worst = np.max(np.abs(result - reference)) / np.max(np.abs(reference))
    return {"relative_l2": difference(result, reference), "largest": float(worst)}


@dataclass
class Contender:
    """One line of the whole-volume part."""

    name: str
    tile: int | str
    overlap: float
    setting: Json | None
    once: Callable[[Path, Path], Json]


def _ours(run: Run, precision: str, tile: int | str, overlap: float) -> Contender:
    def once(pet: Path, out: Path) -> Json:
        return predict(run, pet, out, precision, *tile_options(tile, overlap))

    return Contender(OURS, tile, overlap, None, once)


def _peer(program: Peer, name: str, tile: int | str, overlap: float, setting: Json) -> Contender:
    def once(pet: Path, out: Path) -> Json:
        answer = program.ask("volume", pet, out, overlap)
        return answer | {"bytes": program.ask("memory")["bytes"]}

    return Contender(name, tile, overlap, setting, once)


def contenders(run: Run, stack: ExitStack, precision: str) -> Iterable[Contender]:
    """Start everything that predicts whole volumes in one precision, warmed up and checked."""
    yield _ours(run, precision, 32, 0.5)
    yield _ours(run, precision, WHOLE, 0)
    small, small_dose = run.path("small.nii.gz"), run.path("small-ours.nii.gz")
    inputs.write_pet(small, (48, 48, 64), 3)
    predict(run, small, small_dose, "float32", *tile_options(32, 0.5))
    for peer in VOLUME_PEERS:
        program, row = open_peer(run, stack, peer, precision)
        out = run.path(f"small-{peer}.nii.gz")
        program.ask("volume", small, out, 0.5)
        check(f"{peer}, a volume,", precision, dose(out), dose(small_dose))
        yield _peer(program, peer, 32, 0.5, row["setting"])
    for peer in WHOLE_PEERS:
        program = stack.enter_context(Peer(run.folder, peer, precision, NETWORK, run.threads))
        option = {"eager": "channels last", "openvino": "latency"}[peer]
        setting = {"batch": 1, "workers": 1, "threads": run.threads, "option": option}
        program.use(setting, list(run.shape))
        yield _peer(program, peer, WHOLE, 0, setting)


def key_of(contender: Contender) -> str:
    """Return the name of a line in the results."""
    return f"{contender.name} {contender.tile}"


def volume(run: Run) -> Json:
    """Time whole volumes from file to file, as many rounds as there is time for."""
    pet = run.path(f"pet-{'x'.join(map(str, run.shape))}.nii.gz")
    inputs.write_pet(pet, run.shape, 2)
    result: Json = {"shape": list(run.shape)}
    with ExitStack() as stack:
        lines = {p: list(contenders(run, stack, p)) for p in PRECISIONS}
        for precision, all_of_it in lines.items():
            result[precision] = {
                key_of(c): {"tile": c.tile, "overlap": c.overlap, "setting": c.setting}
                | {"seconds": [], "parts": [], "bytes": 0}
                for c in all_of_it
            }
        took = dict.fromkeys(PRECISIONS, 0.0)
        for number in range(run.volume_rounds):
            for precision in PRECISIONS:
                if number and time.time() + took[precision] > run.deadline:
                    say(f"volume {precision}: no time for round {number + 1}")
                    continue
                begin = time.time()
                _volume_round(run, pet, precision, lines[precision], result[precision])
                took[precision] = time.time() - begin
    return result


def _volume_round(run: Run, pet: Path, precision: str, lines: list[Contender], rows: Json) -> None:
    references: dict[int | str, np.ndarray] = {}
    for contender in lines:
        out = run.path(f"volume-{precision}-{contender.name}-{contender.tile}.nii.gz")
        answer = contender.once(pet, out)
        row = rows[key_of(contender)]
        if not row["seconds"]:
            _compare_volume(run, pet, precision, contender, out, row, references, rows)
        row["seconds"].append(answer["seconds"])
        row["bytes"] = max(row["bytes"], answer["bytes"])
        row["parts"].append({k: answer[k] for k in ("read", "predict", "write") if k in answer})
        say(f"volume {precision} {key_of(contender)}: {answer['seconds']:.2f} s")


def _compare_volume(
    run: Run,
    pet: Path,
    precision: str,
    contender: Contender,
    out: Path,
    row: Json,
    references: dict[int | str, np.ndarray],
    rows: Json,
) -> None:
    """Check a result against our float32 of the same tile; state it against our 32 at 0.5."""
    mine = out if contender.name == OURS else None
    result = dose(out)
    if mine and precision == "float32":
        references[contender.tile] = result
    if contender.tile not in references:
        path = run.path(f"volume-float32-{OURS}-{contender.tile}.nii.gz")
        references[contender.tile] = dose(path)
    row["difference"] = check(
        f"{contender.name}, tile {contender.tile},", precision, result, references[contender.tile]
    )
    if mine and contender.tile == 32:
        references[-1] = result
    row |= {"against_32": deviation(result, references[-1])}


SHIPPED = ROOT / "weights" / f"{NETWORK}-constructed.safetensors.zst"
TILES = ((48, 0.25), (64, 0.25), (96, 0.25), (128, 0.25))


def tiles(run: Run) -> Json:
    """Time, memory and result of dosemap by tile, once each; and with air skipped.

    With the shipped weights: random ones weigh the padding at a window's border like any voxel,
    so that the difference between tiles would say nothing.
    """
    pet = run.path(f"pet-{'x'.join(map(str, run.shape))}.nii.gz")
    inputs.write_pet(pet, run.shape, 2)
    result: Json = {}
    for precision in PRECISIONS:
        rows = result[precision] = []
        base = run.path(f"tiles-{precision}-base.nii.gz")

        def measure(
            tile: int | str, overlap: float, air: str, precision: str, rows: list, base: Path
        ) -> None:
            first = not rows
            out = base if first else run.path(f"tiles-{precision}.nii.gz")
            options = ["--tile", str(tile), "--overlap", str(overlap), "--skip-air", air]
            row = {"tile": tile, "overlap": overlap, "skip_air": air}
            row |= predict(run, pet, out, precision, *options, weights=SHIPPED)
            rows.append(row | deviation(dose(out), dose(base)))
            say(f"tile {tile} {precision} skip-air {air}: {row['seconds']:.2f} s")

        measure(32, 0.5, "off", precision, rows, base)
        measure(32, 0.5, "0.1", precision, rows, base)
        for tile, overlap in TILES[1:3] if run.quick else TILES:
            if tile <= max(run.shape):
                measure(tile, overlap, "off", precision, rows, base)
        measure(WHOLE, 0, "off", precision, rows, base)
    return result


def memory(run: Run) -> list[Json]:
    """Peak memory of large volumes, float32."""
    cases = [((200, 200, 450), "dosegan"), ((512, 512, 1000), "dosegan-16")]
    if run.quick:
        cases = [((64, 64, 96), "dosegan")]
    half = run.path("half.safetensors.zst")
    if not run.quick and not half.exists():
        inputs.make_weights("dosegan-16", run.path("half.pt"), half, 1)
    rows = []
    for shape, name in cases:
        pet = run.path(f"pet-{'x'.join(map(str, shape))}.nii.gz")
        inputs.write_pet(pet, shape, 2)
        weights = half if name != NETWORK else None
        out = run.path("memory.nii.gz")
        answer = predict(run, pet, out, "float32", *tile_options(32, 0), weights=weights)
        rows.append({"shape": list(shape), "network": name, "tile": 32, "overlap": 0} | answer)
        say(f"memory {shape} {name}: {answer['bytes'] / 2**30:.2f} GiB, {answer['seconds']:.0f} s")
    return rows
