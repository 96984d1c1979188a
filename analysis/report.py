"""The tables and pictures of one run or several as one web page that needs nothing but itself.

`evaluate.py --report` calls `write_report`; the page is report.html, its pictures also lie in figures/ as PNG and PDF.
"""

import base64
import json
from html import escape
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

import paper
from analysis import figures
from common.files import write_atomically
from protocol import folds
from protocol.batches import SignalRows
from training import checkpoints, loop

MODELS = (  # panel: models that see the same signals; role, model, variant
    ("EEG", "pre-trained", "eeg", ""),
    ("EEG", "random start", "eeg", "-random"),
    ("EEG", "classical", "classical-eeg", ""),
    ("EEG", "AMIGOS baseline", "amigos-eeg", ""),
    ("ECG", "pre-trained", "ecg", ""),
    ("ECG", "random start", "ecg", "-random"),
    ("ECG", "classical", "classical-ecg", ""),
    ("ECG", "AMIGOS baseline", "amigos-ecg", ""),
    ("EEG + ECG", "pre-trained", "fused", ""),
    ("EEG + ECG", "random start", "fused", "-random"),
    ("EEG + ECG", "cross-fitted", "fused-crossfit", ""),
    ("EEG + ECG", "classical", "classical-both", ""),
    ("GSR", "AMIGOS baseline", "amigos-gsr", ""),
    ("EEG + ECG + GSR", "AMIGOS baseline", "amigos-fused", ""),
)
SECTIONS = ("Segments and what the models said", "Accuracy of each subject", "Reliability", "Losses")
CSS = """
:root { color-scheme: light dark; --text: #1a1a1a; --back: #ffffff; --line: #c4c4c4; --soft: #f3f3f3; --quiet: #555555 }
@media (prefers-color-scheme: dark) {
  :root { --text: #e8e8e8; --back: #161616; --line: #4a4a4a; --soft: #242424; --quiet: #b0b0b0 }
}
* { box-sizing: border-box }
body { margin: 0 auto; max-width: 80rem; padding: 1rem; color: var(--text); background: var(--back);
  font: 1rem/1.5 system-ui, sans-serif; overflow-wrap: break-word }
h1 { font-size: 1.6rem; line-height: 1.2 }
h2 { margin-top: 2.5rem; font-size: 1.25rem; border-bottom: 1px solid var(--line) }
a { color: inherit }
figure { margin: 1.5rem 0; min-width: 0 }
figcaption { margin-bottom: .4rem; font-weight: 600; max-width: 60rem }
.warning { padding: .6rem .9rem; border-left: 4px solid #d55e00; background: var(--soft); max-width: 60rem }
.note { margin: .3rem 0; max-width: 60rem; color: var(--quiet); font-size: .875rem }
.scroll { overflow-x: auto; max-width: max-content; border: 1px solid var(--line) }
.scroll:focus-visible { outline: 3px solid #0072b2 }
table { border-collapse: collapse; font-size: .875rem; font-variant-numeric: tabular-nums }
th, td { padding: .3rem .7rem; text-align: left; vertical-align: top; min-width: 4rem; max-width: 26rem }
th { background: var(--back); font-weight: 500 }
th:first-child { position: sticky; left: 0; min-width: 7.5rem; max-width: 11rem }
thead th { background: var(--soft); font-weight: 700; vertical-align: bottom }
tbody tr { border-top: 1px solid var(--line) }
.pictures { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 22rem), 1fr)); gap: 1.5rem;
  margin-bottom: 1.5rem }
.pictures figure { margin: 0; max-width: 28rem }
.pictures img { display: block; width: 100%; height: auto; background: #ffffff }
.pictures figcaption { margin: .4rem 0 0; font-weight: 400; font-size: .875rem }
@media print {
  :root { color-scheme: light; --text: #000000; --back: #ffffff; --line: #999999; --soft: #ffffff; --quiet: #333333 }
  body { padding: 0; max-width: none; font-size: 9pt }
  nav { display: none }
  .scroll { overflow: visible; border: 0 }
  table { font-size: 8pt }
  th, td { padding: .1rem .3rem; min-width: 0 }
  .pictures { display: block; columns: 2 }
  .pictures figure, tr { margin-bottom: 1rem; break-inside: avoid }
  h2, figcaption { break-after: avoid }
}
"""


# ---- what a run left behind -----------------------------------------------------------------------------------------


