# SPDX-License-Identifier: Apache-2.0
"""`dosemap predict --device cuda` from outside, on the emulated toolkit: what the CPU computes, the
CUDA backend computes as well, through all of its own code but the vendor's convolutions.
"""

import json
import os
import subprocess
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from conftest import K_GY_PER_GBQ, SUV_78, assert_refused, dosemap, write_tiny_model
from emulated_cuda import (
    MODULE,
    assert_curves_within_a_bin,
    assert_same_organs,
    needs_module,
    not_sanitized,
    provenance,
    settings,
)
from program import ROOT, assert_close
from safetensors.numpy import load_file, save_file
from test_pet_ct import write_pet_ct_model

GOLDEN = ROOT / "tests/golden"
NETWORKS = sorted(path.parent.name for path in GOLDEN.glob("*/case.json"))
LIMIT = {"float32": 1e-5, "bf16": 2e-2, "fp16": 2e-2, "tf32": 5e-3}
SMALL = GOLDEN / "batch-small/model.safetensors.zst"  # patches of 16

pytestmark = needs_module


def predict(device: str, pet: Path, out: Path, *options: object, **emulation: object) -> Path:
    """Runs it; the dose map's place."""
    result = dosemap(
        "predict", pet, *SUV_78, "-o", out, "--device", device, *options, env=settings(**emulation)
    )
    assert result.returncode == 0, result.stderr
    sidecar = provenance(out.with_name(out.name.partition(".")[0] + ".json"))
    assert sidecar["Backend"] == device.partition(":")[0]
    return out


def dose_of(path: Path) -> np.ndarray:
    return np.asanyarray(nib.load(path).dataobj)


def save(path: Path, data: np.ndarray, affine: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(data, affine), path)
    return path


@pytest.fixture
def small_pet(tmp_path: Path, affine: np.ndarray) -> Path:
    """Of 2 x 2 x 1 patches of 16 without overlap; no extent is a multiple of anything."""
    data = np.random.default_rng(11).gamma(1.5, 2.0, (23, 19, 13)).astype(np.float32)
    return save(tmp_path / "in/sub-1_pet.nii.gz", data, affine)


@pytest.fixture
def small_labels(small_pet: Path, affine: np.ndarray) -> Path:
    ids = np.zeros((23, 19, 13), np.uint8)
    ids[3:12, 4:15, 2:9], ids[14:22, 1:6, 5:13], ids[20, 18, 12] = 1, 3, 200
    return save(small_pet.with_name("sub-1_dseg.nii.gz"), ids, affine)


def test_module_is_the_emulated_one() -> None:
    report = json.loads(dosemap("doctor", "--json", env=settings()).stdout)["cuda"]
    assert report["usable"] is True and report["emulated"] is True and not report["problem"]
    assert report["module"] == MODULE


# ---- Equal to the CPU ---------------------------------------------------------------------------


@pytest.mark.parametrize("precision", ["float32", "bf16"])
@pytest.mark.parametrize("network", NETWORKS)
def test_networks(tmp_path: Path, network: str, precision: str) -> None:
    """Every kept network: norms, dilation, strides, axes, orientations, odd layers."""
    case = json.loads((GOLDEN / network / "case.json").read_text())
    options = (
        *("--model", GOLDEN / network / "model.safetensors.zst", "--precision", precision),
        *("--tile", ",".join(map(str, case["tile"])), "--overlap", case["overlap"]),
        *("--blend", case["blend"], "--skip-air", "off", "--force-tile"),
    )
    pet = GOLDEN / network / "pet.nii.gz"
    cpu = predict("cpu", pet, tmp_path / "cpu.nii", *options)
    cuda = predict("cuda", pet, tmp_path / "cuda.nii", *options)
    limit = LIMIT[precision]
    if precision == "bf16":  # statistics over few channels carry bf16's rounding further
        limit = max(limit, 1.5 * case["tolerance"].get("bf16", 0))
    assert_close(dose_of(cuda), dose_of(cpu), limit)
    assert nib.load(cuda).affine.tolist() == nib.load(cpu).affine.tolist()


