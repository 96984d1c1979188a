"""The tables of an evaluated run: what evaluate.py prints and report.py shows (paper 5).

A table is {"title": str, "head": [str], "rows": [[str]], "notes": [str]}. The paper's numbers stand beside ours on
AMIGOS alone, never beside simulated signals.
"""

import numpy as np

import paper
from analysis import scores
from analysis.compared import PRIORS, RULES, TESTS, Evaluated, fraction, name_of, transfer

SCORE_NAMES = {
    "accuracy": "accuracy",
    "f1": "macro F1",
    "balanced_accuracy": "balanced accuracy",
    "auroc": "AUROC",
    "mcc": "MCC",
}
PAPER_SCORES = ("accuracy", "f1")
PAPER_TABLES = {  # number -> title, {row: how it is called there}, pairs whose difference is tested (paper 5.1 to 5.3)
    1: ("EEG model; pre-trained?", {"eeg-random": "No", "eeg": "Yes"}, [("eeg", "eeg-random")]),
    2: ("all models", {"ecg": "ECG", "eeg": "EEG", "fused": "Fused"}, [("fused", "ecg"), ("fused", "eeg")]),
    3: ("fused model; pre-trained?", {"fused-random": "No", "fused": "Yes"}, [("fused", "fused-random")]),
}
HEADS = {"accuracy": "Acc.", "f1": "F1", "balanced_accuracy": "bal. acc.", "auroc": "AUROC", "mcc": "MCC"}
CLASSICAL = {"eeg": "classical-eeg", "ecg": "classical-ecg", "fused": "classical-both"}
SHOWN = ("f1", "auroc")
UNDEFINED = "-"


# ---- cells -----------------------------------------------------------------------------------------------------------


def number(value: float, sign: str = "") -> str:
    """Three decimals, or that there is none."""
    return f"{value:{sign}.3f}" if np.isfinite(value) else UNDEFINED


def span(limits: list[float]) -> str:
    return f"[{number(limits[0])}, {number(limits[1])}]"


def cell(summary: dict | None, score: str, n_folds: int, intervals) -> str:
    """A mean with the intervals asked for, marked where it is over fewer folds or folds have one class alone."""
    if summary is None or not np.isfinite(summary[score]["mean"]):
        return UNDEFINED
    found = summary[score]
    text = number(found["mean"])
    for name in intervals:
        if name == "bootstrap" and np.isfinite(found[name][0]):
            text += f" {span(found[name])}"
        elif name != "bootstrap" and np.isfinite(found[name]):
            text += (" ± " if len(intervals) == 1 else " ±") + f"{found[name]:.3f}"
    few = f" ({found['n']}/{n_folds})" if found["n"] < n_folds else ""
    return text + ("†" if summary["one_class"] and score in PAPER_SCORES else "") + few


def notes_of(evaluated: Evaluated, rows) -> list[str]:
    """What the marks of the rows' cells mean: which folds are missing, and which have one class alone."""
    notes, n_folds = [], evaluated.run.settings["n_folds"]
    for row in rows:
        for target, summary in evaluated.summaries.get(row, {}).items():
            about = f"{name_of(row)}, {target}:"
            if summary["missing"]:
                missing = " ".join(map(str, summary["missing"]))
                notes.append(f"{about} {len(summary['folds'])} of {n_folds} folds; missing {missing}")
            if summary["one_class"]:
                notes.append(
                    f"† {about} one class alone in fold {' '.join(map(str, summary['one_class']))}, where F1 is at "
                    "most 0.5, and AUROC, balanced accuracy and MCC are undefined and left out"
                )
    return notes


def p_value(value: float) -> str:
    return UNDEFINED if not np.isfinite(value) else "<0.0001" if value < 1e-4 else f"{value:.4f}"


