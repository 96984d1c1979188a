"""Folds, labels and the leak guard against their definitions."""

import numpy as np
import pytest

from prepared import DTYPE
from protocol import folds
from protocol.run import SETTINGS, Run


def table(subjects=8, trials=10, segments=12, unrated=2, seed=0):
    """Rated subjects and `unrated` more; ratings differ by subject, so that thresholds differ."""
    random = np.random.default_rng(seed)
    rows = []
    for subject in range(subjects + unrated):
        for trial in range(trials):
            rating = random.integers(1, 10, 2) + (subject % 3) / 4 if subject < subjects else (np.nan, np.nan)
            count = segments - trial % 3
            rows += [(f"S{subject}", f"t{trial}", f"v{trial}", 10.0 * place, *rating) for place in range(count)]
    return np.array(rows, dtype=DTYPE)


def key(rows, split):
    fields = {"subject": ["subject"], "video": ["video"], "trial": ["subject", "trial"], "block": ["subject", "trial"]}
    return {tuple(row) for row in rows[fields[split]].tolist()}


def make_run(data_table, tmp_path, **settings):
    settings = {**SETTINGS, **settings}
    assigned = folds.assign_folds(data_table, settings["split"], settings["n_folds"], settings["fold_seed"])

    class Data:
        table, folder = data_table, tmp_path

    return Run(tmp_path, settings, Data, assigned)


@pytest.mark.parametrize("split", folds.SPLITS)
def test_every_rated_unit_is_tested_once_and_parts_are_disjoint(split, tmp_path):
    data = table()
    n_folds = 8 if split == "subject" else 10
    run = make_run(data, tmp_path, split=split, n_folds=n_folds)
    rated = ~np.isnan(data["arousal"])
    tested = np.concatenate([run.split(fold)["test"] for fold in range(n_folds)])
    assert len(np.unique(tested)) == len(tested)
    if split == "block":
        assert set(np.flatnonzero(~rated)) & set(tested) == set()
    elif split == "video":  # an unrated subject shares the videos
        assert len(tested) == len(data)
    else:
        assert np.array_equal(np.sort(tested), np.flatnonzero(rated))
    for fold in range(n_folds):
        rows = run.split(fold)
        parts = [rows[name] for name in ("train", "validation", "test")]
        assert len(np.unique(np.concatenate(parts))) == sum(map(len, parts))
        assert not np.isin(rows["pretrain"], np.concatenate(parts[1:])).any()
        assert np.isin(rows["train"], rows["pretrain"]).all()
        if split in ("subject", "video", "trial"):
            keys = [key(data[part], split) for part in parts]
            assert not keys[0] & keys[1] and not keys[0] & keys[2] and not keys[1] & keys[2]
            assert not key(data[rows["pretrain"]], split) & (keys[1] | keys[2])


@pytest.mark.parametrize("split", ["segment", "trial"])
def test_unrated_segments_join_pretraining(split, tmp_path):
    data = table()
    run = make_run(data, tmp_path, split=split)
    unrated = np.flatnonzero(np.isnan(data["arousal"]))
    for fold in range(10):
        rows = run.split(fold)
        assert np.isin(unrated, rows["pretrain"]).all() and not np.isin(unrated, rows["train"]).any()


def test_an_unrated_trial_of_a_tested_subject_is_left_out_of_pretraining(tmp_path):
    data = table(unrated=0)
    data["arousal"][(data["subject"] == "S3") & (data["trial"] == "t2")] = np.nan
    data["valence"][(data["subject"] == "S3") & (data["trial"] == "t2")] = np.nan
    run = make_run(data, tmp_path, split="subject", n_folds=8)
    fold = next(fold for fold in range(8) if "S3" in data["subject"][run.split(fold)["test"]])
    assert "S3" not in data["subject"][run.split(fold)["pretrain"]]


def test_validation_is_a_ninth_of_the_rest(tmp_path):
    run = make_run(table(), tmp_path)
    for fold in range(10):
        rows = run.split(fold)
        assert len(rows["validation"]) == pytest.approx((len(rows["train"]) + len(rows["validation"])) / 9, abs=5)


