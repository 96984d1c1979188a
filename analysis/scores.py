"""Scores, intervals and tests of predictions: arrays in, numbers out (paper 5, and what it leaves out).

How sure a mean over folds is has three answers: Student's t over the folds (paper 5), too sure, for folds share
training data; the same, corrected for that (Nadeau and Bengio, 2003); and resampling of subjects, which alone speaks of
people who were not recorded. N resamples, S subjects, K folds, n segments."""

import functools
import itertools

import numpy as np
from scipy import optimize, stats

SCORES = ("accuracy", "f1", "balanced_accuracy", "auroc")
CONFIDENCE = 0.95  # paper 5
SIGNIFICANT, POWER = 0.05, 0.8
BATCH = 500  # resamples at a time, to bound memory
PAIRS = 32  # segments in a block whose pairs are looked at one by one

# Test predictions of one model and target, one fold after the other, each by segment. Subjects and trials are numbers,
# the same in all predictions that are compared; label: 1 high, 0 low; probability: of high.
COUNTS = ("fold", "subject", "trial", "segment", "label")
PREDICTIONS = np.dtype([*((name, "i8") for name in COUNTS), ("probability", "f8")])


def score_of(score: str, label: np.ndarray, probability: np.ndarray) -> float:
    """One of SCORES from labels (n,) and probabilities of high (n,); high is predicted above 0.5. F1 is macro F1 over
    both classes (assumed; "between the two predicted classes", paper 5). Where `label` has one class alone, the scores
    that compare classes are NaN, and F1 is at most 0.5."""
    if score != "auroc":
        return from_confusion(score, *np.bincount(2 * label + (probability > 0.5), minlength=4))
    # By ranks, as Mann and Whitney count: scikit-learn takes a hundred times as long for the few segments of a subject.
    high = int(np.sum(label))
    pairs = high * (len(label) - high)
    if pairs == 0:
        return np.nan
    return (stats.rankdata(probability)[np.asarray(label, bool)].sum() - high * (high + 1) / 2) / pairs


def from_confusion(score: str, tn, fp, fn, tp) -> np.ndarray:
    """The score of counts of true and false negatives and positives, as scikit-learn defines it; NaN where undefined.
    The counts are numbers, or arrays of one shape: thousands of resamples, for which scikit-learn would take hours."""
    tn, fp, fn, tp = (np.asarray(count, float) for count in (tn, fp, fn, tp))
    with np.errstate(divide="ignore", invalid="ignore"):
        if score == "accuracy":
            return (tn + tp) / (tn + fp + fn + tp)
        if score == "f1":
            f1 = [np.where(hit == 0, 0.0, 2 * hit / (2 * hit + fp + fn)) for hit in (tn, tp)]
            return np.where(tn + fp + fn + tp == 0, np.nan, np.mean(f1, axis=0))
        return (tn / (tn + fp) + tp / (tp + fn)) / 2


def per_subject(predictions: np.ndarray, names=None) -> dict:
    """subject -> its number of segments and its SCORES, over all folds that tested it; names: number -> name."""
    subjects, place = np.unique(predictions["subject"], return_inverse=True)
    kind = 2 * predictions["label"] + (predictions["probability"] > 0.5)
    counts = np.bincount(4 * place + kind, minlength=4 * len(subjects)).reshape(-1, 4)
    parts = np.split(predictions[np.argsort(place, kind="stable")], np.cumsum(counts.sum(1))[:-1])
    columns = {score: from_confusion(score, *counts.T) for score in SCORES if score != "auroc"}
    columns["auroc"] = [score_of("auroc", part["label"], part["probability"]) for part in parts]
    names = subjects.tolist() if names is None else map(str, names[subjects])
    lines = zip(counts.sum(1).tolist(), *(np.array(columns[score]).tolist() for score in SCORES))
    return {name: dict(zip(("segments", *SCORES), line)) for name, line in zip(names, lines)}


