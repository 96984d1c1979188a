"""Work on many raw files in several processes, and go on where a killed run stopped.

A folder `parts` holds what is done: of each recording its segments `<file>-<number>.<modality>`, float64, and then
`<file>-<number>.json` with all else; of each finished file `<file>.json`. `<file>` is a hash of the file's name.
"""

import fcntl
import hashlib
import json
import multiprocessing
import os
import shutil
import signal
import threading
import time
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from threadpoolctl import threadpool_limits

from common.files import sha256_of_file, sync, write_json
from preparing import filters
from protocol.segments import SEGMENT_DTYPE


@dataclass(frozen=True)
class Job:
    """What is done with each file."""

    reader: object  # a module of datasets/
    raw: Path
    channels: dict[str, list[str]]  # modality -> names, as the files call them
    flags: object  # of prepare_data.py
    parts: Path | None = None


def map_files(work, paths, job, lock=None):
    """work(path, job) of each path, in the order of `paths`, by flags.workers processes.

    `lock` is a file descriptor that the processes must not keep open. Raises BrokenProcessPool where one was killed.
    """
    processes = min(job.flags.workers, len(paths))
    if processes == 1:
        with threadpool_limits(1):
            for path in paths:
                yield work(path, job)
        return
    # Forked, as the flags and the reader need no pickling then; the work itself is that of one thread.
    pool = ProcessPoolExecutor(processes, multiprocessing.get_context("fork"), _start_worker, (job, os.getpid(), lock))
    try:
        for future in [pool.submit(_call, work, path) for path in paths]:
            yield future.result()
    except BaseException:
        for child in multiprocessing.active_children():
            child.terminate()
        raise
    finally:
        pool.shutdown(cancel_futures=True)


def _start_worker(job, parent, lock):
    _start_worker.job = job
    if lock is not None:
        os.close(lock)
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    threadpool_limits(1)

    def watch():
        while os.getppid() == parent:
            time.sleep(0.1)
        os._exit(1)  # the parent was killed: nobody waits for this process any more

    threading.Thread(target=watch, daemon=True).start()


def _call(work, path):
    return work(path, _start_worker.job)


def identify(path, job) -> dict:
    """Name, size, time and hash of one source file."""
    status = path.stat()
    return {
        "file": path.relative_to(job.raw).as_posix(),
        "size": status.st_size,
        "modified": status.st_mtime_ns,
        "sha256": sha256_of_file(path),
    }


def cut_file(path, job) -> dict:
    """The entry of one source file, with what is to be known of each of its recordings, whose segments are in parts.

    Raises ValueError and OSError where the file cannot be read, or its recordings cannot be cut.
    """
    status, name = path.stat(), path.relative_to(job.raw).as_posix()
    part = hashlib.sha256(name.encode()).hexdigest()[:16]
    entry = _read(job.parts / f"{part}.json")
    if entry and (entry["size"], entry["modified"]) == (status.st_size, status.st_mtime_ns):
        return {**entry, "resumed": len(entry["recordings"])}
    entry = {**identify(path, job), "recordings": [], "resumed": 0}
    for number, recording in enumerate(job.reader.read(path, job.channels, job.flags.ecg_side)):
        about = _read(job.parts / f"{part}-{number}.json")
        if about and about["sha256"] == entry["sha256"]:
            entry["resumed"] += 1
        else:
            about = _cut_recording(recording, job, f"{part}-{number}") | {"sha256": entry["sha256"]}
            write_json(job.parts / f"{part}-{number}.json", about)
        entry["recordings"].append(about)
    write_json(job.parts / f"{part}.json", entry)
    return entry


def _cut_recording(recording, job, part) -> dict:
    segments, starts, moments, dropped, notes = filters.cut(recording, job.flags)
    for modality, block in segments.items():
        if job.flags.normalise == "recording":
            mean, sd = moments[modality].mean[:, None], moments[modality].sd()[:, None]
            block = filters.z_score(block, mean, sd)
        elif job.flags.normalise == "segment":
            block = filters.z_score(block, block.mean(2, keepdims=True), block.std(2, keepdims=True))
        with open(job.parts / f"{part}.{modality}", "wb") as file:
            file.write(np.ascontiguousarray(block))
            sync(file)
    return {
        "part": part,
        "subject": recording.subject,
        "trial": recording.trial,
        "video": recording.video,
        "arousal": recording.arousal,
        "valence": recording.valence,
        "simulated": recording.simulated,
        "starts": starts.tolist(),
        "moments": {m: [each.points, each.mean.tolist(), each.squares.tolist()] for m, each in moments.items()},
        "dropped": dropped,
        "notes": notes,
    }


def check_names(recording, where, trials):
    """Raises ValueError for a trial that is there twice, or a name that segments.npy would cut short."""
    name = recording["subject"], recording["trial"]
    if name in trials:
        raise ValueError(
            f"{where}: trial {name[1]} of subject {name[0]} is in {trials[name]} already; take one of the two out, "
            "or (in recordings.csv) call the trials by different names"
        )
    trials[name] = where
    for key in ("subject", "trial", "video"):
        longest = SEGMENT_DTYPE[key].itemsize // 4
        if len(recording[key]) > longest:
            raise ValueError(f"{where}: {key} {recording[key]!r} has over {longest} letters")


@contextmanager
def new_folder(folder: Path, fresh: bool):
    """A folder beside `folder`, and its lock (a file descriptor). It takes the place of `folder` at the end.

    fresh: what an earlier call left is removed first. The folder is gone if anything goes wrong, and left for the next
    call where this one or a worker is killed or interrupted. Raises ValueError where another process writes it.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = folder.with_name(f".{folder.name}.partial")
    temporary.mkdir(exist_ok=True)
    lock = os.open(temporary, os.O_RDONLY)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ValueError(f"{temporary}: another run is writing it; wait for its end") from error
        try:
            for leftover in temporary.iterdir():
                if leftover.is_file():
                    leftover.unlink()
                elif fresh:
                    shutil.rmtree(leftover)
            yield temporary, lock
            replaced = folder.with_name(f".{folder.name}.replaced")
            shutil.rmtree(replaced, ignore_errors=True)
            if folder.exists():
                folder.rename(replaced)  # and not removed before the new one is in its place
            temporary.rename(folder)
            shutil.rmtree(replaced, ignore_errors=True)
        except BrokenProcessPool:
            raise
        except Exception as error:
            shutil.rmtree(temporary, ignore_errors=True)
            if isinstance(error, OSError) and not error.filename:  # a full disk names no file
                error.filename = str(folder)
            raise
    finally:
        os.close(lock)


def open_parts(folder, identity):
    """The folder `parts` below `folder`, empty unless it was begun with the same `identity`."""
    parts = folder / "parts"
    if _read(parts / "identity.json") != json.loads(json.dumps(identity)):
        shutil.rmtree(parts, ignore_errors=True)
    parts.mkdir(exist_ok=True)
    write_json(parts / "identity.json", identity)
    return parts


def _read(path):
    try:
        return json.loads(path.read_text())
    except (FileNotFoundError, ValueError):
        return None
