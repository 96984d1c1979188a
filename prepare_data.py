"""Raw recordings -> data/<dataset>/: ten-second segments of filtered, resampled, normalised EEG and ECG (paper 4.1.2).

    python prepare_data.py --dataset amigos --raw /data/AMIGOS

The steps, in this order: pick the channels; find what is not finite, and what is constant for a second or longer, in
the raw signal; band-pass and resample each finite run alone; z-score; cut on a grid that starts with the trial; write.
A segment that touches a bad point is dropped, and manifest.json lists every dropped piece."""

import argparse
import os
import re
import shutil
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing
from functools import partial
from pathlib import Path

from common.script import Parser, positive, run, stop_if_printing, words  # first, for what Ctrl-C says
import numpy as np
import scipy
from tqdm import tqdm

from common.files import read_json, sha256_of_file, sync, write_json
from datasets import normalise_name, not_read, simulated
from datasets.readers import READERS
from paper import FILTER_ORDER, MODALITIES, RATE, SECONDS, TARGETS
from preparing import check
from preparing.cutting import BLOCK
from preparing.filters import EXTENSION
from preparing.heart import BEATS_TO_HZ
from preparing.workers import collect, cut_file, map_files, new_folder, scaled
from protocol.fingerprints import fingerprint_dtype, fingerprints
from protocol.records import versions
from protocol.segments import SEGMENT_DTYPE, open_segments, read_manifest

COHORT_FLAGS = ("subjects", "unrated_subjects", "videos", "seconds", "effect", "seed")


def parse_flags(argv=None) -> argparse.Namespace:
    """Return the flags; raise ValueError where one is wrong."""
    parser = Parser(__doc__)
    real = {"type": positive(float), "metavar": "X"}
    from_zero = {"type": positive(float, zero=True), "metavar": "X"}
    whole = {"type": positive(int), "metavar": "N"}
    add = parser.add_argument
    add("--dataset", choices=READERS, help="which set; simulated is written first where it is missing")
    add("--raw", type=Path, metavar="FOLDER", help="the raw recordings (default: raw/<dataset>)")
    add("--out", type=Path, metavar="FOLDER", default=Path("data"), help="write <out>/<dataset> (default: data)")
    add("--modalities", nargs="+", choices=MODALITIES, help="which signals (default: all that the set has; paper 4.1)")
    add("--check", action="store_true", help="say what would be kept and dropped, and on how much disk; write nothing")
    add("--list", action="store_true", help="say what each set holds and where it comes from, and stop")
    add = parser.add_argument_group("channels").add_argument
    eeg = " ".join(MODALITIES["eeg"].channels)
    names = {"nargs": "+", "type": normalise_name, "metavar": "NAME"}
    add("--channels", **names, help=f"of the EEG, in this order (default: {eeg}; paper 4.1)")
    add("--ecg-side", choices=("left", "right"), help="arm of the ECG, where a set has both (default: left; paper 4.1)")
    ecg = "what --dataset folder calls the ECG; of several names the first in a file (default: ECG; assumed)"
    add("--ecg-channel", nargs="+", metavar="NAME", help=ecg)
    rename = "what the files call channels of the EEG, such as F7-X=F7 (default: what --channels says; assumed)"
    add("--rename", nargs="+", metavar="OLD=NEW", help=rename)
    add("--drop-unusable-ecg", action="store_true", help="drop the recordings whose ECG shows no beats (assumed)")
    scale = {"nargs": 2, "type": float, "metavar": ("LOW", "HIGH")}
    add("--rating-scale", **scale, help="of the ratings of --dataset folder (default: 1 9; assumed)")
    add = parser.add_argument_group("filter").add_argument
    for end, which in (("low", "lower"), ("high", "upper")):
        own = ", ".join(f"{modality.label} {getattr(modality, end):g}" for modality in MODALITIES.values())
        add(f"--{end}", **real, help=f"{which} end of the pass-band, Hz (default: {own}; paper 4.1.2)")
    add("--filter-order", **whole, default=FILTER_ORDER, help="of the design (default: %(default)s; paper 4.1.2)")
    add("--rate", **whole, default=RATE, help="new rate, Hz (default: %(default)s; paper 4.1.2)")
    add = parser.add_argument_group("segments").add_argument
    add("--seconds-per-segment", **real, default=float(SECONDS), help="length (default: %(default)s; paper 4.1.2)")
    spans = ("subject", "recording", "segment", "none")
    add("--normalise", choices=spans, default="subject", help="z-score over (default: subject; paper 4.1.2)")
    add("--drop-baseline", **from_zero, default=0.0, help="seconds left out before, 5 in AMIGOS (default: 0; assumed)")
    add("--max-seconds-per-trial", **real, help="seconds kept of each trial (default: all; assumed)")
    add = parser.add_argument_group("running").add_argument
    add("--name", help="write <out>/<name> in place of <out>/folder (assumed)")
    add("--fresh", action="store_true", help="replace what was prepared before")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    workers = "files at a time; any number gives the same bytes (default: the cores, %(default)s; assumed)"
    add("--workers", **whole, default=cores, help=workers)
    add("--json", action="store_true", help="print the closing summary as JSON")
    add("--print-flags", action="store_true", help="print every resolved flag as JSON and stop")
    add = parser.add_argument_group("simulated cohort (all assumed)").add_argument
    add("--subjects", **whole, default=8, help="rated people (default: %(default)s)")
    add("--unrated-subjects", type=int, metavar="N", default=4, help="people without ratings (default: %(default)s)")
    add("--videos", **whole, default=16, help="videos a person (default: %(default)s)")
    add("--seconds", **real, default=50.0, help="seconds a video (default: %(default)s)")
    add("--effect", **from_zero, default=1.0, help="of the ratings on the signals; 0: none (default: %(default)s)")
    add("--seed", type=int, metavar="N", default=0, help="of all that is drawn (default: %(default)s)")
    return parser.parse_args(argv)


