"""The pictures of a run: the paper's figures 3 and 4, the attention behind them, losses, reliability, subjects.

Every drawing function returns a matplotlib Figure as wide as one column of print (3.5 inches). Its colours are told
apart by colour-blind readers (Okabe and Ito), its markers and line styles in grey.
"""

import io
import textwrap
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator
from PIL import Image

from common.files import write_atomically
from protocol.segments import Segments

WIDTH = 3.5  # inches
BINS = 10  # of the reliability diagram (assumed)
SHOWN_EEG = ("F7", "F3")  # paper, figures 3 and 4
BLACK, GREY, BLUE, VERMILLION, GREEN, PURPLE = "#000000", "#767676", "#0072B2", "#D55E00", "#009E73", "#CC79A7"
STYLE = {
    "font.size": 8,
    "axes.titlesize": 8,
    "axes.titlelocation": "left",
    "axes.labelsize": 8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.6,
    "figure.titlesize": 8,
    "legend.fontsize": 7,
    "legend.frameon": False,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "lines.linewidth": 1.0,
    "lines.markersize": 3.5,
    "pdf.fonttype": 42,  # text stays text
    "text.parse_math": False,  # a $ in the name of a subject is a $
}
NAMES = {"eeg": "EEG", "ecg": "ECG", "fused": "Fused", "fused-crossfit": "Fused, cross-fitted"}
ROLES = {
    "pre-trained": {"color": BLUE, "marker": "o", "linestyle": "-"},
    "random start": {"color": VERMILLION, "marker": "s", "linestyle": "--", "markerfacecolor": "white"},
    "cross-fitted": {"color": PURPLE, "marker": "D", "linestyle": "-."},
    "classical": {"color": GREEN, "marker": "^", "linestyle": ":"},
    "AMIGOS baseline": {"color": BLACK, "marker": "x", "linestyle": (0, (5, 1, 1, 1, 1, 1))},
}
LEFT = {"x": 0.01, "horizontalalignment": "left"}
FREQUENT = {"color": GREY, "marker": "|", "markersize": 7, "linestyle": "", "label": "more frequent label"}


# ---- numbers --------------------------------------------------------------------------------------------------------


