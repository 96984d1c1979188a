"""The data sets, one reader each (readers.py lists them), and what the readers share.

A reader is a module. Its docstring says what the files hold and where they come from, and `prepare_data.py --list`
prints it. The module has

- `MODALITIES`: the modalities of paper.MODALITIES that its files hold;
- `ECG_SIDES`: the arms of its ECGs, only where there are two ECGs;
- `sources(raw)`: it returns the files below the folder `raw`, and the files of one subject follow each other;
- `read(path, channels, ecg_side)`: it yields the recordings of one file, one at a time. `channels` maps each modality
  that is wanted to the names of its channels, as `pick_channels` takes them. It raises ValueError, naming the file,
  where the file is damaged."""

import importlib
import os
import re
import textwrap
import unicodedata
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np

import paper

# Unit -> volts, by its name in lower case; the micro sign is there twice in Unicode, and once in old Japanese files.
MICRO = ("u", "\u00b5", "\u03bc", "\x83\u00ea", "micro")
VOLTS = {"v": 1.0, "mv": 1e-3, "milliv": 1e-3, **{f"{micro}v": 1e-6 for micro in MICRO}, "nv": 1e-9}
# What follows the name of an electrode, behind a hyphen, where all channels share a reference.
REFERENCE = re.compile(
    r"\(?(A[12]|M[12]|A1[-+/]?A2|M1[-+/]?M2|AA|MM|CZ|FCZ|CPZ|NOSE|AVG?|AVE|AVR|CAR|LE|RE|LER|V?REF|COM)\d*\)?(/2)?"
)
GAP = "gap in the file"
# What annotations say of the signal; BrainVision puts `Comment/` before them. At a jump, time was left out.
JUMP = re.compile(r"(Comment/)?((bad |edge )?boundary|new segment)\b.*", re.IGNORECASE)
BAD = re.compile(r"(Comment/)?bad.*", re.IGNORECASE)
OLD_NAMES = {"T3": "T7", "T4": "T8", "T5": "P7", "T6": "P8"}


@dataclass(frozen=True)
class Recording:
    """A recording is one continuous stretch of one trial; all its modalities start at the same moment."""

    subject: str
    trial: str  # unique within the subject
    video: str  # what was seen or done, the same name for all subjects
    signals: dict[str, np.ndarray]  # modality -> (C, n) float64, perhaps read when sliced; uV or mV, or as in `units`
    rate: dict[str, float]  # modality -> Hz; EEG and ECG may come from two devices
    channels: dict[str, list[str]]  # modality -> C names, in the order asked for
    ratings: dict[str, float]  # target -> rating as recorded; unrated where it is missing or NaN
    source: Path
    simulated: bool = False  # whether the file says of itself that nobody was recorded
    units: dict[str, str] = field(default_factory=dict)  # modality -> the unit, where it could not be converted
    bad: tuple[tuple[float, float, str], ...] = ()  # (from s, to s, why) of the stretches that are of no use
    notes: tuple[str, ...] = ()  # what to know of the file beside


class FileSignal:
    """A signal that stays in its file, (C, n) float64: `read(start, stop)` gives the points of a slice."""

    def __init__(self, shape, read):
        self.shape, self.read = shape, read

    def __getitem__(self, key):
        rows, points = key if isinstance(key, tuple) else (key, slice(None))
        start, stop, step = points.indices(self.shape[1])
        return (self.read(start, stop) if start < stop else np.empty((self.shape[0], 0)))[rows, ::step]

    def __array__(self, dtype=None, copy=None):
        return self[:].astype(dtype or np.float64, copy=False)


class Signals(NamedTuple):
    """The signals of one file, by the fields of `Recording` of the same names."""

    signals: dict[str, np.ndarray]
    rate: dict[str, float]
    channels: dict[str, list[str]]
    units: dict[str, str] = {}
    bad: tuple[tuple[float, float, str], ...] = ()
    notes: tuple[str, ...] = ()


def files_below(raw, pattern, parts: int = 1) -> list[Path]:
    """Return everything below the folder `raw`, also behind links, of which the last `parts` names match `pattern`. The
    list is sorted by the group `subject` of the pattern and then by name, numbers by value: P2 before P10. Names that
    begin with a dot are left alone, and all are matched as `plain_name` has them."""
    found = []
    for path in _walk(raw):
        if match := pattern.fullmatch(plain_name("/".join(path.parts[-parts:]))):
            subject = match.groupdict().get("subject", "")
            found.append((_by_value(subject), subject, _by_value(match[0]), path))
    return [path for *_, path in sorted(found)]


