# SPDX-License-Identifier: Apache-2.0
"""bench/gpu_check: its judges notice what is wrong, no step ends the others, results add up. What
runs on a GPU is tried by its dry run.
"""

import gzip
import importlib.machinery
import importlib.util
import json
import os
import struct
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from dosemap_tools import nifti
from program import ROOT

sys.path.insert(0, str(ROOT / "bench"))

from gpucheck import images, jobs, judges, place, record, steps
from gpucheck.jobs import Finished, ImpossibleError, Job, Step, WrongError


def script():
    loader = importlib.machinery.SourceFileLoader("gpu_check", str(ROOT / "bench/gpu_check"))
    spec = importlib.util.spec_from_loader("gpu_check", loader)
    module = importlib.util.module_from_spec(spec)
    sys.dont_write_bytecode = True
    loader.exec_module(module)
    return module


def shell(text, name="job", **options):
    return Job(name, ("bash", "-c", text), **options)


def said(output, status=0):
    return Finished(status, [0.1], output)


# ---- Volumes ------------------------------------------------------------------------------------


@pytest.fixture
def dose():
    return np.random.default_rng(4).gamma(1.5, 2, (7, 5, 3)).astype(np.float32)


def save(path, data, **options):
    nifti.write(path, data, np.eye(4), **options)
    return path


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_distance(tmp_path, dose, suffix):
    other = dose + np.float32(0.01)
    a, b = save(tmp_path / f"a{suffix}", other), save(tmp_path / f"b{suffix}", dose)
    expected = np.linalg.norm(np.float64(other) - dose) / np.linalg.norm(np.float64(dose))
    assert images.distance(a, b) == pytest.approx(expected, rel=1e-6)
    assert images.distance(b, b) == 0


def test_distance_of_scaled_integers(tmp_path, dose):
    stored = np.rint(dose * 100).astype(np.int16)
    a, b = save(tmp_path / "a.nii", stored, slope=0.01), save(tmp_path / "b.nii", dose)
    meant = 0.01 * np.float64(stored)
    expected = np.linalg.norm(meant - dose) / np.linalg.norm(np.float64(dose))
    assert images.distance(a, b) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_distance_refuses_what_is_not_finite(tmp_path, dose, value):
    b = save(tmp_path / "b.nii", dose)
    dose[3, 2, 1] = value
    a = save(tmp_path / "a.nii", dose)
    for one, other in ((a, b), (b, a), (a, a)):
        with pytest.raises(WrongError, match="NaN"):
            images.distance(one, other)


def test_distance_refuses_what_says_nothing(tmp_path, dose):
    a = save(tmp_path / "a.nii", dose)
    with pytest.raises(WrongError, match="zero everywhere"):
        images.distance(a, save(tmp_path / "zero.nii", np.zeros_like(dose)))
    with pytest.raises(WrongError, match="voxels"):
        images.distance(a, save(tmp_path / "small.nii", dose[:6]))
    a.write_bytes(a.read_bytes()[:-4])
    with pytest.raises(WrongError, match="cut short"):
        images.distance(a, a)


def test_phantom(tmp_path):
    path = tmp_path / "phantom.nii.gz"
    images.write_phantom(path, (40, 31, 50))
    suv, affine = nifti.read(path)
    assert suv.shape == (40, 31, 50) and np.allclose(np.diag(affine), [2, 2, 2, 1])
    assert suv.min() >= 0 and 1 < suv.max() < 20 and 0.1 < (suv > 0.4).mean() < 0.4
    assert struct.unpack_from("<f", gzip.decompress(path.read_bytes()), 112)[0] == pytest.approx(
        0.001
    )
    before = path.read_bytes()
    path.unlink()
    images.write_phantom(path, (40, 31, 50))
    assert gzip.decompress(path.read_bytes()) == gzip.decompress(before)


# ---- Judges -------------------------------------------------------------------------------------


