# SPDX-License-Identifier: Apache-2.0
"""Images of a prediction: planes and projections of PET and dose, the DVHs beside them.

Only matplotlib's figures are used, never pyplot, which keeps every figure until it is closed: a
cohort's figures are freed when they are forgotten, and no display is needed.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from matplotlib.figure import Figure
from matplotlib.transforms import ScaledTranslation

from . import _core, _errors, _images
from ._keywords import is_path, number
from ._plot_curves import NotebookFigure, chosen, colours_of, draw_curves, listed

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import SubFigure
    from matplotlib.image import AxesImage
    from numpy.typing import NDArray

    from ._prediction import Prediction

    Array = NDArray[Any]


class Plane(NamedTuple):
    """A plane of a turned volume: its axes, the one across, the letters at its left and right."""

    title: str
    horizontal: int
    vertical: int
    across: int
    letters: str


RIGHT, FRONT, HEAD = 0, 1, 2
PLANES = (
    Plane("transverse", RIGHT, FRONT, HEAD, "RL"),
    Plane("coronal", RIGHT, HEAD, FRONT, "RL"),
    Plane("sagittal", FRONT, HEAD, RIGHT, "AP"),
)
MIP = Plane("MIP", RIGHT, HEAD, FRONT, "RL")
# Inches: a row of images at most this wide and high; colour bar; curves; words above and below.
IMAGES_IN, ROW_IN, BAR_IN, CURVES_IN, WORDS_IN = 8.4, 2.8, 1.5, 3.6, 0.9
HAIR: dict[str, Any] = {"color": "tab:cyan", "linewidth": 0.6, "alpha": 0.7}


@dataclass(frozen=True)
class Turn:
    """How a stored volume is seen with its axes to the patient's right, front and head.

    The nearest of the 48 ways to permute and flip the axes, without interpolation: a tilted volume
    is shown in its own planes. Millimetres run along its axes and are those of the affine in the
    volume's middle.
    """

    order: tuple[int, ...]  # the stored axis that goes to the right, to the front, to the head
    flips: tuple[bool, ...]
    shape: tuple[int, ...]
    spacing_mm: tuple[float, ...]
    middle_mm: tuple[float, ...]

    @classmethod
    def of(cls, shape: Sequence[int], affine: Array) -> Turn:
        """Return the turn of volumes of this shape and 4x4 affine."""
        columns = np.asarray(affine, float)[:3, :3]
        spacing = np.linalg.norm(columns, axis=0)
        cosines = columns / spacing
        order = max(
            itertools.permutations(range(3)),
            key=lambda axes: sum(abs(cosines[w, a]) for w, a in enumerate(axes)),
        )
        middle = affine @ [*((n - 1) / 2 for n in shape), 1.0]
        return cls(
            order,
            tuple(bool(cosines[w, a] < 0) for w, a in enumerate(order)),
            tuple(shape[a] for a in order),
            tuple(float(spacing[a]) for a in order),
            tuple(float(mm) for mm in middle[:3]),
        )

    def volume(self, stored: Array) -> Array:
        """Return a view of the volume with its axes turned."""
        turned = stored.transpose(self.order)
        return turned[tuple(slice(None, None, -1 if flip else None) for flip in self.flips)]

    def voxel(self, stored: Sequence[int]) -> tuple[int, ...]:
        """Return a voxel's index in the turned volume."""
        at = [stored[a] for a in self.order]
        return tuple(
            n - 1 - i if flip else i for i, n, flip in zip(at, self.shape, self.flips, strict=True)
        )

    def centres_mm(self, axis: int) -> Array:
        """Return the voxels' centres along an axis."""
        n = self.shape[axis]
        return self.middle_mm[axis] + (np.arange(n) - (n - 1) / 2) * self.spacing_mm[axis]

    def edges_mm(self, axis: int) -> tuple[float, float]:
        """Return where the volume begins and ends along an axis."""
        half = self.shape[axis] * self.spacing_mm[axis] / 2
        return self.middle_mm[axis] - half, self.middle_mm[axis] + half

    def length_mm(self, axis: int) -> float:
        """Return the volume's length along an axis."""
        return self.shape[axis] * self.spacing_mm[axis]

    def width_mm(self) -> float:
        """Return the width of a row of images."""
        return 3 * self.length_mm(RIGHT) + self.length_mm(FRONT)

    def height_mm(self) -> float:
        """Return the height of the highest image."""
        return max(self.length_mm(FRONT), self.length_mm(HEAD))


