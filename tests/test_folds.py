"""Folds, labels and the leak guard against their definitions."""

from types import SimpleNamespace

import numpy as np
import pytest

from prepared import DTYPE, FINETUNE, PRETRAIN, done, refusal, write_set
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
    fields = {"subject": ["subject"], "video": ["video"]}.get(split, ["subject", "trial"])
    return set(rows[fields].tolist())


def make_run(data_table, tmp_path, **settings):
    settings = {**SETTINGS, **settings}
    assigned = folds.assign_folds(data_table, settings["split"], settings["n_folds"], settings["fold_seed"])
    return Run(tmp_path, settings, SimpleNamespace(table=data_table, folder=tmp_path), assigned)


@pytest.mark.parametrize("split", folds.SPLITS)
def test_every_rated_unit_is_tested_once_and_parts_are_disjoint(split, tmp_path):
    data = table()
    n_folds = 8 if split == "subject" else 10
    run = make_run(data, tmp_path, split=split, n_folds=n_folds)
    rated = np.flatnonzero(~np.isnan(data["arousal"]))
    tested = np.sort(np.concatenate([run.split(fold)["test"] for fold in range(n_folds)]))
    assert (np.diff(tested) > 0).all()
    if split == "block":
        assert set(tested) <= set(rated)
    else:  # an unrated subject shares the videos
        assert np.array_equal(tested, np.arange(len(data)) if split == "video" else rated)
    for rows in map(run.split, range(n_folds)):
        parts = [rows[name] for name in ("train", "validation", "test")]
        assert len(np.unique(np.concatenate(parts))) == sum(map(len, parts))
        assert not np.isin(rows["pretrain"], np.concatenate(parts[1:])).any()
        assert np.isin(rows["train"], rows["pretrain"]).all()
        if split in ("subject", "video", "trial"):
            train, validation, test = (key(data[part], split) for part in parts)
            assert not train & validation and not (train | validation) & test
            assert not key(data[rows["pretrain"]], split) & (validation | test)


@pytest.mark.parametrize("split", ["segment", "trial"])
def test_unrated_segments_join_pretraining_and_validation_is_a_ninth(split, tmp_path):
    data = table()
    run = make_run(data, tmp_path, split=split)
    unrated = np.flatnonzero(np.isnan(data["arousal"]))
    for rows in map(run.split, range(10)):
        assert np.isin(unrated, rows["pretrain"]).all() and not np.isin(unrated, rows["train"]).any()
        if split == "segment":
            rest = len(rows["train"]) + len(rows["validation"])
            assert len(rows["validation"]) == pytest.approx(rest / 9, abs=5)


def test_an_unrated_trial_of_a_tested_subject_is_left_out_of_pretraining(tmp_path):
    data = table(unrated=0)
    trial = (data["subject"] == "S3") & (data["trial"] == "t2")
    data["arousal"][trial] = data["valence"][trial] = np.nan
    run = make_run(data, tmp_path, split="subject", n_folds=8)
    (rows,) = [rows for rows in map(run.split, range(8)) if "S3" in data["subject"][rows["test"]]]
    assert "S3" not in data["subject"][rows["pretrain"]]


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


def test_folds_and_validation_depend_on_the_seed_and_on_nothing_else(tmp_path):
    data = table()
    first, again, other = runs = [make_run(data, tmp_path, fold_seed=seed) for seed in (0, 0, 1)]
    assert first.folds.dtype == np.int8 and np.array_equal(first.folds, again.folds)
    assert not np.array_equal(first.folds, other.folds)
    same = [Run(tmp_path, run.settings, run.data, first.folds) for run in runs]
    first, again, other = (run.split(3)["validation"].tolist() for run in same)
    assert first == again != other


@pytest.mark.parametrize("split", folds.SPLITS)
def test_a_set_without_ratings_is_pre_trained_on_whole(split, tmp_path):
    data = table(subjects=0, unrated=3)
    run = make_run(data, tmp_path, split=split)
    rows, unit = run.split(3), folds.units(data, split)
    assert len(rows["test"]) == 0 < len(rows["validation"]) and np.array_equal(rows["pretrain"], rows["train"])
    both = np.concatenate([rows["train"], rows["validation"]])
    assert np.array_equal(np.sort(both), np.flatnonzero(unit >= 0))
    assert not set(unit[rows["train"]]) & set(unit[rows["validation"]])
    with pytest.raises(ValueError, match="no segment has a rating; give a set with arousal or valence"):
        run.labelled(3, "arousal", None)


@pytest.mark.parametrize("subjects, advice", [(1, "use --split segment, or the set"), (3, "use fewer folds")])
def test_too_few_people_for_the_folds(subjects, advice):
    with pytest.raises(ValueError, match=f"--split subject has only {subjects} units? with a rating; {advice}"):
        folds.assign_folds(table(subjects=subjects), "subject", 10, 0)


def test_pre_training_on_recordings_of_ones_own_alone(tmp_path):
    """Two people, the fewest; what they have taught is no model of a rating."""
    write_set(tmp_path / "data" / "amigos", subjects=0, unrated=2)
    cell = "--modality", "eeg", "--fold", 0
    said = done("pretrain.py", *cell, "--n-folds", 4, "--split", "subject", *PRETRAIN, cwd=tmp_path)
    assert "note: no segment of data/amigos has a rating" in said
    assert "pre-training on 20 of 40 segments" in said and "validation on 20 segments" in said
    refused = refusal("finetune.py", *cell, "--target", "arousal", *FINETUNE, cwd=tmp_path)
    assert "no segment has a rating; give a set with arousal or valence" in refused


def test_thresholds_count_each_rated_trial_once():
    rows = [("A", "1", "x", 0.0, 1, 5)] * 8 + [("A", "2", "y", 0.0, 5, 5.3)] + [("B", "1", "x", 0.0, 6, 5)]
    rows += [("B", "2", "y", 0.0, 9, 9), ("B", "3", "y", 0.0, np.nan, np.nan)]
    data = np.array(rows, dtype=DTYPE)
    for target, threshold, high in (
        ("arousal", "global", [0, 1, 1]),  # mean over the four rated trials 5.25; over segments it would be 2.8
        ("valence", "global", [0, 0, 1]),
        ("arousal", "subject", [1, 0, 1]),  # means 3 and 7.5
        ("arousal", "9.0", [0, 0, 0]),  # high is above, not at
        ("valence", "5.3", [0, 0, 1]),  # a rating is kept as float32
        ("arousal", "4.5", [1, 1, 1]),
        ("arousal", "train", [1, 1, 1]),  # on subject A: mean 3
    ):
        found = folds.labels(data, target, threshold, np.arange(9) if threshold == "train" else None)
        assert found.tolist() == [*[0] * 8, *high, -1], (target, threshold)
