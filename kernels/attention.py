"""This file holds scaled dot-product attention with dropout of the attention weights inside the operator.

    S = scale Q K^T,  P = softmax(S),  O = (P * M / keep) V,      scale = 1 / sqrt(E)

P is the matrix of weights: a row belongs to a query, a column to a key. M is the mask of the dropout, 1 where a weight
is kept; it depends on (seed, head, row, column) alone, by hashes (README.md), and is the same on every device. On CUDA
the operator runs the Triton kernels of `attention_triton.py`; their backward pass computes P and M again. Elsewhere it
runs the same mathematics in PyTorch, one sample at a time, and keeps P for the backward pass, with negative signs where
M drops.

Shapes, with the letters of model.py: B samples of a batch, H heads, E features of a head, Nq queries, Nk keys."""
import math
import warnings

import torch
from torch.nn.functional import scaled_dot_product_attention

from kernels import attention_launch

_MASK32 = 0xFFFFFFFF
# Without it, PyTorch's own operator fails in bfloat16 on some processors: "pack_vnni2 is only supported when ...".
_AVX512 = torch.backends.cpu.get_cpu_capability() == "AVX512"
_BLOCK = 512  # queries that the PyTorch path takes at a time, counted over all heads: 256 to 1,024 take the same time


def attention(q, k, v, dropout_p=0.0, seed=None, rows=None):
    """Compute the attention of every query over every key, with dropout of the attention weights.

    q: (B, H, Nq, E); k and v: (B, H, Nk, E). They have any strides (views of a packed projection, too) and one
    floating dtype; under autocast they are cast to its dtype.
    dropout_p: the probability that a weight is dropped, from 0 to below 1.
    seed: (B,) int64, one number a sample; needed if dropout_p > 0.
    rows: (B, Nq) int, the row of the dropout mask that each query has, where q holds only some queries of a sequence;
    by default 0 .. Nq - 1. A sample with fewer queries ends with rows of -1: its output there means nothing, and the
    gradient must be 0.
    Returns (B, H, Nq, E) in the dtype of q. Raises ValueError where shapes, dtypes or dropout_p do not fit.
    `attention.last_path` tells which path ran last: "triton" or "torch"."""
    if torch.is_autocast_enabled(q.device.type):
        dtype = torch.get_autocast_dtype(q.device.type)
        q, k, v = (x if x.dtype == torch.float64 else x.to(dtype) for x in (q, k, v))
    _check(q, k, v, dropout_p, seed, rows)
    if dropout_p == 0.0 and not attention_launch.runs_on(q) and (_AVX512 or q.dtype != torch.bfloat16):
        _ran("torch", q)
        return scaled_dot_product_attention(q, k, v)
    row_hash = column_hash = None
    if dropout_p > 0.0:
        row_hash, column_hash = torch.ops.kernels.dropout_hashes(seed, q.shape[1], q.shape[2], k.shape[2], rows)
    return torch.ops.kernels.attention(q, k, v, row_hash, column_hash, dropout_p)[0]


attention.last_path = None


def keep_probability(p):
    """Return the probability, exact to 2^-32, that the mask keeps a weight."""
    return 1.0 - round(p * 2**32) / 2**32


def threshold(p):
    """Return the int32 below which a product of hashes means that a weight is dropped."""
    return min(round(p * 2**32) - 2**31, 2**31 - 1)