def test_a_dose_map_too_far_off_is_noticed(tmp_path, dose):
    a, b = save(tmp_path / "a.nii", dose * np.float32(1.02)), save(tmp_path / "b.nii", dose)
    assert judges.close(a, b, 0.03)(said(""))["relative_l2"] == pytest.approx(0.02, rel=1e-3)
    with pytest.raises(WrongError, match=r"allowed 0\.01"):
        judges.close(a, b, 0.01)(said(""))


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ("liver\t5\t9\t1.02", "mean organ dose"),
        ("liver\t5\t8\t1.0", "voxels"),
        ("liver\t5\t9\tnan", "mean organ dose"),
        (None, "rows"),
    ],
)
def test_an_organ_that_is_off_is_noticed(tmp_path, dose, row, problem):
    a, b = save(tmp_path / "a.nii", dose), save(tmp_path / "b.nii", dose)
    head = "name\tid\tvoxels\tmean_gy\n"
    (tmp_path / "b_organs.tsv").write_text(head + "liver\t5\t9\t1.0\n")
    (tmp_path / "a_organs.tsv").write_text(head + "liver\t5\t9\t1.005\n")
    judge = judges.close_with_organs(a, b, 0.01)
    assert judge(said(""))["organ_means_apart"] == pytest.approx(0.005)
    (tmp_path / "a_organs.tsv").write_text(head + (f"{row}\n" if row else ""))
    with pytest.raises(WrongError, match=problem):
        judge(said(""))


def test_sanitizer_judge():
    clean = "========= COMPUTE-SANITIZER\n========= ERROR SUMMARY: 0 errors\n"
    races = "========= RACECHECK SUMMARY: 0 hazards displayed (0 errors, 0 warnings)\n"
    assert judges.sanitizer(said(clean)) == judges.sanitizer(said(races)) == {"errors": 0}
    with pytest.raises(WrongError, match="3 errors"):
        judges.sanitizer(said(clean.replace("0 errors", "3 errors")))
    with pytest.raises(WrongError, match="1 errors"):
        judges.sanitizer(said(races.replace("0 hazards", "1 hazard")))
    with pytest.raises(WrongError, match="no summary"):
        judges.sanitizer(said("Internal error"))


def test_launch_bytes():
    table = (
        "==PROF== Connected\ndose map     o.nii\n"
        '"ID","Kernel Name","Metric Name","Metric Unit","Metric Value"\n'
        '"0","a","dram__bytes_read.sum","Mbyte","1,234.5"\n'
        '"0","a","lts__t_sectors_srcunit_tex_op_write.sum","sector","1,002"\n'
        '"0","a","gpu__time_duration.sum","ns","7"\n'
        '"1","b","dram__bytes_read.sum","byte","3"\n'
    )
    assert judges.launch_bytes(table) == pytest.approx(1234.5e6 + 1002 * 32 + 3)
    with pytest.raises(WrongError, match="no table"):
        judges.launch_bytes("==ERROR== no permission")


def test_bench_judge(tmp_path):
    report = {"offline": {"patches_per_s": 7.5}, "volume": None, "error": {"relative_l2": 0.004}}
    path = tmp_path / "bench.json"
    path.write_text(json.dumps(report))
    figures = judges.bench(path, "bf16")(said(""))
    assert figures == {"patches_per_s": 7.5, "relative_l2": 0.004, "report": report}
    with pytest.raises(WrongError, match="from the CPU"):
        judges.bench(path, "float32")(said(""))
    path.write_text(json.dumps({**report, "error": None}))
    with pytest.raises(WrongError, match="nan from the CPU"):
        judges.bench(path, "bf16")(said(""))


def test_doctor_judge():
    facts = {"cuda": {"usable": True, "emulated": False, "problem": None, "remedy": None}}
    assert judges.doctor(False)(said("note\n" + json.dumps(facts))) == facts
    with pytest.raises(WrongError, match="no emulation"):
        judges.doctor(True)(said(json.dumps(facts)))
    facts["cuda"].update(usable=False, problem="no driver", remedy="install it")
    with pytest.raises(WrongError, match="no driver; install it"):
        judges.doctor(False)(said(json.dumps(facts)))
    with pytest.raises(WrongError, match="no JSON"):
        judges.doctor(False)(said("Segmentation fault"))


