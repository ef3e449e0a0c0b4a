# SPDX-License-Identifier: Apache-2.0
"""``progress=True`` (a bar by tqdm) or a callable."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeAlias

from . import _errors

# What `progress` can be: a callable receives the share done, from 0 to 1, and the name of the
# stage; if it returns something true, or raises, the work ends.
Progress: TypeAlias = "bool | Callable[[float, str], object] | None"


@contextmanager
def reporting(progress: Progress) -> Iterator[Callable[[float, str], object] | None]:
    """Give the callable for the core, or None, while the work goes on."""
    if progress is None or progress is False:
        yield None
    elif progress is True:
        with _bar() as callback:
            yield callback
    elif callable(progress) and not isinstance(progress, type):
        yield progress
    else:
        wanted = "True, None, or a function of the share done and the stage"
        raise _errors.wrong_type("progress", progress, wanted)


@contextmanager
def _bar() -> Iterator[Callable[[float, str], object]]:
    _errors.optional("tqdm", "progress=True")
    from tqdm.auto import tqdm

    layout = "{desc} {percentage:3.0f}%|{bar}| [{elapsed}<{remaining}]"
    with tqdm(total=1.0, bar_format=layout) as bar:

        def show(share: float, stage: str) -> None:
            if stage != bar.desc:
                bar.set_description_str(stage, refresh=False)
            bar.update(share - bar.n)

        yield show
