"""The watch over a pre-training, its masks in seconds, and what the classifier of a frozen encoder reads."""

import argparse

import numpy as np
import pytest
import torch

from model import SingleModalityModel
from prepared import PRETRAIN, done, labelled, open_run, read_log, refusal
from pretrain import masking
from protocol.segments import SignalRows
from training.watch import GROUPS, OUTPUTS, Watch

SHAPE = {"cnn_kernels": [5, 3], "cnn_channels": [6, 8], "layers": 2, "heads": 2, "ffn": 12, "dropout": 0.1}
EEG = "--modality eeg --fold 1".split()


def test_the_watch_sees_the_sizes_of_weights_and_how_outputs_differ(work):
    torch.manual_seed(0)
    model = SingleModalityModel(2, **SHAPE, mvp_hidden=[8], points=96)
    data = open_run(work).data
    signals, places = SignalRows([(data, np.arange(len(data.table)))], "eeg"), np.arange(5, 40)
    found = Watch(model, signals, places, argparse.Namespace(device="cpu", precision="fp32")).look()
    weights = {name: value.numpy() for name, value in model.state_dict().items()}

    def of_layers(name):
        return np.concatenate([weights[f"layers.{n}.{name}.weight"].ravel() for n in (0, 1)])

    inward = [weights[f"layers.{n}.self_attn.in_proj_weight"].reshape(3, 8, 8) for n in (0, 1)]
    expected = {
        **{letter: np.concatenate([each[n] for each in inward]) for n, letter in enumerate("qkv")},
        "out": of_layers("self_attn.out_proj"),
        "ffn": np.concatenate([of_layers("linear1"), of_layers("linear2")]),
        "cnn": np.concatenate([weights[f"encoder.convolutions.{n}.weight"].ravel() for n in (0, 1)]),
        "cls": weights["cls"],
    }
    assert list(found) == [*"qkv", *GROUPS, *OUTPUTS] and set(expected) | set(OUTPUTS) == set(found)
    for name, values in expected.items():
        assert found[name] == pytest.approx(np.sqrt(np.mean(np.square(values))), rel=1e-6), name
    with torch.no_grad():
        tokens = model.eval().encode(torch.from_numpy(np.load(work / "data/amigos/eeg.npy")[5:40])).numpy()
    for name, output in zip(OUTPUTS, (tokens[:, 0], tokens[:, 1:].mean(axis=1))):
        assert found[name] == pytest.approx(np.sqrt(np.mean(output.var(axis=0))), rel=1e-4), name


@pytest.mark.parametrize("decay", ["coupled", "decoupled"])
def test_the_watch_speaks_within_two_epochs_of_the_decay_that_erases(work, decay):
    flags = "--run runs/watched --n-folds 4 --warmup-epochs 0 --epochs 2 --batch-size 1 --lr 0.01".split()
    said = done("pretrain.py", *EEG, *PRETRAIN, *flags, "--decay", decay, cwd=work)
    notes = [line for line in said.splitlines() if "below a tenth of the start" in line]
    assert bool(notes) == (decay == "coupled")
    start = "note: runs/watched/eeg/fold1/pretrain.pt: epoch "
    assert all(note.startswith(start) and "--decay decoupled" in note for note in notes[:1])
    seen = read_log(work / "runs/watched/eeg/fold1/pretrain.jsonl")
    assert len(seen) == 2 and all(set(line["watch"]) == {*"qkv", *GROUPS, *OUTPUTS} for line in seen)


@pytest.mark.parametrize("rate, span", [(128, 20), (64, 10), (256, 40)])
def test_masks_hide_the_same_time_at_every_rate(rate, span):
    args, points = argparse.Namespace(mask_probability=0.0325, mask_span=0.15625), 10 * rate
    masks = masking(args, rate, points)(2000, torch.Generator().manual_seed(0)).numpy()
    # A point is masked where a span started within the last 20 / 128 s.
    assert masks[:, span:].mean() == pytest.approx(1 - (1 - 0.0325) ** 20, abs=0.004)
    edges = np.diff(np.pad(masks, ((0, 0), (1, 1))).astype(int))
    starts, ends = (np.argwhere(edges == sign)[:, 1] for sign in (1, -1))
    assert min((ends - starts)[ends < points]) == span


def test_a_span_longer_than_a_segment_is_refused():
    with pytest.raises(ValueError, match="--mask-span 2: expected seconds, at most the 1 of a segment"):
        masking(argparse.Namespace(mask_probability=0.1, mask_span=2), 64, 64)


def test_a_frozen_encoder_is_read_standardised_by_its_training_rows(work):
    flags = *EEG, *"--target arousal --freeze --classifier-hidden 6 --epochs 1 --pool tokens".split()
    done("finetune.py", *flags, cwd=work)
    state = torch.load(work / "runs/paper/eeg/fold1/arousal-frozen.pt", weights_only=True)["model"]
    shape = {**SHAPE, "layers": 1}
    model = SingleModalityModel(2, **shape, classifier_hidden=[6], pool="tokens", points=96).eval()
    model.load_state_dict(state)
    rows = labelled(open_run(work), 1, "arousal")[0]["train"]
    signals = torch.from_numpy(np.load(work / "data/amigos/eeg.npy")[rows])
    with torch.no_grad():
        tokens = model.encode(signals)[:, 1:].numpy()
        pooled = model.pooled(signals).numpy()
        hidden = model.classifier.features(torch.from_numpy(pooled)).numpy()
    features = np.concatenate([tokens.mean(axis=1), tokens.std(axis=1)], axis=1)
    np.testing.assert_allclose(pooled, features, rtol=1e-4, atol=1e-6)
    standardised = (features - features.mean(axis=0)) / features.std(axis=0)
    layer = model.classifier.hidden[0]
    expected = np.maximum(standardised @ layer.weight.detach().numpy().T + layer.bias.detach().numpy(), 0)
    np.testing.assert_allclose(hidden, expected, rtol=1e-3, atol=1e-3)


def test_a_feature_that_is_constant_becomes_zero():
    model = SingleModalityModel(2, **SHAPE, classifier_hidden=[6], points=96).eval()
    x = torch.randn(30, 8)
    x[:, 3] = 1e3
    model.classifier.standardise(x)
    assert torch.equal(((x - model.classifier.mean) / model.classifier.scale)[:, 3], torch.zeros(30))


@pytest.mark.parametrize("key", ["start", "low"])
def test_a_checkpoint_whose_watch_is_damaged_ends_in_one_line(work, key):
    path = work / "runs/paper/eeg/fold1/pretrain.pt"
    state = torch.load(path, weights_only=True)
    state["epoch"], state["watch"][key] = 1, {}
    torch.save(state, path)
    says = ["pretrain.pt: expected what the watch kept of q"]
    refusal("pretrain.py", *EEG, *PRETRAIN, cwd=work, says=says)


def test_a_network_of_hyperparameters_that_is_not_the_pretrained_one_is_refused(work):
    (work / "best.json").write_text('{"hyperparameters": {"encoder_norm": "none"}, "stage": "finetune", "fold": 1}')
    flags = *EEG, *"--target arousal --fresh --hyperparameters best.json".split()
    says = ["expected a network with encoder_norm none, found output"]
    refusal("finetune.py", *flags, cwd=work, says=says)
