"""The tables of an evaluated run, which evaluate.py prints and the report shows, and what to doubt in them (paper 5).

The paper's numbers stand beside ours on AMIGOS alone, never beside simulated signals."""

import functools
from dataclasses import replace

import numpy as np

import paper
from analysis import scores
from analysis.compared import TESTS, Evaluated, transfer
from analysis.reading import PRIORS
from protocol.records import Model

SCORE_NAMES = {"accuracy": "accuracy", "f1": "macro F1", "balanced_accuracy": "balanced accuracy", "auroc": "AUROC"}
HEADS = {"accuracy": "Acc.", "f1": "F1", "balanced_accuracy": "bal. acc.", "auroc": "AUROC"}
PAPER_SCORES = ("accuracy", "f1")
SHOWN = ("f1", "auroc")
UNDEFINED, PAPER_OURS = "-", " (paper / ours)"
FUSION_RULES = (
    "Mean and maximum of the probabilities of high; vote: share of models that say high, where a tie is not high "
    "(assumed). So of two models, high takes either by the maximum, both by the vote."
)
OTHER_SET = "The model of each fold on all of the other set. 95 % intervals by drawing subjects of that set."
DETECTABLE = (
    "Better or worse: by the corrected t over folds and by exchanging models within people, after Holm. n.s. (finds "
    "x): by neither; the corrected t would find a difference of x in 80 % of cases."
)
COVERAGE = "[low, high] is to hold the truth of new people in 95 % of cases; for 12 people in some 90 % (simulation)."
FEW_PEOPLE = 20  # below it, an interval by drawing people is rough (assumed)
SIMULATED = "The signals are simulated signals; they show the software and prove nothing about emotion."


def number(value: float, sign: str = "") -> str:
    """The value with three decimals, or a dash where there is none."""
    return f"{value:{sign}.3f}" if np.isfinite(value) else UNDEFINED


def span(limits: list[float]) -> str:
    """The interval [low, high]."""
    return f"[{number(limits[0])}, {number(limits[1])}]"


def cell(evaluated: Evaluated, model: Model, target: str, score: str, intervals=("bootstrap",)) -> str:
    """A mean with these intervals, and a mark where it is over fewer folds or where folds have one class alone."""
    summary = evaluated.summaries.get(model, {}).get(target)
    if not summary or not np.isfinite(summary[score]["mean"]):
        return UNDEFINED
    found, n_folds = summary[score], evaluated.run.settings["n_folds"]
    text, sign = number(found["mean"]), " ± " if len(intervals) == 1 else " ±"
    for name in (name for name in intervals if np.isfinite(found[name]).all()):
        text += f" {span(found[name])}" if name == "bootstrap" else f"{sign}{found[name]:.3f}"
    few = f" ({found['n']}/{n_folds})" * (found["n"] < n_folds)
    return text + ("†" if summary["one_class"] and score in PAPER_SCORES else "") + few


def p_value(value: float) -> str:
    """A P value with four decimals."""
    return UNDEFINED if not np.isfinite(value) else "<0.0001" if value < 1e-4 else f"{value:.4f}"


def verdict(comparison: dict) -> str:
    """Whether a difference is to be believed: by exchange within subjects (would new people show it?) and by the
    corrected t (would other training data?); where by neither, with the difference that would have been found."""
    adjusted = np.array([comparison[f"{test}_holm"] for test in ("sign_flip", "corrected")])
    if np.isnan(adjusted).any():
        return UNDEFINED
    by_subjects, by_folds = adjusted < scores.SIGNIFICANT
    if by_subjects and by_folds:
        return "better" if comparison["difference"] > 0 else "worse"
    if by_subjects:
        return "only by subjects"
    return "only by folds" if by_folds else f"n.s. (finds {number(comparison['detectable'])})"


def difference(comparison: dict) -> str:
    """A difference and its interval."""
    return f"{number(comparison['difference'], '+')} {span(comparison['bootstrap'])}"


def short(model: Model) -> str:
    """A model's label where columns are narrow."""
    return model.label.replace(", no pre-training", " random").replace(" % of labels", " %")


