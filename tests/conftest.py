import os
import shutil
import tempfile

# What torch.compile kept for another kind of processor would be taken up here, and computes nonsense.
os.environ["TORCHINDUCTOR_CACHE_DIR"] = tempfile.mkdtemp(prefix="inductor-")
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


def pytest_unconfigure():
    shutil.rmtree(os.environ["TORCHINDUCTOR_CACHE_DIR"], ignore_errors=True)
