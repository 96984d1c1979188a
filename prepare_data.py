"""Raw recordings -> data/<dataset>/: ten-second segments of filtered, resampled, normalised EEG and ECG (paper 4.1.2).

Steps, in this order: pick the channels; find what is not finite, and what is constant for a second or longer, in the
raw signal; band-pass and resample each finite run alone; z-score; cut on a grid that starts with the trial; write.
A segment that touches a bad point is dropped, and manifest.json lists every dropped piece.
A run that was killed goes on where it stopped when the same command is called again.
"""

import argparse
import json
import os
import platform
import re
import shutil
import sys
from concurrent.futures.process import BrokenProcessPool
from itertools import groupby
from pathlib import Path

import numpy as np
import scipy
from tqdm import tqdm

import paper
from common.files import sha256_of_file, sync, write_json
from datasets import (
    amigos,
    ascertain,
    bci2000,
    dreamer,
    eegmat,
    large_eeg_bci,
    normalise_name,
    pspm,
    simulated,
    way_eeg_gal,
)
from datasets import (
    folder as own_folder,
)
from preparing import check, filters
from preparing.workers import Job, check_names, cut_file, map_files, new_folder, open_parts
from protocol.segments import SEGMENT_DTYPE, SegmentWriter, read_manifest

READERS = {
    "amigos": amigos,
    "ascertain": ascertain,
    "bci2000": bci2000,
    "dreamer": dreamer,
    "eegmat": eegmat,
    "folder": own_folder,
    "large_eeg_bci": large_eeg_bci,
    "pspm": pspm,
    "simulated": amigos,
    "way_eeg_gal": way_eeg_gal,
}
COHORT_FLAGS = ("subjects", "unrated_subjects", "videos", "seconds", "effect", "seed")
BLOCK = 64  # segments normalised at a time


def collect(entries, flags, manifest) -> list[dict]:
    """What is to be known of all recordings; lists each file in manifest["sources"], or skips it as a copy of another.

    Raises ValueError for recordings that do not go together.
    """
    recordings, seen, trials, resumed = [], {}, {}, 0
    for entry in entries:
        found, source = entry.pop("recordings"), {key: entry[key] for key in ("file", "size", "modified", "sha256")}
        resumed += entry["resumed"]
        if source["sha256"] in seen and found:
            manifest["duplicates"].append(source)
            reason = f"{source['file']} has the same bytes as {seen[source['sha256']]}"
            manifest["dropped"].append({"subject": "", "trial": "", "start": 0.0, "seconds": 0.0, "reason": reason})
            continue
        seen[source["sha256"]] = source["file"]
        for recording in found:
            where = flags.raw / source["file"]
            check_names(recording, where, trials)
            if recording["simulated"] != manifest.setdefault("simulated", recording["simulated"]):
                raise ValueError(f"{where}: simulated and real recordings in one set; keep the two apart")
            about = {"subject": recording["subject"], "trial": recording["trial"]}
            manifest["dropped"] += [
                {**about, "start": start, "seconds": seconds, "reason": reason}
                for start, seconds, reason in recording["dropped"]
            ]
            manifest["notes"] += [{**about, "note": note} for note in recording["notes"]]
        subjects = {recording["subject"] for recording in found}
        source["trials"] = [[recording["subject"], recording["trial"]] for recording in found]
        manifest["sources"].append({**source, "subject": subjects.pop() if len(subjects) == 1 else ""})
        recordings += found
    if resumed and not flags.json:
        print(f"{flags.raw}: going on; {resumed} of {len(recordings)} recordings were done by an earlier call")
    return recordings