def verdict(comparison: dict) -> str:
    """Of the adjusted P values over subjects (would new people show it?) and of the corrected t (would training on
    other data?): a difference must pass both, for the first takes the trained models as they are, and the second the
    people."""
    adjusted = np.array([comparison[f"{test}_holm"] for test in ("sign_flip", "corrected")])
    if np.isnan(adjusted).any():
        return UNDEFINED
    by_subjects, by_folds = adjusted < scores.SIGNIFICANT
    if by_subjects and by_folds:
        return "better" if comparison["difference"] > 0 else "worse"
    return "only by subjects" if by_subjects else "only by folds" if by_folds else "not significant"


def short(row: str) -> str:
    """A row's name where columns are narrow."""
    return name_of(row).replace(", no pre-training", " random").replace(" % of labels", " %")


def main_rows(evaluated: Evaluated) -> list[str]:
    """The models that are no control: trained on all labels, of true ones, not frozen, and tested on the run's data."""
    controls = "-frozen", "-shuffled", "-fraction", "@"
    return [
        row
        for row in evaluated.rows
        if row not in (*PRIORS, *RULES) and not any(control in row for control in controls)
    ]


# ---- tables ----------------------------------------------------------------------------------------------------------


def rows_table(evaluated: Evaluated, title: str, names: dict, of_scores, fill, notes=()) -> dict:
    """One line a row of `names` (row -> how it is called), and a column for each target and score.

    fill(row, target, score) -> str, the cell.
    """
    columns = [(target, score) for target in evaluated.targets for score in of_scores]
    return {
        "title": f"{title}; {evaluated.run.data.manifest['dataset']}, {evaluated.run.folder}",
        "head": ["", *(f"{target.capitalize()} {HEADS[score]}" for target, score in columns)],
        "rows": [[name, *(fill(row, *column) for column in columns)] for row, name in names.items()],
        "notes": [*notes, *notes_of(evaluated, names)],
    }


def filler(evaluated: Evaluated, *intervals: str, per_trial: bool = False):
    """The `fill` of `rows_table` that shows means and these intervals."""

    def fill(row: str, target: str, score: str) -> str:
        summary = evaluated.summaries.get(row, {}).get(target)
        if per_trial and summary:
            summary = summary["per_trial"]
        return cell(summary, score, evaluated.run.settings["n_folds"], intervals)

    return fill


def tests_table(evaluated: Evaluated, title: str, pairs, of_scores) -> list[dict]:
    """The paired tests of differences between rows; nothing where no pair has predictions."""
    found = evaluated.compare(title, pairs, of_scores)
    if not found:
        return []
    n_folds, lines = evaluated.run.settings["n_folds"], []
    for each in found:
        few = f" ({len(each['folds'])}/{n_folds})" if len(each["folds"]) < n_folds else ""
        lines.append(
            [
                f"{short(each['first'])} - {short(each['second'])}",
                f"{each['target']} {HEADS[each['score']]}",
                f"{number(each['difference'], '+')} {span(each['bootstrap'])}{few}",
                *(p_value(each[f"{test}_holm"]) for test in TESTS),
                verdict(each),
            ]
        )
    notes = [
        "Difference [low, high by drawing subjects]. Two-tailed P, Holm's over the lines of this table: paired t over "
        "folds (the paper's, assumed; too small, for folds share data), corrected t, exchange of the two models within "
        "subjects. Better or worse: by both of the last two."
    ]
    subjects = min(each["subjects"] for each in found)
    least = 2.0 ** (1 - subjects) * len(found)
    if least >= scores.SIGNIFICANT:
        notes.append(f"{subjects} subjects are too few: the last P cannot be below {min(1.0, least):.2g} here.")
    return [
        {
            "title": f"{title}; {evaluated.run.data.manifest['dataset']}, {evaluated.run.folder}",
            "head": ["", "Score", "Difference", "P t", "P corr.", "P subj.", "Verdict"],
            "rows": lines,
            "notes": notes,
        }
    ]