def not_read(raw, paths) -> str:
    """Return a line on the files below the folder `raw` that are not among `paths`, "" where there are none. It counts
    them by their endings, those of `paths` first, as such a file may have been meant. 80 letters at most."""
    used, meant = {os.path.realpath(path) for path in paths}, {path.suffix.lower() for path in paths}
    left = {}
    for path in _walk(raw):
        if not path.is_dir() and os.path.realpath(path) not in used:
            left.setdefault(plain_name(path.suffix.lower()) or "without ending", []).append(plain_name(path.name))
    if not left:
        return ""
    (_, first), *_ = left = sorted(left.items(), key=lambda item: (item[0] not in meant, -len(item[1]), item[0]))
    counts = ", ".join(f"{len(names)} {ending}" for ending, names in left)
    return textwrap.shorten(f"not read: {counts}: {', '.join(sorted(first))}", 80, placeholder=" ...")


def _walk(raw):
    """Yield what is below `raw`, also behind links, without the names that begin with a dot."""

    def stop(error):
        if not isinstance(error, FileNotFoundError):
            raise error

    seen = set()
    for folder, inner, names in os.walk(raw, onerror=stop, followlinks=True):
        real = os.path.realpath(folder)
        # A link may lead to a folder above it, or two links to the same folder.
        inner[:] = [name for name in inner if real not in seen and not name.startswith(".")]
        if real not in seen:
            yield from (Path(folder, name) for name in [*inner, *names] if not name.startswith("."))
        seen.add(real)


def plain_name(name: str) -> str:
    """Return the one spelling of a name that is on disk in either form of Unicode, or in Latin-1: composed letters."""
    content = name.encode("utf-8", "surrogateescape")
    try:
        name = content.decode()
    except UnicodeDecodeError:
        name = content.decode("latin-1")
    return unicodedata.normalize("NFC", name)


def path_on_disk(folder: Path, name: str) -> Path:
    """Return the path of the file `name` below `folder`, in the spelling that it has on disk where it is there."""
    for part in Path(name).parts:
        there = folder.iterdir() if folder.is_dir() and not (folder / part).exists() else ()
        folder = next((each for each in there if plain_name(each.name) == plain_name(part)), folder / part)
    return folder


