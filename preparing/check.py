"""What prepare_data.py says: of the sets (--list), of raw recordings (--check) and of what it has prepared."""

import json
from functools import partial
from textwrap import indent

from tqdm import tqdm

from common.script import one_line
from datasets import not_read
from preparing.workers import collect, cut_file, map_files


def print_sets(readers):
    """Print the data sets: what they hold, where they come from and what to download."""
    for name, reader in readers.items():
        if name == "simulated":
            print("simulated: written by prepare_data.py itself; it demonstrates the software and proves nothing\n")
        else:
            print(f"{name}: {' and '.join(reader.MODALITIES)}\n{indent(reader.__doc__.strip(), '  ')}\n")


def check(paths, read, flags, channels) -> None:
    """Cut every file and report what preparing would keep and drop; raise ValueError if something would stop it."""
    manifest, stops = {"subjects": {}}, []
    entries = map_files(partial(cut_file, read=read, flags=flags), paths, flags.workers)
    entries = tqdm(entries, total=len(paths), unit="file", desc="checking", disable=None)
    recordings = collect(entries, flags, manifest, stops)
    stops = list(dict.fromkeys(one_line(error) for error in stops))
    # A copy of another file is left out and stops nothing.
    copies = [piece["reason"] for piece in manifest["dropped"] if not piece["trial"]]

    segments, length = sum(len(recording["starts"]) for recording in recordings), flags.points / flags.rate
    summary = {
        "subjects": len({recording["subject"] for recording in recordings}),
        "segments": segments,
        "hours": segments * length / 3600,
        "bytes": 4 * segments * flags.points * sum(len(names) for names in channels.values()),
        "problems": stops + copies,
        "dropped": [piece for piece in manifest["dropped"] if piece["trial"]],
        "notes": manifest["notes"],
        "not_read": not_read(flags.raw, paths),
    }
    if flags.json:
        print(json.dumps(summary))
    else:
        _print(summary, recordings, length)
    if stops:
        raise ValueError(f"{flags.raw}: {len(stops)} problems would stop the preparation")


def _print(summary, recordings, length):
    """Print what --check has found, one line a subject, a dropped piece, a problem, and the sum."""
    people = {}
    for recording in recordings:
        people.setdefault(recording["subject"], []).append(recording)
    for subject, own in people.items():
        kept, used = sum(len(each["starts"]) for each in own) * length, sum(bool(each["starts"]) for each in own)
        seconds = sum(each["seconds"] for each in own)
        print(f"{subject}: {used} of {len(own)} trials, {kept:.0f} of {seconds:.0f} s kept")
        for recording in own:
            for piece in recording["dropped"]:
                if piece["reason"] != "shorter than a segment" or not recording["starts"]:
                    print("  {trial}: {seconds:.1f} s from {start:.1f} s dropped: {reason}".format(**recording | piece))
    _print_notes(summary["notes"])
    for problem in summary["problems"]:
        print(f"problem: {problem}")
    if summary["not_read"]:
        print(summary["not_read"])
    print(
        f"in all {summary['subjects']} subjects, {summary['segments']} segments, {summary['hours']:.2f} h; they take "
        f"{summary['bytes'] / 1e9:.2g} GB of disk, three times as much while at work"
    )


def report(folder, manifest, done, as_json):
    """Print what a prepared folder holds; `done` says whether an earlier call had written it."""
    counts = manifest["counts"]
    seconds, left = sum(piece["seconds"] for piece in manifest["dropped"]), manifest.get("not_read", "")
    if as_json:
        about = {"folder": str(folder), "done_before": done, **counts, "dropped_seconds": seconds}
        print(json.dumps({**about, "not_read": left}))
        return
    print(f"{folder}: {'prepared before, nothing to do' if done else 'written'}", end="")
    print("; the recordings are simulated and prove nothing about emotion" if manifest["simulated"] else "")
    print(
        f"{counts['subjects']} subjects, {counts['trials']} trials, {counts['segments']} segments, "
        f"{counts['hours']:.2f} h; {len(manifest['dropped'])} pieces of {seconds:.0f} s in all dropped, "
        f"{len(manifest['notes'])} notes (manifest.json)"
    )
    for piece in manifest["dropped"]:
        if not piece["trial"]:
            print(f"problem: {piece['reason']}")
    if left:
        print(left)
    _print_notes(manifest["notes"])


def _print_notes(notes):
    """Print what to know of recordings, but not all: see manifest.json."""
    found = {}
    for note in notes:
        found.setdefault(note["note"], []).append(f"{note['subject']} {note['trial']}")
    for note, where in list(found.items())[:20]:
        print(f"{', '.join(where[:3])}{f' and {len(where) - 3} more' * (len(where) > 3)}: {note}")
    if len(found) > 20:
        print(f"and {len(found) - 20} other notes")
