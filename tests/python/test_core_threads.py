# SPDX-License-Identifier: Apache-2.0
"""dosemap._core with signals, several threads, forks and an end in the middle."""

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
from dosemap import _core

ROWS = [4.0, 0, 0, 0, 0, 4, 0, 0, 0, 0, 4, 0]
ENOUGH = 60  # seconds in which anything here ends, with sanitizers on a busy machine


def suv_info():
    info = _core.PetInfo()
    info.units, info.body_weight_kg = "suv", 78.7
    return info


def image(shape, seed=1):
    data = np.random.default_rng(seed).gamma(1.5, 2.0, shape).astype(np.float32, order="F")
    return _core.Volume.view(data, ROWS)


def predictor(path, **options):
    return _core.Predictor(_core.Model.load(path), **{"device": "cpu", "threads": 2, **options})


def dose_bytes(ready, pet, **options):
    return np.asarray(ready.run(pet, suv_info(), **options).dose.data).tobytes()


@pytest.fixture
def small():
    return image((20, 12, 9))


@pytest.fixture(scope="module")
def endless(constructed_path):
    """A predictor and a PET for which it would take some minutes: a thousand windows."""
    return predictor(constructed_path, overlap=0.9), image((120, 120, 120), 2)


def after(seconds, action):
    timer = threading.Timer(seconds, action)
    timer.start()
    return timer


# ---- Interruption --------------------------------------------------------------------------------


def test_keyboard_interrupt_ends_a_prediction(endless, small, constructed_path):
    ready, pet = endless
    begin = time.monotonic()
    timer = after(0.5, lambda: os.kill(os.getpid(), signal.SIGINT))
    with pytest.raises(KeyboardInterrupt):
        ready.run(pet, suv_info())
    timer.join()
    took = time.monotonic() - begin
    assert took >= 0.5 and took < ENOUGH / 2
    fresh = predictor(constructed_path, overlap=0.9)
    assert dose_bytes(ready, small) == dose_bytes(fresh, small)


def test_handlers_run_meanwhile(endless):
    """A handler that raises nothing does not end the prediction; one that raises does."""
    ready, pet = endless
    seen = []

    def handler(number, frame):
        seen.append(threading.current_thread() is threading.main_thread())
        if len(seen) == 3:
            raise TimeoutError("enough")

    previous = signal.signal(signal.SIGALRM, handler)
    signal.setitimer(signal.ITIMER_REAL, 0.2, 0.2)
    try:
        with pytest.raises(TimeoutError, match="enough"):
            ready.run(pet, suv_info())
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)
    # One more may come before the last window is done.
    assert len(seen) >= 3 and all(seen)


def test_progress_in_the_calling_thread(tiny_path, small):
    told = []

    def callback(share, stage):
        told.append((share, stage, threading.get_ident()))

    predictor(tiny_path).run(small, suv_info(), progress=callback)
    shares = [share for share, _, _ in told]
    assert shares == sorted(shares) and shares[0] >= 0 and shares[-1] == 1
    assert all(isinstance(stage, str) and stage for _, stage, _ in told)
    assert {thread for _, _, thread in told} == {threading.get_ident()}


def test_callbacks_cancel(endless, small, tiny_path):
    """By raising anything, or by returning something true; also at the very end."""
    for ready, pet in (endless, (predictor(tiny_path), small)):
        expected = dose_bytes(ready, small)

        def raising(share, stage):
            raise LookupError(stage)

        begin = time.monotonic()
        with pytest.raises(LookupError):
            ready.run(pet, suv_info(), progress=raising)
        with pytest.raises(dosemap.CancelledError):
            ready.run(pet, suv_info(), progress=lambda share, stage: "yes")
        with pytest.raises(ValueError, match="ambiguous"):
            ready.run(pet, suv_info(), progress=lambda share, stage: np.zeros(2))
        with pytest.raises(TypeError):
            ready.run(pet, suv_info(), progress=lambda share: None)
        assert time.monotonic() - begin < ENOUGH
        assert dose_bytes(ready, small, progress=lambda share, stage: 0) == expected


def test_forward_is_cancelled_too(tiny_path):
    model = _core.Model.load(tiny_path)
    # The library reports after each 64 MiB of patches and results.
    patches = np.zeros((60000, 1, 8, 8, 8), np.float32)
    shares = []

    def raising(share, stage):
        shares.append(share)
        raise LookupError(stage)

    with pytest.raises(LookupError):
        model.forward([("pet", patches)], device="cpu", threads=2, progress=raising)
    assert len(shares) == 1 and 0 < shares[0] < 1


# ---- Threads -------------------------------------------------------------------------------------