def prior(train_label: np.ndarray, train_group: np.ndarray, test_group: np.ndarray) -> np.ndarray:
    """(m,) mean of the training labels (n,) of each test segment's group; of all where training does not know it."""
    groups, index = np.unique(train_group, return_inverse=True)
    means = np.bincount(index.reshape(-1), weights=train_label) / np.bincount(index.reshape(-1))
    place = np.searchsorted(groups, test_group).clip(max=len(groups) - 1)
    return np.where(groups[place] == test_group, means[place], train_label.mean())


RULES = {  # of fusion that is not trained (paper 3.1): probabilities of high (models, n) -> (n,)
    "mean": lambda probabilities: probabilities.mean(axis=0),
    "maximum": lambda probabilities: probabilities.max(axis=0),
    # The share of models that say high. Two that disagree give 0.5, which does not count as high (assumed).
    "vote": lambda probabilities: (probabilities > 0.5).mean(axis=0),
}


def half_width(values: np.ndarray, ratio: float = 0.0) -> float:
    """Half the width of the two-sided 95 % t-interval of the mean over folds (k,) (paper 5); NaN if k < 2."""
    return stats.t.ppf((1 + CONFIDENCE) / 2, len(values) - 1) * standard_error(values, ratio)


def standard_error(values: np.ndarray, ratio: float) -> float:
    """The standard error of the mean over folds (k,); NaN if k < 2. ratio: test segments to training segments of a
    fold, by which it is corrected for what the folds share (Nadeau and Bengio, 2003)."""
    k = len(values)
    return float(np.sqrt((1 / k + ratio) * np.var(values, ddof=1))) if k > 1 else np.nan


def t_test(differences: np.ndarray, ratio: float = 0.0) -> float:
    """Two-tailed P value that the mean of the paired differences over folds (k,) is 0; NaN if k < 2. Without `ratio` it
    is the paired t-test (assumed to be the paper's), else the corrected one."""
    k = len(differences)
    if k < 2:
        return np.nan
    if not np.any(differences):
        return 1.0
    with np.errstate(divide="ignore"):
        return float(2 * stats.t.sf(abs(np.mean(differences) / standard_error(differences, ratio)), k - 1))


def detectable(error: float, k: int, tests: int = 1) -> float:
    """The smallest difference that the corrected t-test over k folds, as one of so many tests (Bonferroni), finds in
    80 % of cases where the standard error is `error`; NaN if k < 2, or if all folds differ by the same."""
    if k < 2 or error == 0:
        return np.nan
    limit = stats.t.isf(SIGNIFICANT / tests / 2, k - 1)
    return error * optimize.brentq(lambda shift: stats.nct.sf(limit, k - 1, shift) - POWER, 0, 10 * limit)


def holm(p_values: np.ndarray) -> np.ndarray:
    """P values (m,) adjusted for m tests (Holm, 1979); NaN stays and is not counted."""
    p_values = np.asarray(p_values, float)
    order = np.argsort(p_values)[: np.isfinite(p_values).sum()]
    adjusted = np.full(len(p_values), np.nan)
    adjusted[order] = np.maximum.accumulate(p_values[order] * np.arange(len(order), 0, -1)).clip(max=1.0)
    return adjusted