def _plane(turned: Array, across: int, at: int) -> Array:
    """Return a plane with its vertical axis first, as images have it."""
    return turned[tuple(at if axis == across else slice(None) for axis in range(3))].T


def _mip(turned: Array) -> Array:
    """Return the largest values from front to back; NaN only where there is nothing else."""
    result: Array = np.fmax.reduce(turned, axis=FRONT).T
    return result


def _voxel_of(at: Sequence[int] | None, dose: Array) -> tuple[int, ...]:
    """Return the voxel that the planes go through."""
    if at is None:
        first = int(np.argmax(dose.ravel(order="F")))
        return tuple(int(i) for i in np.unravel_index(first, dose.shape, order="F"))
    try:
        voxel = tuple(int(i) for i in at)
        within = len(voxel) == 3 and voxel == tuple(at)
    except (TypeError, ValueError):
        within = False
    if not within or not all(0 <= i < n for i, n in zip(voxel, dose.shape, strict=True)):
        last = tuple(n - 1 for n in dose.shape)
        raise _errors.invalid(
            f"at={at!r} is no voxel of the dose map", f"give (x, y, z) up to {last}"
        )
    return voxel


def _upper(value: float | None, keyword: str, otherwise: float) -> float:
    """Return the upper end of a colour scale, which begins at 0."""
    if value is None:
        return otherwise if otherwise > 0 else 1.0
    given = number(keyword, value, -np.inf, np.inf, "")
    if not 0 < given < np.inf:
        what = f"{keyword}={given:g} does not end a colour scale"
        raise _errors.invalid(what, "give a number above 0")
    return given


@dataclass(frozen=True)
class Row:
    """PET or dose: a turned volume, the words beside its colour bar and how it is coloured."""

    volume: Array
    mip: Array
    label: str
    colours: str
    upper: float


def _show(axes: Axes, image: Array, turn: Turn, plane: Plane, row: Row) -> AxesImage:
    """Show one image in millimetres: the patient's right on the left, or the front on the left."""
    left, right = turn.edges_mm(plane.horizontal)
    bottom, top = turn.edges_mm(plane.vertical)
    shown = axes.imshow(
        image,
        extent=(left, right, bottom, top),
        origin="lower",
        cmap=row.colours,
        vmin=0,
        vmax=row.upper,
    )
    # Every panel is as high as the highest one, so that all have one scale.
    middle, height = (bottom + top) / 2, turn.height_mm()
    axes.set_xlim(right, left)
    axes.set_ylim(middle - height / 2, middle + height / 2)
    axes.set_axis_off()
    corner: dict[str, Any] = {
        "fontsize": "x-small",
        "color": "grey",
        "va": "center",
        "clip_on": False,
    }
    axes.text(right, middle, plane.letters[0], ha="right", **corner)
    axes.text(left, middle, plane.letters[1], ha="left", **corner)
    return shown


class Outline(NamedTuple):
    """A structure: voxels that are `id`, or any but 0, of a turned volume."""

    voxels: Array
    id: int | None = None


@dataclass(frozen=True)
class Cut:
    """Where the planes lie in a turned volume, and the structures outlined in them."""

    voxel: tuple[int, ...]
    outlines: Mapping[str, Outline]
    colours: Mapping[str, Any]


def _outline(axes: Axes, turn: Turn, plane: Plane, cut: Cut) -> None:
    """Draw where the plane meets structures."""
    for name, outline in cut.outlines.items():
        values = _plane(outline.voxels, plane.across, cut.voxel[plane.across])
        inside = values != 0 if outline.id is None else values == outline.id
        if inside.any() and not inside.all() and min(inside.shape) > 1:
            axes.contour(
                turn.centres_mm(plane.horizontal),
                turn.centres_mm(plane.vertical),
                inside.astype(np.float32),
                levels=[0.5],
                colors=[cut.colours[name]],
                linewidths=0.8,
            )