def in_threads(n, action):
    """Results of action(0), ... action(n - 1), each in a thread of its own."""
    results, errors = [None] * n, []

    def run(i):
        try:
            results[i] = action(i)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(i,), daemon=True) for i in range(n)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(ENOUGH)
    assert not any(thread.is_alive() for thread in threads), "threads wait for each other"
    if errors:
        raise errors[0]
    return results


def test_others_work_during_a_prediction(endless):
    """Without the GIL: Python goes on in another thread."""
    ready, pet = endless
    counted, stop = [0], threading.Event()

    def count():
        while not stop.is_set():
            counted[0] += 1

    thread = threading.Thread(target=count)
    thread.start()
    timer = after(0.5, lambda: os.kill(os.getpid(), signal.SIGINT))
    with pytest.raises(KeyboardInterrupt):
        ready.run(pet, suv_info())
    stop.set()
    thread.join()
    timer.join()
    assert counted[0] > 1000


def test_predictors_of_their_own(tiny_path, small):
    expected = dose_bytes(predictor(tiny_path), small)
    made = in_threads(4, lambda i: [dose_bytes(predictor(tiny_path), small) for _ in range(5)])
    assert made == [[expected] * 5] * 4


def test_one_predictor_for_all(tiny_path, small):
    """They wait for their turn; progress comes in each one's thread."""
    ready = predictor(tiny_path)
    expected = dose_bytes(ready, small)

    def use(i):
        idents = set()

        def callback(share, stage):
            idents.add(threading.get_ident())

        doses = [dose_bytes(ready, small, progress=callback) for _ in range(5)]
        assert idents == {threading.get_ident()}
        return doses

    assert in_threads(4, use) == [[expected] * 5] * 4


def test_who_waits_can_be_interrupted(endless):
    ready, pet = endless
    stop = threading.Event()

    def occupy(i):
        with pytest.raises(dosemap.CancelledError):
            ready.run(pet, suv_info(), progress=lambda share, stage: stop.is_set())

    holder = threading.Thread(target=in_threads, args=(1, occupy))
    holder.start()
    time.sleep(0.3)
    timer = after(0.3, lambda: os.kill(os.getpid(), signal.SIGINT))
    with pytest.raises(KeyboardInterrupt):
        ready.run(pet, suv_info())
    timer.join()
    assert holder.is_alive()
    stop.set()
    holder.join(ENOUGH)
    assert not holder.is_alive()


def test_no_use_of_a_predictor_by_its_own_callback(tiny_path, small):
    ready = predictor(tiny_path)
    expected = dose_bytes(ready, small)

    def callback(share, stage):
        ready.run(small, suv_info())

    with pytest.raises(RuntimeError, match="in this thread"):
        ready.run(small, suv_info(), progress=callback)
    other = predictor(tiny_path)
    nested = []
    ready.run(small, suv_info(), progress=lambda s, n: nested.append(dose_bytes(other, small)))
    assert set(nested) == {expected}


# ---- Processes -----------------------------------------------------------------------------------


def child_status(action):
    """Fork; the child's exit status, 0 if `action` holds there."""
    child = os.fork()
    if child == 0:
        try:
            os._exit(0 if action() else 1)
        except BaseException as error:
            os.write(2, f"{error!r}\n".encode())
        finally:
            os._exit(2)
    end = time.monotonic() + ENOUGH
    while time.monotonic() < end:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.02)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return "the child hung"


def test_a_forked_child_predicts(tiny_path, constructed_path, small):
    for path in (tiny_path, constructed_path):
        ready = predictor(path)
        expected = dose_bytes(ready, small)
        assert child_status(lambda r=ready, e=expected: dose_bytes(r, small) == e) == 0
        assert child_status(lambda p=path, e=expected: dose_bytes(predictor(p), small) == e) == 0
        assert dose_bytes(ready, small) == expected


def refused(action, *words):
    try:
        action()
    except RuntimeError as error:
        return all(word in str(error) for word in words)
    return False


def test_a_fork_during_a_prediction(endless, tiny_path, small):
    """Of another thread: its predictor is lost to the child, others are not."""
    ready, pet = endless
    expected = dose_bytes(predictor(tiny_path), small)
    stop = threading.Event()

    def occupy(i):
        with pytest.raises(dosemap.CancelledError):
            ready.run(pet, suv_info(), progress=lambda share, stage: stop.is_set())

    holder = threading.Thread(target=in_threads, args=(1, occupy))
    holder.start()
    time.sleep(0.3)
    assert child_status(lambda: refused(lambda: ready.run(small, suv_info()), "forked")) == 0
    assert child_status(lambda: dose_bytes(predictor(tiny_path), small) == expected) == 0
    stop.set()
    holder.join(ENOUGH)
    assert not holder.is_alive() and len(dose_bytes(ready, small)) > 0


