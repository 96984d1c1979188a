"""Plant faults in the attention kernels, one at a time, and see that the tests notice every one.

    python tests/attention_mutants.py

Works on a copy of kernels/ and tests/test_attention.py; the kernels run in Triton's interpreter.
"""
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
KERNELS, LAUNCH, REFERENCE = "attention_triton.py", "attention_launch.py", "attention.py"
CHOSEN = ("match_float64 or exported or documented or kernel_hashes or extreme or some_rows or anywhere or parts"
          " or every_element")

# what is wrong, file, text, text in its place; every occurrence is replaced
MUTANTS = [
    ("logits not scaled by the head size", LAUNCH, "c = math.log2(math.e) / math.sqrt(d)", "c = math.log2(math.e)"),
    ("gradient scale forgotten in dQ", KERNELS, "n_queries, acc * (scale * inverse_keep), BM",
     "n_queries, acc * inverse_keep, BM"),
    ("key 0 left out of the forward pass", KERNELS, "total = tl.full([BM], 1.0, tl.float32)",
     "total = tl.full([BM], 0.0, tl.float32)"),
    ("key 0 left out of dQ", KERNELS, "acc = weights[:, None] * _load_0", "acc = 0.0 * weights[:, None] * _load_0"),
    ("query 0 left out of dK", KERNELS, "dk_acc = ds_0[:, None]", "dk_acc = 0.0 * ds_0[:, None]"),
    ("query 0 left out of dV", KERNELS, "dv_acc = p_0_kept[:, None]", "dv_acc = 0.0 * p_0_kept[:, None]"),
    ("query 0 never computed", KERNELS, "tl.store(out + b.to(tl.int64)", "tl.store(out + 0 * b.to(tl.int64)"),
    ("tail of the keys one too long", KERNELS, "(key + tl.arange(0, BN) < n_keys)[None, :]",
     "(key + tl.arange(0, BN) <= n_keys)[None, :]"),
    ("tail of query 0's keys one too short", KERNELS, "s = tl.where(keys < n_keys, tl.sum(",
     "s = tl.where(keys < n_keys - 1, tl.sum("),
    ("mask of another head in the backward pass", KERNELS,
     "row_hashes = _load_vector(row_hash, row_bh, bh,", "row_hashes = _load_vector(row_hash, row_bh, bh // 2 * 2,"),
    ("mask moved by one column in the forward pass", KERNELS,
     "column_hashes = _load_vector(column_hash, column_bh, bh, key,",
     "column_hashes = _load_vector(column_hash, column_bh, bh, tl.maximum(key - 4, 1),"),
    ("rescale missing in the forward pass", KERNELS, "acc * (inverse_keep / total)[:, None]", "acc / total[:, None]"),
    ("rescale by the wrong probability", REFERENCE, "return 1.0 - round(p * 2**32) / 2**32", "return 1.0 - p / 2"),
    ("delta without dropout", KERNELS, "sums = tl.sum(d_out_tile * out_tile, 1) * keep",
     "sums = tl.sum(d_out_tile * out_tile, 1)"),
    ("log-sum-exp to the base e", KERNELS, "m + tl.log2(total)", "(m + tl.log2(total)) * 0.6931471805599453"),
    ("strides of a row and a head swapped", KERNELS, "h * stride_h + tokens[:, None] * stride_n",
     "h * stride_n + tokens[:, None] * stride_h"),
    ("dK and dV swapped", REFERENCE, "              *gradients)\n    return gradients",
     "              *gradients)\n    return gradients[0], gradients[2], gradients[1]"),
    ("the last part of the batch left out", LAUNCH, "range(0, batch, samples)", "range(0, batch, samples)[:-1] or [0]"),
    ("rows ignored", REFERENCE, "k.shape[2], rows)\n    return", "k.shape[2], None)\n    return"),
    ("hash of the high half of the seed left out", KERNELS, "x = _mix(x ^ (s >> 32).to(tl.uint32))", "x = _mix(x)"),
]


def tests_pass(folder):
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-m", "not slow", "-p", "no:cacheprovider", "-k", CHOSEN,
               "tests/test_attention.py"]
    return subprocess.run(command, cwd=folder, env={**os.environ, "TRITON_INTERPRET": "1"},
                          capture_output=True).returncode == 0


def main():
    survivors = []
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        (folder / "tests").mkdir()
        shutil.copy(ROOT / "tests" / "test_attention.py", folder / "tests")
        shutil.copy(ROOT / "pytest.ini", folder)
        shutil.copytree(ROOT / "kernels", folder / "kernels")
        if not tests_pass(folder):
            sys.exit("the tests fail before anything is planted")
        for fault, name, text, planted in MUTANTS:
            path = folder / "kernels" / name
            whole = path.read_text()
            if text not in whole:
                sys.exit(f"{name} no longer holds what {fault!r} would change: {text}")
            path.write_text(whole.replace(text, planted))
            noticed = not tests_pass(folder)
            path.write_text(whole)
            print("noticed " if noticed else "SURVIVED", fault, flush=True)
            survivors += [] if noticed else [fault]
    sys.exit(f"{len(survivors)} of {len(MUTANTS)} survived" if survivors else 0)


if __name__ == "__main__":
    main()