def _check(q, k, v, dropout_p, seed, rows):
    """Raise ValueError where the arguments of `attention` do not fit."""
    if q.dim() != 4 or k.shape != v.shape or q.shape[:2] != k.shape[:2] or q.shape[3:] != k.shape[3:]:
        raise ValueError(f"attention: expected q (B, H, Nq, E) and k, v (B, H, Nk, E), "
                         f"found q {tuple(q.shape)}, k {tuple(k.shape)}, v {tuple(v.shape)}")
    if 0 in q.shape or 0 in k.shape:
        raise ValueError(f"attention: no dimension may be empty, found q {tuple(q.shape)}, k {tuple(k.shape)}")
    if not q.dtype == k.dtype == v.dtype or not q.dtype.is_floating_point:
        raise ValueError(f"attention: q, k and v must share one floating dtype, found {q.dtype}, {k.dtype}, {v.dtype}")
    if not 0.0 <= dropout_p < 1.0:
        raise ValueError(f"attention: dropout_p must be in [0, 1), found {dropout_p}")
    if dropout_p > 0.0 and (seed is None or seed.shape != q.shape[:1] or seed.dtype != torch.int64):
        found = None if seed is None else (seed.dtype, tuple(seed.shape))
        raise ValueError(f"attention: dropout needs seed, an int64 tensor ({q.shape[0]},), found {found}")
    if rows is not None and rows.shape != (q.shape[0], q.shape[2]):
        raise ValueError(f"attention: rows must be (B, Nq) = {(q.shape[0], q.shape[2])}, found {tuple(rows.shape)}")


def _ran(path, q):
    """Note which path ran, and warn where it is the slow one on a GPU."""
    if torch.compiler.is_compiling():
        return
    attention.last_path = path
    if path == "torch" and q.device.type == "cuda":
        warnings.warn(f"attention: {attention_launch.why_not(q)}; the slower PyTorch path runs instead", stacklevel=3)


def _mix(x):
    """Apply the 32-bit finaliser of MurmurHash3 to an int64 tensor of uint32 values."""
    x = x ^ (x >> 16)
    x = (x * 0x85EBCA6B) & _MASK32
    x = x ^ (x >> 13)
    x = (x * 0xC2B2AE35) & _MASK32
    return x ^ (x >> 16)


def _hashes(seed, heads, n_rows, n_columns, rows=None):
    """Hash seed (B,), head and position to odd int32 numbers, of rows (B, heads, n_rows) and of columns (B, heads,
    n_columns), 0 for a negative position. rows: (B, n_rows) int, the positions of the rows; by default 0 .. n_rows - 1.
    """
    rows = torch.arange(n_rows, device=seed.device)[None] if rows is None else rows
    head, hashes = torch.arange(heads, device=seed.device)[None, :, None], []
    for stream, positions in enumerate((rows, torch.arange(n_columns, device=seed.device)[None])):
        x = _mix(0x9E3779B9 ^ (2 * head + stream))
        x = _mix(x ^ (seed[:, None, None] >> 32 & _MASK32))
        x = _mix(x ^ (seed[:, None, None] & _MASK32))
        x = _mix(x ^ positions[:, None, :].long())
        hashes.append(torch.where(positions[:, None, :] < 0, 0, x | 1).to(torch.int32))
    return hashes


def counts(row_hash):
    """Return the number of queries of each sample, a list of B, from the hashes of their rows (B, H, Nq)."""
    return (row_hash[:, 0] != 0).sum(1).tolist()


def _samples(row_hash, of_queries, of_keys):
    """Yield for each sample its number, its count of queries, and its part of each tensor, contiguous, floating ones in
    the dtype of `_precision`: of of_queries (B, H, Nq, ...), without the rows of -1, and of of_keys (B, H, Nk, ...)."""
    q, dtype = of_queries[0], _precision(of_queries[0])
    for b, n in enumerate([q.shape[2]] * len(q) if row_hash is None else counts(row_hash)):
        tensors = *(x if x is None else x[b, :, :n] for x in of_queries), *(x if x is None else x[b] for x in of_keys)
        yield b, n, *(x if x is None else x.to(dtype if x.is_floating_point() else x.dtype).contiguous()
                      for x in tensors)


def _precision(q):
    """Return the dtype to compute in. Products of float16 are slow on CPUs, so it becomes float32."""
    return torch.float32 if q.dtype == torch.float16 else q.dtype


