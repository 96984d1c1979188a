"""The Triton kernels of attention.py: one forward, three backward, one for the dropout hashes.

Lengths such as 1,281 = 1 + 10 x 128 would waste up to a fifth of all work on padding, so query 0 and key 0 (a
transformer's class token) never enter a tile. Key 0 starts each running sum; query 0 is a vector program of its own.
Tiles cover queries and keys 1 .. N - 1, masked only where they do not fit. README.md has the mathematics.

Names: c = log2(e) / sqrt(D); "_0" marks what belongs to query 0 or key 0; lse is in base 2; delta is
keep_probability * sum(dO * O); ds is keep_probability / scale times the gradient of the scaled logits.
"""
import triton
import triton.language as tl

# ---------------------------------------------------------------- tiles

@triton.jit
def _load_rows(x, stride_b, stride_h, stride_n, b, h, row, n, BLOCK: tl.constexpr, D: tl.constexpr, EVEN: tl.constexpr,
               TMA: tl.constexpr):
    """Rows row .. row + BLOCK - 1 of x[b, h], (BLOCK, D); rows from n on read as zero."""
    if TMA:
        tile = x.load([b, h, row, 0]).reshape(BLOCK, D)
    else:
        rows = row + tl.arange(0, BLOCK)
        pointers = x + b.to(tl.int64) * stride_b + h * stride_h + rows[:, None] * stride_n + tl.arange(0, D)[None, :]
        if EVEN:
            tile = tl.load(pointers)
        else:
            tile = tl.load(pointers, mask=rows[:, None] < n, other=0.0)
    return tile


@triton.jit
def _store_rows(x, stride_b, stride_h, stride_n, b, h, row, n, value, BLOCK: tl.constexpr, D: tl.constexpr,
                EVEN: tl.constexpr):
    rows = row + tl.arange(0, BLOCK)
    pointers = x + b.to(tl.int64) * stride_b + h * stride_h + rows[:, None] * stride_n + tl.arange(0, D)[None, :]
    if EVEN:
        tl.store(pointers, value.to(x.dtype.element_ty))
    else:
        tl.store(pointers, value.to(x.dtype.element_ty), mask=rows[:, None] < n)


@triton.jit
def _row_0(x, stride_b, stride_h, b, h, D: tl.constexpr):
    return tl.load(x + b.to(tl.int64) * stride_b + h * stride_h + tl.arange(0, D)).to(tl.float32)


@triton.jit
def _load_vector(x, stride, bh, start, n, BLOCK: tl.constexpr, EVEN: tl.constexpr, TMA: tl.constexpr):
    """x[bh, start .. start + BLOCK - 1] of a matrix with one row a sample and head; zeros from n on.

    A descriptor starts at element 1, since the copy engine wants offsets that are multiples of 16 bytes.
    """
    if TMA:
        vector = x.load([bh, start - 1]).reshape(BLOCK)
    else:
        index = start + tl.arange(0, BLOCK)
        if EVEN:
            vector = tl.load(x + bh * stride + index)
        else:
            vector = tl.load(x + bh * stride + index, mask=index < n, other=0)
    return vector


# ---------------------------------------------------------------- forward

