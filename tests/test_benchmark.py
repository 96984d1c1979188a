"""The parts of benchmark.py at a size that says nothing of speed, and the accuracy of the network that they measure."""

import statistics

import edfio
import numpy as np
import pytest
import torch

from benchmarks import step
from benchmarks.preparation import LABELS, write_recordings
from prepared import ROOT, done
from recordings import EEG, edf_signal, write_edf


@pytest.mark.slow
def test_a_step_of_each_side_is_measured():
    flags = "step --device cpu --batch-size 1 --sides stock --threads 1 --repeats 1".split()
    lines = [line.split(" | ") for line in done("benchmark.py", *flags, cwd=ROOT).splitlines()[3:]]
    assert [line[:2] for line in lines] == [[f"| {task}", side] for task in step.TASKS for side in ("ours", "stock")]
    assert all(float(number.strip("| ")) > 0 for line in lines for number in line[2:])


@pytest.mark.slow
def test_preparation_is_measured_beside_mne_and_of_long_and_many(tmp_path):
    pytest.importorskip("mne")
    write_edf(tmp_path / "S001R01.edf", edf_signal(0, 12, 160)[:10], LABELS["bci2000"], 160)
    flags = f"prepare --raw {tmp_path} --dataset bci2000 --repeats 1 --hours 0.05 --files 3".split()
    lines = done("benchmark.py", *flags, cwd=ROOT).splitlines()
    rows = [line.strip("| ").split(" | ") for line in lines if "|" in line]
    names = [row[0] for row in rows]
    assert "0.05 h of 11 channels at 512 Hz, one worker" in names and "3 ECGs of 30 s at 300 Hz, 2 workers" in names
    [long] = [row for row in rows if row[0].startswith("0.05 h")]
    assert 50 < float(long[1]) < 500 and float(long[2]) == pytest.approx(float(long[1]) / 2.03, rel=0.02)


def test_a_long_recording_of_the_benchmark_is_what_its_header_says(tmp_path):
    """180 s of 11 channels at 256 Hz are 1.01 MB: a minute three times, as edfio reads it."""
    assert write_recordings(tmp_path / "raw", 2, 180, 256, ("eeg", "ecg")) == 2 * (256 * 12 + 180 * 11 * 256 * 2)
    edf = edfio.read_edf(tmp_path / "raw" / "1.edf")
    assert edf.duration == 180 and edf.labels == (*EEG, "ECG")
    for signal in edf.signals:
        np.testing.assert_array_equal(*signal.digital[: 120 * 256].reshape(2, -1))


def gradients(side, task, precision, seed):
    """{parameter: its gradient} of two segments, without dropout."""
    model = step.build(side, 0.0).to(torch.float64 if precision == "fp64" else torch.float32)
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
        loss = step.Noise(2, "cpu", seed).loss(model, task)
    loss.backward()
    return {name: x.grad.double() for name, x in model.named_parameters() if x.grad is not None}


@pytest.mark.slow
@pytest.mark.parametrize("task", step.TASKS)
def test_a_gradient_is_as_accurate_as_stock_pytorchs(task):
    """The error from float64, relative to the norm: the least over four batches, as one ReLU on the other side of zero
    multiplies the error of a batch by hundreds, on either side, and then the median over the parameters. Sums in
    another order err by another amount, but not by more than a factor of two."""
    exact = [gradients("stock", task, "fp64", seed) for seed in range(4)]
    for precision in ("fp32", "bf16"):
        try:
            gradients("stock", task, precision, 0)
        except RuntimeError as error:
            assert precision == "bf16" and "avx512" in str(error)
            pytest.skip("PyTorch's own bfloat16 attention fails on a processor that is told to leave out AVX-512")
        errors = {"ours": [], "stock": []}
        for side, batches in errors.items():
            for seed, true in enumerate(exact):
                found = gradients(side, task, precision, seed)
                batches.append({name: ((found[name] - x).norm() / x.norm()).item() for name, x in true.items()})
        ours, stock = ([min(batch[name] for batch in each) for name in exact[0]] for each in errors.values())
        assert 1 < 2 * statistics.median(a / b for a, b in zip(stock, ours)) < 1000
