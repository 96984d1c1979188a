"""What masked value prediction must beat: zero, a straight line, and the best linear prediction (Wiener).

All are measured on the validation segments, under the masks of the validation loss, as its mean squared error."""

import numpy as np
from tqdm import tqdm

from protocol.records import TO_BEAT
from protocol.segments import SignalRows
from training import loop

WORDS = ("zero", "a straight line across each span", "the best linear prediction from the unmasked points")
NAMES = dict(zip(TO_BEAT, WORDS))
TRAINING_SEGMENTS, VALIDATION_SEGMENTS = 2000, 1000  # at most, at equal distances, for the linear prediction
JITTER = 1e-6  # of the variance, for equations that a band-limited signal leaves nearly singular


def baselines(signals: SignalRows, train: np.ndarray, validation: np.ndarray, masks, args) -> dict[str, float]:
    """The error of each of NAMES, over the masked points of the validation segments; of `linear` over those of 1,000.

    train, validation: places of `signals`; masks(count, generator) -> (count, L) bool, as for the loss. `linear` knows
    each channel's autocovariance in the training segments. Raises ValueError where no point or every point is masked.
    """
    chosen = set(spaced(validation, VALIDATION_SEGMENTS).tolist())
    covariance = autocovariance(signals, spaced(train, TRAINING_SEGMENTS))
    squared, count = dict.fromkeys(NAMES, 0.0), dict.fromkeys(NAMES, 0)
    batches = loop.validation_batches(validation, args)
    total = -(-len(validation) // args.batch_size)
    for places, generator in tqdm(batches, total=total, desc="losses to beat", unit="batch", disable=None, leave=False):
        drawn = masks(len(places), generator).numpy()  # those of a batch together, as in the validation loss
        for place, segment, mask in zip(places.tolist(), signals.batch(places).astype(np.float64), drawn):
            # Without a masked point there is nothing to predict, without another one nothing to predict it from.
            if mask.all() or not mask.any():
                continue
            truth = segment[:, mask]
            for name, predicted in predictions(segment, mask, covariance if place in chosen else None).items():
                squared[name] += np.square(truth - predicted).sum()
                count[name] += truth.size
    if count["linear"] == 0:
        raise ValueError(f"--mask-probability {args.mask_probability}: masks no point or all of them; take another")
    return {name: squared[name] / count[name] for name in NAMES}


def predictions(segment: np.ndarray, mask: np.ndarray, covariance: np.ndarray | None) -> dict[str, np.ndarray]:
    """(C, masked points) of each of NAMES, from the unmasked points of a segment (C, L); covariance: (C, L) by lag, or
    None for no `linear`."""
    masked, known = np.flatnonzero(mask), np.flatnonzero(~mask)
    lines = np.stack([np.interp(masked, known, channel[known]) for channel in segment])
    found = {"zero": np.zeros_like(lines), "line": lines}
    if covariance is None:
        return found
    linear = []
    for channel, by_lag in zip(segment, covariance):
        among = by_lag[np.abs(known[:, None] - known)] + JITTER * by_lag[0] * np.eye(len(known))
        weights = np.linalg.solve(among, channel[known]) if by_lag[0] > 0 else np.zeros(len(known))
        linear.append(by_lag[np.abs(masked[:, None] - known)] @ weights)
    return {**found, "linear": np.stack(linear)}


def autocovariance(signals: SignalRows, places: np.ndarray) -> np.ndarray:
    """(C, L) the mean of x(t) x(t + lag) over the segments at `places`, by channel and lag. Each lag is divided by L:
    then no set of equations has a negative eigenvalue."""
    points = signals.points
    power = np.zeros((signals.channels, points + 1))
    for batch in np.array_split(places, -(-len(places) // 16)):
        spectrum = np.fft.rfft(signals.batch(batch).astype(np.float64), 2 * points)  # of twice the length: no wrapping
        power += np.square(np.abs(spectrum)).sum(axis=0)
    return np.fft.irfft(power)[:, :points] / (len(places) * points)


def spaced(places: np.ndarray, most: int) -> np.ndarray:
    """At most so many of the places, at equal distances."""
    return places[np.linspace(0, len(places) - 1, min(most, len(places))).astype(int)]