def transfer_table(runs: list[Evaluated]) -> dict:
    """One column a run: the data, and what was shared between training and test."""
    columns, notes = [], []
    for evaluated in runs:
        run, known = evaluated.run, transfer(evaluated)
        table, settings, simulated = run.data.table, run.settings, run.data.manifest["simulated"]
        columns.append(
            {
                "Data set": run.data.manifest["dataset"] + ", simulated signals" * simulated,
                "Segments, subjects": f"{len(table)}, {len(np.unique(table['subject']))}",
                "Split by, folds, seed": f"{settings['split']}, {settings['n_folds']}, {settings['fold_seed']}",
                **{f"Shared {name}": f"{100 * known[name]:.0f} %" for name in ("subject", "trial", "video")},
                "Z-scored by": known["z_score"],
                "High is above": known["threshold"],
            }
        )
        if simulated:
            notes.append(f"{run.folder}: simulated signals; they show the software and prove nothing about emotion.")
        if known["subject"] > 0:
            notes.append(
                f"{run.folder}: segments of one person are in training and test (split by {settings['split']}); "
                "this does not measure how well new people are recognised."
            )
    return {
        "title": "What training knew of the test segments: share whose subject, trial and video it saw",
        "head": ["", *(str(evaluated.run.folder) for evaluated in runs)],
        "rows": [[head, *(column[head] for column in columns)] for head in columns[0]],
        "notes": notes,
    }


def paper_tables(evaluated: Evaluated) -> list[dict]:
    """Tables 1 to 3 in the paper's layout, each with the tests of its differences; those that have a row."""
    found, ours = [], filler(evaluated, "interval")
    for place, (title, names, pairs) in PAPER_TABLES.items():
        notes = ["Mean over folds ± half-width of the 95 % t-interval (paper 5)."]
        fill = ours
        if evaluated.is_amigos:
            title += " (paper / ours)"
            notes.append(
                f"Ours is split by {evaluated.run.settings['split']}; the paper does not say by what it split. It "
                f"gives P < {paper.PUBLISHED_P[place]:g} for these differences, by a test that it does not name."
            )

            def fill(row: str, target: str, score: str) -> str:
                model, _, random = row.partition("-")
                mean, half = paper.PUBLISHED[model, not random][target][PAPER_SCORES.index(score)]
                return f"{mean:.2f}±{half:.4f}/{ours(row, target, score).replace(' ', '')}"

        if any(row in evaluated.rows for row in names):
            found.append(rows_table(evaluated, f"Table {place}: {title}", names, PAPER_SCORES, fill, notes))
            found += tests_table(evaluated, f"Table {place}: differences", pairs, PAPER_SCORES)
    return found


def baseline_table(evaluated: Evaluated) -> list[dict]:
    """Table 4: F1 beside the baseline of AMIGOS, run on the same folds and, on AMIGOS alone, as published."""
    order = "amigos-eeg", "eeg", "amigos-ecg", "ecg", "amigos-gsr", "amigos-fused", "fused"
    names = {row: name_of(row) for row in order if row in evaluated.rows}
    if not evaluated.is_amigos and not any(row.startswith("amigos") for row in names):
        return []
    table = rows_table(evaluated, "Table 4: the AMIGOS baseline", names, ("f1",), filler(evaluated, "interval"))
    if evaluated.is_amigos:
        published = [
            [name, *(f"{paper.PUBLISHED_BASELINE[model][target]:.3f}" for target in paper.TARGETS)]
            for model, name in (("eeg", "EEG [6]"), ("fused", "Fused: EEG+ECG+GSR [6]"))
        ]
        for model, name in (("eeg", "EEG, paper"), ("fused", "Fused: EEG+ECG, paper")):
            f1 = (paper.PUBLISHED[model, True][target][1] for target in paper.TARGETS)
            published.append([name, *(f"{mean:.2f} ± {half:.4f}" for mean, half in f1)])
        table["rows"] = published + table["rows"]
        table["notes"].insert(0, "[6]: on 20 s segments and by another protocol; not directly comparable (paper 5.4).")
    pairs = [(model, f"amigos-{model}") for model in ("eeg", "ecg", "fused")]
    return [table, *tests_table(evaluated, "Table 4: differences", pairs, ("f1",))]


