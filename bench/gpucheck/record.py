# SPDX-License-Identifier: Apache-2.0
"""The results file, to which every run adds, and the summary of it for people."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

from gpucheck.jobs import FAILED, IMPOSSIBLE, LATE, NOT_RUN, PASSED, Figures, Record, Step

FORMAT = "dosemap gpu_check 1"
WORST_FIRST = (FAILED, LATE, NOT_RUN, IMPOSSIBLE)


class Results:
    """What is known so far; written after every job, so that a run may end at any time."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.all: dict = {"format": FORMAT, "runs": [], "steps": {}}
        if path.exists():
            self.merge(path)

    def merge(self, path: Path) -> None:
        """Add the results of another file; of a job in both, the later one counts."""
        other = json.loads(path.read_text())
        if other.get("format") != FORMAT:
            raise SystemExit(f"gpu_check: {path} holds no results of gpu_check")
        first = len(self.all["runs"])
        self.all["runs"] += other["runs"]
        for name, step in other["steps"].items():
            known = self.all["steps"].setdefault(name, {"shows": step["shows"], "jobs": {}})
            for job, record in step["jobs"].items():
                known["jobs"][job] = {**record, "run": record["run"] + first}

    def begin(self, run: Figures) -> None:
        """Add a run: what follows belongs to it."""
        self.all["runs"].append(run)

    def passed(self, step: str) -> set[str]:
        """Return the jobs of a step that have passed."""
        jobs = self.all["steps"].get(step, {"jobs": {}})["jobs"]
        return {name for name, record in jobs.items() if record["verdict"] == PASSED}

    def add(self, step: Step, job: str, record: Record) -> None:
        """Keep a job's record."""
        kept = self.all["steps"].setdefault(step.name, {"jobs": {}})
        kept["shows"] = step.shows
        kept["jobs"].pop("", None)
        kept["jobs"][job] = {**record.as_json(), "run": len(self.all["runs"]) - 1}
        self.write()

    def cannot(self, step: Step, reason: str) -> None:
        """Keep that a step is not possible here; a result that it has from elsewhere stays."""
        if not self.passed(step.name):
            self.all["steps"][step.name] = {"shows": step.shows, "jobs": {}}
            self.add(step, "", Record(IMPOSSIBLE, reason))

    def write(self) -> None:
        """Write the file, whole or not at all, and the summary beside it."""
        for step in self.all["steps"].values():
            verdicts = {record["verdict"] for record in step["jobs"].values()}
            step["verdict"] = next((v for v in WORST_FIRST if v in verdicts), PASSED)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        for path, text in (
            (self.path, json.dumps(self.all, indent=1) + "\n"),
            (self.path.with_suffix(".md"), "\n".join(self.summary()) + "\n"),
        ):
            partial = path.with_name("partial-" + path.name)
            partial.write_text(text)
            os.replace(partial, path)

    def verdicts(self) -> dict[str, str]:
        """Return each step's verdict."""
        return {name: step["verdict"] for name, step in self.all["steps"].items()}

    def summary(self) -> Iterator[str]:
        """Yield the lines of a summary in Markdown."""
        yield "# GPU check"
        for run in self.all["runs"]:
            facts = run.get("machine", {})
            made = run.get("bundle", {})
            yield (
                f"- {run.get('began')}: {facts.get('cpu')}, {facts.get('cores')} cores,"
                f" {facts.get('system')}, {facts.get('glibc')}; dosemap"
                f" {str(made.get('commit', 'of an unknown commit'))[:12]}"
                + (", with a CPU in the place of the GPU" if run.get("dry_run") else "")
            )
        yield ""
        yield "| step | | jobs | seconds | shows |"
        yield "|---|---|---|---|---|"
        for name, step in self.all["steps"].items():
            records = step["jobs"].values()
            done = sum(r["verdict"] == PASSED for r in records)
            seconds = sum(sum(r["seconds"]) for r in records)
            yield (
                f"| {name} | {step['verdict']} | {done} of {len(records)} | {seconds:.1f}"
                f" | {step['shows']} |"
            )
        yield ""
        for name, step in self.all["steps"].items():
            for job, record in step["jobs"].items():
                if record["verdict"] != PASSED:
                    where = f"{name}, {job}" if job else name
                    yield f"- **{where}**: {record['verdict']}: {record.get('reason', '')}"
        yield ""
        for name, step in self.all["steps"].items():
            for job, record in step["jobs"].items():
                short = _short(record.get("figures", {}))
                if short:
                    yield f"- {name}, {job}: {short}"


def _short(figures: Figures) -> str:
    """Return the plain numbers among figures, the first few."""
    plain = [
        f"{key} {value:.5g}" if isinstance(value, float) else f"{key} {value}"
        for key, value in figures.items()
        if isinstance(value, bool | int | float)
    ]
    return ", ".join(plain[:8])