@not_sanitized
@pytest.mark.parametrize("precision", ["float32", "tf32", "bf16", "fp16"])
def test_dosegan_16(tmp_path: Path, affine: np.ndarray, precision: str) -> None:
    data = np.random.default_rng(3).gamma(1.5, 2.0, (40, 33, 30)).astype(np.float32)
    pet = save(tmp_path / "pet.nii", data, affine)
    cuda = predict("cuda", pet, tmp_path / "cuda.nii", "--overlap", "0", "--precision", precision)
    exact = np.maximum(0, K_GY_PER_GBQ * data.astype(np.float64))
    assert_close(dose_of(cuda), exact, LIMIT[precision])
    if precision == "float32":
        cpu = predict("cpu", pet, tmp_path / "cpu.nii", "--overlap", "0")
        assert_close(dose_of(cuda), dose_of(cpu), 1e-5)


@not_sanitized
def test_dosegan_16_on_64_voxels_with_labels(tmp_path: Path, affine: np.ndarray) -> None:
    rng = np.random.default_rng(5)
    data = rng.gamma(1.5, 2.0, (64, 64, 64)).astype(np.float32)
    ids = rng.integers(0, 4, (64, 64, 64)).astype(np.uint8)
    pet, labels = save(tmp_path / "pet.nii", data, affine), tmp_path / "dseg.nii"
    save(labels, ids, affine)
    options = ("--overlap", "0", "--precision", "float32", "--labels", labels, "--activity", "7.4")
    cpu = predict("cpu", pet, tmp_path / "cpu.nii", *options)
    cuda = predict("cuda", pet, tmp_path / "cuda.nii", *options)
    assert_close(dose_of(cuda), dose_of(cpu), 1e-5)
    assert_curves_within_a_bin(tmp_path / "cuda_dvh.tsv", tmp_path / "cpu_dvh.tsv")
    assert_same_organs(tmp_path / "cuda_organs.tsv", tmp_path / "cpu_organs.tsv")


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_files_in_and_out(tmp_path: Path, small_pet: Path, tiny: Path, suffix: str) -> None:
    pet = save(tmp_path / f"b/pet{suffix}", dose_of(small_pet), nib.load(small_pet).affine)
    cpu = predict("cpu", pet, tmp_path / f"cpu{suffix}", "--model", tiny)
    cuda = predict("cuda", pet, tmp_path / f"cuda{suffix}", "--model", tiny)
    assert_close(dose_of(cuda), dose_of(cpu), 1e-5)
    sidecar = provenance(tmp_path / "cuda.json")
    assert (sidecar["Backend"], sidecar["Units"]) == ("cuda", "Gy/GBq")
    assert sidecar["Windows"]["Run"] > 0 and sidecar["Seconds"]["Network"] > 0


@pytest.mark.parametrize("voxel_size_mm", [[5.0, 3.0, 4.0], [9.0, 8.0, 11.0]])
def test_another_model_grid(tmp_path: Path, small_pet: Path, voxel_size_mm: list[float]) -> None:
    model = write_tiny_model(tmp_path / "m.safetensors.zst", voxel_size_mm)
    cpu = predict("cpu", small_pet, tmp_path / "cpu.nii", "--model", model)
    cuda = predict("cuda", small_pet, tmp_path / "cuda.nii", "--model", model)
    assert provenance(tmp_path / "cuda.json") != provenance(tmp_path / "cpu.json")
    assert_close(dose_of(cuda), dose_of(cpu), 1e-5)


