"""This file launches the kernels of attention_triton.py. It knows which tensors they take, the sizes of their tiles,
their scratch memory and their strides. The letters of the shapes are those of attention.py."""
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
SCRATCH_BYTES = 2**29  # the most for the gradient of the logits; larger batches go through the backward pass in parts


def _options(queries, keys, stages, **options):
    """Return a tile of BM queries by BN keys, and how the kernel is compiled for it."""
    return dict(BM=queries, BN=keys, num_warps=8, num_stages=stages, **options)


# Compute capability -> the tile of each kernel. Those of 9.0 were the fastest in measurements; the others fit, and were
# not measured (README.md).
TILES = {
    (9, 0): dict(forward=_options(128, 64, 2, maxnreg=128), dk_dv=_options(64, 128, 3), dq=_options(128, 64, 3)),
    (10, 0): dict(forward=_options(128, 128, 2), dk_dv=_options(64, 128, 2), dq=_options(128, 64, 3)),
    "others": dict(forward=_options(128, 64, 2), dk_dv=_options(64, 64, 1), dq=_options(128, 64, 2)),
    "float32": dict(forward=_options(32, 32, 1), dk_dv=_options(32, 32, 1, maxnreg=255), dq=_options(32, 32, 1)),
}
_DELTA = dict(BM=32, SPAN=256, STAGES=3, num_warps=4)


def why_not(q):
    """Return why the kernels cannot take q, or None if they can."""
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
    """Return whether the kernels can take q."""
    return why_not(q) is None


def hashes(seed, heads, n_rows, n_columns, rows):
    """Return what attention._hashes returns, with one launch."""
    row_hash = vectors(seed, heads, n_rows, torch.int32)
    column_hash = vectors(seed, heads, n_columns, torch.int32)
    grid = (triton.cdiv(max(n_rows, n_columns), 1024), seed.shape[0] * heads, 2)
    with torch.cuda.device_of(seed):
        kernels._hash_kernel[grid](seed.contiguous(), seed if rows is None else rows.contiguous(), row_hash,
                                   column_hash, row_hash.stride(1), column_hash.stride(1), heads, n_rows,
                                   n_columns, HAS_ROWS=rows is not None, BLOCK=1024)
    return row_hash, column_hash


def forward(q, k, v, out, lse, row_hash, column_hash, keep, threshold):
    """Fill out (B, H, Nq, E) and lse (B, H, Nq) float32, the base-2 log-sum-exp, from q, k and v. The hashes row_hash
    (B, H, Nq) and column_hash (B, H, Nk) are None without dropout; keep, threshold: see attention_triton.py."""
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
            column_hash.stride(1), heads, n_queries, n_keys, c, 1.0 / keep, threshold, E=q.shape[-1], DROPOUT=dropout,
            EVEN_Q=(n_queries - 1) % bm == 0, EVEN_K=(n_keys - 1) % bn == 0, TMA=tma, PRECISION=_precision(),
            LANES=128 // q.element_size(), **tile)
    _trim(out, padded_out)