def _draw_row(axes: Sequence[Axes], bar: Axes, row: Row, turn: Turn, cut: Cut) -> None:
    """Draw the three planes, the projection and the colour bar of PET or dose."""
    mm = [turn.centres_mm(axis)[cut.voxel[axis]] for axis in range(3)]
    for panel, plane in zip(axes, PLANES, strict=False):
        _show(panel, _plane(row.volume, plane.across, cut.voxel[plane.across]), turn, plane, row)
        panel.plot([mm[plane.horizontal]] * 2, turn.edges_mm(plane.vertical), **HAIR)
        panel.plot(turn.edges_mm(plane.horizontal), [mm[plane.vertical]] * 2, **HAIR)
        _outline(panel, turn, plane, cut)
    shown = _show(axes[3], row.mip, turn, MIP, row)
    axes[3].plot([mm[RIGHT]], [mm[HEAD]], "o", fillstyle="none", markersize=7, **HAIR)
    beyond = bool(np.nanmax(row.mip, initial=0) > row.upper)
    bar.figure.colorbar(shown, cax=bar, label=row.label, extend="max" if beyond else "neither")


def _outlines(
    given: object, prediction: Prediction, turn: Turn, voxel: tuple[int, ...]
) -> dict[str, Outline]:
    """Return structures by name: of a dict of masks, or those of labels that a plane meets."""
    if given is None:
        return {}
    if isinstance(given, Mapping):
        masks = {
            name: _on_grid(mask, f"outlines[{name!r}]", prediction) for name, mask in given.items()
        }
        return {str(name): Outline(turn.volume(mask)) for name, mask in masks.items()}
    labels = turn.volume(_on_grid(given, "outlines", prediction))
    names = {s.id: s.name for s in prediction.dvh or ()}
    cuts = [np.unique(_plane(labels, plane.across, voxel[plane.across])) for plane in PLANES]
    ids = sorted({int(i) for i in np.concatenate(cuts) if np.isfinite(i)} - {0})
    return {names.get(i, f"label_{i}"): Outline(labels, i) for i in ids}


def _on_grid(image: object, keyword: str, prediction: Prediction) -> Array:
    """Return the voxels of labels or a mask, which have to lie on the dose map's grid."""
    grid = prediction.volume._core
    if is_path(image) or hasattr(image, "affine"):
        volume = _images.volume_of(image, keyword=keyword).volume
        reason = _core.grid_difference(grid.dim, grid.affine, volume.dim, volume.affine)
        array: Array = np.asarray(volume.data)
    else:
        array = _images.array_of(image, keyword)
        reason = f"its shape is {array.shape}, not {tuple(grid.dim)}"
        reason = "" if array.shape == tuple(grid.dim) else reason
    if reason:
        raise _errors.invalid(
            f"{keyword} does not lie on the dose map's grid: {reason}", "bring it there"
        )
    return array


def _said(prediction: Prediction, voxel: Sequence[int], highest: bool) -> str:
    """Return the lines below the images: where the planes lie, what is left, who predicted."""
    x, y, z = voxel
    where = "the dose maximum, voxel" if highest else "voxel"
    dose = f"{prediction.dose[x, y, z]:.4g} {prediction.unit}"
    model = prediction.provenance["Model"]
    trained = "" if model["Trained"] else " (not trained)"
    return (
        f"Planes through {where} ({x}, {y}, {z}): {dose}."
        " The patient's right is on the left; MIP from the front.\n"
        f"Model: {model['Name']}{trained}. For research; not for clinical decisions."
    )