# ---- Jobs ---------------------------------------------------------------------------------------


def run(job, tmp_path, seconds=60.0):
    return jobs.run_job(job, time.monotonic() + seconds, tmp_path)


def test_job_passes(tmp_path):
    made = run(shell("echo '{\"a\": 1}'", judge=judges.json_of, repeat=3), tmp_path)
    assert (made.verdict, made.figures, len(made.seconds)) == (jobs.PASSED, {"a": 1}, 3)
    assert "output" not in made.as_json()


def test_job_fails(tmp_path):
    made = run(shell("echo why; exit 3"), tmp_path)
    assert (made.verdict, made.reason) == (jobs.FAILED, "exit status 3: why")
    assert made.as_json()["output"] == "why\n"
    assert "no GPU" in run(shell("exit 77"), tmp_path).reason
    assert run(shell("exit 77", statuses=(77,)), tmp_path).verdict == jobs.PASSED
    assert run(shell("true", statuses=(77,)), tmp_path).verdict == jobs.FAILED
    assert run(Job("none", ("/no/such/program",)), tmp_path).verdict == jobs.FAILED


def test_a_judge_that_stumbles_is_a_failure(tmp_path):
    def stumble(_):
        return {}["missing"]

    made = run(shell("true", judge=stumble), tmp_path)
    assert made.verdict == jobs.FAILED and "KeyError" in made.reason


def test_a_job_ends_at_its_limit_with_what_it_started(tmp_path):
    pids = tmp_path / "pids"
    begin = time.monotonic()
    text = f"trap '' TERM; sleep 300 & echo $! > {pids}; echo begun; sleep 300"
    made = run(shell(text, limit_s=2), tmp_path)
    assert made.verdict == jobs.LATE and made.output == "begun\n"
    assert time.monotonic() - begin < 30
    child = int(pids.read_text())
    state = Path(f"/proc/{child}/stat")
    assert not state.exists() or state.read_text().split()[2] == "Z"


def test_nothing_begins_after_the_deadline(tmp_path):
    made = run(shell(f"touch {tmp_path}/begun"), tmp_path, seconds=0.0)
    assert made.verdict == jobs.NOT_RUN and not (tmp_path / "begun").exists()


# ---- Steps and results --------------------------------------------------------------------------


@pytest.fixture
def check(tmp_path, monkeypatch):
    """Run gpu_check with these steps: the exit status and the results."""
    module = script()
    bundle = tmp_path / "bundle.tar.xz"
    bundle.touch()
    monkeypatch.setattr(module.bundle, "unpack", lambda *_: {"commit": "abc"})

    def call(made, *options):
        monkeypatch.setattr(module, "STEPS", made)
        folder = ("--folder", str(tmp_path), "--bundle", str(bundle))
        status = module.main([*folder, *options])
        return status, json.loads((tmp_path / "results/results.json").read_text())

    return call


def step(name, *texts, **options):
    made = [shell(text, f"job{i}") for i, text in enumerate(texts)]
    return Step(name, "what it shows", lambda _: made, 60, **options)


def broken(_):
    raise OSError("no space left")


def impossible(_):
    raise ImpossibleError("there is one GPU")


def test_no_step_ends_the_others(check, tmp_path):
    status, results = check(
        [
            step("a", "exit 1", "true"),
            Step("b", "", broken, 60),
            Step("c", "", impossible, 60),
            step("d", "true", needs=("no-such-tool",)),
            step("e", "true", "true", "exit 2", parallel=2),
            step("f", "true"),
        ]
    )
    verdicts = {name: found["verdict"] for name, found in results["steps"].items()}
    assert status == 1
    assert verdicts == {
        "a": "failed", "b": "failed", "c": "not possible", "d": "not possible", "e": "failed",
        "f": "passed",
    }  # fmt: skip
    assert results["steps"]["a"]["jobs"]["job1"]["verdict"] == "passed"
    assert "no space left" in results["steps"]["b"]["jobs"]["preparation"]["reason"]
    summary = (tmp_path / "results/results.md").read_text()
    assert "| a | failed | 1 of 2 |" in summary and "there is one GPU" in summary


