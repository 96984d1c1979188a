"""What masked value prediction must beat: zero, a straight line, and the best linear prediction (Wiener).

All are measured on validation segments, under the masks of the validation loss, as its mean squared error.
"""

import numpy as np
from tqdm import tqdm

from protocol.segments import SignalRows
from training import loop

NAMES = {
    "zero": "zero",
    "line": "a straight line across each span",
    "linear": "the best linear prediction from the unmasked points",
}
TRAINING_SEGMENTS, VALIDATION_SEGMENTS = 2000, 100  # at most, at equal distances
JITTER = 1e-6  # of the variance, for equations that a band-limited signal leaves nearly singular


def baselines(signals: SignalRows, train: np.ndarray, validation: np.ndarray, masks, args) -> dict[str, float]:
    """The error of each of NAMES, over the masked points of up to 100 validation segments.

    train, validation: places of `signals`; masks(count, generator) -> (count, L) bool, as for the loss. `line` is held
    flat at the ends of a segment. `linear` knows each channel's autocovariance in the training segments, and no other
    channel. Raises ValueError where no point or every point is masked.
    """
    chosen = set(spaced(validation, VALIDATION_SEGMENTS).tolist())
    covariance, squared, count = autocovariance(signals, spaced(train, TRAINING_SEGMENTS)), dict.fromkeys(NAMES, 0.0), 0
    batches = loop.validation_batches(validation, args)
    total = -(-len(validation) // args.batch_size)
    for places, generator in tqdm(batches, total=total, desc="losses to beat", unit="batch", disable=None, leave=False):
        # The masks of a batch are drawn together, as in the validation loss.
        drawn = masks(len(places), generator).numpy()
        own = [number for number, place in enumerate(places.tolist()) if place in chosen]
        for segment, mask in zip(signals.batch(places[own]).astype(np.float64), drawn[own]):
            # Without a masked point there is nothing to predict, without another one nothing to predict it from.
            if mask.all() or not mask.any():
                continue
            truth = segment[:, mask]
            for name, predicted in predictions(segment, mask, covariance).items():
                squared[name] += np.square(truth - predicted).sum()
            count += truth.size
    if count == 0:
        raise ValueError(f"--mask-probability {args.mask_probability}: masks no point or all of them; take another")
    return {name: total / count for name, total in squared.items()}


def predictions(segment: np.ndarray, mask: np.ndarray, covariance: np.ndarray) -> dict[str, np.ndarray]:
    """(C, masked points) of each of NAMES, from the unmasked points of a segment (C, L); covariance: (C, L) by lag."""
    masked, known = np.flatnonzero(mask), np.flatnonzero(~mask)
    lines = [np.interp(masked, known, channel[known]) for channel in segment]
    linear = []
    for channel, by_lag in zip(segment, covariance):
        among = by_lag[np.abs(known[:, None] - known)] + JITTER * by_lag[0] * np.eye(len(known))
        weights = np.linalg.solve(among, channel[known]) if by_lag[0] > 0 else np.zeros(len(known))
        linear.append(by_lag[np.abs(masked[:, None] - known)] @ weights)
    return {"zero": np.zeros((len(segment), len(masked))), "line": np.stack(lines), "linear": np.stack(linear)}


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