@pytest.mark.parametrize(
    "options",
    [
        ("--overlap", "0.5"),
        ("--overlap", "0.7", "--blend", "constant"),
        ("--tile", "24", "--overlap", "0.25"),
        ("--tile", "16,8,24", "--overlap", "0"),
        ("--tile", "whole"),
        ("--tile", "auto", "--memory", "500M"),
        ("--overlap", "0.5", "--batch", "1"),
        ("--overlap", "0.5", "--batch", "3"),
        ("--overlap", "0.5", "--batch", "64"),
    ],
    ids=" ".join,
)
def test_windows(tmp_path: Path, small_pet: Path, options: tuple[str, ...]) -> None:
    options = ("--model", SMALL, *options)
    cuda = predict("cuda", small_pet, tmp_path / "cuda.nii", *options)
    if "auto" in options:  # what it took: another device has another memory
        tile = provenance(tmp_path / "cuda.json")["Options"]
        options = (
            *("--model", SMALL, "--tile", ",".join(map(str, tile["Tile"]))),
            *("--overlap", tile["Overlap"]),
        )
    cpu = predict("cpu", small_pet, tmp_path / "cpu.nii", *options)
    assert_close(dose_of(cuda), dose_of(cpu), 1e-5)


@pytest.mark.parametrize("options", [(), ("--skip-air", 0.5), ("--nan-to-zero",)])
def test_pet_and_ct(tmp_path: Path, affine: np.ndarray, options: tuple) -> None:
    """A network that takes both; its other output is not computed."""
    random = np.random.default_rng(3)
    pet = random.gamma(1.5, 2.0, (37, 29, 41)).astype(np.float32)
    pet[:18] *= 0.01
    if "--nan-to-zero" in options:
        pet[::5, ::3, 2] = np.nan
    hu = random.uniform(-1000, 1500, (74, 58, 41)).astype(np.float32)
    half = affine @ np.diag([0.5, 0.5, 1, 1])
    half[:3, 3] -= affine[:3, :3] @ [0.25, 0.25, 0]
    images = [save(tmp_path / "sub-1_pet.nii.gz", pet, affine)]
    images += ["--ct", save(tmp_path / "sub-1_ct.nii.gz", hu, half)]
    model = write_pet_ct_model(tmp_path / "two.safetensors.zst", other_output=True)
    common = ("--model", model, "--tile", 16, "--precision", "float32", *options)
    doses = {}
    for device in ("cpu", "cuda", "cuda:0,1"):
        words = (*SUV_78, "-o", tmp_path / f"{device}.nii.gz", "--device", device, *common)
        result = dosemap("predict", *images, *words, env=settings(DEVICES=2))
        assert result.returncode == 0, result.stderr
        doses[device] = dose_of(tmp_path / f"{device}.nii.gz")
    assert_close(doses["cuda"], doses["cpu"], 1e-5)
    assert np.array_equal(doses["cuda:0,1"], doses["cuda"])
    assert provenance(tmp_path / "cuda.json")["CT"]


@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_forward(tmp_path: Path, precision: str) -> None:
    patches = np.random.default_rng(5).gamma(1.5, 2.0, (5, 1, 16, 16, 16)).astype(np.float32)
    save_file({"pet": patches}, tmp_path / "in.safetensors")
    made = {}
    for device in ("cpu", "cuda"):
        words = (SMALL, tmp_path / "in.safetensors", "-o", tmp_path / f"{device}.safetensors")
        options = ("--device", device, "--precision", precision if device == "cuda" else "float32")
        result = dosemap("forward", *words, *options, env=settings())
        assert result.returncode == 0, result.stderr
        (made[device],) = load_file(tmp_path / f"{device}.safetensors").values()
    assert_close(made["cuda"], made["cpu"], LIMIT[precision])


def test_tables(tmp_path: Path, small_pet: Path, small_labels: Path) -> None:
    options = ("--model", SMALL, "--labels", small_labels, "--activity", "7.4", "--vx", "0.5,1,30")
    predict("cpu", small_pet, tmp_path / "cpu.nii", *options)
    predict("cuda", small_pet, tmp_path / "cuda.nii", *options)
    assert_curves_within_a_bin(tmp_path / "cuda_dvh.tsv", tmp_path / "cpu_dvh.tsv")
    assert_same_organs(tmp_path / "cuda_organs.tsv", tmp_path / "cpu_organs.tsv")


def test_tables_of_the_same_doses(tmp_path: Path, small_pet: Path, small_labels: Path) -> None:
    """The DVH that the device made, against that of the dose map it wrote: the same counts."""
    out = predict("cuda", small_pet, tmp_path / "o.nii", "--model", SMALL, "-l", small_labels)
    result = dosemap("dvh", out, "--labels", small_labels, "-o", tmp_path / "again")
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "o_dvh.tsv").read_text() == (tmp_path / "again_dvh.tsv").read_text()