def reliability_bins(label: np.ndarray, probability: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean probability, share of high labels (both NaN in an empty bin) and count of each of BINS equal bins."""
    number = np.searchsorted(np.linspace(0, 1, BINS + 1)[1:-1], probability)
    count = np.bincount(number, minlength=BINS)
    with np.errstate(invalid="ignore"):
        mean = np.bincount(number, weights=probability, minlength=BINS) / count
        share = np.bincount(number, weights=label, minlength=BINS) / count
    return mean, share, count


def accuracy_by_subject(predictions: np.ndarray, subject: np.ndarray) -> dict[str, tuple[float, float]]:
    """subject -> accuracy, and the share of its more frequent label. subject: the column of segments.npy."""
    of_row, found = subject[predictions["segment"]], {}
    for name in np.unique(of_row).tolist():
        mine = predictions[of_row == name]
        high = float(np.mean(mine["label"]))
        accuracy = float(np.mean((mine["probability"] > 0.5) == mine["label"]))
        found[name] = accuracy, max(high, 1 - high)
    return found


def examples(said: dict[str, np.ndarray]) -> dict[str, tuple[int | None, int, int, int]]:
    """Segments as in the paper's figures 3 and 4; said: `ecg`, `eeg`, `fused` -> test predictions.

    The model that is wrong (`ecg`, figure 3; `eeg`, figure 4) -> row, and the numbers of segments of its kind, of
    those that the fused model has wrong too, and of all. Of its kind: this model is wrong, the other and the fused one
    right. The row is the one whose three probabilities all stay farthest from 0.5, None where there is none. Empty
    where the three models have no test segment in common.
    """
    common = set.intersection(*(set(each["segment"].tolist()) for each in said.values()))
    if not common:
        return {}
    said = {
        model: np.sort(each[np.isin(each["segment"], list(common))], order="segment") for model, each in said.items()
    }
    right = {model: (each["probability"] > 0.5) == each["label"] for model, each in said.items()}
    distance = np.min([np.abs(each["probability"] - 0.5) for each in said.values()], axis=0)
    found = {}
    for wrong, other in (("ecg", "eeg"), ("eeg", "ecg")):
        split = ~right[wrong] & right[other]
        kind = np.flatnonzero(split & right["fused"])
        row = int(said["fused"]["segment"][kind[np.argmax(distance[kind])]]) if len(kind) else None
        found[wrong] = row, len(kind), int(split.sum()) - len(kind), len(common)
    return found


# ---- drawing --------------------------------------------------------------------------------------------------------


@matplotlib.rc_context(STYLE)
def save(figure: Figure, path: Path) -> bytes:
    """Write `<path>.png` and `<path>.pdf`, without a date: the same run gives the same bytes. Returns the PNG."""
    drawn, png = io.BytesIO(), io.BytesIO()
    figure.savefig(drawn, format="png", dpi=250)
    figure.set_layout_engine("none")  # everything stays where it is for the second file
    Image.open(drawn).convert("RGB").quantize(64).save(png, format="png")  # a quarter of the bytes, no visible loss
    write_atomically(path.with_name(f"{path.name}.png"), lambda file: file.write(png.getvalue()))
    pdf = path.with_name(f"{path.name}.pdf")
    write_atomically(pdf, lambda file: figure.savefig(file, format="pdf", metadata={"CreationDate": None}))
    return png.getvalue()


def verdict(model: str, said: tuple[int, float]) -> str:
    """What a model said of a segment, and whether it was right; said: label, probability."""
    label, probability = said
    high = probability > 0.5
    words = f"{'high' if high else 'low'} (probability of high {probability:.2f})"
    return f"{NAMES[model]} model: {words}, {'right' if high == label else 'wrong'}"


def where(data: Segments, row: int) -> str:
    """The subject, trial and seconds of a segment."""
    one, length = data.table[row], data.manifest["points"] / data.manifest["rate"]
    return f"{one['subject']}, trial {one['trial']}, {one['start']:g} to {one['start'] + length:g} s"


def draw_signal(axes, data: Segments, modality: str, channel: int, row: int) -> None:
    """One channel of a segment over the seconds since its start."""
    signal = data.signals[modality][row, channel]
    axes.plot(np.arange(len(signal)) / data.manifest["rate"], signal, color=BLACK, linewidth=0.6)
    unit = "" if data.manifest["preprocessing"].get("normalise", "none") == "none" else " (SD)"
    axes.set(ylabel=data.manifest["channels"][modality][channel] + unit, xlim=(0, len(signal) / data.manifest["rate"]))


def shown_channels(data: Segments) -> list[int]:
    """The EEG channels of the paper's figures, or the first two where these are not there."""
    names = data.manifest["channels"]["eeg"]
    return [names.index(name) for name in SHOWN_EEG] if set(SHOWN_EEG) <= set(names) else list(range(len(names)))[:2]


@matplotlib.rc_context(STYLE)
def draw_segment(data: Segments, row: int, target: str, said: dict[str, tuple[int, float]]) -> Figure:
    """The paper's figures 3 and 4: ECG, F7 and F3 of a segment, and what each model (`opinions`) said of it."""
    plots = [("ecg", 0)] if "ecg" in data.signals else []
    plots += [("eeg", channel) for channel in shown_channels(data)] if "eeg" in data.signals else []
    figure = Figure((WIDTH, 0.8 + 0.95 * len(plots)), layout="constrained")
    truth = f"Rated {('low', 'high')[next(iter(said.values()))[0]]} {target}"
    lines = [*textwrap.wrap(where(data, row), 44), truth]
    figure.suptitle("\n".join(lines + ([verdict("fused", said["fused"])] if "fused" in said else [])), **LEFT)
    rows = figure.subplots(len(plots), 1, sharex=True, squeeze=False)[:, 0]
    for number, (axes, (modality, channel)) in enumerate(zip(rows, plots)):
        draw_signal(axes, data, modality, channel, row)
        if modality in said and modality not in [each for each, _ in plots[:number]]:
            axes.set_title(verdict(modality, said[modality]))
    rows[-1].set_xlabel("s")
    figure.align_ylabels()
    return figure


@matplotlib.rc_context(STYLE)
def draw_attention(data: Segments, row: int, target: str, weights: dict[str, np.ndarray]) -> Figure:
    """Above each signal, how much the token CLS takes of each point, head by head; weights: `cls_attention`."""
    figure = Figure((WIDTH, 0.9 + 2.1 * len(weights)), layout="constrained")
    figure.suptitle("\n".join(textwrap.wrap(f"{where(data, row)}: {target}", 44)), **LEFT)
    rows = figure.subplots(2 * len(weights), 1, sharex=True)
    styles = list(ROLES.values())
    for (modality, of_heads), (above, below) in zip(weights.items(), rows.reshape(-1, 2)):
        seconds = np.arange(of_heads.shape[1] - 1) / data.manifest["rate"]
        for head, of_tokens in enumerate(of_heads):
            style = {key: styles[head % len(styles)][key] for key in ("color", "linestyle")}
            label = f"head {head + 1}"
            above.plot(seconds, of_tokens[1:] * len(of_tokens), label=label, linewidth=0.8, **style)
        above.set(ylabel="attention\n(1: uniform)", title=f"{NAMES[modality]} model", ylim=(0, None))
        draw_signal(below, data, modality, 0 if modality == "ecg" else shown_channels(data)[0], row)
    rows[-1].set_xlabel("s")
    most = max(rows[::2], key=lambda axes: len(axes.lines))
    figure.legend(handles=most.lines, loc="outside lower center", ncols=4)
    figure.align_ylabels()
    return figure


@matplotlib.rc_context(STYLE)
def draw_losses(models: dict[str, dict[int, np.ndarray]], training_name: str) -> Figure:
    """Losses of one training (`read_logs`): each fold thin, the mean of all folds thick, as far as all have come."""
    figure = Figure((WIDTH, 0.6 + 1.5 * len(models)), layout="constrained")
    for axes, (model, by_fold) in zip(figure.subplots(len(models), 1, squeeze=False)[:, 0], models.items()):
        epochs = min(len(each) for each in by_fold.values())
        mean = np.mean([each[:epochs] for each in by_fold.values()], axis=0)
        marker = "." if epochs < 20 else ""
        for column, color, line, name in ((1, BLUE, "-", "training"), (2, VERMILLION, "--", "validation")):
            for each in by_fold.values():
                axes.plot(each[:, 0], each[:, column], color=color, linestyle=line, linewidth=0.5, alpha=0.5)
            style = {"color": color, "linestyle": line, "linewidth": 1.6, "marker": marker, "markersize": 6}
            axes.plot(mean[:, 0], mean[:, column], label=name, **style)
        axes.set_title(f"{NAMES[model]}, {len(by_fold)} fold{'s' * (len(by_fold) > 1)}")
        axes.set_ylabel("masked MSE" if training_name == "pretrain" else "cross-entropy")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("epoch")
    handles = [line for line in axes.lines if line.get_label() in ("training", "validation")]
    figure.legend(handles=handles, loc="outside upper center", ncols=2, handlelength=3)
    figure.align_ylabels()
    return figure


def grid(panels: dict, height: float, ratios: list[float]):
    """A figure of two columns, and for each panel its axes from top to bottom, as many as there are ratios."""
    columns = min(2, len(panels))
    blocks = -(-len(panels) // columns)
    figure = Figure((WIDTH, 0.6 + height * blocks), layout="constrained")
    axes = figure.subplots(
        blocks * len(ratios), columns, squeeze=False, sharex=True, sharey="row", height_ratios=ratios * blocks
    )
    stacks = [list(part[:, column]) for part in np.split(axes, blocks) for column in range(columns)]
    for stack in stacks[len(panels) :]:
        for each in stack:
            each.remove()
    for number, stack in enumerate(stacks[: len(panels)]):
        stack[0].set_title(list(panels)[number])
        # The panel below it may be missing, which would otherwise show the ticks.
        stack[-1].tick_params(labelbottom=number + columns >= len(panels))
    return figure, stacks[: len(panels)]


def legend(figure: Figure, panels: dict, extra: list[Line2D], lines: bool) -> None:
    """Above the panels, the roles that are there."""
    present = [role for role in ROLES if any(role in roles for roles in panels.values())]
    off = {} if lines else {"linestyle": ""}
    handles = [Line2D([], [], label=role, **ROLES[role] | off) for role in present] + extra
    figure.legend(handles=handles, loc="outside upper center", ncols=2, handlelength=3)


@matplotlib.rc_context(STYLE)
def draw_reliability(panels: dict[str, dict[str, np.ndarray]], target: str) -> Figure:
    """Share of high labels by predicted probability, and how many segments each bin holds; panels: `read_panels`."""
    figure, stacks = grid(panels, 2.2, [3, 1])
    edges = np.linspace(0, 1, BINS + 1)
    for (above, below), roles in zip(stacks, panels.values()):
        above.plot([0, 1], [0, 1], color=GREY, linewidth=0.6)
        for role, predictions in roles.items():
            mean, share, count = reliability_bins(predictions["label"], predictions["probability"])
            filled = count > 0
            above.plot(mean[filled], share[filled], label=role, **ROLES[role])
            below.stairs(count, edges, color=ROLES[role]["color"], linestyle=ROLES[role]["linestyle"], label=role)
        above.set(xlim=(-0.03, 1.03), ylim=(-0.03, 1.03), xticks=(0, 0.5, 1), yticks=(0, 0.5, 1))
        below.yaxis.set_major_locator(MaxNLocator(2, integer=True))
    for above, below in stacks[::2]:
        above.set_ylabel("share rated high")
        below.set_ylabel("count")
    figure.supxlabel(f"probability of high {target}", fontsize=8)
    legend(figure, panels, [Line2D([], [], color=GREY, linewidth=0.6, label="as often as predicted")], lines=True)
    figure.align_ylabels()
    return figure


@matplotlib.rc_context(STYLE)
def draw_subjects(panels: dict[str, dict[str, np.ndarray]], subject: np.ndarray) -> Figure:
    """Accuracy of each subject's test segments, and the share of its more frequent label; panels: `read_panels`."""
    names = np.unique(
        np.concatenate([subject[each["segment"]] for roles in panels.values() for each in roles.values()])
    )
    place = {name: number for number, name in enumerate(names.tolist())}
    figure, stacks = grid(panels, 0.5 + 0.14 * max(len(names), 5), [1])
    for (axes,), roles in zip(stacks, panels.values()):
        most = accuracy_by_subject(max(roles.values(), key=len), subject)
        axes.plot([share for _, share in most.values()], [place[name] for name in most], **FREQUENT)
        for number, (role, predictions) in enumerate(roles.items()):
            found = accuracy_by_subject(predictions, subject)
            shift = 0.2 * (number - (len(roles) - 1) / 2)  # equal accuracies stay visible side by side
            y = [place[name] + shift for name in found]
            axes.plot([accuracy for accuracy, _ in found.values()], y, label=role, **ROLES[role] | {"linestyle": ""})
        axes.set(xlim=(-0.04, 1.04), ylim=(len(names) - 0.4, -0.6), xticks=(0, 0.5, 1), yticks=range(len(names)))
        axes.set_yticklabels(names.tolist())
        axes.grid(axis="y", linewidth=0.3, color="#dddddd")
        axes.set_axisbelow(True)
    figure.supxlabel("accuracy", fontsize=8)
    legend(figure, panels, [Line2D([], [], **FREQUENT)], lines=False)
    return figure
