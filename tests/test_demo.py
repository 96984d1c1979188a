"""The whole method, from simulated recordings to the table, for several cohorts: some minutes each on two cores."""

import json
import subprocess

import pytest

from prepared import ROOT

pytestmark = [pytest.mark.slow, pytest.mark.heavy]


def table(seed, effect) -> dict:
    """Run the demo, or what of it was not run before, and read its table."""
    subprocess.run(["bash", "demo.sh", str(seed), str(effect)], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    run = f"runs/demo-seed{seed}-effect{effect}"
    command = [".venv/bin/python", "evaluate.py", "--run", run, "--json"]
    return json.loads(subprocess.run(command, cwd=ROOT, check=True, capture_output=True).stdout)["runs"][0]["table"]


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_fusion_finds_what_was_simulated(seed):
    rows = table(seed, 1)
    for target in ("arousal", "valence"):
        eeg, ecg, fused = (rows[name][target]["f1"]["mean"] for name in ("EEG", "ECG", "Fused"))
        assert 0.70 <= fused <= 0.98, target
        assert fused >= max(eeg, ecg) - 0.05, target
        assert rows["Fused"][target]["missing"] == []


def test_without_an_effect_nothing_is_above_chance():
    for name, row in table(0, 0).items():
        for target, summary in row.items():
            auroc = summary["auroc"]
            assert name == "Video prior" or auroc["mean"] - auroc["interval"] <= 0.5, (name, target)
