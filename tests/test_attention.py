"""Attention against PyTorch's own operations in float64, within the rounding errors of its arithmetic, and against
its mask.

Every test runs on whichever path this process has: the Triton kernels on a GPU (TEST_GPU=1) or in Triton's interpreter
(TRITON_INTERPRET=1); the PyTorch path elsewhere. Where it is the PyTorch path, the last test runs the file once more in
the interpreter.
"""

import math
import os
import subprocess
import sys
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from scipy import stats

from kernels import attention as module
from kernels import attention_launch
from kernels.attention import attention, keep_probability
from prepared import dropout_mask

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
PATH = "triton" if attention_launch.runs_on(torch.empty(1, device=DEVICE)) else "torch"
DTYPES = [torch.float32, torch.float16, torch.bfloat16]
LENGTHS = [1, 2, 15, 16, 17, 63, 64, 65]
on_triton = pytest.mark.skipif(PATH != "triton", reason="about the Triton kernels")


def draw(batch, heads, n_queries, n_keys, d, dtype, strides="heads first", random=0):
    """q, k, v, the gradient of the output, seeds; strides: "heads first", "packed" (of equal lengths) or "sliced"."""
    torch.manual_seed(random)
    if strides == "packed":
        tensors = torch.randn(batch, n_keys, 3, heads, d, device=DEVICE).to(dtype).transpose(1, 3).unbind(2)
    else:
        extra = 3 if strides == "sliced" else 0
        tensors = [
            torch.randn(batch, heads, n, d + extra, device=DEVICE).to(dtype)[..., extra:]
            for n in (n_queries, n_keys, n_keys)
        ]
    gradient = torch.randn(batch, n_queries, heads, d, device=DEVICE).to(dtype).transpose(1, 2)
    return *(x.detach().requires_grad_() for x in tensors), gradient, torch.randint(2**62, (batch,), device=DEVICE)


def ours(q, k, v, gradient, p, seed, rows=None):
    out = attention(q, k, v, p, seed, rows)
    return out.detach(), *torch.autograd.grad(out, (q, k, v), gradient)


def exact(q, k, v, gradient, mask, p):
    """Output and gradients by PyTorch's separate operations in float64."""
    q, k, v = (x.detach().double().requires_grad_() for x in (q, k, v))
    weights = torch.softmax(q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1]), -1)
    out = (weights * mask / keep_probability(p)) @ v
    return out.detach(), *torch.autograd.grad(out, (q, k, v), gradient.double())


def rounding_errors(q, k, v, gradient, mask, p):
    """The largest errors of output and gradients, element by element, that the arithmetic allows.

    A sum of n products in float32, in any order, is off by at most (n + 2) 2^-24 times the sum of their magnitudes;
    what is stored in the inputs' dtype by at most `u` of itself, or by `tiny` where it is subnormal. The exponential
    turns the error of a logit into a relative error of its weight, and so does the sum of its row: twice that error.
    """
    u, sums = torch.finfo(q.dtype).eps / 2, 2.0**-24
    tiny = torch.finfo(q.dtype).tiny * torch.finfo(q.dtype).eps
    in_logits = 2 * u if PATH == "torch" and q.dtype == torch.bfloat16 else sums  # q / sqrt(d) and the logit are stored
    q, k, v, gradient = (x.detach().double() for x in (q, k, v, gradient))
    (n_queries, d), n_keys, scale = q.shape[-2:], k.shape[-2], q.shape[-1] ** -0.5
    weights, mask = torch.softmax(q @ k.mT * scale, -1), mask / keep_probability(p)
    logit_error = (q.abs() @ k.abs().mT * scale * ((d + 2) * sums + in_logits)).amax(-1, keepdim=True)
    weight_error = (weights * torch.expm1(2 * logit_error + (n_keys + 8) * sums + 2 * u)).clamp(max=1.0) + tiny
    out, kept = (weights * mask) @ v, weights * mask
    out_error = (mask * weight_error + kept * (n_keys + 2) * sums) @ v.abs() + u * out.abs() + tiny

    d_kept, delta = mask * (gradient @ v.mT), (gradient * out).sum(-1, keepdim=True)
    d_kept_error = mask * (gradient.abs() @ v.abs().mT) * ((d + 2) * sums + u)
    delta_error = (gradient.abs() * (out_error + out.abs() * ((d + 2) * sums + 3 * u))).sum(-1, keepdim=True)
    ds, size = weights * (d_kept - delta), d_kept.abs() + delta.abs()
    ds_error = weight_error * size + (weights + weight_error) * (d_kept_error + delta_error + 3 * u * size) + tiny
    dq, dk, dv = ds @ k * scale, ds.mT @ q * scale, kept.mT @ gradient
    dq_error = (ds_error + ds.abs() * (n_keys + 2) * sums) @ k.abs() * scale + 2 * u * dq.abs() + tiny
    dk_error = (ds_error + ds.abs() * (n_queries + 2) * sums).mT @ q.abs() * scale + 2 * u * dk.abs() + tiny
    dv_error = (mask * weight_error + kept * (n_queries + 2) * sums).mT @ gradient.abs() + 2 * u * dv.abs() + tiny
    return out_error, dq_error, dk_error, dv_error


