"""The network against PyTorch's own modules, in float64."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import paper
from model import Encoder, FusionModel, SingleModalityModel, TransformerLayer
from model import masked_tokens, parameter_count, sample_mask


def paper_model(modality="eeg", **heads):
    channels = 10 if modality == "eeg" else 1
    return SingleModalityModel(channels, **{name: value for name, (value, *_) in paper.NETWORK.items()}, **heads)


def close(found, expected):
    return (found - expected).abs().max() <= 1e-10 * max(1.0, expected.abs().max().item())


@pytest.mark.parametrize("hidden, heads, ffn", [(256, 2, 1024), (24, 3, 40), (8, 1, 8)])
def test_layer_equals_torch_encoder_layer_in_output_and_every_gradient(hidden, heads, ffn):
    torch.manual_seed(0)
    theirs = nn.TransformerEncoderLayer(hidden, heads, ffn, dropout=0.0, batch_first=True, dtype=torch.float64)
    for parameter in theirs.parameters():
        nn.init.normal_(parameter, std=0.2)
    ours = TransformerLayer(hidden, heads, ffn, dropout=0.0).double()
    ours.load_state_dict(theirs.state_dict())
    theirs.load_state_dict(ours.state_dict())

    x = torch.randn(3, 65, hidden, dtype=torch.float64)
    a, b = x.clone().requires_grad_(), x.clone().requires_grad_()
    weight = torch.randn_like(x)
    out, expected = ours(a), theirs(b)
    (out * weight).sum().backward()
    (expected * weight).sum().backward()
    assert close(out, expected) and close(a.grad, b.grad)
    gradients = dict(theirs.named_parameters())
    assert len(gradients) == 12
    for name, parameter in ours.named_parameters():
        assert close(parameter.grad, gradients[name].grad), name


def test_dropout_of_a_layer_stands_where_torch_has_it():
    """With everything but one place switched off by zero weights, the variance that dropout adds is that of PyTorch."""
    torch.manual_seed(0)
    theirs = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.5, batch_first=True)
    ours = TransformerLayer(16, 2, 32, dropout=0.5)
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(1, 33, 16).expand(4000, -1, -1)
    found = ours(x, torch.arange(4000)).detach()
    expected = theirs(x).detach()
    assert (found.mean(0) - expected.mean(0)).abs().max() < 0.12
    assert abs(found.var(0).mean() / expected.var(0).mean() - 1) < 0.02


def test_encoder_keeps_the_length_and_sees_113_points():
    torch.manual_seed(0)
    encoder = Encoder(10, [65, 33, 17], [64, 128, 256]).double()
    signals = torch.randn(1, 10, 1280, dtype=torch.float64, requires_grad=True)
    out = encoder(signals)
    assert out.shape == (1, 1280, 256)
    (out[0, 640] * torch.arange(256)).sum().backward()  # the sum alone is constant, after a norm
    size = signals.grad[0].abs().sum(0)
    touched = torch.nonzero(size > 1e-10 * size.max()).flatten()
    assert touched.min() == 640 - 56 and touched.max() == 640 + 56
    assert len(touched) == 113


def test_encoder_equals_its_written_out_form():
    torch.manual_seed(0)
    encoder = Encoder(2, [5, 3], [4, 6]).double()
    for each in (encoder.norm.weight, encoder.output_norm.weight, encoder.output_norm.bias):
        nn.init.normal_(each)
    x = torch.randn(2, 2, 20, dtype=torch.float64)
    first, second = encoder.convolutions
    y = F.conv1d(F.pad(x, (2, 2)), first.weight, first.bias).transpose(1, 2)
    y = F.layer_norm(y, (4,), encoder.norm.weight, encoder.norm.bias).clamp(min=0).transpose(1, 2)
    y = F.conv1d(F.pad(y, (1, 1)), second.weight, second.bias).clamp(min=0).transpose(1, 2)
    assert close(encoder(x), F.layer_norm(y, (6,), encoder.output_norm.weight, encoder.output_norm.bias))
    encoder.output_norm = Encoder(2, [5, 3], [4, 6], output_norm=False).output_norm
    assert close(encoder(x), y)


def test_parameter_counts_of_the_paper():
    # Convolutions 869,440; norms 128 and 512; CLS 256; two Transformer layers of 789,760; head 256-128-C.
    body = 869_440 + 128 + 512 + 256 + 2 * 789_760
    assert parameter_count(paper_model(mvp_hidden=[128])) == body + 257 * 128 + 129 * 10 == 2_484_042
    assert parameter_count(paper_model(classifier_hidden=[64])) == body + 257 * 64 + 65
    assert parameter_count(paper_model("ecg", mvp_hidden=[128])) == body - 9 * 64 * 65 + 257 * 128 + 129
    assert parameter_count(FusionModel(64 + 512, [64, 32], 0.1)) == 577 * 64 + 65 * 32 + 33


def inputs_of(module):
    """The list that each further input of a module joins."""
    received = []
    module.register_forward_pre_hook(lambda _, inputs: received.append(inputs[0]))
    return received


def test_cls_comes_first_and_positions_are_sinusoidal():
    model = SingleModalityModel(1, [3], [8], 1, 1, 8, 0.0, classifier_hidden=[4], points=50)
    place, column = 17, 4
    assert model.positions.shape == (51, 8)
    assert model.positions[place, column].item() == pytest.approx(np.sin(place / 10000 ** (4 / 8)), abs=1e-5)
    assert model.positions[place, column + 1].item() == pytest.approx(np.cos(place / 10000 ** (4 / 8)), abs=1e-5)
    received = inputs_of(model.layers[0])
    model.eval().encode(torch.randn(2, 1, 50))
    assert torch.equal(received[0][:, 0], (model.cls + model.positions[0]).expand(2, 8))


def test_what_the_layers_add_to_stays_in_float32_where_the_convolutions_of_a_gpu_end_in_bfloat16(monkeypatch):
    model = SingleModalityModel(3, [5], [8], 1, 2, 16, 0.0, classifier_hidden=[4], points=50).eval()
    signals, points = torch.randn(2, 3, 50), torch.randn(2, 50, 8, dtype=torch.bfloat16)
    monkeypatch.setattr(model.encoder, "forward", lambda signals: points)
    received = inputs_of(model.layers[0])
    with torch.autocast("cpu", torch.bfloat16):
        model.encode(signals)
    expected = torch.cat([model.cls.expand(2, 1, 8), points.float()], dim=1) + model.positions
    torch.testing.assert_close(received[0], expected, rtol=0, atol=0)


def test_heads_read_the_tokens_the_paper_names():
    torch.manual_seed(0)
    model = SingleModalityModel(3, [3], [8], 1, 2, 8, 0.0, [5], [6, 4], 0.5, points=40).eval()
    signals, mask = torch.randn(2, 3, 40), torch.zeros(2, 40, dtype=torch.bool)
    tokens = model.encode(signals)
    assert tokens.shape == (2, 41, 8)
    hidden = (tokens[:, 1:] @ model.predictor.hidden[0].weight.T + model.predictor.hidden[0].bias).clamp(min=0)
    expected = (hidden @ model.predictor.output.weight.T + model.predictor.output.bias).transpose(1, 2)
    torch.testing.assert_close(model.reconstruct(signals, mask), expected)
    x = tokens[:, 0]
    for layer in model.classifier.hidden:
        x = (x @ layer.weight.T + layer.bias).clamp(min=0)
    torch.testing.assert_close(model.features(signals), x)
    expected = (x @ model.classifier.output.weight.T)[:, 0] + model.classifier.output.bias
    torch.testing.assert_close(model.classify(signals), expected)


@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_the_last_layer_for_some_tokens_gives_the_same_loss_and_gradients(layers, dropout):
    torch.manual_seed(0)
    model = SingleModalityModel(3, [5, 3], [8, 8], layers, 2, 16, 0.0, [5], classifier_hidden=[4], points=70).double()
    for layer in model.layers:
        layer.self_attn.dropout = layer.dropout = dropout
    signals, seed = torch.randn(4, 3, 70, dtype=torch.float64), torch.arange(4 * layers).reshape(layers, 4)
    mask = sample_mask(4, 70, 0.05, 6, torch.Generator().manual_seed(0))
    mask[0], mask[1] = False, True  # the emptiest and the fullest row a batch may have

    def mean_squared_error():
        predicted = model.reconstruct(signals, mask, seed)
        return F.mse_loss(predicted.transpose(1, 2)[mask], signals.transpose(1, 2)[mask])

    pairs = {
        "classifier": (
            lambda: model.classifier(model.encode(signals, seed=seed)[:, 0]).square().sum(),
            lambda: model.classify(signals, seed).square().sum(),
        ),
        "predictor": (mean_squared_error, lambda: model.reconstruction_loss(signals, mask, seed)),
    }
    for head, pair in pairs.items():
        losses, gradients = [], []
        for compute in pair:
            model.zero_grad()
            losses.append(compute())
            losses[-1].backward()
            gradients.append({name: x.grad for name, x in model.named_parameters() if x.grad is not None})
        assert close(losses[1], losses[0])
        assert gradients[0].keys() == gradients[1].keys() and any(name.startswith(head) for name in gradients[0])
        for name, gradient in gradients[0].items():
            assert close(gradients[1][name], gradient), name


def test_masked_tokens_are_the_masked_ones_and_few_others():
    mask = sample_mask(5, 70, 0.02, 6, torch.Generator().manual_seed(3))
    mask[0], mask[1] = False, True
    selection = masked_tokens(mask)
    most, chosen = selection.numbers.shape[1], []
    for sample, masked in enumerate(mask):
        numbers = [number for number in selection.numbers[sample].tolist() if number != -1]
        assert selection.numbers[sample].tolist() == numbers + [-1] * (most - len(numbers))
        assert len(set(numbers)) == len(numbers) in (32, 64, 70) and min(numbers) > 0
        assert len(numbers) < masked.sum() + 32 or masked.sum() == 0 and len(numbers) == 32
        assert {point + 1 for point in masked.nonzero().flatten().tolist()} <= set(numbers)
        chosen += [(sample * 71 + number, sample * most + place) for place, number in enumerate(numbers)]
    assert list(zip(selection.tokens.tolist(), selection.places.tolist())) == chosen
    model, none = paper_model("ecg", mvp_hidden=[128]).eval(), torch.zeros(2, 1280, dtype=torch.bool)
    assert model.reconstruction_loss(torch.randn(2, 1, 1280), none) == 0  # a batch without a masked point


def test_classifier_dropout_is_on_in_training_only_and_follows_each_hidden_layer():
    torch.manual_seed(0)
    model = SingleModalityModel(1, [3], [8], 1, 1, 8, 0.0, None, [50, 50], 0.6, points=20)
    zero_share = (model.train().features(torch.randn(400, 1, 20)) == 0).float().mean().item()
    off_share = (model.eval().features(torch.randn(400, 1, 20)) == 0).float().mean().item()
    assert zero_share == pytest.approx(0.6 + 0.4 * off_share, abs=0.08)


def test_mask_covers_48_percent_in_spans_of_20():
    mask = sample_mask(4000, 1280, 0.0325, 20, torch.Generator().manual_seed(0)).numpy()
    assert mask.shape == (4000, 1280) and mask.dtype == bool
    assert abs(mask.mean() - 0.48) < 0.01
    assert abs(mask[:, 100:].mean() - (1 - (1 - 0.0325) ** 20)) < 0.003
    assert mask[:, 0].mean() == pytest.approx(0.0325, abs=0.01)
    assert mask.sum(1).std() > 30  # the count varies by segment
    edges = np.diff(np.pad(mask, ((0, 0), (1, 1))).astype(int))
    starts, ends = (np.argwhere(edges == sign)[:, 1] for sign in (1, -1))
    assert min((ends - starts)[ends < 1280]) == 20


def test_the_masked_input_is_zero_in_every_channel_and_only_there():
    model = SingleModalityModel(3, [3], [8], 1, 1, 8, 0.0, [5], points=64).eval()
    received = inputs_of(model.encoder)
    signals = torch.randn(2, 3, 64)
    mask = sample_mask(2, 64, 0.05, 10, torch.Generator().manual_seed(0))
    model.reconstruct(signals, mask)
    assert mask.any() and not mask.all()
    assert torch.equal(received[0], signals * ~mask[:, None])


@pytest.mark.parametrize("change", [{"cnn_kernels": [4]}, {"cnn_kernels": [3, 3]}, {"heads": 3}])
def test_numbers_that_do_not_fit_are_refused(change):
    network = {"cnn_kernels": [3], "cnn_channels": [8], "layers": 1, "heads": 1, "ffn": 8, "dropout": 0.0} | change
    with pytest.raises(ValueError, match="--cnn"):
        SingleModalityModel(1, **network)
