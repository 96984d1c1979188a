"""Scores, intervals and tests against scikit-learn, SciPy, written-out formulas, enumeration and planted truth."""

import itertools

import numpy as np
import pytest
from scipy import stats
from sklearn import metrics

from analysis import scores

SKLEARN = {
    "accuracy": lambda label, p: metrics.accuracy_score(label, p > 0.5),
    "f1": lambda label, p: metrics.f1_score(label, p > 0.5, average="macro"),
    "balanced_accuracy": lambda label, p: metrics.balanced_accuracy_score(label, p > 0.5),
    "auroc": metrics.roc_auc_score,
}


def predictions(seed=0, subjects=6, folds=4, segments=40, skill=1.0, decimals=1):
    """Predictions of `segments` segments of each subject, dealt to the folds; rounded, so that ties occur."""
    random = np.random.default_rng(seed)
    made = np.empty(subjects * segments, scores.PREDICTIONS)
    made["segment"] = np.arange(len(made))
    made["subject"], made["trial"] = made["segment"] // segments, made["segment"] // 5
    made["fold"] = random.permuted(np.arange(len(made)) % folds)
    made["label"] = random.integers(2, size=len(made) // 5 + 1)[made["trial"]]
    logit = skill * (2 * made["label"] - 1) + 2 * random.standard_normal(len(made))
    made["probability"] = np.round(1 / (1 + np.exp(-logit)), decimals)
    return np.sort(made, order=["fold", "segment"])


def auroc_without_pairs_of_copies(made, weight):
    """Pairs of a high and a low segment of subjects drawn `weight` times, but none of two copies of one subject."""
    right, pairs = 0.0, 0
    for high, low in itertools.product(made[made["label"] == 1], made[made["label"] == 0]):
        one, other = weight[high["subject"]], weight[low["subject"]]
        count = one if high["subject"] == low["subject"] else one * other
        better = high["probability"] - low["probability"]
        right, pairs = right + count * ((better > 0) + (better == 0) / 2), pairs + count
    return right / pairs


def test_scores_of_one_class_alone():
    label, probability = np.zeros(4, int), np.array([0.1, 0.2, 0.3, 0.9])
    found = [scores.score_of(score, label, probability) for score in ("accuracy", "f1", "balanced_accuracy", "auroc")]
    assert found == pytest.approx([3 / 4, (6 / 7 + 0) / 2, np.nan, np.nan], abs=1e-15, nan_ok=True)


def test_per_subject_against_scikit_learn():
    made = predictions(seed=1)
    found = scores.per_subject(made)
    for subject, score in itertools.product(range(6), scores.SCORES):
        own = made[made["subject"] == subject]
        assert (own["probability"] == 0.5).any() and len(np.unique(own["probability"])) < 20  # not high; ties
        expected = SKLEARN[score](own["label"], own["probability"])
        assert found[subject]["segments"] == 40 and found[subject][score] == pytest.approx(expected, abs=1e-12)


def test_prior_is_the_mean_training_label_of_the_group_or_of_all():
    found = scores.prior(np.array([1, 1, 0, 0, 1]), np.array([7, 7, 7, 2, 4]), np.array([2, 7, 4, 9, 0, 3]))
    assert found.tolist() == pytest.approx([0, 2 / 3, 1, 3 / 5, 3 / 5, 3 / 5], abs=1e-15)


VALUES = np.array([0.81, 0.79, 0.80, 0.84, 0.78, 0.82, 0.80, 0.81, 0.83, 0.77])
OTHERS = np.array([0.80, 0.80, 0.77, 0.83, 0.76, 0.79, 0.81, 0.78, 0.80, 0.77])


def test_t_interval_and_p_value_are_scipys():
    low, high = stats.ttest_1samp(VALUES, 0).confidence_interval(0.95)
    assert scores.half_width(VALUES) == pytest.approx((high - low) / 2, abs=1e-12)
    assert scores.t_test(VALUES - OTHERS) == pytest.approx(stats.ttest_rel(VALUES, OTHERS).pvalue, abs=1e-12)
    assert np.isnan(scores.half_width(VALUES[:1])) and np.isnan(scores.t_test(VALUES[:1]))
    assert (scores.t_test(np.zeros(5)), scores.t_test(np.ones(5))) == (1.0, 0.0)


def test_correction_of_nadeau_and_bengio():
    # Ten folds, test to training 1/9: sqrt((1/10 + 1/9) / (1/10)) = 1.4530 as wide.
    assert scores.half_width(VALUES, 1 / 9) / scores.half_width(VALUES) == pytest.approx(np.sqrt(19 / 9), abs=1e-12)
    difference = VALUES - OTHERS
    t = difference.mean() / np.sqrt((1 / 10 + 1 / 9) * ((difference - difference.mean()) ** 2).sum() / 9)
    assert scores.t_test(difference, 1 / 9) == pytest.approx(2 * stats.t(9).cdf(-abs(t)), abs=1e-12)


def test_holm_against_written_out_numbers():
    # Sorted: .005 x 4, .01 x 3, .03 x 2 = .06, .04 x 1 raised to .06.
    found = scores.holm([0.01, 0.04, np.nan, 0.03, 0.005])
    assert found == pytest.approx([0.03, 0.06, np.nan, 0.06, 0.02], abs=1e-12, nan_ok=True)
    assert scores.holm([0.6, 0.5]).tolist() == [1.0, 1.0]
    assert scores.holm([]).tolist() == []


@pytest.mark.parametrize("score", scores.SCORES)
def test_resampled_scores_are_those_of_the_repeated_subjects(score):
    made = predictions()
    random = np.random.default_rng(1)
    weights = random.integers(0, 4, (5, 6)).astype(float)
    weights[4] = 1
    found = scores.Tally(made, np.arange(6)).mean(score, weights)
    assert np.isfinite(found).all()
    for weight, value in zip(weights, found):
        by_fold, shares = [], []
        for fold in range(4):
            own = made[made["fold"] == fold]
            repeated = np.repeat(own, weight[own["subject"]].astype(int))
            if score == "auroc":
                by_fold.append(auroc_without_pairs_of_copies(own, weight))
            else:
                by_fold.append(SKLEARN[score](repeated["label"], repeated["probability"]))
            shares.append(len(repeated) / len(own))
        assert value == pytest.approx(np.average(by_fold, weights=shares), abs=1e-12)
    assert found[4] == pytest.approx(scores.by_fold(made, score).mean(), abs=1e-12)


def test_a_fold_whose_subjects_were_not_drawn_does_not_count():
    made = predictions(subjects=4, folds=2)
    made["fold"] = made["subject"] // 2
    made.sort(order=["fold", "segment"])
    tally = scores.Tally(made, np.arange(4))
    for score in scores.SCORES:
        first, value = scores.by_fold(made[made["fold"] == 0], score)[0], tally.mean(score, np.array([[1.0, 1, 0, 0]]))
        assert value[0] == pytest.approx(first, abs=1e-12)
        assert np.isnan(tally.mean(score, np.zeros((1, 4))))[0]


def test_bootstrap_of_accuracy_is_scipys():
    """Subjects of equal size in one fold: it is that of the mean of their accuracies, within the error of the draws."""
    made = predictions(subjects=30, folds=1)
    accuracies = [each["accuracy"] for each in scores.per_subject(made).values()]
    known = stats.bootstrap((accuracies,), np.mean, n_resamples=20000, method="percentile", rng=1).confidence_interval
    found = scores.bootstrap(made, "accuracy", 20000, 0)
    assert found == pytest.approx(list(known), abs=0.003)
    assert found == scores.bootstrap(made, "accuracy", 20000, 0)
    assert found != scores.bootstrap(made, "accuracy", 20000, 1)


def test_bootstrap_of_a_difference_draws_the_same_subjects():
    first, second = predictions(skill=2.0), predictions(skill=2.0)
    second["probability"] = np.where(second["subject"] % 2, second["probability"], 1 - second["probability"])
    weights = scores.draws(6, 300, 5)
    pair = [scores.Tally(each, np.arange(6)).mean("f1", weights) for each in (first, second)]
    found = scores.bootstrap(first, "f1", 300, 5, second)
    assert found == pytest.approx(np.quantile(pair[0] - pair[1], [0.025, 0.975]), abs=1e-12)
    assert scores.bootstrap(first, "f1", 300, 5, first) == [0.0, 0.0]


@pytest.mark.parametrize("score", scores.SCORES)
def test_sign_flip_is_the_enumeration_of_all_exchanges(score):
    first, second = predictions(seed=0, subjects=5, skill=1.5), predictions(seed=0, subjects=5, skill=1.5)
    random = np.random.default_rng(3)
    second["probability"] = np.round(0.7 * second["probability"] + 0.3 * random.random(len(second)), 1)
    values = [first["probability"], second["probability"]]
    if score == "auroc":  # on one scale: ranks within each fold
        values = [np.zeros(len(first)), np.zeros(len(first))]
        for ranks, made in zip(values, (first, second)):
            for fold in range(4):
                ranks[made["fold"] == fold] = stats.rankdata(made["probability"][made["fold"] == fold])

    def difference(swapped):
        means = []
        for a, b in itertools.permutations(values):
            p, folds = np.where(np.isin(first["subject"], swapped), b, a), [first["fold"] == k for k in range(4)]
            means.append(np.mean([SKLEARN[score](first["label"][rows], p[rows]) for rows in folds]))
        return means[0] - means[1]

    subsets = itertools.chain.from_iterable(itertools.combinations(range(5), k) for k in range(6))
    null = np.array([difference(subset) for subset in subsets])
    expected = (np.abs(null) >= abs(null[0]) - 1e-12).mean()
    assert len(null) == 32
    assert scores.sign_flip(first, second, score, 1000, 0) == pytest.approx(expected, abs=1e-12)


def test_random_exchanges_agree_with_all_and_follow_the_seed():
    first, second = predictions(subjects=12, skill=1.0), predictions(subjects=12, skill=1.1)
    every = scores.sign_flip(first, second, "f1", 4096, 0)
    some = [scores.sign_flip(first, second, "f1", 4095, seed) for seed in (0, 1, 0)]
    assert 0.1 < every < 0.5 and every not in some and some[0] == some[2] != some[1]
    assert some == pytest.approx([every] * 3, abs=4 * np.sqrt(every * (1 - every) / 4095))


def test_one_subject_has_no_interval_over_subjects():
    made = predictions(subjects=1)
    assert np.isnan(scores.bootstrap(made, "f1", 10, 0)).all()
    assert np.isnan(scores.sign_flip(made, made, "f1", 10, 0))


def test_auroc_null_is_that_of_all_permutations_within_subjects():
    made = predictions(seed=2, subjects=2, folds=2, segments=15)  # three trials each
    trials = [np.unique(made["trial"][made["subject"] == subject]) for subject in range(2)]
    label = {trial: made["label"][made["trial"] == trial][0] for trial in np.unique(made["trial"])}
    label.update({trials[0][0]: 1, trials[0][1]: 0, trials[1][0]: 1, trials[1][2]: 0})
    made["label"] = [label[trial] for trial in made["trial"]]
    every = []
    for one, other in itertools.product(*(itertools.permutations(each) for each in trials)):
        moved = {old: label[new] for old, new in zip(np.concatenate(trials), (*one, *other))}
        permuted = np.array([moved[trial] for trial in made["trial"]])
        folds = [made["fold"] == fold for fold in range(2)]
        every.append(np.mean([metrics.roc_auc_score(permuted[rows], made["probability"][rows]) for rows in folds]))
    null = scores.auroc_null(made, 4000, 0)
    assert np.unique(np.round(null, 10)).tolist() == pytest.approx(np.unique(np.round(every, 10)).tolist(), abs=1e-9)
    assert null.mean() == pytest.approx(np.mean(every), abs=4 * np.std(every) / 4000**0.5)


def test_direction_null_is_every_way_of_turning_folds_around():
    auroc = np.array([0.9, 0.4, np.nan, 0.75])
    distance = np.array([0.4, -0.1, 0.25])
    every = [0.5 + np.mean(distance * signs) for signs in itertools.product([-1, 1], repeat=3)]
    assert np.sort(scores.direction_null(auroc, 99, 0)) == pytest.approx(np.sort(every), abs=1e-12)
    assert scores.direction_null(auroc[1:3], 99, 0).tolist() == pytest.approx([0.6, 0.4])
    assert len(scores.direction_null(auroc[2:3], 99, 0)) == 0
    assert scores.percentiles(np.array(every), between=False) == pytest.approx([min(every), max(every)])


def test_two_tailed_counts_the_observed():
    null = np.arange(99) / 100
    found = [scores.two_tailed(observed, null) for observed in (2.0, 0.495, np.nan)]
    assert found == pytest.approx([2 / 100, 1.0, np.nan], nan_ok=True)


def test_compare_puts_everything_together():
    first, second = predictions(), predictions(skill=0.0)
    second["label"] = first["label"]
    found = scores.compare(first, second, "auroc", 1 / 3, 200, 500, 0)
    differences = scores.by_fold(first, "auroc") - scores.by_fold(second, "auroc")
    assert found["folds"] == [0, 1, 2, 3] and found["subjects"] == 6
    assert found["difference"] == pytest.approx(differences.mean(), abs=1e-12)
    assert found["t"] == scores.t_test(differences) and found["corrected"] == scores.t_test(differences, 1 / 3)
    assert found["sign_flip"] == scores.sign_flip(first, second, "auroc", 500, 0)
    low, high = found["bootstrap"]
    assert [low, high] == scores.bootstrap(first, "auroc", 200, 0, second) and low < differences.mean() < high
    fewer = scores.compare(first, second[second["fold"] != 2], "auroc", 1 / 3, 200, 500, 0)
    assert fewer["folds"] == [0, 1, 3]
    assert fewer["difference"] == pytest.approx(differences[[0, 1, 3]].mean(), abs=1e-12)
    nothing = scores.compare(first, second[:0], "auroc", 1 / 3, 200, 500, 0)
    assert nothing["folds"] == [] and all(np.isnan(nothing[test]) for test in ("t", "corrected", "sign_flip"))
    with pytest.raises(ValueError, match="same segments"):
        scores.compare(first, second[1:], "auroc", 1 / 3, 200, 500, 0)


def test_summary_says_which_folds_are_missing_or_of_one_class():
    made = predictions()
    made["label"][made["fold"] == 2] = 1
    summary = scores.summarise(made[made["fold"] != 1], 4, 0.2, 100, 0)
    assert (summary["folds"], summary["missing"], summary["one_class"]) == ([0, 2, 3], [1], [2])
    assert summary["f1"]["n"] == 3 and summary["auroc"]["n"] == 2
    values = scores.by_fold(made, "accuracy")[[0, 2, 3]]
    assert summary["accuracy"]["by_fold"] == pytest.approx(values, abs=1e-12)
    assert summary["accuracy"]["corrected"] == pytest.approx(scores.half_width(values, 0.2), abs=1e-12)


def differences_of_two_learners(random, fraction, edge=0.0, folds=10):
    """(folds,) macro F1 of one learner minus that of another, trained on this share of the trials of the other folds.

    Each sees ten features of its own, of one strength but for `edge`: without it, neither is better on average.
    """
    people, trials, segments = 20, 10, 3
    subject = np.repeat(np.arange(people), trials * segments)
    trial = np.repeat(np.arange(people * trials), segments)
    label = random.integers(2, size=people * trials)[trial]
    fold = random.permuted(np.arange(people) % folds)[subject]
    differences = np.zeros(folds)
    for sign, strength in ((1, 0.35 + edge), (-1, 0.35)):
        x = random.normal(size=(people, 10))[subject] / 2 + random.normal(size=(people * trials, 10))[trial] / 2
        x = np.c_[x + random.normal(size=x.shape) + strength * (2 * label - 1)[:, None], np.ones(len(x))]
        for k in range(folds):
            known = np.unique(trial[fold != k])
            train = np.isin(trial, random.choice(known, round(fraction * len(known)), replace=False))
            weights = np.linalg.solve(x[train].T @ x[train] + 3 * np.eye(11), x[train].T @ (2 * label[train] - 1))
            own = fold == k
            confusion = np.bincount(2 * label[own] + (x[own] @ weights > 0), minlength=4)
            differences[k] += sign * scores.from_confusion("f1", *confusion)
    return differences


@pytest.mark.slow
@pytest.mark.parametrize("fraction", [0.1, 0.3, 1.0])
def test_the_corrected_test_rejects_few_true_nulls_and_finds_differences(fraction):
    random = np.random.default_rng(0)
    nulls = [differences_of_two_learners(random, fraction) for _ in range(1500)]
    gains = [differences_of_two_learners(random, fraction, edge=0.3) for _ in range(200)]

    def rejected(all_differences, ratio):
        return np.mean([scores.t_test(each, ratio) < 0.05 for each in all_differences])

    false, power, divided = rejected(nulls, 1 / 9), rejected(gains, 1 / 9), rejected(gains, 1 / 9 / fraction)
    print(f"{fraction:g} of the labels: nulls {false:.3f}, gains {power:.3f}, by the divided ratio {divided:.3f}")
    assert 0.01 <= false <= 0.05
    assert power > 0.5 and (fraction == 1 or divided < power - 0.1)


def test_what_is_detectable_is_found_in_80_percent():
    random, ratio, k = np.random.default_rng(0), 1 / 9, 6
    for tests in (1, 4):
        shift = scores.detectable(1.0, k, tests)
        # The mean has the standard error 1; the folds scatter so that the corrected formula gives it.
        spread = 1 / np.sqrt(1 / k + ratio)
        mean, scatter = random.normal(shift, size=40_000), np.sqrt(random.chisquare(k - 1, 40_000) / (k - 1))
        error = scatter * spread * np.sqrt(1 / k + ratio)
        found = stats.t.sf(mean / error, k - 1) < 0.05 / tests / 2
        assert found.mean() == pytest.approx(0.8, abs=4 * 0.002)


@pytest.mark.slow
def test_what_an_interval_over_12_people_covers():
    """Cohorts of 12 people who differ in how well they are recognised, in 4 folds; the truth is the mean of many."""
    random, people = np.random.default_rng(0), 12

    def cohort():
        made = predictions(seed=int(random.integers(2**32)), subjects=people, folds=4, segments=40, decimals=6)
        made["fold"] = made["subject"] % 4
        skill = np.exp(0.5 * random.standard_normal(people))[made["subject"]]
        made["probability"] = 1 / (1 + np.exp(-skill * (2 * made["label"] - 1) - 2 * random.standard_normal(len(made))))
        return made

    truth = np.mean([scores.by_fold(cohort(), "f1").mean() for _ in range(4000)])
    intervals = np.array([scores.bootstrap(cohort(), "f1", 500, 0) for _ in range(600)])
    covered = np.mean((intervals[:, 0] <= truth) & (truth <= intervals[:, 1]))
    print(f"the interval held the truth in {covered:.3f} of cohorts")
    assert 0.85 <= covered <= 0.95