def expected(q, k, v, gradient, p, seed, rows=None):
    """{what: (its exact value, its largest error)} of the output and the gradients."""
    mask = dropout_mask(seed, q.shape[1], q.shape[2] if rows is None else rows, k.shape[2], p)
    inputs = q, k, v, gradient, mask, p
    return dict(zip(("out", "dq", "dk", "dv"), zip(exact(*inputs), rounding_errors(*inputs))))


def assert_within(found, value, largest_error, name):
    assert found.shape == value.shape
    excess = ((found - value).abs() / largest_error).max()
    assert excess <= 1, f"{name}: {excess:.2f} times the largest error that rounding explains"  # NaN fails too


def assert_exact_but_for_rounding(q, k, v, gradient, p, seed, rows=None):
    values = expected(q, k, v, gradient, p, seed, rows)
    for found, (name, (value, largest_error)) in zip(ours(q, k, v, gradient, p, seed, rows), values.items()):
        assert found.dtype == q.dtype
        assert_within(found, value, largest_error, name)


@settings(
    max_examples=40 if PATH == "torch" else 16,
    deadline=None,
    derandomize=True,
    phases=[Phase.generate],
    suppress_health_check=[HealthCheck.too_slow],
)
@given(st.data())
def test_output_and_gradients_match_float64(data):
    n_keys = data.draw(st.sampled_from(LENGTHS), "keys")
    strides = data.draw(st.sampled_from(["heads first", "packed", "sliced"]), "strides")
    n_queries = n_keys if strides == "packed" else data.draw(st.sampled_from(LENGTHS), "queries")
    batch, heads = data.draw(st.integers(1, 3), "batch"), data.draw(st.integers(1, 3), "heads")
    d = data.draw(st.sampled_from([16, 24, 32, 64, 128]), "head size")
    p = data.draw(st.sampled_from([0.0, 0.1, 0.5]), "p")
    dtype = data.draw(st.sampled_from(DTYPES), "dtype")
    q, k, v, gradient, seed = draw(batch, heads, n_queries, n_keys, d, dtype, strides)
    assert_exact_but_for_rounding(q, k, v, gradient, p, seed)
    assert attention.last_path == PATH


@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("p", [0.0, 0.1, 0.5])
@pytest.mark.parametrize("lengths", [(127, 257), (128, 129), (129, 128), (257, 257), (1, 257), (257, 1)])
def test_longer_sequences_match_float64(lengths, p, dtype):
    q, k, v, gradient, seed = draw(1, 2, *lengths, 64, dtype)
    assert_exact_but_for_rounding(q, k, v, gradient, p, seed)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES if DEVICE == "cuda" else [torch.float32], ids=str)