def read_predictions(run: folds.Run, model: str, name: str) -> tuple[np.ndarray, list[int]]:
    """The test predictions `<model>/fold<k>/<name>.npy` of all folds in one array, and the folds that have none.

    Raises ValueError where a file is damaged; that they belong to the run is for evaluate.py to check.
    """
    found, missing = [np.empty(0, loop.PREDICTION_DTYPE)], []
    for fold in range(run.settings["n_folds"]):
        path = run.folder / model / f"fold{fold}" / f"{name}.npy"
        if not path.exists():
            missing.append(fold)
            continue
        found.append(loop.read_predictions(path))
    return np.concatenate(found), missing


def read_panels(run: folds.Run, target: str) -> tuple[dict[str, dict[str, np.ndarray]], str]:
    """panel -> role -> test predictions of all folds, of the models that have some; and in words, which folds lack."""
    panels, gaps = {}, []
    for panel, role, model, variant in MODELS:
        predictions, missing = read_predictions(run, model, target + variant)
        if len(predictions):
            panels.setdefault(panel, {})[role] = predictions
            if missing:
                gaps.append(f"{panel}, {role}: {' '.join(map(str, missing))}")
    return panels, f" Folds without predictions: {'; '.join(gaps)}." if gaps else ""


def read_logs(run: folds.Run) -> dict[str, dict[str, dict[int, np.ndarray]]]:
    """Training (`pretrain`, `arousal`, ...) -> model -> fold -> (epochs, 3): epoch, training and validation loss."""
    logs = {}
    for model in figures.NAMES:
        for fold in range(run.settings["n_folds"]):
            for path in (run.folder / model / f"fold{fold}").glob("*.jsonl"):
                lines = read_log(path)
                if len(lines):
                    logs.setdefault(path.name.removesuffix(".jsonl"), {}).setdefault(model, {})[fold] = lines
    return dict(sorted(logs.items(), key=lambda item: (item[0] != "pretrain", item[0])))


def read_log(path: Path) -> np.ndarray:
    """(epochs, 3) of one log. Raises ValueError where a line is not one of ours."""
    rows = []
    for number, line in enumerate(path.read_bytes().splitlines(), 1):
        try:
            content = json.loads(line)
            rows.append([float(content[key]) for key in ("epoch", "train_loss", "validation_loss")])
        except (ValueError, TypeError, KeyError):
            keys = "epoch, train_loss and validation_loss"
            raise ValueError(f"{path}: line {number}: expected JSON with {keys}, found {line[:40]!r}; remove the log")
    return np.array(rows).reshape(-1, 3)


def opinions(run: folds.Run, row: int, target: str) -> dict[str, tuple[int, float]]:
    """model -> (label, probability of high) of one segment, of the single and the fused models that tested it."""
    found = {}
    for model in ("ecg", "eeg", "fused"):
        predictions, _ = read_predictions(run, model, target)
        for one in predictions[predictions["segment"] == row]:
            found[model] = int(one["label"]), float(one["probability"])
    return found


@torch.no_grad()
def cls_attention(run: folds.Run, row: int, target: str) -> dict[str, np.ndarray]:
    """modality -> (H, N): what CLS takes of each token in the last layer, of the models that tested this segment.

    Raises ValueError where a checkpoint belongs to another run or fold.
    """
    weights, fold = {}, int(run.folds[row])
    for modality in paper.MODALITIES:
        path = run.folder / modality / f"fold{fold}" / f"{target}.pt"
        if path.exists():
            state = checkpoints.load(path, "")
            identity = {**run.identity, "fold": fold, "modality": modality, "target": target}
            checkpoints.check_identity(path, state["identity"], identity)
            signals = SignalRows([(run.data, np.array([row]))], modality)
            model = checkpoints.load_classifier(path, state, signals.channels, signals.points)
            weights[modality] = model.cls_attention(signals.batch(np.array([0]), "cpu"))[0].numpy()
    return weights


# ---- pictures -------------------------------------------------------------------------------------------------------


def pictures(run: folds.Run, rows: tuple[int, ...]):
    """Yield (section, file name, Figure, what is to be seen, caption) of one run, and None for the Figure where there
    is only something to say. rows: segments to show besides those found."""
    tested, logs = {target: read_panels(run, target) for target in paper.TARGETS}, read_logs(run)
    for target, (panels, gaps) in tested.items():
        yield from segment_pictures(run, target, rows)
        if panels:
            caption = f"{target}: share of each subject's test segments put into the right class.{gaps}"
            figure = figures.draw_subjects(panels, run.data.table["subject"])
            yield SECTIONS[1], f"subjects-{target}", figure, f"Accuracy of {target}, subject by subject", caption
            caption = f"{target}: on the diagonal, a probability means what it says. Below, segments in each bin.{gaps}"
            figure = figures.draw_reliability(panels, target)
            yield SECTIONS[2], f"reliability-{target}", figure, f"Reliability of the probabilities of {target}", caption
    for name, models in logs.items():
        caption = f"{name}: each fold thin, the mean over folds thick."
        yield SECTIONS[3], f"losses-{name}", figures.draw_losses(models, name), f"Losses of {name} by epoch", caption


