# SPDX-License-Identifier: Apache-2.0
"""The parts of bench/compare_gpu: PyTorch's settings are searched, checked and timed one by one.

Each result is checked against PyTorch's float32 on the CPU before it is timed. What fails or takes
too long is recorded with its reason and left out; what is known so far is written after each step.
"""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from dosemap_tools import nifti, weights_file

from comparison import inputs
from comparison.gpu_peers import EAGER, Way, load_network, way_of
from comparison.measure import OURS, deviation, predict_command, run_timed, say, tile_options
from comparison.processes import Peer, ProgramError, difference

Json = dict[str, Any]
# Relative L2 against float32 on the CPU in which a result counts as the same. On a GPU float32 may
# be computed by Winograd's method or by Fourier transforms.
LIMIT = {"float32": 1e-5, "tf32": 2e-3, "fp16": 5e-3, "bf16": 2e-2}
DEVICE_LIMIT = LIMIT | {"float32": 1e-4}
FIRST, LAST = "channels first", "channels last"
FOLDED, AS_IT_IS = "folded", "BatchNorm"
COMPILED = "compile"
WORTH_IT = 1.02  # a larger batch has to gain as much, or no larger one is tried
PREPARED = "random.safetensors"
REMEMBERED = "settings-gpu.json"


@dataclass
class Run:
    """What was asked for, and where things lie."""

    folder: Path
    device: str
    precisions: list[str]
    edge: list[int]
    overlap: float
    shape: tuple[int, int, int]
    seconds: float
    rounds: int
    quick: bool
    deadline: float
    dosemap: Path | None
    save: Callable[[], None]
    cores: int
    network_name: str
    windows: np.ndarray | None = None
    reference: np.ndarray | None = None
    environment: dict[str, str] | None = None  # of dosemap
    later: float = 0  # seconds to be kept for what follows the search
    programs: dict[str, Peer] = field(default_factory=dict)
    ready: dict[str, Json] = field(default_factory=dict)  # settings of the programs

    def path(self, name: str) -> Path:
        """Return a file of the folder."""
        return self.folder / name

    @property
    def weights(self) -> Path:
        """Return the weights that everybody reads."""
        return self.path(PREPARED)

    def limit(self, precision: str) -> float:
        """Return how far a result may lie from the reference."""
        return (LIMIT if self.device == "cpu" else DEVICE_LIMIT)[precision]

    def left(self) -> float:
        """Return the seconds that are left."""
        return self.deadline - time.time()


def device_problem(device: str) -> str | None:
    """Return why PyTorch cannot use a device, or None."""
    import torch

    if device != "cpu" and not torch.cuda.is_available():
        return f"PyTorch {torch.__version__} finds no GPU for --device {device}"
    return None


def prepare_weights(folder: Path, network: str) -> None:
    """Make the weights, unless they are there; as bf16, so that they are half as large."""
    if not (folder / PREPARED).exists():
        if weights_file.xxhash is None:
            raise ProgramError(
                f"there is no {folder / PREPARED}, and the Python package xxhash is missing, "
                "without which it cannot be made; bring it from where --prepare has made it"
            )
        partial = folder / f"partial-{PREPARED}"
        inputs.make_weights(network, folder / "state.pt", partial, 1, "BF16")
        partial.rename(folder / PREPARED)
        (folder / "state.pt").unlink()


def prepare(run: Run) -> None:
    """Make weights, windows and their reference result."""
    import torch

    prepare_weights(run.folder, run.network_name)
    run.windows = inputs.cut_windows(4, run.edge, 7)
    with torch.no_grad():
        run.reference = load_network(run.weights)(torch.from_numpy(run.windows)).numpy()
    if not np.std(run.reference) > 0.1:
        raise ProgramError("the reference result is nearly constant; nothing could be compared")


# ---- the network alone


def batches(run: Run) -> list[int]:
    """Return the batches that are tried, in order."""
    return [2, 4] if run.quick else [16, 32, 64, 128, 8, 4]


