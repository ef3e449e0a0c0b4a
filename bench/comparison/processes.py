# SPDX-License-Identifier: Apache-2.0
"""Programs under test, each a process of its own that waits for orders (peer_server.py)."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np

Json = Any

# Without these glibc gives the memory of each activation back to the system and faults it in again.
MALLOC = {
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": "100000000000",
    "MALLOC_TOP_PAD_": "268435456",
}
IDLE_CPU_LIMIT = 0.05
_TICKS = os.sysconf("SC_CLK_TCK")


class ProgramError(RuntimeError):
    """A program under test failed."""


class Program:
    """A process that takes orders."""

    def __init__(self, name: str, command: list[str], env: dict[str, str], log: Path) -> None:
        self.name = name
        self.log = log
        with log.open("ab") as errors:
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                env=os.environ | env,
                text=True,
            )

    def answer(self, limit: float | None = None) -> Json:
        """Wait for the next line, at most so many seconds: then the process is ended."""
        late = threading.Event()

        def end() -> None:
            late.set()
            self.process.kill()

        alarm = threading.Timer(limit, end) if limit else None
        if alarm:
            alarm.start()
        line = self.process.stdout.readline()
        if alarm:
            alarm.cancel()
        if late.is_set():
            self.process.wait()
            raise ProgramError(f"{self.name} took longer than {limit:.0f} s")
        if not line:
            raise ProgramError(f"{self.name} ended with {self.process.wait()}; see {self.log}")
        answer = json.loads(line)
        if isinstance(answer, dict) and "error" in answer:
            raise ProgramError(f"{self.name}: {answer['error']}")
        return answer

    def ask(self, *words: object, limit: float | None = None) -> Json:
        """Give an order and wait for the answer, as answer() does."""
        try:
            self.process.stdin.write(" ".join(str(w) for w in words) + "\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            pass  # answer() says how it ended
        return self.answer(limit)

    def cpu_seconds(self) -> float:
        """Return the CPU time that the process has used so far."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / _TICKS

    def close(self) -> None:
        """End the process."""
        if self.process.poll() is None:
            try:
                self.process.stdin.write("quit\n")
                self.process.stdin.close()
                self.process.wait(timeout=20)
            except (BrokenPipeError, subprocess.TimeoutExpired):
                self.process.kill()
                self.process.wait()

    def __enter__(self) -> Program:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Ours(Program):
    """dosemap's network, by bench/network_server.c."""

    def __init__(self, folder: Path, precision: str, threads: int, edge: list[int]) -> None:
        self.edge, self.folder = edge, folder
        command = [
            str(folder / "ours/bench/network_server"),
            str(folder / "random.safetensors.zst"),
            precision,
            str(threads),
            ",".join(map(str, edge)),
        ]
        super().__init__(f"dosemap {precision}", command, {}, folder / "log-ours.txt")
        self.facts = self.answer()

    def outputs(self, windows: np.ndarray) -> np.ndarray:
        """Run windows (N, 1, x, y, z); in memory the program has z, y, x."""
        source, target = self.folder / "ours-in.f32", self.folder / "ours-out.f32"
        np.ascontiguousarray(windows[:, 0].transpose(0, 3, 2, 1), np.float32).tofile(source)
        self.ask("check", source, target, len(windows))
        shape = (len(windows), *self.edge[::-1])
        return np.fromfile(target, np.float32).reshape(shape).transpose(0, 3, 2, 1)[:, None]


class Peer(Program):
    """One peer in one precision, by peer_server.py."""

    def __init__(
        self,
        folder: Path,
        peer: str,
        precision: str,
        network: str,
        cores: int,
        state: Path | None = None,
    ) -> None:
        self.folder = folder
        command = [sys.executable, "-m", "comparison.peer_server", peer, precision, network]
        env = MALLOC | {
            "PYTHONPATH": os.pathsep.join(
                [str(Path(__file__).parents[1]), str(Path(__file__).parents[2] / "tools")]
            ),
            "TORCHINDUCTOR_CACHE_DIR": str(folder / "inductor"),
            "OMP_NUM_THREADS": str(cores),
        }
        log = folder / f"log-{peer}-{precision}.txt"
        command += [str(state or folder / "state.pt"), str(cores)]
        super().__init__(f"{peer} {precision}", command, env, log)

    def use(self, setting: Json, edge: list[int], limit: float | None = None) -> Json:
        """Make ready with a setting."""
        return self.ask("use", json.dumps(setting), ",".join(map(str, edge)), limit=limit)

    def outputs(self, windows: np.ndarray) -> np.ndarray:
        """Run windows (N, 1, x, y, z)."""
        source = self.folder / "peer-in.f32"
        target = self.folder / "peer-out.f32"
        np.ascontiguousarray(windows, np.float32).tofile(source)
        self.ask("check", source, target, len(windows))
        return np.fromfile(target, np.float32).reshape(windows.shape)


def check_idle(programs: list[Program], seconds: float = 0.5) -> None:
    """Raise an error if one of the waiting programs uses the CPU."""
    before = [p.cpu_seconds() for p in programs]
    time.sleep(seconds)
    for program, cpu in zip(programs, before, strict=True):
        used = (program.cpu_seconds() - cpu) / seconds
        if used > IDLE_CPU_LIMIT:
            raise ProgramError(f"{program.name} uses {used:.0%} of a core while it waits")


def difference(a: np.ndarray, b: np.ndarray) -> float:
    """Return |a - b| / |b|; NaN if something is not finite."""
    if a.shape != b.shape or not (np.isfinite(a).all() and np.isfinite(b).all()):
        return float("nan")
    a, b = a.astype(np.float64), b.astype(np.float64)
    return float(np.linalg.norm(a - b) / np.linalg.norm(b))
