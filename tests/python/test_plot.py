# SPDX-License-Identifier: Apache-2.0
"""What is in the plots: voxels, millimetres, scales and curves, not pixels."""

import gc
import subprocess
import sys
import warnings
import weakref

import dosemap
import matplotlib
import nibabel as nib
import numpy as np
import pytest
from images import ORIENTATIONS, RAS_AFFINE, stored_as, uptake

matplotlib.use("agg")
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

SUV = {"units": "suv", "body_weight_kg": 78.7}
SHAPE = (9, 8, 7)


def turned(degrees):
    """RAS_AFFINE, tilted about the axis to the head: no axis is the patient's any more."""
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    return np.array([[c, -s, 0, 0], [s, c, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]) @ RAS_AFFINE


@pytest.fixture(scope="module")
def model(tiny_path):
    return dosemap.load_model(tiny_path)


@pytest.fixture
def prediction(model, pet_data, affine, ids):
    return model.predict(pet_data, affine=affine, labels=ids, threads=1, **SUV)


@pytest.fixture(autouse=True)
def warnings_are_errors():
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        warnings.simplefilter("error", UserWarning)
        yield


def panels(figure):
    """The axes that show images: four of the PET, four of the dose."""
    return [axes for axes in figure.axes if axes.images]


def curves(figure):
    """The axes with the DVHs."""
    return next(axes for axes in figure.axes if axes.get_ylabel().startswith("volume"))


def bars(figure):
    """The axes of the colour bars."""
    return [axes for axes in figure.axes if axes.get_ylabel().startswith(("PET", "dose"))]


def canonical(data, affine):
    """The volume in RAS by nibabel, its middle and spacing in mm."""
    image = nib.as_closest_canonical(nib.Nifti1Image(np.asarray(data), affine))
    middle = nib.affines.apply_affine(image.affine, (np.array(image.shape) - 1) / 2)
    return np.asarray(image.dataobj), middle, nib.affines.voxel_sizes(image.affine)


def expected(data, affine, voxel):
    """Image and extent of the four panels."""
    ras, middle, spacing = canonical(data, affine)
    mark = np.zeros(data.shape, np.uint8)
    mark[tuple(voxel)] = 1
    x, y, z = np.argwhere(canonical(mark, affine)[0])[0]
    low = middle - np.array(ras.shape) / 2 * spacing
    high = middle + np.array(ras.shape) / 2 * spacing

    def extent(across, up):
        return low[across], high[across], low[up], high[up]

    return [
        (ras[:, :, z].T, extent(0, 1)),
        (ras[:, y, :].T, extent(0, 2)),
        (ras[x, :, :].T, extent(1, 2)),
        (ras.max(axis=1).T, extent(0, 2)),
    ]


def assert_shows(figure, prediction, voxel):
    """Each panel has the voxels and millimetres that nibabel's turn gives."""
    shown = panels(figure)
    assert len(shown) == 8
    wanted = [
        *expected(prediction.pet.data, prediction.affine, voxel),
        *expected(prediction.dose, prediction.affine, voxel),
    ]
    for axes, (image, extent) in zip(shown, wanted, strict=True):
        np.testing.assert_array_equal(axes.images[0].get_array(), image)
        assert axes.images[0].origin == "lower"
        np.testing.assert_allclose(axes.images[0].get_extent(), extent, atol=1e-9)
        # Right on the left: positions grow to the left. Head and front are up.
        np.testing.assert_allclose(axes.get_xlim(), extent[1::-1], atol=1e-9)
        assert axes.get_ylim()[0] <= extent[2] < extent[3] <= axes.get_ylim()[1]


def test_planes_through_the_dose_maximum(prediction):
    voxel = np.unravel_index(np.argmax(prediction.dose), prediction.dose.shape)
    figure = prediction.plot()
    assert isinstance(figure, Figure)
    assert_shows(figure, prediction, voxel)
    words = figure.findobj(matplotlib.text.Text)
    below = next(text.get_text() for text in words if "Planes" in text.get_text())
    assert f"({voxel[0]}, {voxel[1]}, {voxel[2]}): {prediction.dose.max():.4g} Gy/GBq" in below
    assert "right is on the left" in below
    assert "tiny (not trained)" in below


def test_planes_through_a_voxel(prediction):
    assert_shows(prediction.plot(at=(30, 2, 17)), prediction, (30, 2, 17))
    assert_shows(prediction.plot(at=np.array([0, 32, 0])), prediction, (0, 32, 0))


def test_lines_lie_at_the_voxel(prediction, affine):
    x, y, z, _ = affine @ [30, 2, 17, 1]
    for row in (0, 4):
        shown = panels(prediction.plot(at=(30, 2, 17)))[row : row + 4]
        for axes, (across, up) in zip(shown, ((x, y), (x, z), (y, z)), strict=False):
            upright, level = axes.lines
            assert set(upright.get_xdata()) == {across}
            assert set(level.get_ydata()) == {up}
        assert shown[3].lines[0].get_xydata().tolist() == [[x, z]]


@pytest.mark.parametrize(
    ("affine_ras", "step"), [(RAS_AFFINE, 1), (turned(20), 5)], ids=["straight", "tilted"]
)
def test_every_orientation_gives_the_same_picture(model, affine_ras, step):
    volume = uptake(SHAPE)
    mask = np.zeros(SHAPE, np.uint8)
    mask[2:5, 1:3, 2:6] = 1

    def content(order, flips):
        stored, affine = stored_as(volume, affine_ras, order, flips)
        labels = stored_as(mask, affine_ras, order, flips)[0]
        p = model.predict(stored, affine=affine, threads=1, **SUV)
        figure = p.plot(outlines={"box": labels})
        assert_shows(figure, p, np.unravel_index(np.argmax(p.dose), p.dose.shape))
        return [
            (
                axes.images[0].get_array(),
                axes.images[0].get_extent(),
                axes.images[0].get_clim(),
                axes.get_xlim(),
                axes.get_ylim(),
                [line.get_xydata() for line in axes.lines],
                [path.vertices for each in axes.collections for path in each.get_paths()],
            )
            for axes in panels(figure)
        ]

    first = content((0, 1, 2), (0, 0, 0))
    for order, flips in ORIENTATIONS[::step]:
        for one, other in zip(first, content(order, flips), strict=True):
            np.testing.assert_array_equal(one[0], other[0])
            for a, b in zip(one[1:5], other[1:5], strict=True):
                np.testing.assert_allclose(a, b, atol=1e-9)
            for a, b in zip(one[5] + one[6], other[5] + other[6], strict=True):
                np.testing.assert_allclose(a, b, atol=1e-9)


def test_one_scale_in_millimetres(prediction):
    figure = prediction.plot()
    figure.draw_without_rendering()
    scales = []
    for axes in panels(figure):
        origin, across, up = axes.transData.transform([(0, 0), (100, 0), (0, 100)])
        scales += [origin[0] - across[0], up[1] - origin[1]]
        # Nothing of the image lies outside of its axes.
        left, right, bottom, top = axes.images[0].get_extent()
        assert axes.viewLim.xmin <= left < right <= axes.viewLim.xmax
        assert axes.viewLim.ymin <= bottom < top <= axes.viewLim.ymax
    assert min(scales) > 0
    np.testing.assert_allclose(scales, scales[0], rtol=1e-6)


def test_colour_scales(prediction):
    figure = prediction.plot()
    pet, dose = panels(figure)[:4], panels(figure)[4:]
    top = np.percentile(prediction.pet.data.max(axis=1), 99)
    assert top < prediction.pet.data.max()
    for axes in pet:
        np.testing.assert_allclose(axes.images[0].get_clim(), (0, top), rtol=1e-6)
    for axes in dose:
        assert axes.images[0].get_clim() == (0, prediction.dose.max())
    assert [axes.get_ylabel() for axes in bars(figure)] == ["PET (SUV)", "dose (Gy/GBq)"]
    # An arrow where the scale does not reach the maximum.
    assert [axes.images[0].colorbar.extend for axes in (pet[3], dose[3])] == ["max", "neither"]

    figure = prediction.plot(pet_max=1e3, dose_max=0.25)
    assert panels(figure)[0].images[0].get_clim() == (0, 1000)
    assert panels(figure)[5].images[0].get_clim() == (0, 0.25)
    assert [panels(figure)[i].images[0].colorbar.extend for i in (3, 7)] == ["neither", "max"]


def test_unit_of_the_dose(model, pet_data, affine, ids):
    p = model.predict(pet_data, affine=affine, labels=ids, activity_gbq=7.4, **SUV)
    figure = p.plot()
    assert bars(figure)[1].get_ylabel() == "dose (Gy)"
    assert curves(figure).get_xlabel() == "absorbed dose (Gy)"


@pytest.mark.parametrize("shape", [(1, 1, 1), (5, 1, 1), (1, 4, 6), (3, 2, 1)])
@pytest.mark.parametrize("value", [0.0, 3.0])
def test_small_and_empty_volumes(model, shape, value):
    data = np.full(shape, value, np.float32)
    p = model.predict(data, affine=RAS_AFFINE, **SUV)
    figure = p.plot(outlines={"all": data >= 0, "none": data < 0})
    assert_shows(figure, p, np.unravel_index(np.argmax(p.dose), shape))
    assert panels(figure)[0].images[0].get_clim()[1] > 0
    figure.draw_without_rendering()


def test_pet_with_nan(model, affine):
    data = uptake(SHAPE)
    data[1, 2, 3] = np.nan
    p = model.predict(data, affine=affine, nan_to_zero=True, **SUV)
    mip = panels(p.plot())[3].images[0].get_array()
    assert np.isfinite(mip).all()
    assert mip.max() == np.nanmax(data)


@pytest.mark.parametrize("odd", [np.inf, -np.inf, np.nan])
def test_pet_with_columns_that_are_not_finite(model, affine, odd):
    data = uptake(SHAPE)
    data[2:6] = odd
    p = model.predict(data, affine=affine, nan_to_zero=True, **SUV)
    figure = p.plot()
    figure.draw_without_rendering()
    lower, upper = panels(figure)[3].images[0].get_clim()
    assert lower == 0
    finite = np.delete(data, np.s_[2:6], axis=0).max(axis=1)
    np.testing.assert_allclose(upper, np.percentile(finite, 99), rtol=1e-6)


@pytest.mark.parametrize(
    "keywords",
    [
        {"at": (37, 0, 0)},
        {"at": (0, 0, -1)},
        {"at": (0, 0)},
        {"at": (0, 0, 0, 0)},
        {"at": (0.5, 0, 0)},
        {"at": 3},
        {"at": "abc"},
        {"at": (np.nan, 0, 0)},
        {"pet_max": 0},
        {"pet_max": float("nan")},
        {"dose_max": -1},
        {"dose_max": float("inf")},
        {"structures": ["label_2"]},
        {"outlines": {"flat": np.ones((37, 33))}},
        {"outlines": np.ones((3, 3, 3), int)},
        {"outlines": nib.Nifti1Image(np.ones((37, 33, 20), np.uint8), RAS_AFFINE)},
        {"outlines": {"moved": nib.Nifti1Image(np.ones((37, 33, 20), np.uint8), np.eye(4))}},
    ],
)
def test_refused(prediction, keywords):
    with pytest.raises(dosemap.InvalidValueError) as error:
        prediction.plot(**keywords)
    assert next(iter(keywords)) in str(error.value)
    assert error.value.remedy


def test_refused_types(prediction):
    for keyword, value in (("pet_max", "5"), ("dose_max", [1, 2]), ("structures", 3)):
        with pytest.raises(TypeError, match=f"{keyword} wants"):
            prediction.plot(**{keyword: value})
    with pytest.raises(TypeError, match=r"dvh\['a'\] wants a dosemap.Dvh"):
        dosemap.plot_dvh({"a": 3})


# ---- Outlines ------------------------------------------------------------------------------------


def outlines_of(axes):
    """Colour and bounding box of what is outlined in the axes."""
    return {
        tuple(each.get_edgecolor()[0]): np.concatenate([p.vertices for p in each.get_paths()])
        for each in axes.collections
    }


def test_outlines_run_between_voxels(prediction, ids, affine):
    """A box of voxels 5 to 19, 5 to 19, 5 to 14: its outline reaches half a voxel further."""
    figure = prediction.plot(at=(6, 7, 8), outlines=ids)
    first, last = affine @ [4.5, 4.5, 4.5, 1], affine @ [19.5, 19.5, 14.5, 1]
    low, high = np.minimum(first, last), np.maximum(first, last)
    for axes, (across, up) in zip(panels(figure), ((0, 1), (0, 2), (1, 2)), strict=False):
        box = outlines_of(axes)[matplotlib.colors.to_rgba(curves(figure).lines[0].get_color())]
        np.testing.assert_allclose(box.min(axis=0), [low[across], low[up]])
        np.testing.assert_allclose(box.max(axis=0), [high[across], high[up]])


def test_outlines_in_all_forms(prediction, ids, labels, affine):
    masks = {"label_1": ids == 1, "label_3": ids == 3}
    image = nib.Nifti1Image(ids.astype(np.uint8), affine)
    at = (10, 12, 8)  # the plane across z meets both
    wanted = outlines_of(panels(prediction.plot(at=at, outlines=masks))[0])
    assert len(wanted) == 2
    by_name = {name: nib.Nifti1Image(mask.astype(float), affine) for name, mask in masks.items()}
    for form in (ids, image, labels, str(labels), dosemap.read(labels), by_name):
        found = outlines_of(panels(prediction.plot(at=at, outlines=form))[0])
        assert found.keys() == wanted.keys()
        for colour in wanted:
            np.testing.assert_array_equal(found[colour], wanted[colour])


def test_outlines_follow_the_structures(prediction, ids):
    figure = prediction.plot(at=(10, 12, 8), outlines=ids, structures="label_3")
    assert len(outlines_of(panels(figure)[0])) == 1
    assert [line.get_label() for line in curves(figure).lines] == ["label_3"]
    # What has no curve is outlined all the same, in a colour of its own.
    masks = {"label_1": ids == 1, "box": np.pad(np.ones((3, 3, 3)), [(9, 25), (11, 19), (7, 10)])}
    assert len(outlines_of(panels(prediction.plot(at=(10, 12, 8), outlines=masks))[0])) == 2


def test_without_labels(model, pet_data, affine, ids):
    p = model.predict(pet_data, affine=affine, **SUV)
    figure = p.plot(at=(10, 12, 8), outlines=ids)
    assert len(outlines_of(panels(figure)[0])) == 2
    assert not [axes for axes in figure.axes if axes.get_ylabel().startswith("volume")]
    assert (
        len(outlines_of(panels(p.plot(outlines=ids, structures=["label_1"], at=(10, 12, 8)))[0]))
        == 1
    )


# ---- DVH curves ----------------------------------------------------------------------------------


def test_curves_of_a_prediction(prediction):
    axes = curves(prediction.plot())
    assert [line.get_label() for line in axes.lines] == prediction.dvh.names
    for line, s in zip(axes.lines, prediction.dvh, strict=True):
        dose, volume = s.curve()
        np.testing.assert_array_equal(line.get_xdata(), dose)
        np.testing.assert_allclose(line.get_ydata(), volume / s.volume_cm3 * 100)
        assert line.get_ydata()[0] == 100
    assert axes.get_xlabel() == "absorbed dose per activity (Gy/GBq)"
    assert axes.get_ylabel() == "volume (%)"
    assert axes.get_xlim()[0] == axes.get_ylim()[0] == 0


@pytest.mark.parametrize("figsize", [(13, 4), (9, 8)])
def test_legend_of_a_prediction_is_in_nobodys_way(prediction, figsize):
    figure = prediction.plot(figsize=figsize)
    figure.draw_without_rendering()
    axes = curves(figure)
    legend, words = axes.get_legend().get_window_extent(), axes.xaxis.label.get_window_extent()
    assert figure.bbox.y0 <= legend.y0 < legend.y1 <= words.y0
    assert words.y1 < axes.get_window_extent().y0
    assert figure.bbox.x0 < legend.x0 < legend.x1 <= figure.bbox.x1


def test_curves_in_cm3(prediction):
    axes = prediction.dvh.plot(absolute=True)
    for line, s in zip(axes.lines, prediction.dvh, strict=True):
        np.testing.assert_array_equal(line.get_ydata(), s.curve()[1])
    assert axes.get_ylabel() == "volume (cm³)"


def test_two_predictions_on_one_axis(model, prediction, pet_data, affine, ids):
    other = model.predict(pet_data * 2, affine=affine, labels=ids, **SUV)
    axes = dosemap.plot_dvh({"one": prediction.dvh, "two": other.dvh})
    assert [line.get_label() for line in axes.lines] == [
        "label_1, one",
        "label_3, one",
        "label_1, two",
        "label_3, two",
    ]
    a1, a3, b1, b3 = axes.lines
    assert a1.get_color() == b1.get_color() != a3.get_color() == b3.get_color()
    assert a1.get_linestyle() == a3.get_linestyle() != b1.get_linestyle() == b3.get_linestyle()
    np.testing.assert_array_equal(b3.get_xdata(), other.dvh["label_3"].curve()[0])
    legend = [text.get_text() for text in axes.get_legend().get_texts()]
    assert legend == ["label_1", "label_3", "one", "two"]

    with_activity = model.predict(pet_data, affine=affine, labels=ids, activity_gbq=1, **SUV)
    with pytest.raises(dosemap.InvalidValueError, match=r"Gy and in Gy/GBq.*activity_gbq="):
        dosemap.plot_dvh({"one": prediction.dvh, "two": with_activity.dvh})
    with pytest.raises(dosemap.InvalidValueError, match="5 DVHs"):
        dosemap.plot_dvh({str(i): prediction.dvh for i in range(5)})
    with pytest.raises(dosemap.InvalidValueError, match="0 DVHs"):
        dosemap.plot_dvh({})


def test_predictions_in_the_place_of_their_dvhs(model, prediction, pet_data, affine):
    axes = dosemap.plot_dvh({"one": prediction, "two": prediction.dvh})
    assert len(axes.lines) == 4
    assert len(dosemap.plot_dvh(prediction, structures="label_3").lines) == 1
    without = model.predict(pet_data, affine=affine, **SUV)
    with pytest.raises(dosemap.InvalidValueError, match=r"dvh\['two'\] .* without DVHs; .* labels"):
        dosemap.plot_dvh({"one": prediction, "two": without})


def test_many_structures(pet_data, affine):
    """Of more than 12 those with the highest mean dose; by name any."""
    masks = {f"organ_{i}": np.zeros(pet_data.shape, bool) for i in range(30)}
    for i, mask in enumerate(masks.values()):
        mask[i : i + 3, 5:8, 2:9] = True
    dvh = dosemap.dvh(pet_data, masks, affine=affine, unit="Gy")
    hottest = sorted(dvh, key=lambda s: -s.mean)[:12]
    axes = dvh.plot()
    drawn = [line.get_label() for line in axes.lines]
    assert set(drawn) == {s.name for s in hottest}
    assert drawn == [name for name in dvh.names if name in drawn]
    assert axes.get_legend().get_title().get_text() == "12 of 30 structures"
    assert len({line.get_color() for line in axes.lines}) == 12
    axes = dvh.plot(structures=dvh.names)
    assert len(axes.lines) == 30
    assert axes.get_legend().get_title().get_text() == ""
    assert len({line.get_color() for line in axes.lines}) == 20


def test_structure_without_voxels(prediction, pet_data, affine):
    masks = {"none": np.zeros(pet_data.shape, bool), "some": pet_data > 1}
    axes = dosemap.dvh(pet_data, masks, affine=affine, unit="Gy").plot()
    none, some = axes.lines
    assert len(none.get_xdata()) == 0
    assert some.get_ydata()[0] == 100


def test_legend(prediction):
    assert prediction.dvh.plot(legend=False).get_legend() is None
    legend = prediction.dvh.plot(legend={"title": "organs", "loc": "lower left"}).get_legend()
    assert legend.get_title().get_text() == "organs"


# ---- Figures -------------------------------------------------------------------------------------


def test_nothing_is_left_behind(prediction):
    before = plt.get_fignums()
    gone = []
    for _ in range(25):
        figure = prediction.plot()
        axes = prediction.dvh.plot()
        gone += [weakref.ref(figure), weakref.ref(axes.figure)]
    assert plt.get_fignums() == before
    del figure, axes
    gc.collect()
    assert [ref() for ref in gone] == [None] * 50


def test_given_figures_and_axes(prediction):
    ours, axes = plt.subplots(1, 2)
    current = plt.gca()
    assert prediction.dvh.plot(ax=axes[0]) is axes[0]
    assert len(axes[0].lines) == 2
    assert plt.gca() is current
    assert not axes[1].lines

    theirs = Figure(figsize=(9, 8))
    assert prediction.plot(figure=theirs) is theirs
    assert theirs.get_size_inches().tolist() == [9, 8]
    whole = Figure(figsize=(12, 12))
    upper, _ = whole.subfigures(2, 1)
    assert prediction.plot(figure=upper) is whole
    assert_shows(whole, prediction, np.unravel_index(prediction.dose.argmax(), (37, 33, 20)))
    whole.draw_without_rendering()
    assert all(axes.get_window_extent().y0 >= 600 for axes in whole.axes)
    assert prediction.plot(figsize=(6, 3)).get_size_inches().tolist() == [6, 3]
    plt.close(ours)


def test_saved_and_shown_without_pyplot(tmp_path, tiny_path):
    """No display, no backend chosen: a file, and what a notebook asks a figure for."""
    program = f"""
import sys
import numpy as np
import dosemap
assert "matplotlib" not in sys.modules
pet = np.random.default_rng(1).random((8, 9, 10), np.float32)
p = dosemap.load_model({str(tiny_path)!r}).predict(
    pet, affine=np.eye(4), units="suv", body_weight_kg=70, labels=(pet > 0.5).astype(int))
figure = p.plot()
figure.savefig({str(tmp_path / "p.png")!r})
axes = p.dvh.plot()
axes.figure.savefig({str(tmp_path / "d.svg")!r})
for shown in (figure, axes):
    assert shown._repr_png_().startswith(b"\\x89PNG")
assert "matplotlib.pyplot" not in sys.modules
"""
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "p.png").read_bytes().startswith(b"\x89PNG")
    assert "<svg" in (tmp_path / "d.svg").read_text()


def test_without_matplotlib(prediction, monkeypatch):
    for name in [name for name in sys.modules if name.startswith("dosemap._plot_")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    for plot in (prediction.plot, prediction.dvh.plot, lambda: dosemap.plot_dvh(prediction.dvh)):
        with pytest.raises(dosemap.MissingPackageError, match="pip install matplotlib"):
            plot()