def published(model: Model, target: str) -> tuple | None:
    """((accuracy, half-width), (F1, half-width)) of a model as the paper prints them; None where it prints none."""
    if model.family not in ("network", "fusion") or model.is_variant:
        return None
    return paper.PUBLISHED.get((model.modalities, model.init == "pretrained"), {}).get(target)


def table_of(title: str, head: list[str], lines: list[list[str]], notes, details: bool = False) -> dict:
    """A table as this file makes them; details: whether it is shown only where it is asked for."""
    return {"title": title, "head": head, "lines": lines, "notes": list(notes), "details": details}


def titled(evaluated: Evaluated, title: str) -> str:
    """A title that names the data set and the run."""
    return f"{title}; {evaluated.run.data.manifest['dataset']}, {evaluated.run.folder}"


def lines_table(evaluated: Evaluated, title: str, models, of_scores, notes=(), fill=cell) -> dict:
    """A line for each model (a list, or Model -> its name), a column for each target and score; fill: like `cell`."""
    names = models if isinstance(models, dict) else {model: model.label for model in models}
    columns = [(target, score) for target in evaluated.targets for score in of_scores]
    head = ["", *(f"{target.capitalize()} {HEADS[score]}" for target, score in columns)]
    lines = [[name, *(fill(evaluated, model, *column) for column in columns)] for model, name in names.items()]
    return table_of(titled(evaluated, title), head, lines, notes)


def tests_table(evaluated: Evaluated, title: str, pairs, of_scores) -> list[dict]:
    """The paired tests of differences between models; no table where no pair has predictions."""
    n_folds, lines = evaluated.run.settings["n_folds"], []
    for each in evaluated.compare(title, pairs, of_scores):
        pair, score = f"{short(each['first'])} - {short(each['second'])}", f"{each['target']} {HEADS[each['score']]}"
        few = f" ({len(each['folds'])}/{n_folds})" * (len(each["folds"]) < n_folds)
        p_values = [p_value(each[f"{test}_holm"]) for test in TESTS]
        lines.append([pair, score, difference(each) + few, *p_values, verdict(each)])
    note = "Difference [low, high by drawing subjects]. Two-tailed P, Holm's over the lines of this table: "
    note += "paired t over folds (the paper's, assumed; too small, for folds share data), corrected t, "
    note += "exchange of the two models within subjects."
    notes = [note, DETECTABLE, COVERAGE]
    head = ["", "Score", "Difference", "P t", "P corr", "P subj", "Verdict"]
    return [table_of(titled(evaluated, title), head, lines, notes, details=True)] if lines else []


def transfer_table(runs: list[Evaluated]) -> dict:
    """A table with a column for each run: its data, and what was shared between training and test."""
    columns = []
    for evaluated in runs:
        run, known, settings = evaluated.run, transfer(evaluated), evaluated.run.settings
        simulated, people = run.data.manifest["simulated"], np.unique(run.data.table["subject"])
        column = {
            "Data set": run.data.manifest["dataset"] + ", simulated signals" * simulated,
            "Segments, subjects": f"{len(run.data.table)}, {len(people)}",
            "Split by, folds, seed": f"{settings['split']}, {settings['n_folds']}, {settings['fold_seed']}",
            **{f"Shared {name}": f"{100 * known[name]:.0f} %" for name in ("subject", "trial", "video")},
            "Z-scored by": known["z_score"],
            "High is above": known["threshold"],
        }
        columns.append(column)
    title = "What training knew of the test segments: share whose subject, trial and video it saw"
    lines = [[head, *(column[head] for column in columns)] for head in columns[0]]
    return table_of(title, ["", *(str(each.run.folder) for each in runs)], lines, [])


