# SPDX-License-Identifier: Apache-2.0
"""Model.predict() against the program: the same bytes, whatever the PET came as and however it was
asked for."""

import json
import os
import pickle

import numpy as np
import pytest

nib = pytest.importorskip("nibabel", reason="nibabel is missing: no images of it are made")

import dosemap
from dosemap_tools import nifti
from images import uptake
from program import run

SUV = {"units": "suv", "body_weight_kg": 78.7}
SUV_WORDS = ("--units", "suv", "--body-weight", "78.7")
# What differs from run to run, or names files.
PASSING = ("Seconds", "CommandLine", "Sources", "SourceFiles", "Outputs")


@pytest.fixture
def tiny(tiny_path):
    return dosemap.load_model(tiny_path)


def by_program(folder, pet, model, *words, suffix=".nii"):
    """The files of the program, by their role."""
    out = folder / "program" / f"out{suffix}"
    out.parent.mkdir(exist_ok=True)
    result = run("predict", pet, "-o", out, "--model", model.path, "--quiet", *words)
    assert result.returncode == 0, result.stderr
    return files_of(out)


def files_of(out):
    stem = out.name[: out.name.index(".nii")]
    names = {"dose": out.name, "sidecar": f"{stem}.json", "dvh": f"{stem}_dvh.tsv",
             "organs": f"{stem}_organs.tsv"}  # fmt: skip
    return {
        role: (out.parent / name).read_bytes()
        for role, name in names.items()
        if (out.parent / name).exists()
    }


def saved(prediction, folder, suffix=".nii"):
    out = folder / "python" / f"out{suffix}"
    out.parent.mkdir(exist_ok=True)
    written = prediction.save(out)
    assert sorted(written) == sorted(out.parent.iterdir())
    return files_of(out)


def without_passing(sidecar):
    facts = {key: value for key, value in json.loads(sidecar).items() if key not in PASSING}
    facts["Options"].pop("MemoryLimit")  # what the machine leaves at that moment
    facts["PET"].pop("Sidecar", None)
    return facts


def voxels(nii):
    """Of a .nii file with one of dosemap's headers."""
    return nii[352 if nii[:4] == b"\\\x01\x00\x00" else 544 :]


def assert_same_files(ours, theirs):
    """All of them but for what passes."""
    assert ours.keys() == theirs.keys()
    for role in ours.keys() - {"sidecar"}:
        assert ours[role] == theirs[role], role
    assert without_passing(ours["sidecar"]) == without_passing(theirs["sidecar"])


def assert_same_voxels(prediction, files):
    assert prediction.dose.tobytes(order="F") == voxels(files["dose"])


# ---- Every form of a PET -------------------------------------------------------------------------

OBLIQUE = nib.affines.from_matvec(
    nib.eulerangles.euler2mat(0.3, -0.2, 0.5) @ np.diag([-4.0, 3.5, 5.0]), [10, -20, 30]
)