def segment_pictures(run: folds.Run, target: str, rows: tuple[int, ...]):
    """The segments of `rows`, then those found to be like the paper's figures 3 and 4, each with its attention."""
    shown = [(row, f"segment{row}", f"segment {row}, as asked for.") for row in rows]
    found = figures.examples({model: read_predictions(run, model, target)[0] for model in ("ecg", "eeg", "fused")})
    for number, (wrong, (row, kind, lost, tested)) in zip((3, 4), found.items()):
        right = "EEG" if wrong == "ecg" else "ECG"
        words = (
            f"as in the paper's figure {number}: the {wrong.upper()} model wrong, the {right} model right, and the "
            f"fused model right in {kind} of {tested} test segments, but wrong in {lost} more."
        )
        if row is None:
            yield SECTIONS[0], f"figure{number}-{target}", None, "", f"{target}, {words}"
        else:
            words += f" Of the {kind}, this is segment {row}, where even the least sure of the three is sure."
            shown.append((row, f"figure{number}", words))
    for row, name, words in shown:
        said = opinions(run, row, target)
        if not said:
            yield SECTIONS[0], f"{name}-{target}", None, "", f"{target}: no pre-trained model has tested segment {row}."
            continue
        figure = figures.draw_segment(run.data, row, target, said)
        alt = ". ".join([f"Signals of segment {row}", *(figures.verdict(*each) for each in said.items())])
        yield SECTIONS[0], f"{name}-{target}", figure, alt, f"{target}, {words}"
        weights = cls_attention(run, row, target)
        if weights:
            figure = figures.draw_attention(run.data, row, target, weights)
            alt = f"Attention of CLS over the ten seconds of segment {row}, above the signals"
            caption = (
                f"{target}, segment {row}: how much CLS takes of each point in the last layer. A point has taken from "
                "all others in the layers before, so this does not prove what decided."
            )
            yield SECTIONS[0], f"{name}-{target}-attention", figure, alt, caption


# ---- the page -------------------------------------------------------------------------------------------------------


def write_report(runs: list[folds.Run], tables: list[dict], out: Path, rows: tuple[int, ...] = ()) -> Path:
    """Write <out>/report.html and <out>/figures/*.png, *.pdf; returns the path of the page.

    tables: {"title", "head", "rows", "notes"} of strings; rows: segments to show besides those found. The page is
    written last and whole. Raises ValueError where a row, a log or a checkpoint is not what it should be.
    """
    for run in runs:
        for row in rows:
            if not 0 <= row < len(run.data.table):
                found = f"{run.data.folder}/segments.npy has rows 0 to {len(run.data.table) - 1}"
                raise ValueError(f"segment {row}: expected a row of segments.npy, but {found}; choose another")
    names = run_names(runs)
    (out / "figures").mkdir(parents=True, exist_ok=True)
    sections = {section: [] for section in SECTIONS}
    bar = tqdm(desc="drawing", unit="picture", disable=None, leave=False)
    for run, name in zip(runs, names):
        for section, file, figure, alt, caption in pictures(run, rows):
            caption = f"{name}, {caption}" if len(runs) > 1 else caption[:1].upper() + caption[1:]
            png = figures.save(figure, out / "figures" / f"{name}-{file}") if figure else None
            sections[section].append((file, png, alt, caption))
            bar.update()
    bar.close()
    page, path = render(runs, names, tables, sections).encode(), out / "report.html"
    write_atomically(path, lambda file: file.write(page))
    return path


def run_names(runs: list[folds.Run]) -> list[str]:
    """The folders' names, numbered where two are the same."""
    names = [run.folder.resolve().name for run in runs]
    return [name if names.count(name) == 1 else f"{number}-{name}" for number, name in enumerate(names, 1)]


