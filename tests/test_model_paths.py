"""The whole model through both paths of the attention operator: PyTorch's, and Triton's kernels in the interpreter.

The path is chosen when the process starts, so this file is also the script that each of two processes runs.
"""

import os
import subprocess
import sys

import numpy as np
import pytest
import torch

pytestmark = pytest.mark.slow

POINTS, CHANNELS = 20, 3


def build():
    from model import SingleModalityModel

    torch.manual_seed(0)
    return SingleModalityModel(
        CHANNELS, [3], [32], 2, 2, 48, 0.1, mvp_hidden=[16], classifier_hidden=[8], points=POINTS
    ).train()


def losses(model, number, compiled=False):
    """Masked value prediction and classification of batch `number`, with every dropout drawn from that number."""
    generator = torch.Generator().manual_seed(number)
    signals = torch.randn(2, CHANNELS, POINTS, generator=generator)
    mask = torch.rand(2, POINTS, generator=generator) < 0.5
    seed = torch.randint(2**62, (2, 2), generator=generator)

    def both(signals, mask, seed):
        predicted = model.reconstruct(signals, mask, seed)
        logits = model.classify(signals, seed)
        return ((predicted - signals) ** 2).mean(), logits.square().mean()

    torch.manual_seed(number)  # for the dropouts outside the operator
    return (torch.compile(both, fullgraph=True, backend="aot_eager") if compiled else both)(signals, mask, seed)


def run(out):
    """Loss and gradients, eager and compiled -> an .npz file."""
    from kernels.attention import attention

    found = {}
    for how in ("eager", "compiled"):
        model = build()
        loss = losses(model, 1, compiled=how == "compiled")
        sum(loss).backward()
        found[f"{how} loss"] = torch.stack(loss).detach().numpy()
        for name, parameter in model.named_parameters():
            found[f"{how} {name}"] = parameter.grad.numpy()
    np.savez(out, path=attention.last_path, **found)


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    pytest.importorskip("triton")
    folder, found = tmp_path_factory.mktemp("paths"), {}
    for path, interpret in (("torch", "0"), ("triton", "1")):
        environment = {**os.environ, "TRITON_INTERPRET": interpret, "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": "."}
        out = folder / f"{path}.npz"
        subprocess.run([sys.executable, __file__, out], env=environment, check=True)
        found[path] = dict(np.load(out))
        assert found[path].pop("path") == path
    return found


def test_both_paths_give_the_same_loss_and_gradients(paths):
    for name, expected in paths["torch"].items():
        scale = np.abs(expected).max()
        np.testing.assert_allclose(paths["triton"][name], expected, rtol=0, atol=2e-5 * scale, err_msg=name)


@pytest.mark.parametrize("path", ["torch", "triton"])
def test_compiled_without_a_graph_break_agrees_with_eager(paths, path):
    for name, expected in paths[path].items():
        if name.startswith("eager "):
            found = paths[path][name.replace("eager", "compiled")]
            np.testing.assert_allclose(found, expected, rtol=0, atol=2e-5 * np.abs(expected).max(), err_msg=name)


if __name__ == "__main__":
    run(sys.argv[1])
