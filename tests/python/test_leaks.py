# SPDX-License-Identifier: Apache-2.0
"""Nothing stays behind of a thousand calls, whether they succeed, fail or are stopped.

Each case runs in a process of its own: a hundred calls to fill caches, then the calls that count.
What malloc has handed out and how many blocks Python's own allocator holds are exact; the resident
memory is what a user sees. By hand: python test_leaks.py CASE WEIGHTS FOLDER CALLS.
"""

import ctypes
import gc
import json
import os
import pickle
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

SANITIZED = "DOSEMAP_SANITIZED" in os.environ
CALLS = int(os.environ.get("DOSEMAP_TEST_LEAK_CALLS", "300" if SANITIZED else "1000"))
WARM_UP = 100
SHAPE = (24, 23, 22)  # 48,576 bytes of dose
# Far below one dose map or one small object for each call.
HEAP_LIMIT = 40 * CALLS
BLOCKS_LIMIT = 19 * CALLS // 20  # Python 3.10 fills caches after 1,024 calls of a function
RESIDENT_LIMIT = 8 << 20
SUV = {"units": "suv", "body_weight_kg": 78.7, "threads": 1}
CASES = {}


def case(function):
    """A function that makes one of: what is called again and again."""
    CASES[function.__name__] = function
    return function


# ---- What is called ------------------------------------------------------------------------------


class Given:
    """Inputs of the cases."""

    def __init__(self, model_path, folder):
        import dosemap
        import numpy as np

        self.np, self.path, self.folder = np, model_path, Path(folder)
        self.model = dosemap.load_model(model_path)
        self.affine = np.diag([4.0, 4.0, 4.0, 1.0])
        self.pet = np.random.default_rng(1).gamma(1.5, 2.0, SHAPE).astype("f4", order="F")
        self.ids = (self.pet > 3).astype(np.int32) + (self.pet > 6)

    def predict(self, **keywords):
        return self.model.predict(self.pet, affine=self.affine, **SUV | keywords)


@case
def predictions(given):
    def call():
        result = given.predict(labels=given.ids, vx=[1, 2], activity_gbq=7.4)
        assert result.dose.shape == SHAPE and result.dvh[0].mean > 0 and result.provenance
        return result.dose.max(), result.dvh[0].curve(), repr(result)

    return call


@case
def predictions_in_two_threads(given):
    return lambda: given.predict(threads=2)


@case
def predictions_of_copies(given):
    pet = given.np.asarray(given.pet[::-1], ">f8", order="C")
    masks = {"a": given.pet > 3, "b": given.pet > 2}
    return lambda: given.model.predict(pet, affine=given.affine, labels=masks, **SUV)


@case
def options_that_change(given):
    tiles = iter(range(1 << 30))
    return lambda: given.predict(tile=8 + next(tiles) % 2)


@case
def failures(given):
    np, affine = given.np, given.affine
    pet = given.pet.copy()
    pet[3, 4, 5] = np.nan
    bad = [
        (pet, {}),
        (pet[0], {}),
        (given.pet > 1, {}),
        (given.pet + 1j, {}),
        (given.pet, {"affine": np.zeros((4, 4))}),
        (given.pet, {"units": "cups"}),
        (given.pet, {"body_weight_kg": None}),
        (given.pet, {"labels": given.ids[1:]}),
        (given.pet, {"labels": {}}),
        (given.pet, {"tile": 0}),
        (given.pet, {"memory": 1000}),
        ("nowhere.nii", {"affine": None}),
    ]
    turn = iter(range(1 << 30))

    def call():
        array, keywords = bad[next(turn) % len(bad)]
        try:
            given.model.predict(array, **{"affine": affine} | SUV | keywords)
        except (TypeError, ValueError, MemoryError, OSError):
            return
        raise AssertionError(f"this was taken: {keywords}")

    return call


class StoppedError(Exception):
    """Of a callback."""


@case
def callbacks_that_raise(given):
    def call():
        def stop(share, stage):
            raise StoppedError(given, call)

        try:
            given.predict(progress=stop)
        except StoppedError:
            return
        raise AssertionError("the callback's exception is lost")

    return call


@case
def callbacks_that_cancel(given):
    import dosemap

    def call():
        try:
            given.predict(progress=lambda share, stage: True)
        except dosemap.CancelledError:
            return
        raise AssertionError("it was not cancelled")

    return call


@case
def interruptions(given):
    """At any moment of loading, making ready and predicting."""
    import dosemap

    def interrupt(number, frame):
        raise StoppedError

    signal.signal(signal.SIGALRM, interrupt)
    moments = random.Random(1)

    def call():
        try:
            signal.setitimer(signal.ITIMER_REAL, moments.uniform(1e-4, 0.01))
            model = dosemap.load_model(given.path)
            model.predict(given.pet, affine=given.affine, labels=given.ids, **SUV)
            time.sleep(0.02)
        except StoppedError:
            pass

    return call


