"""Training against PyTorch's own optimiser, schedule and losses, one step an epoch."""

from argparse import Namespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.linalg import lstsq, toeplitz

from model import SingleModalityModel, sample_mask
from prepared import FINETUNE, NETWORK, PRETRAIN, call, contents, done, labelled, open_run, read_log, write_set
from protocol.segments import SignalRows
from training import checkpoints, loop, machine

EEG = ("finetune.py", *"--modality eeg --fold 1 --target arousal".split(), *FINETUNE)
FOLD = "runs/paper/eeg/fold1/"
SHAPE = {"cnn_kernels": [5, 3], "cnn_channels": [6, 8], "layers": 1, "heads": 2, "ffn": 12, "dropout": 0.0}
STILL = 1e-12  # a learning rate at which the weights stay
NEW = (*"--init random --run runs/new --n-folds 4".split(), *NETWORK)


def fold1(work):
    """EEG (n, 2, 96) and labels (n,) of the segments that fold 1 trains on."""
    rows, labels = labelled(open_run(work), 1, "arousal")
    signals = np.load(work / "data/amigos/eeg.npy")[rows["train"]]
    return torch.from_numpy(signals), torch.from_numpy(labels[rows["train"]]).float()


def test_fine_tuning_starts_from_the_pretrained_weights(work):
    done(*EEG, "--lr", STILL, "--fresh", cwd=work)
    names = "pretrain", "arousal"
    first, later = (torch.load(work / f"{FOLD}{name}.pt", weights_only=True)["model"] for name in names)
    kept = [name for name in later if not name.startswith("classifier.")]
    assert len(kept) > 10
    for name in kept:
        torch.testing.assert_close(later[name], first[name], rtol=0, atol=1e-10)


@pytest.mark.parametrize("decay", ["decoupled", "coupled"])
def test_adam_its_decay_and_the_steps_of_its_rate_are_those_of_torch(work, decay):
    flags = "--freeze --epochs 6 --batch-size 200 --classifier-dropout 0 --lr 0.02 --lr-factor 0.5 --lr-every 2".split()
    flags += f"--decay {decay} --weight-decay 0.3 --beta1 0.7 --beta2 0.8 --precision fp64".split()
    found = []
    for more in (("--lr", 1e-30), ("--fresh",)):
        done(*EEG, *flags, *more, cwd=work)
        found.append(torch.load(work / f"{FOLD}arousal-frozen.pt", weights_only=True)["model"])
    model = SingleModalityModel(2, **SHAPE, classifier_hidden=[6], points=96).double().eval()
    model.load_state_dict(found[0])
    own, options = model.classifier, {"lr": 0.02, "betas": (0.7, 0.8)}
    if decay == "coupled":
        optimizer = torch.optim.Adam(own.parameters(), weight_decay=0.3, **options)
    else:
        layers = own.hidden[0], own.output
        groups = [{"params": [layer.weight for layer in layers], "weight_decay": 0.3}]
        groups += [{"params": [layer.bias for layer in layers], "weight_decay": 0.0}]
        optimizer = torch.optim.AdamW(groups, **options)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 2, 0.5)
    signals, truth = (each.double() for each in fold1(work))
    cls, rates = model.pooled(signals).detach(), []
    for _ in range(6):
        optimizer.zero_grad()
        F.binary_cross_entropy_with_logits(model.classifier(cls).squeeze(-1), truth).backward()
        rates.append(schedule.get_last_lr()[0])
        optimizer.step()
        schedule.step()
    for name, weight in model.state_dict().items():
        torch.testing.assert_close(found[1][name], weight, rtol=1e-12, atol=1e-12)
    log = read_log(work / f"{FOLD}arousal-frozen.jsonl")
    assert [line["lr"] for line in log] == pytest.approx(rates, rel=1e-12)


