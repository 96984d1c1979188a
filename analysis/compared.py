"""A run as evaluate.py has read it: the predictions of each row, what they score, and how rows and runs differ.

A row is what a folder and a file name say of a model: `eeg-random-fraction0.1` was fine-tuned from random weights on a
tenth of the labels.
"""

import argparse
import re
from dataclasses import dataclass, field

import numpy as np

import paper
from analysis import scores
from protocol import folds

MODELS = {  # folder of the predictions -> how its row is called
    "eeg": "EEG",
    "ecg": "ECG",
    "fused": "Fused",
    "fused-crossfit": "Fused, cross-fitted",
    "classical-eeg": "Classical EEG",
    "classical-ecg": "Classical ECG",
    "classical-both": "Classical both",
    "amigos-eeg": "AMIGOS EEG",
    "amigos-ecg": "AMIGOS ECG",
    "amigos-gsr": "AMIGOS GSR",
    "amigos-fused": "AMIGOS fused",
}
PRIORS = {"majority": "Majority class", "subject-prior": "Subject prior", "video-prior": "Video prior"}
RULES = {"mean": "Mean of both", "maximum": "Maximum of both", "vote": "Vote of both"}
# What follows the folder of a row: target, then (2) the rest: random start, frozen, shuffled, fraction, other data set.
SUFFIX = (
    r"(?P<suffix>(?P<random>-random)?(?P<frozen>-frozen)?(?P<shuffled>-shuffled)?"
    r"(-fraction(?P<share>[\d.e-]+))?(@(?P<other>.+))?)"
)
VARIANT = re.compile(rf"(?P<target>arousal|valence){SUFFIX}")
Z_SCORE = {
    "subject": "subject's mean and SD, test included",
    "recording": "recording's mean and SD, test included",
    "segment": "each segment's own mean and SD",
    "none": "nothing",
}
THRESHOLD = {
    "global": "mean of all trials, test included",
    "subject": "subject's mean, test included",
    "train": "mean of training trials",
}
TESTS = ("t", "corrected", "sign_flip")


