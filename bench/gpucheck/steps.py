# SPDX-License-Identifier: Apache-2.0
"""The steps, in the order in which they are run."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

from gpucheck import images, judges
from gpucheck.jobs import SKIPPED, Figures, Finished, ImpossibleError, Job, Step, WrongError
from gpucheck.place import RANDOM_WEIGHTS, ROOT, Place

GOLDEN = ROOT / "tests/golden"
UPTAKE = ("--units", "suv", "--body-weight", "78.7")  # at this weight the uptake is the SUV
VOLUME_TARGET_S = 2.0
BYTES_TOLERANCE = 0.15  # of the account from the hardware's counters


def _dosemap(place: Place, name: str, *arguments: object, **options: object) -> Job:
    """Return a job that runs the program."""
    command = (str(place.program), *map(str, arguments))
    return Job(name, command, environment=place.environment(), **options)


def _predict(
    place: Place, name: str, pet: Path, out: Path, *arguments: object, **options: object
) -> Job:
    """Return a prediction on the GPU, unless the arguments name another device."""
    device = () if "--device" in arguments else ("--device", "cuda")
    said = (pet, *arguments, *device, "--quiet", "-o", out)
    return _dosemap(place, name, "predict", *said, **options)


# ---- What is there ------------------------------------------------------------------------------


def environment(place: Place) -> list[Job]:
    """Return the questions to the driver, the compiler, dosemap and PyTorch."""
    jobs = [_dosemap(place, "doctor", "doctor", "--json", judge=judges.doctor(place.dry))]
    ask = "name,driver_version,memory.total,clocks.max.sm,clocks.max.memory,power.limit"
    if not place.dry:
        command = ("nvidia-smi", f"--query-gpu={ask},mig.mode.current", "--format=csv")
        jobs.append(Job("nvidia-smi", command, judge=_said))
    if place.python:
        versions = (
            "import json, sys, torch; print(json.dumps({'python': sys.version.split()[0],"
            " 'torch': torch.__version__, 'cuda': torch.version.cuda,"
            " 'available': torch.cuda.is_available()}))"
        )
        jobs.append(Job("pytorch", (place.python, "-c", versions), judges.json_of))
    return jobs


def _said(finished: Finished) -> Figures:
    return {"said": finished.output.strip().splitlines()}


def device_properties(place: Place) -> list[Job]:
    """Return the question to cuDNN, and what is planned with its answer."""
    if not place.cudnn:
        raise ImpossibleError("no cuDNN is found; name its folder in DOSEMAP_CUDNN_DIR")
    out = place.image("device.json")
    script = ROOT / "bench/gpucheck/device_properties.py"
    described = ROOT / "host/predict/cuda/devices/device_sm90.json"
    given = ("--from", str(described)) if place.dry else ()
    ask = (sys.executable, str(script), str(place.cudnn), str(out), *given)

    def compare(finished: Finished) -> Figures:
        facts = judges.json_of(finished)
        assumed = json.loads(described.read_text())
        found = facts["properties"]
        facts["unlike_the_assumed"] = {
            key: [assumed.get(key), found.get(key)]
            for key in sorted({*assumed, *found})
            if assumed.get(key) != found.get(key)
        }
        return facts

    plan = ("inspect", "--plan", "cuda", "--json", "--device-properties", out, "--precision")
    told = place.environment()
    return [Job("properties", ask, compare, environment=told)] + [
        _dosemap(place, f"plan-{precision}", *plan, precision, judge=judges.json_of)
        for precision in ("bf16", "float32")
    ]


# ---- Right results ------------------------------------------------------------------------------


def gpu_tests(place: Place) -> list[Job]:
    """Return the tests of the kernels; a dry run has them start and say that there is no GPU."""
    if not place.tests:
        raise ImpossibleError("the bundle has no GPU tests: it was made where there is no nvcc")
    statuses = (SKIPPED,) if place.dry else (0,)
    told = place.environment()
    return [
        Job(test.name, (str(test),), limit_s=300, environment=told, statuses=statuses)
        for test in place.tests
    ]


def golden(place: Place) -> list[Job]:
    """Return the kept cases of PyTorch and MONAI in every precision."""
    jobs = []
    for folder in sorted(path.parent for path in GOLDEN.glob("*/case.json")):
        case = json.loads((folder / "case.json").read_text())
        for precision in place.sizes.golden_precisions:
            known = case["tolerance"]
            tolerance = max(judges.TOLERANCES[precision], known.get(precision, 0))
            if precision in ("bf16", "fp16") and "bf16" not in known:
                continue  # too sensitive to rounding for a comparison to mean anything
            out = place.image(f"golden-{folder.name}-{precision}.nii")
            job = _predict(
                place, f"{folder.name}-{precision}", folder / "pet.nii.gz", out, *UPTAKE,
                *("--model", folder / "model.safetensors.zst", "--force-tile"),
                *("--tile", ",".join(map(str, case["tile"])), "--overlap", case["overlap"]),
                *("--blend", case["blend"], "--skip-air", "off", "--precision", precision),
                judge=judges.close(out, folder / "expected.nii.gz", tolerance),
            )  # fmt: skip
            jobs.append(job)
    return jobs


def _real_images(place: Place) -> list[tuple[Path, Path, tuple[str, ...]]]:
    """Return PET or SPECT, labels, options of what the bundle brings."""
    found = []
    for pet in sorted(place.images.glob("*_pet.nii.gz")):
        labels = pet.with_name(pet.name.replace("_pet", "_dseg"))
        has_sidecar = pet.with_name(pet.name.replace(".nii.gz", ".json")).exists()
        found.append((pet, labels, () if has_sidecar else UPTAKE))
    return found


def real(place: Place) -> list[Job]:
    """Return predictions of real images on the CPU and, in every precision, on the GPU."""
    found = _real_images(place)
    if place.dry:
        phantom = place.image("phantom_pet.nii.gz")
        images.write_phantom(phantom, place.sizes.volume)
        found = [(phantom, phantom, UPTAKE)]
    if not found:
        raise ImpossibleError("the bundle has no real images: none were there when it was made")
    models = {"constructed": ("--overlap", "0.25")}
    models["random"] = (
        *models["constructed"],
        "--model",
        str(GOLDEN / "batch-large-tile/model.safetensors.zst"),
    )
    if place.dry:
        models = {"random": models["random"]}
    jobs = []
    for pet, labels, options in found:
        subject = pet.name.removesuffix("_pet.nii.gz")
        for model, more in models.items():
            shared = (*options, *more, *(() if labels == pet else ("--labels", labels)))
            stem = f"{subject}-{model}"
            cpu = place.image(f"{stem}-cpu.nii")
            jobs.append(
                _predict(place, f"{stem}-cpu", pet, cpu, *shared, "--device", "cpu",
                         "--precision", "float32", limit_s=300)
            )  # fmt: skip
            for precision in place.sizes.golden_precisions:
                out, tolerance = (
                    place.image(f"{stem}-{precision}.nii"),
                    judges.TOLERANCES[precision],
                )
                judge = judges.close if labels == pet else judges.close_with_organs
                jobs.append(
                    _predict(place, f"{stem}-{precision}", pet, out, *shared, "--precision",
                             precision, judge=judge(out, cpu, tolerance))
                )  # fmt: skip
    return jobs


def several_gpus(place: Place) -> list[Job]:
    """Return one prediction on one GPU and one on all, which have to give the same bytes."""
    devices = _count_devices(_dosemap(place, "doctor", "doctor", "--json"))
    if devices < 2:
        raise ImpossibleError("there are not several GPUs")
    pet = place.image("phantom_pet.nii.gz")
    images.write_phantom(pet, place.sizes.volume)
    one, all_of_them = place.image("one.nii"), place.image("all.nii")
    options = (*UPTAKE, *place.weights(), "--precision", "bf16", "--overlap", "0.5")
    return [
        _predict(place, "one", pet, one, *options, "--device", "cuda:0"),
        _predict(place, "all", pet, all_of_them, *options, "--device", "cuda:all",
                 judge=judges.same_bytes(one, all_of_them)),
    ]  # fmt: skip


def _count_devices(asked: Job) -> int:
    done = subprocess.run(
        asked.command,
        env={**os.environ, **asked.environment},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    return json.loads(done.stdout)["cuda"]["devices"] if done.returncode == 0 else 0


# ---- compute-sanitizer --------------------------------------------------------------------------


def sanitizer(tool: str) -> Step:
    """Return the step of one of its tools: over every GPU test and a whole prediction."""

    def jobs(place: Place) -> list[Job]:
        under = (
            "compute-sanitizer",
            "--tool",
            tool,
            "--error-exitcode",
            "9",
            "--print-limit",
            "20",
        )
        told = place.environment()
        case = GOLDEN / "batch-small"
        out = place.image(f"sanitizer-{tool}.nii")
        # What cuDNN does in its own shared memory and to its own padding is not ours to judge.
        ours = ("--convolutions", "own") if tool in ("racecheck", "initcheck") else ()
        predict = _predict(
            place, "predict", case / "pet.nii.gz", out, *UPTAKE, *ours,
            "--model", case / "model.safetensors.zst", "--precision", "bf16",
        )  # fmt: skip
        made = [
            Job(test.name, (*under, str(test)), judges.sanitizer, 400, environment=told)
            for test in place.tests
        ]
        # Calls of the driver that cuDNN makes to see what there is may fail.
        quiet = () if ours else ("--report-api-errors", "no")
        whole = (*under, *quiet, *predict.command)
        return [Job("predict", whole, judges.sanitizer, 400, environment=told), *made]

    shows = f"compute-sanitizer's {tool} finds nothing in the GPU tests and in a prediction"
    return Step(f"sanitizer-{tool}", shows, jobs, 580, parallel=4, needs=("compute-sanitizer",))


# ---- Speed --------------------------------------------------------------------------------------


def _bench(
    place: Place, name: str, precision: str, *arguments: object, limit_s: float = 200
) -> Job:
    out = place.image(f"bench-{name}.json")
    what = (*place.weights(), "--device", "cuda", "--precision", precision, *place.sizes.bench)
    said = ("bench", *what, *arguments, "--json", out)
    return _dosemap(place, name, *said, judge=judges.bench(out, precision), limit_s=limit_s)


def tune(place: Place) -> list[Job]:
    """Return the timing of every way to compute each convolution, kept for the steps after it."""
    short = ("--scenario", "offline", "--runs", "3", "--warmup", "1", "--tune")
    precisions = ("bf16",) if place.dry else ("bf16", "float32")
    return [_bench(place, f"tune-{p}", p, *short, limit_s=280) for p in precisions]


def bench(place: Place) -> list[Job]:
    """Return the network alone and the whole volume in memory, in every precision."""
    offline = ("--scenario", "offline")
    jobs = []
    for precision in place.sizes.golden_precisions:
        layers = ("--layers",) if precision == "bf16" else ()
        scenario = () if precision in ("bf16", "float32") else offline
        jobs.append(_bench(place, precision, precision, *scenario, *layers))
    for who in ("own", "library"):
        jobs.append(_bench(place, f"bf16-{who}", "bf16", *offline, "--convolutions", who))
    return jobs


def volume(place: Place) -> list[Job]:
    """Return whole processes, .nii.gz to .nii.gz: without kept plans, with them, large tiles."""
    pet = place.image("volume_pet.nii.gz")
    images.write_phantom(pet, place.sizes.volume)
    sizes = place.sizes
    options = (*UPTAKE, *place.weights(), "--precision", "bf16", "--skip-air", "off")
    half = ("--overlap", "0.5")

    def timed(
        name: str, windows: int | None, target: float | None, *more: object, **how: object
    ) -> Job:
        out = place.image(f"volume-{name}.nii.gz")
        judge = judges.whole_process(out, windows, target)
        return _predict(place, name, pet, out, *options, *more, judge=judge, limit_s=200, **how)

    cold = timed("cold", sizes.volume_windows, None, *half)
    empty = {**cold.environment, "DOSEMAP_CACHE_DIR": str(place.work / "no-cache")}
    cold = Job(cold.name, cold.command, cold.judge, cold.limit_s, 1, empty)
    warm = timed("warm", sizes.volume_windows, VOLUME_TARGET_S, *half, repeat=sizes.repeats)
    tiles = [
        timed(f"tile-{tile}", None, None, "--tile", tile,
              *(() if tile == "auto" else half), repeat=min(3, sizes.repeats))
        for tile in sizes.volume_tiles
    ]  # fmt: skip
    return [cold, warm, *tiles]


def counters(place: Place) -> list[Job]:
    """Return what the hardware counts of two volumes: their difference is free of preparations."""
    jobs, counted = [], {}
    for shape in place.sizes.counted:
        name = "x".join(map(str, shape))
        pet, out = place.image(f"counted-{name}_pet.nii.gz"), place.image(f"counted-{name}.nii")
        images.write_phantom(pet, shape)
        predict = _predict(
            place, name, pet, out, *UPTAKE, *place.weights(),
            *("--precision", "bf16", "--overlap", "0.5", "--skip-air", "off", "--batch", "64"),
        )  # fmt: skip
        under = (
            *("ncu", "--csv", "--print-units", "base"),
            *("--cache-control", "all", "--clock-control", "none"),
            *("--metrics", ",".join(judges.COUNTERS)),
        )

        def count(finished: Finished, name: str = name, out: Path = out) -> Figures:
            sidecar = json.loads(out.with_suffix(".json").read_text())
            counted[name] = (judges.launch_bytes(finished.output), sidecar["Windows"]["Run"])
            return {"bytes": counted[name][0], "windows": counted[name][1]}

        told = predict.environment
        jobs.append(Job(name, (*under, *predict.command), count, 280, environment=told))

    def account(finished: Finished) -> Figures:
        if len(counted) < 2:
            raise WrongError("the hardware's counters were not read")
        (few, fewer_windows), (many, more_windows) = counted.values()
        measured = (many - few) / (more_windows - fewer_windows)
        figures: Figures = {"measured_bytes_per_patch": measured}
        expected = judges.json_of(finished)["account"]["bytes"]
        figures |= {"accounted_bytes_per_patch": expected, "ratio": measured / expected}
        if not abs(measured / expected - 1) <= BYTES_TOLERANCE:
            raise WrongError(f"{measured / expected:.2f} times the account's bytes", figures)
        return figures

    said = ("inspect", *place.weights()[1:], "--plan", "cuda", "--json", "--precision")
    jobs.append(_dosemap(place, "account", *said, "bf16", "--batch", "64", judge=account))
    return jobs


def _compare(place: Place, name: str, *arguments: object, limit_s: float) -> Job:
    """Return a job of the comparison with PyTorch, on the same weights."""
    if not place.python:
        raise ImpossibleError("there is no Python with PyTorch")
    folder = place.work / "peers"
    folder.mkdir(exist_ok=True)
    carried = place.images / RANDOM_WEIGHTS
    if carried.exists() and not place.dry:
        shutil.copyfile(carried, folder / RANDOM_WEIGHTS)
    out = place.image(f"compare-{name}.json")
    how = ("--device", "cpu", "--quick") if place.dry else ("--device", "cuda")
    said = (
        *(place.python, ROOT / "bench/compare_gpu", "--folder", folder, "--json", out, *how),
        *("--minutes", f"{limit_s / 60 - 0.5:.1f}", *arguments),
    )

    def judge(_: Finished) -> Figures:
        found = json.loads(out.read_text())
        reached = {f"times as fast, {t['against']}": t["found"] for t in found["targets"]}
        return {**reached, "results": found}

    # PyTorch refuses a cuDNN older than its own: the path is for dosemap alone.
    told = place.environment()
    path = told.pop("LD_LIBRARY_PATH", "")
    said += ("--library-path", path) if path else ()
    return Job(name, tuple(map(str, said)), judge, limit_s, environment=told)


def pytorch_network(place: Place) -> list[Job]:
    """Return PyTorch's network alone, beside what `bench` measured of ours."""
    benches = [place.image(f"bench-{p}.json") for p in place.sizes.golden_precisions]
    known = [("--bench-json", str(path)) for path in benches if path.exists()]
    ours = ("--dosemap", place.program)
    said = ("--parts", "network", *ours, *(word for pair in known for word in pair))
    return [_compare(place, "network", *said, limit_s=560)]


