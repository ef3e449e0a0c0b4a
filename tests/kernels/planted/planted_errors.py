#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Would the tests of the kernels notice? Plants one error at a time and demands that a test fails.

    tests/kernels/planted/planted_errors.py BUILD [NAME...]

BUILD is a build without sanitizers whose kernel tests are built and pass. For each error of
errors.py the kernels are copied, one place is changed, and the affected kernel and its test are
compiled and linked anew as BUILD does it. The tree is not touched.
"""

import json
import shlex
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from errors import ERRORS, Planted

ROOT = Path(__file__).resolve().parents[3]
TEST_SECONDS = 120
KILLED = -6, -8, -11  # an assertion of the emulation, or worse: a test that fails, too


class Build:
    """How BUILD compiles kernels and links tests."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        commands = json.loads((folder / "compile_commands.json").read_text())
        kernels = (c for c in commands if Path(c["file"]).parent == ROOT / "kernels")
        self.compile = {Path(c["file"]).name: shlex.split(c["command"]) for c in kernels}

    def link(self, test: str) -> list[str]:
        said = subprocess.run(
            ["ninja", "-C", self.folder, "-t", "commands", test],
            capture_output=True, text=True, check=True,
        ).stdout.strip().splitlines()[-1]  # fmt: skip
        words = shlex.split(said)
        # ": && g++ ... && :"
        begin = words.index("&&") + 1 if words[0] == ":" else 0
        end = words.index("&&", begin) if "&&" in words[begin:] else len(words)
        return words[begin:end]


def plant(error: Planted | None, scratch: Path) -> None:
    shutil.copytree(ROOT / "kernels", scratch / "kernels")
    if error is None:
        return
    path = scratch / "kernels" / error.file
    text = path.read_text()
    if text.count(error.old) != 1:
        raise SystemExit(
            f"{error.name}: {error.file} has {text.count(error.old)} times: {error.old}"
        )
    path.write_text(text.replace(error.old, error.new))


def compile_kernel(build: Build, scratch: Path, source: str) -> tuple[str, Path]:
    """The object of BUILD and the one made of the copy."""
    words = list(build.compile[source])
    at = words.index("-o") + 1
    own, made = words[at], scratch / f"{source}.o"
    words[at] = str(made)
    words = [str(scratch / "kernels" / source) if w == str(ROOT / "kernels" / source) else w
             for w in words]  # fmt: skip
    words[1:1] = [f"-I{scratch}"]
    words += ["-O1", "-w"]
    subprocess.run(words, cwd=build.folder, check=True)
    return own, made


def link_test(build: Build, scratch: Path, test: str, objects: dict[str, Path]) -> Path:
    words, program = build.link(test), scratch / test
    words[words.index("-o") + 1] = str(program)
    for own, made in objects.items():
        if own in words:
            words[words.index(own)] = str(made)
        else:  # in a library: what stands before it is taken first
            words[words.index("-o") : words.index("-o")] = [str(made)]
    subprocess.run(words, cwd=build.folder, check=True)
    return program


def outcome(
    build: Build, error: Planted | None, test: str, sources: tuple[str, ...]
) -> tuple[int | None, str]:
    """Status of the test with the error, None if it did not end; and the last that it said."""
    with tempfile.TemporaryDirectory(prefix="planted-") as name:
        scratch = Path(name)
        plant(error, scratch)
        objects = dict(compile_kernel(build, scratch, source) for source in sources)
        program = link_test(build, scratch, test, objects)
        try:
            result = subprocess.run(
                [program], capture_output=True, text=True, timeout=TEST_SECONDS, cwd=build.folder
            )
        except subprocess.TimeoutExpired:
            return None, ""
    said = (result.stdout + result.stderr).strip().splitlines()
    return result.returncode, said[-1] if said else ""


def check(build: Build, error: Planted) -> str | None:
    """What is wrong, if the error goes unnoticed."""
    status, said = outcome(build, error, error.test, error.sources)
    if status is None:
        return f"{error.name}: {error.test} did not end in {TEST_SECONDS} s"
    if status != 1 and status not in KILLED:
        return f"{error.name}: {error.test} ended with {status}: the error was not noticed"
    print(f"caught: {error.name} ({error.file}, {error.test})\n    {said[:120]}", flush=True)
    return None


def main(arguments: list[str]) -> int:
    build, names = Build(Path(arguments[0]).resolve()), arguments[1:]
    chosen = [e for e in ERRORS if not names or any(e.name.startswith(n) for n in names)]
    if not chosen:
        raise SystemExit(f"there is no error called {' or '.join(names)}")
    with ThreadPoolExecutor(2) as pool:
        # Without an error a test that is compiled and linked in this way passes.
        control = pool.submit(outcome, build, None, chosen[0].test, chosen[0].sources)
        problems = [p for p in pool.map(lambda e: check(build, e), chosen) if p]
        status, said = control.result()
        missed = len(problems)
        if status != 0:
            problems.append(f"{chosen[0].test} fails without an error: {said}")
    for problem in problems:
        print(problem, file=sys.stderr)
    files = len({source for e in chosen for source in e.sources})
    print(f"{len(chosen) - missed} of {len(chosen)} planted errors caught, in {files} kernel files")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