def eager_ways(run: Run, precision: str) -> list[Way]:
    """Return the ways without compilation."""
    kinds = ["pure"] if precision in ("float32", "tf32") else ["pure", "autocast"]
    if run.quick:
        return [Way(LAST, "pure", FOLDED, EAGER), Way(FIRST, kinds[-1], AS_IT_IS, EAGER)]
    return [
        Way(layout, arithmetic, norm, EAGER)
        for layout in (LAST, FIRST)
        for arithmetic in kinds
        for norm in (FOLDED, AS_IT_IS)
    ]


def compiled_ways(run: Run, precision: str) -> list[Way]:
    """Return the compiled ways, the most promising first: there may be no time for all."""
    if run.quick:
        return [Way(LAST, "pure", FOLDED, "default")]
    ways = [
        Way(LAST, "pure", FOLDED, "default"),
        Way(LAST, "pure", FOLDED, "reduce-overhead"),
        Way(FIRST, "pure", FOLDED, "default"),
        Way(LAST, "pure", FOLDED, "max-autotune"),
        Way(LAST, "pure", FOLDED, "default", frozen=True),
        Way(LAST, "pure", AS_IT_IS, "default"),
        Way(FIRST, "pure", FOLDED, "max-autotune"),
    ]
    if precision not in ("float32", "tf32"):
        ways.append(Way(LAST, "autocast", AS_IT_IS, "default"))
    return ways


def setting_of(way: Way, batch: int) -> Json:
    """Return a setting for the server."""
    return {"batch": batch, "workers": 1, "threads": 1, "option": way.text()}


def ready(run: Run, precision: str, setting: Json, limit: float) -> tuple[Peer, float]:
    """Return a process that runs PyTorch with a setting, and the seconds to make it ready.

    Eager and compiled ones, and those for one window at a time, have a process each: they can take
    turns without being made ready again. One that has died is started again.
    """
    kind = EAGER if way_of(setting["option"]).mode == EAGER else COMPILED
    key = f"{precision} {kind}{' single' * (setting['batch'] == 1)}"
    program = run.programs.get(key)
    if program is None or program.process.poll() is not None:
        name = f"pytorch@{run.device}"
        program = Peer(run.folder, name, precision, run.network_name, run.cores, run.weights)
        run.programs[key] = program
        run.ready.pop(key, None)
    if run.ready.get(key) == setting:
        return program, 0.0
    run.ready.pop(key, None)
    seconds = program.use(setting, run.edge, max(limit, 1))["seconds"]
    run.ready[key] = setting
    return program, seconds


def try_setting(run: Run, precision: str, way: Way, batch: int, limit: float) -> Json:
    """Return what becomes of a setting: its rate, or why it has none."""
    row: Json = {"setting": setting_of(way, batch)}
    try:
        limit = min(limit, run.left() - run.later)
        program, row["prepare_seconds"] = ready(run, precision, row["setting"], limit)
        row["difference"] = difference(program.outputs(run.windows), run.reference)
        limit = run.limit(precision)
        if not row["difference"] <= limit:
            raise ProgramError(
                f"its result differs by {row['difference']:.2e}, more than {limit:.0e}"
            )
        row |= program.ask("run", run.seconds, limit=60)
    except ProgramError as error:
        row["error"] = str(error).strip().splitlines()[-1]
    rate = f"{row['rate']:.0f} windows/s" if "rate" in row else row["error"]
    say(f"{precision} {way.text()}, batch {batch}: {rate}")
    return row


def best_of(rows: list[Json], compiled: bool | None = None, norm: str | None = None) -> Json | None:
    """Return the fastest row of a kind."""
    found = []
    for row in rows:
        way = way_of(row["setting"]["option"])
        if "rate" not in row or (norm and way.norm != norm):
            continue
        if compiled is None or compiled == (way.mode != EAGER):
            found.append(row)
    return max(found, key=lambda row: row["rate"], default=None)


