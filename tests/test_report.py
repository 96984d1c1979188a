"""The pictures against scikit-learn and the files they show; the page against the rules of HTML."""

import argparse
import base64
import io
import json
import re
import shutil
from dataclasses import replace
from html.parser import HTMLParser

import matplotlib
import numpy as np
import pytest
from matplotlib.text import Text
from PIL import Image
from sklearn.metrics import f1_score

from analysis import compared, figures, report
from prepared import POINTS, edit_table, predicted, read_log, write_set
from protocol import folds
from protocol.records import PREDICTION_DTYPE, WATCHED, Model
from protocol.run import SETTINGS, Run, open_run
from protocol.segments import Segments
from training import watch

ARGS = argparse.Namespace(bootstrap=20, permutations=20, seed=0, details=False, json=False, report=True)
ARGS.skip_stale = False
EEG, ECG, FUSED = Model("network", ("eeg",)), Model("network", ("ecg",)), Model("fusion", ("eeg", "ecg"))
TRAINED = [replace(model, init=init) for model in (EEG, ECG, FUSED) for init in ("pretrained", "random")]
SIMPLE = [Model(family, (each,)) for family in ("classical", "amigos") for each in ("eeg", "ecg")]
SIMPLE += [Model("classical", ("eeg", "ecg")), Model("amigos", ("gsr",)), Model("amigos", ("eeg", "ecg", "gsr"))]
MODELS = TRAINED + SIMPLE