def test_runs_add_to_one_file(check, tmp_path):
    steps_now = [step("a", "true"), step("b", f"test -e {tmp_path}/there", "true")]
    assert check(steps_now, "--steps", "a")[0] == 0
    status, results = check(steps_now, "--steps", "b")
    assert status == 1 and set(results["steps"]) == {"a", "b"} and len(results["runs"]) == 2
    (tmp_path / "there").touch()
    status, results = check(steps_now, "--resume")
    assert status == 0 and len(results["runs"]) == 3
    runs = {n: {j: r["run"] for j, r in s["jobs"].items()} for n, s in results["steps"].items()}
    assert runs == {"a": {"job0": 0}, "b": {"job0": 2, "job1": 1}}


def test_jobs_that_belong_together_are_run_together(check, tmp_path):
    steps_now = [step("a", "true", f"test -e {tmp_path}/there", together=True)]
    assert check(steps_now)[0] == 1
    (tmp_path / "there").touch()
    _, results = check(steps_now, "--resume")
    assert {r["run"] for r in results["steps"]["a"]["jobs"].values()} == {1}


def test_out_of_time(check):
    status, results = check([step("a", "sleep 60"), step("b", "true")], "--within", "2")
    verdicts = [found["verdict"] for found in results["steps"].values()]
    assert status == 1 and verdicts == ["out of time", "not run"]


def test_results_are_collected(check, tmp_path):
    check([step("a", "true")])
    (tmp_path / "results/results.json").rename(tmp_path / "first.json")
    check([step("b", "exit 1")])
    _, results = check([], "--collect", str(tmp_path / "first.json"))
    assert {n: s["verdict"] for n, s in results["steps"].items()} == {"a": "passed", "b": "failed"}
    assert len(results["runs"]) == 2


def test_unknown_steps_are_refused(check):
    with pytest.raises(SystemExit) as refused:
        check([step("a", "true")], "--steps", "b")
    assert refused.value.code == 2