def _by_value(name: str) -> list:
    """Return the sort key of a name in which numbers count by their value."""
    return [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", name)]


def number(text: str, where: str, low: float, high: float, what: str = "a number") -> float:
    """Return a number from a table, NaN for an empty cell or n/a; raise ValueError, which begins with `where`, where it
    is none from `low` to `high`."""
    text = text.strip()
    if text in ("", "n/a"):
        return float("nan")
    # Not all that Python takes for a number is one: 7_5, nan.
    value = float(text) if re.fullmatch(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?", text, re.I | re.A) else float("nan")
    if not low <= value <= high:
        expected = f"expected {what} from {low:g} to {high:g}, or an empty cell where there is none"
        raise ValueError(f"{where}: {expected}, found {text}; correct the line")
    return value


def optional(package: str, path, what: str):
    """Import a package that only some files need; raise ValueError, naming the file, where it is not installed."""
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise ValueError(f"{path}: {what}, which needs {package}; pip install {package}") from error


@contextmanager
def refuse_damage(path, what: str, advice: str = "download it again"):
    """Turn what a library raises over damaged bytes, not the system's errors, into one line that names the file."""
    try:
        yield
    except Exception as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        raise ValueError(f"{path}: expected {what}, found another or a damaged one ({reason}); {advice}") from error


def unit_scale(unit: str, modality: str) -> float | None:
    """Return what turns `unit` into the unit of the modality (uV, mV) when values are multiplied by it; None where
    `unit` is no voltage that is known here."""
    own = paper.MODALITIES[modality].unit
    found, wanted = (VOLTS.get(re.sub("olts?$", "", each.strip().lower())) for each in (unit, own))
    return 1.0 if unit == own else float(f"{found / wanted:g}") if found and wanted else None


def unit_scales(units, names, modality: str, path) -> tuple[list[float], dict[str, str]]:
    """Return the factors that turn the channels `names` of a modality, in `units`, into its unit (uV, mV), and what
    `Recording.units` says of it: where all are in one unknown unit, the factors are 1. ValueError for a mixture."""
    scales = [unit_scale(unit, modality) for unit in units]
    if None not in scales:
        return scales, {}
    if len(set(units)) > 1:
        found = ", ".join(f"{name} in {unit or 'no unit'}" for name, unit in zip(names, units))
        raise ValueError(f"{path}: expected channels in V, mV, uV or nV, or all in one unit, found {found}")
    return [1.0] * len(units), {modality: units[0]}


def normalise_name(name: str) -> str:
    """Return the one spelling of a channel: `EEG T3`, `EEG.T3`, `t7..` and ` T7 ` are all T7; `ECG ECG` is ECG."""
    name = name.upper().replace("\0", " ").strip()
    if name.startswith(("EEG ", "ECG ", "EEG.", "ECG.")) and name[4:].strip(" ."):
        name = name[4:]
    name = name.replace(" ", "").replace(".", "")
    return OLD_NAMES.get(name, name)


def pick_channels(wanted, present, path) -> dict[str, int]:
    """Return where in `present` each channel of `wanted` is: the name by which it was found -> its place.

    Of several names, as in `MLII|II|V5`, the first that is there is taken. F7 also fits `EEG F7-REF` where nothing is
    called F7 alone, and `ECG#2` is the second of those that ECG fits. A single channel that is wanted, such as the ECG,
    is the first of those that are called the same. Raise ValueError where a channel is missing, fits several otherwise,
    or is taken twice."""
    plain = [normalise_name(name) for name in present]
    bare, found = _without_references(plain), {}
    for channel in wanted:
        for name in channel.split("|"):
            if places := _places(name, plain) or _places(name, bare):
                break
        if len(wanted) == 1 and len({present[place] for place in places}) == 1:
            places = places[:1]
        taken = len(places) == 1 and places[0] in found.values()
        if len(places) != 1 or taken:
            what = "taken twice" if taken else f"there {len(places)} times" if places else "missing"
            advice = f"; {name}#2 is the second of them" if len(places) > 1 else ""
            there = " ".join(" ".join(name.split()) for name in present)
            raise ValueError(
                f"{path}: channel {channel} is {what}; expected {' '.join(wanted)}, found {there}; "
                f"choose others with --channels, --rename, --ecg-channel or --modalities{advice}"
            )
        found[name] = places[0]
    return found


def _places(name, names) -> list[int]:
    """Return where `name` is in `names`; of `name#2`, unless one is called so, the second place of `name` alone."""
    whole, (name, _, number) = normalise_name(name), name.partition("#")
    key = whole if whole in names else normalise_name(name)
    places = [i for i, each in enumerate(names) if each == key]
    return places[int(number) - 1 :][:1] if key != whole and number.isdecimal() and int(number) else places


def _without_references(names) -> list[str]:
    """Return normalised names without the references that all channels may share; F7-T3 keeps its T3."""
    pairs = [name.partition("-") for name in names]
    # An electrode that leads a bipolar channel, as in Cz-Pz, is no reference in that file: Fz-Cz is bipolar, too.
    leading = {first for first, dash, second in pairs if dash and not REFERENCE.fullmatch(second)}
    return [
        OLD_NAMES.get(first, first) if REFERENCE.fullmatch(second) and second not in leading else first + dash + second
        for first, dash, second in pairs
    ]


def choice_notes(wanted, found, present) -> list[str]:
    """Return notes on how `pick_channels` has `found` the channels `wanted` in `present`, where that was a choice."""
    notes, bare = [], []
    for channel, (name, place) in zip(wanted, found.items()):
        label, first = present[place], channel.split("|")[0]
        if name != first:
            notes.append(f"{name} in place of {first}, which is missing")
        if present.count(label) > 1 and "#" not in name:
            notes.append(f"{name} is the first of {present.count(label)} channels of that name")
        if not _places(name.partition("#")[0], [normalise_name(label)]):
            bare.append(label)
    return notes + [f"channels by their names without the reference: {' '.join(bare)}"] * bool(bare)


def choose(channels, present, units, path) -> tuple[dict, dict, dict, list[str]]:
    """Return where the channels wanted are in `present`, whose units are `units`: modality -> (places, factors to its
    unit); and the `channels`, `units` and `notes` of the recording. Raise ValueError as `pick_channels` does."""
    chosen, names, unknown, notes = {}, {}, {}, []
    for modality, wanted in channels.items():
        found = pick_channels(wanted, present, path)
        names[modality], places = list(found), list(found.values())
        factors, own = unit_scales([units[place] for place in places], names[modality], modality, path)
        chosen[modality], unknown = (places, factors), unknown | own
        notes += choice_notes(wanted, found, present)
    return chosen, names, unknown, notes


def pick(signal, wanted, present, path) -> np.ndarray:
    """Return the channels `wanted` of a signal (n, k), whose columns are called `present`, as (C, n) float64."""
    return np.ascontiguousarray(signal[:, [*pick_channels(wanted, present, path).values()]].T, dtype=np.float64)