def beside_tables(evaluated: Evaluated, of_scores, per_trial: bool = False) -> list[dict]:
    """Every model beside what needs no signal and the classical models; one table a score, with all intervals."""
    names = {row: name_of(row) for row in (*PRIORS, *main_rows(evaluated))}
    level = ", per trial" if per_trial else ""
    fill = filler(evaluated, "interval", "corrected", "bootstrap", per_trial=per_trial)
    note = (
        "Mean over folds ±t ±corrected t [low, high by drawing subjects], all 95 %. Priors: mean of the training "
        "labels of all, of the subject, of the video."
    )
    return [
        rows_table(evaluated, f"Beside every model: {SCORE_NAMES[score]}{level}", names, (score,), fill, [note])
        for score in of_scores
    ]


def above_chance(evaluated: Evaluated, row: str, target: str) -> bool:
    """Whether drawing subjects leaves the AUROC of a row above 0.5."""
    return evaluated.summaries[row][target]["auroc"]["bootstrap"][0] > 0.5


def in_words(runs: list[Evaluated]) -> list[str]:
    """What the subject and the video prior give away in each run, and in one run but not in the other."""
    words = []
    for prior, what in (("subject-prior", "subject"), ("video-prior", "video")):
        for target in paper.TARGETS:
            told = {True: [], False: []}
            for each in runs:
                if target in each.summaries.get(prior, {}):
                    auroc, split = each.summaries[prior][target]["auroc"], each.run.settings["split"]
                    text = f"{number(auroc['mean'])} {span(auroc['bootstrap'])} in {each.run.folder} (split by {split})"
                    told[above_chance(each, prior, target)].append(text)
            yes, no = (" and ".join(told[above]) for above in (True, False))
            if yes:
                words.append(
                    f"The {what} prior, which sees no signal, tells {target} above chance: AUROC {yes}"
                    + (f", but not {no}" if no else "")
                    + f". So a model can score there by recognising the {what}"
                    + ("; the difference" if no else "; that")
                    + f" is no evidence that the signals tell {target}."
                )
            elif no:
                words.append(
                    f"The {what} prior, which sees no signal, does not tell {target} above chance: AUROC {no}."
                )
    return words


def control_tables(evaluated: Evaluated) -> list[dict]:
    """Fusion rules, frozen encoders, shuffled labels and other labelled sets, where such rows exist."""
    found, fill = [], filler(evaluated, "bootstrap")
    rows = [row for row in evaluated.rows if fraction(row) == 1 and "@" not in row]
    fused = [row for row in rows if row in ("fused", "fused-crossfit", *RULES)]
    if any(row in RULES for row in fused):
        note = (
            "Mean and maximum of the two probabilities of high; vote: share of models that say high, where a tie is "
            "not high (assumed). So high takes either model by the maximum, both by the vote."
        )
        names = {row: name_of(row) for row in fused}
        found.append(rows_table(evaluated, "Fusion rules", names, SHOWN, fill, [note]))
        pairs = [("fused", row) for row in fused if row != "fused"]
        found += tests_table(evaluated, "Fusion rules: differences", pairs, SHOWN)
    names = {row: name_of(row) for row in rows if "-frozen" in row}
    if names:
        found.append(rows_table(evaluated, "Frozen encoders", names, SHOWN, fill))
        pairs = [(row.replace("-frozen", ""), row) for row in names]
        pairs += [(row, row.replace("-frozen", "-random-frozen")) for row in names if "-random" not in row]
        found += tests_table(evaluated, "Frozen encoders: differences", pairs, SHOWN)
    return found + null_table(evaluated, rows)