@triton.jit
def _forward_kernel(q, k, v, column_hash, qp, kp, vp, column_hash_p, out, lse, row_hash,
                    q_b, q_h, q_n, k_b, k_h, k_n, v_b, v_h, v_n, o_b, o_h, o_n, rows_n, columns_n, heads, n_queries,
                    n_keys,
                    c, inverse_keep, threshold,
                    BM: tl.constexpr, BN: tl.constexpr, D: tl.constexpr, DROPOUT: tl.constexpr, EVEN_Q: tl.constexpr,
                    EVEN_K: tl.constexpr, TMA: tl.constexpr, PRECISION: tl.constexpr, LANES: tl.constexpr):
    """Program (t, b * heads + h): t = 0 is query 0, t > 0 the queries 1 + (t - 1) * BM onwards.

    q, k, v, column_hash are descriptors when TMA, else the pointers qp, kp, vp, column_hash_p once more.
    """
    bh = tl.program_id(1)
    b, h = bh // heads, bh % heads
    lse += bh * rows_n
    if tl.program_id(0) == 0:
        _forward_query_0(qp, kp, vp, out, lse, row_hash + bh * rows_n, column_hash_p, q_b, q_h, k_b, k_h, k_n,
                         v_b, v_h, v_n, o_b, o_h, columns_n, b, h, bh, n_keys, c, inverse_keep, threshold, LANES, D,
                         DROPOUT)
    else:
        row = 1 + (tl.program_id(0) - 1) * BM
        q_tile = _load_rows(q, q_b, q_h, q_n, b, h, row, n_queries, BM, D, EVEN_Q, TMA)
        m = tl.sum(q_tile.to(tl.float32) * _row_0(kp, k_b, k_h, b, h, D)[None, :], 1) * c
        total = tl.full([BM], 1.0, tl.float32)
        acc = tl.zeros([BM, D], tl.float32) + _row_0(vp, v_b, v_h, b, h, D)[None, :]
        if DROPOUT:
            hashes = _load_vector(row_hash, rows_n, bh, row, n_queries, BM, EVEN_Q, False)
            acc = tl.where((hashes * tl.load(column_hash_p + bh * columns_n) >= threshold)[:, None], acc, 0.0)
        for column in tl.range(1, n_keys, BN):
            k_tile = _load_rows(k, k_b, k_h, k_n, b, h, column, n_keys, BN, D, EVEN_K, TMA)
            s = tl.dot(q_tile, tl.trans(k_tile), input_precision=PRECISION)
            if not EVEN_K:
                s = tl.where((column + tl.arange(0, BN) < n_keys)[None, :], s, float("-inf"))
            m_new = tl.maximum(m, tl.max(s, 1) * c)
            p = tl.exp2(s * c - m_new[:, None])
            shrink = tl.exp2(m - m_new)
            total = total * shrink + tl.sum(p, 1)
            if DROPOUT:
                column_hashes = _load_vector(column_hash, columns_n, bh, column, n_keys, BN, EVEN_K, TMA)
                p = tl.where(hashes[:, None] * column_hashes[None, :] >= threshold, p, 0.0)
            v_tile = _load_rows(v, v_b, v_h, v_n, b, h, column, n_keys, BN, D, EVEN_K, TMA)
            acc = tl.dot(p.to(v_tile.dtype), v_tile, acc * shrink[:, None], input_precision=PRECISION)
            m = m_new
        _store_rows(out, o_b, o_h, o_n, b, h, row, n_queries, acc * (inverse_keep / total)[:, None], BM, D, EVEN_Q)
        rows = row + tl.arange(0, BM)
        tl.store(lse + rows, m + tl.log2(total), mask=rows < n_queries)


@triton.jit
def _forward_query_0(q, k, v, out, lse, row_hash, column_hash, q_b, q_h, k_b, k_h, k_n, v_b, v_h, v_n, o_b, o_h,
                     columns_n, b, h, bh, n_keys, c, inverse_keep, threshold, BN: tl.constexpr, D: tl.constexpr,
                     DROPOUT: tl.constexpr):
    """Query 0 alone. Each of BN lanes runs a softmax of its own over every BN-th key; the lanes merge at the end."""
    q_0 = _row_0(q, q_b, q_h, b, h, D)
    m = tl.full([BN], -1e30, tl.float32)
    total = tl.zeros([BN], tl.float32)
    acc = tl.zeros([BN, D], tl.float32)
    for column in tl.range(0, n_keys, BN, num_stages=3):
        columns = column + tl.arange(0, BN)
        k_tile = _load_rows(k, k_b, k_h, k_n, b, h, column, n_keys, BN, D, False, False)
        v_tile = _load_rows(v, v_b, v_h, v_n, b, h, column, n_keys, BN, D, False, False)
        s = tl.where(columns < n_keys, tl.sum(k_tile.to(tl.float32) * q_0[None, :], 1) * c, float("-inf"))
        m_new = tl.maximum(m, s)
        p = tl.exp2(s - m_new)
        shrink = tl.exp2(m - m_new)
        total = total * shrink + p
        if DROPOUT:
            hashes = _load_vector(column_hash, columns_n, bh, column, n_keys, BN, False, False)
            p = tl.where(hashes * tl.load(row_hash) >= threshold, p, 0.0)
        acc = acc * shrink[:, None] + p[:, None] * v_tile.to(tl.float32)
        m = m_new
    m_all = tl.max(m, 0)
    weight = tl.exp2(m - m_all)
    total_all = tl.sum(total * weight, 0)
    result = tl.sum(acc * weight[:, None], 0) * (inverse_keep / total_all)
    tl.store(out + b.to(tl.int64) * o_b + h * o_h + tl.arange(0, D), result.to(out.dtype.element_ty))
    tl.store(lse, m_all + tl.log2(total_all))


