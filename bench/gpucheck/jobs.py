# SPDX-License-Identifier: Apache-2.0
"""Jobs, which are commands with a time limit and a judge, and steps, which are lists of jobs."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gpucheck.place import Place

Figures = dict[str, object]
TAIL = 4000  # characters of a job's output that the results keep
SKIPPED = 77  # the exit status with which a test says that it could not run

PASSED, FAILED, LATE, IMPOSSIBLE, NOT_RUN = (
    "passed",
    "failed",
    "out of time",
    "not possible",
    "not run",
)


class WrongError(Exception):
    """What a judge found wrong, with the figures that show it."""

    def __init__(self, reason: str, figures: Figures | None = None) -> None:
        super().__init__(reason)
        self.figures = figures or {}


class ImpossibleError(Exception):
    """What is missing here, so that a step cannot be run."""


@dataclass(frozen=True)
class Finished:
    """What a command left behind."""

    status: int
    seconds: list[float]
    output: str


Judge = Callable[[Finished], Figures]


@dataclass(frozen=True)
class Job:
    """A command; passed if it exits with one of `statuses` and the judge finds nothing wrong."""

    name: str
    command: tuple[str, ...]
    judge: Judge | None = None
    limit_s: float = 120
    repeat: int = 1
    environment: dict[str, str] = field(default_factory=dict)
    statuses: tuple[int, ...] = (0,)


@dataclass(frozen=True)
class Step:
    """Jobs that show one thing; they are made when it is their turn, from what is there then."""

    name: str
    shows: str
    jobs: Callable[[Place], list[Job]]
    limit_s: float
    parallel: int = 1
    needs: tuple[str, ...] = ()
    """Commands without which the step is not possible."""
    together: bool = False
    """Whether its jobs use each other's files, so that one of them is not run alone."""


@dataclass
class Record:
    """What is kept of a job."""

    verdict: str
    reason: str = ""
    seconds: list[float] = field(default_factory=list)
    figures: Figures = field(default_factory=dict)
    command: str = ""
    output: str = ""

    def as_json(self) -> dict[str, object]:
        """Return it for the results file; of what passed the output is not kept."""
        kept = {
            "verdict": self.verdict,
            "seconds": [round(s, 4) for s in self.seconds],
            "command": self.command,
        }
        if self.reason:
            kept["reason"] = self.reason
        if self.figures:
            kept["figures"] = self.figures
        if self.verdict != PASSED and self.output:
            kept["output"] = self.output[-TAIL:]
        return kept


def _end(process: subprocess.Popen[str]) -> None:
    """End a command and what it started, which may ignore the first signal."""
    for sign, patience_s in ((signal.SIGTERM, 5), (signal.SIGKILL, 30)):
        try:
            os.killpg(process.pid, sign)
            process.wait(patience_s)
            return
        except (subprocess.TimeoutExpired, ProcessLookupError):
            continue


def _reason(finished: Finished) -> str:
    """Return the exit status, with the last line of what was said."""
    lines = finished.output.strip().splitlines()
    return f"exit status {finished.status}" + (f": {lines[-1][:200]}" if lines else "")


def run_once(job: Job, limit_s: float, folder: Path) -> tuple[Finished | None, str]:
    """Run a command; return None, with what it had said, if the limit was reached."""
    environment = {**os.environ, **job.environment}
    begin = time.monotonic()
    # Into a file: what the command leaves running may keep a pipe open beyond the limit.
    with open(folder / f"{job.name.replace('/', '-')}.log", "w+", errors="replace") as said:
        process = subprocess.Popen(
            job.command,
            stdin=subprocess.DEVNULL,
            stdout=said,
            stderr=subprocess.STDOUT,
            env=environment,
            text=True,
            start_new_session=True,
        )
        try:
            status = process.wait(max(limit_s, 0.1))
        except subprocess.TimeoutExpired:
            status = None
        except BaseException:
            _end(process)
            raise
        seconds = time.monotonic() - begin
        if status is None:
            _end(process)
        said.seek(0)
        output = said.read()
    return (None if status is None else Finished(status, [seconds], output)), output


def run_job(job: Job, deadline: float, folder: Path) -> Record:
    """Run a job as often as it says, until its limit or the deadline, and judge it."""
    end = min(deadline, time.monotonic() + job.limit_s)
    record = Record(NOT_RUN, command=" ".join(job.command))
    if end - time.monotonic() < 1:
        record.reason = "no time was left"
        return record
    try:
        for _ in range(job.repeat):
            finished, record.output = run_once(job, end - time.monotonic(), folder)
            if finished is None:
                record.verdict, record.reason = LATE, f"ended after {job.limit_s:.0f} s or less"
                return record
            record.seconds += finished.seconds
            if finished.status not in job.statuses:
                record.verdict, record.reason = FAILED, _reason(finished)
                if finished.status == SKIPPED:
                    record.reason = "skipped itself: it found no GPU"
                return record
        record.figures = (
            job.judge(Finished(finished.status, record.seconds, record.output)) if job.judge else {}
        )
        record.verdict = PASSED
    except WrongError as wrong:
        record.verdict, record.reason, record.figures = FAILED, str(wrong), wrong.figures
    except Exception as error:  # a judge that stumbles must not end the other jobs
        record.verdict, record.reason = FAILED, f"{type(error).__name__}: {error}"
    return record


def run_step(
    step: Step, jobs: list[Job], deadline: float, folder: Path
) -> Iterator[tuple[Job, Record]]:
    """Run a step's jobs, some at once if it allows, and yield each with what became of it."""
    end = min(deadline, time.monotonic() + step.limit_s)
    folder.mkdir(parents=True, exist_ok=True)
    if step.parallel == 1:
        for job in jobs:
            yield job, run_job(job, end, folder)
        return
    with ThreadPoolExecutor(step.parallel) as pool:
        running = {pool.submit(run_job, job, end, folder): job for job in jobs}
        for done in as_completed(running):
            yield running[done], done.result()