SUV_MAP = uptake((19, 23, 17), seed=3)
AFFINE = np.array([[-4.0, 0, 0, 70], [0, -4, 0, 60], [0, 0, 5, -100], [0, 0, 0, 1]])
TENTHS = np.rint(10 * SUV_MAP)
# Voxels as they are stored, and what is not as usual about the header.
STORED = {
    "float32": (SUV_MAP, {}),
    "float64": (SUV_MAP.astype(np.float64) / 3, {}),
    "uint8": (SUV_MAP.astype(np.uint8), {}),
    "int16 scaled": (TENTHS.astype(np.int16), {"scaling": (0.0123, 0.7)}),
    "int32 scaled": ((SUV_MAP * 1e7).astype(np.int32), {"scaling": (1.1e-7, 0)}),
    "float32 scaled": (SUV_MAP, {"scaling": (0.37, 0.01)}),
    "float64 scaled": (SUV_MAP.astype(np.float64) / 3, {"scaling": (1.7, 0.1)}),
    "shifted": (TENTHS.astype(np.uint16), {"scaling": (1, 0.5)}),
    "not scaled": (TENTHS.astype(np.int16), {"scaling": (0, 3)}),
    "int64": ((SUV_MAP * 1e9).astype(np.int64), {}),
    "big-endian float32": (SUV_MAP, {"endian": ">"}),
    "big-endian int16": (TENTHS.astype(np.int16), {"endian": ">", "scaling": (0.1, 0)}),
    "oblique": (SUV_MAP, {"affine": OBLIQUE}),
    "oblique qform": (SUV_MAP, {"affine": OBLIQUE, "forms": "q"}),
    "qform": (SUV_MAP, {"forms": "q"}),
    "both forms": (SUV_MAP, {"forms": "qs"}),
    "no form": (SUV_MAP, {"forms": ""}),
    "nifti-2": (SUV_MAP, {"kind": nib.Nifti2Header}),
    "one frame": (SUV_MAP[..., None], {}),
    "one frame, 5D": (SUV_MAP[..., None, None], {}),
    "flat": (SUV_MAP[:, :, :1], {}),
    "2D": (SUV_MAP[:, :, 0], {}),
    "in metres": (SUV_MAP, {"affine": AFFINE * [[1e-3], [1e-3], [1e-3], [1]], "unit": "meter"}),
}  # fmt: skip


def save_stored(kind, path):
    """Byte by byte: nibabel's own save() would choose scaling, forms and byte order."""
    data, odd = STORED[kind]
    header = odd.get("kind", nib.Nifti1Header)(endianness=odd.get("endian", "<"))
    header.set_data_dtype(data.dtype)
    header.set_data_shape(data.shape)
    header.set_zooms([*np.diag(abs(odd.get("affine", AFFINE)))[:3], 1, 1][: data.ndim])
    forms = odd.get("forms", "s")
    if "q" in forms:
        header.set_qform(odd.get("affine", AFFINE), 1)
    if "s" in forms:
        header.set_sform(odd.get("affine", AFFINE), 2)
    header.set_xyzt_units(odd.get("unit", "mm"))
    header["scl_slope"], header["scl_inter"] = odd.get("scaling", (1, 0))
    header["vox_offset"] = header["sizeof_hdr"] + 4
    header["magic"] = b"n+1" if header["sizeof_hdr"] == 348 else header["magic"]
    stored = data.astype(data.dtype.newbyteorder(odd.get("endian", "<")))
    path.write_bytes(header.binaryblock + bytes(4) + stored.tobytes(order="F"))
    return path


def as_three_axes(image):
    """What nibabel makes of the file; only its images may have fewer axes than three."""
    data = np.asanyarray(image.dataobj)
    return data if data.ndim >= 3 else data[:, :, None]


def in_mm(image):
    """What nibabel leaves in the unit of the file."""
    return [[1000]] * 3 + [[1]] if image.header.get_xyzt_units()[0] == "meter" else 1


@pytest.mark.parametrize("kind", STORED)
def test_every_form_of_a_pet(tiny, tmp_path, kind):
    path = save_stored(kind, tmp_path / "pet.nii")
    files = by_program(tmp_path, path, tiny, *SUV_WORDS)
    of_path = tiny.predict(path, **SUV)
    assert_same_files(saved(of_path, tmp_path), files)
    image = nib.load(path)
    volume = dosemap.read(path)
    for other in (
        tiny.predict(str(path), **SUV),
        tiny.predict(volume, **SUV),
        tiny.predict(as_three_axes(image), affine=volume.affine, **SUV),
        tiny.predict(volume.data, affine=volume.affine, **SUV),
    ):
        assert_same_voxels(other, files)
        np.testing.assert_allclose(other.affine, of_path.affine, rtol=1e-12, atol=1e-9)
    assert saved(tiny.predict(volume, **SUV), tmp_path)["dose"] == files["dose"]
    of_image = tiny.predict(image, **SUV)
    np.testing.assert_allclose(of_image.affine, image.affine * in_mm(image), rtol=1e-12, atol=1e-9)
    if kind != "no form":  # where nibabel takes x as going to the left, NIfTI to the right
        assert saved(of_image, tmp_path)["dose"] == files["dose"]


