"""Folds and labels: which segments are tested when, and which of them count as high.

A *unit* is what is never shared between training, validation and test: the segment itself (`segment`, the reading
that the paper's intervals fit), a fifth of a trial (`block`), the trial, the video or the
subject. Units that hold a rated segment are dealt to the folds; the others take part in pre-training alone."""

import numpy as np

import paper

SPLITS = ("segment", "block", "trial", "video", "subject")
BLOCKS = 5
NO_FOLD = -1  # the unit holds no rated segment
DROPPED = -2  # between two blocks of a trial: in no part, so that neighbours never touch


def trials(table: np.ndarray) -> np.ndarray:
    """(n,) number of the trial that each segment belongs to; a trial name is unique within its subject."""
    return np.unique(table[["subject", "trial"]], return_inverse=True)[1].reshape(-1)


def units(table: np.ndarray, split: str) -> np.ndarray:
    """(n,) number of the unit that each segment belongs to; -1 for the segment dropped between two blocks."""
    if split == "segment":
        return np.arange(len(table))
    if split in ("subject", "video"):
        return np.unique(table[split], return_inverse=True)[1].reshape(-1)
    trial = trials(table)
    if split == "trial":
        return trial
    unit = np.full(len(table), -1)
    for number in range(trial.max() + 1):
        rows = np.flatnonzero(trial == number)
        rows = rows[np.argsort(table["start"][rows])]
        # Fifths; fewer in a short trial, where dropping the borders would leave fifths empty.
        blocks = np.array_split(rows, min(BLOCKS, (len(rows) + 1) // 2))
        for place, block in enumerate(blocks):
            unit[block[:-1] if place < len(blocks) - 1 else block] = BLOCKS * number + place
    return unit


def strata(table: np.ndarray) -> np.ndarray:
    """(n,) number of the combination of all labels (threshold `global`), by which folds are balanced."""
    stratum = np.zeros(len(table), int)
    for target in paper.TARGETS:
        stratum = 3 * stratum + labels(table, target, "global") + 1  # a digit: unrated, low or high
    return stratum


def deal(unit: np.ndarray, stratum: np.ndarray, parts: int, random: np.random.Generator) -> np.ndarray:
    """(n,) part 0..parts-1 of each segment: whole units, in random order and the largest first, each to the part
    that has the fewest segments of its stratum, then the fewest segments."""
    _, first, index, sizes = np.unique(unit, return_index=True, return_inverse=True, return_counts=True)
    pure = np.bincount(index, weights=stratum != stratum[first][index]) == 0
    mixed = 3 ** len(paper.TARGETS)  # the stratum of units of mixed labels
    unit_stratum = np.where(pure, stratum[first], mixed)
    order = random.permutation(len(sizes))
    order = order[np.argsort(-sizes[order], kind="stable")]
    # Lists, for NumPy takes three times as long for so little at a time.
    in_stratum, total = [[0] * parts for _ in range(mixed + 1)], [0] * parts
    part_of_unit = np.zeros(len(sizes), dtype=int)
    for number, stratum_, size in zip(order, unit_stratum[order].tolist(), sizes[order].tolist()):
        counts = in_stratum[stratum_]
        _, _, part = min(zip(counts, total, range(parts)))
        part_of_unit[number] = part
        counts[part] += size
        total[part] += size
    return part_of_unit[index.reshape(-1)]


def assign_folds(table: np.ndarray, split: str, n_folds: int, fold_seed: int) -> np.ndarray:
    """(n,) int8: the fold in which each segment is tested, NO_FOLD or DROPPED; none is tested where none has a rating.

    Raises ValueError where fewer units hold a rating than there are folds."""
    if not 2 <= n_folds <= 127:
        raise ValueError(f"--n-folds: expected 2 to 127, found {n_folds}")
    unit = units(table, split)
    is_rated = ~np.isnan([table[target] for target in paper.TARGETS]).all(axis=0)
    dealt = (unit >= 0) & np.isin(unit, unit[is_rated])
    found = len(np.unique(unit[dealt]))
    if 0 < found < n_folds:  # training, validation and test need one unit each
        way_out = "use fewer folds" if found > 2 else "use --split segment, or the set as --extra of pretrain.py"
        many = "unit" if found == 1 else "units"
        raise ValueError(f"--n-folds {n_folds}: --split {split} has only {found} {many} with a rating; {way_out}")
    folds = np.where(unit >= 0, NO_FOLD, DROPPED).astype(np.int8)
    if found:
        folds[dealt] = deal(unit[dealt], strata(table)[dealt], n_folds, np.random.default_rng(fold_seed))
    return folds


def labels(table: np.ndarray, target: str, threshold: str, train: np.ndarray | None = None) -> np.ndarray:
    """(n,) int8: 1 where the rating of `target` is above the threshold, 0 where it is not, -1 where unrated.

    threshold: `global`, the mean over all rated trials (assumed; "the average value", paper 4.1); `train`, the same
    over the trials of the rows `train`; `subject`, the mean over the subject's own trials; or a number."""
    rating = table[target].astype(float)
    _, first = np.unique(trials(table), return_index=True)
    if threshold == "train":
        train_trials = trials(table)[train]
        first = train[np.unique(train_trials, return_index=True)[1]]
    if threshold in ("global", "train", "subject"):
        limit = np.full(len(table), np.nan)
        group = units(table, "subject") if threshold == "subject" else np.zeros(len(table), int)
        for number in np.unique(group):
            of_trials = rating[first][group[first] == number]
            if not np.isnan(of_trials).all():
                limit[group == number] = np.nanmean(of_trials)
    else:
        limit = np.float32(threshold)  # as ratings are kept: 5.3 is not above 5.3
    return np.where(np.isnan(rating), -1, rating > limit).astype(np.int8)


def shuffle_within_subject(table, labels_: np.ndarray, rows: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """`labels_` (n,) with those of `rows` (rated) dealt anew among the trials of each subject.

    The segments of a trial keep one label between them, and the trials of a subject the same number of each label. So
    a model can still learn how often a subject says high, but nothing of what the signals of a trial say. To recognise
    a trial of training in the test brings a label that is right as often as the subject's share of it, and no more."""
    shuffled, trial = labels_.copy(), trials(table)
    for subject in np.unique(table["subject"][rows]):
        own = rows[table["subject"][rows] == subject]
        _, first, index = np.unique(trial[own], return_index=True, return_inverse=True)
        shuffled[own] = random.permutation(labels_[own][first])[index]
    return shuffled


def share_of_trials(table, labels_: np.ndarray, rows: np.ndarray, fraction: float, random) -> np.ndarray:
    """Those of `rows` (rated) that lie in a `fraction` of their trials, the same share of the low and of the high ones.

    The same `random` gives nested shares: the trials of 0.1 are among those of 0.3. Whole trials are drawn under every
    split. Raises ValueError where no trial of a class would be left."""
    trial, chosen = trials(table)[rows], []
    for label, name in enumerate(("low", "high")):
        of_class = random.permutation(np.unique(trial[labels_[rows] == label]))
        count = round(fraction * len(of_class))
        if len(of_class) and count == 0:
            raise ValueError(
                f"--label-fraction {fraction:g}: expected at least one trial of each class, found none of the "
                f"{len(of_class)} {name} ones of training; use a larger fraction"
            )
        chosen.append(of_class[:count])
    return rows[np.isin(trial, np.concatenate(chosen))]


def rated(labels_: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Those of `rows` that carry a label."""
    return rows[labels_[rows] >= 0]
