"""The pictures against scikit-learn, PyTorch and the files they show; the page against the rules of HTML."""

import argparse
import base64
import io
import json
import re
import shutil
from html.parser import HTMLParser

import matplotlib
import numpy as np
import pytest
import torch
from matplotlib.text import Text
from PIL import Image
from sklearn.calibration import calibration_curve
from sklearn.metrics import accuracy_score
from torch import nn

import paper
from analysis import figures, report
from model import SingleModalityModel
from prepared import POINTS, write_set
from protocol import folds
from training import checkpoints, loop

NETWORK = {"cnn_kernels": [5, 3], "cnn_channels": [6, 8], "layers": 2, "heads": 2, "ffn": 12, "dropout": 0.1}


def predict(run, fold, target, random):
    """Random predictions for the test segments of a fold."""
    rows = run.split(fold)
    labels = run.labels(target, rows["train"])
    test = random.permutation(folds.rated(labels, rows["test"]))
    predictions = np.empty(len(test), loop.PREDICTION_DTYPE)
    predictions["segment"], predictions["label"] = test, labels[test]
    predictions["probability"] = random.random(len(test))
    return predictions


def checkpoint(run, fold, modality, target, **other):
    """Write an untrained classifier as finetune.py would; returns it."""
    torch.manual_seed(0)
    model = SingleModalityModel(2 if modality == "eeg" else 1, **NETWORK, classifier_hidden=[6], points=POINTS)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.5)
    identity = {**run.identity, "fold": fold, "modality": modality, "target": target, **other}
    state = {key: kind() for key, kind in checkpoints.KEYS.items()}
    state |= {"model": model.state_dict(), "identity": identity, "epoch": 1}
    state["flags"] = {**NETWORK, "classifier_hidden": [6], "epochs": 1}
    checkpoints.save(run.folder / modality / f"fold{fold}" / f"{target}.pt", state)
    return model.eval()


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of three folds: predictions of every model but the ECG's of fold 2, logs, checkpoints of folds 0 and 1."""
    folder = tmp_path_factory.mktemp("report")
    write_set(folder / "mini", subjects=5)
    table = np.load(folder / "mini" / "segments.npy")
    table["subject"][table["subject"] == "S1"] = "<b>$x_1$&Co</b>"
    np.save(folder / "mini" / "segments.npy", table)
    args = argparse.Namespace(run=folder / "run", data=folder / "mini", **{**folds.SETTINGS, "n_folds": 3})
    run = folds.open_run(args)
    run.start()
    random = np.random.default_rng(0)
    for _, _, model, variant in report.MODELS:
        for fold in (0, 1) if model == "ecg" else (0, 1, 2):
            path = run.folder / model / f"fold{fold}" / f"arousal{variant}.npy"
            path.parent.mkdir(parents=True, exist_ok=True)
            np.save(path, predict(run, fold, "arousal", random))
            if model in figures.NAMES:
                keys = "epoch", "train_loss", "validation_loss", "lr"
                lines = [dict(zip(keys, (epoch + 1, *random.random(3)))) for epoch in range(4 + fold)]
                path.with_suffix(".jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    for fold in (0, 1):
        for modality in paper.MODALITIES:
            checkpoint(run, fold, modality, "arousal")
    return run


def files(run, model, name="arousal"):
    """The predictions of all folds, read without our code."""
    return np.concatenate([np.load(path) for path in sorted((run.folder / model).glob(f"fold*/{name}.npy"))])


def drawn(axes, label):
    """x and y of the one line of this label."""
    (line,) = [line for line in axes.lines if line.get_label() == label]
    return np.asarray(line.get_xdata()), np.asarray(line.get_ydata())


# ---- numbers --------------------------------------------------------------------------------------------------------


def test_reliability_equals_scikit_learn_and_counts_every_segment():
    random = np.random.default_rng(1)
    borders = np.linspace(0, 1, 11)  # each belongs to the bin below it, 0 to the first
    probability = np.concatenate([borders, random.random(500) ** 3, random.random(200) * 0.1]).astype(np.float32)
    probability = probability[(probability < 0.6) | (probability > 0.7)]  # an empty bin
    label = (random.random(len(probability)) < probability).astype(np.int8)
    share, mean = calibration_curve(label, probability, n_bins=10)
    found_mean, found_share, count = figures.reliability_bins(label, probability)
    assert count[6] == 0 and np.isnan(found_mean[6]) and np.isnan(found_share[6])
    np.testing.assert_allclose(found_mean[count > 0], mean, atol=1e-12, rtol=0)
    np.testing.assert_allclose(found_share[count > 0], share, atol=1e-12, rtol=0)
    assert count.sum() == len(label)


def test_reliability_picture_shows_what_scikit_learn_finds(run):
    panels, gaps = report.read_panels(run, "arousal")
    figure = figures.draw_reliability(panels, "arousal")
    titles = [axes.get_title(loc="left") for axes in figure.axes]
    assert [title for title in titles if title] == list(panels) == ["EEG", "ECG", "EEG + ECG", "GSR", "EEG + ECG + GSR"]
    for panel, role, model, variant in report.MODELS:
        predictions = files(run, model, "arousal" + variant)
        share, mean = calibration_curve(predictions["label"], predictions["probability"], n_bins=10)
        above = figure.axes[titles.index(panel)]
        np.testing.assert_allclose(drawn(above, role), [mean, share], atol=1e-12, rtol=0)
        (below,) = [
            axes
            for axes in figure.axes
            if axes.get_position().y1 < above.get_position().y0 + 1e-9
            and axes.get_subplotspec().colspan == above.get_subplotspec().colspan
            and axes.get_subplotspec().rowspan.start == above.get_subplotspec().rowspan.start + 1
        ]
        (stairs,) = [patch for patch in below.patches if patch.get_label() == role]
        values, edges, _ = stairs.get_data()
        expected = [
            ((predictions["probability"] > low) & (predictions["probability"] <= high)).sum()
            for low, high in zip(edges[:-1], edges[1:])
        ]
        assert values.tolist() == expected
    assert gaps == " Folds without predictions: ECG, pre-trained: 2; ECG, random start: 2."


def test_accuracy_of_each_subject_equals_scikit_learn(run):
    panels, _ = report.read_panels(run, "arousal")
    figure = figures.draw_subjects(panels, run.data.table["subject"])
    names = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    by_title = {axes.get_title(loc="left"): axes for axes in figure.axes}
    for panel, role, model, variant in report.MODELS:
        predictions = files(run, model, "arousal" + variant)
        axes = by_title[panel]
        x, y = drawn(axes, role)
        subject = run.data.table["subject"][predictions["segment"]]
        assert {names[round(place)] for place in y} == set(subject) and len(y) == 5
        for accuracy, place in zip(x, y):
            mine = predictions[subject == names[round(place)]]
            assert accuracy == pytest.approx(accuracy_score(mine["label"], mine["probability"] > 0.5), abs=1e-12)
    predictions = files(run, "fused")
    for share, place in zip(*drawn(by_title["EEG + ECG"], "more frequent label")):
        label = predictions["label"][run.data.table["subject"][predictions["segment"]] == names[round(place)]]
        assert share == pytest.approx(np.bincount(label).max() / len(label), abs=1e-12)


def test_the_more_frequent_label_of_a_subject_may_be_either():
    predictions = np.zeros(9, loop.PREDICTION_DTYPE)
    predictions["segment"], predictions["label"] = [0, 1, 2, 3, 4, 5, 6, 7, 8], [1, 1, 1, 0, 0, 0, 0, 0, 1]
    predictions["probability"] = [0.9, 0.5, 0.6, 0.1, 0.2, 0.5, 0.51, 0.3, 0.7]
    subject = np.array(["A"] * 4 + ["B"] * 5 + ["C"])  # C was not tested
    found = figures.accuracy_by_subject(predictions, subject)
    assert found == {"A": (3 / 4, 3 / 4), "B": (4 / 5, 4 / 5)}


def test_losses_are_those_of_the_log_lines(run):
    logs = report.read_logs(run)
    assert list(logs) == ["arousal", "arousal-random"] and list(logs["arousal"]) == [
        "eeg",
        "ecg",
        "fused",
        "fused-crossfit",
    ]
    figure = figures.draw_losses(logs["arousal"], "arousal")
    axes = figure.axes[0]
    assert axes.get_title(loc="left") == "EEG, 3 folds" and figure.axes[1].get_title(loc="left") == "ECG, 2 folds"
    for key, label in (("train_loss", "training"), ("validation_loss", "validation")):
        by_fold = []
        for fold in range(3):
            text = (run.folder / "eeg" / f"fold{fold}" / "arousal.jsonl").read_text()
            by_fold.append([json.loads(line)[key] for line in text.splitlines()])
        assert [len(each) for each in by_fold] == [4, 5, 6]
        thick = drawn(axes, label)
        # Beyond the shortest fold a mean would be that of other folds.
        expected = [sum(each[epoch] for each in by_fold) / 3 for epoch in range(4)]
        np.testing.assert_allclose(thick, [[1, 2, 3, 4], expected], atol=1e-12)
        color = [line.get_color() for line in axes.lines if line.get_label() == label]
        thin = [line for line in axes.lines if line.get_color() == color[0] and line.get_label() != label]
        assert [line.get_ydata().tolist() for line in thin] == by_fold


def test_examples_are_the_segments_of_the_papers_figures(run):
    said = {model: {int(one["segment"]): one for one in files(run, model)} for model in ("ecg", "eeg", "fused")}
    found = figures.examples({model: report.read_predictions(run, model, "arousal")[0] for model in said})
    for wrong, other in (("ecg", "eeg"), ("eeg", "ecg")):
        best, kind, lost, tested = (-1, None), 0, 0, 0
        for segment in sorted(set(said["ecg"]) & set(said["eeg"]) & set(said["fused"])):
            one = {model: said[model][segment] for model in said}
            right = {model: (each["probability"] > 0.5) == bool(each["label"]) for model, each in one.items()}
            tested += 1
            if not right[wrong] and right[other]:
                kind, lost = kind + right["fused"], lost + (not right["fused"])
                distance = min(abs(float(each["probability"]) - 0.5) for each in one.values())
                if right["fused"] and distance > best[0]:
                    best = distance, segment
        assert found[wrong] == (best[1], kind, lost, tested) and kind > 0 and lost > 0


def test_examples_where_there_are_none(run):
    eeg, nothing = report.read_predictions(run, "eeg", "arousal")[0], np.empty(0, loop.PREDICTION_DTYPE)
    assert figures.examples({"ecg": eeg, "eeg": eeg, "fused": nothing}) == {}
    assert figures.examples({"ecg": eeg, "eeg": eeg, "fused": eeg}) == {
        wrong: (None, 0, 0, len(eeg)) for wrong in ("ecg", "eeg")
    }


def test_the_example_is_that_whose_least_sure_model_is_surest():
    def said(*probabilities):
        made = np.empty(len(probabilities), loop.PREDICTION_DTYPE)
        made["segment"], made["label"], made["probability"] = np.arange(len(made)), 1, probabilities
        return made

    found = figures.examples({"ecg": said(0.01, 0.2), "eeg": said(0.99, 0.8), "fused": said(0.51, 0.8)})
    assert found["ecg"] == (1, 2, 0, 2)


def test_picture_of_a_segment_shows_its_signals_and_what_was_said(run):
    row = figures.examples({model: files(run, model) for model in ("ecg", "eeg", "fused")})["ecg"][0]
    said = report.opinions(run, row, "arousal")
    figure = figures.draw_segment(run.data, row, "arousal", said)
    signals = [run.data.signals["ecg"][row, 0], run.data.signals["eeg"][row, 0], run.data.signals["eeg"][row, 1]]
    for axes, signal, name in zip(figure.axes, signals, ("ECG (SD)", "F7 (SD)", "F3 (SD)"), strict=True):
        seconds, values = axes.lines[0].get_xdata(), axes.lines[0].get_ydata()
        np.testing.assert_array_equal(values, signal)
        np.testing.assert_allclose(seconds, np.arange(POINTS) / 128, atol=1e-12)
        assert axes.get_ylabel() == name
    rated = "high" if run.data.table["arousal"][row] > 4 else "low"
    other = "low" if rated == "high" else "high"
    assert f"Rated {rated} arousal\nFused model: {rated} " in figure.get_suptitle() and "right" in figure.get_suptitle()
    titles = [axes.get_title(loc="left") for axes in figure.axes]
    assert re.fullmatch(rf"ECG model: {other} \(probability of high 0\.\d\d\), wrong", titles[0])
    assert re.fullmatch(rf"EEG model: {rated} \(probability of high 0\.\d\d\), right", titles[1])
    assert titles[2] == ""


def test_half_is_not_high():
    assert figures.verdict("eeg", (0, 0.5)) == "EEG model: low (probability of high 0.50), right"
    assert figures.verdict("ecg", (0, 0.51)) == "ECG model: high (probability of high 0.51), wrong"


def test_attention_picture_shows_the_weights_of_torch(run):
    row = int(np.flatnonzero(run.folds == 0)[3])
    weights = report.cls_attention(run, row, "arousal")
    figure = figures.draw_attention(run.data, row, "arousal", weights)
    for number, modality in enumerate(paper.MODALITIES):
        path = run.folder / modality / "fold0" / "arousal.pt"
        model = SingleModalityModel(
            2 if modality == "eeg" else 1, **NETWORK, classifier_hidden=[6], points=POINTS
        ).eval()
        model.load_state_dict(torch.load(path, weights_only=True)["model"])
        received = []
        model.layers[-1].register_forward_pre_hook(lambda _, inputs: received.append(inputs[0]))
        model.encode(torch.from_numpy(np.array(run.data.signals[modality][row]))[None])
        theirs = nn.MultiheadAttention(8, 2, batch_first=True)
        theirs.load_state_dict(model.layers[-1].self_attn.state_dict())
        _, expected = theirs(received[0], received[0], received[0], need_weights=True, average_attn_weights=False)
        expected = expected[0, :, 0].detach().numpy()
        assert expected.shape == (2, POINTS + 1)
        np.testing.assert_allclose(weights[modality], expected, atol=1e-6)
        above, below = figure.axes[2 * number : 2 * number + 2]
        for head in range(2):
            seconds, values = drawn(above, f"head {head + 1}")
            np.testing.assert_allclose(values, expected[head, 1:] * (POINTS + 1), atol=1e-4)
            np.testing.assert_allclose(seconds, np.arange(POINTS) / 128, atol=1e-12)  # token i + 1 is point i
        np.testing.assert_array_equal(below.lines[0].get_ydata(), run.data.signals[modality][row, 0])


# ---- what can be read -----------------------------------------------------------------------------------------------


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
    """Pairs of texts that overlap, texts on a plot, and texts that leave the figure."""
    boxes, page = texts(figure), figure.bbox
    plots = [("plot", axes.get_window_extent()) for axes in figure.axes]
    bad = [(a, b) for n, (a, one) in enumerate(boxes) for b, other in boxes[:n] if overlap(one, other)]
    bad += [(text, name) for text, box in boxes for name, plot in plots if overlap(box, plot)]
    return bad + [(text, "edge") for text, box in boxes if not inside(box, page)]


def overlap(one, other, tolerance=0.5):
    width, height = min(one.x1, other.x1) - max(one.x0, other.x0), min(one.y1, other.y1) - max(one.y0, other.y0)
    return width > tolerance and height > tolerance


def inside(box, page, tolerance=0.5):
    return (
        box.x0 >= page.x0 - tolerance
        and box.y0 >= page.y0 - tolerance
        and box.x1 <= page.x1 + tolerance
        and box.y1 <= page.y1 + tolerance
    )


def test_the_check_for_collisions_finds_them():
    figure = matplotlib.figure.Figure((2, 2))
    figure.text(0.1, 0.5, "one")
    figure.text(0.12, 0.52, "two")
    figure.text(0.9, 0.9, "three, too long")
    figure.add_axes((0.1, 0.1, 0.2, 0.2)).text(0.5, 0.5, "four")
    assert {tuple(sorted(pair)) for pair in collisions(figure)} >= {
        ("one", "two"),
        ("edge", "three, too long"),
        ("four", "plot"),
    }


def crowd(roles, subjects):
    """Panels with these many roles, and the subjects' names."""
    random = np.random.default_rng(2)
    subject = np.array([f"participant-{number:03}" for number in np.repeat(np.arange(subjects), 6)])
    predictions = np.zeros(len(subject), loop.PREDICTION_DTYPE)
    predictions["segment"] = np.arange(len(subject))
    panels = {}
    for panel, role, _, _ in report.MODELS[:roles]:
        panels.setdefault(panel, {})[role] = predictions.copy()
        panels[panel][role]["label"] = random.random(len(subject)) < 0.5
        panels[panel][role]["probability"] = random.random(len(subject))
    return panels, subject


@pytest.mark.parametrize("roles, subjects", [(1, 1), (1, 3), (5, 14), (9, 8), (14, 40)])
def test_no_text_collides_in_pictures_of_predictions(roles, subjects):
    panels, subject = crowd(roles, subjects)
    assert collisions(figures.draw_subjects(panels, subject)) == []
    assert collisions(figures.draw_reliability(panels, "arousal")) == []


@pytest.mark.parametrize("epochs, number, scale", [(1, 1, 1.0), (2, 3, 1e-4), (100, 10, 2e5), (500, 20, 1.0)])
def test_no_text_collides_in_pictures_of_losses(epochs, number, scale):
    random = np.random.default_rng(3)
    lines = {
        fold: np.column_stack([np.arange(1, epochs + 1), random.random((epochs, 2)) * scale]) for fold in range(number)
    }
    assert collisions(figures.draw_losses(dict.fromkeys(figures.NAMES, lines), "arousal")) == []
    assert collisions(figures.draw_losses({"eeg": lines}, "pretrain")) == []


@pytest.mark.parametrize("heads, long", [(1, False), (2, True), (8, True)])
def test_no_text_collides_in_pictures_of_segments(run, heads, long):
    data = run.data
    if long:
        table = data.table.copy()
        table["subject"], table["trial"] = "participant-0017", "video_0138_session_2_repetition1"
        table["start"] = 1234.5
        data = folds.Segments(data.folder, data.signals, table, data.manifest, "", "")
    said = {"ecg": (0, 0.9), "eeg": (1, 0.9), "fused": (1, 0.4)}
    assert collisions(figures.draw_segment(data, 2, "arousal", said)) == []
    assert collisions(figures.draw_segment(data, 2, "valence", {"eeg": (1, 0.9)})) == []
    weights = np.random.default_rng(4).dirichlet(np.full(POINTS + 1, 0.1), heads)
    assert collisions(figures.draw_attention(data, 2, "arousal", {"eeg": weights, "ecg": weights * 1000})) == []
    assert collisions(figures.draw_attention(data, 2, "arousal", {"ecg": weights})) == []


def test_roles_are_told_apart_without_colour():
    looks = [(str(look["marker"]), str(look["linestyle"])) for look in figures.ROLES.values()]
    assert len({marker for marker, _ in looks}) == len({line for _, line in looks}) == len(looks)
    assert {role for _, role, _, _ in report.MODELS} == set(figures.ROLES)


# ---- the page -------------------------------------------------------------------------------------------------------


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


TABLES = [
    {
        "title": "Table <i>1</i> & more",
        "head": ["Model", "Acc. <u>"],
        "rows": [["EEG <script>alert(1)</script>", "0.812 ± 0.012"], ["ECG", "<em>0.5</em>"]],
        "notes": ["A note with <b>marks</b>."],
    }
]


@pytest.fixture(scope="module")
def page(run, tmp_path_factory):
    """The page of the pre-trained models alone, with a segment of fold 0 asked for."""
    out = tmp_path_factory.mktemp("out")
    shutil.copytree(run.folder, out / "run", ignore=shutil.ignore_patterns("*-random*", "*-*"))
    row = int(np.flatnonzero(run.folds == 0)[0])
    path = report.write_report([folds.Run(out / "run", run.settings, run.data, run.folds)], TABLES, out, (row,))
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
    identifiers = [attributes["id"] for _, attributes in found.elements if "id" in attributes]
    assert len(set(identifiers)) == len(identifiers)
    wanted = [attributes["href"][1:] for attributes in found.all("a")]
    wanted += [attributes["aria-labelledby"] for _, attributes in found.elements if "aria-labelledby" in attributes]
    assert wanted and set(wanted) <= set(identifiers)


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
    assert embedded == {content for name, content in written.items() if name.endswith(".png")}
    names = {name[:-4] for name in written if name.endswith(".pdf")}
    (segment,) = [name for name in names if re.fullmatch(r"run-segment\d+-arousal", name)]
    expected = {f"run-{name}-arousal" for name in ("figure3", "figure4", "subjects", "reliability", "losses")}
    shown = {"run-figure3-arousal", "run-figure4-arousal", segment}
    assert names == expected | shown | {f"{name}-attention" for name in shown}
    assert all(content.startswith(b"%PDF-") for name, content in written.items() if name.endswith(".pdf"))


def test_page_is_proper_html_and_escapes_what_it_shows(page):
    text = page.read_text()
    found = Page(text)
    assert text.startswith("<!doctype html>") and found.all("html") == [{"lang": "en"}]
    assert {"charset": "utf-8"} in found.all("meta") and "Evaluation of run on mini" in found.text
    tags = [tag for tag, _ in found.elements]
    assert tags.count("h1") == tags.count("title") == tags.count("main") == 1
    assert tags.count("figcaption") == tags.count("figure") == tags.count("img") + tags.count("table")
    assert len(found.all("table")) == 3
    for words in (
        "Table <i>1</i> & more",
        "EEG <script>alert(1)</script>",
        "0.812\u00a0±\u00a00.012",
        "Acc. <u>",
        "<em>0.5</em>",
        "A note with <b>marks</b>.",
        "Simulated signals: this demonstrates the software and proves nothing about emotion.",
        "as asked for.",
        "Folds without predictions: ECG, pre-trained: 2.",
    ):
        assert words in found.text, words
    assert not {"b", "i", "u", "em", "script"} & set(tags)


def test_markup_in_the_name_of_a_subject_is_shown_as_it_is(run):
    row = int(np.flatnonzero(run.data.table["subject"] == "<b>$x_1$&Co</b>")[0])
    figure = figures.draw_segment(run.data, row, "arousal", {"eeg": (1, 0.9)})
    (title,) = [each for each in figure.findobj(Text) if each.get_text().startswith("<b>$x_1$&Co</b>, trial t0, 0 to ")]
    assert not title.get_parse_math()


def test_several_runs_stand_side_by_side_and_only_the_simulated_is_called_so(run):
    manifest = {**run.data.manifest, "simulated": False, "dataset": "people"}
    data = folds.Segments(run.data.folder, run.data.signals, run.data.table, manifest, "", "")
    real = folds.Run(run.folder, {**run.settings, "split": "subject"}, data, run.folds)
    section = report.SECTIONS[1]
    sections = {name: [] for name in report.SECTIONS}
    for name in ("a", "b"):
        sections[section] += [("one", b"png", "", f"one {name}"), ("two", None, "", f"two {name}")]
    text = report.render([real, run], ["a", "b"], TABLES, sections)
    page = Page(text)
    order = [page.text.index(words) for words in ("one a", "one b", "two a", "two b")]
    assert order == sorted(order) and text.count('<div class="pictures">') == 2
    assert "<th>" not in text and '<th scope="row">split</th><td>subject</td><td>segment</td>' in text
    assert "Simulated signals in b: " in page.text and "on people and mini" in page.text
    assert "imulated" not in Page(report.render([real], ["a"], TABLES, {name: [] for name in report.SECTIONS})).text


def test_runs_of_the_same_name_are_numbered(run, tmp_path):
    other = folds.Run(tmp_path / "run", run.settings, run.data, run.folds)
    third = folds.Run(tmp_path / "third", run.settings, run.data, run.folds)
    assert report.run_names([run, other, third]) == ["1-run", "2-run", "third"]


def test_the_same_run_gives_the_same_bytes(tmp_path):
    panels, subject = crowd(2, 3)
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        figures.save(figures.draw_subjects(panels, subject), tmp_path / folder / "subjects-0.1")
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == ["subjects-0.1.pdf", "subjects-0.1.png"]
    for path in (tmp_path / "a").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes()


@pytest.mark.parametrize("damage", ["log", "predictions", "checkpoint", "row"])
def test_what_is_wrong_is_said_and_an_older_page_stays(run, tmp_path, damage):
    copy = folds.Run(shutil.copytree(run.folder, tmp_path / "run"), run.settings, run.data, run.folds)
    (tmp_path / "report.html").write_text("older")
    rows = (int(np.flatnonzero(run.folds == 0)[0]),)
    if damage == "log":
        with open(copy.folder / "eeg" / "fold1" / "arousal.jsonl", "a") as file:
            file.write('{"epoch": 6, "train_lo')
        expected = r"eeg/fold1/arousal\.jsonl: line 6: expected JSON with epoch, train_loss and validation_loss"
    elif damage == "predictions":
        np.save(copy.folder / "fused" / "fold1" / "arousal.npy", np.zeros(3))
        expected = r"fused/fold1/arousal\.npy: expected rows of .*segment.*, found \(3,\) of float64"
    elif damage == "checkpoint":
        checkpoint(copy, 0, "ecg", "arousal", seed=5)
        expected = r"ecg/fold0/arousal\.pt: expected a checkpoint with seed 0, found 5"
    else:
        rows, expected = (len(run.data.table),), r"segment 120: expected a row .*mini/segments\.npy has rows 0 to 119"
    with pytest.raises(ValueError, match=expected):
        report.write_report([copy], TABLES, tmp_path, rows)
    assert (tmp_path / "report.html").read_text() == "older"
    assert not list(tmp_path.rglob("*.tmp"))