def test_the_header_of_an_image(tiny, tmp_path):
    """Its forms and extensions count as the file's, unless the image lies elsewhere by now."""
    image = nib.load(save_stored("both forms", tmp_path / "forms.nii"))
    image.header.extensions.append(nib.nifti1.Nifti1Extension("comment", b"a PET"))
    path = tmp_path / "pet.nii"
    nib.save(image, path)
    files = by_program(tmp_path, path, tiny, *SUV_WORDS)
    assert json.loads(files["sidecar"])["HeaderExtensions"] == "not copied"
    assert_same_files(saved(tiny.predict(nib.load(path), **SUV), tmp_path), files)
    image.header["pixdim"][3] = np.nan  # which no file may have
    assert_same_voxels(tiny.predict(image, **SUV), files)
    moved = nib.Nifti1Image(SUV_MAP, AFFINE + np.diag([0, 0, 0.5, 0]), image.header)
    moved.affine[:3, 3] += 5
    p = tiny.predict(moved, **SUV)
    np.testing.assert_array_equal(p.affine, moved.affine)
    p.save(tmp_path / "moved.nii")
    np.testing.assert_allclose(nib.load(tmp_path / "moved.nii").affine, moved.affine)


@pytest.mark.parametrize("kind", ["int16 scaled", "oblique", "oblique qform", "in metres"])
def test_resampled_onto_the_voxels_of_the_network(constructed_path, tmp_path, kind):
    model = dosemap.load_model(constructed_path)
    path = save_stored(kind, tmp_path / "pet.nii")
    files = by_program(tmp_path, path, model, *SUV_WORDS, "--overlap", "0")
    for pet in (path, nib.load(path), dosemap.read(path)):
        assert_same_voxels(model.predict(pet, overlap=0, **SUV), files)


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz", ".nii.zst"])
def test_files_of_every_suffix(tiny, pet, labels, tmp_path, suffix):
    files = by_program(tmp_path, pet, tiny, "--labels", labels, "--vx", "0.5", suffix=suffix)
    prediction = tiny.predict(pet, labels=labels, vx=0.5)
    assert_same_files(saved(prediction, tmp_path, suffix), files)
    assert set(files) == {"dose", "sidecar", "dvh", "organs"}


def test_a_pet_in_zstandard(tiny, pet, tmp_path):
    packed = tmp_path / "pet.nii.zst"
    dosemap.read(pet).save(packed)
    files = by_program(tmp_path, packed, tiny, *SUV_WORDS)
    assert_same_files(saved(tiny.predict(packed, **SUV), tmp_path), files)


# ---- Every option --------------------------------------------------------------------------------

OPTIONS = {
    "activity": ({"activity_gbq": 7.4}, ("--activity", "7.4")),
    "weight": ({"units": "suv", "body_weight_kg": 50}, ("--body-weight", "50")),
    "bqml": (
        {"units": "bqml", "injected_mbq": 150, "residual_mbq": 3.5, "decay_correction": "start",
         "radionuclide": "Ga68", "injection_time": "10:00:00", "scan_time": "11:02:30"},
        ("--units", "bqml", "--injected", "150", "--residual", "3.5", "--decay-correction", "start",
         "--radionuclide", "Ga68", "--injection-time", "10:00:00", "--scan-time", "11:02:30"),
    ),
    "half-life": (
        {"units": "kbqml", "injected_mbq": 150, "decay_correction": "none", "half_life_s": 4000,
         "injection_time": 100.5, "scan_time": 4000},
        ("--units", "kbqml", "--injected", "150", "--decay-correction", "none", "--half-life",
         "4000", "--injection-time", "100.5", "--scan-time", "4000"),
    ),
    "tile": ({"tile": 16}, ("--tile", "16")),
    "tiles": ({"tile": (16, 8, 24)}, ("--tile", "16,8,24")),
    "whole": ({"tile": "whole"}, ("--tile", "whole")),
    "auto": ({"tile": "auto", "memory": "4G"}, ("--tile", "auto", "--memory", "4G")),
    "overlap": ({"overlap": 0.25}, ("--overlap", "0.25")),
    "no overlap": ({"overlap": 0}, ("--overlap", "0")),
    "blend": ({"blend": "constant"}, ("--blend", "constant")),
    "skip air": ({"skip_air": 15}, ("--skip-air", "15")),
    "no air": ({"skip_air": "off"}, ("--skip-air", "off")),
    "float32": ({"precision": "float32"}, ("--precision", "float32")),
    "threads": ({"threads": 3}, ("--threads", "3")),
    "batch": ({"batch": 2}, ("--batch", "2")),
    "device": ({"device": "cpu"}, ("--device", "cpu")),
    "memory": ({"memory": "1.5G"}, ("--memory", "1.5G")),
    "force tile": ({"force_tile": True, "tile": 24}, ("--force-tile", "--tile", "24")),
}  # fmt: skip


