"""The parts of benchmark.py, at a size that says nothing of speed."""

import json
import multiprocessing
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import step


@pytest.fixture(scope="module")
def steps():
    """precision -> a running `benchmark.py step`, both at the same time."""
    command = [sys.executable, "benchmark.py", "step", "--device", "cpu", "--batch-size", "1", "--sides", "stock"]
    command += ["--threads", "1", "--repeats", "1", "--json", "--precision"]
    pipes = {"cwd": Path(__file__).parent.parent, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return {precision: subprocess.Popen([*command, precision], **pipes) for precision in ("fp32", "bf16")}


@pytest.mark.slow
@pytest.mark.parametrize("precision, factor", [("fp32", 1.5), ("bf16", 2.0)])
def test_a_step_is_as_accurate_as_stock_pytorchs(steps, precision, factor):
    """The median over the parameters of the error of a gradient from float64, beside that of the stock network."""
    stdout, stderr = steps[precision].communicate()
    assert steps[precision].returncode == 0, stderr[-2000:]
    tasks = json.loads(stdout)["tasks"]
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
