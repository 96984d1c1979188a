"""The signals of chosen segments, read from disk batch by batch, so that memory does not grow with the data."""

import numpy as np
import torch

from protocol.segments import Segments


class SignalRows:
    """Chosen rows of one or more data folders as one array of segments, read from disk batch by batch.

    parts: (data, rows) pairs; modality: `eeg` or `ecg`. Raises ValueError where channels, rates or lengths differ,
    where an array is not in C order, and where rows are among the hidden ones.
    """

    def __init__(self, parts: list[tuple[Segments, np.ndarray]], modality: str):
        layouts = [layout(data, modality) for data, _ in parts]
        for (data, _), found in zip(parts, layouts):
            if found != layouts[0]:
                raise ValueError(f"{data.folder}: expected {modality} with {layouts[0]}, found {found}")
        for data, rows in parts:
            if np.isin(rows, data.hidden).any():
                raise ValueError(f"{data.folder}: --validation-only hides the test segments, which were asked for")
        arrays = [(data.folder / f"{modality}.npy", data.signals[modality]) for data, _ in parts]
        for path, array in arrays:
            if not array.flags.c_contiguous:
                raise ValueError(f"{path}: expected an array in C order, found Fortran order; prepare the data again")
        # Read, not mapped: every page of a mapped file that was looked at would count as memory of this process.
        self.files = [(path, open(path, "rb", buffering=0), array.offset) for path, array in arrays]
        self.part = np.concatenate([np.full(len(rows), number) for number, (_, rows) in enumerate(parts)])
        self.row = np.concatenate([rows for _, rows in parts])
        self.channels, self.points = arrays[0][1].shape[1:]

    def __len__(self) -> int:
        return len(self.row)

    def batch(self, places: np.ndarray, device: str, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        """(B, C, L) signals at `places` (0 .. len - 1) on `device`; ValueError where one is not finite, or a file too
        short."""
        signals = np.empty((len(places), self.channels, self.points), np.float32)
        for number, place in enumerate(places):
            path, file, start = self.files[self.part[place]]
            file.seek(start + int(self.row[place]) * signals[number].nbytes)
            if file.readinto(signals[number]) < signals[number].nbytes:
                raise ValueError(f"{path}: ends before row {self.row[place]}; prepare the data again with --fresh")
        if not np.isfinite(signals).all():
            place = places[np.flatnonzero(~np.isfinite(signals).all(axis=(1, 2)))[0]]
            path = self.files[self.part[place]][0]
            raise ValueError(f"{path}: row {self.row[place]} holds NaN or inf; prepare the data again with --fresh")
        return torch.from_numpy(signals).to(device, dtype, non_blocking=True)


def layout(data: Segments, modality: str) -> dict:
    """What segments must share to be trained on together; ValueError where there are none of `modality`."""
    if modality not in data.signals:
        raise ValueError(f"{data.folder}: expected {modality} signals, found none; prepare the data with --modalities")
    return {"channels": data.manifest["channels"][modality], **{key: data.manifest[key] for key in ("rate", "points")}}
