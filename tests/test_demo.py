"""The whole method, from simulated recordings to the table, for several cohorts: some minutes each on two cores; and
how demo.sh and test.sh set themselves up."""

import json
import os
import shutil
import subprocess
import sys

import pytest

from prepared import ROOT


def table(seed, effect) -> dict:
    """Run the demo, or what of it was not run before, and read its table."""
    subprocess.run(["bash", "demo.sh", str(seed), str(effect)], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    run = f"runs/demo-seed{seed}-effect{effect}"
    command = [".venv/bin/python", "evaluate.py", "--run", run, "--json"]
    return json.loads(subprocess.run(command, cwd=ROOT, check=True, capture_output=True).stdout)["runs"][0]["table"]


@pytest.mark.slow
@pytest.mark.heavy
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_fusion_finds_what_was_simulated(seed):
    rows = table(seed, 1)
    for target in ("arousal", "valence"):
        eeg, ecg, fused = (rows[name][target]["f1"]["mean"] for name in ("EEG", "ECG", "Fused"))
        assert 0.70 <= fused <= 0.98, target
        assert fused >= max(eeg, ecg) - 0.05, target
        # Tables 1 and 3 are filled.
        for name in ("EEG", "EEG, no pre-training", "Fused", "Fused, no pre-training"):
            assert rows[name][target]["missing"] == [], name


@pytest.mark.slow
@pytest.mark.heavy
def test_without_an_effect_nothing_is_above_chance():
    for name, row in table(0, 0).items():
        for target, summary in row.items():
            # By drawing people: the t-interval over three folds is too narrow for two dozen models to pass at once.
            assert name == "Video prior" or summary["auroc"]["bootstrap"][0] <= 0.5, (name, target)


@pytest.mark.parametrize("name", ["demo.sh", "test.sh"])
@pytest.mark.parametrize("version", ["3.10.13", "2.7.18", None])
def test_an_old_python_ends_in_one_line(tmp_path, name, version):
    for file in (name, "requirements.txt"):
        shutil.copy(ROOT / file, tmp_path)
    # It runs this Python, which says that it is another one.
    python = tmp_path / "python"
    if version:
        number = tuple(map(int, version.split(".")))
        old = f"import sys; sys.version, sys.version_info = '{version} (old)', {number}"
        python.write_text(f'#!/bin/sh\nshift\nexec {sys.executable} -c "{old}\n$1"\n')
        python.chmod(0o755)
    environment = {**os.environ, "PYTHON": str(python)}
    finished = subprocess.run(["bash", tmp_path / name], env=environment, capture_output=True, text=True)
    assert finished.returncode == 2 and finished.stdout == ""
    (said,) = finished.stderr.splitlines()
    expected = f"{name}: expected Python 3.11 or later as {python}, found {version or 'none'}; call PYTHON="
    assert said.startswith(expected)
    assert not (tmp_path / ".venv").exists()