@pytest.mark.parametrize("p", [0.0, 0.1, 0.125] if DEVICE == "cuda" else [0.1])
def test_the_papers_length_matches_float64(p, dtype):
    q, k, v, gradient, seed = draw(2 if DEVICE == "cuda" else 1, 2, 1281, 1281, 128, dtype, "packed")
    assert_exact_but_for_rounding(q, k, v, gradient, p, seed)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_extreme_logits_match_float64(dtype):
    q, k, v, gradient, seed = draw(1, 2, 33, 33, 16, dtype)
    size = (1e3 * math.sqrt(16) / (q @ k.transpose(-1, -2)).abs().max().item()) ** 0.5
    q, k = ((x.detach() * size).requires_grad_() for x in (q, k))  # the largest logit is 1000 or -1000
    assert_exact_but_for_rounding(q, k, v, gradient, 0.1, seed)


def test_every_element_is_written(monkeypatch):
    """Memory from the allocator is NaN here, so that an element never written fails."""
    monkeypatch.setattr(torch.utils.deterministic, "fill_uninitialized_memory", True)
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        assert torch.empty(3, device=DEVICE).new_empty(3).isnan().all()
        for lengths in ((1, 1), (1, 70), (70, 1), (66, 70)):
            q, k, v, gradient, seed = draw(2, 2, *lengths, 24, torch.float32)
            assert_exact_but_for_rounding(q, k, v, gradient, 0.1, seed)
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.mark.skipif(PATH != "torch", reason="float64 is the PyTorch path's")
def test_gradients_match_finite_differences():
    q, k, v, _, seed = draw(2, 2, 5, 7, 3, torch.float64)
    assert torch.autograd.gradcheck(lambda *x: attention(*x, 0.3, seed), (q, k, v))


@on_triton
def test_backward_in_parts_is_the_same(monkeypatch):
    inputs = draw(5, 2, 40, 40, 16, torch.float32)
    whole = ours(*inputs[:4], 0.1, inputs[4])
    monkeypatch.setattr(attention_launch, "SCRATCH_BYTES", 2 * 2 * 64 * 128 * 4)  # two samples at a time
    assert all(torch.equal(x, y) for x, y in zip(ours(*inputs[:4], 0.1, inputs[4]), whole))


def test_runs_repeat_bit_for_bit():
    inputs = draw(2, 2, 65, 65, 32, torch.float16)
    first, second = (ours(*inputs[:4], 0.1, inputs[4]) for _ in range(2))
    assert all(torch.equal(x, y) for x, y in zip(first, second))


def independent_mask(seed, head, rows, columns, p):
    """One head's mask, written again in NumPy from the definition in kernels/README.md."""

    def mix(x):
        for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35), (16, 1)):
            x = (x ^ (x >> np.uint32(shift))) * np.uint32(factor)
        return x

    def hashes(stream, positions):
        x = np.full(len(positions), 0x9E3779B9, np.uint32)
        for word in (2 * head + stream, seed >> 32, seed & 0xFFFFFFFF, positions):
            x = mix(x ^ np.asarray(word, np.uint64).astype(np.uint32))
        return x | np.uint32(1)

    return np.multiply.outer(hashes(0, rows), hashes(1, columns)).view(np.int32) >= round(p * 2**32) - 2**31


def test_mask_is_the_documented_one():
    seeds = torch.tensor([0, 1, 2**62 + 12345, 77])
    rows = torch.tensor([[5, 0, 1280], [9, 9, 3], [0, 1, 2], [4, 3, 2]])
    mask = dropout_mask(seeds, 3, rows, 50, 0.1)
    for b, seed in enumerate(seeds.tolist()):
        for head in range(3):
            expected = independent_mask(seed, head, rows[b].numpy(), np.arange(50), 0.1)
            assert np.array_equal(mask[b, head].numpy(), expected)