def null_table(evaluated: Evaluated, rows: list[str]) -> list[dict]:
    """AUROC of the models against labels permuted within each subject; of those trained on shuffled labels, against a
    direction that chance chose in each fold."""
    lines, shown = [], [*main_rows(evaluated), *(row for row in rows if "-shuffled" in row)]
    fill, args = filler(evaluated, "bootstrap"), (evaluated.args.permutations, evaluated.args.seed)
    fewest = np.inf  # folds of a model of shuffled labels
    for row in shown:
        for target, predictions in evaluated.rows[row].items():
            observed = evaluated.summaries[row][target]["auroc"]["mean"]
            if "-shuffled" in row:
                by_fold = scores.by_fold(predictions, "auroc")
                null = scores.direction_null(by_fold, *args)
                p = float(np.mean(np.abs(null - 0.5) >= abs(observed - 0.5) - 1e-12)) if len(null) else np.nan
                p = max(p, 1 / (len(null) + 1))  # of random ways, the observed one is one more
                fewest = min(fewest, np.isfinite(by_fold).sum())
            else:
                null = scores.auroc_null(predictions, *args)
                p = scores.two_tailed(observed, null)
            found = {"auroc": observed, "null": scores.percentiles(null, between=False), "p": p}
            evaluated.summaries[row][target]["within_subject"] = found
            words = UNDEFINED if np.isnan(p) else "inside" if p >= scores.SIGNIFICANT else "outside"
            lines.append([name_of(row), target, fill(row, target, "auroc"), span(found["null"]), p_value(p), words])
    notes = [
        "Null: 95 % of what the same predictions reach when the labels of trials are permuted within each subject. "
        "Shuffled labels: the same with the AUROC of each fold turned around 0.5 or not, for such a model finds a "
        "direction in the signals that chance chose; it belongs inside. P is two-tailed and not adjusted."
    ]
    if not lines:
        return []
    if 2.0 ** (1 - fewest) >= scores.SIGNIFICANT:
        least = min(1.0, 2.0 ** (1 - fewest))
        notes.append(f"Too few folds ({fewest}): P of shuffled labels cannot be below {least:g}.")
    if transfer(evaluated)["trial"] > 0:
        notes.append("Trials are in training and test here: a model that only recognises a trial is outside, too.")
    return [
        {
            "title": f"Is it the signal? AUROC within subjects; {evaluated.run.folder}",
            "head": ["", "Target", "AUROC", "Null", "P", ""],
            "rows": lines,
            "notes": notes,
        }
    ]


def scarce_tables(evaluated: Evaluated) -> list[dict]:
    """Models trained on a share of the labels, pre-trained and not; nothing where no share was tried."""
    shares = sorted({fraction(row) for row in evaluated.rows})
    if shares == [1.0]:
        return []
    names, pairs = {}, []
    for model in ("eeg", "ecg", "fused"):
        for share in shares:
            suffix = "" if share == 1 else f"-fraction{share:g}"
            rows = [row for row in (f"{model}-random{suffix}", f"{model}{suffix}") if row in evaluated.rows]
            names |= {row: name_of(row) for row in rows}
            pairs.append((f"{model}{suffix}", f"{model}-random{suffix}"))
    for row in evaluated.rows:
        if fraction(row) < 1 and "@" not in row:
            whole = row.partition("-fraction")[0]
            names |= {each: name_of(each) for each in (whole, row) if each in evaluated.rows}
    table = rows_table(evaluated, "Scarce labels", names, SHOWN, filler(evaluated, "bootstrap"))
    return [table, *tests_table(evaluated, "Scarce labels: pre-trained - not", pairs, SHOWN)]