@pytest.mark.parametrize("option", OPTIONS)
def test_every_option(tiny, pet, tmp_path, option):
    keywords, words = OPTIONS[option]
    files = by_program(tmp_path, pet, tiny, *words)
    assert_same_files(saved(tiny.predict(pet, **keywords), tmp_path), files)


def test_options_matter(tiny, pet):
    """Those that change the dose map do: nothing is dropped on the way."""
    plain = tiny.predict(pet).dose
    for option in (
        "activity",
        "weight",
        "bqml",
        "half-life",
        "tile",
        "overlap",
        "blend",
        "skip air",
    ):
        assert tiny.predict(pet, **OPTIONS[option][0]).dose.tobytes() != plain.tobytes(), option


def test_precision_bf16(constructed_path, pet, tmp_path):
    """Where the processor has it; elsewhere both refuse."""
    model = dosemap.load_model(constructed_path)
    out = tmp_path / "out.nii"
    words = ("--overlap", "0", "--precision", "bf16", "--model", model.path)
    result = run("predict", pet, "-o", out, *words)
    if result.returncode == 0:
        assert_same_voxels(model.predict(pet, overlap=0, precision="bf16"), files_of(out))
    else:
        with pytest.raises(dosemap.UnsupportedError, match="precision"):
            model.predict(pet, overlap=0, precision="bf16")


def test_nan_to_zero(tiny, tmp_path, pet_data, affine):
    data = pet_data.copy()
    data[3, 4, 5], data[30, 20, 10] = np.nan, -np.inf
    path = tmp_path / "nan.nii.gz"
    nib.save(nib.Nifti1Image(data, affine), path)
    files = by_program(tmp_path, path, tiny, *SUV_WORDS, "--nan-to-zero")
    assert_same_files(saved(tiny.predict(path, nan_to_zero=True, **SUV), tmp_path), files)
    assert_same_voxels(tiny.predict(data, affine=affine, nan_to_zero=True, **SUV), files)


def test_the_sidecar_and_what_overrides_it(tiny, pet, tmp_path):
    files = by_program(tmp_path, pet, tiny)
    assert_same_files(saved(tiny.predict(pet), tmp_path), files)
    assert dosemap.pet_info(pet) == SUV
    assert_same_voxels(tiny.predict(dosemap.read(pet), **dosemap.pet_info(pet)), files)
    heavier = by_program(tmp_path, pet, tiny, "--body-weight", "100")
    assert_same_voxels(tiny.predict(pet, body_weight_kg=100), heavier)
    with pytest.raises(dosemap.InvalidValueError, match="unit"):
        tiny.predict(nib.load(pet))  # an image in memory has no sidecar


