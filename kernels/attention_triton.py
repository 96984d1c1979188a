"""This file holds the Triton kernels of attention.py: one forward, three backward, one for the dropout hashes.

Tiles cover queries and keys 1 .. N - 1; README.md says why query 0 and key 0 never enter one, and has the mathematics.

Shapes: B samples, H heads, E features of a head (padded to a power of two from 16), Nq queries, Nk keys. A row of the
matrix of weights belongs to a query, a column to a key. A name with "_0" belongs to query 0 or key 0. Strides count
elements; that of the features is 1. The arguments are, where a docstring below does not say otherwise:

In and out:
    q, k, v: (B, H, Nq, E) queries, (B, H, Nk, E) keys and values
    out, d_out: (B, H, Nq, E) the output and its gradient
    dq, dk, dv: (B, H, Nq, E) and twice (B, H, Nk, E), gradients of q, k and v
    lse: (B, H, Nq) float32, log2 of the sum of 2^t over a row, with t = c Q K^T
    row_hash, column_hash: (B, H, Nq) and (B, H, Nk) int32, the dropout hashes; anything where DROPOUT is false
    qp, kp, vp, d_out_p, lse_p, delta_p, row_hash_p, column_hash_p: pointers to q, k and so on once more, for what no
        tile covers; with TMA the arguments without the p are descriptors for the copy engine
Between the backward kernels:
    delta: (B, H, Nq) float32, keep * sum(d_out * out)
    ds: (samples of one launch * H * ds_keys, ds_queries) in the dtype of q, the gradient of the logits times keep,
        transposed, without query 0 and key 0; with TMA a descriptor
    ds_row_0, ds_column_0: (B, H, Nk) and (B, H, Nq) float32, the same of query 0 and of key 0
    dk_0, dv_0: (B, H, parts, E) float32, sums over the queries of each program of _delta_kernel
Strides:
    q_b, q_h, q_n: of q, from a sample, a head, a query to the next; k_, v_, dq_, dk_ and dv_ likewise, o_ of out, g_ of
        d_out
    row_bh, column_bh: of vectors over queries (lse, delta, row_hash, ds_column_0) and over keys (column_hash,
        ds_row_0), from a head to the next; samples follow each other without a gap
Numbers:
    heads, n_queries, n_keys: H, Nq, Nk
    ds_keys, ds_queries: Nk - 1 and Nq - 1, padded to whole tiles
    first: the first (sample, head) of this launch, counted as b * H + h
    parts: the number of programs of _delta_kernel for each (sample, head)
    scale, c: 1 / sqrt(E) and log2(e) / sqrt(E), E before padding
    keep, inverse_keep: the probability that a weight is kept, and 1 / keep
    threshold: the int32 below which a product of hashes means that a weight is dropped
    b, h, bh: a sample, a head, and b * H + h
Known when compiling:
    BM, BN, E: queries and keys of a tile, features of a head
    EVEN_Q, EVEN_K: whether whole tiles cover the queries 1 .. Nq - 1, and the keys 1 .. Nk - 1
    DROPOUT, TMA, PRECISION: whether there is dropout, and Hopper's copy engine reads the tiles; how tl.dot multiplies
        float32
In the functions that load and store:
    x, stride_b, stride_h, stride_n: a tensor (B, H, N, E), a pointer or with TMA a descriptor, and its strides
    start, n, BLOCK, EVEN: the first token to load or store, the number of tokens that x has, how many to load or store,
        and whether all of them are before n"""
import triton
import triton.language as tl


@triton.jit
def _load_tile(x, stride_b, stride_h, stride_n, b, h, start, n, BLOCK: tl.constexpr, E: tl.constexpr,
               EVEN: tl.constexpr, TMA: tl.constexpr):
    """Return x[b, h, start : start + BLOCK], (BLOCK, E), with zeros from token n on."""
    if TMA:
        tile = x.load([b, h, start, 0]).reshape(BLOCK, E)
    else:
        tokens = start + tl.arange(0, BLOCK)
        pointers = x + b.to(tl.int64) * stride_b + h * stride_h + tokens[:, None] * stride_n + tl.arange(0, E)[None, :]
        if EVEN:
            tile = tl.load(pointers)
        else:
            tile = tl.load(pointers, mask=tokens[:, None] < n, other=0.0)
    return tile


