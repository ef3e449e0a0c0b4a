# SPDX-License-Identifier: Apache-2.0
"""dosemap.dvh(): the numbers of `dosemap dvh`, of all that maps and labels can be given as, and of
a definition written down in numpy.
"""

import json
import math
import multiprocessing
import pickle
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

nib = pytest.importorskip("nibabel", reason="nibabel is missing: no images are made")

import dosemap
from program import run

AFFINE = np.array([[-4.0, 0, 0, 60], [0, 4, 0, -50], [0, 0, 5, -200], [0, 0, 0, 1]])
SHAPE = (23, 19, 13)
VOXEL_CM3 = 0.08
DOSES = ("mean", "minimum", "maximum", "d2", "d50", "d95", "d98", "d2cc")
VX = (0.0, 1.0, 2.5, 1e6)


def random_dose(seed=3, scale=2.0):
    """Some of it below 0, as reconstructions have it."""
    rng = np.random.default_rng(seed)
    return (rng.gamma(1.5, scale, SHAPE) - 0.1 * scale).astype(np.float32)


def organ_ids():
    """A large, a flat, and a single-voxel structure."""
    ids = np.zeros(SHAPE, np.int16)
    ids[3:12, 4:15, 2:9], ids[14:22, 1:6, 5:13], ids[20, 18, 12] = 1, 3, 200
    return ids


def overlapping_masks():
    x, y, z = np.indices(SHAPE)
    return {
        "tumour": (x - 8) ** 2 + (y - 9) ** 2 + (z - 6) ** 2 < 20,
        "organ": (x - 11) ** 2 + (y - 9) ** 2 + (z - 6) ** 2 < 35,
        "nothing": np.zeros(SHAPE, bool),
        "body": np.ones(SHAPE, bool),
        "voxel": (x == 3) & (y == 4) & (z == 5),
    }


def save(path, data, affine=AFFINE):
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(data, affine), path)
    return path


@pytest.fixture
def dose_path(tmp_path):
    (tmp_path / "dose.json").write_text('{"Units": "Gy"}')
    return save(tmp_path / "dose.nii.gz", random_dose())


@pytest.fixture
def labels_path(tmp_path):
    return save(tmp_path / "organs.nii.gz", organ_ids())


@pytest.fixture
def mask_folder(tmp_path):
    for name, mask in overlapping_masks().items():
        save(tmp_path / f"masks/{name}.nii.gz", mask.astype(np.uint8))
    return tmp_path / "masks"


def command_line(*arguments):
    result = run("dvh", *arguments, "--json")
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


def without_nan(records):
    """NaN as JSON has it."""
    return [
        {k: None if isinstance(v, float) and math.isnan(v) else v for k, v in record.items()}
        for record in records
    ]


def assert_same(a, b):
    assert a.unit == b.unit
    assert without_nan(a.records()) == without_nan(b.records())
    for s, t in zip(a, b, strict=True):
        assert s.bin_width == t.bin_width or s.voxels == 0
        assert np.array_equal(s.histogram, t.histogram)


# ---- As the command line has it ------------------------------------------------------------------


def assert_as_command_line(dvh, folder, *arguments):
    """Numbers bit for bit, tables byte for byte."""
    expected = command_line(*arguments)
    assert without_nan(dvh.records()) == expected
    assert [list(record) for record in dvh.records()] == [list(record) for record in expected]
    result = run("dvh", *arguments, "-o", folder / "theirs", "--quiet")
    assert result.returncode == 0, result.stderr
    dvh.write_organs(folder / "ours_organs.tsv")
    dvh.write_curves(str(folder / "ours_dvh.tsv"))
    for table in ("organs.tsv", "dvh.tsv"):
        ours, theirs = ((folder / f"{who}_{table}").read_bytes() for who in ("ours", "theirs"))
        assert ours == theirs and len(ours) > 100