def paper_tables(evaluated: Evaluated) -> list[dict]:
    """Tables 1 to 3 of the paper (5.1 to 5.3) for which there are models, each with the tests of its differences."""
    eeg, (*singles, fused) = Model("network", ("eeg",)), evaluated.bases
    eeg_random, fused_random = replace(eeg, init="random"), evaluated.fused("random")
    layout = {  # number -> title, models or Model -> how it is called there, pairs whose difference is tested
        1: ("EEG model; pre-trained?", {eeg_random: "No", eeg: "Yes"}, [(eeg, eeg_random)]),
        2: ("all models", [*reversed(singles), fused], [(fused, single) for single in reversed(singles)]),
        3: ("fused model; pre-trained?", {fused_random: "No", fused: "Yes"}, [(fused, fused_random)]),
    }
    found = []
    for place, (title, names, pairs) in layout.items():
        if not any(model in evaluated.models for model in names):
            continue
        notes = ["Mean over folds ± half-width of the 95 % t-interval (paper 5)."]
        if evaluated.is_amigos:
            title += PAPER_OURS
            ours = f"Ours is split by {evaluated.run.settings['split']}; the paper does not say by what it split."
            given = f"It gives P < {paper.PUBLISHED_P[place]:g} for these differences, by a test that it does not name."
            notes.append(f"{ours} {given}")
        tests = tests_table(evaluated, f"Table {place}: differences", pairs, PAPER_SCORES)
        # The differences of F1 in words, for the table of tests is shown only where it is asked for.
        for table in tests:
            of_f1 = [line for line in table["lines"] if line[1].endswith(HEADS["f1"])]
            said = [f"{line[1].split()[0]}, {line[0]}: {line[2]} {line[-1]}" for line in of_f1]
            notes += [f"F1, differences: {'; '.join(said)}.", DETECTABLE]
        found.append(lines_table(evaluated, f"Table {place}: {title}", names, PAPER_SCORES, notes, paper_cell))
        found += tests if evaluated.details else []
    return found


def paper_cell(evaluated: Evaluated, model: Model, target: str, score: str) -> str:
    """A cell as the paper writes it; on AMIGOS with the paper's value, where it has one, before ours."""
    ours, theirs = cell(evaluated, model, target, score, ("interval",)), published(model, target)
    if not evaluated.is_amigos:
        return ours
    text = "{:.2f}±{:.4f}".format(*theirs[PAPER_SCORES.index(score)]) if theirs else UNDEFINED
    return f"{text}/{ours.replace(' ', '')}"


def baseline_table(evaluated: Evaluated) -> list[dict]:
    """Table 4: F1 beside the baseline of AMIGOS, run on the same folds and, on AMIGOS alone, as published."""
    amigos = [model for model in evaluated.main if model.family == "amigos"]
    if not evaluated.is_amigos and not amigos:
        return []
    models = amigos + [model for model in evaluated.bases if model in evaluated.models]
    title = "Table 4: the AMIGOS baseline" + PAPER_OURS * evaluated.is_amigos
    table = lines_table(evaluated, title, models, ("f1",), fill=paper_cell)
    if evaluated.is_amigos:
        table["notes"] = ["[6]: on 20 s segments and by another protocol; not directly comparable (paper 5.4)."]
        for name, model in (("Fused: EEG+ECG+GSR [6]", "fused"), ("EEG [6]", "eeg")):
            known = paper.PUBLISHED_BASELINE[model]
            table["lines"].insert(0, [name, *(number(known.get(target, np.nan)) for target in evaluated.targets)])
    pairs = [(model, evaluated.baseline("amigos", model)) for model in evaluated.bases]
    return [table, *(tests_table(evaluated, "Table 4: differences", pairs, ("f1",)) if evaluated.details else [])]


def beside_tables(evaluated: Evaluated, of_scores) -> list[dict]:
    """Every model beside the priors and the classical models; one table a score, with all intervals."""
    fill = functools.partial(cell, intervals=("interval", "corrected", "bootstrap"))
    note = "Mean over folds ±t ±corrected t [low, high by drawing subjects], all 95 %. "
    note += "Priors: mean of the training labels of all, of the subject, of the video."
    titles = {score: f"Beside every model: {SCORE_NAMES[score]}" for score in of_scores}
    models = [*PRIORS, *evaluated.main]
    return [lines_table(evaluated, title, models, (score,), [note, COVERAGE], fill) for score, title in titles.items()]