# ---------------------------------------------------------------- backward

@triton.jit
def _delta_kernel(q, k, v, out, d_out, lse, delta, ds_column_0, dk_0, dv_0, row_hash, column_hash,
                  q_b, q_h, q_n, k_b, k_h, v_b, v_h, o_b, o_h, o_n, g_b, g_h, g_n, rows_n, columns_n, heads,
                  n_queries, c, keep, threshold, BM: tl.constexpr, SPAN: tl.constexpr, D: tl.constexpr,
                  DROPOUT: tl.constexpr, STAGES: tl.constexpr):
    """Program (t, bh), queries t * SPAN onwards: delta, their column of ds for key 0, and their share of dK_0 and dV_0.

    dk_0, dv_0: (B * heads, programs, D) float32 partial sums, added up by _dq_kernel.
    """
    bh = tl.program_id(1)
    b, h = bh // heads, bh % heads
    k_0 = _row_0(k, k_b, k_h, b, h, D)
    v_0 = _row_0(v, v_b, v_h, b, h, D)
    dk_acc = tl.zeros([BM, D], tl.float32)
    dv_acc = tl.zeros([BM, D], tl.float32)
    start = tl.program_id(0) * SPAN
    for row in tl.range(start, tl.minimum(start + SPAN, n_queries), BM, num_stages=STAGES):
        rows = row + tl.arange(0, BM)
        d_out_tile = _load_rows(d_out, g_b, g_h, g_n, b, h, row, n_queries, BM, D, False, False).to(tl.float32)
        out_tile = _load_rows(out, o_b, o_h, o_n, b, h, row, n_queries, BM, D, False, False).to(tl.float32)
        q_tile = _load_rows(q, q_b, q_h, q_n, b, h, row, n_queries, BM, D, False, False).to(tl.float32)
        sums = tl.sum(d_out_tile * out_tile, 1) * keep
        tl.store(delta + bh * rows_n + rows, sums, mask=rows < n_queries)
        p = tl.exp2(tl.sum(q_tile * k_0[None, :], 1) * c
                    - _load_vector(lse, rows_n, bh, row, n_queries, BM, False, False))
        p = tl.where(rows < n_queries, p, 0.0)
        dp = tl.sum(d_out_tile * v_0[None, :], 1)
        p_kept = p
        if DROPOUT:
            hashes = _load_vector(row_hash, rows_n, bh, row, n_queries, BM, False, False)
            p_kept = tl.where(hashes * tl.load(column_hash + bh * columns_n) >= threshold, p, 0.0)
        ds = p_kept * dp - p * sums
        tl.store(ds_column_0 + bh * rows_n + rows, ds, mask=rows < n_queries)
        dk_acc += ds[:, None] * q_tile
        dv_acc += p_kept[:, None] * d_out_tile
    part = (bh * tl.num_programs(0) + tl.program_id(0)) * D + tl.arange(0, D)
    tl.store(dk_0 + part, tl.sum(dk_acc, 0))
    tl.store(dv_0 + part, tl.sum(dv_acc, 0))