@on_triton
def test_kernel_hashes_are_the_masks():
    seed = torch.randint(-(2**63), 2**63 - 1, (3,), device=DEVICE)
    rows = torch.randint(1281, (3, 50), device=DEVICE)
    rows[1, 40:] = -1
    for chosen in (None, rows, rows.int()):
        pairs = zip(attention_launch.hashes(seed, 4, 50, 77, chosen), module._hashes(seed, 4, 50, 77, chosen))
        assert all(torch.equal(x, y) for x, y in pairs)


def test_samples_may_ask_for_fewer_rows_than_others():
    q, k, v, gradient, seed = draw(3, 2, 40, 65, 16, torch.float32)
    rows, sizes = torch.randint(65, (3, 40), device=DEVICE), (40, 0, 17)
    for b, size in enumerate(sizes):
        rows[b, size:], gradient[b, :, size:] = -1, 0.0
    together = ours(q, k, v, gradient, 0.4, seed, rows)
    for b, size in enumerate(sizes):
        if not size:
            assert all((x[b] == 0).all() for x in together[1:])
            continue
        q_b, k_b, v_b = (x[b : b + 1].detach().requires_grad_() for x in (q[:, :, :size], k, v))
        alone = expected(q_b, k_b, v_b, gradient[b : b + 1, :, :size], 0.4, seed[b : b + 1], rows[b : b + 1, :size])
        for found, (name, (value, largest_error)) in zip(together, alone.items()):
            assert_within(found[b : b + 1, :, : value.shape[2]], value, largest_error, f"{name} of sample {b}")


@on_triton
@pytest.mark.parametrize("bm, bn", [(16, 64), (64, 32)])
def test_the_mask_does_not_depend_on_the_tiles(monkeypatch, bm, bn):
    inputs = draw(1, 2, 70, 70, 32, torch.float16)
    tile = dict(BM=bm, BN=bn, num_warps=4, num_stages=1)
    monkeypatch.setattr(attention_launch, "_tiles", lambda q: dict(forward=tile, dk_dv=tile, dq=tile))
    assert_exact_but_for_rounding(*inputs[:4], 0.3, inputs[4])


@pytest.mark.parametrize("p", [0.01, 0.1, 0.125, 0.5, 0.9])
def test_keep_rate_lies_in_its_binomial_interval(p):
    assert keep_probability(p) == pytest.approx(1 - p, abs=2**-32)
    kept = dropout_mask(torch.arange(8), 4, 257, 1281, p)
    assert stats.binomtest(int(kept.sum()), kept.numel(), keep_probability(p)).pvalue > 1e-3
    for axis in (-1, -2):  # no row and no column keeps more or less than chance would have it
        counts = kept.sum(axis).flatten()
        spread = kept.shape[axis] * p * (1 - p)
        chi_square = float(((counts - kept.shape[axis] * (1 - p)) ** 2).sum() / spread)
        assert 1e-3 < stats.chi2(counts.numel()).cdf(chi_square) < 1 - 1e-3


def test_masks_of_heads_samples_layers_and_steps_are_independent():
    """Any two masks agree as often as chance has it; so do the four corners of any rectangle within one mask."""
    seeds = torch.tensor([0, 1, 2, 2**32, 2**32 + 1, 2**61])  # neighbours in either half, as counters would give
    masks = dropout_mask(seeds, 2, 128, 129, 0.1).flatten(0, 1).flatten(1).double()
    both = torch.tensor([[int((x + y == 0).sum()) for y in masks] for x in masks])  # dropped in both
    pairs = both[torch.triu_indices(12, 12, 1).unbind()]
    expected = masks.shape[1] * 0.01
    chi_square = float(((pairs - expected) ** 2).sum() / (expected * 0.99))
    assert 1e-3 < stats.chi2(len(pairs)).cdf(chi_square) < 1 - 1e-3
    signs = (dropout_mask(torch.tensor([9]), 1, 1280, 1280, 0.1)[0, 0].double() - 0.9) / 0.3
    signs = signs[torch.randperm(1280, generator=torch.manual_seed(0))]
    corners = signs[::2, ::2] * signs[::2, 1::2] * signs[1::2, ::2] * signs[1::2, 1::2]
    assert abs(float(corners.sum()) / corners.numel() ** 0.5) < 4


