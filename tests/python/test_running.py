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


def test_a_predictor_is_used_again(tiny, pet):
    """And given back when a prediction fails, or another set of options is wanted."""
    pool = tiny._pool
    tiny.predict(pet, overlap=0)
    first = pool._idle[1]
    tiny.predict(pet, overlap=0, activity_gbq=3, body_weight_kg=50)
    assert pool._idle[1] is first
    with pytest.raises(dosemap.CancelledError):
        tiny.predict(pet, overlap=0, progress=lambda *_: True)
    assert pool._idle is None
    tiny.predict(pet, overlap=0.5)
    assert pool._idle[1] is not first


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