def test_pet_info_gives_the_keywords_of_any_sidecar(tiny, pet, tmp_path):
    sidecar = {"Units": "Bq/mL", "InjectedRadioactivity": 150, "InjectedRadioactivityUnits": "MBq",
               "TracerRadionuclide": "Ga68", "TimeZero": "10:00:00", "InjectionStart": 0,
               "ScanStart": 3600, "DecayCorrection": "START", "BodyWeight": 80,
               "TracerName": "PSMA-11"}  # fmt: skip
    pet.with_name("sub-1_pet.json").write_text(json.dumps(sidecar))
    known = dosemap.pet_info(pet)
    assert known["injection_time"] == 36000 and known["scan_time"] == 39600
    files = by_program(tmp_path, pet, tiny)
    assert_same_voxels(tiny.predict(pet), files)
    assert_same_voxels(tiny.predict(nib.load(pet), **known), files)
    with pytest.raises(FileNotFoundError, match=r"none\.nii\.gz: there is no such file"):
        dosemap.pet_info(tmp_path / "none.nii.gz")
    alone = tmp_path / "alone.nii.gz"
    alone.write_bytes(pet.read_bytes())
    assert dosemap.pet_info(alone) == {}
    with pytest.warns(
        UserWarning, match="_pet.json: the values are in 'bqml'.*'suv' is taken"
    ) as said:
        tiny.predict(pet, units="suv")
    assert said[0].filename == __file__


# ---- Structures ----------------------------------------------------------------------------------


def masks_folder(folder, ids, affine):
    """Overlapping masks, in the order of their names' bytes."""
    folder.mkdir()
    masks = {"body": ids > 0, "kidney": ids == 3, "liver": ids == 1}
    for name, mask in masks.items():
        nib.save(nib.Nifti1Image(mask.astype(np.uint8), affine), folder / f"{name}.nii.gz")
    return masks


def assert_same_tables(prediction, folder, files):
    ours = saved(prediction, folder)
    for role in ("dose", "dvh", "organs"):
        data = voxels(ours[role]) if role == "dose" else ours[role]
        assert data == (voxels(files[role]) if role == "dose" else files[role]), role


def test_every_form_of_labels(tiny, pet, labels, ids, affine, tmp_path):
    files = by_program(tmp_path, pet, tiny, "--labels", labels, "--vx", "0.2,1.5")
    assert_same_files(saved(tiny.predict(pet, labels=labels, vx=[0.2, 1.5]), tmp_path), files)
    forms = [
        ids, ids.tolist(), ids.astype(np.uint8), ids.astype(">i8"), ids.astype(np.float64),
        np.ascontiguousarray(ids), ids[..., None], nib.load(labels), dosemap.read(labels),
    ]  # fmt: skip
    for form in forms:
        assert_same_tables(tiny.predict(pet, labels=form, vx=(0.2, 1.5)), tmp_path, files)


def test_names_of_labels(tiny, pet, labels, ids, tmp_path):
    table = tmp_path / "names.json"
    table.write_text('{"1": "spleen", "3": "kidney_left", "7": "elsewhere"}')
    files = by_program(tmp_path, pet, tiny, "--labels", labels, "--label-names", table)
    by_id = {0: "background", 1: "spleen", 3: "kidney_left", 7: "elsewhere"}
    for names in (table, str(table), by_id, {str(i): name for i, name in by_id.items()},
                  {name: i for i, name in by_id.items()}):  # fmt: skip
        for form in (labels, ids):
            prediction = tiny.predict(pet, labels=form, label_names=names)
            assert_same_tables(prediction, tmp_path, files)
    words = ("--labels", labels, "--label-names", "totalsegmentator:total")
    files = by_program(tmp_path, pet, tiny, *words)
    for form in (labels, ids):
        prediction = tiny.predict(pet, labels=form, label_names="totalsegmentator:total")
        with pytest.raises(dosemap.InvalidValueError, match="use 'totalsegmentator:total'"):
            tiny.predict(pet, labels=form, label_names="totalsegmentator")
        assert prediction.dvh.names == ["spleen", "kidney_left"]
        assert_same_tables(prediction, tmp_path, files)