class Tally:
    """Counts of predictions by subject and fold, from which the scores of any resample of subjects follow; confusion
    (S, K, 4) counts true negatives, false positives, false negatives and true positives."""

    def __init__(self, predictions: np.ndarray, subjects: np.ndarray):
        """predictions: of these subjects alone; subjects (S,): their numbers, in the order of the weights."""
        self.predictions = predictions
        self.folds, self.fold = np.unique(predictions["fold"], return_inverse=True)
        self.subject = np.searchsorted(subjects, predictions["subject"])
        self.shape = (len(subjects), len(self.folds))
        kind = 2 * predictions["label"] + (predictions["probability"] > 0.5)
        place = np.ravel_multi_index((self.subject, self.fold, kind), (*self.shape, 4))
        self.confusion = np.bincount(place, minlength=np.prod((*self.shape, 4))).reshape(*self.shape, 4).astype(float)

    @functools.cached_property
    def concordance(self) -> np.ndarray:
        """(K, S, S) pairs, within a fold, of a high segment of the first subject and a low one of the second whose
        probabilities are in the right order; a tie counts half. Computed at first use: accuracy and F1 do without."""
        label, probability, s = self.predictions["label"], self.predictions["probability"], self.shape[0]
        found = np.zeros((self.shape[1], s, s))
        for fold in range(self.shape[1]):
            own = np.flatnonzero(self.fold == fold)
            # Equal probabilities count half: once their low segments come first, once their high ones.
            for ties in (label, -label):
                order = own[np.lexsort((ties[own], probability[own]))]
                found[fold] += pairs_in_order(self.subject[order], label[order] == 1, s) / 2
        return found

    @functools.cached_property
    def doubled(self) -> tuple[np.ndarray, float]:
        """Twice the concordance, in whole numbers as float32, and the largest sum of a column."""
        return (2 * self.concordance).astype(np.float32), 2 * self.concordance.sum(1).max()

    def mean(self, score: str, weights: np.ndarray) -> np.ndarray:
        """(N,) means over folds of `score`, with each subject counted `weights` (N, S) times, and a fold by how much of
        it was drawn; without the folds in which the drawn subjects leave the score undefined, NaN if none is left."""
        means = []
        for batch in np.array_split(weights, -(-len(weights) // BATCH)):
            counts = np.tensordot(batch, self.confusion, 1)  # (N, K, 4)
            with np.errstate(divide="ignore", invalid="ignore"):
                value = self._auroc(batch) if score == "auroc" else from_confusion(score, *counts.T).T
                share = np.where(np.isnan(value), 0.0, counts.sum(-1) / self.confusion.sum((0, 2)))
                means.append((np.nan_to_num(value) * share).sum(-1) / share.sum(-1))
        return np.concatenate(means)

    def _auroc(self, weights: np.ndarray) -> np.ndarray:
        """(N, K) AUROC. Pairs of two draws of one subject are left out, for the data hold no such pairs."""
        low, high = self.confusion[..., :2].sum(-1), self.confusion[..., 2:].sum(-1)  # (S, K)
        own = np.diagonal(self.concordance, axis1=1, axis2=2)  # (K, S)
        twice, (doubled, most) = weights**2 - weights, self.doubled
        # Whole numbers below 2^24 are exact in float32, too, in which products take half the time.
        exact = weights.max() * most < 2**24
        product = weights.astype(np.float32) @ doubled / 2 if exact else weights @ self.concordance
        right_order = np.einsum("kns,ns->nk", product, weights) - twice @ own.T
        return right_order / ((weights @ low) * (weights @ high) - twice @ (low * high))


def pairs_in_order(subject: np.ndarray, high: np.ndarray, s: int) -> np.ndarray:
    """(S, S) how often a high segment of the first subject comes after a low one of the second; subject, high: (n,).
    Between blocks of segments, a product of their counts says so; within a block, all pairs are looked at."""
    block = np.arange(len(subject)) // PAIRS
    place, size = block * s + subject, (block[-1] + 1) * s
    highs, lows = (np.bincount(place[kind], minlength=size).reshape(-1, s).astype(float) for kind in (high, ~high))
    within = []
    for apart in range(1, PAIRS):
        one = np.flatnonzero(high[apart:] & ~high[:-apart] & (block[apart:] == block[:-apart]))
        within.append(subject[one + apart] * s + subject[one])
    near = np.bincount(np.concatenate(within), minlength=s * s).reshape(s, s)
    return near + highs.T @ (np.cumsum(lows, axis=0) - lows)


@functools.lru_cache(maxsize=4)
def draws(subjects: int, n: int, seed: int) -> np.ndarray:
    """(n, S) how often each of S subjects is drawn when S are drawn with replacement."""
    return np.random.default_rng(seed).multinomial(subjects, np.full(subjects, 1 / subjects), n).astype(float)


def percentiles(values: np.ndarray, between: bool = True) -> list[float]:
    """[low, high]: the two-sided 95 % percentile interval of values (N,), whose ends may lie between two values, or are
    the outer of the two; NaN where none is finite."""
    values = values[np.isfinite(values)]
    if not len(values):
        return [np.nan, np.nan]
    tail, methods = (1 - CONFIDENCE) / 2, ("linear", "linear") if between else ("lower", "higher")
    return [float(np.quantile(values, q, method=method)) for q, method in zip((tail, 1 - tail), methods)]


def bootstrap(first: np.ndarray, score: str, n: int, seed: int, second: np.ndarray | None = None) -> list[float]:
    """95 % interval of the mean of `score` over folds, or of how much it is above that of `second`, by drawing subjects
    with replacement, the same for both; their folds may differ. NaN for one subject."""
    models = in_common([each for each in (first, second) if each is not None], "subject")
    subjects = np.unique(models[0]["subject"])
    if len(subjects) < 2:
        return [np.nan, np.nan]
    weights = draws(len(subjects), n, seed)
    means = [Tally(each, subjects).mean(score, weights) for each in models]
    return percentiles(means[0] if second is None else means[0] - means[1])


def in_common(models: list[np.ndarray], name: str = "fold") -> list[np.ndarray]:
    """The predictions of several models, as far as all of them have the fold, or what `name` says."""
    common = functools.reduce(np.intersect1d, [each[name] for each in models])
    return [each[np.isin(each[name], common)] for each in models]


def order(predictions: np.ndarray) -> np.ndarray:
    """(n,) rank of each probability within its fold, from 1; equal ones share the mean of their ranks."""
    ranks = np.zeros(len(predictions))
    for fold in np.unique(predictions["fold"]):
        own = predictions["fold"] == fold
        ranks[own] = stats.rankdata(predictions["probability"][own])
    return ranks


def sign_flip(first: np.ndarray, second: np.ndarray, score: str, permutations: int, seed: int) -> float:
    """Two-tailed P value of the difference of the means of `score` on the same segments, by exchanging the two models
    within subjects: in all 2^S ways, or in `permutations` random ones where that is fewer. NaN for one subject."""
    subjects = np.unique(first["subject"])
    s = len(subjects)
    if s < 2:
        return np.nan
    first, second = first.copy(), second.copy()
    if score == "auroc":  # so that both models have one scale
        first["probability"], second["probability"] = order(first), order(second)
    second["subject"] += subjects[-1] + 1
    tally = Tally(np.concatenate([first, second]), np.concatenate([subjects, subjects + subjects[-1] + 1]))

    def mean(chosen: np.ndarray) -> np.ndarray:
        weights = np.zeros((*chosen.shape[:-1], 2 * s))
        np.put_along_axis(weights, chosen, 1.0, -1)
        return tally.mean(score, weights.reshape(-1, 2 * s)).reshape(chosen.shape[:-1])

    models, random = (np.arange(s), np.arange(s, 2 * s)), np.random.default_rng(seed)
    how = {"permutation_type": "samples", "vectorized": True, "n_resamples": permutations, "batch": BATCH}
    test = stats.permutation_test(models, lambda one, other, axis: mean(one) - mean(other), rng=random, **how)
    return float(test.pvalue)


def auroc_null(predictions: np.ndarray, permutations: int, seed: int) -> np.ndarray:
    """(permutations,) mean AUROC over folds after permuting the labels of the trials within each subject: what a model
    reaches that knows who somebody is and nothing else. A fold that has one class alone is left out of the mean."""
    random = np.random.default_rng(seed)
    folds, fold = np.unique(predictions["fold"], return_inverse=True)
    ranks = order(predictions)
    trials, first, trial = np.unique(predictions[["subject", "trial"]], return_index=True, return_inverse=True)
    place, size = trial * len(folds) + fold, len(trials) * len(folds)
    rank_sums, counts = (np.bincount(place, each, size).reshape(len(trials), -1) for each in (ranks, ranks > 0))
    n_high, sums = np.zeros((2, permutations, len(folds)))
    for subject in np.unique(trials["subject"]):
        own = trials["subject"] == subject
        high = random.permuted(np.tile(predictions["label"][first[own]], (permutations, 1)), axis=1).astype(float)
        n_high, sums = n_high + high @ counts[own], sums + high @ rank_sums[own]
    with np.errstate(divide="ignore", invalid="ignore"):
        auroc = (sums - n_high * (n_high + 1) / 2) / (n_high * (counts.sum(0) - n_high))
        defined = np.isfinite(auroc)
        return np.where(defined, auroc, 0).sum(-1) / defined.sum(-1)


def direction_null(auroc: np.ndarray, permutations: int, seed: int) -> np.ndarray:
    """(N,) mean over folds of AUROC (k,), with its distance from 0.5 turned around in each fold or not: all 2^k ways,
    or `permutations` random ones where that is fewer. This is the null distribution of models trained on shuffled
    labels, which still find what varies most in the signals, in a direction that chance chose."""
    distance = auroc[np.isfinite(auroc)] - 0.5
    if (k := len(distance)) == 0:
        return distance
    if 2**k <= permutations:
        signs = np.array(list(itertools.product((-1, 1), repeat=k)))
    else:
        signs = np.random.default_rng(seed).choice((-1, 1), (permutations, k))
    return 0.5 + (signs * distance).mean(axis=-1)


def two_tailed(observed: float, null: np.ndarray) -> float:
    """The two-tailed P value of `observed` among draws from its null distribution, itself counted as one of them."""
    null = null[np.isfinite(null)]
    if np.isnan(observed):
        return np.nan
    below, above = (null <= observed + 1e-12).sum(), (null >= observed - 1e-12).sum()
    return float(min(1.0, 2 * (min(below, above) + 1) / (len(null) + 1)))


def by_fold(predictions: np.ndarray, score: str) -> np.ndarray:
    """(k,) the score in each fold that is there, in order."""
    parts = (predictions[predictions["fold"] == fold] for fold in np.unique(predictions["fold"]))
    return np.array([score_of(score, part["label"], part["probability"]) for part in parts])


def summarise(predictions: np.ndarray, n_folds: int, ratio: float, resamples: int, seed: int) -> dict:
    """Mean of each score over the n folds that define it, its half-widths of t without (interval) and with `ratio`
    (corrected), bootstrap [low, high] and by_fold; and the folds that are predicted, missing, or of one class."""
    found = np.unique(predictions["fold"])
    summary = {
        "folds": found.tolist(),
        "missing": np.setdiff1d(np.arange(n_folds), found).tolist(),
        "one_class": [int(k) for k in found if len(np.unique(predictions["label"][predictions["fold"] == k])) == 1],
    }
    for score in SCORES:
        values = by_fold(predictions, score)
        finite = values[np.isfinite(values)]
        summary[score] = {
            "mean": finite.mean() if len(finite) else np.nan,
            "n": len(finite),
            "interval": half_width(finite),
            "corrected": half_width(finite, ratio),
            "bootstrap": bootstrap(predictions, score, resamples, seed),
            "by_fold": values.tolist(),
        }
    return summary


def paired(first: np.ndarray, second: np.ndarray) -> list[np.ndarray]:
    """The predictions of two models in the folds that both have, in one order; ValueError if of other segments."""
    both = [each[np.lexsort((each["segment"], each["fold"]))] for each in in_common([first, second])]
    if not np.array_equal(*(each[["fold", "segment", "label"]] for each in both)):
        raise ValueError("expected predictions of the same segments in the same folds, found others")
    return both


def compare(
    first: np.ndarray, second: np.ndarray, score: str, ratio: float, resamples: int, permutations: int, seed: int
) -> dict:
    """First minus second over the folds that both have: the difference, its interval, three two-tailed P values, and
    `error`, the standard error of the corrected test; ValueError like `paired`."""
    first, second = paired(first, second)
    common = np.unique(first["fold"])
    differences = by_fold(first, score) - by_fold(second, score)
    common, differences = common[np.isfinite(differences)], differences[np.isfinite(differences)]
    first, second = (each[np.isin(each["fold"], common)] for each in (first, second))
    return {
        "folds": common.tolist(),
        "subjects": len(np.unique(first["subject"])),
        "difference": differences.mean() if len(common) else np.nan,
        "t": t_test(differences),
        "corrected": t_test(differences, ratio),
        "error": standard_error(differences, ratio),
        "sign_flip": sign_flip(first, second, score, permutations, seed),
        "bootstrap": bootstrap(first, score, resamples, seed, second),
    }
