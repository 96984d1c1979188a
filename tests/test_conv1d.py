"""The convolution against PyTorch's own."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels.conv1d import conv1d


def run(function, x, weight, bias, gradient, precision="fp32"):
    """Output (B, L, D) and the gradients of x (B, L, C), weight and bias; "bf16": under autocast."""
    inputs = [tensor.detach().requires_grad_() for tensor in (x, weight, bias)]
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
        out = function(*inputs)
    return out.detach(), *torch.autograd.grad(out, inputs, gradient.to(out.dtype))


def plain(x, weight, bias):
    return F.conv1d(x.transpose(1, 2), weight, bias, padding=weight.shape[2] // 2).transpose(1, 2)


def draw(batch, length, inputs, outputs, taps, dtype):
    torch.manual_seed(0)
    weight = torch.randn(outputs, inputs, taps, dtype=dtype) / (inputs * taps) ** 0.5
    x, gradient = torch.randn(batch, length, inputs, dtype=dtype), torch.randn(batch, length, outputs, dtype=dtype)
    return x, weight, torch.randn(outputs, dtype=dtype), gradient


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    st.integers(1, 3), st.integers(1, 300), st.integers(1, 4), st.integers(1, 4), st.sampled_from([1, 3, 5, 17, 33, 65])
)
def test_output_and_gradients_equal_those_of_torch_in_float64(batch, length, inputs, outputs, taps):
    tensors = draw(batch, length, inputs, outputs, taps, torch.float64)
    for found, expected in zip(run(conv1d, *tensors), run(plain, *tensors)):
        assert found.shape == expected.shape
        torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("inputs, outputs, taps", [(10, 64, 65), (64, 128, 33), (128, 256, 17)])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_papers_sizes_are_as_accurate_as_torch(inputs, outputs, taps, precision):
    """By the norm of the error from float64, in float32 at most 1.5 times PyTorch's; under autocast no larger."""
    tensors = draw(2, 1280, inputs, outputs, taps, torch.float32)
    exact = run(plain, *(tensor.double() for tensor in tensors))
    ours, theirs = run(conv1d, *tensors, precision), run(plain, *tensors, precision)
    for found, usual, true in zip(ours, theirs, exact):
        factor = 1.5 if precision == "fp32" else 1.0
        floor = torch.finfo(torch.float32).eps * true.norm()
        assert (found - true).norm() <= factor * (usual - true).norm() + floor
