"""The parts of benchmark.py, at a size that says nothing of speed."""

import json
import multiprocessing
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarking import step


@pytest.mark.slow
@pytest.mark.parametrize("precision, factor", [("fp32", 1.5), ("bf16", 2.0)])
def test_a_step_is_as_accurate_as_stock_pytorchs(precision, factor):
    """The median over the parameters of the error of a gradient from float64, beside that of the stock network."""
    command = [sys.executable, "benchmark.py", "step", "--device", "cpu", "--precision", precision, "--batch-size", "1"]
    command += ["--sides", "stock", "--threads", "1", "--repeats", "1", "--json"]
    done = subprocess.run(command, cwd=Path(__file__).parent.parent, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    tasks = json.loads(done.stdout)["tasks"]
    assert list(tasks) == ["pre-training", "fine-tuning"]
    for rows in tasks.values():
        assert rows["ours"]["seconds"] > 0 and rows["stock"]["samples_per_s"] > 0
        assert 1 < factor * rows["stock"]["gradient_error_to_ours"] < 1000


def test_a_side_whose_process_failed_is_named():
    pipe, end = multiprocessing.Pipe()
    end.send(1.0)
    end.close()
    assert step.answer("compiled", pipe) == 1.0
    with pytest.raises(ValueError, match="--sides compiled: its process failed"):
        step.answer("compiled", pipe)
