# SPDX-License-Identifier: Apache-2.0
"""tools/make_gallery notices what a run would change, and nothing else."""

import base64
import copy
import struct
import zlib
from importlib.machinery import SourceFileLoader
from importlib.util import module_from_spec, spec_from_loader

import pytest
from nbclient.exceptions import CellExecutionError
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output
from program import ROOT


@pytest.fixture(scope="module")
def gallery():
    loader = SourceFileLoader("make_gallery", str(ROOT / "tools/make_gallery"))
    module = module_from_spec(spec_from_loader("make_gallery", loader))
    loader.exec_module(module)
    return module


def png(width, height, grey=0):
    """A PNG file of one colour, in base64."""

    def chunk(kind, data):
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    rows = (b"\0" + bytes([grey]) * width) * height
    header = struct.pack(">2I5B", width, height, 8, 0, 0, 0, 0)
    content = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return base64.b64encode(b"\x89PNG\r\n\x1a\n" + content).decode()


@pytest.fixture
def notebook():
    figure = new_output(
        "execute_result",
        {"text/plain": "<Figure>", "text/html": "<b>", "image/png": png(4, 3)},
        execution_count=2,
    )
    return new_notebook(
        cells=[
            new_markdown_cell("# Title", id="title"),
            new_code_cell(
                "print(1)", id="one", execution_count=1, outputs=[new_output("stream", text="1\n")]
            ),
            new_code_cell("figure", id="two", execution_count=2, outputs=[figure]),
        ]
    )


def test_equal(gallery, notebook):
    fresh = copy.deepcopy(notebook)
    fresh.cells[2].outputs[0].data["image/png"] = png(4, 3, 255)
    fresh.cells[2].outputs[0].data["text/html"] = "<i>"
    assert gallery.differences(notebook, fresh) == []


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda cells: cells[1].outputs[0].update(text="2\n"), "cell one"),
        (lambda cells: cells[1].outputs.clear(), "cell one"),
        (lambda cells: cells[1].update(execution_count=3), "kept is run 1 of 3"),
        (lambda cells: cells[1].outputs[0].update(name="stderr"), "writes to stderr: 1"),
        (lambda cells: cells[2].outputs[0].data.update({"text/plain": "x"}), "cell two"),
        (lambda cells: cells[2].outputs[0].data.update({"image/png": png(3, 4)}), "3 x 4 pixels"),
        (lambda cells: cells[2].outputs[0].data.pop("image/png"), "cell two"),
        (lambda cells: cells[2].outputs.append(cells[2].outputs[0]), "cell two"),
    ],
)
def test_different(gallery, notebook, change, words):
    fresh = copy.deepcopy(notebook)
    change(fresh.cells)
    assert words in " ".join(gallery.differences(notebook, fresh))


def test_page(gallery, notebook, tmp_path):
    files = gallery.page_of(notebook)
    image = f"{gallery.NOTEBOOK.stem}_1.png"
    assert files.keys() == {"README.md", image}
    assert files[image] == base64.b64decode(png(4, 3))
    page = files["README.md"].decode()
    for words in ("# Title", "print(1)", "    1\n", f"({image})"):
        assert words in page
    assert "<b>" not in page

    assert len(gallery.stale_files(files, tmp_path)) == 2
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    assert gallery.stale_files(files, tmp_path) == []
    (tmp_path / "README.md").write_text(page.replace("\n\n", "\n\n\n"))
    assert gallery.stale_files(files, tmp_path) == []
    (tmp_path / "README.md").write_text(page.replace("Title", "Titles"))
    assert gallery.stale_files(files, tmp_path) == [
        "python/gallery/README.md is not what the notebook makes"
    ]
    (tmp_path / "README.md").write_text(page)
    (tmp_path / "old.png").write_bytes(b"")
    assert gallery.stale_files(files, tmp_path) == ["python/gallery/old.png belongs to no figure"]


def test_execute(gallery, notebook, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", "some/folder")
    notebook.cells = notebook.cells[:2]
    notebook.cells[1].source = "import os, dosemap_tools\nprint(os.listdir())\nprint(6 * 7)"
    fresh = gallery.execute(notebook)
    assert [output.text for output in fresh.cells[1].outputs] == ["[]\n42\n"]
    assert notebook.cells[1].outputs[0].text == "1\n"
    notebook.cells[1].source = "1 / 0"
    with pytest.raises(CellExecutionError, match="ZeroDivisionError"):
        gallery.execute(notebook)