@case
def dvhs(given):
    import dosemap

    def call():
        dvh = dosemap.dvh(given.pet, given.ids, affine=given.affine, unit="Gy", vx=[1], threads=1)
        return dvh.records(), dvh["label_1"].histogram.sum()

    return call


@case
def files(given):
    import dosemap

    path = given.folder / "dose.nii.gz"

    def call():
        given.predict(labels=given.ids).save(path)
        return dosemap.read(path).data.max(), dosemap.read(path).affine

    return call


@case
def models(given):
    import dosemap

    def call():
        model = pickle.loads(pickle.dumps(dosemap.load_model(given.path)))
        assert model.card and model.graph and dosemap.inspect(model) and model.compare(given.model)
        model.predict(given.pet, affine=given.affine, **SUV)

    return call


@case
def networks_alone(given):
    patches = given.np.zeros((2, 1, 8, 8, 8), "f4")
    return lambda: given.model.forward(patches, threads=1)


@case
def rings(given):
    """Results that hold themselves are found by the garbage collector."""

    def call():
        ring = {"result": given.predict()}
        ring["ring"], ring["view"] = ring, ring["result"].dose

    return call


@case
def inferers(given):
    import torch
    from dosemap.monai import DosemapInferer

    inputs = torch.from_numpy(given.pet.copy())[None, None]
    inferer = DosemapInferer((8, 8, 8), model=given.model, threads=1)
    return lambda: inferer(inputs, None)


@case
def planted(given):
    """One reference too many to each dose map."""

    def call():
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(given.predict().dose))

    return call


# ---- What stays ----------------------------------------------------------------------------------


def heap_bytes():
    """What malloc, or the address sanitizer's, has handed out."""
    process = ctypes.CDLL(None)
    if hasattr(process, "__sanitizer_get_current_allocated_bytes"):
        process.__sanitizer_get_current_allocated_bytes.restype = ctypes.c_size_t
        return process.__sanitizer_get_current_allocated_bytes()

    class Mallinfo2(ctypes.Structure):
        names = "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost"
        _fields_ = [(name, ctypes.c_size_t) for name in names.split()]

    process.mallinfo2.restype = Mallinfo2
    info = process.mallinfo2()
    return info.uordblks + info.hblkhd


def threads_left():
    """Threads of this process, once those of OpenMP have ended, a moment after their calls."""
    seen, count = 0, -1
    while count != seen:
        count = seen
        time.sleep(0.2)
        seen = len(os.listdir("/proc/self/task"))
    return seen


def state():
    for _ in range(3):
        gc.collect()
    resident = int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return {
        "heap": heap_bytes(),
        "blocks": sys.getallocatedblocks(),
        "resident": resident,
        "threads": threads_left(),
        "files": len(os.listdir("/proc/self/fd")),
    }


def main(name, model_path, folder, calls):
    call = CASES[name](Given(model_path, folder))
    for _ in range(WARM_UP):
        call()
    before = state()
    for _ in range(calls):
        call()
    after = state()
    print(json.dumps({key: after[key] - before[key] for key in before}))


def growth(name, tiny_path, folder, calls=CALLS):
    command = [sys.executable, __file__, name, str(tiny_path), str(folder), str(calls)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=900, check=False)
    assert result.returncode == 0, result.stderr[-4000:]
    return json.loads(result.stdout.splitlines()[-1])


@pytest.mark.parametrize("name", [name for name in CASES if name != "planted"])
def test_nothing_stays(name, tiny_path, tmp_path):
    if name == "inferers":
        pytest.importorskip("monai", reason="MONAI is missing: its inferer is not called")
    stays = growth(name, tiny_path, tmp_path)
    print(name, CALLS, stays)
    assert stays["heap"] < HEAP_LIMIT, stays
    assert stays["blocks"] < BLOCKS_LIMIT, stays
    assert SANITIZED or stays["resident"] < RESIDENT_LIMIT, stays
    assert stays["threads"] == stays["files"] == 0, stays


def test_a_leak_is_noticed(tiny_path, tmp_path):
    """Of the limits above, each notices that one dose map stays."""
    stays = growth("planted", tiny_path, tmp_path)
    assert stays["heap"] > HEAP_LIMIT and stays["blocks"] > BLOCKS_LIMIT
    assert SANITIZED or stays["resident"] > RESIDENT_LIMIT


if __name__ == "__main__":
    main(*sys.argv[1:4], int(sys.argv[4]))