def test_label_file(tmp_path, dose_path, labels_path):
    dvh = dosemap.dvh(dose_path, labels_path, vx=VX)
    options = ("--labels", labels_path, "--vx", ",".join(map(str, VX)))
    assert_as_command_line(dvh, tmp_path, dose_path, *options)
    assert dvh.unit == "Gy" and [s.id for s in dvh] == [1, 3, 200]
    assert dvh.names == ["label_1", "label_3", "label_200"]


def test_folder_of_masks(tmp_path, dose_path, mask_folder):
    dvh = dosemap.dvh(str(dose_path), str(mask_folder), vx=[2.5])
    assert_as_command_line(dvh, tmp_path, dose_path, "--labels", mask_folder, "--vx", "2.5")
    assert dvh.names == sorted(overlapping_masks())


@pytest.mark.parametrize("ends", [".nii", ".nii.gz", ".nii.zst"])
def test_unit_of_the_sidecar(tmp_path, labels_path, ends):
    dose = tmp_path / f"map{ends}"
    dosemap.read(save(tmp_path / "plain.nii", random_dose())).save(dose)
    (tmp_path / "map.json").write_text('{"Units": "Gy/GBq"}')
    dvh = dosemap.dvh(dose, labels_path, vx=[1])
    assert_as_command_line(dvh, tmp_path, dose, "--labels", labels_path, "--vx", "1")
    assert dvh.unit == "Gy/GBq" and "mean_gy_per_gbq" in dvh.records()[0]
    assert_same(dosemap.dvh(dose, labels_path, vx=[1], unit="Gy/GBq"), dvh)
    with pytest.raises(dosemap.InvalidValueError, match=r"says Gy/GBq.*leave the unit out") as e:
        dosemap.dvh(dose, labels_path, unit="Gy")
    assert e.value.where == str(dose)


@pytest.mark.parametrize(
    "content",
    [
        b'{"Units": "mGy"}', b'{"Units": ["Gy"]}', b'["Gy/GBq"]', b"", b"{", b"\xff\xfe{}",
        b'{"Units": "Gy/GBq", "Units": "Gy/GBq"}', b'{"Units": "Gy/GBq", "X": NaN}',
        b"[" * 100000, '{"Units": "Gy/GBq"}'.encode("utf-16"),
        b'{"Units": "Gy/GBq"}' + b" " * (4 << 20),
    ],
    ids=["unit", "list", "array", "empty", "cut", "bytes", "twice", "NaN", "deep", "utf16", "big"],
)  # fmt: skip
def test_sidecars_of_others(dose_path, labels_path, content):
    """What says nothing to the command line, which then takes Gy, says nothing here, either."""
    dose_path.with_name("dose.json").write_bytes(content)
    assert "mean_gy" in command_line(dose_path, "--labels", labels_path)[0]
    with pytest.raises(dosemap.InvalidValueError, match=r"no sidecar.*give unit='Gy' or"):
        dosemap.dvh(dose_path, labels_path)
    assert dosemap.dvh(dose_path, labels_path, unit="Gy").unit == "Gy"
    assert dosemap.dvh(dose_path, labels_path, unit="Gy/GBq").unit == "Gy/GBq"


def test_sidecar_that_is_a_folder(dose_path, labels_path):
    dose_path.with_name("dose.json").unlink()
    dose_path.with_name("dose.json").mkdir()
    with pytest.raises(dosemap.InvalidValueError, match="no sidecar that says it"):
        dosemap.dvh(dose_path, labels_path)
    assert dosemap.dvh(dose_path, labels_path, unit="Gy").unit == "Gy"


def test_sidecar_that_cannot_be_read(dose_path, labels_path):
    sidecar = dose_path.with_name("dose.json")
    dose_path.with_name("dose.json").unlink()
    sidecar.symlink_to(sidecar)
    assert run("dvh", dose_path, "--labels", labels_path).returncode == 1
    with pytest.raises(dosemap.FileError, match="cannot read the sidecar") as e:
        dosemap.dvh(dose_path, labels_path)
    assert e.value.where == str(sidecar)