@triton.jit
def _store_tile(x, stride_b, stride_h, stride_n, b, h, start, n, value, BLOCK: tl.constexpr, E: tl.constexpr,
                EVEN: tl.constexpr):
    """Store value, (BLOCK, E) of any dtype, to x[b, h, start : start + BLOCK], but nothing from token n on."""
    tokens = start + tl.arange(0, BLOCK)
    pointers = x + b.to(tl.int64) * stride_b + h * stride_h + tokens[:, None] * stride_n + tl.arange(0, E)[None, :]
    if EVEN:
        tl.store(pointers, value.to(x.dtype.element_ty))
    else:
        tl.store(pointers, value.to(x.dtype.element_ty), mask=tokens[:, None] < n)


@triton.jit
def _load_0(x, stride_b, stride_h, b, h, E: tl.constexpr):
    """Return token 0 of x[b, h], (E,) float32."""
    return tl.load(x + b.to(tl.int64) * stride_b + h * stride_h + tl.arange(0, E)).to(tl.float32)


@triton.jit
def _load_vector(x, stride, bh, start, n, BLOCK: tl.constexpr, EVEN: tl.constexpr, TMA: tl.constexpr):
    """Return x[bh, start : start + BLOCK], (BLOCK,), with zeros from token n on.

    x: (B * H, N), a pointer; or with TMA a descriptor, which starts at element 1, since the copy engine wants offsets
        that are multiples of 16 bytes
    stride: its stride from a head to the next"""
    if TMA:
        vector = x.load([bh, start - 1]).reshape(BLOCK)
    else:
        index = start + tl.arange(0, BLOCK)
        if EVEN:
            vector = tl.load(x + bh * stride + index)
        else:
            vector = tl.load(x + bh * stride + index, mask=index < n, other=0)
    return vector


@triton.jit
def _forward_kernel(q, k, v, column_hash, qp, kp, vp, column_hash_p, out, lse, row_hash,
                    q_b, q_h, q_n, k_b, k_h, k_n, v_b, v_h, v_n, o_b, o_h, o_n, row_bh, column_bh, heads, n_queries,
                    n_keys,
                    c, inverse_keep, threshold,
                    BM: tl.constexpr, BN: tl.constexpr, E: tl.constexpr, DROPOUT: tl.constexpr, EVEN_Q: tl.constexpr,
                    EVEN_K: tl.constexpr, TMA: tl.constexpr, PRECISION: tl.constexpr, LANES: tl.constexpr):
    """Fill out and lse. Program (t, bh): query 0 where t is 0, else the queries from 1 + (t - 1) * BM on. LANES: the
    keys that query 0 looks at together."""
    bh = tl.program_id(1)
    b, h = bh // heads, bh % heads
    lse += bh * row_bh
    if tl.program_id(0) == 0:
        _forward_query_0(qp, kp, vp, out, lse, row_hash + bh * row_bh, column_hash_p, q_b, q_h, k_b, k_h, k_n,
                         v_b, v_h, v_n, o_b, o_h, column_bh, b, h, bh, n_keys, c, inverse_keep, threshold, LANES, E,
                         DROPOUT)
    else:
        query = 1 + (tl.program_id(0) - 1) * BM
        q_tile = _load_tile(q, q_b, q_h, q_n, b, h, query, n_queries, BM, E, EVEN_Q, TMA)
        m = tl.sum(q_tile.to(tl.float32) * _load_0(kp, k_b, k_h, b, h, E)[None, :], 1) * c
        total = tl.full([BM], 1.0, tl.float32)
        acc = tl.zeros([BM, E], tl.float32) + _load_0(vp, v_b, v_h, b, h, E)[None, :]
        if DROPOUT:
            hashes = _load_vector(row_hash, row_bh, bh, query, n_queries, BM, EVEN_Q, False)
            acc = tl.where((hashes * tl.load(column_hash_p + bh * column_bh) >= threshold)[:, None], acc, 0.0)
        for key in tl.range(1, n_keys, BN):
            k_tile = _load_tile(k, k_b, k_h, k_n, b, h, key, n_keys, BN, E, EVEN_K, TMA)
            s = tl.dot(q_tile, tl.trans(k_tile), input_precision=PRECISION)
            if not EVEN_K:
                s = tl.where((key + tl.arange(0, BN) < n_keys)[None, :], s, float("-inf"))
            m_new = tl.maximum(m, tl.max(s, 1) * c)
            p = tl.exp2(s * c - m_new[:, None])
            shrink = tl.exp2(m - m_new)
            total = total * shrink + tl.sum(p, 1)
            if DROPOUT:
                column_hashes = _load_vector(column_hash, column_bh, bh, key, n_keys, BN, EVEN_K, TMA)
                p = tl.where(hashes[:, None] * column_hashes[None, :] >= threshold, p, 0.0)
            v_tile = _load_tile(v, v_b, v_h, v_n, b, h, key, n_keys, BN, E, EVEN_K, TMA)
            acc = tl.dot(p.to(v_tile.dtype), v_tile, acc * shrink[:, None], input_precision=PRECISION)
            m = m_new
        _store_tile(out, o_b, o_h, o_n, b, h, query, n_queries, acc * (inverse_keep / total)[:, None], BM, E, EVEN_Q)
        queries = query + tl.arange(0, BM)
        tl.store(lse + queries, m + tl.log2(total), mask=queries < n_queries)