def predict(run, model, fold, target, random):
    """Write random predictions for the test segments of a fold; their path."""
    rows = run.split(fold)
    labels = run.labels(target, rows["train"])
    test = random.permutation(folds.rated(labels, rows["test"]))
    return predicted(run, model, fold, target, test, labels, random.random(len(test)))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of three folds: predictions of every model but the ECG's of fold 2, and logs."""
    folder = tmp_path_factory.mktemp("report")
    write_set(folder / "mini", subjects=5)
    odd = "<b>$x_1$&Co</b>"
    edit_table(folder / "mini", subject=lambda table: np.where(table["subject"] == "S1", odd, table["subject"]))
    args = argparse.Namespace(run=folder / "run", data=folder / "mini", **{**SETTINGS, "n_folds": 3})
    run = open_run(args)
    run.start()
    random = np.random.default_rng(0)
    for model in MODELS:
        for fold in (0, 1) if replace(model, init="pretrained") == ECG else (0, 1, 2):
            path = predict(run, model, fold, "arousal", random)
            if model in TRAINED:
                keys = "epoch", "train_loss", "validation_loss", "lr"
                lines = [dict(zip(keys, (epoch + 1, *random.random(3)))) for epoch in range(4 + fold)]
                path.with_suffix(".jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return run


@pytest.fixture(scope="module")
def evaluated(run):
    """That run as evaluate.py has read it."""
    return compared.evaluate(run, ARGS)


def drawn(axes, label):
    """x and y of the one line of this label."""
    (line,) = [line for line in axes.lines if line.get_label() == label]
    return np.asarray(line.get_xdata()), np.asarray(line.get_ydata())


def test_losses_are_those_of_the_log_lines(run):
    logs = report.read_logs(run)
    assert list(logs) == ["arousal", "arousal-random"] and list(logs["arousal"]) == ["EEG", "ECG", "Fused"]
    axes, other, _ = figures.draw_losses(logs["arousal"], "arousal").axes
    assert axes.get_title(loc="left") == "EEG, 3 folds" and other.get_title(loc="left") == "ECG, 2 folds"
    written = [read_log(run.folder / "eeg" / f"fold{fold}" / "arousal.jsonl") for fold in range(3)]
    for key, label in (("train_loss", "training"), ("validation_loss", "validation")):
        by_fold = [[epoch[key] for epoch in each] for each in written]
        assert [len(each) for each in by_fold] == [4, 5, 6]
        # Beyond the shortest fold a mean would be that of other folds.
        expected = [sum(each[epoch] for each in by_fold) / 3 for epoch in range(4)]
        np.testing.assert_allclose(drawn(axes, label), [[1, 2, 3, 4], expected], atol=1e-12)
        (color,) = [line.get_color() for line in axes.lines if line.get_label() == label]
        thin = [line for line in axes.lines if line.get_color() == color and line.get_label() != label]
        assert [line.get_ydata().tolist() for line in thin] == by_fold


def test_the_example_is_that_whose_least_sure_model_is_surest():
    def said(probabilities):
        made = np.empty(len(probabilities), PREDICTION_DTYPE)
        made["segment"], made["probability"] = list(probabilities), list(probabilities.values())
        made["label"] = made["segment"] != 2
        return made

    ecg = said({4: 0.1, 2: 0.85, 0: 0.01, 5: 0.0, 1: 0.2, 3: 0.7})  # wrong but in 3; of 4 the others say nothing
    eeg = said({0: 0.99, 1: 0.8, 2: 0.1, 3: 0.5, 5: 1.0})  # wrong in 3 alone, for half is not high
    fused = said({3: 0.9, 2: 0.1, 1: 0.8, 0: 0.51, 5: 0.0})  # wrong in 5
    found = figures.examples({"ecg": ecg, "eeg": eeg, "fused": fused})
    assert found == {"ecg": (2, 3, 5), "eeg": (3, 1, 5)}  # which, of how many of its kind, of how many
    for fused in (said({}), eeg):
        found = figures.examples({"ecg": eeg, "eeg": eeg, "fused": fused})
        assert found == dict.fromkeys(("ecg", "eeg"), (None, 0, len(fused)))


def test_picture_of_a_segment_shows_its_signals_and_what_was_said(run):
    high = run.data.table["arousal"] > 4
    row = np.flatnonzero(high)[0]
    said = {ECG: (1, 0.5), EEG: (1, 0.51), FUSED: (1, 0.9)}  # half is not high
    figure = figures.draw_segment(run.data, row, "arousal", said)
    signals = [run.data.signals["ecg"][row, 0], run.data.signals["eeg"][row, 0], run.data.signals["eeg"][row, 1]]
    for axes, signal, name in zip(figure.axes, signals, ("ECG (SD)", "F7 (SD)", "F3 (SD)"), strict=True):
        seconds, values = axes.lines[0].get_xdata(), axes.lines[0].get_ydata()
        np.testing.assert_array_equal(values, signal)
        np.testing.assert_allclose(seconds, np.arange(POINTS) / 128, atol=1e-12)
        assert axes.get_ylabel() == name
    assert "Rated high arousal\nFused model: high (probability of high 0.90), right" in figure.get_suptitle()
    titles = [axes.get_title(loc="left") for axes in figure.axes]
    low, right = "low (probability of high 0.50), wrong", "high (probability of high 0.51), right"
    assert titles == [f"ECG model: {low}", f"EEG model: {right}", ""]


def test_the_first_picture_shows_the_scores_of_scikit_learn_and_the_papers(run, evaluated):
    manifest = {**run.data.manifest, "simulated": False, "dataset": "amigos"}
    amigos = replace(evaluated, run=replace(run, data=replace(run.data, manifest=manifest)))
    by_name = {"EEG": "eeg/fold*/arousal", "ECG random": "ecg/fold*/arousal-random", "Fused": "fused/fold*/arousal"}
    by_name["Classical both"] = "classical-both/fold*/arousal"
    for done in (evaluated, amigos):
        lines, priors = report.overview(done, "arousal")
        (axes,) = figures.draw_overview({"arousal": (lines, priors)}).axes
        names = [label.get_text() for label in axes.get_yticklabels()]
        assert set(by_name) < set(names) and len(names) == len(MODELS) and "AMIGOS GSR" in names
        for name, pattern in by_name.items():
            of_folds = [np.load(each) for each in sorted(run.folder.glob(f"{pattern}.npy"))]
            f1 = [f1_score(each["label"], each["probability"] > 0.5, average="macro") for each in of_folds]
            np.testing.assert_allclose(drawn(axes, f"{name}, folds")[0], f1, atol=1e-12)
            np.testing.assert_allclose(drawn(axes, f"{name}, mean"), [[np.mean(f1)], [names.index(name)]], atol=1e-12)
            t = {2: 12.706204736, 3: 4.302652730}[len(f1)] * np.std(f1, ddof=1) / np.sqrt(len(f1))
            interval, corrected = (drawn(axes, f"{name}, {each}")[0] for each in ("interval", "corrected"))
            assert interval == pytest.approx([np.mean(f1) - t, np.mean(f1) + t], rel=1e-8)
            assert np.ptp(corrected) > 2 * t
        assert {"Majority class", "Subject prior", "Video prior"} < {line.get_label() for line in axes.lines}
        papers = {line.get_label() for line in axes.lines if line.get_label().endswith(", paper")}
        named = {"EEG", "EEG random", "ECG", "Fused", "Fused random"} if done is amigos else set()
        assert papers == {f"{name}, paper" for name in named}
    np.testing.assert_allclose(drawn(axes, "Fused, paper")[0], [0.885, 0.89, 0.895])
    np.testing.assert_allclose(drawn(axes, "EEG random, paper")[0], [0.7417, 0.75, 0.7583])


def copy_of(run, folder, *ignored):
    """A copy of the run in `folder`, without what matches `ignored`."""
    shutil.copytree(run.folder, folder / "run", ignore=shutil.ignore_patterns(*ignored))
    return Run(folder / "run", run.settings, run.data, run.folds)


def test_a_run_of_controls_alone_has_a_page(run, tmp_path):
    copy = copy_of(run, tmp_path, "eeg", "ecg", "fused", "*-*")
    predict(copy, replace(EEG, freeze=True), 0, "arousal", np.random.default_rng(0))
    text = report.write_report([compared.evaluate(copy, ARGS)], TABLES, tmp_path / "out").read_text()
    assert "no predictions of ECG, EEG, Fused" in text and "<img" not in text


def test_what_the_papers_figures_need_is_said(run, tmp_path):
    done = compared.evaluate(copy_of(run, tmp_path, "ecg"), ARGS)
    (example,) = report.segment_pictures(done, "arousal")
    assert example[2] is None and "no pictures like the paper's figures 3 and 4" in example[4]
    assert example[4].endswith("no predictions of ECG.")


def texts(figure):
    """Every text that is drawn, with its box in pixels."""
    with matplotlib.rc_context(figures.STYLE):
        figure.draw_without_rendering()
    labels, hidden = set(), set()
    for axes in figure.axes:
        for axis in (axes.xaxis, axes.yaxis):
            low, high = sorted(axis.get_view_interval())
            for tick in [*axis.get_major_ticks(), *axis.get_minor_ticks()]:
                seen = low - 1e-9 <= tick.get_loc() <= high + 1e-9
                labels.update([tick.label1, tick.label2])
                hidden.update(label for label in (tick.label1, tick.label2) if not (seen and label.get_visible()))
    found = [each for each in figure.findobj(Text) if each.get_text() and each.get_visible() and each not in hidden]
    return [(each.get_text(), each.get_window_extent()) for each in found]


def collisions(figure):
    """Pairs of texts that overlap, texts on a plot, and texts that leave the figure, all by over half a pixel."""
    boxes, page = [(text, box.padded(-0.25)) for text, box in texts(figure)], figure.bbox.padded(0.25)
    plots = [axes.get_window_extent().padded(-0.25) for axes in figure.axes]
    bad = [(a, b) for n, (a, one) in enumerate(boxes) for b, other in boxes[:n] if one.overlaps(other)]
    bad += [(text, "plot") for text, box in boxes for plot in plots if box.overlaps(plot)]
    return bad + [(text, "edge") for text, box in boxes if not (page.contains(*box.min) and page.contains(*box.max))]


@pytest.mark.parametrize("targets, models, papers", [(1, 1, False), (2, 5, True), (3, 9, True), (2, 14, False)])
def test_no_text_collides_in_the_first_picture(targets, models, papers):
    random, looks = np.random.default_rng(5), [*figures.LOOKS.values()]
    priors = dict(zip(("Majority class", "Subject prior", "Video prior"), random.random(3)))
    panels = {}
    for target in ("arousal", "valence", "dominance")[:targets]:
        lines = []
        for number in range(models):
            values = {"mean": 0.6, "interval": 0.1 * number, "corrected": 0.2, "by_fold": random.random(10).tolist()}
            values |= {"look": looks[number % len(looks)], "paper": (0.8, 0.01) if papers else None}
            lines.append({"name": "Fused, no pre-training", **values})
        panels[target] = lines, priors
    assert collisions(figures.draw_overview(panels)) == []


@pytest.mark.parametrize("epochs, number, scale", [(1, 1, 1.0), (2, 3, 1e-4), (100, 10, 2e5), (500, 20, 1.0)])
def test_no_text_collides_in_pictures_of_losses(epochs, number, scale):
    random = np.random.default_rng(3)
    assert WATCHED == (*"qkv", *watch.GROUPS, *watch.OUTPUTS)

    def line(epoch):
        losses = dict(zip(("train_loss", "validation_loss"), random.random(2) * scale))
        to_beat = {"zero": scale, "line": 1.4 * scale, "linear": 0.6 * scale}
        seen = dict(zip(WATCHED, random.random(len(WATCHED))))
        return {"epoch": epoch + 1.0, **losses, "to_beat": to_beat, "watch": seen}

    lines = {fold: [line(epoch) for epoch in range(epochs)] for fold in range(number)}
    assert collisions(figures.draw_losses(dict.fromkeys(("EEG", "ECG", "Fused"), lines), "arousal")) == []
    figure = figures.draw_losses({"EEG": lines}, "pretrain")
    assert collisions(figure) == [] and drawn(figure.axes[0], "to beat: linear")[1] == pytest.approx(0.6 * scale)
    figure = figures.draw_watch(dict.fromkeys(("EEG", "ECG"), lines))
    assert collisions(figure) == []
    mean = np.mean([lines[fold][-1]["watch"]["cls_output"] for fold in lines])
    assert drawn(figure.axes[1], "cls output")[1][-1] == pytest.approx(mean)


@pytest.mark.parametrize("long", [False, True])
def test_no_text_collides_in_pictures_of_segments(run, long):
    data = run.data
    if long:
        table = data.table.copy()
        table["subject"], table["trial"] = "participant-0017", "video_0138_session_2_repetition1"
        table["start"] = 1234.5
        data = Segments(data.folder, data.signals, table, data.manifest, "", "")
    said = {ECG: (0, 0.9), EEG: (1, 0.9), FUSED: (1, 0.4)}
    assert collisions(figures.draw_segment(data, 2, "arousal", said)) == []
    assert collisions(figures.draw_segment(data, 2, "valence", {EEG: (1, 0.9)})) == []


class Page(HTMLParser):
    """Elements in order, whether each is closed, and the text."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.open, self.text = [], [], ""
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] != "style":
            self.text += data

    def all(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]


LINES = [["EEG <script>alert(1)</script>", "0.812 ± 0.012"], ["ECG", "<em>0.5</em>"]]
TABLE = {"head": ["Model", "Acc. <u>"], "lines": LINES, "notes": ["A note with <b>marks</b>."]}
TABLES = [{"title": "Table <i>1</i> & more", "details": False, **TABLE}]


@pytest.fixture(scope="module")
def page(run, tmp_path_factory):
    """The page of the pre-trained models alone."""
    out = tmp_path_factory.mktemp("out")
    path = report.write_report([compared.evaluate(copy_of(run, out, "*-*"), ARGS)], TABLES, out)
    assert path == out / "report.html"
    return path


def test_page_stands_alone(page):
    text = re.sub(r"base64,[A-Za-z0-9+/=]+", "base64,", page.read_text())
    found = Page(text)
    assert not re.search(r"https?:|//[a-z]|@import|url\(", text, re.IGNORECASE)
    assert not {"script", "link", "iframe", "object", "embed", "base"} & {tag for tag, _ in found.elements}
    for _, attributes in found.elements:
        assert attributes.get("src", "data:image/png;base64,").startswith("data:image/png;base64,")
        assert attributes.get("href", "#").startswith("#") and not any(name.startswith("on") for name in attributes)
    ids, named = ([a[key] for _, a in found.elements if key in a] for key in ("id", "aria-labelledby"))
    assert len(set(ids)) == len(ids) and named and set(named) <= set(ids)


def test_page_has_the_pictures_that_lie_beside_it(page):
    found = Page(page.read_text())
    embedded = set()
    for image in found.all("img"):
        assert image["alt"].strip()
        content = base64.b64decode(image["src"].split(",", 1)[1], validate=True)
        with Image.open(io.BytesIO(content)) as picture:
            picture.load()
            assert picture.format == "PNG" and picture.width == round(3.5 * 250)
        embedded.add(content)
    written = {path.name: path.read_bytes() for path in (page.parent / "figures").iterdir()}
    assert embedded == set(written.values())
    expected = ("overview", "figure3-arousal", "figure4-arousal", "losses-arousal")
    assert set(written) == {f"run-{name}.png" for name in expected}


def test_page_is_proper_html_and_escapes_what_it_shows(page):
    text = page.read_text()
    found = Page(text)
    tags = [tag for tag, _ in found.elements]
    assert text.startswith("<!doctype html>") and {"charset": "utf-8"} in found.all("meta")
    assert tags.count("figcaption") == tags.count("figure") == tags.count("img") + tags.count("table")
    for words in (
        *("Table <i>1</i> & more", "EEG <script>alert(1)</script>", "0.812\u00a0±\u00a00.012", "Acc. <u>"),
        *("<em>0.5</em>", "A note with <b>marks</b>.", "ECG, arousal: no predictions of fold 2"),
    ):
        assert words in found.text, words
    assert not {"b", "i", "u", "em", "script"} & set(tags)


def test_each_run_has_its_line_and_only_the_simulated_is_called_so(run, evaluated):
    manifest = {**run.data.manifest, "simulated": False, "dataset": "people"}
    data = Segments(run.data.folder, run.data.signals, run.data.table, manifest, "", "")
    real = replace(evaluated, run=Run(run.folder, {**run.settings, "split": "subject"}, data, run.folds))
    page = Page(report.render([real, evaluated], ["a", "b"], TABLES, {}))
    assert "a: people, split by subject.\nb: mini, split by segment. The signals are simulated" in page.text
    assert "imulated" not in Page(report.render([real], ["a"], TABLES, {})).text


@pytest.mark.parametrize("room", [0, 8192])
def test_a_disk_that_is_full_is_named(evaluated, small_disk, room):
    disk, fill = small_disk
    fill(room)
    with pytest.raises(OSError, match="No space left on device") as caught:
        report.write_report([evaluated], TABLES, disk / "report")
    assert str(caught.value.filename).startswith(str(disk)) and not list(disk.rglob("*.tmp"))


@pytest.mark.slow
def test_the_same_run_gives_the_same_bytes_and_runs_of_one_name_are_numbered(run, evaluated, tmp_path):
    other = replace(evaluated, run=Run(tmp_path / "run", run.settings, run.data, run.folds))
    report.write_report([evaluated, other], TABLES, tmp_path)
    written = {path.name: path.read_bytes() for path in (tmp_path / "figures").iterdir()}
    assert written["1-run-overview.png"] == written["2-run-overview.png"]
    assert written["1-run-figure3-arousal.png"] == written["2-run-figure3-arousal.png"]


@pytest.mark.parametrize("damage", ["log", "predictions"])
def test_what_is_wrong_is_said_and_an_older_page_stays(run, tmp_path, damage):
    copy = copy_of(run, tmp_path)
    (tmp_path / "report.html").write_text("older")
    if damage == "log":
        with open(copy.folder / "eeg" / "fold1" / "arousal.jsonl", "a") as file:
            file.write('{"epoch": 6, "train_lo')
        expected = r"eeg/fold1/arousal\.jsonl: line 6: expected JSON with epoch, train_loss, validation_loss, found"
    else:
        np.save(copy.folder / "fused" / "fold1" / "arousal.npy", np.zeros(3))
        expected = r"fused/fold1/arousal\.npy: not the predictions that .*arousal\.json describes"
    with pytest.raises(ValueError, match=expected):
        report.write_report([compared.evaluate(copy, ARGS)], TABLES, tmp_path)
    assert (tmp_path / "report.html").read_text() == "older" and not list(tmp_path.rglob("*.tmp"))