def control_tables(evaluated: Evaluated) -> list[dict]:
    """A table of each kind of control that has models, and the tests of its differences."""
    fused, controls = evaluated.fused(), [model for model in evaluated.models if model.is_variant]
    rules = [model for model in evaluated.models if model.family == "rule"]
    frozen = [model for model in controls if model.freeze and not (model.tested_on or model.label_fraction < 1)]
    frozen_pairs = [(replace(model, freeze=False), model) for model in frozen]
    frozen_pairs += [(model, replace(model, init="random")) for model in frozen if model.init == "pretrained"]
    # Each share of the labels without and with pre-training; other models of a share below the one of all labels.
    shares = sorted({model.label_fraction for model in evaluated.models})
    bases = [replace(base, label_fraction=share) for base in evaluated.bases for share in shares if shares != [1.0]]
    share_pairs = [(base, replace(base, init="random")) for base in bases]
    scarce = [model for pair in share_pairs for model in reversed(pair)]
    for model in (model for model in controls if model.label_fraction < 1 and not model.tested_on):
        scarce += [replace(model, label_fraction=1.0), model]
    layout = {  # title -> models, pairs whose difference is tested, notes
        "Fusion rules": ([fused] * bool(rules) + rules, [(fused, rule) for rule in rules], [FUSION_RULES]),
        "Frozen encoders": (frozen, frozen_pairs, []),
        "Scarce labels": (scarce, share_pairs, []),
        "Other people": ([model for model in controls if model.tested_on], [], [OTHER_SET]),
    }
    found = []
    for title, (models, pairs, notes) in layout.items():
        if models := [model for model in dict.fromkeys(models) if model in evaluated.models]:
            found.append(lines_table(evaluated, title, models, SHOWN, notes))
            found += tests_table(evaluated, f"{title}: differences", pairs, SHOWN)
    return found


def null_table(evaluated: Evaluated) -> list[dict]:
    """AUROC of the models against labels permuted within each subject; of those trained on shuffled labels, against a
    direction that chance chose in each fold."""
    args, lines = (evaluated.args.permutations, evaluated.args.seed), []
    shuffled = [model for model in evaluated.models if model.shuffle_labels]
    shuffled = [model for model in shuffled if not (model.tested_on or model.label_fraction < 1)]
    for model in [*evaluated.main, *shuffled]:
        for target, predictions in evaluated.models[model].items():
            observed = evaluated.summaries[model][target]["auroc"]["mean"]
            if model.shuffle_labels:
                null = scores.direction_null(scores.by_fold(predictions, "auroc"), *args)
                p = float(np.mean(np.abs(null - 0.5) >= abs(observed - 0.5) - 1e-12)) if len(null) else np.nan
                p = max(p, 1 / (len(null) + 1))  # of random ways, the observed one is one more
            else:
                null = scores.auroc_null(predictions, *args)
                p = scores.two_tailed(observed, null)
            limits = scores.percentiles(null, between=False)
            evaluated.summaries[model][target]["within_subject"] = {"auroc": observed, "null": limits, "p": p}
            words = UNDEFINED if np.isnan(p) else "inside" if p >= scores.SIGNIFICANT else "outside"
            text = cell(evaluated, model, target, "auroc")
            lines.append([model.label, target, text, span(limits), p_value(p), words])
    notes = [
        "Null: 95 % of what the same predictions reach when the labels of trials are permuted within each subject. "
        "Shuffled labels: the same with the AUROC of each fold turned around 0.5 or not, for such a model finds a "
        "direction in the signals that chance chose; it belongs inside, and its P is at least 2^(1 - k) for k folds. P "
        "is two-tailed and not adjusted."
    ]
    if transfer(evaluated)["trial"] > 0:
        notes.append("Trials are in training and test here: a model that only recognises a trial is outside, too.")
    title = f"Is it the signal? AUROC within subjects; {evaluated.run.folder}"
    return [table_of(title, ["", "Target", "AUROC", "Null", "P", ""], lines, notes)] if lines else []


