"""Cutting of many raw files in several processes, and the folder that becomes the prepared one at the end."""

import fcntl
import multiprocessing
import os
import shutil
import signal
import tempfile
import threading
import time
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from threadpoolctl import threadpool_limits

from common.files import sha256_of_file
from preparing import cutting
from preparing.filters import Moments, z_score
from protocol.segments import SEGMENT_DTYPE


def map_files(work, paths, workers):
    """Yield work(path) of each of `paths`, in order, done by as many processes; raise BrokenProcessPool where one is
    killed."""
    processes = min(workers, len(paths))
    if processes == 1:
        with threadpool_limits(1):
            for path in paths:
                yield work(path)
        return
    # Forked, as Python would take longer to start anew than to read a file; each process computes in one thread.
    pool = ProcessPoolExecutor(processes, multiprocessing.get_context("fork"), _start_worker, (os.getpid(),))
    try:
        for future in [pool.submit(work, path) for path in paths]:
            yield future.result()
    except BaseException:
        for child in multiprocessing.active_children():
            child.terminate()
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


def cut_file(path, read, flags, parts=None) -> dict:
    """Cut the recordings that `read(path)` yields, into the folder `parts` if there is one; return name, size, time and
    hash of the file, and what to know of each recording."""
    status = path.stat()
    return {
        "file": path.relative_to(flags.raw).as_posix(),
        "size": status.st_size,
        "modified": status.st_mtime_ns,
        "sha256": sha256_of_file(path),
        "recordings": [_cut_recording(recording, flags, parts) for recording in read(path)],
    }


def _cut_recording(recording, flags, parts) -> dict:
    """Write the segments of one recording into a new folder of its own (`part`); return all else to know of it."""
    judged, segments = cutting.cut(recording, flags)
    about = {key: getattr(recording, key) for key in ("subject", "trial", "video", "ratings", "simulated")}
    about |= {
        "seconds": judged.seconds,
        "starts": [judged.begin + number * judged.length for number in judged.kept()],
        "dropped": judged.dropped(),
        "notes": judged.notes,
    }
    if parts:
        about["part"] = Path(tempfile.mkdtemp(dir=parts))
        about["moments"] = {m: _write_part(about["part"] / m, block, flags.normalise) for m, block in segments.items()}
    return about


def _write_part(path, block, normalise) -> Moments:
    """Write the segments of one modality of a recording, (k, C, L) float64, and return their moments."""
    # The moments of a subject are those of its recordings, which are merged when all are there.
    moments = Moments(block.shape[1])
    if len(block):
        moments.add(block.swapaxes(0, 1).reshape(block.shape[1], -1))
    if normalise == "recording":
        block = z_score(block, moments.mean[:, None], moments.sd()[:, None])
    elif normalise == "segment":
        block = z_score(block, block.mean(2, keepdims=True), block.std(2, keepdims=True))
    with open(path, "wb") as file:
        file.write(np.ascontiguousarray(block))
    return moments


def collect(entries, raw, manifest, problems=None) -> list[dict]:
    """Return all recordings of the entries of source files, and list the files and what is dropped in `manifest`.

    A copy of another file is left out. Where a recording does not go together with those before it, raise ValueError,
    or add a line to the list `problems`.
    """
    recordings, seen, trials = [], {}, {}
    manifest |= {key: [] for key in ("sources", "duplicates", "dropped", "notes")}
    for entry in entries:
        found, source = entry["recordings"], {key: entry[key] for key in ("file", "size", "modified", "sha256")}
        # A copy would put the same seconds into two trials.
        if source["sha256"] in seen and found:
            manifest["duplicates"].append(source)
            reason = f"{source['file']} has the same bytes as {seen[source['sha256']]}"
            manifest["dropped"].append({"subject": "", "trial": "", "start": 0.0, "seconds": 0.0, "reason": reason})
            continue
        seen[source["sha256"]] = source["file"]
        for recording in found:
            if misfit := _misfit(recording, manifest, trials):
                if problems is None:
                    raise ValueError(f"{raw / source['file']}: {misfit}")
                problems.append(f"{raw / source['file']}: {misfit}")
            trials[recording["subject"], recording["trial"]] = raw / source["file"]
            about = {key: recording[key] for key in ("subject", "trial")}
            manifest["dropped"] += [about | piece for piece in recording["dropped"]]
            manifest["notes"] += [about | {"note": note} for note in recording["notes"]]
        subjects = {recording["subject"] for recording in found}
        source["trials"] = [[recording["subject"], recording["trial"]] for recording in found]
        manifest["sources"].append({**source, "subject": subjects.pop() if len(subjects) == 1 else ""})
        recordings += found
    return recordings


def _misfit(recording, manifest, trials) -> str | None:
    """Return why a recording cannot stand beside those before it, whose files `trials` knows; None where it can."""
    subject, trial = recording["subject"], recording["trial"]
    if (subject, trial) in trials:
        return (
            f"trial {trial} of subject {subject} is in {trials[subject, trial]} already; take one of the two out, or "
            "(in recordings.csv) call the trials by different names"
        )
    # A longer name would be cut short in segments.npy.
    for key in ("subject", "trial", "video"):
        longest = SEGMENT_DTYPE[key].itemsize // 4
        if len(recording[key]) > longest:
            return f"{key} {recording[key]!r} has over {longest} letters"
    if recording["simulated"] != manifest.setdefault("simulated", recording["simulated"]):
        return "simulated and real recordings in one set; keep the two apart"


@contextmanager
def new_folder(folder: Path):
    """Make an empty folder beside `folder`, which takes its place at the end, and is gone if anything goes wrong.

    Raise ValueError where another process writes it.
    """
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
