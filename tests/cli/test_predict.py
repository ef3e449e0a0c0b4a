# SPDX-License-Identifier: Apache-2.0
"""dosemap predict on small volumes: results, files, sidecar, repeatability."""

import json
import os
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from conftest import K_GY_PER_GBQ, MODEL, QUICK, SUV_78, dosemap


def expected(pet_data: np.ndarray) -> np.ndarray:
    return np.maximum(0, K_GY_PER_GBQ * pet_data.astype(np.float64))


def assert_dose(path: Path, reference: np.ndarray, affine: np.ndarray) -> None:
    image = nib.load(path)
    dose = np.asanyarray(image.dataobj)
    assert dose.dtype == np.float32
    np.testing.assert_allclose(image.affine, affine, atol=1e-5)
    np.testing.assert_allclose(dose, reference, rtol=1e-4, atol=1e-6 * reference.max())


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz", ".nii.zst"])
def test_dose_map(
    pet: Path, pet_data: np.ndarray, affine: np.ndarray, tmp_path: Path, suffix: str
) -> None:
    out = tmp_path / f"out{suffix}"
    result = dosemap("predict", pet, *SUV_78, "--overlap", "0.5", "-o", out)
    assert result.returncode == 0, result.stderr
    assert str(out) in result.stdout
    if suffix == ".nii.zst":
        import zstandard

        plain = tmp_path / "plain.nii"
        with open(out, "rb") as f:
            plain.write_bytes(zstandard.ZstdDecompressor().stream_reader(f).read())
        out = plain
    assert_dose(out, expected(pet_data), affine)


def test_activity_scales_and_names_the_unit(
    pet: Path, pet_data: np.ndarray, tmp_path: Path
) -> None:
    per_gbq, gy = tmp_path / "a.nii.gz", tmp_path / "b.nii.gz"
    dosemap("predict", pet, *SUV_78, *QUICK, "-o", per_gbq)
    dosemap("predict", pet, *SUV_78, *QUICK, "-o", gy, "--activity", "7.4")
    np.testing.assert_allclose(
        nib.load(gy).get_fdata(), 7.4 * nib.load(per_gbq).get_fdata(), rtol=1e-6
    )
    assert json.loads((tmp_path / "a.json").read_text())["Units"] == "Gy/GBq"
    assert json.loads((tmp_path / "b.json").read_text())["Units"] == "Gy"


def test_body_weight_turns_suv_into_uptake(
    pet: Path, pet_data: np.ndarray, affine: np.ndarray, tmp_path: Path
) -> None:
    out = tmp_path / "out.nii.gz"
    dosemap("predict", pet, "--units", "suv", "--body-weight", "50", *QUICK, "-o", out)
    assert_dose(out, expected(pet_data) * 78.7 / 50, affine)


