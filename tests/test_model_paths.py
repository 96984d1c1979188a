"""The whole model through both paths of the attention operator: PyTorch's, and Triton's kernels in the interpreter.

The path is chosen when the process starts, so this file is also the script that each of two processes runs.
"""

import os
import subprocess
import sys

import numpy as np
import pytest
import torch


def run(out):
    """Losses of masked value prediction and classification, with every dropout on, and their gradients -> .npz file."""
    from kernels.attention import attention
    from model import SingleModalityModel

    generator = torch.manual_seed(0)
    model = SingleModalityModel(3, [3], [32], 2, 2, 48, 0.1, mvp_hidden=[16], classifier_hidden=[8], points=20).train()
    signals, seed = torch.randn(2, 3, 20), torch.randint(2**62, (2, 2))
    mask = torch.rand(2, 20, generator=generator) < 0.5
    losses = model.reconstruction_loss(signals, mask, seed), model.classify(signals, seed).square().mean()
    sum(losses).backward()
    gradients = {name: parameter.grad.numpy() for name, parameter in model.named_parameters()}
    np.savez(out, path=attention.last_path, losses=torch.stack(losses).detach().numpy(), **gradients)


@pytest.mark.slow
def test_both_paths_give_the_same_loss_and_gradients(tmp_path):
    pytest.importorskip("triton")
    found = {}
    for path, interpret in (("torch", "0"), ("triton", "1")):
        environment = {**os.environ, "TRITON_INTERPRET": interpret, "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": "."}
        out = tmp_path / f"{path}.npz"
        subprocess.run([sys.executable, __file__, out], env=environment, check=True)
        found[path] = dict(np.load(out))
        assert found[path].pop("path") == path
    for name, expected in found["torch"].items():
        largest = 2e-5 * np.abs(expected).max()
        np.testing.assert_allclose(found["triton"][name], expected, rtol=0, atol=largest, err_msg=name)


if __name__ == "__main__":
    run(sys.argv[1])