def test_overlapping_masks(tmp_path: Path, small_pet: Path, small_labels: Path) -> None:
    masks, image = tmp_path / "masks", nib.load(small_labels)
    ids = np.asanyarray(image.dataobj)
    for name, inside in {"liver": ids == 1, "body": ids > 0, "none": ids > 250}.items():
        save(masks / f"{name}.nii.gz", inside.astype(np.uint8), image.affine)
    options = ("--model", SMALL, "--labels", masks)
    predict("cpu", small_pet, tmp_path / "cpu.nii", *options)
    predict("cuda", small_pet, tmp_path / "cuda.nii", *options)
    assert_curves_within_a_bin(tmp_path / "cuda_dvh.tsv", tmp_path / "cpu_dvh.tsv")
    assert_same_organs(tmp_path / "cuda_organs.tsv", tmp_path / "cpu_organs.tsv")


def test_air_is_skipped(tmp_path: Path, affine: np.ndarray) -> None:
    data = np.zeros((48, 17, 16), np.float32)
    data[33:47, 3:12, 2:14] = np.random.default_rng(2).gamma(1.5, 2.0, (14, 9, 12))
    pet = save(tmp_path / "pet.nii", data, affine)
    options = ("--model", SMALL, "--overlap", "0", "--skip-air", "0.01")
    cpu = predict("cpu", pet, tmp_path / "cpu.nii", *options)
    cuda = predict("cuda", pet, tmp_path / "cuda.nii", *options)
    windows = provenance(tmp_path / "cuda.json")["Windows"]
    assert windows == provenance(tmp_path / "cpu.json")["Windows"]
    assert windows["Skipped"] > 0 and windows["Run"] > 0
    assert_close(dose_of(cuda), dose_of(cpu), 1e-5)
    assert np.array_equal(dose_of(cuda) == 0, dose_of(cpu) == 0)


def test_nothing_but_air(tmp_path: Path, affine: np.ndarray) -> None:
    pet = save(tmp_path / "pet.nii", np.zeros((20, 17, 16), np.float32), affine)
    out = predict("cuda", pet, tmp_path / "o.nii", "--model", SMALL, "--skip-air", "0.01")
    assert not dose_of(out).any()


def test_one_voxel(tmp_path: Path, affine: np.ndarray) -> None:
    pet = save(tmp_path / "pet.nii", np.full((1, 1, 1), 3, np.float32), affine)
    cpu = predict("cpu", pet, tmp_path / "cpu.nii", "--model", SMALL)
    cuda = predict("cuda", pet, tmp_path / "cuda.nii", "--model", SMALL)
    assert_close(dose_of(cuda), dose_of(cpu), 1e-5)


# ---- The same every time ------------------------------------------------------------------------


def test_same_bytes(tmp_path: Path, small_pet: Path) -> None:
    """However the device orders threads, blocks and streams, and however many there are."""
    reference = None
    for i, emulation in enumerate(
        [{}, *({"order": order} for order in (1, 2, 3)), {"threads": 1}, {"streams": "eager"}]
    ):
        options = ("--model", SMALL, "--overlap", "0.5")
        out = predict("cuda", small_pet, tmp_path / f"{i}.nii", *options, **emulation)
        reference = reference or out.read_bytes()
        assert out.read_bytes() == reference, emulation