def test_names(tmp_path, dose_path, labels_path):
    names = {1: "kidney left", 3: "Leber <ä>", 7: "nowhere"}
    text = tmp_path / "names.json"
    text.write_text(json.dumps({str(k): v for k, v in names.items()}))
    table = tmp_path / "names.tsv"
    table.write_text("index\tname\n" + "".join(f"{k}\t{v}\n" for k, v in names.items()))
    dvh = dosemap.dvh(dose_path, labels_path, label_names=names)
    assert dvh.names == ["kidney left", "Leber <ä>", "label_200"]
    for path in (text, table):
        given = dosemap.dvh(dose_path, labels_path, label_names=path)
        assert_as_command_line(given, tmp_path, dose_path, "--labels", labels_path,
                               "--label-names", path)  # fmt: skip
        assert_same(given, dvh)
    image = nib.load(labels_path)
    for given in (names, str(text), table):
        assert_same(dosemap.dvh(dose_path, image, label_names=given), dvh)


def test_names_of_totalsegmentator(tmp_path, dose_path, labels_path):
    names = "totalsegmentator:total"
    dvh = dosemap.dvh(dose_path, labels_path, label_names=names)
    options = ("--labels", labels_path, "--label-names", names)
    assert_as_command_line(dvh, tmp_path, dose_path, *options)
    assert dvh.names[:2] == ["spleen", "kidney_left"]
    in_memory = dosemap.dvh(random_dose(), organ_ids(), affine=AFFINE, unit="Gy", label_names=names)
    assert_same(in_memory, dvh)


def test_labels_on_another_grid(tmp_path, dose_path, labels_path):
    """Half as long along x, and shifted: an error, or the nearest voxel."""
    affine = AFFINE @ np.diag([2.0, 1, 1, 1])
    affine[1, 3] += 4
    other = save(tmp_path / "other.nii", np.ascontiguousarray(organ_ids()[::2]), affine)
    with pytest.raises(dosemap.InvalidValueError, match=r"different grids.*resample_labels=True"):
        dosemap.dvh(dose_path, other)
    dvh = dosemap.dvh(dose_path, other, resample_labels=True)
    options = ("--labels", other, "--resample-labels")
    assert_as_command_line(dvh, tmp_path, dose_path, *options)
    assert dvh["label_1"].voxels > 0
    image = nib.load(other)
    with pytest.raises(dosemap.InvalidValueError, match="different grids"):
        dosemap.dvh(dose_path, image)
    assert_same(dosemap.dvh(dose_path, image, resample_labels=True), dvh)
    assert_same(dosemap.dvh(dose_path, dosemap.read(other), resample_labels=True), dvh)
    masks = {f"label_{i}": nib.Nifti1Image((image.get_fdata() == i) * 1.0, affine) for i in (1, 3)}
    with pytest.raises(dosemap.InvalidValueError, match="different grids"):
        dosemap.dvh(dose_path, masks)
    resampled = dosemap.dvh(dose_path, masks, resample_labels=True)
    assert [s.voxels for s in resampled] == [dvh[name].voxels for name in masks]


def test_labels_outside_the_map(tmp_path, dose_path):
    """On a grid far away nothing is left of them."""
    away = AFFINE.copy()
    away[0, 3] += 1000
    other = save(tmp_path / "away.nii", organ_ids(), away)
    with pytest.warns(UserWarning, match=r"away\.nii: no structure reaches into the image"):
        dvh = dosemap.dvh(dose_path, other, resample_labels=True)
    expected = command_line(dose_path, "--labels", other, "--resample-labels")
    assert without_nan(dvh.records()) == expected
    assert all(s.voxels == 0 for s in dvh) and len(dvh) == 3


# ---- All that images can be given as -------------------------------------------------------------


def test_dose_maps_in_memory(tmp_path, dose_path, labels_path):
    expected = dosemap.dvh(dose_path, labels_path, vx=VX)
    data = random_dose()
    read_only = np.asfortranarray(data)
    read_only.flags.writeable = False
    big = np.zeros((46, 19, 39), np.float32)
    big[::-2, :, ::3] = data
    arrays = [data, np.asfortranarray(data), read_only, big[::-2, :, ::3], data.astype(">f4"),
              data.astype(np.float64), data.tolist()]  # fmt: skip
    for array in arrays:
        given = dosemap.dvh(array, labels_path, affine=AFFINE, unit="Gy", vx=VX)
        assert_same(given, expected)
    for image in (nib.load(dose_path), nib.Nifti1Image(data, AFFINE), dosemap.read(dose_path)):
        assert_same(dosemap.dvh(image, labels_path, unit="Gy", vx=VX), expected)


