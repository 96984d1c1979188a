"""Dropout on the CPU against its definition, written out with the mask that the attention exports."""

import pytest
import torch

from kernels.attention import dropout_mask, keep_probability
from kernels.dropout import dropout

P = 0.3


def draw(batch, tokens, columns, dtype):
    torch.manual_seed(0)
    x, gradient = torch.randn(2, batch, tokens, columns, dtype=torch.float64).to(dtype)
    return x.requires_grad_(), gradient, torch.randint(2**62, (batch,))


def written_out(x, mask, relu):
    return (x.relu() if relu else x) * mask / keep_probability(P)


@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("batch, tokens, columns", [(1, 1, 1), (3, 7, 5), (2, 400, 1024)])  # the last in many chunks
def test_output_and_gradient_are_those_of_the_definition(batch, tokens, columns, relu):
    x, gradient, seed = draw(batch, tokens, columns, torch.float64)
    found, expected = (
        dropout(x, P, seed, relu=relu),
        written_out(x, dropout_mask(seed, 1, tokens, columns, P)[:, 0], relu),
    )
    torch.testing.assert_close(found, expected, rtol=1e-14, atol=0)
    torch.testing.assert_close(*(torch.autograd.grad(y, x, gradient)[0] for y in (found, expected)), rtol=1e-14, atol=0)


@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_lower_precisions_round_twice_at_most(dtype, relu):
    x, gradient, seed = draw(2, 9, 33, dtype)
    mask = dropout_mask(seed, 1, 9, 33, P)[:, 0]
    exact = x.detach().double().requires_grad_()
    found, expected = dropout(x, P, seed, relu=relu), written_out(exact, mask, relu)
    gradients = torch.autograd.grad(found, x, gradient)[0], torch.autograd.grad(expected, exact, gradient.double())[0]
    for rounded, true in ((found, expected), gradients):
        assert rounded.dtype == dtype
        torch.testing.assert_close(rounded.double(), true, rtol=torch.finfo(dtype).eps, atol=0)


@pytest.mark.parametrize("relu", [False, True])
def test_some_tokens_get_what_all_would(relu):
    x, gradient, seed = draw(3, 50, 8, torch.float64)
    rows = torch.tensor([[4, 0, 49, 7], [-1, -1, -1, -1], [3, 9, -1, -1]])
    sample, place = (rows >= 0).nonzero(as_tuple=True)
    chosen = sample, rows[sample, place]
    whole = dropout(x, P, seed, relu=relu)
    some = dropout(x[chosen], P, seed, rows, relu=relu)
    assert torch.equal(some, whole[chosen])
    gradients = (
        torch.autograd.grad(some, x, gradient[chosen])[0],
        torch.autograd.grad(whole[chosen], x, gradient[chosen])[0],
    )
    assert torch.equal(*gradients) and gradients[0].any()


@pytest.mark.parametrize("relu", [False, True])
def test_operator_is_one_to_pytorch(relu):
    """Its tests: of the schema, of autograd, of the shapes that a compiler is told."""
    x, _, seed = draw(2, 6, 4, torch.float32)
    hashes = torch.ops.kernels.dropout_hashes(seed, 1, 6, 4, None)
    torch.library.opcheck(torch.ops.kernels.dropout, (x, *hashes, P, relu))