@pytest.mark.slow
@pytest.mark.parametrize("p", [0.0, 0.2])
@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_compiles_without_a_graph_break(backend, p):
    q, k, v, gradient, seed = draw(2, 2, 17, 17, 16, torch.float32)
    compiled = torch.compile(lambda q, k, v, seed: attention(q, k, v, p, seed) * 2, fullgraph=True, backend=backend)
    out = compiled(q, k, v, seed)
    found = out, *torch.autograd.grad(out, (q, k, v), gradient)
    for x, (name, bounds) in zip(found, expected(q, k, v, gradient, p, seed).items()):
        assert_within(x, *(2 * bound for bound in bounds), name)


@pytest.mark.slow
@pytest.mark.parametrize("p", [0.0, 0.2])
def test_operator_keeps_pytorchs_contract(p):
    q, k, v, _, seed = draw(2, 2, 9, 9, 16, torch.float32)
    hashes = torch.ops.kernels.dropout_hashes(seed, 2, 9, 9, None) if p else (None, None)
    torch.library.opcheck(torch.ops.kernels.attention.default, (q, k, v, *hashes, p))
    torch.library.opcheck(torch.ops.kernels.dropout_hashes.default, (seed, 2, 9, 9, None))


def test_autocast_lowers_the_precision_but_not_of_float64():
    q, k, v, _, seed = draw(1, 2, 9, 9, 16, torch.float32)
    with torch.autocast(DEVICE, torch.bfloat16):
        assert attention(q, k, v, 0.1, seed).dtype == torch.bfloat16
        assert attention(q.double(), k.double(), v.double(), 0.1, seed).dtype == torch.float64
    assert attention(q, k, v, 0.1, seed).dtype == torch.float32


FITS = dict(zip("qkv", torch.zeros(3, 1, 2, 5, 16)), dropout_p=0.1, seed=torch.zeros(1, dtype=torch.int64))


@pytest.mark.parametrize(
    "change, words",
    [
        ({"k": torch.zeros(1, 2, 5, 8)}, "expected q"),
        ({"q": torch.zeros(1, 2, 0, 16)}, "empty"),
        ({"v": torch.zeros(1, 2, 5, 16, dtype=torch.float16)}, "share one floating dtype"),
        ({"dropout_p": 1.0}, r"in \[0, 1\)"),
        ({"seed": None}, "needs seed"),
        ({"seed": torch.zeros(2, dtype=torch.int64)}, "needs seed"),
        ({"rows": torch.zeros(1, 4, dtype=torch.int32)}, "rows must be"),
    ],
)
def test_what_does_not_fit_is_refused(change, words):
    with pytest.raises(ValueError, match=words):
        attention(**{**FITS, **change})


@pytest.mark.slow
@pytest.mark.skipif(PATH == "triton", reason="this process has the Triton kernels already")
@pytest.mark.parametrize("which", ["not slow", "slow"])
def test_in_the_interpreter(tmp_path, which):
    """Run this file once more. What torch.compile has kept of the PyTorch path would not fit: hence a folder of its
    own."""
    pytest.importorskip("triton")
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "-m", which, __file__]
    own = {"TRITON_INTERPRET": "1", "TORCHINDUCTOR_CACHE_DIR": str(tmp_path)}
    done = subprocess.run(command, env={**os.environ, **own}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-1000:]
