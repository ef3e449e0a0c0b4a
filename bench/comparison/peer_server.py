# SPDX-License-Identifier: Apache-2.0
"""One peer as a process that waits for orders, the counterpart of bench/network_server.c.

python -m comparison.peer_server PEER PRECISION NETWORK STATE CORES

Reads orders, one a line, and answers each with one line of JSON; between orders it uses no CPU:

    search SECONDS QUICK   times every setting for so long and answers with their rates
    use SETTING X,Y,Z      makes the peer ready with a setting (JSON) for windows of that size, and
                           answers with the seconds that this took
    check IN OUT COUNT     COUNT windows of raw float32, (x, y, z), from IN to OUT
    run SECONDS            as many windows as it finishes in that time
    latency SECONDS        one batch at a time: percentiles of its seconds (on a device)
    volume IN OUT OVERLAP  a whole volume by MONAI's sliding window, from file to file
    memory                 peak memory of the process, and of the device
    quit

PEER is one of peers.PEERS, or PyTorch on a device: `pytorch@cuda`, whose STATE is a weights file.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import time
import traceback
from pathlib import Path
from typing import Any

import numpy as np

from comparison.inputs import cut_windows
from comparison.peers import PEERS, Engine, Make, Setting, candidates

Json = dict[str, Any]


def maker(peer: str) -> Make:
    """Return what makes a peer with a setting."""
    _, _, device = peer.partition("@")
    if not device:
        return PEERS[peer]
    from comparison.gpu_peers import DeviceEngine

    return lambda _, weights, precision, setting, edge: DeviceEngine(
        weights, precision, setting, edge, device
    )


class Server:
    """A peer in one precision."""

    def __init__(self, peer: str, precision: str, network: str, state: str, cores: str) -> None:
        self.peer, self.precision, self.network = peer, precision, network
        self.state, self.cores = Path(state), int(cores)
        self.engine: Engine | None = None
        self.edge = [32, 32, 32]

    def make(self, setting: Setting) -> Engine:
        """Return the peer, warmed up."""
        engine = maker(self.peer)(self.network, self.state, self.precision, setting, self.edge)
        windows = np.zeros((setting.batch * setting.workers, 1, *self.edge), np.float32)
        engine.windows(windows)
        if setting.workers > 1:  # torch.compile compiles again for its second thread
            engine.repeat(windows[: setting.batch], 0.01)
        return engine

    def rate(self, engine: Engine, seconds: float) -> Json:
        """Return windows per second: the sum of the workers' own rates."""
        windows = cut_windows(engine.setting.batch, self.edge, 5)
        cpu, begin = time.process_time(), time.perf_counter()
        found = engine.repeat(windows, seconds)
        elapsed = time.perf_counter() - begin
        return {
            "rate": sum(count / t for count, t in found),
            "windows": sum(count for count, _ in found),
            "seconds": elapsed,
            "cpu": (time.process_time() - cpu) / elapsed,
        } | getattr(engine, "facts", {})

    def search(self, seconds: float, quick: bool) -> list[Json]:
        """Return all settings with their rates, the best first."""
        found = []
        for setting in candidates(self.peer, self.cores, quick):
            try:
                engine = self.make(setting)
                self.rate(engine, seconds / 2)
                rate = max(self.rate(engine, seconds / 2)["rate"] for _ in range(2))
            except Exception as error:
                print(f"{self.peer} {setting.text()}: {error}", file=sys.stderr)
                continue
            print(f"{self.peer} {self.precision} {setting.text()}: {rate:.2f}", file=sys.stderr)
            found.append({"setting": setting.as_json(), "rate": rate})
        return sorted(found, key=lambda f: -f["rate"])

    def check(self, source: str, target: str, count: int) -> Json:
        """Run windows from a file to a file."""
        windows = np.fromfile(source, np.float32).reshape(count, 1, *self.edge)
        np.ascontiguousarray(self.engine.windows(windows), np.float32).tofile(target)
        return {"windows": count}

    def volume(self, source: str, target: str, overlap: float) -> Json:
        """Predict a volume from file to file."""
        if "@" in self.peer:
            return self.engine.volume(source, target, overlap)
        import nibabel
        import torch
        from monai.inferers import sliding_window_inference

        def predict(x: torch.Tensor) -> torch.Tensor:
            return torch.from_numpy(self.engine.windows(x.numpy()))

        setting = self.engine.setting
        begin = time.perf_counter()
        image = nibabel.load(source)
        pet = torch.from_numpy(np.ascontiguousarray(image.get_fdata(dtype=np.float32)))
        read = time.perf_counter()
        dose = sliding_window_inference(
            pet[None, None],
            self.edge,
            setting.batch * (4 * setting.workers if setting.workers > 1 else 1),
            predict,
            overlap=overlap,
            mode="gaussian",
        )
        predicted = time.perf_counter()
        nibabel.save(nibabel.Nifti1Image(dose[0, 0].numpy(), image.affine), target)
        end = time.perf_counter()
        return {
            "seconds": end - begin,
            "read": read - begin,
            "predict": predicted - read,
            "write": end - predicted,
        }

    def obey(self, words: list[str]) -> Any:  # noqa: ANN401
        """Return the answer to an order."""
        order, arguments = words[0], words[1:]
        if order == "search":
            return self.search(float(arguments[0]), arguments[1] == "1")
        if order == "use":
            self.edge, begin = [int(n) for n in arguments[-1].split(",")], time.perf_counter()
            self.engine = None  # what it holds may be needed for the next
            self.engine = self.make(Setting(**json.loads(" ".join(arguments[:-1]))))
            return {"seconds": time.perf_counter() - begin}
        if order == "check":
            return self.check(arguments[0], arguments[1], int(arguments[2]))
        if order == "run":
            return self.rate(self.engine, float(arguments[0]))
        if order == "latency":
            windows = cut_windows(self.engine.setting.batch, self.edge, 5)
            return self.engine.latency(windows, float(arguments[0]))
        if order == "volume":
            return self.volume(arguments[0], arguments[1], float(arguments[2]))
        if order == "memory":
            peak = {"bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024}
            if "@" in self.peer:
                peak["device_bytes"] = self.engine.device_bytes()
            return peak
        raise ValueError(f"unknown order {order!r}")


def main() -> int:
    """Obey until told to quit."""
    server = Server(*sys.argv[1:])
    # Libraries print to standard output; the answers go out by a descriptor of their own.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for line in sys.stdin:
        if line.strip() == "quit":
            break
        try:
            answer = server.obey(line.split())
        except Exception:
            answer = {"error": traceback.format_exc()}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()
    return 0


if __name__ == "__main__":
    sys.exit(main())
