"""EDF, EDF+ and BDF files, for the readers of the sets that come as such, through the package edfio."""

import warnings

import numpy as np

from datasets import optional, pick_channels, refuse_damage


def read_edf(path, channels) -> tuple[dict, dict]:
    """Return the signals of the named channels and their rates; of an EDF file the other channels are left on disk.

    channels: modality -> C names. The signals are modality -> (C, n) float64 in the file's units, the rates modality
    -> Hz. Raise ValueError where the file is damaged, cut short, has gaps (EDF+D) or lacks a channel.
    """
    edfio = optional("edfio", path, "an EDF file")
    with refuse_damage(path, "an EDF file"), warnings.catch_warnings():
        # edfio only warns of a file that is cut short. A recorder that was switched off has not counted its records.
        warnings.simplefilter("error", UserWarning)
        warnings.filterwarnings("ignore", "(EDF|BDF) header indicates -1 data records")
        is_bdf = str(path).lower().endswith(".bdf")
        edf = edfio.read_bdf(path) if is_bdf else edfio.read_edf(path, lazy_load_data=True)
        labels = [signal.label for signal in edf.signals]
        continuous = not edf.reserved.startswith(("EDF+D", "BDF+D"))
    if not continuous:
        raise ValueError(f"{path}: expected a continuous recording, found one with gaps (EDF+D); split it at the gaps")
    signals, rate = {}, {}
    for modality, names in channels.items():
        chosen = [edf.signals[i] for i in pick_channels(names, labels, path)]
        with refuse_damage(path, "an EDF file"):
            rates = {signal.sampling_frequency for signal in chosen}
            ranges = [(s.physical_min, s.physical_max, s.digital_min, s.digital_max) for s in chosen]
        if len(rates) != 1 or not 0 < min(rates) < float("inf"):
            raise ValueError(f"{path}: expected one rate above 0 Hz for {' '.join(names)}, found {sorted(rates)}")
        for name, (low, high, digital_low, digital_high) in zip(names, ranges):
            if not (np.isfinite(high - low) and high != low and digital_high > digital_low):
                raise ValueError(
                    f"{path}: channel {name} has the physical range {low} to {high} for the digital range "
                    f"{digital_low} to {digital_high}; download the file again"
                )
        rate[modality] = rates.pop()
        # Filled channel by channel: np.stack would hold every channel twice.
        signals[modality] = np.empty((len(chosen), len(chosen[0].digital)))
        for channel, signal in zip(signals[modality], chosen):
            channel[:] = signal.data
    return signals, rate
