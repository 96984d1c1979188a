"""Heart beats: whether an ECG shows any, and where its QRS complexes may be."""

from functools import lru_cache

import numpy as np
from scipy import signal as sp

BEATS_TO_HZ = 20  # of the band in which heart beats are looked for
SHORTEST_BEAT, LONGEST_BEAT = 0.3, 2.0  # s: 200 and 30 beats/min; intervals beyond are a beat missed or made up
butter = lru_cache(maxsize=4)(sp.butter)  # a design takes a third of the time that a look for beats takes


def uprightness(ecg, rate: float) -> float:
    """Return how far an ECG (n,) reaches up rather than down, from -1 to 1: the median over stretches of two seconds of
    (max + min) / (max - min), which artefacts hardly move. Turned over, the same ECG has the opposite sign."""
    stretches = np.array_split(ecg, max(1, len(ecg) // round(2 * rate)))
    ends = np.array([(stretch.max(), stretch.min()) for stretch in stretches]).T
    return float(np.median((ends[0] + ends[1]) / np.maximum(ends[0] - ends[1], np.finfo(float).tiny)))


def bursts(ecg, rate: float) -> tuple:
    """Return the 5-20 Hz band of an ECG (k, n), the power of that band over 0.12 s (k, n), and the typical power of a
    beat (k,): the median over stretches of two seconds, which a single artefact does not raise above the beats."""
    qrs = sp.sosfiltfilt(butter(2, (5, BEATS_TO_HZ), "bandpass", fs=rate, output="sos"), ecg, axis=-1)
    width = round(0.12 * rate)
    power = sp.oaconvolve(np.gradient(qrs, axis=-1) ** 2, np.full((1, width), 1 / width), mode="same", axes=-1)
    stretches = np.array_split(power, max(1, power.shape[-1] // round(2 * rate)), axis=-1)
    return qrs, power, np.median([stretch.max(axis=-1) for stretch in stretches], axis=0)


def has_beats(ecg, rate: float) -> bool:
    """Return whether one ECG channel (n,) shows plausible heart beats: at a human rate, and each like the others.

    Beats are sought as `bursts`. They are plausible with a median interval of SHORTEST_BEAT to LONGEST_BEAT and a mean
    correlation of at least 0.85 with their median shape (the idea of Orphanidou et al. 2015; 0.85 lies between the
    0.95 or more of real recordings with beats and the 0.70 of noise, which aligning makes look alike)."""
    half, slack = round(0.15 * rate), round(0.05 * rate)
    if len(ecg) < 3 * rate:
        return False
    qrs, power, typical = (each[0] for each in bursts(ecg[None], rate))
    found, _ = sp.find_peaks(power, height=0.3 * typical, distance=round(SHORTEST_BEAT * rate))
    found = found[(found >= half + slack) & (found < len(qrs) - half - slack)]
    if len(found) < 3 or not SHORTEST_BEAT <= np.median(np.diff(found)) / rate <= LONGEST_BEAT:
        return False
    # The sharpest deflection, whose sign depends on the lead, tells where the beat is.
    likeness = []
    for upright in (qrs, -qrs):
        beats = found - slack + upright[found[:, None] + np.arange(-slack, slack + 1)].argmax(axis=1)
        shapes = qrs[beats[:, None] + np.arange(-half, half)]
        typical = np.median(shapes, axis=0)
        shapes = shapes - shapes.mean(axis=1, keepdims=True)
        norms = np.linalg.norm(shapes, axis=1) * np.linalg.norm(typical - typical.mean())
        likeness.append((shapes @ (typical - typical.mean()) / norms).mean())
    return bool(max(likeness) >= 0.85)