def test_sidecar_and_tables(pet: Path, labels: Path, pet_data: np.ndarray, tmp_path: Path) -> None:
    out = tmp_path / "out.nii.gz"
    names = tmp_path / "names.json"
    names.write_text('{"1": "liver", "3": "kidney"}')
    result = dosemap(
        "predict", pet, *SUV_78, *QUICK, "-o", out, "--activity", "7.4", "--vx", "0.5,1",
        "--labels", labels, "--label-names", names, "--json",
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    report = json.loads(result.stdout)
    sidecar = json.loads((tmp_path / "out.json").read_text())
    assert sidecar["schema_version"] == 1
    assert (tmp_path / "out.json").read_text().endswith("}\n")
    text = json.dumps(sidecar)
    for word in ("sub-1_pet.nii.gz", "sub-1_dseg.nii.gz", "out.nii.gz", "float32", "gaussian"):
        assert word in text
    rows = [line.split("\t") for line in (tmp_path / "out_organs.tsv").read_text().splitlines()]
    header, liver = rows[0], rows[1]
    assert liver[header.index("name")] == "liver"
    dose = 7.4 * expected(pet_data)[5:20, 5:20, 5:15]
    assert float(liver[header.index("mean_gy")]) == pytest.approx(dose.mean(), rel=1e-4)
    assert float(liver[header.index("volume_cm3")]) == pytest.approx(15 * 15 * 10 * 0.08)
    assert report["structures"][0]["name"] == "liver"
    assert result.stdout.count("\n") == 1
    assert '"TherapyActivityGBq": 7.4,' in result.stdout  # not 7.4000000000000004
    written = {key: sidecar[key] for key in report["provenance"]}
    written["Seconds"] = {k: v for k, v in written["Seconds"].items() if k != "Write"}
    assert report["provenance"] == written
    assert (tmp_path / "out_dvh.tsv").exists()


def test_same_bytes_for_any_threads_and_batch(pet: Path, tmp_path: Path) -> None:
    reference = None
    for i, extra in enumerate(
        [("--threads", 1), ("--threads", 2), ("--threads", 3, "--batch", 2), ("--batch", 5), ()]
    ):
        out = tmp_path / f"{i}.nii.gz"
        result = dosemap("predict", pet, *SUV_78, "--overlap", "0.5", *extra, "-o", out)
        assert result.returncode == 0, result.stderr
        reference = reference or out.read_bytes()
        assert out.read_bytes() == reference, extra


def test_cohort_with_one_bad_patient(pet: Path, tmp_path: Path) -> None:
    bad = pet.with_name("sub-2_pet.nii.gz")
    bad.write_bytes(pet.read_bytes()[:1000])
    third = pet.with_name("sub-3_pet.nii.gz")
    third.write_bytes(pet.read_bytes())
    out = tmp_path / "out"
    out.mkdir()
    result = dosemap("predict", pet, bad, third, *SUV_78, *QUICK, "--out-dir", out)
    assert result.returncode == 1
    assert "sub-2_pet.nii.gz" in result.stderr
    assert sorted(p.name for p in out.iterdir()) == [
        "sub-1_dose.json", "sub-1_dose.nii.gz", "sub-3_dose.json", "sub-3_dose.nii.gz"
    ]  # fmt: skip


def test_json_of_a_path_that_is_not_utf8(pet: Path, labels: Path, tmp_path: Path) -> None:
    folder = tmp_path / os.fsdecode(b"\xff")
    result = dosemap("predict", pet, *SUV_78, *QUICK, "-l", labels, "--out-dir", folder, "--json")
    assert result.returncode == 0, result.stderr
    report = json.loads(result.stdout)
    assert report["pet"] == str(pet)
    for name in ("dose", "sidecar", "dvh", "organs"):
        assert report[name] is None, name
    assert (folder / "sub-1_dose.nii.gz").exists()


def test_resume_skips_the_finished_and_redoes_the_damaged(pet: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.nii.gz"
    command = ("predict", pet, *SUV_78, *QUICK, "-o", out)
    dosemap(*command)
    first = out.stat().st_mtime_ns
    assert "skipped" in dosemap(*command, "--resume").stderr
    assert out.stat().st_mtime_ns == first
    content = out.read_bytes()
    out.write_bytes(content[:-5])
    dosemap(*command, "--resume")
    assert out.read_bytes() == content


def test_resume_redoes_what_was_made_otherwise(pet: Path, labels: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.nii.gz"
    command = ["predict", pet, *SUV_78, *QUICK, "--resume", "-o", out]
    dosemap(*command)
    for more, option in (
        (("--activity", "7.4"), "--activity"),
        (("--labels", labels), "--labels"),
        (("--overlap", "0.25"), "--overlap"),
        (("--model", MODEL.with_name("dosegan-constructed.safetensors.zst")), "--model"),
    ):
        command += more
        result = dosemap(*command)
        assert result.returncode == 0, result.stderr
        assert f"with another {option}: made again" in result.stderr
        assert "skipped" in dosemap(*command).stderr
    (tmp_path / "out_dvh.tsv").unlink()
    assert "with another --labels" in dosemap(*command).stderr
    assert (tmp_path / "out_dvh.tsv").exists()


def test_out_dir_is_made(pet: Path, tmp_path: Path) -> None:
    result = dosemap("predict", pet, *SUV_78, *QUICK, "--out-dir", tmp_path / "a" / "b")
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "a" / "b" / "sub-1_dose.nii.gz").exists()
    assert "NOT TRAINED" in result.stdout
    file = tmp_path / "file"
    file.touch()
    result = dosemap("predict", pet, *SUV_78, *QUICK, "--out-dir", file / "b")
    assert (result.returncode, "cannot be written" in result.stderr) == (1, True)


def test_dvh_takes_the_unit_from_the_sidecar(pet: Path, labels: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.nii.gz"
    dosemap("predict", pet, *SUV_78, *QUICK, "-o", out)
    table = dosemap("dvh", out, "--labels", labels, "--vx", "0.05,0.1").stdout.splitlines()
    assert table[0].endswith("V0.05 (%)   V0.1 (%)  (Gy/GBq)")
    structures = json.loads(
        dosemap("dvh", out, "--labels", labels, "--vx", "0.05", "--json").stdout
    )
    assert f"{structures[0]['v0.05gy_per_gbq_percent']:.4g}" == table[1].split()[-2]
    dosemap("predict", pet, *SUV_78, *QUICK, "-o", out, "--activity", "7.4")
    assert dosemap("dvh", out, "--labels", labels).stdout.splitlines()[0].endswith("  (Gy)")
    assert dosemap("dvh", out, "--labels", labels, "--per-activity").returncode == 2
    out.with_name("out.json").unlink()
    structures = json.loads(
        dosemap("dvh", out, "--labels", labels, "--per-activity", "--json").stdout
    )
    assert "mean_gy_per_gbq" in structures[0]


def test_dvh_command_agrees_with_predict(pet: Path, labels: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.nii.gz"
    dosemap("predict", pet, *SUV_78, *QUICK, "-o", out, "--labels", labels, "--activity", "7.4")
    result = dosemap("dvh", out, "--labels", labels, "-o", tmp_path / "again")
    assert result.returncode == 0, result.stderr
    for name in ("dvh", "organs"):
        first, again = (tmp_path / f"{stem}_{name}.tsv" for stem in ("out", "again"))
        assert first.read_text() == again.read_text()
    assert len(json.loads(dosemap("dvh", out, "--labels", labels, "--json").stdout)) == 2


def test_folder_of_masks(pet: Path, labels: Path, pet_data: np.ndarray, tmp_path: Path) -> None:
    masks = tmp_path / "masks"
    masks.mkdir()
    image = nib.load(labels)
    ids = np.asanyarray(image.dataobj)
    for name, inside in {"liver": ids == 1, "body": ids > 0}.items():
        nib.save(nib.Nifti1Image(inside.astype(np.uint8), image.affine), masks / f"{name}.nii.gz")
    out = tmp_path / "out.nii.gz"
    result = dosemap("predict", pet, *SUV_78, *QUICK, "-o", out, "--labels", masks, "--json")
    structures = {s["name"]: s for s in json.loads(result.stdout)["structures"]}
    assert structures["liver"]["voxels"] == (ids == 1).sum()
    assert structures["body"]["voxels"] == (ids > 0).sum()
