"""Launches the kernels of attention_triton.py: which tensors they take, the tile table, scratch and strides."""
import math
import os

import torch
from torch.nn.functional import pad

try:
    import triton
    from triton.tools.tensor_descriptor import TensorDescriptor

    from kernels import attention_triton as kernels
except ImportError:  # Triton is made for Linux only
    triton = None

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
SCRATCH_BYTES = 2**29  # at most, for the gradient of the logits; larger batches go through the backward pass in parts

# One row a compute capability, BM queries by BN keys a tile: 9.0 by measurement, the others fit (README.md).
TILES = {
    (9, 0): {
        "forward": dict(BM=128, BN=64, num_warps=8, num_stages=2, maxnreg=128),
        "dk_dv": dict(BM=64, BN=128, num_warps=8, num_stages=3),
        "dq": dict(BM=128, BN=64, num_warps=8, num_stages=3),
    },
    (10, 0): {
        "forward": dict(BM=128, BN=128, num_warps=8, num_stages=2),
        "dk_dv": dict(BM=64, BN=128, num_warps=8, num_stages=2),
        "dq": dict(BM=128, BN=64, num_warps=8, num_stages=3),
    },
    "others": {
        "forward": dict(BM=128, BN=64, num_warps=8, num_stages=2),
        "dk_dv": dict(BM=64, BN=64, num_warps=8, num_stages=1),
        "dq": dict(BM=128, BN=64, num_warps=8, num_stages=2),
    },
    "float32": {
        "forward": dict(BM=32, BN=32, num_warps=8, num_stages=1),
        "dk_dv": dict(BM=32, BN=32, num_warps=8, num_stages=1, maxnreg=255),
        "dq": dict(BM=32, BN=32, num_warps=8, num_stages=1),
    },
}
_DELTA = dict(BM=32, SPAN=256, STAGES=3, num_warps=4)


def why_not(q):
    """Why the kernels cannot take q, or None if they can."""
    if triton is None:
        return "Triton is not installed"
    if q.device.type == "cuda":
        capability = torch.cuda.get_device_capability(q.device)
        if torch.version.hip is not None or capability < (8, 0):
            return f"the Triton kernels need an NVIDIA GPU of compute capability 8.0 or later, not {capability}"
    elif not (INTERPRETED and q.device.type == "cpu"):
        return f"the Triton kernels run on CUDA, not {q.device.type}"
    if q.dtype not in (torch.float32, torch.float16, torch.bfloat16):
        return f"the Triton kernels take float32, float16 and bfloat16, not {q.dtype}"
    if q.shape[-1] > 128:
        return f"the Triton kernels take head sizes up to 128, not {q.shape[-1]}"
    return None


def runs_on(q):
    return why_not(q) is None


def hashes(seed, heads, n_rows, n_columns, rows):
    """What attention._hashes returns, in one launch."""
    row_hash = vectors(seed, heads, n_rows, torch.int32)
    column_hash = vectors(seed, heads, n_columns, torch.int32)
    grid = (triton.cdiv(max(n_rows, n_columns), 1024), seed.shape[0] * heads, 2)
    with torch.cuda.device_of(seed):
        kernels._hash_kernel[grid](seed.contiguous(), seed if rows is None else rows.contiguous(), row_hash,
                                   column_hash, row_hash.stride(1), column_hash.stride(1), heads, n_rows,
                                   n_columns, HAS_ROWS=rows is not None, BLOCK=1024)
    return row_hash, column_hash