def test_seed_and_step_choose_what_a_step_draws():
    drawn = {loop.seed_step(seed, step).initial_seed() for seed in (0, 1) for step in (-2, -1, 0, 1)}
    assert len(drawn) == 8
    words = np.random.SeedSequence([0, 1 + 2**32]).generate_state(1, np.uint64)
    assert loop.seed_step(0, 1).initial_seed() == int(words[0] >> 1)


def test_each_epoch_and_seed_has_an_order_of_its_own(work, monkeypatch):
    seen, batch = [], SignalRows.batch

    def spy(signals, places):
        seen.append(tuple(places))
        return batch(signals, places)

    monkeypatch.setattr(SignalRows, "batch", spy)
    orders = []
    for seed in (0, 1):
        seen.clear()
        done(*EEG, *NEW, "--run", f"runs/seed{seed}", "--seed", seed, "--batch-size", 400, cwd=work)
        orders += [each for each in seen if len(each) == max(map(len, seen))][:2]
    assert len(set(orders)) == 4 and len({tuple(sorted(each)) for each in orders}) == 1


@pytest.mark.parametrize("p", [0.0, 0.9])
def test_dropout_of_the_classifier_is_on_in_training(work, p):
    new = *NEW, "--dropout", 0, "--classifier-dropout", p, "--lr", STILL, "--batch-size", 400, "--epochs", 1
    done(*EEG, *new, cwd=work)
    model = SingleModalityModel(2, **SHAPE, classifier_hidden=[6], points=96).eval()
    path = work / "runs/new/eeg/fold1/arousal-random"
    model.load_state_dict(torch.load(path.with_suffix(".pt"), weights_only=True)["model"])
    signals, truth = fold1(work)
    with torch.no_grad():
        plain = F.binary_cross_entropy_with_logits(model.classify(signals), truth).item()
    assert (abs(read_log(path.with_suffix(".jsonl"))[0]["train_loss"] - plain) < 1e-5) == (p == 0)


def test_checkpoints_come_every_so_many_minutes(work, monkeypatch):
    now, saved, save = [0.0], [], checkpoints.save

    def clock():
        now[0] += 60.0  # each look at the clock takes a minute
        return now[0]

    def spy(path, state):
        saved.append((now[0], state["random"]["step"]))
        save(path, state)

    monkeypatch.setattr(loop.time, "monotonic", clock)
    monkeypatch.setattr(checkpoints, "save", spy)
    done(*EEG, *NEW, "--batch-size", 4, "--epochs", 1, "--checkpoint-minutes", 10, cwd=work)
    times = [at for at, step in saved if step]
    assert len(times) > 1 and min(np.diff(times)) >= 600