@dataclass
class Evaluated:
    """A run, its rows (name -> target -> PREDICTIONS) and what they score (name -> target -> summaries)."""

    run: folds.Run
    parts: dict  # (fold, target) -> labels (n,), rated training rows, rated test rows
    rows: dict
    summaries: dict
    notes: list
    args: argparse.Namespace  # bootstrap, permutations, seed, details, json
    tests: dict = field(default_factory=dict)  # title -> comparisons
    protocols: list = field(default_factory=list)  # differences from other runs

    @property
    def is_amigos(self) -> bool:
        return self.run.data.manifest["dataset"] == "amigos" and not self.run.data.manifest["simulated"]

    @property
    def targets(self) -> list[str]:
        """Those that a model predicts; on AMIGOS all, for they have the paper's numbers beside them."""
        found = {target for of_target in self.rows.values() for target in of_target}
        return [target for target in paper.TARGETS if target in found or self.is_amigos]

    def ratio(self, row: str, target: str) -> float:
        """Test to training segments of a fold; validation segments teach nothing and are not counted."""
        found = [len(test) / len(train) for (_, of), (_, train, test) in self.parts.items() if of == target]
        return float(np.mean(found)) / fraction(row)

    def summarise(self, row: str, target: str) -> dict:
        """The summary of a row's segments and, with details, of its trials."""
        predictions, args = self.rows[row][target], self.args
        settings = self.run.settings["n_folds"], self.ratio(row, target), args.bootstrap, args.seed
        summary = scores.summarise(predictions, *settings)
        if "@" in row:  # all folds are tested on one set, so that their spread says little
            for score in scores.SCORES:
                summary[score]["interval"] = summary[score]["corrected"] = np.nan
        if self.args.details or self.args.json:
            summary["per_trial"] = scores.summarise(scores.per_trial(predictions), *settings)
        return summary

    def compare(self, title: str, pairs: list[tuple[str, str]], of_scores) -> list[dict]:
        """Differences of pairs of rows, by target and score, their P values adjusted for all of them together."""
        found = []
        for first, second in pairs:
            for target in paper.TARGETS:
                if target not in self.rows.get(first, {}) or target not in self.rows.get(second, {}):
                    continue
                one, other = self.rows[first][target], self.rows[second][target]
                ratio = max(self.ratio(row, target) for row in (first, second))
                args = self.args.bootstrap, self.args.permutations, self.args.seed
                for score in of_scores:
                    about = {"first": first, "second": second, "target": target, "score": score}
                    found.append({**about, **scores.compare(one, other, score, ratio, *args)})
        for test in TESTS:
            for each, adjusted in zip(found, scores.holm([each[test] for each in found])):
                each[f"{test}_holm"] = float(adjusted)
        if found:
            self.tests[title] = found
        return found

    def per_subject(self) -> dict:
        """row -> target -> subject -> scores; on another data set its subjects are numbers."""
        names = np.unique(self.run.data.table["subject"])
        found = {}
        for row, targets in self.rows.items():
            for target, predictions in targets.items():
                of_subject = scores.per_subject(predictions)
                if "@" not in row:
                    of_subject = {str(names[subject]): each for subject, each in of_subject.items()}
                found.setdefault(name_of(row), {})[target] = of_subject
        return found

    def compare_runs(self, other: "Evaluated", row: str, target: str, score: str) -> dict | None:
        """The row's score here minus that in another run of the same data; None where either has none.

        Of two runs with the same folds, over the folds of both."""
        if target not in self.rows[row] or target not in other.rows[row]:
            return None
        pair = [each.rows[row][target] for each in (self, other)]
        complete = not any(each.summaries[row][target]["missing"] for each in (self, other))
        if self.run.identity["folds_sha256"] == other.run.identity["folds_sha256"]:
            common, complete = np.intersect1d(pair[0]["fold"], pair[1]["fold"]), True
            pair = [each[np.isin(each["fold"], common)] for each in pair]
            if not len(common):
                return None
        means = [float(np.nanmean(scores.by_fold(each, score))) for each in pair]
        found = {
            "minus": str(other.run.folder),
            "row": name_of(row),
            "target": target,
            "score": score,
            "complete": complete,
            "difference": means[0] - means[1],
            "bootstrap": scores.bootstrap_difference(*pair, score, self.args.bootstrap, self.args.seed),
        }
        self.protocols.append(found)
        return found

    def as_json(self) -> dict:
        settings, manifest = self.run.settings, self.run.data.manifest
        return {
            "run": settings,
            "folder": str(self.run.folder),
            "simulated": manifest["simulated"],
            "transfer": transfer(self),
            "table": {name_of(row): self.summaries[row] for row in self.summaries},
            "per_subject": self.per_subject(),
            "tests": self.tests,
            "protocols": self.protocols,
            "notes": self.notes,
        }


def fraction(row: str) -> float:
    """The share of the training labels that a row was trained on."""
    return float(row.split("@")[0].partition("-fraction")[2] or 1)


def name_of(row: str) -> str:
    """How a row is called: `eeg-random-fraction0.1` is "EEG, no pre-training, 10 % of labels"."""
    known = {**MODELS, **PRIORS, **RULES}
    model = max((model for model in known if row.startswith(model)), key=len)
    variant = re.fullmatch(SUFFIX, row[len(model) :])
    words = {
        known[model]: True,
        "no pre-training": variant["random"],
        "frozen": variant["frozen"],
        "shuffled labels": variant["shuffled"],
        f"{100 * float(variant['share'] or 1):g} % of labels": variant["share"],
        f"on {variant['other']}": variant["other"],
    }
    return ", ".join(word for word, said in words.items() if said)


def transfer(evaluated: Evaluated) -> dict:
    """What training shared with test, as the run's own folds, settings and manifest say.

    subject, trial, video: the share of rated test segments whose subject, trial or video is also in training.
    """
    run = evaluated.run
    groups = {name: folds.units(run.data.table, name) for name in ("subject", "trial", "video")}
    shared = {
        name: float(np.mean([np.isin(group[test], group[train]).mean() for _, train, test in evaluated.parts.values()]))
        for name, group in groups.items()
    }
    normalise, threshold = run.data.manifest["preprocessing"].get("normalise"), run.settings["threshold"]
    return {
        "unit": run.settings["split"],
        **shared,
        "z_score": Z_SCORE.get(normalise, f"unknown: {normalise}"),
        "z_score_saw_test": normalise in ("subject", "recording") if normalise in Z_SCORE else None,
        "threshold": THRESHOLD.get(threshold, f"{threshold}, fixed"),
        "threshold_saw_test": threshold in ("global", "subject"),
    }