@pytest.mark.parametrize("kind", ["u1", "i2", "<i8", ">u4", "f4", "f8", "strided", "bool"])
def test_labels_in_memory(dose_path, labels_path, kind):
    ids = organ_ids()
    expected = dosemap.dvh(dose_path, labels_path)
    if kind == "bool":
        given = dosemap.dvh(dose_path, ids == 1)
        assert without_nan(given.records()) == without_nan(expected.records()[:1])
        return
    array = ids[::-1, ::-1][::-1, ::-1] if kind == "strided" else ids.astype(kind)
    for labels in (array, np.asfortranarray(array), dosemap.read(labels_path)):
        assert_same(dosemap.dvh(dose_path, labels), expected)
    if kind not in ("<i8",):  # nibabel wants to be told that it is meant
        assert_same(dosemap.dvh(dose_path, nib.Nifti1Image(array, AFFINE)), expected)


def test_masks_in_memory(dose_path, mask_folder):
    """Ids are given in the order of the dict; a folder's in that of the names."""
    masks = overlapping_masks()
    from_folder = dosemap.dvh(dose_path, mask_folder)
    dvh = dosemap.dvh(dose_path, masks)
    assert dvh.names == list(masks) and [s.id for s in dvh] == [1, 2, 3, 4, 5]
    in_order = dict(sorted(masks.items()))
    assert_same(dosemap.dvh(dose_path, in_order), from_folder)
    as_numbers = {name: 0.5 * mask for name, mask in in_order.items()}
    assert_same(dosemap.dvh(dose_path, as_numbers), from_folder)
    mixed = {name: mask_folder / f"{name}.nii.gz" for name in in_order}
    mixed["organ"] = nib.Nifti1Image(masks["organ"].astype(np.int16), AFFINE)
    mixed["tumour"] = masks["tumour"].T.copy().T
    assert_same(dosemap.dvh(dose_path, mixed), from_folder)


# ---- The definition, in numpy --------------------------------------------------------------------


def dose_at(voxels, hottest):
    """The lowest dose of so many of the hottest voxels, in between by linear interpolation."""
    ordered = np.sort(voxels.astype(np.float64))[::-1]
    return np.interp(hottest, np.arange(1, ordered.size + 1), ordered)


def reference(voxels):
    n = voxels.size
    volume = n * VOXEL_CM3
    stated = {f"d{x}": dose_at(voxels, n * x / 100) for x in (2, 50, 95, 98)}
    stated["d2cc"] = dose_at(voxels, 2 / VOXEL_CM3) if volume >= 2 else math.nan
    stated |= {"minimum": voxels.min(), "maximum": voxels.max()}
    stated["mean"] = math.fsum(voxels.tolist()) / n
    return stated


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("scale", [2e-3, 2.0, 500.0])
def test_statistics_against_numpy(seed, scale):
    dose = random_dose(seed, scale)
    masks = overlapping_masks()
    at_a_voxel = float(dose[8, 9, 6])  # of the tumour's: at least, not more than
    thresholds = [0, 0.1 * scale, at_a_voxel, 3 * scale, 1e9]
    dvh = dosemap.dvh(dose, masks, affine=AFFINE, unit="Gy/GBq", vx=thresholds)
    for s in dvh:
        voxels = dose[masks[s.name]]
        assert s.voxels == voxels.size and s.volume_cm3 == pytest.approx(VOXEL_CM3 * voxels.size)
        if voxels.size == 0:
            continue
        for name, value in reference(voxels).items():
            close = pytest.approx(value, rel=1e-9, abs=1e-12 * scale, nan_ok=True)
            assert getattr(s, name) == close, (s.name, name)
        for threshold, share in s.v_percent.items():
            received = np.count_nonzero(voxels >= np.float32(threshold))
            assert share == pytest.approx(100 * received / voxels.size, abs=1e-12)
        assert list(s.v_percent) == [float(x) for x in thresholds]


