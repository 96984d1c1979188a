"""The segment files of a prepared data set: `<modality>.npy` (n, C, L) float32, `segments.npy`, `manifest.json`.

Row i of each array is the same stretch of the same trial. `fingerprints.npy` knows a signal again in another set
(fingerprints.py), and the manifest holds the SHA-256 of every array."""

import io
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from common.files import check_bytes, load_array, read_json, sha256_of_json
from paper import MODALITIES, TARGETS

SEGMENT_DTYPE = np.dtype(
    [
        ("subject", "U16"),
        ("trial", "U32"),  # unique within the subject
        ("video", "U16"),
        ("start", "f8"),  # s from the trial's start
        *((target, "f4") for target in TARGETS),  # rating as recorded, NaN where there is none
    ]
)
MANIFEST_KEYS = {"dataset": str, "simulated": bool, "channels": dict, "rate": int, "points": int, "preprocessing": dict}
MANIFEST_KEYS |= {"sources": list, "files": dict, "subjects": dict, "counts": dict, "dropped": list, "notes": list}
MANIFEST_KEYS |= {"versions": dict}
ANEW = "prepare the data again"
MISSING = "missing; prepare the data with prepare_data.py, or say where they are now"


@dataclass(frozen=True)
class Segments:
    """One prepared data set; the signals stay on disk until they are indexed."""

    folder: Path
    signals: dict[str, np.memmap]  # modality -> (n, C, L) float32
    table: np.ndarray  # (n,) of SEGMENT_DTYPE
    manifest: dict
    fingerprints: np.ndarray  # (n,) of one u8 a modality of the set
    files: dict[str, io.FileIO]  # modality -> the file that was checked, also where another takes its name later
    hidden: np.ndarray = field(default_factory=lambda: np.empty(0, int))  # rows whose signals must not be read


def open_segments(folder, modality: str | None = None, trust: bool = False) -> Segments:
    """Open what prepare_data.py wrote, with `modality` its signals alone.

    trust: take the bytes of the arrays for what the manifest says (--trust-data). Raises FileNotFoundError where a file
    is missing, and ValueError where one is damaged, was changed, or does not fit the others."""
    folder = Path(folder)
    manifest = read_manifest(folder)
    table, fingerprints = _load(folder / "segments.npy"), np.array(_load(folder / "fingerprints.npy"))
    if table.dtype != SEGMENT_DTYPE or table.ndim != 1 or len(table) == 0:
        raise ValueError(
            f"{folder / 'segments.npy'}: expected one row or more of {SEGMENT_DTYPE}, "
            f"found {table.shape} of {table.dtype}; {ANEW}"
        )
    if modality is not None and modality not in manifest["channels"]:
        raise ValueError(
            f"{folder}: holds {' and '.join(manifest['channels'])} but no {modality}; prepare it with --modalities"
        )
    signals, files, names = {}, {}, [modality] if modality else list(manifest["channels"])
    if len(fingerprints) != len(table) or not {*names} <= {*(fingerprints.dtype.names or ())}:
        raise ValueError(f"{folder / 'fingerprints.npy'}: expected {' and '.join(names)} of {len(table)} rows; {ANEW}")
    for name in names:
        path = folder / f"{name}.npy"
        signals[name] = _load(path)
        files[name] = open(path, "rb", buffering=0)
        shape = (len(table), len(manifest["channels"][name]), manifest["points"])
        if signals[name].shape != shape or signals[name].dtype != np.float32:
            raise ValueError(
                f"{path}: expected {shape} of float32 (rows of segments.npy, channels and points of manifest.json), "
                f"found {signals[name].shape} of {signals[name].dtype}; {ANEW}"
            )
    if not trust:
        check_bytes(folder, manifest["files"], ["segments.npy", "fingerprints.npy", *(f"{name}.npy" for name in names)])
    return Segments(folder, signals, table, manifest, fingerprints, files)