def render(runs, names, tables, sections) -> str:
    """The page as one string."""
    sets = list(dict.fromkeys(run.data.manifest["dataset"] for run in runs))
    title = f"Evaluation of {' and '.join(names)} on {' and '.join(sets)}"
    simulated = [name for name, run in zip(names, runs) if run.data.manifest["simulated"]]
    parts = [f"<h1>{escape(title)}</h1>"]
    if simulated:
        whose = "" if len(simulated) == len(runs) else f" in {' and '.join(simulated)}"
        words = f"Simulated signals{whose}: this demonstrates the software and proves nothing about emotion."
        parts.append(f'<p class="warning">{escape(words)}</p>')
    filled = [section for section in SECTIONS if sections[section]]
    heads = ["Tables", *filled, "Runs and data"]
    links = "".join(f'<li><a href="#part{number}">{escape(head)}</a></li>' for number, head in enumerate(heads))
    parts.append(f'<nav aria-label="Contents"><ul>{links}</ul></nav>\n<main>')
    parts.append('<h2 id="part0">Tables</h2>')
    parts += [render_table(table, f"table{number}") for number, table in enumerate(tables)]
    for number, section in enumerate(filled, 1):
        parts.append(f'<h2 id="part{number}">{escape(section)}</h2>')
        by_file = {}
        for file, *picture in sections[section]:
            by_file.setdefault(file, []).append(render_picture(*picture))
        # Of several runs, the same picture of each side by side.
        groups = by_file.values() if len(runs) > 1 else [sum(by_file.values(), [])]
        parts += ['<div class="pictures">\n' + "\n".join(group) + "\n</div>" for group in groups]
    parts.append(f'<h2 id="part{len(heads) - 1}">Runs and data</h2>')
    parts += [render_table(table, f"about{number}") for number, table in enumerate(about(runs, names))]
    body = "\n".join([*parts, "</main>"])
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        # Nothing is fetched, whatever a name in a table may hold.
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; img-src data:; '
        "style-src 'unsafe-inline'\">\n"
        f"<title>{escape(title)}</title>\n<style>{CSS}</style>\n</head>\n<body>\n{body}\n</body>\n</html>\n"
    )


def render_table(table: dict, identifier: str) -> str:
    """A table that scrolls in its own box, the first cell of each row being its head."""
    head, rows = "".join(f'<th scope="col">{escape(cell)}</th>' for cell in table["head"]), []
    for first, *others in table["rows"]:
        cells = "".join(f"<td>{escape(cell).replace(' ± ', '&nbsp;±&nbsp;')}</td>" for cell in others)
        rows.append(f'<tr><th scope="row">{escape(first)}</th>{cells}</tr>')
    notes = "".join(f'\n<p class="note">{escape(note)}</p>' for note in table["notes"])
    return (
        f'<figure>\n<figcaption id="{identifier}">{escape(table["title"])}</figcaption>\n'
        f'<div class="scroll" tabindex="0" role="region" aria-labelledby="{identifier}">\n'
        f'<table aria-labelledby="{identifier}">\n<thead><tr>{head}</tr></thead>\n<tbody>\n'
        + "\n".join(rows)
        + f"\n</tbody>\n</table>\n</div>{notes}\n</figure>"
    )


def render_picture(png: bytes | None, alt: str, caption: str) -> str:
    """A picture within the page, or what is said instead of it."""
    if png is None:
        return f'<p class="note">{escape(caption)}</p>'
    data = base64.b64encode(png).decode()
    return (
        f'<figure>\n<img alt="{escape(alt)}" src="data:image/png;base64,{data}">\n'
        f"<figcaption>{escape(caption)}</figcaption>\n</figure>"
    )


def about(runs: list[folds.Run], names: list[str]) -> list[dict]:
    """Two tables with a column a run: its settings, and its data set."""
    settings, data = [], []
    for run in runs:
        settings.append({key: str(value)[: 12 if "sha256" in key else None] for key, value in run.settings.items()})
        manifest, table = run.data.manifest, run.data.table
        reasons = [each.get("reason", "no reason") for each in manifest["dropped"]]
        data.append(
            {
                "data set": manifest["dataset"] + (" (simulated)" if manifest["simulated"] else ""),
                "subjects": str(len(np.unique(table["subject"]))),
                "trials": str(len(np.unique(folds.trials(table)))),
                "segments": f"{len(table)} of {manifest['points'] / manifest['rate']:g} s at {manifest['rate']} Hz",
                **{f"rated for {each}": str(int(np.isfinite(table[each]).sum())) for each in paper.TARGETS},
                **{f"channels, {kind}": " ".join(each) for kind, each in manifest["channels"].items()},
                "dropped": "; ".join(f"{reasons.count(each)} {each}" for each in dict.fromkeys(reasons)) or "nothing",
                **{
                    key.replace("_", " "): json.dumps(value)
                    for key, value in manifest["preprocessing"].items()
                    if key not in ("channels", "modalities", "rate")
                },
            }
        )
    tables = []
    for title, columns in (("Settings of the runs", settings), ("Data sets", data)):
        keys = dict.fromkeys(key for column in columns for key in column)
        rows = [[key, *(column.get(key, "-") for column in columns)] for key in keys]
        tables.append({"title": title, "head": ["", *names], "rows": rows, "notes": []})
    return tables