def test_masks(tiny, pet, ids, affine, tmp_path):
    folder = tmp_path / "masks"
    masks = masks_folder(folder, ids, affine)
    files = by_program(tmp_path, pet, tiny, "--labels", folder)
    assert_same_files(saved(tiny.predict(pet, labels=folder), tmp_path), files)
    for form in (
        masks,
        {name: mask.astype(np.float32) * 0.5 for name, mask in masks.items()},
        {name: np.asfortranarray(mask).view(np.uint8) * 200 for name, mask in masks.items()},
        {name: nib.load(folder / f"{name}.nii.gz") for name in masks},
        {name: folder / f"{name}.nii.gz" for name in masks},
        {**masks, "liver": folder / "liver.nii.gz"},
    ):
        assert_same_tables(tiny.predict(pet, labels=form), tmp_path, files)


def test_labels_on_another_grid(tiny, pet, ids, affine, tmp_path):
    coarse = nib.Nifti1Image(ids[::2, ::2, ::2].astype(np.uint8), affine * [2, 2, 2, 1])
    path = tmp_path / "coarse.nii.gz"
    nib.save(coarse, path)
    files = by_program(tmp_path, pet, tiny, "--labels", path, "--resample-labels")
    for form in (path, coarse, {"a": coarse, "b": path}):
        with pytest.raises(dosemap.InvalidValueError, match="resample_labels=True"):
            tiny.predict(pet, labels=form)
    for form in (path, coarse, dosemap.read(path)):
        prediction = tiny.predict(pet, labels=form, resample_labels=True)
        assert_same_tables(prediction, tmp_path, files)
    assert len(tiny.predict(pet, labels={"a": coarse}, resample_labels=True).dvh) == 1


# ---- PET and CT ----------------------------------------------------------------------------------


def ct_of(shape, seed=5):
    ct = np.random.default_rng(seed).uniform(-1000, 900, shape).astype(np.int16)
    ct[0, 0, 0] = -1000
    return ct


@pytest.mark.parametrize("fine", [False, True], ids=["on the PET's grid", "finer"])
def test_a_network_with_ct(pet_ct_path, pet, pet_data, affine, tmp_path, fine):
    model = dosemap.load_model(pet_ct_path)
    assert model.takes_ct
    scale = 2 if fine else 1
    data = ct_of([scale * n for n in pet_data.shape])
    place = affine @ np.diag([1 / scale] * 3 + [1])
    path = tmp_path / "ct.nii.gz"
    nib.save(nib.Nifti1Image(data, place), path)
    files = by_program(tmp_path, pet, model, "--ct", path)
    assert_same_files(saved(model.predict(pet, ct=path), tmp_path), files)
    for ct in (nib.load(path), dosemap.read(path)):
        assert_same_voxels(model.predict(pet, ct=ct), files)
    assert_same_voxels(model.predict(pet, ct=data, ct_affine=place), files)
    if fine:
        with pytest.raises(dosemap.InvalidValueError, match="ct_affine"):
            model.predict(pet, ct=data)
    else:
        assert_same_voxels(model.predict(pet, ct=data), files)


def test_what_is_said_of_ct(pet_ct_path, tiny, pet, pet_data, affine):
    model = dosemap.load_model(pet_ct_path)
    with pytest.raises(dosemap.InvalidValueError, match=r"no CT is given.*ct="):
        model.predict(pet)
    with pytest.raises(dosemap.InvalidValueError, match=r"would not use the CT.*leave ct out"):
        tiny.predict(pet, ct=pet)
    with pytest.raises(dosemap.InvalidValueError, match="ct_affine is given without ct"):
        tiny.predict(pet, ct_affine=affine)
    with pytest.raises(dosemap.InvalidValueError, match="ct_is_hu is given without ct"):
        tiny.predict(pet, ct_is_hu=True)
    with pytest.raises(dosemap.InvalidValueError, match="ct_is_hu=True"):
        model.predict(pet, ct=np.ones(pet_data.shape))
    assert model.predict(pet, ct=np.ones(pet_data.shape), ct_is_hu=True).unit == "Gy/GBq"
    ct = ct_of(pet_data.shape).astype(np.float32)
    ct[1, 2, 3] = np.nan
    with pytest.raises(dosemap.InvalidValueError, match=r"\(1, 2, 3\).*nan_to_zero=True"):
        model.predict(pet, ct=ct)
    with pytest.warns(UserWarning, match="% of the PET's activity lie outside of this CT") as seen:
        model.predict(pet, ct=ct[:, :, :10], ct_affine=affine, nan_to_zero=True)
    assert seen[0].filename == __file__