def resolve(flags) -> None:
    """Fill in what depends on the data set; raise ValueError for flags that contradict each other."""
    if not flags.dataset:
        raise ValueError(f"--dataset: expected one of {' '.join(READERS)}, found none; --list says what they are")
    reader = READERS[flags.dataset]
    flags.name = flags.name or flags.dataset
    if flags.name != flags.dataset and (flags.dataset != "folder" or flags.name in READERS):
        raise ValueError(f"--name {flags.name}: only for --dataset folder, and not that of another set")
    if not re.fullmatch(r"[\w-]+", flags.name):
        raise ValueError(f"--name {flags.name}: expected letters, digits, - and _")
    flags.raw = flags.raw or Path("raw") / flags.dataset
    flags.modalities = [m for m in MODALITIES if m in (flags.modalities or reader.MODALITIES)]
    for modality in flags.modalities:
        if modality not in reader.MODALITIES:
            raise ValueError(f"--modalities {modality}: {flags.dataset} holds {' and '.join(reader.MODALITIES)} alone")
    # Flags of one modality go with that modality.
    for name, modality in (("channels", "eeg"), ("ecg_channel", "ecg"), ("drop_unusable_ecg", "ecg")):
        if getattr(flags, name) and modality not in flags.modalities:
            flag = f"--{name.replace('_', '-')}"
            raise ValueError(f"{flag}: the {modality.upper()} is not among the --modalities; leave the flag out")
    # One name stands for all of them, as the readers take it.
    flags.ecg_channel = "|".join(flags.ecg_channel) if flags.ecg_channel else None
    for flag in ("ecg_channel", "rating_scale"):
        if getattr(flags, flag) and flags.dataset != "folder":
            raise ValueError(f"--{flag.replace('_', '-')}: only for --dataset folder; leave the flag out")
    flags.rating_scale = flags.rating_scale or [1.0, 9.0]
    if not -np.inf < flags.rating_scale[0] < flags.rating_scale[1] < np.inf:
        raise ValueError(f"--rating-scale {words(flags.rating_scale)}: expected LOW below HIGH")
    if not hasattr(reader, "ECG_SIDES"):
        if flags.ecg_side:
            raise ValueError(f"--ecg-side {flags.ecg_side}: {flags.dataset} has no choice of ECGs; leave the flag out")
    elif "ecg" in flags.modalities:
        flags.ecg_side = flags.ecg_side or "left"
    flags.channels = list(flags.channels or MODALITIES["eeg"].channels)
    for pair in flags.rename or []:
        old, _, new = pair.rpartition("=")
        if not old or "eeg" not in flags.modalities or normalise_name(new) not in flags.channels:
            raise ValueError(f"--rename {pair}: expected OLD=NEW, where NEW is one of the --channels of the EEG")
    if len(set(flags.channels)) < len(flags.channels):
        raise ValueError(f"--channels {' '.join(flags.channels)}: one is there twice; give each once")
    for end in ("low", "high"):
        given = getattr(flags, end)
        setattr(flags, end, {m: getattr(MODALITIES[m], end) if given is None else given for m in flags.modalities})
    for modality, low in flags.low.items():
        high = flags.high[modality]
        if not low < high < flags.rate / 2:
            found = f"--low {low:g} --high {high:g} --rate {flags.rate}"
            raise ValueError(f"{found}: expected low < high < rate / 2 ({modality})")
    if "ecg" in flags.modalities and flags.rate <= 2 * BEATS_TO_HZ:
        raise ValueError(f"--rate {flags.rate}: heart beats are looked for up to {BEATS_TO_HZ} Hz; take more")
    flags.points = round(flags.seconds_per_segment * flags.rate)
    if flags.points < 1 or abs(flags.points - flags.seconds_per_segment * flags.rate) > 1e-6:
        raise ValueError(f"--seconds-per-segment {flags.seconds_per_segment:g}: no whole number of points")