def elsewhere_table(evaluated: Evaluated) -> list[dict]:
    """Models tested on another labelled set."""
    names = {row: name_of(row) for row in evaluated.rows if "@" in row}
    note = "The model of each fold on all of the other set. 95 % intervals by drawing subjects of that set."
    if not names:
        return []
    return [rows_table(evaluated, "Other people", names, SHOWN, filler(evaluated, "bootstrap"), [note])]


def protocol_tables(first: Evaluated, second: Evaluated) -> list[dict]:
    """Two runs of the same data side by side and the difference, its interval by drawing the same subjects for both."""
    heads = [f"{each.run.folder} ({each.run.settings['split']})" for each in (first, second)]
    rows = [row for row in first.rows if row in second.rows]
    notes = ["Difference [low, high by drawing subjects, 95 %]. n.s.: not significant, for the interval holds 0."]
    notes[0] += " Of runs with the same folds, those that both have; incomplete: of others, and a fold is missing."
    labels = [each.run.settings["threshold"] for each in (first, second)]
    if labels[0] != labels[1]:
        notes.append(
            f"The labels differ, too: high is above --threshold {labels[0]} in the 1st, {labels[1]} in the 2nd."
        )
    notes += [f"{each.run.folder}: {note}" for each in (first, second) for note in notes_of(each, rows)]
    tables = []
    for score in SHOWN:
        lines = []
        for row in rows:
            cells = []
            for target in first.targets:
                cells += [filler(each)(row, target, score) for each in (first, second)]
                found = first.compare_runs(second, row, target, score)
                limits = found["bootstrap"] if found else [np.nan, np.nan]
                cells.append(f"{number(found['difference'], '+')} {span(limits)}" if found else UNDEFINED)
                cells[-1] += " n.s." if limits[0] <= 0 <= limits[1] else ""
                cells[-1] += " (incomplete)" if found and not found["complete"] else ""
            lines.append([name_of(row), *cells])
        columns = [
            f"{target[:2].capitalize()}. {part}" for target in first.targets for part in ("1st", "2nd", "1st - 2nd")
        ]
        tables.append(
            {
                "title": f"Protocols side by side, {SCORE_NAMES[score]}: 1st {heads[0]}, 2nd {heads[1]}",
                "head": ["", *columns],
                "rows": lines,
                "notes": notes,
            }
        )
    return tables


def subject_table(evaluated: Evaluated) -> dict:
    """Accuracy of single subjects, over all folds: mean, lowest and highest."""
    names = {row: name_of(row) for row in (*PRIORS, *main_rows(evaluated))}

    def fill(row: str, target: str, score: str) -> str:
        if target not in evaluated.rows[row]:
            return UNDEFINED
        values = [each[score] for each in scores.per_subject(evaluated.rows[row][target]).values()]
        return f"{number(np.mean(values))} ({number(min(values))} to {number(max(values))})"

    note = "Mean over subjects (lowest to highest), each over all of its test segments."
    return rows_table(evaluated, "Per subject", names, ("accuracy",), fill, [note])


def all_tables(runs: list[Evaluated]) -> list[dict]:
    """Every table of the runs, in the order of printing."""
    found = [transfer_table(runs)]
    found[0]["notes"] += in_words(runs)
    for other in runs[1:]:
        found += protocol_tables(runs[0], other)
    for each in runs:
        beside = beside_tables(each, SHOWN)
        of_row = {model if model in each.rows else f"{model}-random": own for model, own in CLASSICAL.items()}
        pairs = [(row, other) for row, own in of_row.items() for other in (*PRIORS, own)]
        found += paper_tables(each) + baseline_table(each) + beside
        found += tests_table(each, "Beside every model: differences", pairs, ("f1",))
        found += control_tables(each) + scarce_tables(each) + elsewhere_table(each)
        if each.args.details or each.args.json:
            others = [score for score in scores.SCORES if score not in SHOWN]
            found += [*beside_tables(each, others), *beside_tables(each, SHOWN, per_trial=True), subject_table(each)]
    return found