@pytest.mark.parametrize("split", ["video", "subject"])
def test_the_largest_unit_is_trained_on_as_often_as_others(tmp_path, split):
    data = table(subjects=20, trials=20, unrated=0)
    largest = data[split] == data[split][0]
    data = np.concatenate([data, *[data[largest]] * 9])
    data["start"] = np.arange(len(data))
    largest = data[split] == data[split][0]
    trained = []
    for seed in range(5):
        run = make_run(data, tmp_path, split=split, fold_seed=seed)
        trained += [np.isin(np.flatnonzero(largest), run.split(fold)["train"]).all() for fold in range(10)]
    assert 0.65 < np.mean(trained) < 0.95  # 9 of 10 folds do not test it, of which it validates one in nine


def test_segment_folds_are_balanced_in_size_and_label(tmp_path):
    data = table()
    run = make_run(data, tmp_path)
    sizes = np.bincount(run.folds[run.folds >= 0])
    assert sizes.max() - sizes.min() <= 9
    for target in ("arousal", "valence"):
        high = run.labels(target, None)
        shares = [high[run.folds == fold].mean() for fold in range(10)]
        assert max(shares) - min(shares) < 0.06, target


def test_blocks_are_contiguous_fifths_with_a_gap_between_them():
    data = table(subjects=2, trials=1, segments=20, unrated=0)
    data = data[np.random.default_rng(0).permutation(len(data))]
    unit = folds.units(data, "block")
    for subject in ("S0", "S1"):
        rows = np.flatnonzero(data["subject"] == subject)
        rows = rows[np.argsort(data["start"][rows])]
        assert (unit[rows] == -1).tolist() == [False, False, False, True] * 4 + [False] * 4
        kept = unit[rows][unit[rows] >= 0]
        assert (np.diff(kept) >= 0).all() and len(np.unique(kept)) == 5
    assert not set(unit[data["subject"] == "S0"]) & set(unit[data["subject"] == "S1"]) - {-1}
    short = folds.units(table(subjects=1, trials=1, segments=4, unrated=0), "block")
    assert (short == -1).tolist() == [False, True, False, False]


def test_folds_depend_on_the_seed_and_on_nothing_else():
    data = table()
    first = folds.assign_folds(data, "segment", 10, 0)
    assert first.dtype == np.int8
    assert np.array_equal(first, folds.assign_folds(data, "segment", 10, 0))
    assert not np.array_equal(first, folds.assign_folds(data, "segment", 10, 1))


def test_validation_follows_the_seed_and_the_fold(tmp_path):
    data = table()
    runs = [make_run(data, tmp_path, fold_seed=seed) for seed in (0, 0, 1)]
    same = [Run(tmp_path, run.settings, run.data, runs[0].folds) for run in runs]
    first, again, other = (run.split(3)["validation"].tolist() for run in same)
    assert first == again != other


def test_a_rating_at_the_threshold_is_not_high():
    data = table(subjects=1, trials=4)
    data["arousal"] = np.resize([5.3, 4.9, 5.4, 4.8], len(data))
    for limit, high in (("5.3", [5.4]), ("4.9", [5.3, 5.4])):
        labels = folds.labels(data, "arousal", limit)
        assert set(np.round(data["arousal"][labels == 1].astype(float), 1)) == set(high)


def test_thresholds_count_each_rated_trial_once():
    rows = [("A", "1", "x", 0.0, 1, 5)] * 8 + [("A", "2", "y", 0.0, 5, 5)] + [("B", "1", "x", 0.0, 6, 5)]
    rows += [("B", "2", "y", 0.0, 9, 9), ("B", "3", "y", 0.0, np.nan, np.nan)]
    data = np.array(rows, dtype=DTYPE)
    # Mean over the four rated trials 5.25; over segments it would be 2.8.
    assert folds.labels(data, "arousal", "global").tolist() == [0] * 8 + [0, 1, 1, -1]
    assert folds.labels(data, "valence", "global").tolist() == [0] * 8 + [0, 0, 1, -1]
    assert folds.labels(data, "arousal", "subject").tolist() == [0] * 8 + [1, 0, 1, -1]  # means 3 and 7.5
    assert folds.labels(data, "arousal", "9.0").tolist() == [0] * 8 + [0, 0, 0, -1]  # high is above, not at
    assert folds.labels(data, "arousal", "4.5").tolist() == [0] * 8 + [1, 1, 1, -1]
    train = np.arange(9)  # subject A: mean 3
    assert folds.labels(data, "arousal", "train", train).tolist() == [0] * 8 + [1, 1, 1, -1]