@triton.jit
def _forward_query_0(q, k, v, out, lse, row_hash, column_hash, q_b, q_h, k_b, k_h, k_n, v_b, v_h, v_n, o_b, o_h,
                     column_bh, b, h, bh, n_keys, c, inverse_keep, threshold, BN: tl.constexpr, E: tl.constexpr,
                     DROPOUT: tl.constexpr):
    """Fill out and lse of query 0. Each of BN lanes runs a softmax of its own over every BN-th key; at the end they
    merge. lse, row_hash: pointers to their element of this query."""
    q_0 = _load_0(q, q_b, q_h, b, h, E)
    m = tl.full([BN], -1e30, tl.float32)
    total = tl.zeros([BN], tl.float32)
    acc = tl.zeros([BN, E], tl.float32)
    for key in tl.range(0, n_keys, BN, num_stages=3):
        keys = key + tl.arange(0, BN)
        k_tile = _load_tile(k, k_b, k_h, k_n, b, h, key, n_keys, BN, E, False, False)
        v_tile = _load_tile(v, v_b, v_h, v_n, b, h, key, n_keys, BN, E, False, False)
        s = tl.where(keys < n_keys, tl.sum(k_tile.to(tl.float32) * q_0[None, :], 1) * c, float("-inf"))
        m_new = tl.maximum(m, s)
        p = tl.exp2(s - m_new)
        shrink = tl.exp2(m - m_new)
        total = total * shrink + p
        if DROPOUT:
            hashes = _load_vector(column_hash, column_bh, bh, key, n_keys, BN, False, False)
            p = tl.where(hashes * tl.load(row_hash) >= threshold, p, 0.0)
        acc = acc * shrink[:, None] + p[:, None] * v_tile.to(tl.float32)
        m = m_new
    m_all = tl.max(m, 0)
    weight = tl.exp2(m - m_all)
    total_all = tl.sum(total * weight, 0)
    result = tl.sum(acc * weight[:, None], 0) * (inverse_keep / total_all)
    tl.store(out + b.to(tl.int64) * o_b + h * o_h + tl.arange(0, E), result.to(out.dtype.element_ty))
    tl.store(lse, m_all + tl.log2(total_all))


