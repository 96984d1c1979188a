"""The tables and pictures of one run or several as one web page, report.html, that needs nothing but itself."""

import base64
from html import escape
from pathlib import Path

from tqdm import tqdm

import paper
from analysis import figures, tables
from analysis.compared import Evaluated
from analysis.reading import PRIORS
from common.files import write_atomically
from protocol.records import Model, read_log
from protocol.run import Run

OVERVIEW, SEGMENTS, LOSSES = "Macro F1 of every model", "Segments and what the models said", "Losses"
CSS = """
:root { color-scheme: light dark }
body { margin: 0 auto; max-width: 80rem; padding: 1rem; font: 1rem/1.5 system-ui; overflow-wrap: break-word }
h2 { margin-top: 2.5rem; border-bottom: 1px solid #999999 }
figure { margin: 1.5rem 0 }
figcaption { font-weight: 600 }
.warning { padding: .6rem .9rem; border-left: 4px solid #d55e00 }
.note, .pictures figcaption, table { font-size: .875rem; font-weight: 400 }
.scroll { overflow-x: auto }
table { border-collapse: collapse; font-variant-numeric: tabular-nums }
th, td { padding: .3rem .7rem; text-align: left; vertical-align: top; border-bottom: 1px solid #999999 }
th:first-child { position: sticky; left: 0; background: Canvas; min-width: 7.5rem; max-width: 11rem }
.pictures figure { display: inline-block; vertical-align: top; margin: 0 1.5rem 1.5rem 0; width: min(100%, 26rem) }
img { width: 100% }
@media print { .scroll { overflow: visible } tr, .pictures figure { break-inside: avoid } }
"""


def overview(evaluated: Evaluated, target: str) -> tuple[list[dict], dict[str, float]]:
    """The lines and the priors of `figures.draw_overview` for one target."""
    f1 = {model: found[target]["f1"] for model, found in evaluated.summaries.items() if target in found}
    lines = []
    for model in (model for model in evaluated.main if model in f1):
        theirs = tables.published(model, target) if evaluated.is_amigos else None
        look = figures.LOOKS[model.family if model.family in figures.LOOKS else model.init]
        lines.append({"name": tables.short(model), "look": look, "paper": theirs and theirs[1], **f1[model]})
    return lines, {model.label: f1[model]["mean"] for model in PRIORS if model in f1}


def read_logs(run: Run) -> dict[str, dict[str, dict[int, list[dict]]]]:
    """Training (`pretrain`, `arousal`, ...) -> model -> fold -> the lines of its log, one an epoch."""
    logs = {}
    for model in (*(Model("network", (name,)) for name in paper.MODALITIES), Model("fusion", paper.FUSED)):
        for fold in range(run.settings["n_folds"]):
            for path in (run.folder / model.folder / f"fold{fold}").glob("*.jsonl"):
                if lines := read_log(path):
                    logs.setdefault(path.stem, {}).setdefault(model.label, {})[fold] = lines
    return dict(sorted(logs.items(), key=lambda item: (item[0] != "pretrain", item[0])))


def pictures(evaluated: Evaluated):
    """Yield (section, file name, Figure, what is to be seen, caption) of one run, and None for the Figure where there
    is only something to say."""
    found = {target: overview(evaluated, target) for target in evaluated.targets}
    if found := {target: (lines, priors) for target, (lines, priors) in found.items() if lines}:
        alt, caption = f"{OVERVIEW}; the tables hold the numbers", "mean over folds. Lines across are priors."
        yield OVERVIEW, "overview", figures.draw_overview(found), alt, caption
    for target in evaluated.targets:
        yield from segment_pictures(evaluated, target)
    for name, models in read_logs(evaluated.run).items():
        caption = f"{name}: each fold thin, the mean over folds thick."
        yield LOSSES, f"losses-{name}", figures.draw_losses(models, name), f"Losses of {name} by epoch", caption
        if name == "pretrain":
            caption = "pretrain: the root mean square of weights, and how far the output of CLS and the mean of the "
            caption += "tokens differ between segments; mean over folds. What falls to a tenth is being erased."
            yield LOSSES, "watch-pretrain", figures.draw_watch(models), "Sizes of weights and outputs by epoch", caption


def segment_pictures(evaluated: Evaluated, target: str):
    """Yield, as `pictures` does, the segments that are like the paper's figures 3 and 4, of ECG and EEG; where one of
    these models or the fused one is missing, the words say so."""
    models = {name: Model("network", (name,)) for name in ("ecg", "eeg")} | {"fused": evaluated.fused()}
    missing = [model.label for model in models.values() if target not in evaluated.models.get(model, {})]
    if missing:
        words = "no pictures like the paper's figures 3 and 4, for there are no predictions of"
        yield SEGMENTS, "", None, "", f"{target}, {words} {', '.join(missing)}."
        return
    found = {name: evaluated.models[model][target] for name, model in models.items()}
    for number, (wrong, (row, kind, tested)) in zip((3, 4), figures.examples(found).items()):
        right = models["eeg" if wrong == "ecg" else "ecg"].label
        words = f"{target}, as in the paper's figure {number}: the {models[wrong].label} model wrong, "
        words += f"the {right} model and the fused model right, in {kind} of {tested} test segments."
        figure, alt = None, ""
        if row is not None:
            one = evaluated.run.data.table[row]
            words += f" Of the {kind}, this is segment {row} (subject {one['subject']}, trial {one['trial']}), where "
            words += "even the least sure of the three is sure."
            ones = {models[name]: each[each["segment"] == row][0] for name, each in found.items()}
            said = {model: (int(one["label"]), float(one["probability"])) for model, one in ones.items()}
            figure = figures.draw_segment(evaluated.run.data, row, target, said)
            alt = ". ".join([f"Signals of segment {row}", *(figures.verdict(*each) for each in said.items())])
        yield SEGMENTS, f"figure{number}-{target}", figure, alt, words