def backward(d_out, q, k, v, out, lse, row_hash, column_hash, keep, threshold, dq, dk, dv):
    """Fill dq, dk and dv, the gradients of q, k and v, from that of the output, d_out; the rest is as in `forward`."""
    tiles, batch, heads, n_queries, n_keys = _tiles(q), *q.shape[:3], k.shape[2]
    scale = 1.0 / math.sqrt(q.shape[-1])
    c = scale * math.log2(math.e)
    lse, outputs = _aligned(lse), (dq, dk, dv)
    d_out, q, k, v, out = map(_readable, (d_out, q, k, v, out))
    dq, dk, dv = map(_writable, outputs)
    bm, bn = tiles["dk_dv"]["BM"], tiles["dk_dv"]["BN"]
    dq_bm, dq_bn = tiles["dq"]["BM"], tiles["dq"]["BN"]
    delta, ds_column_0, ds_row_0 = (vectors(q, heads, n) for n in (n_queries, n_queries, n_keys))
    dropout = row_hash is not None
    row_hash, column_hash = (_aligned(row_hash), _aligned(column_hash)) if dropout else (lse, ds_row_0)
    steps = lse.stride(1), ds_row_0.stride(1)
    parts = triton.cdiv(n_queries, _DELTA["SPAN"])
    dk_0, dv_0 = q.new_empty(2, batch * heads, parts, q.shape[-1], dtype=torch.float32)
    ds, samples, ds_keys = _scratch(q, n_keys, tiles)
    tma = _tma(d_out, q, k, v)
    common = dict(E=q.shape[-1], TMA=tma, PRECISION=_precision())
    with torch.cuda.device_of(q):
        kernels._delta_kernel[(parts, batch * heads)](
            q, k, v, out, d_out, lse, delta, ds_column_0, dk_0, dv_0, row_hash, column_hash,
            *_strides(q), *k.stride()[:2], *v.stride()[:2], *_strides(out, d_out), *steps, heads, n_queries, c, keep,
            threshold, E=q.shape[-1], DROPOUT=dropout, **_DELTA)
        # As many samples at a time as the scratch has room for.
        for first in range(0, batch, samples):
            n = min(samples, batch - first) * heads
            if n_keys > 1:
                kernels._dk_dv_kernel[(triton.cdiv(n_keys - 1, bn), n)](
                    *(_tiled(x, size, tma) for x, size in ((q, bm), (k, bn), (v, bn), (d_out, bm), (lse, bm),
                                                           (delta, bm), (row_hash, bm))), _tiled(ds, bn, tma, bm),
                    q, d_out, lse, delta, row_hash, column_hash, ds_row_0, dk, dv, *_strides(q, k, v, d_out, dk, dv),
                    *steps, ds_keys, ds.shape[1], heads, n_queries, n_keys, first * heads, c, scale, 1.0 / keep,
                    threshold, DROPOUT=dropout, EVEN_Q=(n_queries - 1) % bm == 0, EVEN_K=(n_keys - 1) % bn == 0,
                    **common, **tiles["dk_dv"])
            kernels._dq_kernel[(1 + triton.cdiv(n_queries - 1, dq_bm), n)](
                _tiled(k, dq_bn, tma), _tiled(ds, dq_bn, tma, dq_bm), k, ds_row_0, ds_column_0, dk_0, dv_0, dq, dk, dv,
                *_strides(k, dq), *dk.stride()[:2], *dv.stride()[:2], *steps, ds_keys, ds.shape[1], heads, n_queries,
                n_keys, parts, first * heads, scale, 1.0 / keep, EVEN_Q=(n_queries - 1) % dq_bm == 0,
                EVEN_K=(n_keys - 1) % dq_bn == 0, **common, **tiles["dq"])
    for whole, padded in zip(outputs, (dq, dk, dv)):
        _trim(whole, padded)


