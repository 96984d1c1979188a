"""Files: known by their bytes, read with care, and written whole or not at all."""

import fcntl
import hashlib
import json
import os
import platform
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np


def sha256_of_file(path) -> str:
    """In hexadecimal, read in pieces."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_of_json(value) -> str:
    """The same for equal values, whatever the order of their keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def load_array(path: Path, advice: str, mapped: bool = False) -> np.ndarray:
    """The array of a .npy file, read or `mapped`; ValueError, ending in `advice`, where there is none."""
    try:
        if mapped:
            return np.lib.format.open_memmap(path, "r")
        with open(path, "rb") as file:
            return np.lib.format.read_array(file, allow_pickle=False)
    except (OSError, ValueError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())  # numpy spreads its own over lines
        raise ValueError(f"{path}: expected a whole .npy file, found: {reason}; {advice}")


def read_json(path: Path, kinds: dict[str, type], advice: str) -> dict:
    """The object in a JSON file; ValueError, ending in `advice`, where there is none, or a value of `kinds` is missing
    or of another kind."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: expected JSON, found {error}; {advice}") from error
    for key, kind in kinds.items():
        found = content.get(key) if isinstance(content, dict) else None
        if type(found) is not kind:
            raise ValueError(f"{path}: expected {key} as {kind.__name__}, found {repr(found)[:60]}; {advice}")
    return content


def sync(file) -> None:
    """Everything written to `file` so far is on the disk when this returns."""
    file.flush()
    os.fsync(file.fileno())


def write_atomically(path: Path, write) -> None:
    """Call `write(file)` on a temporary file, flush it to disk, and rename it to `path`; OSError, with nothing changed,
    where that cannot be done."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            write(file)
            sync(file)
        os.replace(temporary, path)
    except OSError as error:
        reason = error.strerror or error  # numpy's own has no strerror
        raise OSError(error.errno, f"could not be written ({reason}); nothing there was changed", str(path))
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, value) -> None:
    """Write `value` as JSON for people to read, like `write_atomically`."""
    write_atomically(path, lambda file: file.write((json.dumps(value, indent=1) + "\n").encode()))


def check_bytes(folder: Path, expected: dict[str, str], names: list[str]) -> None:
    """ValueError where a file of a prepared set has not the SHA-256 that is `expected`.

    A file that was found right is not read again while its size and times stay the same: `.checked.json` remembers
    them, where the folder can be written to."""
    remembered, found = folder / ".checked.json", {}
    try:
        known = dict(json.loads(remembered.read_text()))
    except (OSError, ValueError, TypeError):
        known = {}
    for name in names:
        path = folder / name
        status = path.stat()
        found[name] = [expected.get(name), status.st_size, status.st_mtime_ns, status.st_ctime_ns]
        if known.get(name) == found[name]:
            continue
        if status.st_size > 1e9:
            print(f"checking {path}, {status.st_size / 1e9:.1f} GB, once (--trust-data leaves this out)", flush=True)
        if sha256_of_file(path) != expected.get(name):
            raise ValueError(
                f"{path}: not the file that prepare_data.py wrote; copy it again, or prepare the data again"
            )
    if any(known.get(name) != entry for name, entry in found.items()):
        with suppress(OSError):
            write_json(remembered, {**known, **found})


AT_WORK = "is at work on it"


@contextmanager
def only_writer(path: Path, wait: bool = False):
    """Be the only process that writes `path` and what belongs to it, by a lock in .<stem>.lock beside it.

    Where there is another one, wait for its end, or raise ValueError, which names it. The lock ends with its process,
    however that ends; it goes at the end, and so does its folder where nothing else came into it."""
    lock = path.with_name(f".{path.stem}.lock")
    with _locked(path, lock, wait) as file:
        try:
            file.truncate(0)
            with suppress(OSError):  # on a full disk the lock has no name, and is a lock
                file.write(f"process {os.getpid()} on {platform.node()}".encode())
            yield
        finally:
            lock.unlink(missing_ok=True)
            with suppress(OSError):  # it holds something
                os.removedirs(path.parent)


def _locked(path: Path, lock: Path, wait: bool):
    """The file of the lock, open and locked; ValueError or OSError like `only_writer`."""
    while True:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            file = open(lock, "ab+", buffering=0)
        except FileNotFoundError:  # another process has just removed the folder, empty as it was
            continue
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError as error:
            file.seek(0)
            holder = file.read().decode(errors="replace") or "another process"
            raise ValueError(f"{path}: {holder} {AT_WORK}; wait for its end, or use another --run") from error
        except OSError as error:  # some network disks know no locks
            raise OSError(error.errno, f"cannot be locked ({error.strerror}); use a --run on another disk", str(path))
        # Whoever had it may have removed it meanwhile, and then it keeps nobody out.
        with suppress(FileNotFoundError):
            if os.path.samestat(os.stat(lock), os.fstat(file.fileno())):
                return file
        file.close()