def test_names_are_names_of_one_thing(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", os.defpath)
    there = place.Place(tmp_path / "bundle", tmp_path / "work")
    assert len({s.name for s in steps.STEPS}) == len(steps.STEPS)
    found = steps.golden(there)
    assert len({job.name for job in found}) == len(found) >= 40


# ---- Steps with programs in the place of dosemap, ncu and compute-sanitizer ---------------------

DOSEMAP = """
import json, sys
from pathlib import Path
words = sys.argv[1:]
if words[0] == "inspect":
    print(json.dumps({"account": {"bytes": 1000.0}}))
else:
    out = Path(words[words.index("-o") + 1])
    windows = 1024 if "144" in out.name else 512
    out.write_bytes(b"")
    out.with_suffix(".json").write_text(json.dumps({"Windows": {"Run": windows}}))
"""
NCU = """
import subprocess, sys
words = sys.argv[1:]
metrics = words[words.index("--metrics") + 1].split(",")
program = words[words.index("--metrics") + 2 :]
subprocess.run(program, check=True)
total = 7777 + BYTES * (1024 if "144" in program[-1] else 512)
print('"ID","Kernel Name","Metric Name","Metric Unit","Metric Value"')
print(f'"0","k","{metrics[0]}","byte","{total}"')
"""
SANITIZER = """
import subprocess, sys
words = sys.argv[1:]
program = next(i for i, word in enumerate(words) if word.startswith("/"))
subprocess.run(words[program:], check=True)
print(f"========= ERROR SUMMARY: {ERRORS} errors")
"""


@pytest.fixture
def stand_ins(tmp_path, monkeypatch):
    """Return what writes a program, and the place where steps find it."""
    bundle = tmp_path / "bundle"
    (bundle / "libexec/dosemap").mkdir(parents=True)
    (bundle / "bin").mkdir()
    (tmp_path / "tools").mkdir()
    monkeypatch.setenv("PATH", f"{tmp_path}/tools:{os.environ['PATH']}")
    monkeypatch.setattr(images, "write_phantom", lambda path, _: path.touch())

    def write(path, text):
        path = tmp_path / path
        path.write_text(f"#!{sys.executable}\n{text}")
        path.chmod(0o755)

    write("bundle/bin/dosemap", DOSEMAP)
    write("bundle/libexec/dosemap/gpu_pool", "")
    return write, lambda: place.Place(bundle, tmp_path / "work")


def run_step(name, there):
    step = next(s for s in steps.STEPS if s.name == name)
    end = time.monotonic() + 60
    return {job.name: r for job, r in jobs.run_step(step, step.jobs(there), end, there.work)}


@pytest.mark.parametrize(("counted", "verdict"), [(1100, jobs.PASSED), (1200, jobs.FAILED)])
def test_counters(stand_ins, counted, verdict):
    write, there = stand_ins
    write("tools/ncu", NCU.replace("BYTES", str(counted)))
    records = run_step("counters", there())
    assert len(records) == 3
    account = records["account"]
    assert account.verdict == verdict, account.reason
    assert account.figures["ratio"] == pytest.approx(counted / 1000)  # without what is the same


def test_counters_that_were_not_read(stand_ins):
    write, there = stand_ins
    write("tools/ncu", "raise SystemExit('no permission')")
    records = run_step("counters", there())
    assert all(r.verdict == jobs.FAILED for r in records.values())


@pytest.mark.parametrize("tool", ["memcheck", "racecheck", "initcheck", "synccheck"])
def test_sanitizer_steps(stand_ins, tool):
    write, there = stand_ins
    write("tools/compute-sanitizer", SANITIZER.replace("ERRORS", "0"))
    records = run_step(f"sanitizer-{tool}", there())
    assert {n: r.verdict for n, r in records.items()} == {"predict": "passed", "gpu_pool": "passed"}
    assert all(f"--tool {tool} " in record.command for record in records.values())
    write("tools/compute-sanitizer", SANITIZER.replace("ERRORS", "2"))
    assert {r.reason for r in run_step(f"sanitizer-{tool}", there()).values()} == {"2 errors"}


def test_one_gpu_is_not_several(stand_ins):
    write, there = stand_ins
    write("bundle/bin/dosemap", """print('{"cuda": {"devices": 1}}')""")
    with pytest.raises(ImpossibleError):
        steps.several_gpus(there())


# ---- What is there ------------------------------------------------------------------------------


def test_cudnn_of_pytorchs_packages(tmp_path, monkeypatch):
    monkeypatch.delenv("DOSEMAP_CUDNN_DIR", raising=False)
    site = tmp_path / "site-packages"
    for name in ("cudnn/lib/libcudnn_graph.so.9", "cu13/lib/libnvrtc.so.13"):
        (site / "nvidia" / name).parent.mkdir(parents=True)
        (site / "nvidia" / name).touch()
    python = tmp_path / "python"
    python.write_text(f"#!/bin/sh\necho '\"{site}\"'\n")
    python.chmod(0o755)
    folder = place.cudnn_folder(str(python))
    assert folder == site / "nvidia/cudnn/lib"
    assert place.compiler_folders(folder)[0] == site / "nvidia/cu13/lib"
    monkeypatch.setenv("DOSEMAP_CUDNN_DIR", "/elsewhere")
    assert place.cudnn_folder(str(python)) == Path("/elsewhere")


def test_results_of_something_else_are_refused(tmp_path):
    (tmp_path / "r.json").write_text("{}")
    with pytest.raises(SystemExit, match="no results"):
        record.Results(tmp_path / "r.json")