def _rows(prediction: Prediction, turn: Turn, scales: Mapping[str, float | None]) -> list[Row]:
    """Return what is to be drawn of PET and dose."""
    pet, dose = turn.volume(prediction.pet.data), turn.volume(prediction.dose)
    pet_mip, dose_mip = _mip(pet), _mip(dose)
    finite = pet_mip[np.isfinite(pet_mip)]  # nan_to_zero= lets others pass
    most = float(np.percentile(finite, 99)) if finite.size else 0.0
    pet_upper = _upper(scales["PET"], "pet_max", most)
    dose_upper = _upper(scales["dose"], "dose_max", float(dose_mip.max()))
    unit = prediction.provenance["PET"]["Units"]
    return [
        Row(pet, pet_mip, f"PET ({unit})", "gray_r", pet_upper),
        Row(dose, dose_mip, f"dose ({prediction.unit})", "inferno", dose_upper),
    ]


def _colours(
    prediction: Prediction, outlines: Mapping[str, Outline], structures: Sequence[str] | str | None
) -> dict[str, Any]:
    """Return the colours of curves and outlines. What is outlined need not have a curve."""
    wanted, dvh = listed(structures), prediction.dvh
    if dvh is None:
        return colours_of([name for name in outlines if wanted is None or name in wanted])
    own = [name for name in outlines if name not in dvh] if wanted is None else []
    return colours_of(chosen([dvh], wanted)[0] + own)


def draw_prediction(
    prediction: Prediction,
    at: Sequence[int] | None,
    scales: Mapping[str, float | None],
    structures: Sequence[str] | str | None,
    outlines: object,
    figure: Figure | SubFigure | None,
    figsize: tuple[float, float] | None,
) -> Figure:
    """Do what :func:`dosemap.plot_prediction` says; `scales`: upper ends for "PET" and "dose"."""
    turn = Turn.of(prediction.dose.shape, prediction.affine)
    stored = _voxel_of(at, prediction.dose)
    rows = _rows(prediction, turn, scales)
    voxel = turn.voxel(stored)
    outlined = _outlines(outlines, prediction, turn, voxel)
    colours = _colours(prediction, outlined, structures)
    cut = Cut(voxel, {name: outlined[name] for name in outlined if name in colours}, colours)

    high = min(ROW_IN, IMAGES_IN * turn.height_mm() / turn.width_mm())
    wide = high * turn.width_mm() / turn.height_mm() + BAR_IN
    dvh = prediction.dvh
    if figure is None:
        size = figsize or (wide + (CURVES_IN if dvh else 0), 2 * high + WORDS_IN)
        figure = NotebookFigure(figsize=size, layout="constrained")
    images: Figure | SubFigure = figure
    if dvh:
        halves = figure.add_gridspec(1, 2, width_ratios=(wide, CURVES_IN))
        images, curves = figure.add_subfigure(halves[0]), figure.add_subfigure(halves[1])
        axes = curves.add_subplot()
        # In inches below the axes, where their own words are, however high they become.
        below = axes.transAxes + ScaledTranslation(0, -WORDS_IN / 2, curves.dpi_scale_trans)
        legend = {"loc": "upper left", "bbox_to_anchor": (0, 0), "bbox_transform": below}
        legend |= {"frameon": False, "fontsize": "x-small", "borderpad": 0}
        draw_curves(dvh, axes, structures, False, legend)
    _draw_images(images, rows, turn, cut)
    images.supxlabel(_said(prediction, stored, at is None), fontsize="small", x=0.01, ha="left")
    return figure if isinstance(figure, Figure) else figure.figure


def _draw_images(figure: Figure | SubFigure, rows: Sequence[Row], turn: Turn, cut: Cut) -> None:
    """Fill a figure with a row of images each for PET and dose."""
    right, front = turn.length_mm(RIGHT), turn.length_mm(FRONT)
    widths = (right, right, front, right, 0.04 * turn.width_mm())
    grid = figure.add_gridspec(2, 5, width_ratios=widths)
    for i, row in enumerate(rows):
        panels = [figure.add_subplot(grid[i, j]) for j in range(4)]
        _draw_row(panels, figure.add_subplot(grid[i, 4]), row, turn, cut)
        for panel, plane in zip(panels if i == 0 else (), (*PLANES, MIP), strict=False):
            panel.set_title(plane.title, fontsize="medium")
