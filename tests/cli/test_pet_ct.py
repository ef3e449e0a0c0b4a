# SPDX-License-Identifier: Apache-2.0
"""dosemap predict PET --ct CT: what is computed, said, refused and resumed."""

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from conftest import SUV_78, assert_refused, dosemap
from pet_ct_model import write_pet_ct_model

CT_AFFINE = np.array([[0, 0, -1.6, 90], [0, 1.3, 0, -90], [-1.9, 0, 0, 20], [0, 0, 0, 1.0]])
CT_SHAPE = (80, 132, 120)  # x to the feet, y to the front, z to the left: around the PET
PLAIN = (*SUV_78, "--threads", "2", "--overlap", "0", "--precision", "float32")


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_pet_ct_model(tmp_path / "pet_ct.safetensors.zst")


def hu_at(shape: tuple[int, ...], affine: np.ndarray) -> np.ndarray:
    """HU that change linearly in space, so that resampling leaves them as they are."""
    index = np.moveaxis(np.indices(shape), 0, -1)
    x, y, z = np.moveaxis(index @ affine[:3, :3].T + affine[:3, 3], -1, 0)
    return -200 + 4.0 * x - 3.0 * y + 2.0 * z


def save_ct(path: Path, data: np.ndarray, affine: np.ndarray = CT_AFFINE) -> Path:
    nib.save(nib.Nifti1Image(data.astype(np.float32), affine), path)
    return path


@pytest.fixture
def ct(pet: Path) -> Path:
    return save_ct(pet.with_name("sub-1_ct.nii.gz"), hu_at(CT_SHAPE, CT_AFFINE))


def expected(pet_data: np.ndarray, hu: np.ndarray) -> np.ndarray:
    return 0.5 * pet_data + hu / 1000 + 1


def dose_of(path: Path) -> np.ndarray:
    return np.asanyarray(nib.load(path).dataobj)


def test_dose_and_sidecar(
    pet: Path, ct: Path, model: Path, pet_data: np.ndarray, affine: np.ndarray, out: Path
) -> None:
    result = dosemap("predict", pet, "--ct", ct, "--model", model, *PLAIN, "-o", out, "--json")
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""
    reference = expected(pet_data, hu_at(pet_data.shape, affine))
    np.testing.assert_allclose(dose_of(out), reference, atol=2e-5)

    sidecar = json.loads(out.with_name("out.json").read_text())
    facts = sidecar["CT"]
    assert facts["Units"] == "HU"
    assert facts["Size"] == list(CT_SHAPE)
    np.testing.assert_allclose(facts["VoxelMm"], [1.9, 1.3, 1.6], rtol=1e-6)
    assert facts["Lowest"] == pytest.approx(hu_at(CT_SHAPE, CT_AFFINE).min(), rel=1e-6)
    assert facts["Resampled"] is True
    assert facts["VoxelsCovered"] == facts["ActivityCovered"] == 1
    files = {file["Role"]: file for file in sidecar["SourceFiles"]}
    assert files["ct"]["Path"] == str(ct)
    assert len(files["ct"]["XXH64"]) == 16
    assert str(ct) in sidecar["Sources"]
    assert json.loads(result.stdout)["provenance"]["CT"] == facts


def test_sidecar_without_ct(pet: Path, tiny: Path, out: Path) -> None:
    result = dosemap("predict", pet, "--model", tiny, *PLAIN, "-o", out)
    assert result.returncode == 0, result.stderr
    sidecar = json.loads(out.with_name("out.json").read_text())
    assert sidecar["CT"] is None
    assert "OutputsNotComputed" not in sidecar["Model"]


def test_ct_on_the_grid_of_the_pet(
    pet: Path, model: Path, pet_data: np.ndarray, affine: np.ndarray, out: Path
) -> None:
    hu = np.random.default_rng(3).uniform(-1000, 1500, pet_data.shape).astype(np.float32)
    ct = save_ct(pet.with_name("same.nii"), hu, affine)
    result = dosemap("predict", pet, "--ct", ct, "--model", model, *PLAIN, "-o", out)
    assert result.returncode == 0, result.stderr
    np.testing.assert_allclose(dose_of(out), expected(pet_data, hu), atol=2e-6)
    assert json.loads(out.with_name("out.json").read_text())["CT"]["Resampled"] is False


