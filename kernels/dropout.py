"""This file holds dropout on a CPU, by the mask of `attention`.

PyTorch draws one random number after the other there. Here the product of two hashes decides about a value, and the
backward pass, the same operator on the gradient, computes it again. Where a ReLU comes first, its output is enough.

Shapes, with the letters of model.py: B batch, N tokens, D features, T selected tokens, M the most of one sample."""

import torch
from torch import Tensor

from kernels.attention import counts, keep_probability, threshold

CHUNK = 2**18  # values that go through together, so that their hashes and their mask stay in the caches


def dropout(x: Tensor, p: float, seed: Tensor, rows: Tensor | None = None, relu: bool = False) -> Tensor:
    """Divide each value of x, or with relu of its ReLU, by `keep_probability(p)`, or set it to 0.

    x: (B, N, D), all tokens, or (T, D), the selected tokens, ordered by sample. p: the probability of 0. seed: (B,)
    int64, one number a sample. rows: (B, M) int64, the numbers of the selected tokens, with -1 at unused places; the
    rows of the mask are the tokens."""
    tokens = x.shape[1] if rows is None else rows.shape[1]
    row_hash, column_hash = torch.ops.kernels.dropout_hashes(seed, 1, tokens, x.shape[-1], rows)
    return torch.ops.kernels.dropout(x, row_hash, column_hash, p, relu)


def _chunks(features, *tensors):
    """Yield parts of tensors (T, ...), the same tokens of each: as many as have CHUNK values with `features` each."""
    return zip(*(x.split(max(1, CHUNK // features)) for x in tensors))


_define = torch.library.define
_define("kernels::dropout", "(Tensor x, Tensor row_hash, Tensor column_hash, float p, bool relu) -> Tensor")
_define("kernels::relu_dropout_backward", "(Tensor d_out, Tensor out, float p) -> Tensor")


@torch.library.impl("kernels::dropout", "default")
def _dropout_op(x, row_hash, column_hash, p, relu):
    out, sizes = torch.empty_like(x, memory_format=torch.contiguous_format), counts(row_hash)
    samples = (tensor.flatten(0, -2).split(sizes) for tensor in (x, out))
    for x_b, out_b, row_b, column_b in zip(*samples, row_hash[:, 0], column_hash):
        for some, some_out, hashes in _chunks(x.shape[-1], x_b, out_b, row_b[: len(x_b), None]):
            mask = torch.ge(hashes * column_b, threshold(p), out=torch.empty_like(some))
            torch.mul(some, mask.mul_(1.0 / keep_probability(p)), out=some_out)
            if relu:
                some_out.clamp_(min=0.0)
    return out


@torch.library.impl("kernels::relu_dropout_backward", "default")
def _relu_backward_op(d_out, out, p):
    d_x = torch.empty_like(out)
    for some_d_out, some_out, some_d_x in _chunks(out.shape[-1], *(x.flatten(0, -2) for x in (d_out, out, d_x))):
        torch.ops.aten.threshold_backward.grad_input(some_d_out, some_out, 0.0, grad_input=some_d_x)
        some_d_x.mul_(1.0 / keep_probability(p))
    return d_x


@torch.library.register_fake("kernels::dropout")
def _(x, row_hash, column_hash, p, relu):
    return x.new_empty(x.shape)


@torch.library.register_fake("kernels::relu_dropout_backward")
def _(d_out, out, p):
    return out.new_empty(out.shape)


def _save(ctx, inputs, output):
    _, *hashes, ctx.p, ctx.relu = inputs
    ctx.save_for_backward(*([output] if ctx.relu else hashes))


def _differentiate(ctx, d_out):
    if ctx.relu:
        return torch.ops.kernels.relu_dropout_backward(d_out, *ctx.saved_tensors, ctx.p), None, None, None, None
    return torch.ops.kernels.dropout(d_out, *ctx.saved_tensors, ctx.p, False), None, None, None, None


torch.library.register_autograd("kernels::dropout", _differentiate, setup_context=_save)