def write_report(runs: list[Evaluated], found: list[dict], out: Path) -> Path:
    """Write <out>/figures/*.png and then <out>/report.html, with the tables `found`; returns the path of the page.
    Raises ValueError where a log is not what it should be."""
    names = [each.run.folder.resolve().name for each in runs]
    if len(set(names)) < len(names):
        names = [f"{number}-{name}" for number, name in enumerate(names, 1)]
    (out / "figures").mkdir(parents=True, exist_ok=True)
    sections = {section: [] for section in (OVERVIEW, SEGMENTS, LOSSES)}
    for each, name in zip(runs, names):
        drawn = tqdm(pictures(each), desc="drawing", unit="picture", disable=None, leave=False)
        for section, file, figure, alt, caption in drawn:
            png = figures.png_of(figure) if figure else None
            if png:
                write_atomically(out / "figures" / f"{name}-{file}.png", lambda opened: opened.write(png))
            sections[section].append(render_picture(png, alt, f"{name}, {caption}"))
    page, path = render(runs, names, found, sections).encode(), out / "report.html"
    write_atomically(path, lambda file: file.write(page))
    return path


def render(runs: list[Evaluated], names: list[str], found: list[dict], sections: dict[str, list[str]]) -> str:
    """The page as one string: first every model's F1 and what to doubt, then tables and pictures, then details;
    sections: heading -> its pictures in HTML."""
    title, about, doubts = f"Evaluation of {' and '.join(names)}", [], []
    for name, each in zip(names, runs):
        manifest, split = each.run.data.manifest, each.run.settings["split"]
        words = f"{name}: {manifest['dataset']}, split by {split}." + f" {tables.SIMULATED}" * manifest["simulated"]
        about.append(f'<p class="{"warning" if manifest["simulated"] else "note"}">{escape(words)}</p>')
        doubts += [f"<li>{escape(f'{name}: {text}')}</li>" for text in [*tables.doubts(each), *each.notes]]
    numbered = [(render_table(table, f"table{number}"), table["details"]) for number, table in enumerate(found)]
    shown = {head: '<div class="pictures">\n' + "\n".join(each) + "\n</div>" for head, each in sections.items() if each}
    content = {  # heading -> text, in the order of the page
        OVERVIEW: shown.get(OVERVIEW),
        "What to doubt": "<ul>\n" + "\n".join(doubts) + "\n</ul>",
        "Tables": "\n".join(table for table, details in numbered if not details),
        **{head: shown.get(head) for head in (SEGMENTS, LOSSES)},
        "Details": "\n".join(table for table, details in numbered if details),
    }
    parts = [f"<h2>{escape(head)}</h2>\n{text}" for head, text in content.items() if text]
    body = "\n".join([f"<h1>{escape(title)}</h1>", *about, *parts])
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{CSS}</style>\n</head>\n<body>\n{body}\n</body>\n</html>\n"
    )


def render_table(table: dict, identifier: str) -> str:
    """A table that scrolls in its own box, the first cell of each line being its head."""
    head, lines = "".join(f'<th scope="col">{escape(cell)}</th>' for cell in table["head"]), []
    for first, *others in table["lines"]:
        cells = "".join(f"<td>{escape(cell).replace(' ± ', '&nbsp;±&nbsp;')}</td>" for cell in others)
        lines.append(f'<tr><th scope="row">{escape(first)}</th>{cells}</tr>')
    notes = "".join(f'\n<p class="note">{escape(note)}</p>' for note in table["notes"])
    body = "\n".join(lines)
    return (
        f'<figure>\n<figcaption id="{identifier}">{escape(table["title"])}</figcaption>\n'
        f'<div class="scroll" tabindex="0" role="region" aria-labelledby="{identifier}">\n<table>\n'
        f"<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody>\n</table>\n</div>{notes}\n</figure>"
    )


def render_picture(png: bytes | None, alt: str, caption: str) -> str:
    """A picture with its caption, or the caption alone where there is no picture."""
    if png is None:
        return f'<p class="note">{escape(caption)}</p>'
    data = base64.b64encode(png).decode()
    image = f'<img alt="{escape(alt)}" src="data:image/png;base64,{data}">'
    return f"<figure>\n{image}\n<figcaption>{escape(caption)}</figcaption>\n</figure>"
