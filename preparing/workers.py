"""Cutting of many raw files in several processes, and the folder that becomes the prepared one at the end."""

import fcntl
import multiprocessing
import os
import shutil
import signal
import threading
import time
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from itertools import groupby
from pathlib import Path

import numpy as np
from threadpoolctl import threadpool_limits

from common.files import sha256_of_file
from datasets import plain_name
from paper import MODALITIES
from preparing import cutting
from preparing.cutting import finite
from preparing.filters import Moments, z_score
from protocol.segments import SEGMENT_DTYPE

UPRIGHT = 0.15  # of `uprightness`: the two recordings of each person of eegmat differ by 0.13 at most


def map_files(work, paths, workers):
    """Yield work(path) of each path, in order, by so many processes; raise BrokenProcessPool where one is killed."""
    processes = min(workers, len(paths))
    if processes == 1:
        with threadpool_limits(1):
            yield from map(work, paths)
        return
    # Forked, as Python would take longer to start anew than to read a file; each process computes in one thread.
    pool = ProcessPoolExecutor(processes, multiprocessing.get_context("fork"), _start_worker, (os.getpid(),))
    try:
        # Of many small files each process takes several at a time.
        yield from pool.map(work, paths, chunksize=max(1, min(64, len(paths) // (16 * processes))))
    except BaseException:
        # Not by SIGTERM: until a forked process has begun, it handles that as its parent does.
        for child in multiprocessing.active_children():
            child.kill()
        raise
    finally:
        pool.shutdown(cancel_futures=True)


def _start_worker(parent):
    """Prepare a new process for its work: it ends with its parent, at once on a signal, and computes in one thread."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    threadpool_limits(1)

    def watch():
        """End this process once its parent was killed, as nobody waits for it any more."""
        while os.getppid() == parent:
            time.sleep(0.1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def cut_file(path, read, flags, parts=None) -> dict | Exception:
    """Cut the recordings that `read(path)` yields, into files of the folder `parts` if there is one. Return what to
    know of the file and each recording, or the ValueError or OSError that says what is wrong with the file."""
    try:
        status = path.stat()
        return {
            "file": path.relative_to(flags.raw).as_posix(),
            "size": status.st_size,
            "modified": status.st_mtime_ns,
            "sha256": sha256_of_file(path),
            "recordings": [_cut_recording(recording, flags, parts) for recording in read(path)],
        }
    except (ValueError, OSError) as error:
        return error


def _cut_recording(recording, flags, parts) -> dict:
    """Add the segments of one recording to this process's files in `parts`; return all else to know of it: `part` is
    modality -> (file, where in it the recording begins), `moments` modality -> Moments of what is kept, and `ends`
    modality -> (2, C), its smallest and largest values."""
    judged, blocks = cutting.cut(recording, flags)
    channels = {modality: each.shape[0] for modality, each in recording.signals.items()}
    moments = {modality: Moments(count) for modality, count in channels.items()}
    ends = {modality: np.repeat([[np.inf], [-np.inf]], count, axis=1) for modality, count in channels.items()}
    part = {}
    for block in blocks:
        for modality, segments in block.items():
            # The moments of a subject are those of its recordings, which are merged when all are there.
            if len(segments):
                moments[modality].add(segments.swapaxes(0, 1).reshape(segments.shape[1], -1))
            if flags.normalise == "segment":
                segments = z_score(segments, segments.mean(2, keepdims=True), segments.std(2, keepdims=True))
            low, high = ends[modality]
            np.minimum(low, segments.min(axis=(0, 2), initial=np.inf), out=low)
            np.maximum(high, segments.max(axis=(0, 2), initial=-np.inf), out=high)
            # One file a process and modality holds the segments of all its recordings: a file each would take longer.
            if parts:
                with open(parts / f"{os.getpid()}-{modality}", "ab") as file:
                    part.setdefault(modality, (file.name, file.tell()))
                    file.write(np.ascontiguousarray(segments))
    return {
        **{key: plain_name(getattr(recording, key)) for key in ("subject", "trial", "video")},
        **{"ratings": recording.ratings, "simulated": recording.simulated},
        "units": {m: recording.units.get(m, MODALITIES[m].unit) for m in recording.signals},
        "seconds": judged.seconds,
        "starts": [judged.begin + number * judged.length for number in judged.kept()],
        "dropped": judged.dropped(),
        "notes": judged.notes,
        "uprightness": float(np.median(judged.uprightness)) if judged.uprightness else 0.0,
        "part": part,
        "moments": moments,
        "ends": ends,
    }


def collect(entries, flags, manifest, problems=None) -> list[dict]:
    """Return all recordings of the entries of source files, and say of files, subjects, pieces and notes in `manifest`.
    A copy of another file is left out. What would stop the preparation (a file that cannot be read, recordings that do
    not go together, ...) is raised as ValueError or OSError, or added to the list `problems`."""

    def stop(error):
        if problems is None:
            raise error
        problems.append(error)

    recordings, seen, trials, units = [], {}, {}, {}
    manifest |= {key: [] for key in ("sources", "duplicates", "dropped", "notes")}
    for entry in entries:
        if isinstance(entry, Exception):
            stop(entry)
            continue
        found, source = entry["recordings"], {key: entry[key] for key in ("file", "size", "modified", "sha256")}
        # A copy would put the same seconds into two trials.
        if source["sha256"] in seen and found:
            manifest["duplicates"].append(source)
            reason = f"{source['file']} has the same bytes as {seen[source['sha256']]}"
            manifest["dropped"].append({"subject": "", "trial": "", "start": 0.0, "seconds": 0.0, "reason": reason})
            continue
        seen[source["sha256"]] = source["file"]
        for recording in found:
            if misfit := _misfit(recording, manifest, trials, units):
                stop(ValueError(f"{flags.raw / source['file']}: {misfit}"))
            trials[recording["subject"], recording["trial"]] = flags.raw / source["file"]
            about = {key: recording[key] for key in ("subject", "trial")}
            manifest["dropped"] += [about | piece for piece in recording["dropped"]]
            manifest["notes"] += [about | {"note": note} for note in recording["notes"]]
        subjects = {recording["subject"] for recording in found}
        source["trials"] = [[recording["subject"], recording["trial"]] for recording in found]
        manifest["sources"].append({**source, "subject": subjects.pop() if len(subjects) == 1 else ""})
        recordings += found
    people = {}
    for name in dict.fromkeys(recording["subject"] for recording in recordings):
        if (other := people.setdefault(name.casefold(), name)) != name:
            stop(ValueError(f"{flags.raw}: are subjects {other} and {name} one person? change one of the names"))
    for subject, group in groupby(recordings, key=lambda recording: recording["subject"]):
        for error in _judge_subject(subject, list(group), flags, manifest):
            stop(error)
    if not problems and not any(recording["starts"] for recording in recordings):
        reasons = "; ".join(sorted({piece["reason"] for piece in manifest["dropped"]}))
        stop(ValueError(f"{flags.raw}: no segment is left ({reasons or 'every file is empty'})"))
    return recordings


def _judge_subject(subject, recordings, flags, manifest):
    """Say in `manifest` what is known of one subject by all its recordings; yield what is wrong with them."""
    if subject in manifest["subjects"]:
        yield ValueError(f"subject {subject} comes from files that do not follow each other; rename them")
    manifest["subjects"][subject] = {}
    for modality, first in recordings[0]["moments"].items():
        total = Moments(len(first.mean))
        for recording in recordings:
            total.merge(recording["moments"][modality])
        about = {"mean": total.mean.tolist(), "sd": total.sd().tolist(), "points": [total.points] * len(total.mean)}
        manifest["subjects"][subject][modality] = about
        # The largest values stay the largest when they are z-scored.
        for recording in recordings:
            ends = recording["ends"][modality]
            if recording["starts"] and not finite(scaled(ends.T[None], recording, modality, about, flags)).all():
                sds = " ".join(f"{sd:g}" for sd in about["sd"])
                found = f"{modality} values too large or too small for float32 (SD {sds})"
                yield ValueError(f"{flags.raw}: subject {subject} has {found}; take the damaged files out")
                break
    # Of two ways in as many recordings each, the first is taken for the usual one.
    ways = [np.sign(each["uprightness"]) if abs(each["uprightness"]) > UPRIGHT else 0 for each in recordings]
    usual = np.sign(sum(ways)) or next(filter(None, ways), 0)
    for recording, way in zip(recordings, ways):
        if way and way != usual:
            note = "ECG upside down beside the subject's others, kept"
            manifest["notes"].append({"subject": subject, "trial": recording["trial"], "note": note})


def scaled(segments, recording, modality, about, flags):
    """Return segments (k, C, L) of a recording z-scored over what --normalise says; `about` has mean and SD (C,) of the
    subject. Those z-scored over a segment are so already."""
    if flags.normalise == "subject":
        return z_score(segments, *(np.array(about[key])[:, None] for key in ("mean", "sd")))
    if flags.normalise == "recording":
        own = recording["moments"][modality]
        return z_score(segments, own.mean[:, None], own.sd()[:, None])
    return segments


def _misfit(recording, manifest, trials, units) -> str | None:
    """Return why a recording cannot stand beside those before it, whose files `trials` knows, and the units of whose
    subjects `units`; None where it can."""
    subject, trial = recording["subject"], recording["trial"]
    if (subject, trial) in trials:
        there = f"trial {trial} of subject {subject} is in {trials[subject, trial]} already"
        return f"{there}; take one of the two out, or (in recordings.csv) call the trials by different names"
    # A longer name would be cut short in segments.npy.
    for key in ("subject", "trial", "video"):
        if len(recording[key]) > (longest := SEGMENT_DTYPE[key].itemsize // 4):
            return f"{key} {recording[key]!r} has over {longest} letters; shorten it (in recordings.csv, column {key})"
    for modality, unit in recording["units"].items():
        other = units.setdefault((subject, modality), unit)
        if unit != other:
            found = f"in {unit or 'no unit'} here and in {other or 'no unit'} in the files before"
            return f"the {modality} of subject {subject} is {found}; give the unit in their headers"
    if recording["simulated"] != manifest.setdefault("simulated", recording["simulated"]):
        return "simulated and real recordings in one set; keep the two apart"


@contextmanager
def new_folder(folder: Path):
    """Make an empty folder beside `folder`, which takes its place at the end, and is gone if anything goes wrong. Raise
    ValueError where another process writes it."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = folder.with_name(f".{folder.name}.partial")
    temporary.mkdir(exist_ok=True)
    lock = os.open(temporary, os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # What a killed call has left goes.
        for leftover in temporary.iterdir():
            shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()
        yield temporary
        # The old folder is not removed before the new one is in its place.
        replaced = folder.with_name(f".{folder.name}.replaced")
        shutil.rmtree(replaced, ignore_errors=True)
        if folder.exists():
            folder.rename(replaced)
        temporary.rename(folder)
        shutil.rmtree(replaced, ignore_errors=True)
    except BlockingIOError as error:
        raise ValueError(f"{temporary}: another run is writing it; wait for its end") from error
    except BaseException as error:
        shutil.rmtree(temporary, ignore_errors=True)
        if isinstance(error, OSError) and not error.filename:  # a full disk names no file
            error.filename = str(folder)
        raise
    finally:
        os.close(lock)