@triton.jit
def _delta_kernel(q, k, v, out, d_out, lse, delta, ds_column_0, dk_0, dv_0, row_hash, column_hash,
                  q_b, q_h, q_n, k_b, k_h, v_b, v_h, o_b, o_h, o_n, g_b, g_h, g_n, row_bh, column_bh, heads,
                  n_queries, c, keep, threshold, BM: tl.constexpr, SPAN: tl.constexpr, E: tl.constexpr,
                  DROPOUT: tl.constexpr, STAGES: tl.constexpr):
    """Fill delta, ds_column_0, dk_0 and dv_0. Program (t, bh): the queries from t * SPAN on, BM at once; part t of dk_0
    and dv_0, which _dq_kernel adds up. STAGES: those of the loop over the queries."""
    bh = tl.program_id(1)
    b, h = bh // heads, bh % heads
    k_0 = _load_0(k, k_b, k_h, b, h, E)
    v_0 = _load_0(v, v_b, v_h, b, h, E)
    dk_acc = tl.zeros([BM, E], tl.float32)
    dv_acc = tl.zeros([BM, E], tl.float32)
    start = tl.program_id(0) * SPAN
    for query in tl.range(start, tl.minimum(start + SPAN, n_queries), BM, num_stages=STAGES):
        queries = query + tl.arange(0, BM)
        d_out_tile = _load_tile(d_out, g_b, g_h, g_n, b, h, query, n_queries, BM, E, False, False).to(tl.float32)
        out_tile = _load_tile(out, o_b, o_h, o_n, b, h, query, n_queries, BM, E, False, False).to(tl.float32)
        q_tile = _load_tile(q, q_b, q_h, q_n, b, h, query, n_queries, BM, E, False, False).to(tl.float32)
        sums = tl.sum(d_out_tile * out_tile, 1) * keep
        tl.store(delta + bh * row_bh + queries, sums, mask=queries < n_queries)
        p = tl.exp2(tl.sum(q_tile * k_0[None, :], 1) * c
                    - _load_vector(lse, row_bh, bh, query, n_queries, BM, False, False))
        p = tl.where(queries < n_queries, p, 0.0)
        dp = tl.sum(d_out_tile * v_0[None, :], 1)
        p_kept = p
        if DROPOUT:
            hashes = _load_vector(row_hash, row_bh, bh, query, n_queries, BM, False, False)
            p_kept = tl.where(hashes * tl.load(column_hash + bh * column_bh) >= threshold, p, 0.0)
        ds = p_kept * dp - p * sums
        tl.store(ds_column_0 + bh * row_bh + queries, ds, mask=queries < n_queries)
        dk_acc += ds[:, None] * q_tile
        dv_acc += p_kept[:, None] * d_out_tile
    part = (bh * tl.num_programs(0) + tl.program_id(0)) * E + tl.arange(0, E)
    tl.store(dk_0 + part, tl.sum(dk_acc, 0))
    tl.store(dv_0 + part, tl.sum(dv_acc, 0))


