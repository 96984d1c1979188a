"""The convolution against PyTorch's own in float64."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels.conv1d import _transforms, conv1d


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


def rounding_error(*sums, stored=0):
    """The norm of a result's error, relative to its own, where it ends a chain of sums with so many terms in float32;
    the last `stored` values on the way are kept in bfloat16.

    A rounding errs evenly by up to u: u / sqrt(3) in the root mean square. A sum of n terms of random sign rounds n
    partial sums, of which the k-th has k / n of the sum's mean square: together n / 6 u^2 if they come one after the
    other, which is the worst order.
    """
    return math.sqrt(sum(sums) / 6 * 2.0**-48 + stored / 3 * 2.0**-16)


@pytest.mark.parametrize("inputs, outputs, taps", [(10, 64, 65), (64, 128, 33), (128, 256, 17)])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_papers_sizes_are_exact_but_for_rounding(inputs, outputs, taps, precision):
    """By the norm of the error from float64. Under autocast three are stored: both sides of a product, and itself."""
    x, weight, bias, gradient = draw(2, 1280, inputs, outputs, taps, torch.float32)
    exact = run(plain, *(tensor.double() for tensor in (x, weight, bias, gradient)))
    inverse, forward = (matrix.shape for matrix in _transforms(taps, torch.float32)[1::-1])
    (kept, parts), points, blocks = inverse, forward[1], 2 * -(-1280 // inverse[0])
    stored = 3 if precision == "bf16" else 0
    allowed = (
        rounding_error(points, taps, 2 * inputs, parts, stored=stored),
        rounding_error(kept, taps, 2 * outputs, parts, stored=stored),
        rounding_error(points, kept, blocks, 2 * parts, stored=stored),
        rounding_error(2 * 1280),
    )
    for found, true, error in zip(run(conv1d, x, weight, bias, gradient, precision), exact, allowed):
        assert (found - true).norm() <= error * true.norm()
