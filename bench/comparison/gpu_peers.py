# SPDX-License-Identifier: Apache-2.0
"""PyTorch on a GPU (or, to try the programs, on the CPU): eager and compiled.

Windows and weights lie in the device's memory in the type and layout that is asked for before
anything is timed, results stay there: what is timed is the network alone. Batches are enqueued one
after the other, as a sliding window does it, over several different inputs.
"""

from __future__ import annotations

import contextlib
import ctypes
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import numpy as np
import torch
from dosemap_tools import nifti, weights_file
from dosemap_tools.networks.generator import NETWORKS, Generator
from torch import nn

from comparison.peers import Engine, Setting, fold
from comparison.sliding_window import sliding_window

INPUT_SETS = 3
GROUP_SECONDS = 0.05  # batches enqueued between two readings of the clock
MOST_IN_GROUP = 1000
KINDS = {
    "float32": torch.float32,
    "tf32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
}
EAGER = "eager"


@dataclass(frozen=True)
class Way:
    """How PyTorch runs the network; Setting.option holds it as text."""

    layout: str  # channels first, channels last
    arithmetic: str  # pure: weights and activations in the type; autocast: as PyTorch chooses
    norm: str  # folded into the convolutions, or as it is
    mode: str  # eager, or a mode of torch.compile
    frozen: bool = False  # torch.compile may take the weights for constants

    def text(self) -> str:
        """Return it as Setting.option."""
        parts = [self.layout, self.arithmetic, self.norm, self.mode]
        return ", ".join(parts + ["frozen"] * self.frozen)


def way_of(text: str) -> Way:
    """Return what text() wrote."""
    parts = text.split(", ")
    return Way(*parts[:4], frozen="frozen" in parts[4:])


def load_network(path: Path) -> nn.Module:
    """Return the network of a dosemap weights file, in float32 on the CPU."""
    data = weights_file.decompress(path.read_bytes())
    # dosemap reads the same file, and checks it.
    file = weights_file.decode(data, check=weights_file.xxhash is not None)
    module = Generator(NETWORKS[file.graph["name"]])
    tensors = {name: torch.from_numpy(values) for name, values in file.tensors.items()}
    lacking, unexpected = module.load_state_dict(tensors, strict=False)
    lacking = [name for name in lacking if not name.endswith("num_batches_tracked")]
    if lacking or unexpected:
        raise ValueError(f"{path}: lacks {lacking}, has {unexpected} that is not expected")
    return module.eval().requires_grad_(False)


class EnergyMeter:
    """The driver's count of what the GPU has used, if it has one."""

    def __init__(self, device: torch.device) -> None:
        self.handle = None
        if device.type != "cuda":
            return
        with contextlib.suppress(OSError, AttributeError):
            self.nvml = ctypes.CDLL("libnvidia-ml.so.1")
            uuid = f"GPU-{torch.cuda.get_device_properties(device).uuid}".encode()
            handle = ctypes.c_void_p()
            if self.nvml.nvmlInit_v2() == 0:
                found = self.nvml.nvmlDeviceGetHandleByUUID(uuid, ctypes.byref(handle))
                self.handle = handle if found == 0 else None

    def joules(self) -> float | None:
        """Return the count so far."""
        count = ctypes.c_ulonglong()
        if self.handle is None:
            return None
        if self.nvml.nvmlDeviceGetTotalEnergyConsumption(self.handle, ctypes.byref(count)):
            return None
        return count.value / 1000