@triton.jit
def _dk_dv_kernel(q, k, v, d_out, lse, delta, row_hash, ds, qp, d_out_p, lse_p, delta_p, row_hash_p, column_hash,
                  ds_row_0, dk, dv,
                  q_b, q_h, q_n, k_b, k_h, k_n, v_b, v_h, v_n, g_b, g_h, g_n, dk_b, dk_h, dk_n, dv_b, dv_h, dv_n,
                  rows_n, columns_n, ds_keys, ds_queries, heads, n_queries, n_keys, first, c, scale, inverse_keep,
                  threshold,
                  BM: tl.constexpr, BN: tl.constexpr, D: tl.constexpr, DROPOUT: tl.constexpr, EVEN_Q: tl.constexpr,
                  EVEN_K: tl.constexpr, TMA: tl.constexpr, PRECISION: tl.constexpr):
    """Program (t, i): dK and dV of the keys 1 + t * BN onwards of (sample, head) first + i, and their rows of ds^T.

    ds: (programs i * ds_keys, ds_queries), the keys - 1 and queries - 1 padded to whole tiles, in the dtype of q.
    The arguments before qp are descriptors when TMA, else pointers.
    """
    bh = tl.program_id(1) + first
    b, h = bh // heads, bh % heads
    column = 1 + tl.program_id(0) * BN
    columns = column + tl.arange(0, BN)
    k_tile = _load_rows(k, k_b, k_h, k_n, b, h, column, n_keys, BN, D, EVEN_K, TMA)
    v_tile = _load_rows(v, v_b, v_h, v_n, b, h, column, n_keys, BN, D, EVEN_K, TMA)
    q_0 = _row_0(qp, q_b, q_h, b, h, D)
    d_out_0 = _row_0(d_out_p, g_b, g_h, b, h, D)
    p_0 = tl.exp2(tl.sum(k_tile.to(tl.float32) * q_0[None, :], 1) * c - tl.load(lse_p + bh * rows_n))
    dp_0 = tl.sum(v_tile.to(tl.float32) * d_out_0[None, :], 1)
    p_0_kept = p_0
    if DROPOUT:
        column_hashes = _load_vector(column_hash, columns_n, bh, column, n_keys, BN, EVEN_K, False)
        p_0_kept = tl.where(column_hashes * tl.load(row_hash_p + bh * rows_n) >= threshold, p_0, 0.0)
    ds_0 = p_0_kept * dp_0 - p_0 * tl.load(delta_p + bh * rows_n)
    tl.store(ds_row_0 + bh * columns_n + columns, ds_0, mask=columns < n_keys)
    dk_acc = ds_0[:, None] * q_0[None, :]
    dv_acc = p_0_kept[:, None] * d_out_0[None, :]
    ds_row = tl.program_id(1) * ds_keys + column - 1
    for row in tl.range(1, n_queries, BM):
        q_tile = _load_rows(q, q_b, q_h, q_n, b, h, row, n_queries, BM, D, EVEN_Q, TMA)
        s_t = tl.dot(k_tile, tl.trans(q_tile), input_precision=PRECISION)
        p_t = tl.exp2(s_t * c - _load_vector(lse, rows_n, bh, row, n_queries, BM, EVEN_Q, TMA)[None, :])
        if not EVEN_K:
            p_t = tl.where((columns < n_keys)[:, None], p_t, 0.0)
        d_out_tile = _load_rows(d_out, g_b, g_h, g_n, b, h, row, n_queries, BM, D, EVEN_Q, TMA)
        dp_t = tl.dot(v_tile, tl.trans(d_out_tile), input_precision=PRECISION)
        deltas = _load_vector(delta, rows_n, bh, row, n_queries, BM, EVEN_Q, TMA)
        if DROPOUT:
            row_hashes = _load_vector(row_hash, rows_n, bh, row, n_queries, BM, EVEN_Q, TMA)
            kept = column_hashes[:, None] * row_hashes[None, :] >= threshold
            p_t_kept = tl.where(kept, p_t, 0.0)
            ds_t = (p_t_kept * dp_t - p_t * deltas[None, :]).to(q_tile.dtype)
        else:
            p_t_kept = p_t
            ds_t = (p_t * (dp_t - deltas[None, :])).to(q_tile.dtype)
        dv_acc = tl.dot(p_t_kept.to(d_out_tile.dtype), d_out_tile, dv_acc, input_precision=PRECISION)
        if TMA:
            ds.store([ds_row, row - 1], ds_t)
        else:
            offsets = (ds_row + tl.arange(0, BN)).to(tl.int64)[:, None] * ds_queries
            tl.store(ds + offsets + (row - 1 + tl.arange(0, BM))[None, :], ds_t)
        dk_acc = tl.dot(ds_t, q_tile, dk_acc, input_precision=PRECISION)
    _store_rows(dk, dk_b, dk_h, dk_n, b, h, column, n_keys, dk_acc * (scale * inverse_keep), BN, D, EVEN_K)
    _store_rows(dv, dv_b, dv_h, dv_n, b, h, column, n_keys, dv_acc * inverse_keep, BN, D, EVEN_K)