def test_a_fork_in_a_callback(endless, small):
    """The child that comes back from it has no prediction; the parent's goes on."""
    ready, pet = endless
    parent, children, status = os.getpid(), [], []

    def callback(share, stage):
        if not children:
            children.append(os.fork())
        elif os.getpid() == parent:
            ended, code = os.waitpid(children[0], os.WNOHANG)
            status.extend([code] if ended else [])
        return len(status) > 0

    try:
        ready.run(pet, suv_info(), progress=callback)
    except dosemap.CancelledError:
        assert os.getpid() == parent
    except RuntimeError as error:
        os._exit(7 if os.getpid() != parent and "another process" in str(error) else 1)
    finally:
        if os.getpid() != parent:
            os._exit(1)
    assert [os.waitstatus_to_exitcode(code) for code in status] == [7]
    assert len(dose_bytes(ready, small)) > 0


def predict_elsewhere(path):
    return dose_bytes(predictor(path), image((20, 12, 9)))


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_multiprocessing(method, tiny_path, small):
    expected = dose_bytes(predictor(tiny_path), small)
    with multiprocessing.get_context(method).Pool(2) as pool:
        assert pool.map_async(predict_elsewhere, 4 * [tiny_path]).get(ENOUGH) == 4 * [expected]


ENDING = """
import os, sys, threading, time
import numpy as np
from dosemap import _core

_core.report_leaks()
begun = threading.Event()
pet = np.ones((120, 120, 120), np.float32, order="F")
info = _core.PetInfo()
info.units, info.body_weight_kg = "suv", 70
model = _core.Model.load(sys.argv[1])

def predict(**options):
    volume = _core.Volume.view(pet, [4.0, 0, 0, 0, 0, 4, 0, 0, 0, 0, 4, 0])
    ready = _core.Predictor(model, device="cpu", threads=2, overlap=0.9)
    begun.set()
    ready.run(volume, info, **options)

def told(share, stage):
    sum(range(10000))

"""


def run_to_the_end(path, script):
    command = [sys.executable, "-c", ENDING + textwrap.dedent(script), str(path)]
    return subprocess.run(command, capture_output=True, text=True, timeout=2 * ENOUGH)


@pytest.mark.parametrize("options", ["", "progress=told"])
def test_an_end_during_a_prediction(constructed_path, options):
    """Of a daemon thread: it is stopped, and the interpreter ends well."""
    script = f"""
    threading.Thread(target=lambda: predict({options}), daemon=True).start()
    begun.wait()
    time.sleep(0.3)
    print("ending")
    """
    for _ in range(3):
        result = run_to_the_end(constructed_path, script)
        assert (result.returncode, result.stdout) == (0, "ending\n"), result.stderr
        # The thread's objects are there still.
        errors = [line for line in result.stderr.splitlines() if "nanobind" not in line]
        assert [line for line in errors if not line.startswith(" ")] == [], result.stderr


def test_an_end_while_a_file_is_written(constructed_path, tmp_path):
    """Of a daemon thread: the process waits for the file, which nothing can cancel."""
    out = tmp_path / "out.nii.gz"
    result = run_to_the_end(
        constructed_path,
        f"""
        noise = np.random.default_rng(0).random((256, 256, 256), np.float32).T
        volume = _core.Volume.view(noise, [4.0, 0, 0, 0, 0, 4, 0, 0, 0, 0, 4, 0])
        writing = threading.Thread(target=volume.write, args=({str(out)!r}, 1), daemon=True)
        writing.start()
        while not os.listdir({str(tmp_path)!r}):
            time.sleep(0.001)
        print("ending")
        """,
    )
    assert (result.returncode, result.stdout) == (0, "ending\n"), result.stderr
    assert os.listdir(tmp_path) == ["out.nii.gz"]
    assert _core.Volume.read(out).dim == (256, 256, 256)


def test_the_end_of_a_forked_child(constructed_path):
    """It does not wait for what runs in its parent."""
    result = run_to_the_end(
        constructed_path,
        """
        thread = threading.Thread(target=predict, daemon=True)
        thread.start()
        begun.wait()
        time.sleep(0.3)
        child = os.fork()
        if child == 0:
            sys.exit(5)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), thread.is_alive())
        """,
    )
    assert (result.returncode, result.stdout) == (0, "5 True\n"), result.stderr


def test_an_interrupted_program(constructed_path):
    """Ctrl-C in a terminal: a traceback, and the exit status of a signal."""
    script = """
    print("begun", flush=True)
    predict(progress=lambda share, stage: print(stage, flush=True))
    """
    command = [sys.executable, "-c", ENDING + textwrap.dedent(script), str(constructed_path)]
    with subprocess.Popen(command, stdout=-1, stderr=-1, text=True) as process:
        while process.stdout.readline().strip() in ("begun", ""):
            pass
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=ENOUGH)
    assert process.returncode == -signal.SIGINT
    assert errors.rstrip().endswith("KeyboardInterrupt"), errors