class DeviceEngine(Engine):
    """PyTorch with one setting on one device, ready to run windows."""

    def __init__(
        self, weights: Path, precision: str, setting: Setting, edge: list[int], device: str
    ) -> None:
        super().__init__([self.run_host], setting)
        self.device, self.edge = torch.device(device), edge
        self.way, self.kind = way_of(setting.option), KINDS[precision]
        if self.device.type == "cuda":  # what another setting has left behind
            torch.cuda.init()
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(self.device)
        torch.backends.cudnn.benchmark = True
        torch.backends.cudnn.benchmark_limit = 0  # every engine, not the first ten
        torch.backends.cudnn.allow_tf32 = precision == "tf32"
        torch.backends.cuda.matmul.allow_tf32 = precision == "tf32"
        self.autocast = self.way.arithmetic == "autocast" and self.kind != torch.float32
        module = load_network(weights)
        if self.way.norm == "folded":
            module = fold(module)
        # Weights that autocast has rounded are kept only if they could be trained.
        module.requires_grad_(self.autocast)
        last = self.way.layout == "channels last"
        self.layout = torch.channels_last_3d if last else torch.contiguous_format
        module = module.to(self.device, torch.float32 if self.autocast else self.kind)
        self.module = self.compiled(module.to(memory_format=self.layout))
        self.energy = EnergyMeter(self.device)
        self.facts: dict[str, object] = {}

    def compiled(self, module: nn.Module) -> nn.Module:
        """Return the module as the way says; compiled when it is first called."""
        if self.way.mode == EAGER:
            return module
        import torch._inductor.config as inductor

        inductor.freezing = self.way.frozen
        torch._dynamo.reset()
        torch._dynamo.config.recompile_limit = 64
        options = {} if self.way.mode == "default" else {"mode": self.way.mode}
        return torch.compile(module, dynamic=False, **options)

    def ready(self, windows: torch.Tensor) -> torch.Tensor:
        """Return windows as the network takes them."""
        kind = torch.float32 if self.autocast else self.kind
        return windows.to(self.device, kind).contiguous(memory_format=self.layout)

    def arithmetic(self) -> contextlib.AbstractContextManager:
        """Return autocast, if it is asked for; weights are rounded once in the outermost."""
        if not self.autocast:
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, self.kind)

    @torch.no_grad()
    def forward(self, windows: torch.Tensor) -> torch.Tensor:
        """Enqueue a batch that is ready."""
        if self.way.mode != EAGER:
            torch.compiler.cudagraph_mark_step_begin()
        with self.arithmetic():
            return self.module(windows)

    def run_host(self, windows: np.ndarray) -> np.ndarray:
        """Run a batch from and to the host's memory."""
        dose = self.forward(self.ready(torch.from_numpy(np.ascontiguousarray(windows))))
        return dose.float().contiguous().cpu().numpy()

    def wait(self) -> None:
        """Wait for what was enqueued."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def _group(self, inputs: Iterator[torch.Tensor], count: int) -> float:
        """Return the seconds that so many batches take, by the device's clock if it has one."""
        if self.device.type != "cuda":
            begin = time.perf_counter()
            for _ in range(count):
                self.forward(next(inputs))
            return time.perf_counter() - begin
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        for _ in range(count):
            self.forward(next(inputs))
        end.record()
        end.synchronize()
        return begin.elapsed_time(end) / 1000

    def _inputs(self, windows: np.ndarray) -> Iterator[torch.Tensor]:
        """Return different batches in the device's memory, round and round."""
        sets = [np.roll(windows, step, axis=(2, 3)) for step in range(INPUT_SETS)]
        ready = [self.ready(torch.from_numpy(np.ascontiguousarray(s))) for s in sets]
        step = 0
        while True:
            yield ready[step % INPUT_SETS]
            step += 1

    def repeat(self, windows: np.ndarray, seconds: float) -> list[tuple[int, float]]:
        """Time groups of batches for so long; return a group's windows and its median time."""
        inputs = self._inputs(windows)
        self._group(inputs, 2)
        count = round(GROUP_SECONDS / max(self._group(inputs, 2) / 2, 1e-6))
        count = min(max(count, 1), MOST_IN_GROUP)
        before, begin, times = self.energy.joules(), time.perf_counter(), []
        with self.arithmetic():
            while time.perf_counter() < begin + seconds or len(times) < 3:
                times.append(self._group(inputs, count))
        after, done = self.energy.joules(), count * len(windows)
        self.facts = {
            "windows_per_group": done,
            "group_seconds": [round(t, 6) for t in sorted(times)],
        }
        if before is not None and after is not None:
            self.facts["joules_per_window"] = (after - before) / (done * len(times))
        return [(done, median(times))]

    def latency(self, windows: np.ndarray, seconds: float) -> dict[str, float]:
        """Return percentiles of the time from enqueueing a batch to its end, one at a time."""
        inputs, times = self._inputs(windows), []
        begin = time.perf_counter()
        with self.arithmetic():
            while time.perf_counter() < begin + seconds or len(times) < 10:
                x = next(inputs)
                self.wait()
                start = time.perf_counter()
                self.forward(x)
                self.wait()
                times.append(time.perf_counter() - start)
        p50, p90, p99 = np.percentile(times[len(times) // 5 :], (50, 90, 99))
        return {"p50": float(p50), "p90": float(p90), "p99": float(p99), "runs": len(times)}

    def volume(self, source: str, target: str, overlap: float) -> dict[str, float]:
        """Predict a volume from file to file by the sliding window."""
        import gzip

        joules, begin = self.energy.joules(), time.perf_counter()
        volume, affine = nifti.read(source)
        read = time.perf_counter()
        with torch.no_grad(), self.arithmetic():
            # In the file x is the fastest axis: turned round on the device, which is quicker.
            pet = torch.from_numpy(np.ascontiguousarray(volume.T)).to(self.device)
            dose = sliding_window(
                pet.permute(2, 1, 0).contiguous(),
                self.edge,
                overlap,
                self.setting.batch,
                lambda x: self.forward(self.ready(x)),
            )
            dose = dose.permute(2, 1, 0).contiguous().cpu().numpy().T
        predicted = time.perf_counter()
        # Level 1, as nibabel writes .nii.gz.
        Path(target).write_bytes(gzip.compress(nifti.encode(dose, affine), 1))
        end = time.perf_counter()
        times = {"read": read - begin, "predict": predicted - read, "write": end - predicted}
        used = self.energy.joules()
        energy = {} if joules is None or used is None else {"joules": used - joules}
        return {"seconds": end - begin} | times | energy

    def device_bytes(self) -> int:
        """Return the most memory of the device that was taken at once."""
        if self.device.type != "cuda":
            return 0
        return torch.cuda.max_memory_reserved(self.device)


def device_facts(device: str) -> dict[str, object]:
    """Return what the figures depend on."""
    facts: dict[str, object] = {"torch": torch.__version__, "device": device}
    if not device.startswith("cuda"):
        return facts
    properties = torch.cuda.get_device_properties(device)
    try:
        cudnn = str(torch.backends.cudnn.version())
    except RuntimeError as error:  # another one is in the way
        cudnn = str(error)
    return facts | {
        "name": properties.name,
        "capability": f"{properties.major}.{properties.minor}",
        "memory_gib": round(properties.total_memory / 2**30, 1),
        "multiprocessors": properties.multi_processor_count,
        "cuda": torch.version.cuda,
        "cudnn": cudnn,
    }
