"""The segment files: `eeg.npy` and `ecg.npy` (n, C, L) float32, `segments.npy`, `manifest.json`.

Row i of each array is the same stretch of the same trial. numpy and the standard library are all this needs.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from common.files import sha256_of_file, sha256_of_json, sync
from paper import MODALITIES

SEGMENT_DTYPE = np.dtype(
    [
        ("subject", "U16"),
        ("trial", "U32"),  # unique within the subject
        ("video", "U16"),
        ("start", "f8"),  # s from the trial's start
        ("arousal", "f4"),  # rating as recorded, NaN where there is none
        ("valence", "f4"),
    ]
)
MANIFEST_KEYS = (
    ("dataset", str),
    ("simulated", bool),
    ("channels", dict),
    ("rate", int),
    ("points", int),
    ("preprocessing", dict),
    ("sources", list),
    ("subjects", dict),
    ("counts", dict),
    ("dropped", list),
    ("notes", list),
    ("versions", dict),
)


@dataclass(frozen=True)
class Segments:
    """One prepared data set; the signals stay on disk until they are indexed."""

    folder: Path
    signals: dict[str, np.memmap]  # modality -> (n, C, L) float32
    table: np.ndarray  # (n,) of SEGMENT_DTYPE
    manifest: dict
    segments_sha256: str  # of segments.npy
    preprocessing_sha256: str  # of manifest["preprocessing"] as canonical JSON
    hidden: np.ndarray = field(default_factory=lambda: np.empty(0, int))  # rows whose signals must not be read


class SegmentWriter:
    """Writes a (n, C, L) float32 .npy block by block, n known only at the end."""

    def __init__(self, path, channels: int, points: int):
        self.shape = (0, channels, points)
        self.file = open(path, "wb")
        self._write_header()
        self.header_bytes = self.file.tell()

    def write(self, block):
        """Append `block` (k, C, L)."""
        self.file.write(np.ascontiguousarray(block, dtype=np.float32))
        self.shape = (self.shape[0] + len(block), *self.shape[1:])

    def close(self):
        """Put the final shape into the header, and the bytes onto the disk."""
        with self.file:
            self.file.seek(0)
            self._write_header()
            if self.file.tell() != self.header_bytes:
                raise AssertionError("the header of the .npy file has changed its length")
            sync(self.file)

    def _write_header(self):
        # Numpy leaves room in the header for the first axis to grow.
        header = {"descr": "<f4", "fortran_order": False, "shape": self.shape}
        np.lib.format.write_array_header_1_0(self.file, header)


def open_segments(folder, modality: str | None = None) -> Segments:
    """Open what prepare_data.py wrote; with `modality`, its signals alone.

    Everything is checked but the signals themselves, which are not read. Raises FileNotFoundError where a file is
    missing, and ValueError where one is damaged or does not fit the others.
    """
    folder = Path(folder)
    manifest = read_manifest(folder)
    table = _load(folder / "segments.npy")
    if table.dtype != SEGMENT_DTYPE or table.ndim != 1 or len(table) == 0:
        raise ValueError(
            f"{folder / 'segments.npy'}: expected one row or more of {SEGMENT_DTYPE}, "
            f"found {table.shape} of {table.dtype}; prepare the data again"
        )
    if modality is not None and modality not in manifest["channels"]:
        raise ValueError(
            f"{folder}: holds {' and '.join(manifest['channels'])} but no {modality}; prepare it with --modalities"
        )
    signals = {}
    for name in [modality] if modality else manifest["channels"]:
        path = folder / f"{name}.npy"
        signals[name] = _load(path)
        shape = (len(table), len(manifest["channels"][name]), manifest["points"])
        if signals[name].shape != shape or signals[name].dtype != np.float32:
            raise ValueError(
                f"{path}: expected {shape} of float32 (rows of segments.npy, channels and points of manifest.json), "
                f"found {signals[name].shape} of {signals[name].dtype}; prepare the data again"
            )
    return Segments(
        folder,
        signals,
        table,
        manifest,
        sha256_of_file(folder / "segments.npy"),
        sha256_of_json(manifest["preprocessing"]),
    )


def read_manifest(folder) -> dict:
    """`manifest.json` of a prepared folder. Raises FileNotFoundError or ValueError like `open_segments`."""
    path = Path(folder) / "manifest.json"
    if not path.is_file():
        raise FileNotFoundError(f"{path}: missing; prepare the data with prepare_data.py, or say where they are now")
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: expected JSON, found {error}; prepare the data again") from error
    if not isinstance(manifest, dict):
        raise ValueError(f"{path}: expected an object, found a {type(manifest).__name__}; prepare the data again")
    for key, kind in MANIFEST_KEYS:
        if not isinstance(manifest.get(key), kind):
            found = "nothing" if key not in manifest else repr(manifest[key])[:60]
            raise ValueError(f"{path}: expected {key} as {kind.__name__}, found {found}; prepare the data again")
    channels = manifest["channels"]
    if not channels or not all(name in MODALITIES and isinstance(channels[name], list) for name in channels):
        raise ValueError(
            f"{path}: expected lists of channels for eeg and ecg, found {channels}; prepare the data again"
        )
    for source in manifest["sources"]:
        # The leak guard goes by these: a source it cannot read must not pass.
        for key, kind in (("file", str), ("sha256", str), ("trials", list)):
            if not isinstance(source, dict) or not isinstance(source.get(key), kind):
                raise ValueError(
                    f"{path}: expected {key} as {kind.__name__} in each of the sources, found {repr(source)[:60]}; "
                    "prepare the data again"
                )
    return manifest


def _load(path) -> np.ndarray:
    """The array of a .npy file, mapped, not read."""
    if not path.is_file():
        raise FileNotFoundError(f"{path}: missing; prepare the data with prepare_data.py, or say where they are now")
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError, OverflowError) as error:
        # numpy spreads its reasons over lines
        reason = " ".join(str(error).split())
        raise ValueError(f"{path}: expected a whole .npy file, found: {reason}; prepare the data again") from error
    if not isinstance(array, np.ndarray):
        raise ValueError(f"{path}: expected a .npy file, found an archive; prepare the data again")
    return array
