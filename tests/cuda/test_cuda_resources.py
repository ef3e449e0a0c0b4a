# SPDX-License-Identifier: Apache-2.0
"""tools/cuda_resources: occupancy as the toolkit's calculator has it; what it finds."""

import json
import random
import shutil
import subprocess
from importlib.machinery import SourceFileLoader
from importlib.util import module_from_spec, spec_from_loader
from pathlib import Path

import pytest
from program import ROOT

spec = spec_from_loader(
    "cuda_resources", SourceFileLoader("cuda_resources", str(ROOT / "tools/cuda_resources"))
)
cuda_resources = module_from_spec(spec)
spec.loader.exec_module(cuda_resources)

# Reads lines "architecture registers static dynamic threads"; answers with the blocks that fit.
PROGRAM = """
#include <stdio.h>
#include "cuda_occupancy.h"
int main(void)
{
    int architecture, registers, fixed, dynamic, threads;
    while (scanf("%d %d %d %d %d", &architecture, &registers, &fixed, &dynamic, &threads) == 5) {
        cudaOccDeviceProp device = {0};
        cudaOccFuncAttributes function = {0};
        cudaOccDeviceState state = {0};
        cudaOccResult result = {0};
        device.computeMajor = architecture / 10;
        device.maxThreadsPerBlock = 1024;
        device.maxThreadsPerMultiprocessor = 2048;
        device.regsPerBlock = device.regsPerMultiprocessor = 65536;
        device.warpSize = 32;
        device.sharedMemPerBlock = 48 << 10;
        device.sharedMemPerMultiprocessor = (architecture == 80 ? 164 : 228) << 10;
        device.sharedMemPerBlockOptin = device.sharedMemPerMultiprocessor - 1024;
        device.reservedSharedMemPerBlock = 1024;
        device.numSms = 100;
        function.maxThreadsPerBlock = 1024;
        function.numRegs = registers;
        function.sharedSizeBytes = (size_t)fixed;
        function.maxDynamicSharedSizeBytes = device.sharedMemPerBlockOptin - (size_t)fixed;
        function.shmemLimitConfig = FUNC_SHMEM_LIMIT_OPTIN;
        function.numBlockBarriers = 1;
        state.carveoutConfig = SHAREDMEM_CARVEOUT_MAX_SHARED;
        int error = cudaOccMaxActiveBlocksPerMultiprocessor(&result, &device, &function, &state,
                                                            threads, (size_t)dynamic);
        printf("%d\\n", error ? -error : result.activeBlocksPerMultiprocessor);
    }
    return 0;
}
"""


def include_folder():
    """Where the toolkit's headers are."""
    nvcc = shutil.which("nvcc") or "/usr/local/cuda/bin/nvcc"
    folder = Path(nvcc).resolve().parents[1] / "include"
    return folder if (folder / "cuda_occupancy.h").is_file() else None


def test_occupancy_is_the_calculators(tmp_path):
    folder = include_folder()
    if folder is None:
        pytest.skip("cuda_occupancy.h is missing: occupancy is not compared")
    source, program = tmp_path / "occupancy.c", tmp_path / "occupancy"
    source.write_text(PROGRAM)
    subprocess.run(["cc", "-o", program, "-isystem", folder, source], check=True)
    choose = random.Random(1)
    cases = [
        (
            choose.choice((80, 90, 100)),
            choose.randint(8, 255),
            choose.choice((0, 0, 16, 4096)),
            choose.choice((0, choose.randint(1, 1024), choose.randint(1, 99 << 10))),
            choose.choice((1, 32, 64, 96, 128, 192, 256, 512)),
        )
        for _ in range(3000)
    ]
    answers = subprocess.run(
        [program],
        input="\n".join(" ".join(map(str, case)) for case in cases),
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    assert len(answers) == len(cases)
    limits = set()
    for case, answer in zip(cases, answers, strict=True):
        architecture, registers, fixed, dynamic, threads = case
        found = cuda_resources.occupancy(architecture, registers, fixed + dynamic, threads)
        assert found.blocks == int(answer), (case, found)
        limits.add(found.limit)
    assert {"threads", "registers", "shared memory", "blocks"} <= limits


@pytest.mark.parametrize("name", ["device_sm80.json", "device_sm90.json", "device_sm100.json"])
def test_limits_are_those_of_the_described_devices(name):
    path = next(p for folder in ("tests", "host") for p in ROOT.glob(f"{folder}/**/{name}"))
    device = json.loads(path.read_text())
    assert device["maxThreadsPerSM"] == cuda_resources.MOST_WARPS * device["warpSize"]
    assert device["maxCtasPerSM"] == cuda_resources.MOST_BLOCKS
    assert device["maxRegistersPerSM"] == cuda_resources.REGISTERS
    assert device["reservedSharedMemoryPerBlock"] == cuda_resources.SHARED_RESERVED
    most = device["maxSharedMemoryPerBlockOptin"] + cuda_resources.SHARED_RESERVED
    assert most == cuda_resources.SHARED_BYTES[device["deviceVer"] // 10]


def row(kernel, architecture, **facts):
    fields = {"registers": 64, "shared_bytes": 0, "stack_bytes": 0}
    fields |= {"spill_store_bytes": 0, "spill_load_bytes": 0, "matrix_instructions": 32}
    return cuda_resources.Resources(
        "convolution_tensor_core.cu", kernel, architecture, **fields | facts
    )


def test_a_kernel_without_matrix_instructions_is_found():
    good = [row("k<a>", 80), row("k<b>", 90), row("helper", 90, matrix_instructions=0)]
    # helper multiplies nowhere; it may do without.
    assert cuda_resources.matrix_problems(good) == []
    (found,) = cuda_resources.matrix_problems([*good, row("k<a>", 90, matrix_instructions=0)])
    assert "k<a>, sm_90" in found
    none = [line._replace(matrix_instructions=0) for line in good]
    (found,) = cuda_resources.matrix_problems(none)
    assert "no kernel has matrix instructions" in found


def test_a_launch_that_does_not_fit_or_is_unknown_is_found():
    largest = {"k": cuda_resources.Launch("k", 512, 0)}
    fits = cuda_resources.with_launch(row("k", 90), largest)
    assert (fits.blocks, fits.occupancy_percent, fits.limit) == (2, 50, "registers")
    assert cuda_resources.launch_problems([fits]) == []
    too_many = cuda_resources.with_launch(row("k", 90, registers=200), largest)
    assert len(cuda_resources.launch_problems([too_many])) == 1
    assert len(cuda_resources.launch_problems([row("unknown", 90)])) == 1


def test_the_largest_launch_counts(tmp_path):
    file = tmp_path / "launches.tsv"
    file.write_text(
        "void k<__nv_bfloat16, 16u>(tensor, int)\t128\t99\n"
        "void k<__half, 16u>(tensor, int)\t256\t0\n"
        "void (anonymous namespace)::other(unsigned)\t32\t0\n"
    )
    assert cuda_resources.read_launches([file]) == [
        ("k<__half, 16u>", 256, 0),
        ("other", 32, 0),
    ]
