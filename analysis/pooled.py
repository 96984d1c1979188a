"""Several runs of one design, such as cohorts or seeds, pooled: each model without and with pre-training."""

import argparse
from dataclasses import replace
from pathlib import Path

import numpy as np
from tqdm import tqdm

from analysis import reading, scores
from analysis.tables import HEADS, SHOWN, number, p_value, span
from common.script import positive
from protocol.records import Model

APART = 10**6  # between the numbers of people, trials and folds of two runs


def add_flags(part: argparse.ArgumentParser) -> None:
    """Add the flags of this part."""
    part.add_argument("--run", type=Path, nargs="+", required=True, help="folders of runs of one design")
    part.add_argument("--same-people", action="store_true", help="the runs hold the same people, as seeds do")
    count = {"type": positive(int), "metavar": "N"}
    part.add_argument("--permutations", **count, default=9999, help="exchanges of models (default: %(default)s)")
    part.add_argument("--bootstrap", **count, default=2000, help="draws of people (default: %(default)s)")


def stacked(predictions: list[np.ndarray], same_people: bool) -> np.ndarray:
    """The predictions of several runs as those of one: other folds, other segments and, unless `same_people`, other
    people."""
    parts = []
    for number_of_run, own in enumerate(predictions):
        own = own.copy()
        for name in ("fold", "segment", *(() if same_people else ("subject", "trial"))):
            own[name] += number_of_run * APART
        parts.append(own)
    return np.concatenate(parts)


def pooled_t(differences: list[np.ndarray], ratio: float, same_people: bool) -> float:
    """The corrected t-test over the folds of all runs: the mean of their means.

    Runs of other people are independent, so that what the folds of one share counts once for each; runs of the same
    people share it all (assumed).
    """
    folds = np.concatenate(differences)
    return scores.t_test(folds, ratio if same_people else ratio / len(differences))


def read(folders: list[Path], same_people: bool) -> tuple[list[dict], dict[str, float]]:
    """The models of each run, and by target the ratio of test to training segments of a fold; says what is missing.

    Raises ValueError where the runs are not of one design, or not of the same people, or of others, as they should be.
    """
    runs = [reading.open_runs([folder], None)[0] for folder in folders]
    for name in ("split", "n_folds", "validation_parts"):
        if len(found := {run.settings[name] for run in runs}) > 1:
            raise ValueError(f"--run: expected runs of one --{name.replace('_', '-')}, found {found}; pool them apart")
    sets = {run.settings["data_sha256"] for run in runs}
    if len(sets) != (1 if same_people else len(runs)):
        kind = "one data set" if same_people else "a data set of its own for each run; seeds of one set: --same-people"
        raise ValueError(f"--run: expected {kind}, found {len(sets)} sets in {len(runs)} runs")
    if len({run.folder.resolve() for run in runs}) < len(runs):
        raise ValueError("--run: the same run is there twice; take it once")
    models, sizes = [], {}
    for run in runs:
        parts = reading.rated_parts(run)
        found, notes = reading.read_models(run, parts)
        for note in notes:
            print(f"note: {run.folder}: {note}")
        models.append(found)
        for (_, target), (_, train, test) in parts.items():
            sizes.setdefault(target, []).append(len(test) / len(train))
    return models, {target: float(np.mean(found)) for target, found in sizes.items()}


def cells(pair: tuple, score: str, ratio: float, flags: argparse.Namespace) -> list[str]:
    """One line of the table; pair: the predictions of the model without and of that with pre-training, run by run.

    The means count each fold once, as the interval and both tests do.
    """
    folds = [[scores.by_fold(each, score) for each in side] for side in pair]
    means = [np.array([np.nanmean(each) for each in side]) for side in folds]
    gains = [after - before for before, after in zip(*folds)]
    random, trained = (stacked(side, flags.same_people) for side in pair)
    people = scores.bootstrap(trained, score, flags.bootstrap, 0, random)
    return [
        *(f"{number(side.mean())} ({' '.join(map(number, side))})" for side in means),
        f"{number(np.nanmean(np.concatenate(gains)), '+')} {span(people)}",
        p_value(pooled_t([each[np.isfinite(each)] for each in gains], ratio, flags.same_people)),
        p_value(scores.sign_flip(trained, random, score, flags.permutations, 0)),
    ]


def pairs_of(models: list[dict]) -> list[tuple]:
    """(model, target) that every run has with and without pre-training."""
    return [
        (model, target)
        for model in models[0]
        for target in models[0][model]
        if model.init == "pretrained"
        and all(target in own.get(each, {}) for own in models for each in (model, without(model)))
    ]


def without(model: Model) -> Model:
    """The same model without pre-training."""
    return replace(model, init="random")


def run(flags: argparse.Namespace) -> None:
    """What pre-training gives: each model without and with it, over several runs of one design."""
    models, ratios = read(flags.run, flags.same_people)
    pairs = pairs_of(models)
    if not pairs:
        raise ValueError("--run: no model with and without pre-training in all of these runs; run finetune.py first")
    print(f"Of {len(flags.run)} runs: {' '.join(map(str, flags.run))}\n")
    print("| | score | random (each run) | pre-trained (each run) | difference [people] | P corrected | P people |")
    print("|---|---|---|---|---|---|---|")
    for model, target in tqdm(pairs, unit="model", disable=None, leave=False):
        pair = list(zip(*(scores.paired(own[without(model)][target], own[model][target]) for own in models)))
        if not all(len(each) for each in pair[0]):
            raise ValueError(
                f"--run: no fold that both {model.label} and {without(model).label} predict; run finetune.py"
            )
        for score in SHOWN:
            line = [f"{model.label}, {target}", HEADS[score], *cells(pair, score, ratios[target], flags)]
            tqdm.write(f"| {' | '.join(line)} |")
    print(
        "\nMeans over folds. Difference: [low, high] by drawing people. P corrected: t over the folds of all runs, "
        "corrected for what they share. P people: exchange of the two models within people. Two-tailed, not adjusted."
    )