def _scratch(q, n_keys, tiles):
    """Return the scratch for the gradient of the logits (samples * H * ds_keys, ds_queries), samples and ds_keys.
    samples: for how many it has room within SCRATCH_BYTES, at least one; the others as in attention_triton.py."""
    batch, heads, n_queries, _ = q.shape
    ds_keys = _up(n_keys - 1, max(tiles["dk_dv"]["BN"], tiles["dq"]["BN"]))
    ds_queries = _up(n_queries - 1, max(tiles["dk_dv"]["BM"], tiles["dq"]["BM"]))
    room = max(1, SCRATCH_BYTES // (heads * ds_keys * ds_queries * q.element_size()))
    samples = math.ceil(batch / math.ceil(batch / room))
    # dQ may read keys that no tile of dK and dV has written, so these must be 0. Queries that no tile has written end
    # in elements of dQ that are not stored.
    new = q.new_zeros if ds_keys > _up(n_keys - 1, tiles["dk_dv"]["BN"]) else q.new_empty
    return new(samples * heads * ds_keys, ds_queries), samples, ds_keys


def _tiles(q):
    """Return the tiles of the kernels for q."""
    if q.dtype == torch.float32 and not INTERPRETED:
        return TILES["float32"]
    return TILES.get(_capability(q), TILES["others"])


def _capability(x):
    """Return the compute capability of x's GPU; the interpreter plays an H100."""
    return (9, 0) if INTERPRETED else torch.cuda.get_device_capability(x.device)


def _precision():
    """Return how float32 is multiplied: as PyTorch does it, by torch.set_float32_matmul_precision."""
    return {"highest": "ieee", "high": "tf32x3", "medium": "tf32"}[torch.get_float32_matmul_precision()]


def _readable(x):
    """Return x with unit stride along E, E padded to a power of two from 16; in the interpreter bfloat16 is float32."""
    if INTERPRETED and x.dtype == torch.bfloat16:
        x = x.float()
    d = x.shape[-1]
    wanted = max(16, triton.next_power_of_2(d))
    if wanted != d:
        return pad(x, (0, wanted - d))
    return x if x.stride(-1) == 1 and 0 not in x.stride() else x.contiguous()


def _writable(x):
    """Return x itself, or the wider tensor that the kernels fill in its place."""
    wanted = max(16, triton.next_power_of_2(x.shape[-1]))
    if wanted == x.shape[-1] and not (INTERPRETED and x.dtype == torch.bfloat16):
        return x
    dtype = torch.float32 if INTERPRETED and x.dtype == torch.bfloat16 else x.dtype
    return x.new_empty(*x.shape[:-1], wanted, dtype=dtype)


def _trim(x, padded):
    """Copy to x what the kernels filled in its place."""
    if padded is not x:
        x.copy_(padded[..., :x.shape[-1]])


def _tma(*tensors):
    """Return whether Hopper's copy engine can read the tensors: more than one token each, aligned to 16 bytes."""
    if any(x.shape[2] == 1 for x in tensors) or _capability(tensors[0])[0] < 9:
        return False
    return all(x.data_ptr() % 16 == 0 and all(s * x.element_size() % 16 == 0 for s in x.stride()[:3]) for x in tensors)


def _tiled(x, size, tma, width=None):
    """Return x itself, or with tma its descriptor for the copy engine, which reads of x (B, H, N, E) tiles (size, E);
    of x (B, H, N) pieces (size,) from element 1 on; of a matrix x tiles (size, width)."""
    if not tma:
        return x
    if x.dim() == 4:
        return TensorDescriptor(x, x.shape, x.stride(), [1, 1, size, x.shape[-1]])
    if x.dim() == 3:
        b, h, n = x.shape
        return TensorDescriptor(x[..., 1:], [b * h, n - 1], x.stride()[1:], [1, size])
    return TensorDescriptor(x, x.shape, x.stride(), [size, width])


def vectors(like, heads, n, dtype=torch.float32):
    """Return an empty (B, heads, n) of 4-byte numbers, B that of `like`; element 1 of each head's vector lies at a
    multiple of 16 bytes, as the copy engine wants it."""
    return like.new_empty(like.shape[0], heads, _up(n + 3, 4), dtype=dtype)[..., 3:n + 3]


def _strides(*tensors):
    """Return the strides of the tensors (B, H, N, E), but those of E, in one list."""
    return [stride for x in tensors for stride in x.stride()[:3]]


def _aligned(x):
    """Return x laid out as by `vectors`; a compiler may have laid it out anew."""
    if (x.data_ptr() + 4) % 16 == 0 and x.stride(0) == x.shape[1] * x.stride(1) and x.stride(1) % 4 == 0:
        return x
    return vectors(x, *x.shape[1:], x.dtype).copy_(x)


def _up(n, multiple):
    """Round n up to a multiple, at least one."""
    return max(1, math.ceil(n / multiple)) * multiple
