# SPDX-License-Identifier: Apache-2.0
"""bench/compare: the figures it derives and the page it writes; no peer is needed."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "bench"))

from comparison import report
from comparison.processes import Program, ProgramError
from comparison.ratios import best_peer, ratio, spread


def test_ratio_is_the_median_of_the_rounds_ratios():
    # The ratio of the medians would be 10 / 10 = 1.
    found = ratio([10.0, 30.0, 4.0], [5.0, 10.0, 16.0])
    assert (found.middle, found.least, found.most, found.rounds) == (2.0, 0.25, 3.0, 3)


def test_ratio_of_times_is_larger_where_ours_is_faster():
    assert ratio([2.0], [6.0], of_times=True).middle == 3.0
    assert "one round" in ratio([2.0], [6.0], of_times=True).text()


def test_a_single_round_has_no_range():
    assert spread([3.0]) == "3.00 (one round)"
    assert spread([3.0, 1.0, 2.5]) == "2.50 (1.00–3.00)"


@pytest.mark.parametrize("ours, peer", [([], []), ([1.0], [1.0, 2.0]), ([1.0], [0.0])])
def test_ratio_refuses_rounds_that_do_not_pair(ours, peer):
    with pytest.raises(ValueError, match="round"):
        ratio(ours, peer)


def test_ratio_refuses_nan():
    with pytest.raises(ValueError, match="positive"):
        ratio([float("nan")], [1.0])


def test_best_peer_is_never_ours():
    rates = {"dosemap": [9.0], "a": [1.0, 5.0, 6.0], "b": [4.0, 4.0, 8.0]}
    assert best_peer(rates, "dosemap") == "a"
    assert best_peer(rates, "dosemap", of_times=True) == "b"
    assert best_peer({"dosemap": [1.0]}, "dosemap") is None


def test_table_has_one_cell_per_column():
    assert report.table(["a", "b"], [["1", "2"]]) == "| a | b |\n| --- | --- |\n| 1 | 2 |\n"
    with pytest.raises(ValueError, match="row of 1"):
        report.table(["a", "b"], [["1"]])


def program(rates, difference=1e-6, setting=None):
    return {"rates": rates, "cpu": [2.0], "difference": difference, "setting": setting}


def line(tile, seconds):
    against = {"relative_l2": 0.01, "largest": 0.02}
    return {"tile": tile, "overlap": 0, "seconds": seconds, "bytes": 2**30, "setting": None} | {
        "against_32": against,
        "difference": 1e-6,
    }


def results():
    setting = {"option": "hint", "batch": 4, "workers": 2, "threads": 1}
    network = {
        "facts": {"useful_flops": 10e9, "library": "library"},
        "programs": {
            "dosemap": program([22.0, 20.0, 24.0]),
            "openvino": program([20.0, 20.0, 20.0], setting=setting),
        },
    }
    volume = {"dosemap 32": line(32, [40.0]), "openvino 32": line(32, [50.0])}
    volume |= {"dosemap whole": line("whole", [10.0]), "openvino whole": line("whole", [20.0])}
    ceilings = {"fma_ceiling": 440.0, "matmul_ceiling": None}
    return {
        "date": "2026-01-01",
        "command": "bench/compare",
        "commit": "abc",
        "threads": 2,
        "machine": {"cpu": "C", "cores": 2, "memory_gib": 8, "kernel": "6", "load_before": 0.1},
        "versions": {"torch": "2"},
        "ceilings": {"float32": ceilings, "bf16": ceilings},
        "network": {"float32": network, "bf16": network},
        "volume": {"shape": [128, 128, 256], "float32": volume, "bf16": volume},
    }


def cells(text, begin):
    row = next(line for line in text.splitlines() if line.startswith(f"| {begin}"))
    return [cell.strip() for cell in row.strip("|").split("|")]


def test_tables_hold_ratio_and_share_of_the_ceiling():
    text = report.tables(results(), None)
    # 22 windows of 10 GFLOP are half of 440 GFLOP/s.
    assert cells(text, "dosemap |")[1:5] == ["22.00 (20.00–24.00)", "–", "220", "50 %"]
    peer = cells(text, "OpenVINO |")
    assert peer[2] == "**1.10** (1.00–1.20)"
    assert peer[6] == "hint, batch 4, 2 at once, 1 thread each"
    assert cells(text, "OpenVINO, tile whole")[2] == "2.00 (one round)"
    assert "(OpenVINO): 5.00 (one round) times as fast" in text


def test_insert_keeps_what_is_outside_the_markers(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(f"before\n{report.BEGIN}\nold\n{report.END}\n## Attempts\n")
    report.insert(page, "new\n")
    report.insert(page, "newer\n")
    assert page.read_text() == f"before\n{report.BEGIN}\nnewer\n{report.END}\n## Attempts\n"
    page.write_text("no markers\n")
    with pytest.raises(ValueError, match="needs"):
        report.insert(page, "new\n")
    assert page.read_text() == "no markers\n"


def test_results_page_has_the_markers():
    text = (ROOT / "bench" / "RESULTS.md").read_text()
    assert text.count(report.BEGIN) == 1
    assert text.index(report.BEGIN) < text.index(report.END) < text.index("## Attempts")


def test_help_needs_no_peers():
    done = subprocess.run(
        [sys.executable, "-I", "-S", ROOT / "bench" / "compare", "--help"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0 and "--parts" in done.stdout


def test_a_program_that_takes_too_long_is_ended(tmp_path):
    with Program("slow", ["sleep", "60"], {}, tmp_path / "log") as program:
        with pytest.raises(ProgramError, match="slow took longer than 0 s"):
            program.answer(0.05)
        assert program.process.returncode == -9
    command = ["sh", "-c", 'read order; echo "{}"; sleep 60']
    with Program("quick", command, {}, tmp_path / "log") as program:
        assert program.ask("go", limit=30) == {}
        assert program.process.poll() is None
        program.process.kill()