@pytest.mark.parametrize("scale", [2e-3, 2.0, 500.0, 1e6])
def test_curve_counts_voxels(scale):
    dose = random_dose(5, scale)
    masks = overlapping_masks()
    for s in dosemap.dvh(dose, masks, affine=AFFINE, unit="Gy"):
        edges, volume = s.curve()
        voxels = np.maximum(dose[masks[s.name]].astype(np.float64), 0)
        if voxels.size == 0:
            assert edges.shape == volume.shape == (0,)
            continue
        assert edges.shape == volume.shape == (s.histogram.size + 1,)
        assert edges.dtype == volume.dtype == np.float64
        assert edges[0] == 0 and np.allclose(np.diff(edges), s.bin_width)
        assert edges[-1] * (1 + 1e-12) > voxels.max() >= edges[-2] * (1 - 1e-12)
        # A voxel as near to an edge as rounding may lie on either side.
        received = [np.count_nonzero(voxels >= e * (1 + r)) for r in (1e-9, -1e-9) for e in edges]
        fewest, most = np.reshape(received, (2, -1)) * VOXEL_CM3
        assert (fewest - 1e-9 <= volume).all() and (volume <= most + 1e-9).all()
        assert volume[0] == s.volume_cm3 and volume[-1] == 0


def test_threads_change_nothing(dose_path, mask_folder):
    one = dosemap.dvh(dose_path, mask_folder, threads=1)
    assert_same(dosemap.dvh(dose_path, mask_folder, threads=3), one)


# ---- What is empty, negative, or no dose ---------------------------------------------------------


def test_structure_without_voxels(dose_path):
    dvh = dosemap.dvh(dose_path, {"nothing": np.zeros(SHAPE)}, vx=[1])
    s = dvh[0]
    assert s.voxels == 0 and s.volume_cm3 == 0 and s.histogram.shape == (0,)
    assert all(math.isnan(getattr(s, name)) for name in DOSES) and math.isnan(s.v_percent[1])
    assert "0 voxels" in repr(s) and "nan" not in repr(s)
    assert "n/a" in dvh._repr_html_() and "nan" not in dvh._repr_html_()
    pd = pytest.importorskip("pandas")
    table = dvh.to_pandas()
    assert table["mean_gy"].isna().all() and pd.api.types.is_float_dtype(table["mean_gy"])
    assert dvh.curves().empty


def test_doses_below_zero():
    dose = -random_dose(2) - 5
    mask = overlapping_masks()["organ"]
    s = dosemap.dvh(dose, {"organ": mask}, affine=AFFINE, unit="Gy")[0]
    assert s.maximum < 0 and s.mean == pytest.approx(dose[mask].astype(float).mean())
    assert s.histogram.tolist() == [s.voxels]
    edges, volume = s.curve()
    assert edges.tolist() == [0, 0.01] and volume.tolist() == [s.volume_cm3, 0]


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_doses_that_are_no_numbers(dose_path, labels_path, value):
    """Outside all structures they do not matter."""
    dose = random_dose()
    dose[0, 0, 0] = value
    dvh = dosemap.dvh(dose, labels_path, affine=AFFINE, unit="Gy")
    assert_same(dvh, dosemap.dvh(dose_path, labels_path))
    dose[4, 5, 6] = value
    with pytest.raises(dosemap.InvalidValueError, match=r"\(4, 5, 6\)"):
        dosemap.dvh(dose, labels_path, affine=AFFINE, unit="Gy")
    with pytest.raises(dosemap.InvalidValueError, match=r"\(4, 5, 6\)") as e:
        dosemap.dvh(save(dose_path, dose), labels_path)
    assert e.value.where == str(dose_path)


# ---- The object ----------------------------------------------------------------------------------


