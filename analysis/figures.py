"""The pictures of a run: F1 of every model, the paper's figures 3 and 4, losses.

Every drawing function returns a matplotlib Figure as wide as one column of print (3.5 inches). Colour-blind readers can
tell its colours apart (Okabe and Ito), and readers of a grey copy its markers and line styles."""

import io

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter

from analysis.scores import in_common
from paper import MODALITIES
from protocol.records import TO_BEAT, WATCHED, Model
from protocol.segments import Segments

WIDTH = 3.5  # inches
SHOWN_CHANNELS = ("F7", "F3")  # of ten, in the paper's figures 3 and 4
BLACK, GREY, BLUE, VERMILLION, GREEN = "#000000", "#767676", "#0072B2", "#D55E00", "#009E73"
STYLE = {
    **dict.fromkeys(("font.size", "axes.titlesize", "axes.labelsize", "figure.titlesize"), 8),
    **dict.fromkeys(("legend.fontsize", "xtick.labelsize", "ytick.labelsize"), 7),
    **dict.fromkeys(("axes.spines.top", "axes.spines.right", "legend.frameon"), False),
    **{"axes.titlelocation": "left", "axes.linewidth": 0.6, "lines.linewidth": 1.0, "lines.markersize": 3.5},
    "text.parse_math": False,  # a $ in the name of a subject is a $
}
# Family, or where its weights start -> colour and marker of a model.
LOOKS = {"pretrained": (BLUE, "o"), "random": (VERMILLION, "s"), "classical": (GREEN, "^"), "amigos": (BLACK, "x")}


def examples(said: dict[str, np.ndarray]) -> dict[str, tuple[int | None, int, int]]:
    """Segments as in the paper's figures 3 and 4; said: `ecg`, `eeg`, `fused` -> test predictions. Returns, for the
    model that is wrong (`ecg`, figure 3; `eeg`, figure 4), a row, how many segments it alone gets wrong, and how many
    all three predict. The row is the one of these whose least sure model is surest, or None."""
    said = {name: np.sort(each, order="segment") for name, each in zip(said, in_common([*said.values()], "segment"))}
    right = {model: (each["probability"] > 0.5) == each["label"] for model, each in said.items()}
    distance = np.min([np.abs(each["probability"] - 0.5) for each in said.values()], axis=0)
    rows, found = said["fused"]["segment"], {}
    for wrong, other in (("ecg", "eeg"), ("eeg", "ecg")):
        kind = np.flatnonzero(~right[wrong] & right[other] & right["fused"])
        row = int(rows[kind[np.argmax(distance[kind])]]) if len(kind) else None
        found[wrong] = row, len(kind), len(rows)
    return found


@matplotlib.rc_context(STYLE)
def png_of(figure: Figure) -> bytes:
    """The picture as PNG, without a date: the same run gives the same bytes."""
    png = io.BytesIO()
    figure.savefig(png, format="png", dpi=250)
    return png.getvalue()


def verdict(model: Model, said: tuple[int, float]) -> str:
    """What a model said of a segment, and whether it was right; said: label, probability of high."""
    label, probability = said
    high = probability > 0.5
    words = f"{'high' if high else 'low'} (probability of high {probability:.2f})"
    return f"{model.label} model: {words}, {'right' if high == label else 'wrong'}"