def test_ct_of_a_part(
    pet: Path, model: Path, pet_data: np.ndarray, affine: np.ndarray, out: Path
) -> None:
    """Planes 0 to 9 of 20 are covered; the others see air, and the user is told."""
    ct = save_ct(pet.with_name("part.nii.gz"), np.resize([-1000.0, 500], (37, 33, 10)), affine)
    result = dosemap("predict", pet, "--ct", ct, "--model", model, *PLAIN, "-o", out)
    assert result.returncode == 0, result.stderr
    share = pet_data[:, :, :10].sum() / pet_data.sum()
    assert f"{100 * (1 - share):.3g} % of the PET's activity" in result.stderr
    assert str(ct) in result.stderr and result.stderr.count("\n") == 1
    np.testing.assert_allclose(
        dose_of(out)[:, :, 10:], expected(pet_data, np.float64(-1000))[:, :, 10:], atol=2e-6
    )
    facts = json.loads(out.with_name("out.json").read_text())["CT"]
    assert facts["VoxelsCovered"] == 0.5
    assert facts["ActivityCovered"] == pytest.approx(share, rel=1e-6)


def test_other_outputs(
    pet: Path, ct: Path, pet_data: np.ndarray, affine: np.ndarray, tmp_path: Path, out: Path
) -> None:
    model = write_pet_ct_model(tmp_path / "two.safetensors.zst", other_output=True)
    result = dosemap("predict", pet, "--ct", ct, "--model", model, *PLAIN, "-o", out)
    assert result.returncode == 0, result.stderr
    reference = expected(pet_data, hu_at(pet_data.shape, affine))
    np.testing.assert_allclose(dose_of(out), reference, atol=2e-5)
    facts = json.loads(out.with_name("out.json").read_text())["Model"]
    assert facts["OutputsNotComputed"] == ["certainty"]


# ---- Refused --------------------------------------------------------------------------------


def test_ct_missing_or_not_wanted(pet: Path, ct: Path, model: Path, tiny: Path, out: Path) -> None:
    without = dosemap("predict", pet, "--model", model, *PLAIN, "-o", out)
    assert_refused(without, out, str(model), "no CT is given", "--ct FILE")
    unwanted = dosemap("predict", pet, "--ct", ct, "--model", tiny, *PLAIN, "-o", out)
    assert_refused(unwanted, out, str(tiny), "takes a PET only", "leave --ct out")
    twice = dosemap("predict", pet, "--ct", ct, "--ct", ct, "--model", model, *PLAIN, "-o", out)
    assert twice.returncode == 2
    assert "1 PETs but --ct given 2 times" in twice.stderr


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda hu: hu + 1024, ("not in HU", "subtract it (1024 or 1000)", "--ct-is-hu")),
        (lambda hu: np.clip(0.0002 * (hu + 1000), 0, 1), ("not in HU", "attenuation in 1/cm")),
        (lambda hu: np.full_like(hu, -1000), ("-1000 to -1000", "give a CT in HU")),
        (lambda hu: np.where(hu > 100, np.nan, hu), ("of the CT is nan", "--nan-to-zero")),
    ],
)
def test_values(pet: Path, model: Path, out: Path, change, words: tuple[str, ...]) -> None:
    hu = np.clip(hu_at(CT_SHAPE, CT_AFFINE), -1000, 3000)
    ct = save_ct(pet.with_name("bad.nii.gz"), change(hu))
    command = ("predict", pet, "--ct", ct, "--model", model, *PLAIN, "-o", out)
    assert_refused(dosemap(*command), out, str(ct), *words)
    forced = dosemap(*command, words[-1] if words[-1].startswith("--") else "--ct-is-hu")
    assert forced.returncode == 0, forced.stderr


def test_grids(pet: Path, model: Path, out: Path) -> None:
    hu = hu_at(CT_SHAPE, CT_AFFINE)
    turned, away = CT_AFFINE.copy(), CT_AFFINE.copy()
    turned[0, 1] = 0.1
    away[2, 3] += 1000
    for affine, words in ((turned, ("turned or sheared", "resample_from_to")),
                          (away, ("no place in common", "this patient's CT"))):  # fmt: skip
        ct = save_ct(pet.with_name("grid.nii.gz"), hu, affine)
        result = dosemap("predict", pet, "--ct", ct, "--model", model, *PLAIN, "-o", out)
        assert_refused(result, out, str(ct), *words)