@pytest.mark.parametrize("names", ["cuda:0,1", "cuda:2,1,0", "cuda:all"])
def test_several_devices(tmp_path: Path, names: str, affine: np.ndarray) -> None:
    """The bytes of one device: dose map, DVHs, organs; and the windows are counted once."""
    data = np.random.default_rng(4).gamma(1.5, 2.0, (23, 19, 70)).astype(np.float32)
    data[:, :, 20:58], data[9, 9, 30] = 0, 3
    pet, labels = save(tmp_path / "pet.nii", data, affine), tmp_path / "dseg.nii"
    save(labels, (np.arange(data.size).reshape(data.shape) // 977 % 3).astype(np.uint8), affine)
    for precision in ("float32", "bf16"):
        folders = []
        options = ("--model", SMALL, "--labels", labels, "--skip-air", "0.01", "--activity", "7.4")
        for device in ("cuda", names):
            folder = tmp_path / precision / device.replace(":", "-")
            folder.mkdir(parents=True)
            predict(device, pet, folder / "o.nii.gz", *options, "--precision", precision, devices=3)
            folders.append(folder)
        for name in ("o.nii.gz", "o_dvh.tsv", "o_organs.tsv"):
            assert (folders[0] / name).read_bytes() == (folders[1] / name).read_bytes(), name
        one, several = (provenance(folder / "o.json") for folder in folders)
        assert one["Windows"] == several["Windows"] and one["Windows"]["Skipped"] > 0
        count = 2 if names == "cuda:0,1" else 3
        assert several["Device"].startswith(f"{count} x emulated device; ")


def test_little_device_memory(tmp_path: Path, small_pet: Path, small_labels: Path) -> None:
    """Fewer windows at once, then a clear end; never another result."""
    options = ("--model", SMALL, "--overlap", "0.5", "--labels", small_labels)
    reference = predict("cuda", small_pet, tmp_path / "all.nii", *options)
    done, refused = set(), []
    for kibibytes in (2 << 20, 1 << 20, 100 << 10, 10 << 10, 4096, 2048, 1024, 512, 256, 128, 32):
        folder = tmp_path / str(kibibytes)
        folder.mkdir()
        result = dosemap(
            "predict", small_pet, *SUV_78, *options, "--device", "cuda", "-o", folder / "o.nii",
            env=settings(memory=kibibytes << 10),
        )  # fmt: skip
        if result.returncode == 0:
            assert not refused, "it ran with less memory than it had refused"
            assert_close(dose_of(folder / "o.nii"), dose_of(reference), 1e-6)
            done.add(kibibytes)
        else:
            assert_refused(result, folder / "o.nii", "memory")
            refused.append(kibibytes)
    assert done and refused


# ---- Commands -----------------------------------------------------------------------------------


def test_cohort(tmp_path: Path, small_pet: Path, small_labels: Path, affine: np.ndarray) -> None:
    """Of several sizes, one of which cannot be read."""
    pets = [small_pet]
    for i, shape in enumerate([(9, 21, 30), (33, 17, 8), (23, 19, 13)], start=2):
        data = np.random.default_rng(i).gamma(1.5, 2.0, shape).astype(np.float32)
        pets.append(save(small_pet.with_name(f"sub-{i}_pet.nii.gz"), data, affine))
    pets[2].write_bytes(pets[2].read_bytes()[:1000])
    options = (*SUV_78, "--model", SMALL, "--device", "cuda", "--precision", "float32")
    result = dosemap("predict", *pets, *options, "--out-dir", tmp_path / "all", env=settings())
    assert result.returncode == 1 and result.stderr.count("error:") == 1, result.stderr
    assert "sub-3_pet.nii.gz" in result.stderr
    for pet in (pets[0], pets[1], pets[3]):
        alone = predict("cuda", pet, tmp_path / "alone.nii.gz", "--model", SMALL)
        name = pet.name.replace("_pet", "_dose")
        assert (tmp_path / "all" / name).read_bytes() == alone.read_bytes(), name


def test_cohort_on_several_devices(tmp_path: Path, affine: np.ndarray) -> None:
    """Of several sizes, some too small to be shared."""
    pets = []
    for i, shape in enumerate([(23, 19, 60), (17, 18, 9), (9, 21, 44), (20, 20, 61)]):
        data = np.random.default_rng(i).gamma(1.5, 2.0, shape).astype(np.float32)
        pets.append(save(tmp_path / f"in/sub-{i}_pet.nii.gz", data, affine))
    for device in ("cuda", "cuda:all"):
        options = (*SUV_78, "--model", SMALL, "--device", device)
        folder = tmp_path / device.replace(":", "-")
        result = dosemap("predict", *pets, *options, "--out-dir", folder, env=settings(devices=3))
        assert result.returncode == 0, result.stderr
    for pet in pets:
        name = pet.name.replace("_pet", "_dose")
        of_one = (tmp_path / "cuda" / name).read_bytes()
        assert (tmp_path / "cuda-all" / name).read_bytes() == of_one, name


def test_resume(tmp_path: Path, small_pet: Path) -> None:
    out = predict("cuda", small_pet, tmp_path / "o.nii.gz", "--model", SMALL)
    content, made = out.read_bytes(), out.stat().st_mtime_ns
    command = ("predict", small_pet, *SUV_78, "--model", SMALL, "--device", "cuda", "-o", out)
    assert "skipped" in dosemap(*command, "--resume", env=settings()).stderr
    assert out.stat().st_mtime_ns == made
    out.write_bytes(content[:-5])
    assert dosemap(*command, "--resume", env=settings()).returncode == 0
    assert out.read_bytes() == content


def test_device_names(tmp_path: Path, small_pet: Path, tiny: Path, out: Path) -> None:
    first = predict("cuda", small_pet, tmp_path / "a.nii", "--model", tiny)
    command = ("predict", small_pet, *SUV_78, "--model", tiny)
    result = dosemap(*command, "-o", tmp_path / "b.nii", "--device", "cuda:0", env=settings())
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "b.nii").read_bytes() == first.read_bytes()
    for device in ("cuda:7", "cuda:x", "cuda:", "cuda:-1", "cuda:99999999999999999999"):
        result = dosemap(*command, "-o", out, "--device", device, env=settings())
        assert_refused(result, out, device)
    for device, said in {
        "cuda:0,1,": "cuda:0,1,", "cuda:1,1": "twice", "cuda:0,3": "cuda:3",
        "cuda:all": "not of one kind",
    }.items():  # fmt: skip
        env = settings(devices=3, capability="9.0,8.0" if device == "cuda:all" else "9.0")
        result = dosemap(*command, "-o", out, "--device", device, env=env)
        assert_refused(result, out, said)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_have_no_dose(
    small_pet: Path, affine: np.ndarray, out: Path, value: float
) -> None:
    """The CPU and the device refuse the same voxels in the same words."""
    data = dose_of(small_pet).copy()
    data[17, 5, 7] = value
    pet = save(small_pet.with_name("bad_pet.nii"), data, affine)
    said = []
    for device in ("cpu", "cuda"):
        command = ("predict", pet, *SUV_78, "--model", SMALL, "--overlap", "0", "-o", out)
        result = dosemap(*command, "--device", device, env=settings())
        assert_refused(result, out)
        said.append(result.stderr)
    assert said[0] == said[1]


def test_nan_to_zero(tmp_path: Path, small_pet: Path, affine: np.ndarray) -> None:
    data = dose_of(small_pet).copy()
    data[3:6, 5, 7], data[0, 0, 0] = np.nan, np.inf
    pet = save(tmp_path / "nan.nii", data, affine)
    cpu = predict("cpu", pet, tmp_path / "cpu.nii", "--model", SMALL, "--nan-to-zero")
    cuda = predict("cuda", pet, tmp_path / "cuda.nii", "--model", SMALL, "--nan-to-zero")
    assert_close(dose_of(cuda), dose_of(cpu), 1e-5)


# ---- Modules that cannot be used ----------------------------------------------------------------


def refused_module(pet: Path, model: Path, out: Path, module: Path, *words: str) -> None:
    """`predict` says which and why, `doctor` too, and the CPU goes on."""
    env = {"DOSEMAP_CUDA_MODULE": str(module)}
    command = ("predict", pet, *SUV_78, "--model", model, "-o", out)
    assert_refused(dosemap(*command, "--device", "cuda", env=env), out, str(module), *words)
    report = json.loads(dosemap("doctor", "--json", env=env).stdout)["cuda"]
    assert report["usable"] is False
    assert all(word in json.dumps(report) for word in words), report
    text = dosemap("doctor", env=env)
    assert text.returncode == 0 and all(word in text.stdout for word in words), text.stdout
    assert dosemap(*command, "--device", "auto", env=env).returncode == 0


def test_module_that_is_not_there(small_pet: Path, tiny: Path, out: Path, tmp_path: Path) -> None:
    module = tmp_path / "none/libdosemap-cuda.so"
    refused_module(small_pet, tiny, out, module, "$DOSEMAP_CUDA_MODULE", "correct or unset")


def test_module_that_is_no_library(small_pet: Path, tiny: Path, out: Path, tmp_path: Path) -> None:
    module = tmp_path / "libdosemap-cuda.so"
    module.write_bytes(b"not a library")
    refused_module(small_pet, tiny, out, module, "install dosemap again")


@pytest.mark.parametrize("kept", [0, 40, 64, 5000, -1])
def test_incomplete_module(
    small_pet: Path, tiny: Path, out: Path, tmp_path: Path, kept: int
) -> None:
    module = tmp_path / "libdosemap-cuda.so"
    module.write_bytes(Path(MODULE).read_bytes()[:kept])
    refused_module(small_pet, tiny, out, module, "install dosemap again")


@pytest.mark.parametrize(
    "source",
    [
        "int nothing_of_ours;",
        "const void *dosemap_cuda_backend(const char *stamp) { (void)stamp; return 0; }",
    ],
    ids=["another library", "another version"],
)
def test_foreign_module(
    small_pet: Path, tiny: Path, out: Path, tmp_path: Path, source: str
) -> None:
    module = tmp_path / "libdosemap-cuda.so"
    (tmp_path / "m.c").write_text(source)
    command = ["cc", "-shared", "-fPIC", tmp_path / "m.c", "-o", module]
    subprocess.run(command, check=True)
    refused_module(small_pet, tiny, out, module, "install dosemap again")


def test_empty_variable_counts_as_none() -> None:
    empty = json.loads(dosemap("doctor", "--json", env={"DOSEMAP_CUDA_MODULE": ""}).stdout)
    assert "DOSEMAP_CUDA_MODULE" not in os.environ
    assert empty["cuda"] == json.loads(dosemap("doctor", "--json").stdout)["cuda"]


def test_doctor_names_the_device() -> None:
    text = dosemap("doctor", env=settings()).stdout
    (line,) = (line for line in text.splitlines() if line.startswith("CUDA"))
    assert "usable" in line and "emulated" in line
    assert MODULE in text and "GPUs" not in text
    assert "GPUs         3:" in dosemap("doctor", env=settings(devices=3)).stdout


def test_doctor_lists_all_devices() -> None:
    """Each with its own memory and whether it can be used; the first one's are the report's."""
    env = settings(devices=3, memory="1000000000,2000000000,3000000000", capability="9.0,7.5,8.6")
    report = json.loads(dosemap("doctor", "--json", env=env).stdout)["cuda"]
    gpus = report["gpus"]
    assert [gpu["name"] for gpu in gpus] == ["cuda:0", "cuda:1", "cuda:2"]
    assert [gpu["memory"] for gpu in gpus] == [1000000000, 2000000000, 3000000000]
    assert [gpu["compute_capability"] for gpu in gpus] == ["9.0", "7.5", "8.6"]
    assert [gpu["usable"] for gpu in gpus] == [True, False, True]
    assert [gpu["problem"] is None for gpu in gpus] == [True, False, True]
    assert "7.5" in gpus[1]["problem"] and "--device cpu" in gpus[1]["remedy"]
    same = ("device", "memory", "compute_capability", "usable", "problem", "remedy")
    assert {key: gpus[0][key] for key in same} == {key: report[key] for key in same}
    text = dosemap("doctor", env=env).stdout.splitlines()
    (second,) = (line for line in text if line.startswith("cuda:1 "))
    (third,) = (line for line in text if line.startswith("cuda:2 "))
    assert gpus[1]["problem"] in second and third.endswith(" 2.8 GiB")
    assert len(json.loads(dosemap("doctor", "--json", env=settings()).stdout)["cuda"]["gpus"]) == 1


# ---- Who computes convolutions ------------------------------------------------------------------


def without_library() -> dict[str, str]:
    return {**settings(), "DOSEMAP_REFERENCE_CONVOLUTION": "absent"}


def test_own_convolutions_need_no_library(tmp_path: Path, small_pet: Path, out: Path) -> None:
    """Its absence is told, with the way without; and that one gives the dose."""
    command = ("predict", small_pet, *SUV_78, "--model", SMALL, "--device", "cuda", "-o", out)
    result = dosemap(*command, env=without_library())
    assert_refused(result, out, "not found", "--convolutions own")
    report = json.loads(dosemap("doctor", "--json", env=without_library()).stdout)["cuda"]
    assert report["usable"] is False and "not found" in report["problem"]
    assert "--convolutions own" in report["remedy"] and report["device"]
    assert "--convolutions own" in dosemap("doctor", env=without_library()).stdout
    result = dosemap(*command, "--convolutions", "own", env=without_library())
    assert result.returncode == 0, result.stderr
    sidecar = provenance(out.with_name("out.json"))
    assert sidecar["Options"]["Convolutions"] == "own" and sidecar["Tuning"] is None
    assert "own convolutions" in sidecar["Device"]
    cpu = predict("cpu", small_pet, tmp_path / "cpu.nii", "--model", SMALL)
    assert_close(dose_of(out), dose_of(cpu), LIMIT["float32"])


def test_unknown_convolutions(small_pet: Path, out: Path) -> None:
    result = dosemap("predict", small_pet, *SUV_78, "--convolutions", "fast", "-o", out)
    assert result.returncode == 2 and "auto|library|own" in result.stderr, result.stderr


@not_sanitized
def test_tuning(tmp_path: Path, small_pet: Path, out: Path) -> None:
    """bench --tune writes a file, which predictions use and name until it is damaged."""
    cache = tmp_path / "cache"
    env = {**settings(), "DOSEMAP_CACHE_DIR": str(cache)}
    options = ("--model", SMALL, "--device", "cuda", "--precision", "bf16", "--batch", "2")
    result = dosemap(
        "bench", small_pet, *SUV_78, *options, "--tune", "--scenario", "volume", "--runs", "1",
        "--warmup", "1", "--json", "-", env=env,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    (file,) = cache.iterdir()
    report = json.loads(result.stdout)["tune"]
    assert report["file"] == str(file) and report["batch"] == 2
    for layer in report["layers"]:
        timed = [way["seconds"] for way in layer.get("tried", []) if "seconds" in way]
        assert "same_as" in layer or layer["seconds"] <= 1.03 * min(timed), layer
    command = ("predict", small_pet, *SUV_78, *options, "-o", out)
    assert dosemap(*command, env=env).returncode == 0
    sidecar, tuned = provenance(out.with_name("out.json")), out.read_bytes()
    assert sidecar["Tuning"] == {"File": str(file), "XXH64": report["xxh64"]}
    assert ", tuned (" in sidecar["Device"] and sidecar["Options"]["Convolutions"] == "auto"
    assert dosemap(*command, env=env).returncode == 0
    assert out.read_bytes() == tuned
    file.write_bytes(file.read_bytes()[:-1])
    result = dosemap(*command, env=env)
    assert result.returncode == 0, result.stderr
    sidecar = provenance(out.with_name("out.json"))
    assert sidecar["Tuning"] is None
    assert f"tuning not used: {file} is damaged; run 'dosemap bench --tune'" in sidecar["Device"]


def test_tuning_that_cannot_be_kept(small_pet: Path) -> None:
    env = {**settings(), "DOSEMAP_CACHE_DIR": "/proc/dosemap"}
    command = ("bench", small_pet, *SUV_78, "--model", SMALL, "--device", "cuda", "--tune")
    result = dosemap(*command, env=env)
    assert result.returncode == 1 and "DOSEMAP_CACHE_DIR" in result.stderr, result.stderr
    assert result.stderr.startswith("dosemap: error: /proc/dosemap: ")