@matplotlib.rc_context(STYLE)
def draw_overview(panels: dict[str, tuple[list[dict], dict[str, float]]]) -> Figure:
    """Mean macro F1 of every model with its intervals and its folds, beside what priors and the paper reach; panels:
    target -> (lines, priors: name -> mean). A line holds name, look (one of LOOKS), mean, interval, corrected, by_fold
    and paper ((mean, half-width) or None)."""
    counts = [len(lines) for lines, _ in panels.values()]
    figure = Figure((WIDTH, 1.4 + sum(0.45 + 0.3 * count for count in counts)), layout="constrained")
    stack = figure.subplots(len(panels), 1, sharex=True, squeeze=False, height_ratios=counts)[:, 0]
    handles = {}
    for axes, (target, (lines, priors)) in zip(stack, panels.items()):
        for (name, mean), style in zip(priors.items(), ("-", "--", ":")):
            handles[name] = axes.axvline(mean, color=GREY, linewidth=0.8, linestyle=style, label=name)
        for place, line in enumerate(lines):
            handles |= draw_line(axes, place, line)
        axes.set(title=target.capitalize(), ylim=(len(lines) - 0.5, -0.5), yticks=range(len(lines)))
        axes.set_yticklabels([line["name"] for line in lines])
        axes.tick_params(axis="y", length=0)
    low, high = axes.get_xlim()
    axes.set(xlim=(max(low, 0), min(high, 1.02)), xlabel="macro F1")
    figure.legend(handles.values(), handles.keys(), loc="outside upper center", ncols=2, handlelength=2.5)
    return figure


def draw_line(axes, place: int, line: dict) -> dict:
    """Draw one model of `draw_overview` at the height `place`; what the legend calls each kind of mark -> the mark."""
    mean, folds, (color, marker), handles = line["mean"], line["by_fold"], line["look"], {}

    def plot(x, shift, what, legend, **look):
        x = np.atleast_1d(x)
        (mark,) = axes.plot(x, np.full(len(x), place + shift), label=f"{line['name']}, {what}", **look)
        handles.update({legend: mark} if legend else {})

    # Both intervals around the mean: the corrected one is the longer, and lighter.
    wide, narrow = {"linewidth": 3, "alpha": 0.35}, {"linewidth": 1.5}
    for what, legend, look in (("corrected", "corrected t", wide), ("interval", "95 % t", narrow)):
        if np.isfinite(line[what]):
            plot([mean - line[what], mean + line[what]], 0, what, legend, color=color, **look)
    # The mean, the folds below it, and the paper above it.
    dots = {"color": color, "linestyle": ""}
    plot(mean, 0, "mean", None, marker=marker, markersize=5, **dots)
    plot(folds, 0.25, "folds", "one fold", marker=".", markersize=4, alpha=0.7, **dots)
    if line["paper"]:
        theirs, half = line["paper"]
        look = {"color": BLACK, "linewidth": 0.8, "marker": "D", "markersize": 3, "markerfacecolor": "white"}
        plot([theirs - half, theirs, theirs + half], -0.28, "paper", "the paper", markevery=[1], **look)
    return handles


@matplotlib.rc_context(STYLE)
def draw_segment(data: Segments, row: int, target: str, said: dict[Model, tuple[int, float]]) -> Figure:
    """The paper's figures 3 and 4: ECG, F7 and F3 (else the first two channels) of a segment, and what each model said
    of it; said: model -> (label, probability of high)."""
    one, rate, channels = data.table[row], data.manifest["rate"], data.manifest["channels"]
    plots = []  # modality, channel
    for name in (name for name in reversed(MODALITIES) if name in data.signals):
        shown = SHOWN_CHANNELS if set(SHOWN_CHANNELS) <= set(channels[name]) else channels[name][:2]
        plots += [(name, channels[name].index(each)) for each in shown]
    seconds = np.arange(data.manifest["points"]) / rate
    unit = "" if data.manifest["preprocessing"].get("normalise", "none") == "none" else " (SD)"
    single = {model.modalities[0]: verdict(model, said[model]) for model in said if len(model.modalities) == 1}
    fused = [verdict(model, said[model]) for model in said if len(model.modalities) > 1]
    figure = Figure((WIDTH, 0.8 + 0.95 * len(plots)), layout="constrained")
    place = f"Segment {row}, {one['start']:g} to {one['start'] + len(seconds) / rate:g} s"
    truth = f"Rated {('low', 'high')[next(iter(said.values()))[0]]} {target}"
    figure.suptitle("\n".join([place, truth, *fused]), x=0.01, horizontalalignment="left")
    stack = figure.subplots(len(plots), 1, sharex=True, squeeze=False)[:, 0]
    for axes, (modality, channel) in zip(stack, plots):
        axes.plot(seconds, data.signals[modality][row, channel], color=BLACK, linewidth=0.6)
        axes.set(ylabel=channels[modality][channel] + unit, xlim=(0, len(seconds) / rate))
        if modality in single:  # above its first channel alone
            axes.set_title(single.pop(modality))
    stack[-1].set_xlabel("s")
    figure.align_ylabels()
    return figure