def pytorch_volume(place: Place) -> list[Job]:
    """Return PyTorch with a sliding window over the volume, beside whole processes of ours."""
    said = ("--parts", "volume", "--dosemap", place.program)
    return [_compare(place, "volume", *said, limit_s=560)]


STEPS = [
    Step("environment", "what is there, and that dosemap can use it", environment, 120),
    Step("gpu-tests", "every kernel agrees with the CPU", gpu_tests, 580, parallel=4),
    Step("golden", "kept results of PyTorch and MONAI, in every precision", golden, 400,
         parallel=4),
    Step("real", "real images and their organs, on the GPU as on the CPU", real, 580,
         together=True),
    Step("several-gpus", "the same bytes from one GPU and from all", several_gpus, 120,
         together=True),
    Step("device-properties", "cuDNN's words on this device, and plans from them",
         device_properties, 120),
    Step("tune", "the fastest way to compute each convolution, kept on disk", tune, 580),
    Step("bench", "speed of the network, its operations and a volume; ceilings; energy", bench,
         580),
    Step("volume", "a whole process, 200x200x450 voxels, overlap 0.5: cold, warm, larger tiles",
         volume, 400),
    Step("pytorch-network", "PyTorch's network alone, eager and compiled", pytorch_network, 570),
    Step("pytorch-volume", "PyTorch and a sliding window, file to file", pytorch_volume, 570),
    Step("counters", "bytes that the hardware counts against those of the account", counters, 580,
         needs=("ncu",), together=True),
    *(sanitizer(tool) for tool in ("memcheck", "racecheck", "initcheck", "synccheck")),
]  # fmt: skip
