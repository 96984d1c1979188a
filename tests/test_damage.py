"""Damaged files of every format: a hundred a format in the slow tests, 2,000 in the heavy ones. See damage.py."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
MAT = ("mat-amigos", "mat-way", "mat-kaya", "mat-ascertain", "mat-dreamer", "mat-pspm")
FORMATS = {**dict.fromkeys(("edf", "bdf", "wfdb", "hdf5-pspm"), 1), **dict.fromkeys(MAT, len(MAT))}  # layouts of each
NEEDS = {"wfdb": "wfdb", "hdf5-pspm": "h5py"}


def campaign(layout, count, seed, folder, *command):
    if layout in NEEDS:
        pytest.importorskip(NEEDS[layout])
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(HERE), str(HERE.parent)])}
    flags = [layout, str(count), str(seed), str(folder), *command]
    run = subprocess.run([sys.executable, HERE / "damage.py", *flags], capture_output=True, text=True, env=environment)
    assert run.returncode == 0, f"{run.stdout[-500:]}\n{run.stderr[-3000:]}"
    print(run.stdout.splitlines()[-1])


@pytest.mark.slow
@pytest.mark.parametrize("layout", FORMATS)
def test_a_hundred_damaged_files_of_each_format(layout, tmp_path):
    campaign(layout, -(-100 // FORMATS[layout]), 0, tmp_path)


@pytest.mark.slow
@pytest.mark.heavy
@pytest.mark.parametrize("layout", FORMATS)
@pytest.mark.parametrize("count, seed, command", [(2000, 1, ()), (200, 2, ("command",))])
def test_many_damaged_files_of_each_format_and_fewer_through_the_command(layout, count, seed, command, tmp_path):
    campaign(layout, -(-count // FORMATS[layout]), seed, tmp_path, *command)