def test_dvh_is_a_sequence_with_names(dose_path, mask_folder):
    dvh = dosemap.dvh(dose_path, mask_folder)
    names = sorted(overlapping_masks())
    assert len(dvh) == 5 and [s.name for s in dvh] == dvh.names == names
    assert dvh["organ"] is dvh[2] and dvh[-1] is dvh["voxel"] and dvh[np.int64(1)] is dvh[1]
    assert [s.name for s in dvh[1:3]] == names[1:3] and list(reversed(dvh)) == list(dvh)[::-1]
    assert "organ" in dvh and "liver" not in dvh and dvh[0] in dvh and 7 not in dvh
    with pytest.raises(KeyError, match=r"no structure 'liver'; there are body, nothing, organ"):
        dvh["liver"]
    with pytest.raises(IndexError, match="no structure 5: there are 5, counted from 0"):
        dvh[5]
    with pytest.raises(TypeError):
        dvh[1.5]
    with pytest.raises(AttributeError):
        dvh[0].mean = 3
    assert repr(dvh) == "Dvh(5 structures, Gy: body, nothing, organ, tumour, ...)"
    assert repr(dvh["voxel"]).startswith("StructureDose('voxel', 1 voxel, 0.08 cm3, mean ")


def test_structures_outlive_what_they_came_from(dose_path, labels_path):
    s = dosemap.dvh(dose_path, labels_path)[0]
    counts = s.histogram
    expected = counts.copy()
    del s
    np.random.default_rng(1).random(2_000_000)
    assert np.array_equal(counts, expected)
    with pytest.raises(ValueError, match="read-only"):
        counts[0] = 1


def test_html(dose_path):
    ids = np.arange(np.prod(SHAPE), dtype=np.int32).reshape(SHAPE) % 41
    dvh = dosemap.dvh(dose_path, ids, label_names={1: "<script>&"}, vx=[5, 5])
    text = dvh._repr_html_()
    columns = text.count("<th>")
    assert columns == 9 and text.count("<td>") == 30 * columns
    assert "&lt;script&gt;&amp;" in text and "<script>" not in text
    assert text.count("<tr>") == 31 and "and 10 more" in text and "V5 (%)" in text


def test_pandas(tmp_path, dose_path, mask_folder):
    pd = pytest.importorskip("pandas")
    dvh = dosemap.dvh(dose_path, mask_folder, vx=VX)
    table = dvh.to_pandas()
    assert without_nan(table.to_dict("records")) == without_nan(dvh.records())
    kinds = table.dtypes
    assert kinds["id"] == kinds["voxels"] == np.int64 and kinds["name"] == "string"
    assert (kinds.drop(["name", "id", "voxels"]) == np.float64).all()
    dvh.write_organs(tmp_path / "organs.tsv")
    written = pd.read_csv(tmp_path / "organs.tsv", sep="\t", na_values="n/a")
    assert list(written.columns) == list(table.columns)


@pytest.mark.parametrize("scale", [2e-3, 2.0, 500.0])
def test_curve_table(tmp_path, mask_folder, scale):
    """The same rows as in the file, thinned where that is, with all their digits."""
    pytest.importorskip("pandas")
    dvh = dosemap.dvh(random_dose(1, scale), mask_folder, affine=AFFINE, unit="Gy")
    dvh.write_curves(tmp_path / "curves.tsv")
    curves = dvh.curves()
    lines = ["\t".join(curves.columns)]
    for row in curves.itertuples(index=False):
        lines.append(f"{row[0]}\t{row[1]}\t{row[2]:.6g}\t{row[3]:.6g}\t{row[4]:.6g}")
    assert "\n".join(lines) + "\n" == (tmp_path / "curves.tsv").read_text()
    thinned = [s.name for s in dvh if s.histogram.size > 2000]
    assert bool(thinned) == (scale > 1)