@triton.jit
def _dq_kernel(k, ds, kp, ds_row_0, ds_column_0, dk_0, dv_0, dq, dk, dv,
               k_b, k_h, k_n, dq_b, dq_h, dq_n, dk_b, dk_h, dv_b, dv_h, rows_n, columns_n, ds_keys,
               ds_queries, heads, n_queries, n_keys, parts, first, scale, inverse_keep,
               BM: tl.constexpr, BN: tl.constexpr, D: tl.constexpr, EVEN_Q: tl.constexpr, EVEN_K: tl.constexpr,
               TMA: tl.constexpr, PRECISION: tl.constexpr):
    """Program (t, i) of (sample, head) first + i: t = 0 is dQ_0, dK_0 and dV_0, t > 0 the tile dQ = ds K."""
    i = tl.program_id(1)
    bh = i + first
    b, h = bh // heads, bh % heads
    if tl.program_id(0) == 0:
        lanes = tl.arange(0, D)
        acc_0 = tl.zeros([64, D], tl.float32)
        for column in tl.range(1, n_keys, 64):
            weights_0 = _load_vector(ds_row_0, columns_n, bh, column, n_keys, 64, False, False)
            acc_0 += weights_0[:, None] * _load_rows(kp, k_b, k_h, k_n, b, h, column, n_keys, 64, D, False, False)
        dq_0 = tl.sum(acc_0, 0) + tl.load(ds_column_0 + bh * rows_n) * _row_0(kp, k_b, k_h, b, h, D)
        dk_sum = tl.zeros([D], tl.float32)
        dv_sum = tl.zeros([D], tl.float32)
        for part in tl.range(0, parts):
            dk_sum += tl.load(dk_0 + (bh * parts + part) * D + lanes)
            dv_sum += tl.load(dv_0 + (bh * parts + part) * D + lanes)
        wide = b.to(tl.int64)
        tl.store(dq + wide * dq_b + h * dq_h + lanes, (dq_0 * (scale * inverse_keep)).to(dq.dtype.element_ty))
        tl.store(dk + wide * dk_b + h * dk_h + lanes, (dk_sum * (scale * inverse_keep)).to(dk.dtype.element_ty))
        tl.store(dv + wide * dv_b + h * dv_h + lanes, (dv_sum * inverse_keep).to(dv.dtype.element_ty))
    else:
        row = 1 + (tl.program_id(0) - 1) * BM
        weights = _load_vector(ds_column_0, rows_n, bh, row, n_queries, BM, EVEN_Q, False)
        acc = weights[:, None] * _row_0(kp, k_b, k_h, b, h, D)[None, :]
        for column in tl.range(1, n_keys, BN):
            ds_row = i * ds_keys + column - 1
            if TMA:
                ds_t = ds.load([ds_row, row - 1])
            else:
                offsets = (ds_row + tl.arange(0, BN)).to(tl.int64)[:, None] * ds_queries
                ds_t = tl.load(ds + offsets + (row - 1 + tl.arange(0, BM))[None, :])
            k_tile = _load_rows(k, k_b, k_h, k_n, b, h, column, n_keys, BN, D, EVEN_K, TMA)
            acc = tl.dot(tl.trans(ds_t), k_tile, acc, input_precision=PRECISION)
        _store_rows(dq, dq_b, dq_h, dq_n, b, h, row, n_queries, acc * (scale * inverse_keep), BM, D, EVEN_Q)


# ---------------------------------------------------------------- dropout hashes

@triton.jit
def _mix(x):
    x ^= x >> 16
    x *= 0x85EBCA6B
    x ^= x >> 13
    x *= 0xC2B2AE35
    return x ^ (x >> 16)


@triton.jit
def _hash_kernel(seed, rows, row_hash, column_hash, rows_n, columns_n, heads, n_rows, n_columns, HAS_ROWS: tl.constexpr,
                 BLOCK: tl.constexpr):
    """Program (t, bh, stream): stream 0 hashes rows, 1 columns; the twin of attention._hash."""
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
        tl.store(row_hash + bh * rows_n + index, x, mask=index < n)
    else:
        tl.store(column_hash + bh * columns_n + index, x, mask=index < n)
