# SPDX-License-Identifier: Apache-2.0
"""Progress, cancelling, threads, forks, and predictors that are used again."""

import math
import os
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

nib = pytest.importorskip("nibabel", reason="nibabel is missing: no images of it are made")

import dosemap

SUV = {"units": "suv", "body_weight_kg": 78.7}


@pytest.fixture
def tiny(tiny_path):
    return dosemap.load_model(tiny_path)


def test_progress(tiny, pet, capsys):
    seen = []
    here = threading.get_ident()
    p = tiny.predict(
        pet, progress=lambda share, stage: seen.append((share, stage, threading.get_ident()))
    )
    shares = [share for share, _, _ in seen]
    assert shares == sorted(shares) and shares[-1] == 1 and {t for _, _, t in seen} == {here}
    assert p.dose.tobytes() == tiny.predict(pet, progress=False).dose.tobytes()
    pytest.importorskip("tqdm")
    tiny.predict(pet, progress=True)
    assert "100%" in capsys.readouterr().err
    for wrong in ("yes", 1, [print]):
        with pytest.raises(TypeError, match="progress wants"):
            tiny.predict(pet, progress=wrong)


def test_cancelled(tiny, pet):
    with pytest.raises(dosemap.CancelledError):
        tiny.predict(pet, progress=lambda share, stage: True)

    def fails(share, stage):
        raise LookupError(stage)

    with pytest.raises(LookupError):
        tiny.predict(pet, progress=fails)
    assert math.isfinite(tiny.predict(pet).dose.sum())  # and the model still works


def test_threads_with_mixed_options(tiny, pet, pet_data, affine, labels):
    """Eight at a time share one model: each gets the bytes that it gets alone."""
    jobs = [
        {"overlap": 0}, {"overlap": 0.5}, {"tile": 16}, {"activity_gbq": 7.4, "overlap": 0},
        {"labels": labels}, {"blend": "constant"}, {"threads": 2}, {"tile": "whole"},
    ]  # fmt: skip
    alone = [tiny.predict(pet, **job).dose.tobytes() for job in jobs]

    def predict(index):
        job = jobs[index % len(jobs)]
        image = pet if index % 3 else nib.Nifti1Image(pet_data, affine)
        known = {} if index % 3 else SUV
        return tiny.predict(image, **job, **known).dose.tobytes()

    with ThreadPoolExecutor(8) as pool:
        for index, dose in enumerate(pool.map(predict, range(48))):
            assert dose == alone[index % len(jobs)], index


@pytest.fixture
def made(monkeypatch):
    """Counts predictors that are made."""
    made = []
    make = dosemap._core.Predictor

    def counted(*args, **options):
        made.append(options)
        return make(*args, **options)

    monkeypatch.setattr(dosemap._core, "Predictor", counted)
    return made


def test_a_predictor_is_used_again(tiny, pet, made):
    """By the next PET with these options, whatever its activity; one that failed is not."""
    for keywords in ({}, {"activity_gbq": 3}, {"body_weight_kg": 50}):
        tiny.predict(pet, overlap=0, **keywords)
    assert len(made) == 1
    with pytest.raises(dosemap.CancelledError):
        tiny.predict(pet, overlap=0, progress=lambda *_: True)
    assert tiny._pool._idle == [] and tiny._pool._in_use == 0
    tiny.predict(pet, overlap=0)
    assert len(made) == 2


def test_a_traceback_keeps_no_predictor(tiny):
    """As of the exception that a notebook keeps."""
    loans = []
    with pytest.raises(dosemap.CancelledError) as caught, tiny._predictor(device="cpu") as loan:
        loans.append(loan)
        assert loan.core is not None
        raise dosemap.CancelledError("by hand")
    assert loans[0].core is None and caught.tb is not None and tiny._pool._idle == []


def test_one_thread_keeps_one_predictor(tiny, pet, made):
    for n in range(1, 4):
        tiny.predict(pet, overlap=0)
        tiny.predict(pet, overlap=0.5)
        assert len(made) == 2 * n and len(tiny._pool._idle) == 1


def test_as_many_predictors_are_kept_as_were_in_use(tiny, made):
    """Two at once, as with a GPU each: neither makes room for the other."""
    together = threading.Barrier(2, timeout=60)

    def hold(tile):
        options = {"device": "cpu", "tile": (tile,) * 3}
        with tiny._predictor(**options):
            together.wait()  # both are in use
        for _ in range(5):
            with tiny._predictor(**options):
                pass

    threads = [threading.Thread(target=hold, args=(tile,)) for tile in (8, 16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 2 and len(tiny._pool._idle) == 2
    with tiny._predictor(device="cpu", tile=(24,) * 3):
        pass
    tiles = [dict(key)["tile"][0] for key, _ in tiny._pool._idle]
    assert len(tiles) == 2 and tiles[-1] == 24  # the one that was used longest ago went


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_after_a_fork(tiny, pet):
    """A child predicts with a model of its parent's, which was in use, and so was its lock."""
    expected = tiny.predict(pet).dose.tobytes()
    with tiny._pool._lock:
        child = os.fork()
        if child == 0:
            same = tiny.predict(pet, threads=2).dose.tobytes() == expected
            os._exit(0 if same else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