def test_prediction_has_the_tables_of_the_command_line(tmp_path, labels_path, constructed_path):
    weights = constructed_path
    pet = save(tmp_path / "pet.nii", np.maximum(random_dose(), 0))
    result = run(
        "predict", pet, "--units", "suv", "--body-weight", "78.7", "--labels", labels_path,
        "--activity", "7.4", "--vx", "0.5,2", "-o", tmp_path / "out.nii", "--model", weights,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    p = dosemap.load_model(weights).predict(
        pet, units="suv", body_weight_kg=78.7, labels=labels_path, activity_gbq=7.4, vx=(0.5, 2)
    )
    assert p.dvh.unit == "Gy" and list(p.dvh[0].v_percent) == [0.5, 2.0]
    assert_as_command_line(p.dvh, tmp_path, tmp_path / "out.nii", "--labels", labels_path,
                           "--vx", "0.5,2")  # fmt: skip
    assert (tmp_path / "out_organs.tsv").read_bytes() == (tmp_path / "ours_organs.tsv").read_bytes()
    assert (tmp_path / "out_dvh.tsv").read_bytes() == (tmp_path / "ours_dvh.tsv").read_bytes()


def test_dvh_of_a_prediction(tmp_path, tiny_path, labels_path):
    """With other labels than it was predicted with; it knows its unit."""
    pet = nib.Nifti1Image(np.maximum(random_dose(), 0), AFFINE)
    p = dosemap.load_model(tiny_path).predict(pet, units="suv", body_weight_kg=78.7)
    p.save(tmp_path / "saved.nii")
    dvh = dosemap.dvh(p, labels_path)
    assert dvh.unit == "Gy/GBq"
    assert_same(dvh, dosemap.dvh(tmp_path / "saved.nii", labels_path))
    assert_same(dvh, dosemap.dvh(p, labels_path, unit="Gy/GBq"))
    with pytest.raises(dosemap.InvalidValueError, match="the prediction is in Gy/GBq"):
        dosemap.dvh(p, labels_path, unit="Gy")
    with pytest.raises(dosemap.InvalidValueError, match="affine"):
        dosemap.dvh(p, labels_path, affine=AFFINE)


# ---- Several at once -----------------------------------------------------------------------------


def test_many_threads(dose_path, mask_folder):
    """On the same objects, which are only read."""
    dose, masks = dosemap.read(dose_path), overlapping_masks()
    expected = dosemap.dvh(dose, masks, unit="Gy", vx=VX)

    def again(count):
        dvh = dosemap.dvh(dose, masks, unit="Gy", vx=VX, threads=count)
        assert_same(dvh, expected)
        return [s.curve()[1].sum() for s in expected]

    with ThreadPoolExecutor(8) as pool:
        sums = list(pool.map(again, [1, 2, 3, 4] * 10))
    assert all(found == sums[0] for found in sums)


def test_in_a_forked_child(dose_path, labels_path):
    """Also after the parent has used threads."""
    parent = without_nan(dosemap.dvh(dose_path, labels_path, threads=2).records())
    with multiprocessing.get_context("fork").Pool(2) as pool:
        found = pool.starmap_async(_records, [(dose_path, labels_path)] * 4).get(60)
    assert all(without_nan(records) == parent for records in found)


def _records(dose, labels):
    return dosemap.dvh(dose, labels, threads=2).records()


def test_pickling_says_what_can_be(dose_path, labels_path):
    dvh = dosemap.dvh(dose_path, labels_path)
    with pytest.raises(TypeError, match=r"\.records\(\)"):
        pickle.dumps(dvh)
    assert pickle.loads(pickle.dumps(dvh.records()[0]["mean_gy"])) == dvh[0].mean


# ---- Refusals ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("keywords", "error", "words"),
    [
        ({"unit": None}, dosemap.InvalidValueError, "unit='Gy' or unit='Gy/GBq'"),
        ({"unit": "mGy"}, dosemap.InvalidValueError, "'mGy'"),
        ({"unit": 1}, TypeError, "unit"),
        ({"affine": None}, dosemap.InvalidValueError, "affine"),
        ({"affine": np.eye(3)}, dosemap.InvalidValueError, r"\(3, 3\)"),
        ({"affine": np.zeros((4, 4))}, dosemap.InvalidValueError, "affine"),
        ({"affine": np.full((4, 4), np.nan)}, dosemap.InvalidValueError, "affine"),
        ({"vx": "5,10"}, TypeError, "vx"),
        ({"vx": [-1]}, dosemap.InvalidValueError, "vx=-1"),
        ({"vx": [math.nan]}, dosemap.InvalidValueError, "nan"),
        ({"vx": [math.inf]}, dosemap.InvalidValueError, "inf"),
        ({"vx": ["five"]}, TypeError, "vx"),
        ({"threads": 0}, dosemap.InvalidValueError, "threads=0"),
        ({"threads": 1.5}, TypeError, "threads"),
        ({"resample_labels": "no"}, TypeError, "resample_labels"),
        ({"label_names": 7}, TypeError, "label_names"),
        ({"label_names": {1: "a\tb"}}, dosemap.InvalidValueError, "control characters"),
        ({"label_names": {1: "a", 3: "a"}}, dosemap.InvalidValueError, "'a'"),
        ({"label_names": "no/such/table.tsv"}, dosemap.FileMissingError, "no/such/table.tsv"),
        ({"dose": np.zeros((4, 4))}, dosemap.InvalidValueError, r"\(4, 4\)"),
        ({"dose": np.zeros((2, 3, 4, 5))}, dosemap.InvalidValueError, r"\(2, 3, 4, 5\)"),
        ({"dose": np.zeros((0, 3, 4))}, dosemap.InvalidValueError, "no voxels"),
        ({"dose": np.zeros(SHAPE, complex)}, TypeError, "complex"),
        ({"dose": np.zeros(SHAPE, object)}, TypeError, "object"),
        ({"dose": np.zeros(SHAPE, bool)}, TypeError, "bool"),
        ({"dose": None}, TypeError, "dose"),
        ({"labels": None}, TypeError, "labels"),
        ({"labels": {}}, dosemap.InvalidValueError, "empty dict"),
        ({"labels": {1: np.ones(SHAPE)}}, TypeError, "names"),
        ({"labels": {"a": np.ones((2, 2, 2))}}, dosemap.InvalidValueError, r"\(2, 2, 2\)"),
        ({"labels": {"a": np.full(SHAPE, np.nan)}}, dosemap.InvalidValueError, "nan"),
        ({"labels": np.zeros(SHAPE, int)}, dosemap.InvalidValueError, "every voxel is 0"),
        ({"labels": np.full(SHAPE, -1)}, dosemap.InvalidValueError, "-1"),
        ({"labels": np.full(SHAPE, 0.5)}, dosemap.InvalidValueError, "0.5"),
        ({"labels": np.ones((2, 2, 2), int)}, dosemap.InvalidValueError, r"\(2, 2, 2\)"),
        ({"labels": "no/such/labels.nii"}, dosemap.FileMissingError, "no/such/labels.nii"),
    ],
)  # fmt: skip
def test_refusals(keywords, error, words):
    given = {"dose": random_dose(), "labels": organ_ids(), "affine": AFFINE, "unit": "Gy"}
    with pytest.raises(error, match=words):
        dosemap.dvh(**{**given, **keywords})


def test_files_that_cannot_be_written(tmp_path, dose_path, labels_path):
    dvh = dosemap.dvh(dose_path, labels_path)
    for write in (dvh.write_organs, dvh.write_curves):
        with pytest.raises(dosemap.FileError, match="none"):
            write(tmp_path / "none/table.tsv")
        with pytest.raises(TypeError, match="path"):
            write(None)


def test_without_pandas(monkeypatch, dose_path, labels_path):
    dvh = dosemap.dvh(dose_path, labels_path)
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(dosemap.MissingPackageError, match=r"records\(\).*pip install pandas"):
        dvh.to_pandas()
    with pytest.raises(dosemap.MissingPackageError, match=r"curve\(\).*pip install pandas"):
        dvh.curves()
    assert {type(value) for record in dvh.records() for value in record.values()} == {
        str, int, float,
    }  # fmt: skip