def read_manifest(folder) -> dict:
    """`manifest.json` of a prepared folder. Raises FileNotFoundError or ValueError like `open_segments`."""
    path = Path(folder) / "manifest.json"
    if not path.is_file():
        raise FileNotFoundError(f"{path}: {MISSING}")
    manifest = read_json(path, MANIFEST_KEYS, ANEW)
    channels = manifest["channels"]
    if not channels or not all(name in MODALITIES and isinstance(channels[name], list) for name in channels):
        raise ValueError(f"{path}: expected lists of channels for {' and '.join(MODALITIES)}, found {channels}; {ANEW}")
    if not manifest["sources"]:
        raise ValueError(f"{path}: expected the files that it was prepared from, found none; {ANEW}")
    for source in manifest["sources"]:
        # The leak guard goes by these: a source it cannot read must not pass.
        for key, kind in (("file", str), ("sha256", str), ("trials", list)):
            if not isinstance(source, dict) or not isinstance(source.get(key), kind):
                found = f"found {repr(source)[:60]}; {ANEW}"
                raise ValueError(f"{path}: expected {key} as {kind.__name__} in each of the sources, {found}")
    return manifest


def _load(path) -> np.ndarray:
    """The array of a .npy file, mapped, not read."""
    if not path.is_file():
        raise FileNotFoundError(f"{path}: {MISSING}")
    return load_array(path, ANEW, mapped=True)


class SignalRows:
    """Chosen rows of one or more data folders as one array of segments, read from disk batch by batch.

    parts: (data, rows) pairs; modality: one of paper.MODALITIES. Raises ValueError where channels, rates or lengths
    differ, where an array is not in C order, and where rows are among the hidden ones."""

    def __init__(self, parts: list[tuple[Segments, np.ndarray]], modality: str):
        layouts = [layout(data, modality) for data, _ in parts]
        for (data, _), found in zip(parts, layouts):
            if found != layouts[0]:
                raise ValueError(f"{data.folder}: expected {modality} with {layouts[0]}, found {found}")
        for data, rows in parts:
            if np.isin(rows, data.hidden).any():
                raise ValueError(f"{data.folder}: --validation-only hides the test segments, which were asked for")
        for data, _ in parts:
            if not data.signals[modality].flags.c_contiguous:
                path = data.folder / f"{modality}.npy"
                raise ValueError(f"{path}: expected an array in C order, found Fortran order; {ANEW}")
        # Read, not mapped: every page of a mapped file that was looked at would count as memory of this process.
        self.files = [(data.files[modality], data.signals[modality].offset) for data, _ in parts]
        self.part = np.concatenate([np.full(len(rows), number) for number, (_, rows) in enumerate(parts)])
        self.row = np.concatenate([rows for _, rows in parts])
        self.channels, self.points = parts[0][0].signals[modality].shape[1:]

    def __len__(self) -> int:
        return len(self.row)

    def batch(self, places: np.ndarray) -> np.ndarray:
        """(B, C, L) float32 signals at `places` (0 .. len - 1); ValueError where one is not finite or a file short."""
        signals = np.empty((len(places), self.channels, self.points), np.float32)
        for number, place in enumerate(places):
            file, start = self.files[self.part[place]]
            file.seek(start + int(self.row[place]) * signals[number].nbytes)
            if file.readinto(signals[number]) < signals[number].nbytes:
                raise ValueError(f"{file.name}: ends before row {self.row[place]}; prepare the data again with --fresh")
        if not np.isfinite(signals).all():
            place = places[np.flatnonzero(~np.isfinite(signals).all(axis=(1, 2)))[0]]
            path = self.files[self.part[place]][0].name
            raise ValueError(f"{path}: row {self.row[place]} holds NaN or inf; prepare the data again with --fresh")
        return signals


def layout(data: Segments, modality: str) -> dict:
    """What segments must share to be trained on together; ValueError where there are none of `modality`."""
    if modality not in data.signals:
        raise ValueError(f"{data.folder}: expected {modality} signals, found none; prepare the data with --modalities")
    return {"channels": data.manifest["channels"][modality], **{key: data.manifest[key] for key in ("rate", "points")}}


def data_sha256(data: Segments) -> str:
    """One hash of the segments and their signals, of their pre-processing and of the recordings they were cut from."""
    recordings = sorted(source["sha256"] for source in data.manifest["sources"])
    arrays = [sha256 for _, sha256 in sorted(data.manifest["files"].items())]
    return sha256_of_json([*arrays, sha256_of_json(data.manifest["preprocessing"]), *recordings])
