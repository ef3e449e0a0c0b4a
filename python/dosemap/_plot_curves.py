# SPDX-License-Identifier: Apache-2.0
"""DVH curves of one dose map, or of several on one axis, and the figures that plots come in."""

from __future__ import annotations

import io
import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from . import _errors
from ._dvh import Dvh
from ._prediction import Prediction

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ._dvh import StructureDose

MOST_CURVES = 12
LINE_STYLES: tuple[Literal["-", "--", ":", "-."], ...] = ("-", "--", ":", "-.")
# The first ten colours are matplotlib's own, which are easiest to tell apart.
COLOURS = [colormaps["tab20"](i) for i in (*range(0, 20, 2), *range(1, 20, 2))]


def _png(figure: Figure) -> bytes:
    """Return a figure as a PNG file has it."""
    content = io.BytesIO()
    figure.savefig(content, format="png")
    return content.getvalue()


class NotebookFigure(Figure):
    """A figure that a notebook shows.

    Notebooks learn from pyplot how figures are shown. Where nobody has imported pyplot they would
    print ``<Figure size 640x480 with 1 Axes>``.
    """

    def _repr_png_(self) -> bytes:
        return _png(self)


class NotebookAxes(Axes):
    """Axes that a notebook shows by their figure, because plot_dvh() returns these."""

    def _repr_png_(self) -> bytes | None:
        figure = self.get_figure()
        return _png(figure) if isinstance(figure, Figure) else None


def listed(structures: Sequence[str] | str | None) -> list[str] | None:
    """Return the names that a user gave, one or several."""
    if structures is None:
        return None
    if not isinstance(structures, Iterable):
        raise _errors.wrong_type("structures", structures, "names of structures")
    return [structures] if isinstance(structures, str) else list(dict.fromkeys(structures))


def chosen(dvhs: Sequence[Dvh], wanted: list[str] | None) -> tuple[list[str], int]:
    """Return the names of the structures to draw, and of how many."""
    names = list(dict.fromkeys(name for dvh in dvhs for name in dvh.names))
    if wanted is not None:
        for name in wanted:
            if name not in names:
                what = f"structures: there is none called {_errors.described(name)}"
                raise _errors.invalid(what, f"there are {', '.join(names)}")
        return wanted, len(wanted)
    if len(names) <= MOST_CURVES:
        return names, len(names)
    means: dict[str, float] = {}
    for s in (s for dvh in dvhs for s in dvh if s.voxels):
        means[s.name] = max(s.mean, means.get(s.name, s.mean))
    hottest = sorted(means, key=means.__getitem__, reverse=True)[:MOST_CURVES]
    return [name for name in names if name in hottest], len(names)


def colours_of(names: Sequence[str]) -> dict[str, Any]:
    """Return a colour for each name; after twenty they begin anew."""
    return dict(zip(names, itertools.cycle(COLOURS), strict=False))


def _curve(structure: StructureDose, absolute: bool) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return dose, and volume in cm3 or percent; both empty without voxels."""
    dose, volume = structure.curve()
    return dose, volume if absolute else volume / structure.volume_cm3 * 100


def _dvh_of(given: Dvh | Prediction, keyword: str) -> Dvh:
    """Return the DVHs of a prediction, or those given."""
    if isinstance(given, Prediction):
        if given.dvh is None:
            what = f"{keyword} is a prediction without DVHs"
            raise _errors.invalid(what, "give predict() labels")
        return given.dvh
    if not isinstance(given, Dvh):
        raise _errors.wrong_type(keyword, given, "a dosemap.Dvh or a prediction with one")
    return given


def draw_curves(
    dvh: Dvh | Prediction | Mapping[str, Dvh | Prediction],
    ax: Axes | None,
    structures: Sequence[str] | str | None,
    absolute: bool,
    legend: bool | Mapping[str, Any],
) -> Axes:
    """Do what :func:`dosemap.plot_dvh` says."""
    given = dvh if isinstance(dvh, Mapping) else {"": dvh}
    dvhs = {
        name: _dvh_of(each, f"dvh[{name!r}]" if name else "dvh") for name, each in given.items()
    }
    if not 1 <= len(dvhs) <= len(LINE_STYLES):
        raise _errors.invalid(f"{len(dvhs)} DVHs cannot be told apart in one plot", "give 1 to 4")
    units = {each.unit for each in dvhs.values()}
    if len(units) > 1:
        what = f"doses in {' and in '.join(sorted(units))} have no common axis"
        raise _errors.invalid(what, "predict all of them, or none, with activity_gbq=")
    names, count = chosen(list(dvhs.values()), listed(structures))
    colours = colours_of(names)
    if ax is None:
        figure = NotebookFigure(figsize=(7.5, 4.2), layout="constrained")
        ax = figure.add_subplot(axes_class=NotebookAxes)
        legend = {"loc": "upper left", "bbox_to_anchor": (1, 1)} if legend is True else legend

    for (whose, each), style in zip(dvhs.items(), LINE_STYLES, strict=False):
        for s in each:
            if s.name in colours:
                label = f"{s.name}, {whose}" if whose else s.name
                ax.plot(*_curve(s, absolute), color=colours[s.name], linestyle=style, label=label)
    unit = units.pop()
    ax.set_xlabel(f"absorbed dose{'' if unit == 'Gy' else ' per activity'} ({unit})")
    ax.set_ylabel("volume (cm³)" if absolute else "volume (%)")
    ax.set_xlim(left=0)
    ax.set_ylim(bottom=0)
    ax.grid(alpha=0.3)
    if legend is not False:
        title = None if count == len(names) else f"{len(names)} of {count} structures"
        _explain(ax, colours, [name for name in dvhs if name], title, legend)
    return ax


def _explain(
    ax: Axes,
    colours: Mapping[str, Any],
    dvhs: Sequence[str],
    title: str | None,
    legend: bool | Mapping[str, Any],
) -> None:
    """Explain the colours, and the styles of line where there are several DVHs."""
    lines = [Line2D([], [], color=colour, label=name) for name, colour in colours.items()]
    styles = zip(dvhs, LINE_STYLES, strict=False)
    lines += [Line2D([], [], color="black", linestyle=style, label=name) for name, style in styles]
    words = {"fontsize": "small", "title": title, "title_fontsize": "small"}
    ax.legend(handles=lines, **{**words, **(legend if isinstance(legend, Mapping) else {})})
