# SPDX-License-Identifier: Apache-2.0
"""Plots, as users call them; matplotlib is imported when one is made."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from . import _errors

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, SubFigure

    from ._dvh import Dvh
    from ._prediction import Prediction


def plot_prediction(
    prediction: Prediction,
    *,
    at: Sequence[int] | None = None,
    pet_max: float | None = None,
    dose_max: float | None = None,
    structures: Sequence[str] | str | None = None,
    outlines: object = None,
    figure: Figure | SubFigure | None = None,
    figsize: tuple[float, float] | None = None,
) -> Figure:
    """Draws PET and dose in three planes and as a projection, and the DVHs if there are labels.

    The volumes are turned to the nearest of the patient's axes by their affine, whatever the
    order they are stored in, and not interpolated: a tilted volume is shown in its own planes. All
    images have one scale in millimetres. The patient's right is on the left of transverse and
    coronal planes, the front on the left of sagittal ones; the maximum-intensity projection (MIP)
    is from the front.

    Args:
        prediction: what :meth:`Model.predict` returned.
        at: voxel (x, y, z) of ``prediction.dose`` that the planes go through; None: the dose
            maximum.
        pet_max: end of the PET's colour scale, in the PET's unit; None: the 99th percentile of
            the projection, because bladder and kidneys would leave nothing to see of all else.
        dose_max: end of the dose's colour scale, in ``prediction.unit``; None: the maximum.
        structures: names of those whose curves and outlines are drawn; None: all, but where there
            are more than 12 those with the highest mean dose.
        outlines: structures on the dose map's grid, to be outlined in the planes: a dict of masks
            (name -> array or image, not 0 inside), or labels as array, image or path, whose ids
            have the names of the DVHs.
        figure: matplotlib figure, or part of one, to draw into; None: a new one, which pyplot does
            not know: it is shown by notebooks, saved by ``.savefig("x.png")``, and gone when
            nothing refers to it. For one of yours ``layout="constrained"`` suits best.
        figsize: width and height of a new figure in inches.

    Returns:
        The figure; where a part of one was given, the whole.

    Example:
        >>> p = dosemap.load_model().predict("pet.nii.gz", units="suv", body_weight_kg=78.7,
        ...                                  labels="organs.nii.gz")
        >>> figure = p.plot(structures=["liver"])
        >>> figure.savefig("sub-01.png")

    """
    _errors.optional("matplotlib", "plotting")
    from ._plot_images import draw_prediction

    scales = {"PET": pet_max, "dose": dose_max}
    return draw_prediction(prediction, at, scales, structures, outlines, figure, figsize)


def plot_dvh(
    dvh: Dvh | Prediction | Mapping[str, Dvh | Prediction],
    *,
    ax: Axes | None = None,
    structures: Sequence[str] | str | None = None,
    absolute: bool = False,
    legend: bool | Mapping[str, Any] = True,
) -> Axes:
    """Draws cumulative DVHs: of one dose map, or of several to be compared.

    Args:
        dvh: a :class:`Dvh`, or a prediction that has one; or up to four of them with a name each,
            as ``{"model A": a, "model B": b}``: then each structure has a colour, and each name a
            style of line.
        ax: matplotlib axes to draw into; None: those of a new figure (``.figure`` of the result),
            which pyplot does not know and notebooks show.
        structures: names of those to draw; None: all, but where there are more than 12 those with
            the highest mean dose.
        absolute: volumes in cm3 instead of percent.
        legend: whether there is one; a dict is passed on to matplotlib's ``Axes.legend``.

    Returns:
        The axes.

    Example:
        >>> axes = dosemap.plot_dvh(dosemap.dvh("dose.nii.gz", "organs.nii.gz"))
        >>> axes.get_xlabel()
        'absorbed dose (Gy)'
        >>> axes.figure.savefig("dvh.png")

    """
    _errors.optional("matplotlib", "plotting")
    from ._plot_curves import draw_curves

    return draw_curves(dvh, ax, structures, absolute, legend)