def write_segments(recordings, channels, flags, folder, parts, manifest):
    """Write the signals and segments.npy, one subject after the other, and fill in what `manifest` says of them.

    recordings: dictionaries of `cut_file`, those of a subject one after the other. Raises ValueError where they are
    not, where a value is too large for float32, and where nothing is left.
    """
    writers = {m: SegmentWriter(folder / f"{m}.npy", len(names), flags.points) for m, names in channels.items()}
    rows = []
    for subject, group in groupby(recordings, key=lambda recording: recording["subject"]):
        if subject in manifest["subjects"]:
            raise ValueError(f"subject {subject} comes from files that do not follow each other; rename them")
        group = list(group)
        total = {m: filters.Moments(len(names)) for m, names in channels.items()}
        for recording in group:
            for modality, values in recording["moments"].items():
                total[modality].merge(*values)
            names = (subject, recording["trial"], recording["video"])
            rows += [(*names, start, recording["arousal"], recording["valence"]) for start in recording["starts"]]
        manifest["subjects"][subject] = {
            m: {"mean": t.mean.tolist(), "sd": t.sd().tolist(), "points": [t.points] * len(t.mean)}
            for m, t in total.items()
        }
        for modality in channels:
            mean, sd = total[modality].mean[:, None], total[modality].sd()[:, None]
            shape = (-1, len(channels[modality]), flags.points)
            for recording in group:
                with open(parts / f"{recording['part']}.{modality}", "rb") as file:
                    while block := file.read(8 * BLOCK * len(channels[modality]) * flags.points):
                        block = np.frombuffer(block).reshape(shape)
                        if flags.normalise == "subject":
                            block = filters.z_score(block, mean, sd)
                        if not filters.finite(block).all():
                            raise ValueError(
                                f"{flags.raw}: subject {subject} has {modality} values too large or too small for "
                                f"float32 (SD {' '.join(f'{x:g}' for x in sd[:, 0])}); take the damaged files out"
                            )
                        writers[modality].write(block)
    if not rows:
        reasons = "; ".join(sorted({piece["reason"] for piece in manifest["dropped"]}))
        raise ValueError(f"{flags.raw}: no segment is left ({reasons or 'every file is empty'})")
    for writer in writers.values():
        writer.close()
    table = np.array(rows, dtype=SEGMENT_DTYPE)
    with open(folder / "segments.npy", "wb") as file:
        np.save(file, table, allow_pickle=False)
        sync(file)
    manifest["counts"] = {
        "subjects": len(np.unique(table["subject"])),
        "trials": len(np.unique(table[["subject", "trial"]])),
        "segments": len(table),
        "hours": len(table) * flags.points / flags.rate / 3600,
    }


def preprocessing_flags(flags, channels) -> dict:
    """Everything that changes the numbers in the signal files."""
    return {
        "modalities": list(channels),
        "channels": channels,
        "ecg_side": flags.ecg_side,
        "ecg_channel": flags.ecg_channel,
        "low": flags.low,
        "high": flags.high,
        "filter": "Butterworth, zero phase",
        "filter_order": flags.filter_order,
        "extension": filters.EXTENSION,
        "resampling": "polyphase",
        "rate": flags.rate,
        "seconds_per_segment": flags.seconds_per_segment,
        "normalise": flags.normalise,
        "drop_baseline": flags.drop_baseline,
        "max_seconds_per_trial": flags.max_seconds_per_trial,
        "drop_unusable_ecg": flags.drop_unusable_ecg,
    }


def already_done(folder, flags, channels, paths) -> bool:
    """Whether `folder` holds what this command would write. Raises ValueError where it holds anything else."""
    if not folder.exists() or not any(folder.iterdir()):
        return False
    manifest = read_manifest(folder)
    advice = "give --fresh to replace it, or another --out"
    if manifest["dataset"] != flags.name:
        raise ValueError(f"{folder}: expected the set {flags.name}, found {manifest['dataset']}; {advice}")
    wanted, found = preprocessing_flags(flags, channels), manifest["preprocessing"]
    for key in [*wanted, *(key for key in found if key not in wanted)]:
        if wanted.get(key) != found.get(key):
            name = f"--{key.replace('_', '-')}" if key in flags else key
            raise ValueError(f"{folder}: prepared with {name} {found.get(key)}, not {wanted.get(key)}; {advice}")
    known = {entry["file"]: entry for entry in manifest["sources"] + manifest.get("duplicates", [])}
    present = {path.relative_to(flags.raw).as_posix(): path for path in paths}
    for name in sorted(known.keys() | present.keys()):
        if name not in known or name not in present:
            state = "is new" if name in present else "is gone"
            raise ValueError(f"{folder}: {name} in {flags.raw} {state} since it was prepared; {advice}")
        status = present[name].stat()
        same = (status.st_size, status.st_mtime_ns) == (known[name]["size"], known[name]["modified"])
        if not same and sha256_of_file(present[name]) != known[name]["sha256"]:
            raise ValueError(f"{folder}: {name} in {flags.raw} has changed since it was prepared; {advice}")
    return True