# ---- The result ----------------------------------------------------------------------------------


def test_the_dose_is_a_view(tiny, pet, pet_data, affine):
    p = tiny.predict(pet)
    assert p.dose.dtype == np.float32 and p.dose.flags.f_contiguous
    assert not p.dose.flags.writeable
    assert np.shares_memory(p.dose, p.dose) and np.shares_memory(np.asarray(p), p.dose)
    assert p.shape == pet_data.shape == p.dose.shape and p.spacing_mm == (4, 4, 5)
    np.testing.assert_array_equal(p.affine, affine)
    dose, copy = p.dose, p.dose.copy()
    del p
    np.testing.assert_array_equal(dose, copy)  # which outlives the prediction
    assert np.asarray(tiny.predict(pet), np.float64).dtype == np.float64


def test_to_nifti(tiny, pet, affine):
    p = tiny.predict(pet)
    image = p.to_nifti()
    assert np.shares_memory(np.asanyarray(image.dataobj), p.dose)
    np.testing.assert_array_equal(image.affine, affine)
    assert image.get_data_dtype() == np.float32


def test_what_it_says_of_itself(tiny, pet, labels):
    p = tiny.predict(pet, labels=labels, label_names={1: "<liver>"}, activity_gbq=2)
    assert repr(p) == (
        "Prediction(dose: Gy, 37 x 33 x 20 voxels of 4 x 4 x 5 mm; structures: 2; "
        "model: tiny (NOT TRAINED))"
    )
    page = p._repr_html_()
    assert "&lt;liver&gt;" in page and "<liver>" not in page and "label_3" in page
    assert len(page) < 2000
    plain = tiny.predict(pet)
    assert "structures" not in repr(plain) and plain.dvh is None
    assert plain._repr_html_().count("<table>") == 1
    with pytest.raises(dosemap.InvalidValueError, match="keyword labels"):
        plain.organ_table()
    assert p.provenance["Model"]["Name"] == "tiny" and p.unit == "Gy"


def test_the_page_of_many_structures_is_short(tiny, pet, ids):
    many = np.where(ids > 0, np.random.default_rng(1).integers(1, 41, ids.shape), 0)
    p = tiny.predict(pet, labels=many)
    assert len(p.dvh) == 40 and "and 28 more" in p._repr_html_() and len(p._repr_html_()) < 3000


def test_the_pet_is_kept(tiny, pet, pet_data, affine):
    np.testing.assert_array_equal(tiny.predict(pet).pet.data, pet_data)
    p = tiny.predict(pet_data, affine=affine, **SUV)
    assert np.shares_memory(p.pet.data, pet_data)


def test_the_call_is_in_the_sidecar(tiny, pet, pet_data, affine, ids, tmp_path):
    def call(prediction):
        return json.loads(saved(prediction, tmp_path)["sidecar"])["CommandLine"]

    start = f"dosemap.load_model({tiny.path!r}).predict("
    assert call(tiny.predict(pet)) == f"{start}{str(pet)!r})"
    keywords = {"labels": {"a": ids == 1}, "vx": (1, 2), "progress": print, **SUV}
    assert call(tiny.predict(pet_data, affine=affine, **keywords)) == (
        f"{start}<ndarray 37 x 33 x 20>, affine=<ndarray 4 x 4>, units='suv', body_weight_kg=78.7, "
        "labels={'a': <ndarray 37 x 33 x 20>}, vx=(1, 2))"
    )


