# SPDX-License-Identifier: Apache-2.0
"""The same network in other programs, each with the settings that are tried for it.

An engine runs batches of windows (B, 1, X, Y, Z) float32 -> the same, on `workers` batches at once
with `threads` threads each. BatchNorm is folded into the convolutions for everybody, as dosemap
does it.
"""

from __future__ import annotations

import copy
import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from dosemap_tools.networks.generator import NETWORKS, Generator
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

Run = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Setting:
    """One way to run a peer; `option` is the peer's own: a layout, a mode, a hint."""

    batch: int
    workers: int
    threads: int
    option: str

    def text(self) -> str:
        """Return it for a log."""
        return f"{self.option}, batch {self.batch}, {self.workers} x {self.threads} threads"

    def as_json(self) -> dict[str, int | str]:
        """Return it for the results file."""
        return asdict(self)


def folded_network(network: str, state_path: Path) -> nn.Module:
    """Return the network with each BatchNorm folded into the convolution before it."""
    module = Generator(NETWORKS[network])
    module.load_state_dict(torch.load(state_path, weights_only=True))
    return fold(module.eval())


def fold(module: nn.Module) -> nn.Module:
    """Fold each BatchNorm into the convolution before it."""
    for unit in list(module.modules()):
        if isinstance(getattr(unit, "norm", None), nn.BatchNorm3d):
            unit.conv = fuse_conv_bn_eval(unit.conv, unit.norm)
            unit.norm = nn.Identity()
    return module


class Engine:
    """A peer with one setting, ready to run windows."""

    def __init__(self, runs: list[Run], setting: Setting) -> None:
        self.runs = runs
        self.setting = setting
        self.pool = ThreadPoolExecutor(len(runs))

    def windows(self, batch: np.ndarray) -> np.ndarray:
        """Run any number of windows, as many at once as the setting says."""
        size = self.setting.batch
        pieces = [batch[i : i + size] for i in range(0, len(batch), size)]
        short = size - len(pieces[-1])
        if short:  # one compiled size: the last batch is filled up
            pieces[-1] = np.concatenate([pieces[-1], np.repeat(pieces[-1][-1:], short, axis=0)])
        done: list[np.ndarray] = [batch] * len(pieces)
        next_piece = iter(range(len(pieces)))  # each worker takes the next that is left

        def work(run: Run) -> None:
            for i in next_piece:
                done[i] = run(pieces[i])

        if len(self.runs) == 1:
            work(self.runs[0])
        else:
            list(self.pool.map(work, self.runs))
        return np.concatenate(done)[: len(batch)] if len(done) > 1 or short else done[0]

    def repeat(self, windows: np.ndarray, seconds: float) -> list[tuple[int, float]]:
        """Run a batch again and again; return windows done and seconds taken of each worker."""

        def work(run: Run) -> tuple[int, float]:
            begin = t = time.perf_counter()
            count = 0
            while t < begin + seconds:
                run(windows)
                count += len(windows)
                t = time.perf_counter()
            return count, t - begin

        return [work(self.runs[0])] if len(self.runs) == 1 else list(self.pool.map(work, self.runs))


def _torch_run(module: nn.Module, precision: str, channels_last: bool, threads: int) -> Run:
    kind = torch.bfloat16 if precision == "bf16" else torch.float32
    layout = torch.channels_last_3d if channels_last else torch.contiguous_format

    def run(windows: np.ndarray) -> np.ndarray:
        if torch.get_num_threads() != threads:  # OpenMP keeps it per thread
            torch.set_num_threads(threads)
        with torch.no_grad():
            x = torch.from_numpy(np.ascontiguousarray(windows)).to(kind)
            return module(x.contiguous(memory_format=layout)).float().contiguous().numpy()

    return run


def _torch_module(network: str, state: Path, precision: str, channels_last: bool) -> nn.Module:
    module = folded_network(network, state)
    module.requires_grad_(False)
    if precision == "bf16":
        module = module.to(torch.bfloat16)
    return module.to(memory_format=torch.channels_last_3d) if channels_last else module


def eager(network: str, state: Path, precision: str, setting: Setting, edge: list[int]) -> Engine:
    """PyTorch as it comes."""
    del edge
    torch.set_num_threads(setting.threads)
    last = setting.option == "channels last"
    module = _torch_module(network, state, precision, last)
    run = _torch_run(module, precision, last, setting.threads)
    return Engine([run] * setting.workers, setting)


def compiled(
    network: str, state: Path, precision: str, setting: Setting, edge: list[int]
) -> Engine:
    """torch.compile with frozen weights."""
    import torch._inductor.config as inductor

    inductor.freezing = True
    torch.set_num_threads(setting.threads)
    module = _torch_module(network, state, precision, channels_last=True)
    options = {} if setting.option == "default" else {"mode": setting.option}
    fast = torch.compile(module, dynamic=False, **options)
    run = _torch_run(fast, precision, True, setting.threads)
    run(np.zeros((setting.batch, 1, *edge), np.float32))
    return Engine([run] * setting.workers, setting)


def _onnx_file(network: str, state: Path) -> Path:
    path = state.with_suffix(".onnx")
    if not path.exists() or path.stat().st_mtime < state.stat().st_mtime:
        partial = path.with_suffix(f".{os.getpid()}.onnx")
        torch.onnx.export(
            copy.deepcopy(folded_network(network, state)),
            (torch.zeros(1, 1, 32, 32, 32),),
            str(partial),
            input_names=["pet"],
            output_names=["dose"],
            dynamic_axes={n: {0: "b", 2: "x", 3: "y", 4: "z"} for n in ("pet", "dose")},
            dynamo=False,
        )
        partial.replace(path)
    return path


