# SPDX-License-Identifier: Apache-2.0
"""Models under many threads and processes, signals, and objects that go in any order.

What a single predictor of the core does in such cases is in test_core_threads.py.
"""

import concurrent.futures
import contextlib
import gc
import itertools
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time

import dosemap
import numpy as np
import pytest

SUV = {"units": "suv", "body_weight_kg": 78.7}
OPTIONS = [
    {"threads": 1},
    {"threads": 2},
    {"threads": 1, "activity_gbq": 7.4},
    {"threads": 1, "tile": 16, "overlap": 0.25},
    {"threads": 1, "tile": "whole"},
    {"threads": 1, "blend": "constant"},
    {"threads": 1, "overlap": 0.7, "skip_air": 2.0},
    {"threads": 1, "labels": "ids", "vx": [1.0]},
]
ENOUGH = 120  # seconds in which anything here ends, with sanitizers on a busy machine
# A prediction that would take minutes is given up within this time; a quiet machine needs a tenth.
SOON = 30 if "DOSEMAP_SANITIZED" in os.environ else 5


@pytest.fixture
def model(tiny_path):
    return dosemap.load_model(tiny_path)


def predict(model, pet, affine, ids, options):
    """The dose map's bytes, and what the structures received."""
    labels = {"labels": ids} if "labels" in options else {}
    result = model.predict(pet, affine=affine, **SUV | options | labels)
    return result.dose.tobytes(), result.dvh and result.dvh.records()


@pytest.fixture
def expected(tiny_path, pet_data, affine, ids):
    """Of each of OPTIONS, predicted by a model of its own."""
    return [
        predict(dosemap.load_model(tiny_path), pet_data, affine, ids, options)
        for options in OPTIONS
    ]


# ---- Threads -------------------------------------------------------------------------------------


@pytest.mark.parametrize("threads", [2, 8])
@pytest.mark.parametrize("models", [1, 3])
def test_threads(threads, models, tiny_path, pet_data, affine, ids, expected):
    """Each thread with other options than its neighbours, which change from call to call."""
    shared = [dosemap.load_model(tiny_path) for _ in range(models)]
    begin = threading.Barrier(threads)

    def work(thread):
        begin.wait(ENOUGH)
        for call in range(2 * len(OPTIONS)):
            which = (thread + call) % len(OPTIONS)
            made = predict(shared[thread % models], pet_data, affine, ids, OPTIONS[which])
            assert made == expected[which], OPTIONS[which]
        return True

    with concurrent.futures.ThreadPoolExecutor(threads) as pool:
        assert all(pool.map(work, range(threads), timeout=ENOUGH))


def test_the_model_goes_while_it_predicts(tiny_path, pet_data, affine):
    """Who predicts holds on to it, and to the image."""
    model, pet = dosemap.load_model(tiny_path), pet_data.copy(order="F")
    expected = model.predict(pet, affine=affine, **SUV).dose.tobytes()
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        made = [pool.submit(model.predict, pet, affine=affine, **SUV) for _ in range(8)]
        del model, pet
        gc.collect()
        assert [each.result(ENOUGH).dose.tobytes() for each in made] == 8 * [expected]


# ---- Processes -----------------------------------------------------------------------------------


def elsewhere(model, pet, affine, options):
    return predict(model, pet, affine, None, options)[0]


@pytest.mark.parametrize("method", ["fork", "forkserver", "spawn"])
def test_process_pools(method, model, pet_data, affine, expected):
    """Models travel by the path of their file."""
    context = multiprocessing.get_context(method)
    with concurrent.futures.ProcessPoolExecutor(2, mp_context=context) as pool:
        made = [
            pool.submit(elsewhere, model, pet_data, affine, options) for options in OPTIONS[:4] * 2
        ]
        results = [each.result(ENOUGH) for each in made]
    assert results == [dose for dose, _ in expected[:4]] * 2


def test_forks_while_threads_predict(model, pet_data, affine, ids, expected):
    """A child uses the very model that threads of its parent are predicting with."""
    stop = threading.Event()

    def work():
        while not stop.is_set():
            predict(model, pet_data, affine, ids, OPTIONS[1])

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    context, statuses = multiprocessing.get_context("fork"), []
    for which in range(5):
        child = context.Process(
            target=lambda w: os._exit(
                0 if predict(model, pet_data, affine, ids, OPTIONS[w]) == expected[w] else 1
            ),
            args=(which,),
        )
        child.start()
        child.join(ENOUGH)
        statuses.append(child.exitcode)
        if child.is_alive():
            child.kill()
    stop.set()
    for thread in threads:
        thread.join(ENOUGH)
    assert statuses == 5 * [0]


# ---- Signals -------------------------------------------------------------------------------------

SCRIPT = """
import json, os, sys, threading, time
import dosemap
import numpy as np

def threads():
    return len(os.listdir("/proc/self/task"))

others = threads()  # numpy's
model = dosemap.load_model(sys.argv[1])
large, small = (np.ones((n, n, n), np.float32, order="F") for n in (150, 12))
common = {"affine": np.diag([4.0, 4, 4, 1]), "units": "suv", "body_weight_kg": 78.7, "threads": 2}

def told(share, stage, said=[]):
    if not said:
        said.append(print("begun", flush=True))

def predict(pet, **options):
    return model.predict(pet, **common, **options)

"""