@triton.jit
def _dk_dv_kernel(q, k, v, d_out, lse, delta, row_hash, ds, qp, d_out_p, lse_p, delta_p, row_hash_p, column_hash,
                  ds_row_0, dk, dv,
                  q_b, q_h, q_n, k_b, k_h, k_n, v_b, v_h, v_n, g_b, g_h, g_n, dk_b, dk_h, dk_n, dv_b, dv_h, dv_n,
                  row_bh, column_bh, ds_keys, ds_queries, heads, n_queries, n_keys, first, c, scale, inverse_keep,
                  threshold,
                  BM: tl.constexpr, BN: tl.constexpr, E: tl.constexpr, DROPOUT: tl.constexpr, EVEN_Q: tl.constexpr,
                  EVEN_K: tl.constexpr, TMA: tl.constexpr, PRECISION: tl.constexpr):
    """Fill dk, dv, ds and ds_row_0. Program (t, i) is of (sample, head) first + i: the keys from 1 + t * BN on."""
    bh = tl.program_id(1) + first
    b, h = bh // heads, bh % heads
    key = 1 + tl.program_id(0) * BN
    keys = key + tl.arange(0, BN)
    k_tile = _load_tile(k, k_b, k_h, k_n, b, h, key, n_keys, BN, E, EVEN_K, TMA)
    v_tile = _load_tile(v, v_b, v_h, v_n, b, h, key, n_keys, BN, E, EVEN_K, TMA)
    q_0 = _load_0(qp, q_b, q_h, b, h, E)
    d_out_0 = _load_0(d_out_p, g_b, g_h, b, h, E)
    p_0 = tl.exp2(tl.sum(k_tile.to(tl.float32) * q_0[None, :], 1) * c - tl.load(lse_p + bh * row_bh))
    dp_0 = tl.sum(v_tile.to(tl.float32) * d_out_0[None, :], 1)
    p_0_kept = p_0
    if DROPOUT:
        column_hashes = _load_vector(column_hash, column_bh, bh, key, n_keys, BN, EVEN_K, False)
        p_0_kept = tl.where(column_hashes * tl.load(row_hash_p + bh * row_bh) >= threshold, p_0, 0.0)
    ds_0 = p_0_kept * dp_0 - p_0 * tl.load(delta_p + bh * row_bh)
    tl.store(ds_row_0 + bh * column_bh + keys, ds_0, mask=keys < n_keys)
    dk_acc = ds_0[:, None] * q_0[None, :]
    dv_acc = p_0_kept[:, None] * d_out_0[None, :]
    ds_row = tl.program_id(1) * ds_keys + key - 1
    for query in tl.range(1, n_queries, BM):
        q_tile = _load_tile(q, q_b, q_h, q_n, b, h, query, n_queries, BM, E, EVEN_Q, TMA)
        s_t = tl.dot(k_tile, tl.trans(q_tile), input_precision=PRECISION)
        p_t = tl.exp2(s_t * c - _load_vector(lse, row_bh, bh, query, n_queries, BM, EVEN_Q, TMA)[None, :])
        if not EVEN_K:
            p_t = tl.where((keys < n_keys)[:, None], p_t, 0.0)
        d_out_tile = _load_tile(d_out, g_b, g_h, g_n, b, h, query, n_queries, BM, E, EVEN_Q, TMA)
        dp_t = tl.dot(v_tile, tl.trans(d_out_tile), input_precision=PRECISION)
        deltas = _load_vector(delta, row_bh, bh, query, n_queries, BM, EVEN_Q, TMA)
        if DROPOUT:
            row_hashes = _load_vector(row_hash, row_bh, bh, query, n_queries, BM, EVEN_Q, TMA)
            p_t_kept = tl.where(column_hashes[:, None] * row_hashes[None, :] >= threshold, p_t, 0.0)
            ds_t = (p_t_kept * dp_t - p_t * deltas[None, :]).to(q_tile.dtype)
        else:
            p_t_kept = p_t
            ds_t = (p_t * (dp_t - deltas[None, :])).to(q_tile.dtype)
        dv_acc = tl.dot(p_t_kept.to(d_out_tile.dtype), d_out_tile, dv_acc, input_precision=PRECISION)
        if TMA:
            ds.store([ds_row, query - 1], ds_t)
        else:
            offsets = (ds_row + tl.arange(0, BN)).to(tl.int64)[:, None] * ds_queries
            tl.store(ds + offsets + (query - 1 + tl.arange(0, BM))[None, :], ds_t)
        dk_acc = tl.dot(ds_t, q_tile, dk_acc, input_precision=PRECISION)
    _store_tile(dk, dk_b, dk_h, dk_n, b, h, key, n_keys, dk_acc * (scale * inverse_keep), BN, E, EVEN_K)
    _store_tile(dv, dv_b, dv_h, dv_n, b, h, key, n_keys, dv_acc * inverse_keep, BN, E, EVEN_K)


