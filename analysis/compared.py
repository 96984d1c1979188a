"""A run as evaluate.py has read it: the predictions of each model, what they score, and how models and runs differ."""

import argparse
import itertools
from dataclasses import dataclass, field, replace

import numpy as np
from tqdm import tqdm

from analysis import reading, scores
from paper import FUSED, MODALITIES, TARGETS
from protocol import folds
from protocol.records import Model
from protocol.run import Run

THRESHOLD = {
    "global": "mean of all trials, test included",
    "subject": "subject's mean, test included",
    "train": "mean of training trials",
}
TESTS = ("t", "corrected", "sign_flip")


@dataclass
class Evaluated:
    """A run, the predictions of its models, and all that was computed of them."""

    run: Run
    parts: dict  # (fold, target) -> labels (n,), rated training rows, rated test rows
    models: dict  # Model -> target -> scores.PREDICTIONS
    notes: list[str]
    args: argparse.Namespace  # of evaluate.py
    summaries: dict = field(default_factory=dict)  # Model -> target -> `summarise`
    tests: dict = field(default_factory=dict)  # title -> comparisons
    protocols: list = field(default_factory=list)  # differences from other runs

    @property
    def details(self) -> bool:
        """Whether more is asked for than evaluate.py prints by itself."""
        return self.args.details or self.args.json or self.args.report

    @property
    def is_amigos(self) -> bool:
        """Whether the paper's numbers may stand beside these."""
        return self.run.data.manifest["dataset"] == "amigos" and not self.run.data.manifest["simulated"]

    @property
    def targets(self) -> list[str]:
        """The targets that a model predicts; on AMIGOS all, for they have the paper's numbers beside them."""
        found = {target for of_target in self.models.values() for target in of_target}
        return [target for target in TARGETS if target in found or self.is_amigos]

    @property
    def main(self) -> list[Model]:
        """The models that are no control: trained on all true labels, not frozen, tested on the run's own data."""
        return [model for model in self.models if model.family in reading.SCRIPTS and not model.is_variant]

    @property
    def bases(self) -> list[Model]:
        """The pre-trained models of the paper: one of each modality, and the fused one."""
        return [*(Model("network", (name,)) for name in MODALITIES), self.fused()]

    def fused(self, init: str = "pretrained") -> Model:
        """The fused model of this run, which may have fewer modalities than would be fused today."""
        wanted = Model("fusion", FUSED, init=init)
        return next((model for model in self.models if replace(model, modalities=FUSED) == wanted), wanted)

    def baseline(self, family: str, model: Model) -> Model:
        """The classical or AMIGOS model of the same modality, or of several; an empty model where there is none."""
        folder = Model(family, model.modalities).folder
        return next((each for each in self.main if each.folder == folder), Model(family))

    def ratio(self, target: str) -> float:
        """Test to training segments of a fold, on average: of all labels, also for a model of few, for it stands for
        how much the training sets of two folds share. Validation segments are not counted."""
        found = [len(test) / len(train) for (_, of), (_, train, test) in self.parts.items() if of == target]
        return float(np.mean(found))

    def summarise(self, model: Model, target: str) -> dict:
        """The summary of a model's test segments."""
        about = self.run.settings["n_folds"], self.ratio(target), self.args.bootstrap, self.args.seed
        summary = scores.summarise(self.models[model][target], *about)
        if model.tested_on:  # all folds are tested on one set, so that their spread says little
            for score in scores.SCORES:
                summary[score]["interval"] = summary[score]["corrected"] = np.nan
        return summary

    def compare(self, title: str, pairs: list[tuple[Model, Model]], of_scores) -> list[dict]:
        """The differences of pairs of models, by target and score, their P values adjusted for all of them together."""
        found, args = [], (self.args.bootstrap, self.args.permutations, self.args.seed)
        for pair, target, score in itertools.product(pairs, TARGETS, of_scores):
            if all(target in self.models.get(model, {}) for model in pair):
                both = [self.models[model][target] for model in pair]
                about = {"first": pair[0], "second": pair[1], "target": target, "score": score}
                found.append(about | scores.compare(*both, score, self.ratio(target), *args))
        for test in TESTS:
            for each, adjusted in zip(found, scores.holm([each[test] for each in found])):
                each[f"{test}_holm"] = float(adjusted)
        for each in found:
            each["detectable"] = scores.detectable(each["error"], len(each["folds"]), len(found))
        if found:
            self.tests[title] = found
        return found

    def compare_runs(self, other: "Evaluated", model: Model, target: str, score: str) -> dict | None:
        """The model's score here minus that in another run of the same data, with the same folds over those that both
        predict; None where one of the two has none."""
        if target not in self.models[model] or target not in other.models[model]:
            return None
        pair = [each.models[model][target] for each in (self, other)]
        if self.run.identity["folds_sha256"] == other.run.identity["folds_sha256"]:
            pair = scores.in_common(pair)
            if not len(pair[0]):
                return None
        one, second = (float(np.nanmean(scores.by_fold(each, score))) for each in pair)
        about = {"minus": str(other.run.folder), "model": model.label, "target": target, "score": score}
        interval = scores.bootstrap(pair[0], score, self.args.bootstrap, self.args.seed, pair[1])
        self.protocols.append({**about, "difference": one - second, "bootstrap": interval})
        return self.protocols[-1]

    def as_json(self) -> dict:
        """All of it as --json prints it, models by their labels."""
        names = np.unique(self.run.data.table["subject"])  # another set's subjects stay numbers
        subjects = {model: None if model.tested_on else names for model in self.models}
        return {
            "run": self.run.settings,
            "folder": str(self.run.folder),
            "simulated": self.run.data.manifest["simulated"],
            "transfer": transfer(self),
            "table": {model.label: summary for model, summary in self.summaries.items()},
            "per_subject": {
                model.label: {target: scores.per_subject(each, subjects[model]) for target, each in found.items()}
                for model, found in self.models.items()
            },
            "tests": {
                title: [{**each, "first": each["first"].label, "second": each["second"].label} for each in found]
                for title, found in self.tests.items()
            },
            "protocols": self.protocols,
            "notes": self.notes,
        }


