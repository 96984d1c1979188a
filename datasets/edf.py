"""EDF, EDF+ and BDF files, for the readers of the sets that come as such."""

import warnings

import edfio
import numpy as np

from datasets import pick_channels


def read_edf(path, channels):
    """Signals and rates of the named channels; of an EDF file the others are left on disk.

    `channels` maps a modality to C names; returns modality -> (C, n) float64 in the file's units, and modality -> Hz.
    Raises ValueError for a file that is damaged, cut short, has gaps (EDF+D) or lacks a channel.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)  # edfio only warns of a file that is cut short
            # Of a recorder that was switched off: it had not yet counted its records.
            warnings.filterwarnings("ignore", "(EDF|BDF) header indicates -1 data records")
            if str(path).lower().endswith(".bdf"):
                edf = edfio.read_bdf(path)
            else:
                edf = edfio.read_edf(path, lazy_load_data=True)
            labels = [signal.label for signal in edf.signals]
            continuous = not edf.reserved.startswith(("EDF+D", "BDF+D"))
    except OSError:
        raise
    except Exception as error:  # edfio raises whatever the damaged header leads it to
        raise ValueError(f"{path}: expected an EDF file, found a damaged one ({error}); download it again") from error
    if not continuous:
        raise ValueError(f"{path}: expected a continuous recording, found one with gaps (EDF+D); split it at the gaps")
    signals, rate = {}, {}
    for modality, names in channels.items():
        chosen = [edf.signals[i] for i in pick_channels(names, labels, path)]
        try:
            rates = {signal.sampling_frequency for signal in chosen}
            ranges = [(s.physical_min, s.physical_max, s.digital_min, s.digital_max) for s in chosen]
        except ValueError as error:
            raise ValueError(f"{path}: {error} in the header of a channel; download the file again") from error
        if len(rates) != 1 or not 0 < min(rates) < float("inf"):
            raise ValueError(f"{path}: expected one rate above 0 Hz for {' '.join(names)}, found {sorted(rates)}")
        for name, (low, high, digital_low, digital_high) in zip(names, ranges):
            if not (np.isfinite(high - low) and high != low and digital_high > digital_low):
                raise ValueError(
                    f"{path}: channel {name} has the physical range {low} to {high} for the digital range "
                    f"{digital_low} to {digital_high}; download the file again"
                )
        rate[modality] = rates.pop()
        # Filled row by row: np.stack would hold every channel twice.
        signals[modality] = np.empty((len(chosen), len(chosen[0].digital)))
        for row, signal in zip(signals[modality], chosen):
            row[:] = signal.data
    return signals, rate
