"""Several runs of one design, such as cohorts or seeds, pooled: each model without and with pre-training."""

import argparse
from dataclasses import replace
from pathlib import Path

import numpy as np
from tqdm import tqdm

from analysis import reading, scores
from analysis.tables import HEADS, SHOWN, number, p_value, span

APART = 10**6  # between the numbers of people, trials and folds of two runs
DRAWS, EXCHANGES = 2000, 9999  # of people and of models, as evaluate.py has them


def add_flags(part: argparse.ArgumentParser) -> None:
    """Add the flags of this part."""
    part.add_argument("--run", type=Path, nargs="+", required=True, help="folders of runs of one design")
    part.add_argument("--same-people", action="store_true", help="the runs hold the same people, as seeds do")


def stacked(predictions: list[np.ndarray], same_people: bool) -> np.ndarray:
    """The predictions of several runs as those of one: of other folds, segments and, unless `same_people`, people."""
    together = np.concatenate(predictions)
    apart = np.repeat(np.arange(len(predictions)) * APART, list(map(len, predictions)))
    for name in ("fold", "segment", *(() if same_people else ("subject", "trial"))):
        together[name] += apart
    return together


def read(folders: list[Path], same_people: bool) -> tuple[list[dict], dict[str, float]]:
    """The models of each run, and by target the ratio of test to training segments of a fold; ValueError where the runs
    are not of one design, or their people not the same, or others, as they should be."""
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


def cells(pair: tuple, score: str, ratio: float, same_people: bool) -> list[str]:
    """One line of the table; means count each fold once. pair: predictions without and with pre-training, by run."""
    folds = [[scores.by_fold(each, score) for each in side] for side in pair]
    means = [np.array([np.nanmean(each) for each in side]) for side in folds]
    gains = np.concatenate(folds[1]) - np.concatenate(folds[0])
    gains = gains[np.isfinite(gains)]
    # The folds of one run share data. Runs of the same people share as much, those of other people nothing (assumed).
    shared = ratio if same_people else ratio / len(pair[0])
    random, trained = (stacked(side, same_people) for side in pair)
    people = scores.bootstrap(trained, score, DRAWS, 0, random)
    return [
        *(f"{number(side.mean())} ({' '.join(map(number, side))})" for side in means),
        f"{number(gains.mean(), '+')} {span(people)}",
        p_value(scores.t_test(gains, shared)),
        p_value(scores.sign_flip(trained, random, score, EXCHANGES, 0)),
    ]


def run(flags: argparse.Namespace) -> None:
    """What pre-training gives: each model without and with it, over several runs of one design."""
    models, ratios = read(flags.run, flags.same_people)
    without = {model: replace(model, init="random") for model in models[0] if model.init == "pretrained"}
    pairs = [
        (target, *pair)
        for pair in without.items()
        for target in models[0][pair[0]]
        if all(target in own.get(each, {}) for own in models for each in pair)
    ]
    if not pairs:
        raise ValueError("--run: no model with and without pre-training in all of these runs; run finetune.py first")
    print(f"Of {len(flags.run)} runs: {' '.join(map(str, flags.run))}\n")
    print("| | score | random (each run) | pre-trained (each run) | difference [people] | P corrected | P people |")
    print("|---|---|---|---|---|---|---|")
    for target, model, random in tqdm(pairs, unit="model", disable=None, leave=False):
        pair = list(zip(*(scores.paired(own[random][target], own[model][target]) for own in models)))
        if not all(len(each) for each in pair[0]):
            raise ValueError(f"--run: no fold that both {model.label} and {random.label} predict; run finetune.py")
        for score in SHOWN:
            line = [f"{model.label}, {target}", HEADS[score], *cells(pair, score, ratios[target], flags.same_people)]
            tqdm.write(f"| {' | '.join(line)} |")
    print(
        "\nMeans over folds. Difference: [low, high] by drawing people. P corrected: t over the folds of all runs, "
        "corrected for what they share. P people: exchange of the two models within people. Two-tailed, not adjusted."
    )