def names_in_files(flags, channels) -> dict:
    """Return what the files call the channels of each modality, as `pick_channels` takes them."""
    names = {modality: [[name] for name in own] for modality, own in channels.items()}
    for old, _, new in (pair.rpartition("=") for pair in reversed(flags.rename or [])):
        names["eeg"][channels["eeg"].index(normalise_name(new))].insert(0, old)
    if flags.ecg_channel:
        names["ecg"] = [[flags.ecg_channel]]
    return {modality: ["|".join(each) for each in own] for modality, own in names.items()}


def preprocessing_flags(flags, channels) -> dict:
    """Return everything that changes the numbers in the signal files."""
    named = "ecg_side ecg_channel low high filter_order rate seconds_per_segment normalise drop_baseline"
    return {
        "modalities": list(channels),
        "channels": channels,
        "filter": "Butterworth, zero phase",
        "extension": EXTENSION,
        "resampling": "polyphase",
        **{name: getattr(flags, name) for name in (*named.split(), "max_seconds_per_trial", "drop_unusable_ecg")},
        # Not there where it is not given, as in sets that were prepared before there was such a flag.
        **({"rename": flags.rename} if flags.rename else {}),
        **({"rating_scale": flags.rating_scale} if [*flags.rating_scale] != [1, 9] else {}),
    }


def already_done(folder, flags, channels, paths) -> bool:
    """Return whether `folder` holds what this command would write; raise ValueError where it holds anything else."""
    if not folder.exists() or not any(folder.iterdir()):
        return False
    advice = "give --fresh to replace it, or another --out"
    try:
        manifest = open_segments(folder).manifest
    except ValueError as error:
        raise ValueError(f"{error}, with --fresh") from error
    if manifest["dataset"] != flags.name:
        raise ValueError(f"{folder}: expected the set {flags.name}, found {manifest['dataset']}; {advice}")
    wanted, found = preprocessing_flags(flags, channels), manifest["preprocessing"]
    for key in [*wanted, *(key for key in found if key not in wanted)]:
        if wanted.get(key) != found.get(key):
            name = f"--{key.replace('_', '-')}" if key in flags else key
            old, new = (_said(each.get(key)) for each in (found, wanted))
            raise ValueError(f"{folder}: prepared with {name} {old}, not {new}; {advice}")
    # A file that was touched and not changed is the same file.
    known = {entry["file"]: entry for entry in manifest["sources"] + manifest.get("duplicates", [])}
    present = {path.relative_to(flags.raw).as_posix(): path for path in paths}
    for name in sorted(known.keys() | present.keys()):
        state = "is new" if name not in known else "is gone" if name not in present else ""
        if not state:
            status, entry = present[name].stat(), known[name]
            touched = (status.st_size, status.st_mtime_ns) != (entry["size"], entry["modified"])
            state = "has changed" if touched and sha256_of_file(present[name]) != entry["sha256"] else ""
        if state:
            raise ValueError(f"{folder}: {name} in {flags.raw} {state} since it was prepared; {advice}")
    return True


def _said(value) -> str:
    """Return the value of a flag as a message has it, with the modality where each has its own."""
    return ", ".join(f"{m} {words(each)}" for m, each in value.items()) if isinstance(value, dict) else words(value)