def forward(q, k, v, out, lse, row_hash, column_hash, keep, threshold):
    """Fill out (B, H, Nq, D) and lse (B, H, Nq) float32, base 2; the hashes (B, H, Nq) and (B, H, Nk), or None."""
    tile = _tiles(q)["forward"]
    (batch, heads, n_queries, d), n_keys = q.shape, k.shape[2]
    c = math.log2(math.e) / math.sqrt(d)
    q, k, v, padded_out = *map(_readable, (q, k, v)), _writable(out)
    tma = _tma(q, k, v)
    dropout = row_hash is not None
    row_hash, column_hash = (_aligned(row_hash), _aligned(column_hash)) if dropout else (lse, lse)
    bm, bn = tile["BM"], tile["BN"]
    with torch.cuda.device_of(q):
        kernels._forward_kernel[(1 + triton.cdiv(n_queries - 1, bm), batch * heads)](
            _tiled(q, bm, tma), _tiled(k, bn, tma), _tiled(v, bn, tma), _tiled(column_hash, bn, tma), q, k, v,
            column_hash, padded_out, lse, row_hash, *_strides(q, k, v, padded_out), lse.stride(1),
            column_hash.stride(1), heads, n_queries, n_keys, c, 1.0 / keep, threshold, D=q.shape[-1], DROPOUT=dropout,
            EVEN_Q=(n_queries - 1) % bm == 0, EVEN_K=(n_keys - 1) % bn == 0, TMA=tma, PRECISION=_precision(),
            LANES=128 // q.element_size(), **tile)
    _trim(out, padded_out)


def backward(d_out, q, k, v, out, lse, row_hash, column_hash, keep, threshold, dq, dk, dv):
    """Fill dq, dk, dv; the scratch for the gradient of the logits is bounded by SCRATCH_BYTES (or one sample's)."""
    tiles = _tiles(q)
    (batch, heads, n_queries, d), n_keys = q.shape, k.shape[2]
    lse = _aligned(lse)
    scale = 1.0 / math.sqrt(d)
    c = scale * math.log2(math.e)
    inputs = d_out, q, k, v, out
    d_out, q, k, v, out = map(_readable, inputs)
    outputs = dq, dk, dv
    dq, dk, dv = map(_writable, outputs)
    d = q.shape[-1]
    tma = _tma(d_out, q, k, v)
    bm, bn = tiles["dk_dv"]["BM"], tiles["dk_dv"]["BN"]
    dq_bm, dq_bn = tiles["dq"]["BM"], tiles["dq"]["BN"]
    delta, ds_column_0 = vectors(q, heads, n_queries), vectors(q, heads, n_queries)
    ds_row_0 = vectors(q, heads, n_keys)
    dropout = row_hash is not None
    row_hash, column_hash = (_aligned(row_hash), _aligned(column_hash)) if dropout else (lse, ds_row_0)
    sizes = lse.stride(1), ds_row_0.stride(1)
    parts = triton.cdiv(n_queries, _DELTA["SPAN"])
    dk_0, dv_0 = q.new_empty(2, batch * heads, parts, d, dtype=torch.float32)
    ds_keys, ds_queries = _up(n_keys - 1, max(bn, dq_bn)), _up(n_queries - 1, max(bm, dq_bm))
    count = max(1, SCRATCH_BYTES // (heads * ds_keys * ds_queries * q.element_size()))
    samples = math.ceil(batch / math.ceil(batch / count))
    # Keys that no tile of dK and dV holds; the same of queries ends in rows of dQ that are not stored.
    unwritten = ds_keys > _up(n_keys - 1, bn)
    ds = (torch.zeros if unwritten else torch.empty)(
        samples * heads * ds_keys, ds_queries, dtype=q.dtype, device=q.device)
    common = dict(D=d, TMA=tma, PRECISION=_precision())
    with torch.cuda.device_of(q):
        kernels._delta_kernel[(parts, batch * heads)](
            q, k, v, out, d_out, lse, delta, ds_column_0, dk_0, dv_0, row_hash, column_hash,
            *_strides(q), *k.stride()[:2], *v.stride()[:2], *_strides(out, d_out), *sizes, heads, n_queries, c, keep,
            threshold, D=d, DROPOUT=dropout, **_DELTA)
        for first in range(0, batch, samples):
            n = min(samples, batch - first) * heads
            if n_keys > 1:
                kernels._dk_dv_kernel[(triton.cdiv(n_keys - 1, bn), n)](
                    *(_tiled(x, rows, tma) for x, rows in ((q, bm), (k, bn), (v, bn), (d_out, bm), (lse, bm),
                                                           (delta, bm), (row_hash, bm))), _tiled(ds, bn, tma, bm),
                    q, d_out, lse, delta, row_hash, column_hash, ds_row_0, dk, dv, *_strides(q, k, v, d_out, dk, dv),
                    *sizes, ds_keys, ds_queries, heads, n_queries, n_keys, first * heads, c, scale, 1.0 / keep,
                    threshold, DROPOUT=dropout, EVEN_Q=(n_queries - 1) % bm == 0, EVEN_K=(n_keys - 1) % bn == 0,
                    **common, **tiles["dk_dv"])
            kernels._dq_kernel[(1 + triton.cdiv(n_queries - 1, dq_bm), n)](
                _tiled(k, dq_bn, tma), _tiled(ds, dq_bn, tma, dq_bm), k, ds_row_0, ds_column_0, dk_0, dv_0, dq, dk, dv,
                *_strides(k, dq), *dk.stride()[:2], *dv.stride()[:2], *sizes, ds_keys, ds_queries, heads, n_queries,
                n_keys, parts, first * heads, scale, 1.0 / keep, EVEN_Q=(n_queries - 1) % dq_bm == 0,
                EVEN_K=(n_keys - 1) % dq_bn == 0, **common, **tiles["dq"])
    for whole, padded in zip(outputs, (dq, dk, dv)):
        _trim(whole, padded)


def _tiles(q):
    if q.dtype == torch.float32 and not INTERPRETED:
        return TILES["float32"]
    return TILES.get(_capability(q), TILES["others"])


def _capability(x):
    return (9, 0) if INTERPRETED else torch.cuda.get_device_capability(x.device)


def _precision():
    """How products of float32 are made: as PyTorch's are, by torch.set_float32_matmul_precision."""
    return {"highest": "ieee", "high": "tf32x3", "medium": "tf32"}[torch.get_float32_matmul_precision()]


def _readable(x):
    """x with unit stride along D, D padded to a power of two from 16; bfloat16 as float32 in the interpreter."""
    if INTERPRETED and x.dtype == torch.bfloat16:
        x = x.float()
    d = x.shape[-1]
    wanted = max(16, triton.next_power_of_2(d))
    if wanted != d:
        return pad(x, (0, wanted - d))
    return x if x.stride(-1) == 1 and 0 not in x.stride() else x.contiguous()


def _writable(x):
    """x itself, or the wider tensor that the kernels fill in its place."""
    wanted = max(16, triton.next_power_of_2(x.shape[-1]))
    if wanted == x.shape[-1] and not (INTERPRETED and x.dtype == torch.bfloat16):
        return x
    dtype = torch.float32 if INTERPRETED and x.dtype == torch.bfloat16 else x.dtype
    return x.new_empty(*x.shape[:-1], wanted, dtype=dtype)


def _trim(x, padded):
    if padded is not x:
        x.copy_(padded[..., :x.shape[-1]])


def _tma(*tensors):
    """Whether Hopper's copy engine can read the tensors: more than one row each, aligned to 16 bytes."""
    if any(x.shape[2] == 1 for x in tensors):
        return False
    if _capability(tensors[0])[0] < 9:
        return False
    return all(x.data_ptr() % 16 == 0 and all(s * x.element_size() % 16 == 0 for s in x.stride()[:3]) for x in tensors)


def _tiled(x, rows, tma, columns=None):
    """x itself, or its descriptor for the copy engine: tiles (rows, D) of a (B, H, N, D), pieces (rows,) of the
    (B, H, N) from element 1 on, tiles (rows, columns) of a matrix."""
    if not tma:
        return x
    if x.dim() == 4:
        return TensorDescriptor(x, x.shape, x.stride(), [1, 1, rows, x.shape[-1]])
    if x.dim() == 3:
        b, h, n = x.shape
        return TensorDescriptor(x[..., 1:], [b * h, n - 1], x.stride()[1:], [1, rows])
    return TensorDescriptor(x, x.shape, x.stride(), [rows, columns])


def vectors(like, heads, n, dtype=torch.float32):
    """An empty (B, heads, n) of 4-byte numbers, element 1 of each row at a multiple of 16 bytes for the copy engine."""
    return like.new_empty(like.shape[0], heads, _up(n + 3, 4), dtype=dtype)[..., 3:n + 3]


def _strides(*tensors):
    return [stride for x in tensors for stride in x.stride()[:3]]


def _aligned(x):
    """x as `vectors` lays it out: a compiler may have moved it."""
    if (x.data_ptr() + 4) % 16 == 0 and x.stride(0) == x.shape[1] * x.stride(1) and x.stride(1) % 4 == 0:
        return x
    return vectors(x, *x.shape[1:], x.dtype).copy_(x)


def _up(n, multiple):
    return max(1, math.ceil(n / multiple)) * multiple
