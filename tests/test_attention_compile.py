"""Compile the attention kernels for GPUs that are not here, and read what the compiler made of them.

The launches of kernels/attention_launch.py run as they are, on CPU tensors of the paper's shape, against a driver that
knows only the target; what they compile is then disassembled. Needs Triton with its bundled CUDA tools, and no GPU.
"""
import os
import re
import subprocess
from types import SimpleNamespace

import pytest
import torch

from kernels import attention_launch
from kernels.attention import keep_probability, threshold

triton = pytest.importorskip("triton")
pytestmark = [pytest.mark.slow,
              pytest.mark.skipif(attention_launch.INTERPRETED, reason="the interpreter compiles nothing")]

TOOLS = os.path.join(os.path.dirname(triton.__file__), "backends", "nvidia", "bin")
# compute capability: shared memory a block may have (KB), the tensor cores' instruction
TARGETS = {(8, 0): (163, "HMMA"), (8, 9): (99, "HMMA"), (9, 0): (227, "HGMMA"), (10, 0): (227, "UTC.*MMA"),
           (12, 0): (99, "HMMA")}
KERNELS = "_forward_kernel", "_delta_kernel", "_dk_dv_kernel", "_dq_kernel"


@pytest.fixture
def compiled(monkeypatch, tmp_path):
    """A function: (capability, dtype, p) -> {kernel name: compiled kernel} of one forward and one backward pass."""
    def run(capability, dtype, p):
        found = {}

        class Recorder:
            def __init__(self, kernel):
                self.kernel = kernel

            def __getitem__(self, grid):
                def compile_only(*args, **kwargs):
                    found[self.kernel.__name__] = self.kernel.run(*args, grid=grid, warmup=True, **kwargs)
                return compile_only

        monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
        for name in KERNELS:
            kernel = getattr(attention_launch.kernels, name)
            kernel.device_caches.clear()  # it would remember the target before
            monkeypatch.setattr(attention_launch.kernels, name, Recorder(kernel))
        target = triton.backends.compiler.GPUTarget("cuda", capability[0] * 10 + capability[1], 32)
        driver = SimpleNamespace(get_current_target=lambda: target, get_current_device=lambda: 0,
                                 get_current_stream=lambda device: 0)  # enough to compile, nothing to run
        monkeypatch.setattr(type(triton.runtime.driver), "active", driver, raising=False)
        q, k, v = torch.zeros(2, 1281, 3, 2, 128, dtype=dtype).transpose(1, 3).unbind(2)
        lse = attention_launch.vectors(q, 2, 1281)
        hashes = [None, None] if p == 0 else [attention_launch.vectors(q, 2, 1281, torch.int32)] * 2
        draw = *hashes, keep_probability(p), threshold(p)
        out, dq, dk, dv = (torch.zeros(2, 2, 1281, 128, dtype=dtype) for _ in range(4))
        attention_launch.forward(q, k, v, out, lse, *draw)
        attention_launch.backward(out, q, k, v, out, lse, *draw, dq, dk, dv)
        return found
    return run


def read(kernel, tmp_path):
    """Registers and stack bytes a thread, shared memory of a block, and the machine code."""
    cubin = tmp_path / "kernel.cubin"
    cubin.write_bytes(kernel.asm["cubin"])
    usage = subprocess.run([f"{TOOLS}/cuobjdump", "-res-usage", cubin], capture_output=True, text=True, check=True)
    code = subprocess.run([f"{TOOLS}/nvdisasm", "-c", cubin], capture_output=True, text=True, check=True)
    registers, stack = (int(re.search(rf"{name}:(\d+)", usage.stdout)[1]) for name in ("REG", "STACK"))
    return registers, stack, kernel.metadata.shared, code.stdout


@pytest.mark.parametrize("p", [0.0, 0.1])
@pytest.mark.parametrize("capability", TARGETS, ids=lambda c: f"sm_{c[0]}{c[1]}")
def test_bfloat16_kernels_use_tensor_cores_and_fit(compiled, tmp_path, capability, p):
    limit, instruction = TARGETS[capability]
    kernels = compiled(capability, torch.bfloat16, p)
    assert set(kernels) == set(KERNELS)
    for name, kernel in kernels.items():
        registers, stack, shared, code = read(kernel, tmp_path)
        print(f"sm_{capability[0]}{capability[1]} p={p} {name}: {registers} registers, {stack} bytes of stack, "
              f"{shared} bytes of shared memory")
        assert shared <= limit * 1024, name
        assert stack == 0, name
        assert name == "_delta_kernel" or re.search(instruction, code), name


@pytest.mark.parametrize("capability", [(8, 9), (9, 0)], ids=["sm_89", "sm_90"])
def test_float32_kernels_fit_the_smallest_memory(compiled, tmp_path, capability):
    for name, kernel in compiled(capability, torch.float32, 0.1).items():
        _, stack, shared, _ = read(kernel, tmp_path)
        assert shared <= TARGETS[8, 9][0] * 1024, name
        assert stack <= 1600, name  # it is there to be right; left to itself, the compiler takes 3,504 for dK and dV
