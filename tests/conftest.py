import os
import shutil
import subprocess
import tempfile

# What torch.compile kept for another kind of processor would be taken up here, and computes nonsense.
KEPT = tempfile.TemporaryDirectory(prefix="inductor-", ignore_cleanup_errors=True)
os.environ["TORCHINDUCTOR_CACHE_DIR"] = KEPT.name
os.environ.setdefault("OMP_NUM_THREADS", "1")  # small networks gain nothing from more, and lose much on a busy machine
if "TEST_GPU" not in os.environ:
    os.environ["CUDA_VISIBLE_DEVICES"] = ""  # the same numbers twice are promised on a CPU alone

import pytest  # noqa: E402

from prepared import FINETUNE, FUSE, PRETRAIN, done, write_set  # noqa: E402


@pytest.fixture(scope="session")
def finished(tmp_path_factory):
    """A folder with data/amigos and, of its four folds in runs/paper, fold 1 done up to the fusion of arousal, and
    what fold 2 needs for EEG alone. To be copied, never changed."""
    folder = tmp_path_factory.mktemp("finished")
    write_set(folder / "data" / "amigos")
    for fold, modalities in ((1, ("eeg", "ecg")), (2, ("eeg",))):
        for modality in modalities:
            flags = "--modality", modality, "--fold", fold
            done("pretrain.py", *flags, "--n-folds", 4, *PRETRAIN, cwd=folder)
            done("finetune.py", *flags, "--target", "arousal", *FINETUNE, cwd=folder)
    done("fuse.py", "--target", "arousal", "--fold", 1, *FUSE, cwd=folder)
    return folder


@pytest.fixture
def work(finished, tmp_path):
    """A copy of that folder, to be changed."""
    return shutil.copytree(finished, tmp_path / "work")


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 200 kB, and fill(room), which leaves so many bytes free."""
    disk, size = tmp_path / "disk", 200 * 1024
    disk.mkdir()
    mount = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "none", disk], capture_output=True, text=True)
    if mount.returncode:
        pytest.skip(f"no file system can be mounted here: {mount.stderr.strip()}")

    def fill(room):
        free = os.statvfs(disk)
        (disk / "filler").write_bytes(bytes(free.f_bavail * free.f_frsize - room))

    yield disk, fill
    subprocess.run(["umount", disk], check=True)