def test_inputs_are_not_overwritten(tiny, pet, pet_data, affine, labels, tmp_path):
    before = {path: path.read_bytes() for path in pet.parent.iterdir()}
    for p in (tiny.predict(pet, labels=labels), tiny.predict(nib.load(pet), labels=labels, **SUV)):
        for output in (pet, str(pet), os.path.relpath(pet)):
            with pytest.raises(dosemap.InvalidValueError, match="would overwrite the input"):
                p.save(output)
    assert {path: path.read_bytes() for path in pet.parent.iterdir()} == before
    link = tmp_path / "link.nii.gz"
    link.symlink_to(pet)
    names = tmp_path / "names.json"
    names.write_text('{"1": "liver"}')
    of_image = tiny.predict(nib.load(pet), labels=nib.load(labels), label_names=names, **SUV)
    # The PET by another name, its sidecar, the labels, the names of the labels.
    for output in (link, pet.with_name("sub-1_pet.nii"), labels, tmp_path / "names.nii"):
        with pytest.raises(dosemap.InvalidValueError, match="would overwrite the input"):
            of_image.save(output)
    for of_volume in (dosemap.read(pet), pickle.loads(pickle.dumps(dosemap.read(pet)))):
        with pytest.raises(dosemap.InvalidValueError, match="would overwrite the input"):
            tiny.predict(of_volume, **SUV).save(pet)
    folder = tmp_path / "masks"
    folder.mkdir()
    (folder / "liver.nii.gz").write_bytes(labels.read_bytes())
    with pytest.raises(dosemap.InvalidValueError, match="would overwrite the input"):
        tiny.predict(pet, labels=folder).save(folder / "liver.nii.gz")
    masks = {"a": nib.load(labels), "b": labels}
    with pytest.raises(dosemap.InvalidValueError, match="would overwrite the input"):
        tiny.predict(pet, labels=masks).save(labels)
    assert not list(tmp_path.glob("*.nii"))


def test_saved_from_another_folder(tiny, pet, labels, tmp_path, monkeypatch):
    """Paths that were relative to the folder where it was predicted are found again."""
    monkeypatch.chdir(pet.parent)
    p = tiny.predict(pet.name, labels=labels.name)
    here = json.loads(p.save(tmp_path / "here.nii")[-1].read_text())
    monkeypatch.chdir("/")
    there = json.loads(p.save(tmp_path / "there.nii")[-1].read_text())
    assert here["SourceFiles"] == there["SourceFiles"] and len(here["Sources"]) == 3
    assert here["Sources"][0] == str(pet)
    with pytest.raises(dosemap.InvalidValueError, match="would overwrite the input"):
        p.save(labels)


def test_where_it_cannot_be_saved(tiny, pet, tmp_path):
    p = tiny.predict(pet)
    for name in ("out", "out.img", ".nii", "out.nii.xz"):
        with pytest.raises(dosemap.InvalidValueError, match=r"NAME\.nii"):
            p.save(tmp_path / name)
    with pytest.raises(dosemap.FileError):
        p.save(tmp_path / "missing" / "out.nii")
    for path in (3, None):
        with pytest.raises(TypeError, match="path wants a path"):
            p.save(path)


def test_names_that_are_not_utf8(tiny, pet, tmp_path):
    odd = tmp_path / os.fsdecode(b"\xff\xfe pet.nii.gz")
    odd.write_bytes(pet.read_bytes())
    p = tiny.predict(odd, **SUV)
    (written, sidecar) = p.save(tmp_path / os.fsdecode(b"\xff out.nii"))
    assert written.exists()
    assert "predict(" in json.loads(sidecar.read_text())["CommandLine"]
    with pytest.raises(dosemap.Error) as caught:
        tiny.predict(odd)
    assert caught.value.where == str(odd)


def test_a_file_from_the_tools(tiny, tmp_path, pet_data, affine):
    """numpy's own way to a file, with no nibabel in between."""
    nifti.write(tmp_path / "pet.nii.gz", pet_data, affine)
    dose = tiny.predict(tmp_path / "pet.nii.gz", **SUV).dose
    np.testing.assert_array_equal(dose, tiny.predict(pet_data, affine=affine, **SUV).dose)