@triton.jit
def _dq_kernel(k, ds, kp, ds_row_0, ds_column_0, dk_0, dv_0, dq, dk, dv,
               k_b, k_h, k_n, dq_b, dq_h, dq_n, dk_b, dk_h, dv_b, dv_h, row_bh, column_bh, ds_keys,
               ds_queries, heads, n_queries, n_keys, parts, first, scale, inverse_keep,
               BM: tl.constexpr, BN: tl.constexpr, E: tl.constexpr, EVEN_Q: tl.constexpr, EVEN_K: tl.constexpr,
               TMA: tl.constexpr, PRECISION: tl.constexpr):
    """Fill dq, and key 0 of dk and dv. Program (t, i) is of (sample, head) first + i: query 0 and key 0 where t is 0,
    else the queries from 1 + (t - 1) * BM on."""
    i = tl.program_id(1)
    bh = i + first
    b, h = bh // heads, bh % heads
    if tl.program_id(0) == 0:
        lanes = tl.arange(0, E)
        acc_0 = tl.zeros([64, E], tl.float32)
        for key in tl.range(1, n_keys, 64):
            weights_0 = _load_vector(ds_row_0, column_bh, bh, key, n_keys, 64, False, False)
            acc_0 += weights_0[:, None] * _load_tile(kp, k_b, k_h, k_n, b, h, key, n_keys, 64, E, False, False)
        dq_0 = tl.sum(acc_0, 0) + tl.load(ds_column_0 + bh * row_bh) * _load_0(kp, k_b, k_h, b, h, E)
        dk_sum = tl.zeros([E], tl.float32)
        dv_sum = tl.zeros([E], tl.float32)
        for part in tl.range(0, parts):
            dk_sum += tl.load(dk_0 + (bh * parts + part) * E + lanes)
            dv_sum += tl.load(dv_0 + (bh * parts + part) * E + lanes)
        wide = b.to(tl.int64)
        tl.store(dq + wide * dq_b + h * dq_h + lanes, (dq_0 * (scale * inverse_keep)).to(dq.dtype.element_ty))
        tl.store(dk + wide * dk_b + h * dk_h + lanes, (dk_sum * (scale * inverse_keep)).to(dk.dtype.element_ty))
        tl.store(dv + wide * dv_b + h * dv_h + lanes, (dv_sum * inverse_keep).to(dv.dtype.element_ty))
    else:
        query = 1 + (tl.program_id(0) - 1) * BM
        weights = _load_vector(ds_column_0, row_bh, bh, query, n_queries, BM, EVEN_Q, False)
        acc = weights[:, None] * _load_0(kp, k_b, k_h, b, h, E)[None, :]
        for key in tl.range(1, n_keys, BN):
            ds_row = i * ds_keys + key - 1
            if TMA:
                ds_t = ds.load([ds_row, query - 1])
            else:
                offsets = (ds_row + tl.arange(0, BN)).to(tl.int64)[:, None] * ds_queries
                ds_t = tl.load(ds + offsets + (query - 1 + tl.arange(0, BM))[None, :])
            k_tile = _load_tile(k, k_b, k_h, k_n, b, h, key, n_keys, BN, E, EVEN_K, TMA)
            acc = tl.dot(tl.trans(ds_t), k_tile, acc, input_precision=PRECISION)
        _store_tile(dq, dq_b, dq_h, dq_n, b, h, query, n_queries, acc * (scale * inverse_keep), BM, E, EVEN_Q)


@triton.jit
def _mix(x):
    """Apply the 32-bit finaliser of MurmurHash3 to x: uint32 numbers."""
    x ^= x >> 16
    x *= 0x85EBCA6B
    x ^= x >> 13
    x *= 0xC2B2AE35
    return x ^ (x >> 16)


@triton.jit
def _hash_kernel(seed, rows, row_hash, column_hash, row_bh, column_bh, heads, n_rows, n_columns, HAS_ROWS: tl.constexpr,
                 BLOCK: tl.constexpr):
    """Fill row_hash and column_hash, as attention._hashes does. Program (t, bh, stream): rows where stream is 0.

    seed: (B,) int64
    rows: (B, n_rows) int, their positions, negative where there is none; without HAS_ROWS they are 0 .. n_rows - 1
    n_rows, n_columns, BLOCK: Nq, Nk and the hashes of a program"""
    bh, stream = tl.program_id(1), tl.program_id(2)
    b, head = bh // heads, bh % heads
    index = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    n = tl.where(stream == 0, n_rows, n_columns)
    position = index
    if HAS_ROWS:
        if stream == 0:
            position = tl.load(rows + b * n_rows + index, mask=index < n, other=0).to(tl.int32)
    s = tl.load(seed + b)
    x = _mix((2 * head + stream).to(tl.uint32) ^ 0x9E3779B9)
    x = _mix(x ^ (s >> 32).to(tl.uint32))
    x = _mix(x ^ s.to(tl.uint32))
    x = (_mix(x ^ position.to(tl.uint32)) | 1).to(tl.int32, bitcast=True)
    x = tl.where(position < 0, 0, x)
    if stream == 0:
        tl.store(row_hash + bh * row_bh + index, x, mask=index < n)
    else:
        tl.store(column_hash + bh * column_bh + index, x, mask=index < n)