def onnx_runtime(
    network: str, state: Path, precision: str, setting: Setting, edge: list[int]
) -> Engine:
    """ONNX Runtime; float32 only, its CPU kernels have no bf16 convolution."""
    import onnxruntime

    if precision != "float32":
        raise ValueError("ONNX Runtime has no bf16 convolution on CPUs")
    del edge
    runs: list[Run] = []
    for _ in range(setting.workers):
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = setting.threads
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
        # Threads that spin after a run would take the CPU from the program that is timed next.
        options.add_session_config_entry("session.force_spinning_stop", "1")
        session = onnxruntime.InferenceSession(
            str(_onnx_file(network, state)), options, providers=["CPUExecutionProvider"]
        )
        runs.append(lambda x, s=session: s.run(None, {"pet": np.ascontiguousarray(x)})[0])
    return Engine(runs, setting)


_OPENVINO = {
    "latency": {"PERFORMANCE_HINT": "LATENCY"},
    "one stream": {"NUM_STREAMS": 1, "ENABLE_CPU_PINNING": False},
    "throughput": {"PERFORMANCE_HINT": "THROUGHPUT"},
    "a stream a core": {"ENABLE_CPU_PINNING": False},
    "a stream a core, pinned": {"ENABLE_CPU_PINNING": True},
}


class _QueueEngine(Engine):
    """OpenVINO's own queue of requests; a Python thread for each request hung at times."""

    def __init__(self, model: object, setting: Setting) -> None:
        import openvino as ov

        super().__init__([lambda x: x], setting)
        self.queue = ov.AsyncInferQueue(model, setting.workers)
        self.queue.set_callback(self._done)
        self.results: dict[int, tuple[np.ndarray | None, float]] = {}

    def _done(self, request: object, order: tuple[int, bool]) -> None:
        index, keep = order
        dose = request.get_output_tensor(0).data.copy()  # as the others hand out new memory
        self.results[index] = (dose if keep else None, time.perf_counter())

    def windows(self, batch: np.ndarray) -> np.ndarray:
        size, self.results = self.setting.batch, {}
        for first in range(0, len(batch), size):
            piece = batch[first : first + size]
            short = size - len(piece)
            if short:
                piece = np.concatenate([piece, np.repeat(piece[-1:], short, axis=0)])
            self.queue.start_async({0: np.ascontiguousarray(piece)}, (first, True))
        self.queue.wait_all()
        return np.concatenate([dose for _, (dose, _) in sorted(self.results.items())])[: len(batch)]

    def repeat(self, windows: np.ndarray, seconds: float) -> list[tuple[int, float]]:
        self.results = {}
        begin, index = time.perf_counter(), 0
        while time.perf_counter() < begin + seconds:
            self.queue.start_async({0: windows}, (index, False))
            index += 1
        self.queue.wait_all()
        # Requests end one after the other; a worker's time ends with its last request.
        ends = sorted(end for _, end in self.results.values())[-self.setting.workers :]
        each = len(self.results) * len(windows) / len(ends)
        return [(each, end - begin) for end in ends]


def openvino(
    network: str, state: Path, precision: str, setting: Setting, edge: list[int]
) -> Engine:
    """OpenVINO's CPU plugin."""
    import openvino as ov

    core = ov.Core()
    model = core.read_model(_onnx_file(network, state))
    model.reshape({"pet": [setting.batch, 1, *edge]})
    total = setting.threads * setting.workers
    config = dict(_OPENVINO[setting.option])
    config["INFERENCE_PRECISION_HINT"] = "f32" if precision == "float32" else "bf16"
    config["INFERENCE_NUM_THREADS"] = total
    if setting.option.startswith("a stream a core"):
        config["NUM_STREAMS"] = setting.workers
    return _QueueEngine(core.compile_model(model, "CPU", config), setting)


Make = Callable[[str, Path, str, Setting, list[int]], Engine]
PEERS: dict[str, Make] = {
    "eager": eager,
    "compile": compiled,
    "onnxruntime": onnx_runtime,
    "openvino": openvino,
}


def candidates(peer: str, cores: int, quick: bool) -> list[Setting]:
    """Return the settings among which a peer's best is looked for; few of them to be quick."""
    together = [(1, cores)] + ([(cores, 1)] if cores > 1 else [])
    if quick:
        option = {"eager": "channels last", "compile": "default", "onnxruntime": "arena on"}
        return [Setting(4, w, t, option.get(peer, "throughput")) for w, t in together]
    if peer == "eager":
        options, batches = ["channels last", "channels first"], [1, 2, 4, 8]
    elif peer == "compile":  # max-autotune tunes matrix products, of which there are none
        options, batches = ["default"], [1, 4]
    elif peer == "onnxruntime":
        options, batches = ["arena on"], [1, 4]
    else:
        one = [Setting(b, 1, cores, o) for o in ("latency", "one stream") for b in (1, 4)]
        many = ["throughput", "a stream a core", "a stream a core, pinned"]
        return one + [Setting(b, cores, 1, o) for o in many for b in (1, 4)]
    return [Setting(b, w, t, o) for o in options for w, t in together for b in batches]
