"""What prepare_data.py says: of the sets (--list), of raw recordings (--check) and of what it has prepared."""

import json
import sys
import time

from tqdm import tqdm

from preparing import filters
from preparing.workers import check_names, identify, map_files


def print_sets(readers):
    """The sets, where they come from and what to download."""
    for name, reader in readers.items():
        if name == "simulated":
            print("simulated: written by prepare_data.py itself; it demonstrates the software and proves nothing\n")
            continue
        print(f"{name}: {' and '.join(reader.MODALITIES)}, {reader.SIZE}; licence: {reader.LICENCE}")
        print(f"  {reader.HOME}\n  download {reader.DOWNLOAD}\n  files: {reader.EXPECTED}\n")


def judge_file(path, job) -> dict:
    """What one source file holds, or what is wrong with it, and how long it took to find out."""
    started, found = time.perf_counter(), {"recordings": [], "problem": None}
    try:
        found |= identify(path, job)
        for recording in job.reader.read(path, job.channels, job.flags.ecg_side):
            judged = filters.judge(recording, job.flags)
            kept, dropped = judged.kept(), judged.dropped(job.flags.points / job.flags.rate)
            if job.flags.drop_unusable_ecg:  # beats show in a filtered signal alone
                _, kept, _, dropped, _ = filters.cut(recording, job.flags)
            found["recordings"].append(
                {
                    **{key: getattr(recording, key) for key in ("subject", "trial", "video", "simulated")},
                    "seconds": judged.seconds,
                    "segments": len(kept),
                    "dropped": dropped,
                }
            )
    except (ValueError, OSError) as error:
        found["problem"] = str(error)
    return {**found, "took": time.perf_counter() - started}


def seconds_a_second(path, job) -> float:
    """How long filtering and resampling the first recording of a file that is not empty takes, per second of it."""
    for recording in job.reader.read(path, job.channels, job.flags.ecg_side):
        length = max(signal.shape[1] / recording.rate[modality] for modality, signal in recording.signals.items())
        if length:
            started = time.perf_counter()
            filters.cut(recording, job.flags)
            return (time.perf_counter() - started) / length


def check(paths, job) -> int:
    """Read every file and report what preparing would keep and drop; 2 if something would stop it, else 0."""
    flags, problems, seen, trials, kinds, subjects = job.flags, [], {}, {}, set(), {}
    files = map_files(judge_file, paths, job)
    took, whole, first = 0.0, 0.0, None
    for path, found in zip(paths, tqdm(files, total=len(paths), unit="file", desc="checking", disable=None)):
        took += found["took"]
        if found["problem"]:
            problems.append(found["problem"])
        if found["recordings"] and found["sha256"] in seen:
            problems.append(f"{path}: the same bytes as {seen[found['sha256']]}; it would be left out")
            continue
        seen[found.get("sha256")] = path
        for recording in found["recordings"]:
            first = first or (path if recording["seconds"] else None)
            whole += recording["seconds"]
            kinds.add(recording["simulated"])
            subjects.setdefault(recording["subject"], []).append(recording)
            try:
                check_names(recording, path, trials)
            except ValueError as error:
                problems.append(str(error))
    if len(kinds) == 2:
        problems.append(f"{flags.raw}: simulated and real recordings in one set; keep the two apart")
    stops = [problem for problem in problems if not problem.endswith("it would be left out")]

    length = flags.points / flags.rate
    segments = sum(recording["segments"] for recordings in subjects.values() for recording in recordings)
    points = segments * flags.points * sum(len(names) for names in job.channels.values())
    seconds = (took + whole * (seconds_a_second(first, job) if first else 0)) / min(flags.workers, len(paths))
    summary = {
        "subjects": len(subjects),
        "segments": segments,
        "hours": segments * length / 3600,
        "bytes": 4 * points,
        "bytes_while_at_work": 12 * points,
        "seconds": seconds,
        "workers": flags.workers,
        "problems": problems,
        "dropped": [
            {"subject": subject, "trial": recording["trial"], "start": start, "seconds": lost, "reason": reason}
            for subject, recordings in subjects.items()
            for recording in recordings
            for start, lost, reason in recording["dropped"]
        ],
    }
    if flags.json:
        print(json.dumps(summary))
    else:
        _print(summary, subjects, length)
    if stops:
        print(f"prepare_data.py: {flags.raw}: {len(stops)} problems would stop the preparation", file=sys.stderr)
    return 2 if stops else 0


def _print(summary, subjects, length):
    for subject, recordings in subjects.items():
        kept, lost = (sum(each) for each in zip(*((r["segments"] * length, r["seconds"]) for r in recordings)))
        used = sum(recording["segments"] > 0 for recording in recordings)
        print(f"{subject}: {used} of {len(recordings)} trials, {kept:.0f} of {lost:.0f} s kept")
        for recording in recordings:
            for start, seconds, reason in recording["dropped"]:
                if reason != "shorter than a segment" or not recording["segments"]:
                    print(f"  {recording['trial']}: {seconds:.1f} s from {start:.1f} s dropped: {reason}")
    for problem in summary["problems"]:
        print(f"problem: {problem}")
    print(
        f"in all {summary['subjects']} subjects, {summary['segments']} segments, {summary['hours']:.2f} h; "
        f"preparing takes about {summary['seconds']:.0f} s with {summary['workers']} workers and "
        f"{summary['bytes'] / 1e9:.2g} GB of disk, {summary['bytes_while_at_work'] / 1e9:.2g} GB while at work"
    )


def report(folder, manifest, done, as_json):
    """Print what a prepared folder holds; `done` says whether an earlier call had written it."""
    counts = manifest["counts"]
    seconds = sum(piece["seconds"] for piece in manifest["dropped"])
    if as_json:
        print(json.dumps({"folder": str(folder), "done_before": done, **counts, "dropped_seconds": seconds}))
        return
    print(f"{folder}: {'prepared before, nothing to do' if done else 'written'}", end="")
    print("; the recordings are simulated and prove nothing about emotion" if manifest["simulated"] else "")
    print(
        f"{counts['subjects']} subjects, {counts['trials']} trials, {counts['segments']} segments, "
        f"{counts['hours']:.2f} h; {len(manifest['dropped'])} pieces of {seconds:.0f} s in all dropped, "
        f"{len(manifest['notes'])} notes (manifest.json)"
    )
    for note in manifest["notes"]:
        if note["note"].startswith("ECG"):
            print(f"{note['subject']} {note['trial']}: {note['note']}")