def parse_flags(argv) -> argparse.Namespace:
    parser = paper.Parser(description=__doc__)
    number, from_zero, whole = paper.positive(float), paper.positive(float, zero=True), paper.positive(int)
    add = parser.add_argument
    add("--dataset", choices=READERS, help="which set; simulated is written first where it is missing")
    add("--raw", type=Path, help="folder of the raw recordings (default: raw/<dataset>)")
    add("--out", type=Path, default=Path("data"), help="the segments go to <out>/<name> (default: data)")
    add("--name", help="of the set that --dataset folder makes (default: folder; assumed)")
    add("--modalities", nargs="+", choices=paper.MODALITIES, help="default: all that the set has (paper 4.1)")
    add(
        "--channels",
        nargs="+",
        type=normalise_name,
        metavar="NAME",
        help=f"EEG channels, in this order (default: {' '.join(paper.EEG_CHANNELS)}; paper 4.1)",
    )
    add("--ecg-channel", metavar="NAME", help="the ECG among the channels of --dataset folder (default: ECG; assumed)")
    add("--ecg-side", choices=("left", "right"), help="arm of the ECG, where a set has both (default: left; paper 4.1)")
    add("--low", type=number, default=paper.LOW_HZ, help="band-pass from, Hz (default: %(default)s; paper 4.1.2)")
    add("--high", type=number, default=paper.HIGH_HZ, help="band-pass to, Hz (default: %(default)s; paper 4.1.2)")
    add("--filter-order", type=whole, default=paper.FILTER_ORDER, help="default: %(default)s; paper 4.1.2")
    add("--rate", type=whole, default=paper.RATE, help="new rate, Hz (default: %(default)s; paper 4.1.2)")
    add("--seconds-per-segment", type=number, default=float(paper.SECONDS), help="default: %(default)s; paper 4.1.2")
    add(
        "--normalise",
        choices=("subject", "recording", "segment", "none"),
        default="subject",
        help="zero mean, unit variance of each channel over what (default: %(default)s; paper 4.1.2)",
    )
    add(
        "--drop-baseline",
        type=from_zero,
        default=0.0,
        help="seconds to leave out at each trial's start, which in AMIGOS are 5 (default: %(default)s; assumed)",
    )
    add("--max-seconds-per-trial", type=number, help="keep this much of each trial (default: all; assumed)")
    add(
        "--drop-unusable-ecg",
        action=argparse.BooleanOptionalAction,
        default=False,
        help="drop recordings whose ECG shows no beats, which else are only reported (assumed)",
    )
    cohort = parser.add_argument_group("simulated cohort (all assumed)")
    cohort.add_argument("--subjects", type=whole, default=8, help="rated people (default: %(default)s)")
    cohort.add_argument("--unrated-subjects", type=int, default=4, help="people without ratings (default: %(default)s)")
    cohort.add_argument("--videos", type=whole, default=16, help="videos a person (default: %(default)s)")
    cohort.add_argument("--seconds", type=number, default=50.0, help="seconds a video (default: %(default)s)")
    cohort.add_argument("--effect", type=from_zero, default=1.0, help="of the ratings; 0: none (default: %(default)s)")
    cohort.add_argument("--seed", type=int, default=0, help="default: %(default)s")
    add("--fresh", action="store_true", help="replace what was prepared before, whole or half")
    add(
        "--workers",
        type=whole,
        default=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        help="files worked on at a time, the same bytes for any number (default: the cores, %(default)s; assumed)",
    )
    add("--check", action="store_true", help="say what would be kept and dropped, what it takes, and write nothing")
    add("--list", action="store_true", help="say where each set comes from, and stop")
    add("--print-flags", action="store_true", help="print every flag as JSON and stop")
    add("--json", action="store_true", help="print the closing summary as JSON")
    return parser.parse_args(argv)


def resolve(flags):
    """Fill in what depends on the data set. Raises ValueError for flags that contradict each other."""
    if not flags.dataset:
        raise ValueError(f"--dataset: expected one of {' '.join(READERS)}, found none; --list says what they are")
    reader = READERS[flags.dataset]
    flags.name = flags.name or flags.dataset
    if flags.name != flags.dataset and (flags.dataset != "folder" or flags.name in READERS):
        raise ValueError(f"--name {flags.name}: only for --dataset folder, and not that of another set")
    if not re.fullmatch(r"[\w-]+", flags.name):
        raise ValueError(f"--name {flags.name}: expected letters, digits, - and _")
    flags.raw = flags.raw or Path("raw") / flags.dataset
    flags.modalities = [m for m in paper.MODALITIES if m in (flags.modalities or reader.MODALITIES)]
    for modality in flags.modalities:
        if modality not in reader.MODALITIES:
            raise ValueError(f"--modalities {modality}: {flags.dataset} holds {' and '.join(reader.MODALITIES)} alone")
    if flags.ecg_side and not reader.ECG_SIDES:
        raise ValueError(f"--ecg-side {flags.ecg_side}: {flags.dataset} has no choice of ECGs; leave the flag out")
    if reader.ECG_SIDES and "ecg" in flags.modalities:
        flags.ecg_side = flags.ecg_side or "left"
    if flags.channels and "eeg" not in flags.modalities:
        raise ValueError("--channels: the EEG is not among the --modalities; leave the flag out")
    flags.channels = list(flags.channels or paper.EEG_CHANNELS)
    if len(set(flags.channels)) < len(flags.channels):
        raise ValueError(f"--channels {' '.join(flags.channels)}: one is there twice; give each once")
    if flags.ecg_channel and (flags.dataset != "folder" or "ecg" not in flags.modalities):
        raise ValueError("--ecg-channel: only for the ECG of --dataset folder; leave the flag out")
    if flags.drop_unusable_ecg and "ecg" not in flags.modalities:
        raise ValueError("--drop-unusable-ecg: the ECG is not among the --modalities; leave the flag out")
    if not flags.low < flags.high < flags.rate / 2:
        raise ValueError(
            f"--low {flags.low:g} --high {flags.high:g} --rate {flags.rate}: expected low < high < rate / 2"
        )
    if "ecg" in flags.modalities and flags.rate <= 2 * filters.BEATS_TO_HZ:
        raise ValueError(
            f"--rate {flags.rate}: heart beats are looked for up to {filters.BEATS_TO_HZ} Hz; take more"
        )
    flags.points = round(flags.seconds_per_segment * flags.rate)
    if flags.points < 1 or abs(flags.points - flags.seconds_per_segment * flags.rate) > 1e-6:
        raise ValueError(f"--seconds-per-segment {flags.seconds_per_segment:g}: no whole number of points")