def search(run: Run, precision: str, ways: list[Way], rows: list[Json], limit: float) -> None:
    """Try all ways with one batch, then the fastest with others; rows are added."""
    first, known = len(rows), best_of(rows)
    batch = known["setting"]["batch"] if known else batches(run)[0]

    def enough_time(way: Way) -> bool:
        needed = 5 if run.quick else 10 if way.mode == EAGER else 60
        return run.left() - run.later > needed

    for way in ways:
        if enough_time(way):
            rows.append(try_setting(run, precision, way, batch, limit))
        else:
            rows.append({"setting": setting_of(way, batch), "error": "no time"})
        run.save()
    best = best_of(rows[first:])
    if not best or (run.quick and known):
        return
    way = way_of(best["setting"]["option"])
    larger = [b for b in batches(run) if b > batch]
    for others in (larger, [b for b in batches(run) if b < batch]):
        rate = best["rate"]
        for other in others:
            if not enough_time(way):
                return
            rows.append(try_setting(run, precision, way, other, limit))
            run.save()
            found = rows[-1].get("rate", 0)
            if found < rate * WORTH_IT:
                break
            rate = found
        if rate > best["rate"]:
            return  # smaller ones are slower


def network(run: Run, result: Json) -> None:
    """Search, time the fastest of each kind in interleaved rounds, then one window at a time."""
    for precision in run.precisions:
        part = result[precision] = {"rows": []}
        search(run, precision, eager_ways(run, precision), part["rows"], 120)
        # Compiling may take minutes, of which nothing is in the figures.
        search(run, precision, compiled_ways(run, precision), part["rows"], 240)
        best = {EAGER: best_of(part["rows"], False), COMPILED: best_of(part["rows"], True)}
        part["best"] = {name: row["setting"] for name, row in best.items() if row}
        part["best_not_folded"] = {
            name: {"setting": row["setting"], "rate": row["rate"]}
            for name, compiled in ((EAGER, False), (COMPILED, True))
            if (row := best_of(part["rows"], compiled, AS_IT_IS))
        }
        run.save()
        part["rounds"] = rounds(run, precision, part["best"])
        part["latency"] = _latency(run, precision, part["best"])
        run.save()


def rounds(run: Run, precision: str, best: Json) -> Json:
    """Let everybody take turns, dosemap too if it is there."""
    found: Json = {}
    programs = ({OURS: None} if run.dosemap else {}) | best
    for _ in range(run.rounds):
        for name, setting in programs.items():
            if run.left() < 5 * run.seconds:
                return found
            try:
                if setting is None:
                    answer = our_rate(run, precision)
                else:
                    program, _ = ready(run, precision, setting, run.left())
                    answer = program.ask("run", run.seconds, limit=60)
            except ProgramError as error:
                say(f"{precision} {name}: {error}")
                continue
            rows = found.setdefault(name, {"rates": [], "joules_per_window": []})
            rows["rates"].append(answer["rate"])
            if answer.get("joules_per_window") is not None:
                rows["joules_per_window"].append(answer["joules_per_window"])
        say(f"{precision}: { {n: round(r['rates'][-1]) for n, r in found.items()} } windows/s")
    return found


def our_rate(run: Run, precision: str) -> Json:
    """Return what `dosemap bench` measures of the network alone."""
    out = run.path("dosemap-bench.json")
    command = [run.dosemap, "bench", "--scenario", "offline", "--quiet", "--json", out]
    command += ["--model", run.weights, "--device", run.device, "--precision", precision]
    command += ["--tile", run.edge[0], *["--force-tile"] * run.quick]
    try:
        done = subprocess.run(
            list(map(str, command)),
            capture_output=True,
            text=True,
            timeout=max(run.left(), 10),
            env=run.environment,
        )
    except subprocess.TimeoutExpired as error:
        raise ProgramError("dosemap bench took too long") from error
    if done.returncode:
        raise ProgramError(f"dosemap bench: {done.stderr.strip()[-500:]}")
    offline = json.loads(out.read_text())["offline"]
    return {"rate": offline["patches_per_s"], "joules_per_window": offline["joules_per_patch"]}


def _latency(run: Run, precision: str, best: Json) -> Json:
    """Time one window at a time, in the fastest setting otherwise."""
    found: Json = {}
    for name, setting in best.items():
        if run.left() < 5 * run.seconds or (run.quick and name == COMPILED):
            break
        try:
            program, _ = ready(run, precision, setting | {"batch": 1}, min(240, run.left()))
            found[name] = program.ask("latency", run.seconds, limit=60)
        except ProgramError as error:
            say(f"{precision} {name}, one window: {error}")
    return found


# ---- whole volumes


def ours(run: Run, pet: Path, out: Path, precision: str, device: str) -> Json:
    """Run `dosemap predict` as a process."""
    options = [*tile_options(run.edge[0], run.overlap), "--device", device]
    command = predict_command(run.dosemap, pet, out, run.weights, precision, *options)
    return run_timed(command, run.environment)


