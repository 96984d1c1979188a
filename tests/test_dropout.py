"""Dropout on the CPU against its definition, written out with the mask of the attention."""

import pytest
import torch

from kernels.attention import keep_probability
from kernels.dropout import dropout
from prepared import dropout_mask

P = 0.3


def draw(batch, tokens, columns, dtype):
    torch.manual_seed(0)
    x, gradient = torch.randn(2, batch, tokens, columns, dtype=torch.float64).to(dtype)
    return x.requires_grad_(), gradient, torch.randint(2**62, (batch,))


def written_out(x, mask, relu):
    return (x.relu() if relu else x) * mask / keep_probability(P)


@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize(
    "shape, dtype, rounding",
    [
        ((1, 1, 1), torch.float64, 1e-14),
        ((3, 7, 5), torch.float64, 1e-14),
        ((2, 400, 1024), torch.float64, 1e-14),  # in many chunks
        ((2, 9, 33), torch.float32, torch.finfo(torch.float32).eps),  # rounded twice at most
        ((2, 9, 33), torch.bfloat16, torch.finfo(torch.bfloat16).eps),
    ],
)
def test_output_and_gradient_are_those_of_the_definition(shape, dtype, rounding, relu):
    x, gradient, seed = draw(*shape, dtype)
    exact = x.detach().double().requires_grad_()
    found = dropout(x, P, seed, relu=relu)
    expected = written_out(exact, dropout_mask(seed, 1, *shape[1:], P)[:, 0], relu)
    gradients = torch.autograd.grad(found, x, gradient)[0], torch.autograd.grad(expected, exact, gradient.double())[0]
    for rounded, true in ((found, expected), gradients):
        assert rounded.dtype == dtype
        torch.testing.assert_close(rounded.double(), true, rtol=rounding, atol=0)


@pytest.mark.parametrize("relu", [False, True])
def test_some_tokens_get_what_all_would(relu):
    x, gradient, seed = draw(3, 50, 8, torch.float64)
    rows = torch.tensor([[4, 0, 49, 7], [-1, -1, -1, -1], [3, 9, -1, -1]])
    sample, place = (rows >= 0).nonzero(as_tuple=True)
    chosen = sample, rows[sample, place]
    whole = dropout(x, P, seed, relu=relu)
    some = dropout(x[chosen], P, seed, rows, relu=relu)
    assert torch.equal(some, whole[chosen])
    gradients = [torch.autograd.grad(out, x, gradient[chosen])[0] for out in (some, whole[chosen])]
    assert torch.equal(*gradients) and gradients[0].any()


@pytest.mark.parametrize("relu", [False, True])
def test_operator_is_one_to_pytorch(relu):
    """Its tests: of the schema, of autograd, of the shapes that a compiler is told."""
    x, _, seed = draw(2, 6, 4, torch.float32)
    hashes = torch.ops.kernels.dropout_hashes(seed, 1, 6, 4, None)
    torch.library.opcheck(torch.ops.kernels.dropout, (x, *hashes, P, relu))