def test_a_key_pressed_before_training_ends_with_130(work, monkeypatch):
    def press(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(loop.Training, "fit", press)
    finished = call(*EEG, "--fresh", cwd=work)
    assert finished.returncode == 130
    assert finished.stderr == "finetune.py: interrupted; the same command goes on from here\n"


def test_another_number_of_threads_is_said(work):
    path = work / f"{FOLD}arousal.pt"
    state = torch.load(path, weights_only=True)
    state["epoch"], state["flags"]["threads"] = 1, 7
    torch.save(state, path)
    assert "arousal.pt: was trained with --threads 7" in done(*EEG, "--threads", 1, cwd=work)


def test_a_validation_loss_that_is_not_finite_stops_the_training(work):
    before = contents(work)
    finished = call(*EEG, "--batch-size", 1000, "--epochs", 1, "--lr", 1e30, "--fresh", cwd=work)
    assert finished.returncode == 2 and "the validation loss is not finite after epoch 1" in finished.stderr
    assert contents(work) == before


@pytest.mark.parametrize("load, threads, said", [(0.2, 2, ""), (1.2, 1, ""), (1.2, 2, "--threads 1 may be faster")])
def test_a_crowded_machine_is_said(monkeypatch, capsys, load, threads, said):
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    monkeypatch.setattr("os.getloadavg", lambda: (load, 0, 0))
    machine.say_crowded(Namespace(device="cpu", threads=threads))
    assert capsys.readouterr().out == (f"about 1 of 2 cores are free, for 2 threads; {said}\n" if said else "")


def test_losses_of_pretraining_its_baselines_and_its_schedule(work):
    """Of the run's and a further set, in one batch: masked points alone are predicted, and all of them."""
    write_set(work / "data" / "extra", name="extra", seed=3)
    flags = "--modality eeg --fold 1 --n-folds 4 --run runs/new --extra data/extra --dropout 0 --mask-probability 0.02"
    steps = "--batch-size", 400, "--epochs", 6, "--warmup-epochs", 3, "--lr", STILL
    out = done("pretrain.py", *PRETRAIN, *flags.split(), *steps, cwd=work)
    lines = read_log(work / "runs/new/eeg/fold1/pretrain.jsonl")
    rates = np.array([1 / 3, 2 / 3, 1, 1, 2 / 3, 1 / 3]) * STILL
    assert [line["lr"] for line in lines] == pytest.approx(rates, abs=0, rel=1e-9)

    model = SingleModalityModel(2, **SHAPE, mvp_hidden=[8], points=96)
    model.load_state_dict(torch.load(work / "runs/new/eeg/fold1/pretrain.pt", weights_only=True)["model"])
    rows = open_run(work).split(1)
    amigos, extra = (np.load(work / "data" / name / "eeg.npy") for name in ("amigos", "extra"))
    train, validation = np.concatenate([amigos[rows["pretrain"]], extra]), amigos[rows["validation"]]
    order = np.random.default_rng([0, 0]).permutation(len(train))
    for signals, step, key in ((train[order], 0, "train_loss"), (validation, -1, "validation_loss")):
        mask = sample_mask(len(signals), 96, 0.02, 20, loop.seed_step(0, step))
        signals = torch.from_numpy(signals)
        with torch.no_grad():
            predicted = model.reconstruct(signals, mask)
        every = mask[:, None].expand_as(signals)
        assert lines[0][key] == pytest.approx(F.mse_loss(predicted[every], signals[every]).item(), rel=1e-5)

    found = lines[-1]["to_beat"]
    assert "{zero:.4f} by zero, {line:.4f} by a straight line across each span, {linear:.4f}".format(**found) in out
    assert not mask.all(dim=1).any()
    assert found["zero"] == pytest.approx(signals[every].square().mean().item(), rel=1e-6)
    at, by_line, linear = np.arange(96), [], []
    by_lag = [
        np.mean([np.correlate(one[c], one[c], "full")[95:] for one in train.astype(float)], axis=0) for c in (0, 1)
    ]
    covariance = [toeplitz(each + 1e-6 * each[0] * (at == 0)) for each in by_lag]
    for segment, hidden in zip(signals.numpy(), mask.numpy()):
        for c, own in zip(segment, covariance):
            by_line.append(np.interp(at[hidden], at[~hidden], c[~hidden]) - c[hidden])
            weights = lstsq(own[np.ix_(~hidden, ~hidden)], own[np.ix_(~hidden, hidden)])[0]
            linear.append(c[~hidden] @ weights - c[hidden])
    for name, errors in (("line", by_line), ("linear", linear)):
        assert found[name] == pytest.approx(np.square(np.concatenate(errors)).mean(), rel=1e-5), name


def test_bf16_is_close_to_fp32_and_not_the_same(work):
    losses = []
    for precision in ("fp32", "bf16"):
        done(*EEG, *NEW, "--fresh", "--precision", precision, cwd=work)
        losses.append(read_log(work / "runs/new/eeg/fold1/arousal-random.jsonl")[0]["validation_loss"])
    assert losses[0] != losses[1] and losses[0] == pytest.approx(losses[1], rel=0.02)
