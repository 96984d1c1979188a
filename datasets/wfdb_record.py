"""WFDB records, PhysioNet's own format, through the package wfdb."""

from pathlib import Path

import numpy as np

from datasets import pick_channels


def signal_files(header) -> list[Path]:
    """The files that hold the signals of a WFDB header, in its order."""
    lines = header.read_text(errors="replace").splitlines() if header.is_file() else []
    lines = [line.split() for line in lines if line.strip() and not line.startswith("#")]
    names = dict.fromkeys(Path(line[0]).name for line in lines[1:] if line[0] != "~")  # ~: a signal without values
    return [header.with_name(name) for name in names] or [header.with_suffix(".dat")]


def read_wfdb(path, channels):
    """Like `read_edf`, for the WFDB record whose header is `path`."""
    try:
        import wfdb
    except ImportError as error:
        raise ValueError(f"{path}: a WFDB record, which needs wfdb; pip install wfdb") from error
    try:
        record = wfdb.rdrecord(str(path.with_suffix("")), m2s=True)
        names, rate, signal = list(record.sig_name), float(record.fs), np.asarray(record.p_signal, dtype=np.float64)
    except FileNotFoundError:
        raise
    except Exception as error:  # wfdb raises whatever the damaged header leads it to
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        raise ValueError(f"{path}: expected a WFDB record, found {reason}; download it again") from error
    columns = {modality: pick_channels(wanted, names, path) for modality, wanted in channels.items()}
    signals = {modality: np.ascontiguousarray(signal[:, chosen].T) for modality, chosen in columns.items()}
    return signals, dict.fromkeys(channels, rate)