def volume(run: Run, result: Json, best: Json) -> None:
    """Time whole volumes from file to file; `best`: the settings of each precision."""
    pet = run.path(f"pet-{'x'.join(map(str, run.shape))}.nii.gz")
    inputs.write_pet(pet, run.shape, 2)
    result |= {"shape": list(run.shape), "overlap": run.overlap, "edge": run.edge}
    _check_small_volume(run, result, best)
    for precision in run.precisions:
        lines: Json = {name: {"setting": s} for name, s in best.get(precision, {}).items()}
        if run.dosemap:
            lines = {OURS: {"setting": None}} | lines
        result[precision] = lines
        for row in lines.values():
            row |= {"seconds": [], "parts": [], "joules": []}
        for number in range(run.rounds):
            for name, row in lines.items():
                if "error" in row or (number and run.left() < 2 * max([*row["seconds"], 15])):
                    continue
                try:
                    _volume_once(run, pet, precision, name, row)
                except ProgramError as error:
                    row["error"] = str(error).strip().splitlines()[-1]
                    say(f"volume {precision} {name}: {row['error']}")
                run.save()
        _compare_volumes(run, precision, lines)
        run.save()


def _volume_once(run: Run, pet: Path, precision: str, name: str, row: Json) -> None:
    out = run.path(f"volume-{precision}-{name}.nii.gz")
    if name == OURS:
        answer = ours(run, pet, out, precision, run.device)
    else:
        program, _ = ready(run, precision, row["setting"], run.left())
        answer = program.ask("volume", pet, out, run.overlap, limit=run.left())
        row["device_bytes"] = program.ask("memory")["device_bytes"]
    row["seconds"].append(answer["seconds"])
    row["parts"].append({k: answer[k] for k in ("read", "predict", "write") if k in answer})
    if "joules" in answer:
        row["joules"].append(answer["joules"])
    say(f"volume {precision} {name}: {answer['seconds']:.2f} s")


def _compare_volumes(run: Run, precision: str, lines: Json) -> None:
    """State how far the results lie from dosemap's; they have to be the same."""
    done = {name: row for name, row in lines.items() if row["seconds"]}
    if OURS not in done:
        return
    reference = nifti.read(run.path(f"volume-{precision}-dosemap.nii.gz"))[0]
    for name, row in done.items():
        found = deviation(nifti.read(run.path(f"volume-{precision}-{name}.nii.gz"))[0], reference)
        row |= {"difference": found["relative_l2"], "largest": found["largest"]}
        # Both have rounded.
        if not found["relative_l2"] <= 2 * run.limit(precision):
            row["error"] = f"its result differs from dosemap's by {found['relative_l2']:.1e}"


def _check_small_volume(run: Run, result: Json, best: Json) -> None:
    """Compare the sliding window itself: a small volume in float32 with dosemap's on the CPU."""
    if not run.dosemap or not best:
        return
    shape = tuple(e + e // 2 + 3 + i for i, e in enumerate(run.edge))
    pet, mine, theirs = (run.path(f"small-{n}.nii.gz") for n in ("pet", "dosemap", "pytorch"))
    inputs.write_pet(pet, shape, 3)
    ours(run, pet, mine, "float32", "cpu")
    program, _ = ready(run, "float32", setting_of(Way(FIRST, "pure", FOLDED, EAGER), 4), 120)
    program.ask("volume", pet, theirs, run.overlap, limit=120)
    found = difference(nifti.read(theirs)[0], nifti.read(mine)[0])
    result["small"] = {"shape": list(shape), "difference": found}
    say(f"float32, a small volume against dosemap on the CPU: {found:.1e}")
    if not found <= run.limit("float32"):
        raise ProgramError(
            f"the sliding window's float32 result differs from dosemap's on the CPU by {found:.2e}"
        )


def close(run: Run) -> None:
    """End the processes."""
    for program in run.programs.values():
        program.close()


def remembered(run: Run) -> Json:
    """Return the best settings that an earlier run in this folder has found."""
    path = run.path(REMEMBERED)
    return json.loads(path.read_text()) if path.exists() else {}