def run(flags) -> int:
    """Prepare or check a set; the exit code. Raises ValueError and OSError for what is wrong with files or flags."""
    reader = READERS[flags.dataset]
    if flags.dataset == "simulated" and not flags.check:
        simulated.write_cohort(flags.raw, **{name: getattr(flags, name) for name in COHORT_FLAGS})
    if not flags.raw.is_dir():
        raise FileNotFoundError(f"{flags.raw}: no such folder; give the one with the recordings as --raw")
    paths = reader.sources(flags.raw)
    if not paths:
        raise FileNotFoundError(f"{flags.raw}: no file of {flags.dataset} below it; expected {reader.EXPECTED}")
    names = {"eeg": flags.channels, "ecg": paper.ECG_CHANNELS}
    channels = {modality: list(names[modality]) for modality in flags.modalities}
    in_files = {**channels, "ecg": [flags.ecg_channel]} if flags.ecg_channel else channels
    folder = flags.out / flags.name
    if flags.check:
        return check.check(paths, Job(reader, flags.raw, in_files, flags))
    done = not flags.fresh and already_done(folder, flags, channels, paths)
    if not done:
        if folder.exists() and any(folder.iterdir()):
            read_manifest(folder)  # --fresh replaces prepared data, never anything else
        manifest = {
            "dataset": flags.name,
            "channels": channels,
            "rate": flags.rate,
            "points": flags.points,
            "preprocessing": preprocessing_flags(flags, channels),
            **{key: [] for key in ("sources", "duplicates", "dropped", "notes")},
            "subjects": {},
            "versions": {"python": platform.python_version(), "numpy": np.__version__, "scipy": scipy.__version__},
        }
        identity = {key: manifest[key] for key in ("dataset", "preprocessing", "versions")}
        identity["lists"] = [sha256_of_file(path) for path in paths if path.suffix in (".csv", ".hea")]
        with new_folder(folder, flags.fresh) as (temporary, lock):
            parts = open_parts(temporary, identity)
            entries = map_files(cut_file, paths, Job(reader, flags.raw, in_files, flags, parts), lock)
            entries = tqdm(entries, total=len(paths), unit="file", desc=flags.name, disable=None)
            recordings = collect(entries, flags, manifest)
            write_segments(recordings, channels, flags, temporary, parts, manifest)
            shutil.rmtree(parts)
            write_json(temporary / "manifest.json", manifest)
    check.report(folder, read_manifest(folder), done, flags.json)
    return 0


def main(argv=None) -> int:
    try:
        flags = parse_flags(argv)
        if flags.list:
            check.print_sets(READERS)
            return 0
        resolve(flags)
        if not flags.print_flags:
            return run(flags)
        print(json.dumps(vars(flags), default=str, indent=1))
    except (ValueError, OSError) as error:
        named = isinstance(error, OSError) and error.filename
        print(f"prepare_data.py: {f'{error.filename}: {error.strerror}' if named else error}", file=sys.stderr)
        return 2
    except BrokenProcessPool:
        print(
            f"prepare_data.py: {flags.raw}: a worker was killed, perhaps for want of memory; the same command with "
            "fewer --workers goes on from here",
            file=sys.stderr,
        )
        return 2
    except KeyboardInterrupt:
        print("prepare_data.py: interrupted; the same command goes on from here", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
