# SPDX-License-Identifier: Apache-2.0
"""The program dosemap that an installed Python package brings, and the script of its name.

The package dosemap is not imported for it, which would take longer than `dosemap --version`.
"""

from __future__ import annotations

import importlib.util
import os
import signal
import sys
from pathlib import Path
from typing import NoReturn


def bundled_program() -> Path | None:
    """Return the program inside the installed package dosemap, if there is one."""
    package = importlib.util.find_spec("dosemap")
    for folder in (package and package.submodule_search_locations) or ():
        program = Path(folder) / "bin/dosemap"
        if os.access(program, os.X_OK):
            return program
    return None


def _environment(script: str, arguments: list[str]) -> dict[str, str]:
    """Return the program's environment: `dosemap import` runs the dosemap-import beside `script`.

    The folder of a virtual environment's scripts need not be on PATH; but PATH is not changed for
    programs from elsewhere, whose `env python3` would become another.
    """
    environment = dict(os.environ)
    folder = Path(script).absolute().parent
    if arguments and "/" not in arguments[0] and (folder / f"dosemap-{arguments[0]}").is_file():
        path = environment.get("PATH", os.defpath)
        environment["PATH"] = f"{folder}{os.pathsep}{path}"
    return environment


def main() -> NoReturn:
    """Become the program: its arguments, signals and exit status are this process's."""
    program = bundled_program()
    if program is None:
        sys.exit("dosemap: the installed package lacks bin/dosemap; install it again: pip install")
    script, *arguments = sys.argv
    # Python ignores these from its start on, and what is ignored stays so.
    for ignored in (signal.SIGPIPE, signal.SIGXFSZ):
        signal.signal(ignored, signal.SIG_DFL)
    try:
        os.execve(program, ["dosemap", *arguments], _environment(script, arguments))
    except OSError as error:
        sys.exit(f"dosemap: cannot run {program}: {error.strerror}")