def protocol_tables(first: Evaluated, second: Evaluated) -> list[dict]:
    """Two runs of the same data side by side and the difference, its interval by drawing the same subjects for both."""
    names = [f"{each.run.folder} ({each.run.settings['split']})" for each in (first, second)]
    note = "Difference [low, high by drawing subjects, 95 %]. n.s.: not significant, for the interval holds 0. "
    note += "Runs with the same folds are compared over those that both have."
    parts, tables = ("1st", "2nd", "1st - 2nd"), []
    head = ["", *(f"{target[:2].capitalize()}. {part}" for target in first.targets for part in parts)]
    for score in SHOWN:
        lines = []
        for model in (model for model in first.models if model in second.models):
            lines.append([model.label])
            for target in first.targets:
                lines[-1] += [cell(each, model, target, score, ()) for each in (first, second)]
                found = first.compare_runs(second, model, target, score)
                low, high = found["bootstrap"] if found else (np.nan, np.nan)
                lines[-1].append((difference(found) if found else UNDEFINED) + " n.s." * (low <= 0 <= high))
        title = f"Protocols side by side, {SCORE_NAMES[score]}: 1st {names[0]}, 2nd {names[1]}"
        tables.append(table_of(title, head, lines, [note]))
    return tables


def all_tables(runs: list[Evaluated]) -> list[dict]:
    """Every table of the runs, in the order of printing; without details, the short ones alone."""
    found = [transfer_table(runs)]
    for other in runs[1:]:
        found += protocol_tables(runs[0], other)
    for each in runs:
        found += paper_tables(each) + baseline_table(each) + beside_tables(each, ("f1",))
        if each.details:
            # Each single and fused model, or the one without pre-training, is tested against priors and classical ones.
            shown = [base if base in each.models else replace(base, init="random") for base in each.bases]
            pairs = [(model, other) for model in shown for other in (*PRIORS, each.baseline("classical", model))]
            more = beside_tables(each, ("auroc",))
            more += tests_table(each, "Beside every model: differences", pairs, ("f1",))
            more += control_tables(each) + null_table(each) + beside_tables(each, ("accuracy", "balanced_accuracy"))
            found += [{**table, "details": True} for table in more]
    return found


def doubts(evaluated: Evaluated) -> list[str]:
    """What a reader of a run's tables should doubt, one sentence each, what matters most first."""
    run, known = evaluated.run, transfer(evaluated)
    summaries = [summary for of_target in evaluated.summaries.values() for summary in of_target.values()]
    missing, one_class = (any(summary[name] for summary in summaries) for name in ("missing", "one_class"))
    people = len(np.unique(run.data.table["subject"][run.folds >= 0]))
    saw = [f"signals are z-scored by {known['z_score']}"] * known["z_score_saw_test"]
    saw += [f"high is above the {known['threshold']}"] * known["threshold_saw_test"]
    # The priors whose AUROC stays above 0.5 whichever subjects are drawn.
    told = []
    for model in PRIORS:
        for target, summary in evaluated.summaries.get(model, {}).items():
            if summary["auroc"]["bootstrap"][0] > 0.5:
                f1, auroc = (number(summary[score]["mean"]) for score in SHOWN)
                told.append(f"{model.label}, {target} (F1 {f1}, AUROC {auroc} {span(summary['auroc']['bootstrap'])})")
    sentences = {
        SIMULATED: run.data.manifest["simulated"],
        "Folds are missing: a mean marked as (2/3) is over fewer folds, and not yet that of the run.": missing,
        f"Segments of one person are in training and test (split by {run.settings['split']}); this does not measure "
        "how well new people are recognised.": known["subject"] > 0,
        f"A prior, which sees no signal, is above chance: {'; '.join(told)}. A model can score as much by recognising "
        "a person or a video; that is no evidence that the signals tell it.": told,
        f"Only {people} people were tested: intervals over people are rough, and no P over people is below "
        f"{2.0 ** (1 - people):.2g}, even before it is adjusted for several tests.": people < FEW_PEOPLE,
        "Where a mark † stands, folds test one class alone: their F1 is at most 0.5, whatever the model, and AUROC and "
        "balanced accuracy leave them out.": one_class,
        "The first ± and P t (the paper's) take the folds for independent, but folds share training data: both are too "
        "small. Go by the corrected ones.": True,
        f"Test data entered before training: {', and '.join(saw)}.": saw,
        f"Each model was trained once, with --seed {run.settings['seed']}; what another seed changes is in no "
        "interval.": True,
    }
    return [sentence for sentence, holds in sentences.items() if holds]
