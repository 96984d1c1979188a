"""What may be wrong or unusual in any format, tried in each: units, names, copies, damage and missing packages."""

import json
import sys

import numpy as np
import pytest

import layouts
from datasets import folder, pspm
from recordings import prepare_data, read_all, write_edf

NEEDS = {"wfdb": "wfdb", "vhdr": "mne", "gdf": "mne", "xdf": "pyxdf", "hdf5": "h5py"}
RATE, COUNTS = 125, np.random.default_rng(0).integers(-3000, 3000, (2, 2500))


def write(form, top, units=("uV", "uV"), names=("F7", "ECG"), stem="a"):
    """Write COUNTS, 1 of the channel's unit a step, and the list of it; return the reader. PsPM has the ECG alone."""
    pytest.importorskip(NEEDS.get(form, "numpy"))
    top.mkdir(exist_ok=True)
    path = top / f"{stem}.{form.replace('wfdb', 'hea')}"
    if form in ("pspm", "hdf5"):
        path, channels = top / "FR_spike_01.mat", [("ecg", units[1], RATE, COUNTS[1])]
        (layouts.write_pspm if form == "pspm" else layouts.write_pspm_hdf5)(path, channels, COUNTS.shape[1] / RATE)
    elif form == "wfdb":
        layouts.write_wfdb(path.with_suffix(""), COUNTS.T, names, RATE, gain=1, units=units)
    elif form == "xdf":
        layouts.write_xdf(path, [(names, units, RATE, np.arange(len(COUNTS.T)) / RATE, COUNTS.T)])
    else:
        writer = {"vhdr": layouts.write_vhdr, "gdf": layouts.write_gdf}.get(form, write_edf)
        writer(path, COUNTS, names, RATE, units=units)
    layouts.write_list(top, "file,subject", f"{path.name},A")
    return pspm if path.suffix == ".mat" else folder


UNITS = [  # the formats, a unit, and what it is in V, or under which name it stays unknown
    ("edf bdf wfdb xdf pspm hdf5 gdf", "uV", 1e-6),
    ("edf bdf wfdb xdf pspm hdf5", "mV", 1e-3),
    ("edf bdf wfdb xdf pspm hdf5", "V", 1.0),
    ("edf bdf wfdb xdf pspm hdf5", "nV", 1e-9),
    ("edf bdf wfdb vhdr", "\u00b5V", 1e-6),
    ("edf bdf wfdb", "\u03bcV", 1e-6),
    ("edf bdf wfdb", "\udcb5V", 1e-6),  # the micro sign of Latin-1
    ("xdf", "microvolts", 1e-6),
    ("edf bdf", "UVolts", 1e-6),
    ("edf bdf", "mV\0\0\0\0\0\0", 1e-3),
    ("edf bdf wfdb", "mmHg", "mmHg"),
    ("edf bdf", "", ""),
    ("pspm hdf5", "a.u.", "a.u."),
    ("vhdr", "ARU", "unknown"),
    ("gdf", "mV", "unknown"),  # MNE takes it for V
]


@pytest.mark.parametrize("form, unit, volts", [(form, *each) for forms, *each in UNITS for form in forms.split()])
def test_units(tmp_path, form, unit, volts):
    reader = write(form, tmp_path, (unit, unit))
    channels = {"ecg": ["ECG"]} if reader is pspm else {"eeg": ["F7"], "ecg": ["ECG"]}
    [found] = read_all(reader, tmp_path, channels)
    known = not isinstance(volts, str)
    for modality, own, counts in (("eeg", 1e-6, COUNTS[:1]), ("ecg", 1e-3, COUNTS[1:])):
        if modality in channels:
            factor = volts / own if known else 1
            np.testing.assert_allclose(found.signals[modality][:, :] / factor, counts, atol=0.1)  # a step of 16 bits
            assert found.rate[modality] == pytest.approx(RATE, rel=1e-9)
    assert found.units == ({} if known else dict.fromkeys(channels, volts)) and (found.bad, found.notes) == ((), ())


@pytest.mark.parametrize("form", "edf bdf wfdb vhdr xdf".split())
def test_units_of_one_modality(tmp_path, form):
    micro, channels = "\u00b5V" if form == "vhdr" else "uV", {"eeg": ["F7", "F8"]}
    reader = write(form, tmp_path, (micro, "mV"), ("F7", "F8"))
    [found] = read_all(reader, tmp_path, channels)
    np.testing.assert_allclose(found.signals["eeg"][:, :] / [[1], [1000]], COUNTS, atol=0.1)
    write(form, tmp_path, (micro, "ADC"), ("F7", "F8"))
    with pytest.raises(ValueError, match=r"a\..*expected channels in V, mV, .* found F7 in .*V, F8 in "):
        read_all(reader, tmp_path, channels)


@pytest.mark.parametrize("form", "edf bdf wfdb vhdr gdf xdf".split())
def test_a_name_with_a_reference_is_found_and_noted(tmp_path, form):
    reader = write(form, tmp_path, names=("F7-REF", "EKG"))
    [found] = read_all(reader, tmp_path, {"eeg": ["F7"], "ecg": ["ECG|EKG"]})
    assert found.channels == {"eeg": ["F7"], "ecg": ["EKG"]}
    words = "channels by their names without the reference: F7-REF", "EKG in place of ECG, which is missing"
    assert set(words) <= set(found.notes)
    with pytest.raises(ValueError, match=r"a\.\w+: channel ECG is missing; expected ECG, found F7-REF EKG"):
        read_all(reader, tmp_path, {"ecg": ["ECG"]})


@pytest.mark.parametrize("form", "edf bdf wfdb vhdr gdf xdf".split())
def test_a_copy_is_left_out(tmp_path, capsys, form):
    for stem in ("a", "b"):
        write(form, tmp_path, stem=stem)
    ending = form.replace("wfdb", "hea")
    layouts.write_list(tmp_path, "file,subject", f"a.{ending},A", f"b.{ending},B")
    flags = "--dataset folder --modalities eeg --channels F7 --workers 1 --check --json".split()
    assert prepare_data([*flags, "--raw", tmp_path]) == 0
    summary = json.loads(capsys.readouterr().out)
    signals = {"wfdb": "dat", "vhdr": "eeg"}.get(form, form)
    assert summary["problems"] == [f"b.{signals} has the same bytes as a.{signals}"] and summary["segments"] == 2


DAMAGED = "a.edf a.bdf a.hea a.vhdr a.set a.fif a.gdf a.csv a.xdf a.cnt a.rec a.edf.gz a.mff FR_spike_01.mat".split()


@pytest.mark.parametrize("content", [b"", b"<html>" * 100])
@pytest.mark.parametrize("name", DAMAGED)
def test_what_cannot_be_read_is_said_in_one_line(tmp_path, name, content):
    for package in ("mne", "pyxdf", "wfdb"):
        pytest.importorskip(package)
    (tmp_path / "a.dat").touch()  # which every .hea has
    (tmp_path / name).write_bytes(content)
    layouts.write_list(tmp_path, "file,subject", f"{name},A")
    with pytest.raises(ValueError, match=f"{name}: expected .*(download it again|convert it to EDF)") as caught:
        read_all(pspm if name.endswith("mat") else folder, tmp_path, {"ecg": ["ECG"]})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("form, package", NEEDS.items())
def test_without_a_reader_one_line_says_what_to_install(tmp_path, monkeypatch, form, package):
    reader = write(form, tmp_path)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ValueError, match=rf"(a|FR_spike_01)\.\w+: .*, which needs {package}; pip install {package}"):
        read_all(reader, tmp_path, {"ecg": ["ECG"]})