def signalled(path, script, number):
    """Run a script, send the signal once it predicts: status, output, errors, seconds till then."""
    command = [sys.executable, "-c", SCRIPT + textwrap.dedent(script), str(path)]
    with subprocess.Popen(command, stdout=-1, stderr=-1, text=True) as process:
        assert process.stdout.readline() == "begun\n", process.stderr.read()
        time.sleep(0.2)
        begin = time.monotonic()
        process.send_signal(number)
        output, errors = process.communicate(timeout=ENOUGH)
    return process.returncode, output, errors, time.monotonic() - begin


def test_interrupted_and_used_again(constructed_path):
    """As in a notebook, where the kernel goes on."""
    script = """
    try:
        predict(large, overlap=0.9, progress=told)
    except KeyboardInterrupt:
        again = [float(predict(small).dose.mean()) for _ in range(2)]
        end = time.monotonic() + 10  # OpenMP's threads end a moment after the one they belong to
        while threads() > others and time.monotonic() < end:
            time.sleep(0.05)
        print(json.dumps({"again": again, "more": threads() - others}))
    """
    code, output, errors, took = signalled(constructed_path, script, signal.SIGINT)
    assert code == 0, errors
    found = json.loads(output)
    assert found["again"][0] == found["again"][1] > 0 and found["more"] == 0
    assert took < 2 * SOON


@pytest.mark.parametrize("options", ["progress=told", "overlap=0.9, progress=told"])
def test_interrupted_without_care(constructed_path, options):
    """A script that is not written for it ends as any other."""
    code, _, errors, took = signalled(constructed_path, f"predict(large, {options})", signal.SIGINT)
    assert code == -signal.SIGINT and errors.rstrip().endswith("KeyboardInterrupt")
    assert took < SOON


def test_cancelled_within_a_window(constructed_path):
    """Which is the whole volume here: who cancels does not wait until all of it is done."""
    model = dosemap.load_model(constructed_path)
    edge = 64 if "DOSEMAP_SANITIZED" in os.environ else 128
    pet = np.ones((edge, edge, edge), np.float32, order="F")
    common = {"affine": np.diag([4.0, 4, 4, 1]), "tile": "whole", "threads": 2, **SUV}

    def seconds(*error, **options):
        begin = time.monotonic()
        with pytest.raises(*error) if error else contextlib.nullcontext():
            model.predict(pet, **common, **options)
        return time.monotonic() - begin

    whole = min(seconds() for _ in range(2))
    cancelled = min(
        seconds(dosemap.CancelledError, progress=lambda share, stage: True) for _ in range(3)
    )
    assert cancelled < whole / 2


def test_interrupted_while_a_thread_predicts(constructed_path):
    """Signals reach the main thread, which tells the other one by its callback."""
    script = """
    from concurrent.futures import ThreadPoolExecutor
    stop = threading.Event()
    with ThreadPoolExecutor(1) as pool:
        made = pool.submit(
            predict, large, overlap=0.9, progress=lambda s, n: told(s, n) or stop.is_set()
        )
        try:
            made.result()
        except KeyboardInterrupt:
            stop.set()
        print(type(made.exception()).__name__, predict(small).unit)
    """
    code, output, errors, took = signalled(constructed_path, script, signal.SIGINT)
    assert (code, output) == (0, "CancelledError Gy/GBq\n"), errors
    assert took < 2 * SOON


def test_terminated(constructed_path):
    """SIGTERM ends the process at once; with a handler of the program's own, by that."""
    script = "predict(large, overlap=0.9, progress=told)"
    code, _, _, took = signalled(constructed_path, script, signal.SIGTERM)
    assert code == -signal.SIGTERM and took < SOON
    handler = "import signal; signal.signal(signal.SIGTERM, lambda *_: sys.exit(3))\n"
    code, _, errors, took = signalled(constructed_path, handler + script, signal.SIGTERM)
    assert code == 3 and took < SOON, errors


# ---- Objects -------------------------------------------------------------------------------------


def test_objects_go_in_any_order(tiny_path, pet_data, affine, ids):
    """What is left shows the same voxels, whatever else is gone."""
    kinds = ("model", "result", "dose", "histogram", "volume")
    for order in itertools.permutations(kinds):
        there = {"model": dosemap.load_model(tiny_path)}
        there["result"] = there["model"].predict(pet_data, affine=affine, labels=ids, **SUV)
        there["dose"], there["volume"] = there["result"].dose, there["result"].pet
        there["histogram"] = there["result"].dvh[0].histogram
        voxels = there["dose"].tobytes()
        for name in order:
            del there[name]
            if "dose" in there:
                assert there["dose"].tobytes() == voxels
            if "result" in there:
                assert there["result"].dose.tobytes() == voxels and there["result"].dvh[0].mean > 0
            if "histogram" in there:
                assert there["histogram"].sum() == (ids == 1).sum()
            if "volume" in there:
                assert np.array_equal(there["volume"].data, pet_data)