def test_files(pet: Path, ct: Path, model: Path, out: Path) -> None:
    command = ("predict", pet, "--model", model, *PLAIN)
    missing = pet.with_name("missing.nii.gz")
    assert_refused(dosemap(*command, "--ct", missing, "-o", out), out, str(missing))
    whole = ct.read_bytes()
    ct.write_bytes(whole[: len(whole) // 2])
    assert_refused(dosemap(*command, "--ct", ct, "-o", out), out, str(ct), "ends too early")
    ct.write_bytes(whole)
    over = dosemap(*command, "--ct", ct, "-o", ct)
    assert over.returncode == 1 and "would overwrite the CT" in over.stderr
    assert ct.read_bytes() == whole


# ---- Several PETs ---------------------------------------------------------------------------


@pytest.fixture
def patients(tmp_path: Path) -> list[tuple[Path, Path]]:
    """PETs and CTs of several sizes."""
    made = []
    for i in range(3):
        rng = np.random.default_rng(i)
        pet, ct = tmp_path / f"s{i}_pet.nii.gz", tmp_path / f"s{i}_ct.nii.gz"
        shape = (20 + 7 * i, 20, 17)
        data = rng.gamma(1.5, 2.0, shape).astype(np.float32)
        nib.save(nib.Nifti1Image(data, np.diag([4.0, 4, 4, 1])), pet)
        hu = rng.uniform(-1000, 1000, (60 + 20 * i, 50, 40))
        save_ct(ct, hu, np.diag([1.6, 1.7, 1.8, 1]))
        made.append((pet, ct))
    return made


def test_cohort(patients: list[tuple[Path, Path]], model: Path, tmp_path: Path) -> None:
    together = dosemap(
        "predict", *(pet for pet, _ in patients), "--model", model, *PLAIN, "--json",
        *(word for _, ct in patients for word in ("--ct", ct)), "--out-dir", tmp_path / "together",
    )  # fmt: skip
    assert together.returncode == 0, together.stderr
    reports = [json.loads(line) for line in together.stdout.splitlines()]
    for (pet, ct), report in zip(patients, reports, strict=True):
        alone = dosemap(
            "predict", pet, "--ct", ct, "--model", model, *PLAIN, "--out-dir", tmp_path / "alone",
            "--quiet",
        )  # fmt: skip
        assert alone.returncode == 0, alone.stderr
        name = pet.name.replace("_pet", "_dose")
        a, b = tmp_path / "together" / name, tmp_path / "alone" / name
        assert a.read_bytes() == b.read_bytes()
        # Counted besides: the next PET and its CT twice, as stored and on the PET's grid, and the
        # last dose map.
        one = json.loads((tmp_path / "alone" / name.replace(".nii.gz", ".json")).read_text())
        voxels, stored = (int(np.prod(nib.load(path).shape)) for path in (pet, ct))
        needed = report["provenance"]["Options"]["MemoryNeeded"] - one["Options"]["MemoryNeeded"]
        assert needed == (3 + stored // voxels + 1) * 4 * voxels


def test_resume(patients: list[tuple[Path, Path]], model: Path, tmp_path: Path) -> None:
    (pet, ct), other = patients[0], patients[1][1]
    folder = tmp_path / "out"
    command = ("predict", pet, "--model", model, *PLAIN, "--out-dir", folder, "--resume")
    assert dosemap(*command, "--ct", ct).returncode == 0
    before = (folder / "s0_dose.nii.gz").read_bytes()
    again = dosemap(*command, "--ct", ct)
    assert again.returncode == 0 and "is finished, skipped" in again.stderr
    changed = dosemap(*command, "--ct", other)
    assert changed.returncode == 0, changed.stderr
    assert "with another --ct: made again" in changed.stderr
    assert (folder / "s0_dose.nii.gz").read_bytes() != before


# ---- Benchmark ------------------------------------------------------------------------------


def test_bench(pet: Path, ct: Path, model: Path, tiny: Path) -> None:
    short = ("bench", "--runs", "1", "--warmup", "1", "--threads", "2", "--json", "-")
    made = dosemap(*short, "--model", model, "--size", "20")
    assert made.returncode == 0, made.stderr
    assert json.loads(made.stdout)["error"]["relative_l2"] < 1e-5
    given = dosemap(*short, "--model", model, pet, "--ct", ct, *SUV_78)
    assert given.returncode == 0, given.stderr
    assert json.loads(given.stdout)["error"]["relative_l2"] < 1e-5
    for arguments, words in (
        ((pet, "--model", model), ("no CT is given", "--ct")),
        ((pet, "--model", tiny, "--ct", ct), ("takes a PET only", "--ct")),
    ):
        refused = dosemap(*short, *arguments, *SUV_78)
        assert refused.returncode == 1
        assert all(word in refused.stderr for word in words)
    alone = dosemap(*short, "--model", model, "--ct", ct)
    assert alone.returncode == 2 and "belongs to a PET" in alone.stderr