@matplotlib.rc_context(STYLE)
def draw_losses(models: dict[str, dict[int, list[dict]]], training_name: str) -> Figure:
    """Losses of one training: each fold thin, the mean of all folds thick, up to the epoch that all have reached; of a
    pre-training also the losses to beat, means over folds. models: name -> fold -> lines, of `read_logs`."""
    figure = Figure((WIDTH, 0.6 + 1.5 * len(models)), layout="constrained")
    kinds = ("train", "training", BLUE, "-"), ("validation", "validation", VERMILLION, "--")
    for axes, by_fold, epochs in panels_of(figure, models):
        style = {"linewidth": 1.6, "marker": "." if len(epochs) < 20 else "", "markersize": 6}
        for kind, name, color, line in kinds:
            of_folds = [[each[f"{kind}_loss"] for each in lines] for lines in by_fold.values()]
            for lines, losses in zip(by_fold.values(), of_folds):
                numbers = [each["epoch"] for each in lines]
                axes.plot(numbers, losses, color=color, linestyle=line, linewidth=0.5, alpha=0.5)
            mean = np.mean([losses[: len(epochs)] for losses in of_folds], axis=0)
            axes.plot(epochs, mean, label=name, color=color, linestyle=line, **style)
        if training_name == "pretrain":
            for name, line in zip(TO_BEAT, ("-", "--", ":")):
                level = np.mean([lines[-1]["to_beat"][name] for lines in by_fold.values()])
                axes.axhline(level, color=GREY, linewidth=0.8, linestyle=line, label=f"to beat: {name}")
        axes.set_ylabel("masked MSE" if training_name == "pretrain" else "cross-entropy")
    handles = [line for line in axes.lines if not line.get_label().startswith("_")]
    figure.legend(handles=handles, loc="outside upper center", ncols=2, handlelength=3)
    return figure


def panels_of(figure: Figure, models: dict):
    """Yield, for each model, the axes of a panel of its own, its lines by fold, and the epochs that all folds have."""
    stack = figure.subplots(len(models), 1, squeeze=False)[:, 0]
    for axes, (model, by_fold) in zip(stack, models.items()):
        axes.set_title(f"{model}, {len(by_fold)} fold{'s' * (len(by_fold) > 1)}")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        yield axes, by_fold, np.arange(1, min(map(len, by_fold.values())) + 1)
    axes.set_xlabel("epoch")
    figure.align_ylabels()


@matplotlib.rc_context(STYLE)
def draw_watch(models: dict[str, dict[int, list[dict]]]) -> Figure:
    """What training/watch.py saw in a pre-training: each size by epoch, the mean over folds, on a logarithmic axis."""
    figure = Figure((WIDTH, 0.8 + 1.7 * len(models)), layout="constrained")
    for axes, by_fold, epochs in panels_of(figure, models):
        for number, name in enumerate(WATCHED):
            sizes = [[each["watch"][name] for each in lines[: len(epochs)]] for lines in by_fold.values()]
            color, line = (BLACK, BLUE, VERMILLION)[number % 3], ("-", "--", ":")[number // 3]
            axes.plot(epochs, np.mean(sizes, axis=0), color=color, linestyle=line, label=name.replace("_", " "))
        # Whole decades, so that there are ticks with plain numbers.
        decades = np.log10([each for line in axes.lines for each in line.get_ydata() if each > 0] or [1.0])
        limits = 10.0 ** np.floor(decades.min()), 10.0 ** (np.floor(decades.max()) + 1)
        axes.set(yscale="log", ylabel="RMS, spread", ylim=limits)
        axes.yaxis.set_major_locator(LogLocator())
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axes.yaxis.set_minor_formatter(NullFormatter())
    figure.legend(handles=axes.lines, loc="outside upper center", ncols=3, handlelength=3)
    return figure