def evaluate(run: Run, args: argparse.Namespace) -> Evaluated:
    """Read the predictions of a run and score every model; ValueError where there are none, or they do not fit it."""
    parts = reading.rated_parts(run)
    models, notes = reading.read_models(run, parts, args.skip_stale)
    if not models:
        raise ValueError("; ".join([f"{run.folder}: no predictions yet; run finetune.py and fuse.py first", *notes]))
    targets = {target for of_target in models.values() for target in of_target}
    rules, left_out = reading.fusion_rules(models)
    models = {**reading.priors(run, parts, targets), **models, **rules}
    done = Evaluated(run, parts, models, notes + left_out, args)
    for model in tqdm(models, desc=f"scoring {run.folder}", unit="model", disable=None, leave=False):
        done.summaries[model] = {target: done.summarise(model, target) for target in models[model]}
        for target, summary in done.summaries[model].items():
            if (missing := summary["missing"]) and model.family in reading.SCRIPTS:
                done.notes.append(f"{model.label}, {target}: no predictions of fold {' '.join(map(str, missing))}")
    return done


def transfer(evaluated: Evaluated) -> dict:
    """What training shared with test: the share of rated test segments whose subject, trial or video it also holds, and
    what the set's z-scores and the run's threshold saw of the test."""
    run = evaluated.run
    shared = {}
    for name in ("subject", "trial", "video"):
        group = folds.units(run.data.table, name)
        shares = [np.isin(group[test], group[train]).mean() for _, train, test in evaluated.parts.values()]
        shared[name] = float(np.mean(shares))
    normalise, threshold = run.data.manifest["preprocessing"].get("normalise"), run.settings["threshold"]
    saw_test = normalise in ("subject", "recording")
    return {
        "unit": run.settings["split"],
        **shared,
        "z_score": f"{normalise}, test included" if saw_test else str(normalise),
        "z_score_saw_test": saw_test,
        "threshold": THRESHOLD.get(threshold, f"{threshold}, fixed"),
        "threshold_saw_test": threshold in ("global", "subject"),
    }
