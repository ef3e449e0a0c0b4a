# SPDX-License-Identifier: Apache-2.0
"""Every block of code on the package's page runs, in order, and prints what the page says."""

import contextlib
import doctest
import io
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

for package in ("nibabel", "pandas", "matplotlib", "monai"):
    pytest.importorskip(package, reason=f"{package} is missing: the page is not tried")

from program import BINARY, ROOT

PAGE = ROOT / "python/README.md"
WEIGHTS = ROOT / "weights/dosegan-16-constructed.safetensors.zst"
# Those that change the machine: tests/install makes an installation of each kind.
INSTALLS = re.compile(r"^(pip install|tools/setup|python3 -m venv) ", re.M)


def blocks():
    """(language, code, line) of each block."""
    page = PAGE.read_text()
    for match in re.finditer(r"^```(\w*)\n(.*?)^```$", page, re.M | re.S):
        yield match[1], match[2], page.count("\n", 0, match.start()) + 1


@pytest.fixture
def there(tmp_path, monkeypatch):
    """A new user's folder, with the commands of the distribution on PATH."""
    assert BINARY.is_file(), f"{BINARY} is not built; name the program in DOSEMAP_BIN"
    scripts = tmp_path / "bin"
    scripts.mkdir()
    (scripts / "dosemap").symlink_to(BINARY)
    example = scripts / "dosemap-example"
    code = "import sys; from dosemap_tools.example import main; sys.exit(main())"
    example.write_text(f"#!/bin/sh\nexec '{sys.executable}' -c '{code}' \"$@\"\n")
    example.chmod(0o755)
    monkeypatch.setenv("PATH", f"{scripts}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", str(ROOT / "tools"))
    monkeypatch.setenv("DOSEMAP_MODEL", str(WEIGHTS))
    monkeypatch.chdir(tmp_path)


def run_python(code, line, names):
    """Run a block in the same names as those before it; what it printed."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile("\n" * line + code, str(PAGE), "exec"), names)
    return printed.getvalue()


def test_code_on_the_page(there):
    names, printed, counted = {}, None, {"sh": 0, "python": 0, "text": 0}
    for language, code, line in blocks():
        counted[language] += 1
        if language == "text":
            assert printed is not None, f"line {line}: no code has printed this"
            alike = doctest.OutputChecker().check_output(code, printed, doctest.ELLIPSIS)
            assert alike, f"line {line}: the page says\n{code}\nbut printed was\n{printed}"
            printed = None
        elif language == "python":
            printed = run_python(code, line, names)
        elif not INSTALLS.search(code):
            subprocess.run(["bash", "-euc", code], check=True, timeout=300)
    assert min(counted.values()) > 2, "the page has been taken apart wrongly"
    for written in ("demo/dose.nii.gz", "demo/dose.json", "demo/dose.png"):
        assert Path(written).stat().st_size > 500


def test_links_are_absolute():
    """The page is shown where the repository's files are not."""
    links = re.findall(r"\]\(([^)]*)\)", PAGE.read_text())
    assert not [link for link in links if not link.startswith("https://")]


def test_extras_that_the_page_names_exist():
    page, project = PAGE.read_text(), (ROOT / "pyproject.toml").read_text()
    extras = set(re.findall(r"pip install '[^']*\[(\w+)\]'", page))
    assert extras
    for extra in extras:
        assert re.search(rf"^{extra} = \[", project, re.M), extra


def test_names_that_the_page_names_exist():
    import dosemap

    named = set(re.findall(r"\bdosemap\.([A-Za-z_]+)\b(?!-)", PAGE.read_text())) - {"monai"}
    assert len(named) > 10
    assert not [name for name in named if not hasattr(dosemap, name)]
