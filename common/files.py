"""Files: known by their bytes, read with care, and written whole or not at all."""

import hashlib
import json
import os
from pathlib import Path

import numpy as np


def sha256_of_file(path) -> str:
    """In hexadecimal, read in pieces."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_of_json(value) -> str:
    """The same for equal values, whatever the order of their keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def load_array(path: Path, advice: str) -> np.ndarray:
    """The array of a small .npy file; ValueError, ending in `advice`, where there is none."""
    try:
        with open(path, "rb") as file:
            return np.lib.format.read_array(file, allow_pickle=False)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ValueError(f"{path}: expected a whole .npy file, found: {reason}; {advice}")


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