def prepare(paths, read, flags, channels, folder) -> None:
    """Write a prepared set in place of `folder`; raise ValueError and OSError for what is wrong with files or flags."""
    if folder.exists() and any(folder.iterdir()):
        # --fresh replaces prepared data, also those of an older version, and never anything else.
        read_json(folder / "manifest.json", {"dataset": str, "preprocessing": dict}, "remove the folder")
    manifest = {
        "dataset": flags.name,
        "channels": channels,
        "rate": flags.rate,
        "points": flags.points,
        "preprocessing": preprocessing_flags(flags, channels),
        "subjects": {},
        "versions": versions(scipy),
    }
    with new_folder(folder) as temporary:
        parts = temporary / "parts"
        parts.mkdir()
        work = partial(cut_file, read=read, flags=flags, parts=parts)
        with closing(map_files(work, paths, flags.workers)) as entries:
            entries = tqdm(entries, total=len(paths), unit="file", desc=flags.name, disable=None)
            recordings = collect(entries, flags, manifest)
        write_segments(recordings, channels, flags, temporary, manifest)
        manifest["not_read"] = not_read(flags.raw, paths)
        shutil.rmtree(parts)
        write_json(temporary / "manifest.json", manifest)


def write_segments(recordings, channels, flags, folder, manifest) -> None:
    """Write the signals and segments.npy, and fill in what `manifest` says of their number."""
    rows = []
    for recording in recordings:
        ratings = [recording["ratings"].get(target, np.nan) for target in TARGETS]
        names = [recording[key] for key in ("subject", "trial", "video")]
        rows += [(*names, start, *ratings) for start in recording["starts"]]
    table, known = np.array(rows, SEGMENT_DTYPE), np.empty(len(rows), fingerprint_dtype(channels))
    for modality, names in channels.items():
        shape, size, hashes = (len(rows), len(names), flags.points), len(names) * flags.points, []
        step = max(1, BLOCK // size)  # segments that are read at a time
        with open(folder / f"{modality}.npy", "wb") as file:
            np.lib.format.write_array_header_1_0(file, {"descr": "<f4", "fortran_order": False, "shape": shape})
            for recording in recordings:
                about = manifest["subjects"][recording["subject"]][modality]
                (part, start), count = recording["part"][modality], len(recording["starts"])
                for first in range(0, count, step):
                    values = np.fromfile(part, count=min(step, count - first) * size, offset=start + 8 * first * size)
                    segments = scaled(values.reshape(-1, *shape[1:]), recording, modality, about, flags)
                    segments = np.ascontiguousarray(segments, np.float32)
                    file.write(segments)
                    hashes.append(fingerprints(segments))
            sync(file)
        known[modality] = np.concatenate(hashes)
    np.save(folder / "segments.npy", table, allow_pickle=False)
    np.save(folder / "fingerprints.npy", known, allow_pickle=False)
    manifest["files"] = {path.name: sha256_of_file(path) for path in sorted(folder.glob("*.npy"))}
    manifest["counts"] = {
        "subjects": len(np.unique(table["subject"])),
        "trials": len(np.unique(table[["subject", "trial"]])),
        "segments": len(table),
        "hours": len(table) * flags.points / flags.rate / 3600,
    }


def main() -> None:
    """Prepare or check a set; raise ValueError and OSError for what is wrong with files or flags."""
    flags = parse_flags()
    if flags.list:
        check.print_sets(READERS)
        return
    resolve(flags)
    stop_if_printing(flags)
    reader = READERS[flags.dataset]
    if flags.dataset == "simulated" and not flags.check:
        try:
            simulated.write_cohort(flags.raw, **{name: getattr(flags, name) for name in COHORT_FLAGS})
        except OSError as error:
            error.filename = error.filename or str(flags.raw)  # a full disk names no file
            raise
    if not flags.raw.is_dir():
        raise FileNotFoundError(f"{flags.raw}: no such folder; give the one with the recordings as --raw")
    paths = reader.sources(flags.raw)
    if not paths:
        found = f"no file of {flags.dataset} below it ({not_read(flags.raw, []) or 'it is empty'})"
        raise FileNotFoundError(f"{flags.raw}: {found}; --list says how they are called")
    folder = flags.out / flags.name
    channels = {m: flags.channels if m == "eeg" else list(MODALITIES[m].channels) for m in flags.modalities}
    read = partial(reader.read, channels=names_in_files(flags, channels), ecg_side=flags.ecg_side)
    if flags.dataset == "folder":
        read = partial(read, scale=flags.rating_scale)
    try:
        if flags.check:
            check.check(paths, read, flags, channels)
            return
        done = not flags.fresh and already_done(folder, flags, channels, paths)
        if not done:
            prepare(paths, read, flags, channels, folder)
    except BrokenProcessPool:
        raise ValueError(f"{flags.raw}: a worker was killed, perhaps for want of memory; take fewer --workers")
    check.report(folder, read_manifest(folder), done, flags.json)


if __name__ == "__main__":
    run(main)