def _blocks(heads, queries, wanted=_BLOCK):
    """Yield slices of the queries, all of about one size: `wanted` queries, counted over all heads."""
    size = -(-queries // max(1, round(heads * queries / wanted))) or 1
    return (slice(start, min(start + size, queries)) for start in range(0, queries, size))


def _forward_torch(q, k, v, row_hash, column_hash, p):
    """Return the output (B, H, Nq, E), and for the backward pass the weights (B, H, Nq, Nk), negative where dropped;
    row_hash (B, H, Nq), column_hash (B, H, Nk): the hashes of the dropout with probability p; None where p is 0."""
    out, weights = _empty_heads(q), q.new_empty(*q.shape[:3], k.shape[2], dtype=_precision(q))
    for b, n, q_b, row_hash_b, k_b, v_b, column_hash_b in _samples(row_hash, (q, row_hash), (k, v, column_hash)):
        q_b = q_b * (1.0 / math.sqrt(q.shape[-1]))
        for block in _blocks(q.shape[1], n):
            kept = torch.bmm(q_b[:, block], k_b.transpose(1, 2))
            torch.softmax(kept, -1, out=kept)
            if p > 0.0:
                # Halves of the (odd) product and the threshold, as the difference of the whole numbers could overflow.
                signs = (row_hash_b[:, block, None] * column_hash_b[:, None]).bitwise_right_shift_(1)
                signs.sub_(threshold(p) >> 1)  # (H, queries, Nk) int32, negative where a weight is dropped
                torch.copysign(kept, signs.to(kept.dtype), out=weights[b, :, block])
                torch.clamp(weights[b, :, block], min=0.0, out=kept)
            else:
                weights[b, :, block] = kept
            out[b, :, block] = torch.bmm(kept, v_b).div_(keep_probability(p))
        out[b, :, n:] = 0.0
    return out, weights


def _backward_torch(d_out, q, k, v, out, weights, row_hash, p):
    """Return the gradients of q, k and v from that of the output, d_out (B, H, Nq, E), and from what `_forward_torch`
    returned and was given; README.md has the formulas."""
    dq, dk, dv = _empty_heads(q), _empty_heads(k), _empty_heads(v)
    keep = keep_probability(p)
    scale = 1.0 / (keep * math.sqrt(q.shape[-1]))
    # One block spares bfloat16 the sums in float32.
    wanted = q.shape[1] * q.shape[2] if q.dtype == torch.bfloat16 else _BLOCK
    for b, n, q_b, d_out_b, out_b, k_b, v_b in _samples(row_hash, (q, d_out, out), (k, v)):
        delta = (d_out_b * out_b).sum(-1, keepdim=True).mul_(keep)
        exact = torch.float64 if q.dtype == torch.float64 else torch.float32
        dk_b, dv_b = torch.zeros_like(k_b, dtype=exact), torch.zeros_like(v_b, dtype=exact)
        for block in _blocks(q.shape[1], n, wanted):
            kept = weights[b, :, block].clamp(min=0.0)
            dv_b += torch.bmm(kept.transpose(1, 2), d_out_b[:, block])
            ds = torch.bmm(d_out_b[:, block], v_b.transpose(1, 2)).mul_(kept)
            ds.addcmul_(weights[b, :, block].abs(), delta[:, block], value=-1.0)
            dk_b += torch.bmm(ds.transpose(1, 2), q_b[:, block])
            dq[b, :, block] = torch.bmm(ds, k_b).mul_(scale)
        dq[b, :, n:] = 0.0
        dk[b], dv[b] = dk_b.mul_(scale), dv_b.div_(keep)
    return dq, dk, dv


def _empty_heads(x):
    """Return an empty (B, H, N, E) like x, laid out as (B, N, H, E): joining the heads afterwards is then a view."""
    b, h, n, d = x.shape
    return x.new_empty(b, n, h, d).transpose(1, 2)


# Of the operators, n_rows, n_columns: the lengths Nq and Nk; saved: what the backward pass needs of the forward pass
# besides the output, the weights (B, H, Nq, Nk) on the PyTorch path, their log-sum-exp (B, H, Nq) on Triton's.

_define = torch.library.define
_define("kernels::dropout_hashes", "(Tensor seed, int heads, int n_rows, int n_columns, Tensor? rows)"
                                   " -> (Tensor row_hash, Tensor column_hash)")
_define("kernels::attention", "(Tensor q, Tensor k, Tensor v, Tensor? row_hash, Tensor? column_hash, float p)"
                              " -> (Tensor out, Tensor saved)")
_define("kernels::attention_backward", "(Tensor d_out, Tensor q, Tensor k, Tensor v, Tensor out, Tensor saved,"
                                       " Tensor? row_hash, Tensor? column_hash, float p)"
                                       " -> (Tensor dq, Tensor dk, Tensor dv)")


@torch.library.impl("kernels::dropout_hashes", "default")
def _hashes_op(seed, heads, n_rows, n_columns, rows):
    if attention_launch.runs_on(seed.new_empty(1, dtype=torch.float32)):
        return attention_launch.hashes(seed, heads, n_rows, n_columns, rows)
    hashes = _hashes(seed, heads, n_rows, n_columns, rows)
    return tuple(attention_launch.vectors(x, *x.shape[1:], torch.int32).copy_(x) for x in hashes)


@torch.library.register_fake("kernels::dropout_hashes")
def _(seed, heads, n_rows, n_columns, rows):
    return (attention_launch.vectors(seed, heads, n_rows, torch.int32),
            attention_launch.vectors(seed, heads, n_columns, torch.int32))


@torch.library.impl("kernels::attention", "default")
def _attention_op(q, k, v, row_hash, column_hash, p):
    if not attention_launch.runs_on(q):
        _ran("torch", q)
        return _forward_torch(q, k, v, row_hash, column_hash, p)
    attention.last_path = "triton"
    out, lse = _empty_heads(q), attention_launch.vectors(q, q.shape[1], q.shape[2])
    attention_launch.forward(q, k, v, out, lse, row_hash, column_hash, keep_probability(p), threshold(p))
    return out, lse


@torch.library.register_fake("kernels::attention")
def _(q, k, v, row_hash, column_hash, p):
    if attention_launch.runs_on(q):
        return _empty_heads(q), attention_launch.vectors(q, q.shape[1], q.shape[2])
    return _empty_heads(q), q.new_empty(*q.shape[:3], k.shape[2], dtype=_precision(q))


@torch.library.impl("kernels::attention_backward", "default")
def _backward_op(d_out, q, k, v, out, saved, row_hash, column_hash, p):
    if not attention_launch.runs_on(q):
        return _backward_torch(d_out, q, k, v, out, saved, row_hash, p)
    gradients = _empty_heads(q), _empty_heads(k), _empty_heads(v)
    attention_launch.backward(d_out, q, k, v, out, saved, row_hash, column_hash, keep_probability(p), threshold(p),
                              *gradients)
    return gradients


@torch.library.register_fake("kernels::attention_backward")
def _(d_out, q, k, v, out, saved, row_hash, column_hash, p):
    return _empty_heads(q), _empty_heads(k), _empty_heads(v)


def _save(ctx, inputs, output):
    *tensors, ctx.p = inputs
    ctx.set_materialize_grads(False)  # the gradient of `saved` would be zeros, as many as there are weights
    ctx.save_for_backward(*tensors, *output)


def _differentiate(ctx, d_out, _):
    if d_out is None:
        return (None,) * 6
    q, k, v, row_hash, column_hash, out, saved = ctx.saved_tensors
    gradients = torch.ops.kernels.attention_backward(d_out, q, k, v, out, saved, row_hash, column_hash, ctx.p)
    return *gradients, None, None, None


torch.library.register_autograd("kernels::attention", _differentiate, setup_context=_save)
