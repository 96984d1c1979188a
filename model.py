"""This file holds the whole network of the paper.

Shapes are written with one set of letters, here and in kernels/:

    B  segments of a batch             D  hidden size, the last width of the CNN
    C  channels of the signals         H  attention heads, each with E = D / H features
    L  points of a segment (1280)      T  selected tokens of a whole batch
    N  tokens of a segment, L + 1:     M  selected tokens of that segment of the batch
       CLS and one for each point         which has the most

    signals (B, C, L) -> Encoder -> (B, L, D) -> CLS, positions -> (B, N, D) -> TransformerLayer x 2 -> (B, N, D)
    tokens 1 .. L -> predictor  -> (B, C, L)  masked value prediction (paper 3.2.1, figure 1 A)
    token 0       -> classifier -> (B,)       arousal or valence      (paper 3.2.2, figure 1 B; or `pool` "tokens")
    hidden layers of the EEG and the ECG classifier -> FusionModel -> (B,)  (paper 3.4, figure 2)"""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import paper
from kernels.attention import attention
from kernels.conv1d import conv1d
from kernels.dropout import dropout


class Selection(NamedTuple):
    """A selection names the T tokens of a batch that the last layer computes, ordered by segment: those that the heads
    read. Where a tensor needs one number of tokens for all segments, it has M places for each, the last ones unused."""

    tokens: Tensor  # (T,) int64: the index of each selected token among the B N tokens of the batch
    places: Tensor  # (T,) int64: its index among the B M places
    numbers: Tensor  # (B, M) int64: its number within its segment, from 0 to N - 1; -1 at unused places


class Encoder(nn.Module):
    """The encoder is a 1D-CNN of stride 1, each convolution with a ReLU (paper 4.3): (B, C, L) -> (B, L, D). Assumed:
    zero padding, and a layer norm over the channels after the first convolution and, with `output_norm`, at the end, so
    that the points and the positions that are added to them are of one size."""

    def __init__(self, channels: int, kernels: list[int], widths: list[int], output_norm: bool = True):
        super().__init__()
        sizes = zip([channels, *widths], widths, kernels)
        self.convolutions = nn.ModuleList(nn.Conv1d(i, o, k, padding=k // 2) for i, o, k in sizes)
        self.norm = nn.LayerNorm(widths[0])
        self.output_norm = nn.LayerNorm(widths[-1]) if output_norm else nn.Identity()

    def forward(self, signals: Tensor) -> Tensor:
        first, *others = self.convolutions
        x = self.norm(conv1d(signals.transpose(1, 2), first.weight, first.bias)).relu()  # (B, L, 64)
        for convolution in others:
            x = conv1d(x, convolution.weight, convolution.bias).relu()  # (B, L, 128), (B, L, D)
        return self.output_norm(x)


class SelfAttention(nn.Module):
    """This is multi-head self-attention, with the parameters of `torch.nn.MultiheadAttention`."""

    def __init__(self, hidden: int, heads: int, dropout: float):
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.in_proj_weight = nn.Parameter(nn.init.xavier_uniform_(torch.empty(3 * hidden, hidden)))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * hidden))
        self.out_proj = nn.Linear(hidden, hidden)
        nn.init.zeros_(self.out_proj.bias)

    def forward(self, x: Tensor, seed: Tensor | None, selection: Selection | None = None) -> Tensor:
        """Let each token of x (B, N, D) take from all tokens of its segment: (B, N, D), or (T, D) for a selection; seed
        (B,) int64 draws the dropout of the attention weights."""
        hidden = x.shape[-1]
        if selection is None:
            numbers = None
            q, packed = F.linear(x, self.in_proj_weight, self.in_proj_bias).split((hidden, 2 * hidden), dim=-1)
        else:  # queries of the selected tokens alone (B, M, D), keys and values of all tokens (B, N, 2 D)
            numbers = selection.numbers
            q = F.linear(take(x, selection.tokens), self.in_proj_weight[:hidden], self.in_proj_bias[:hidden])
            q = q.new_zeros(numbers.numel(), hidden).index_copy(0, selection.places, q).view(*numbers.shape, hidden)
            packed = F.linear(x, self.in_proj_weight[hidden:], self.in_proj_bias[hidden:])
        q = q.unflatten(-1, (self.heads, -1)).transpose(1, 2)  # (B, H, N or M, E)
        k, v = packed.unflatten(-1, (2, self.heads, -1)).permute(2, 0, 3, 1, 4)  # (B, H, N, E) each
        p = self.dropout if self.training else 0.0
        mixed = attention(q, k, v, dropout_p=p, seed=seed, rows=numbers).transpose(1, 2).flatten(2)
        return self.out_proj(mixed if selection is None else take(mixed, selection.places))


class TransformerLayer(nn.Module):
    """This is a post-norm Transformer layer. Its state loads from and into
    `torch.nn.TransformerEncoderLayer(..., batch_first=True)` one to one."""

    def __init__(self, hidden: int, heads: int, ffn: int, dropout: float):
        super().__init__()
        self.self_attn = SelfAttention(hidden, heads, dropout)
        self.linear1, self.linear2 = nn.Linear(hidden, ffn), nn.Linear(ffn, hidden)
        self.norm1, self.norm2 = nn.LayerNorm(hidden), nn.LayerNorm(hidden)
        self.dropout = dropout

    def forward(self, x: Tensor, seed: Tensor | None = None, selection: Selection | None = None) -> Tensor:
        """Compute all tokens, (B, N, D) -> (B, N, D), or a selection of them, (B, N, D) -> (T, D): the same numbers for
        a fraction of the work. seed (B,) int64 draws the dropout; it is needed only where dropout is on."""
        mixed = self.self_attn(x, seed, selection)
        x = self.norm1((x if selection is None else take(x, selection.tokens)) + self.drop(mixed, 1, seed, selection))
        widened = self.drop(self.linear1(x), 2, seed, selection, relu=True)  # (B, N, ffn) or (T, ffn)
        return self.norm2(x + self.drop(self.linear2(widened), 3, seed, selection))

    def drop(self, x: Tensor, place: int, seed: Tensor | None, selection: Selection | None, relu=False) -> Tensor:
        """Apply dropout to x, or with `relu` to its ReLU; place (1, 2 or 3) tells the dropouts of the layer apart. On
        the CPU, where PyTorch's is slow, the mask comes from the hashes of kernels/attention.py."""
        if x.device.type != "cpu" or not self.training or self.dropout == 0.0:
            return F.dropout(x.relu() if relu else x, self.dropout, self.training)
        # The seeds of the places and of the attention are 2^61 apart, so that their masks differ.
        return dropout(x, self.dropout, seed - (place << 61), None if selection is None else selection.numbers, relu)


class FCN(nn.Module):
    """This is a fully-connected network: hidden layers with ReLU, each followed by dropout, and a linear output."""

    def __init__(self, inputs: int, hidden: list[int], outputs: int, dropout: float = 0.0):
        super().__init__()
        self.hidden = nn.ModuleList(nn.Linear(i, o) for i, o in zip([inputs, *hidden], hidden))
        self.output = nn.Linear(hidden[-1], outputs)
        self.dropout = nn.Dropout(dropout)

    def features(self, x: Tensor) -> Tensor:
        """Return the last hidden layer, after ReLU and dropout: (..., inputs) -> (..., hidden[-1])."""
        for layer in self.hidden:
            x = self.dropout(layer(x).relu())
        return x

    def forward(self, x: Tensor) -> Tensor:
        """Return the output: (..., inputs) -> (..., outputs)."""
        return self.output(self.features(x))


class Classifier(FCN):
    """This is the FCN that ends in one logit, over features that may be standardised first."""

    def __init__(self, inputs: int, hidden: list[int], dropout: float):
        super().__init__(inputs, hidden, 1, dropout)
        self.register_buffer("mean", torch.zeros(inputs))
        self.register_buffer("scale", torch.ones(inputs))

    def standardise(self, x: Tensor) -> None:
        """From now on, take each feature by its mean and SD in x (n, inputs); one that is constant there becomes 0."""
        scale, self.mean = torch.std_mean(x, dim=0, correction=0)
        self.scale = torch.where(scale > 1e-6 * self.mean.abs(), scale, torch.inf)

    def features(self, x: Tensor) -> Tensor:
        """Return the last hidden layer, after ReLU and dropout: (..., inputs) -> (..., hidden[-1])."""
        return super().features((x - self.mean) / self.scale)


class SingleModalityModel(nn.Module):
    """This is the network for one modality (paper 3.2, 3.3); it has a predictor, a classifier, or both as heads.

    channels: C, 10 for EEG and 1 for ECG; points: L; cnn_channels: the widths of the CNN, of which the last is D;
    mvp_hidden and classifier_hidden: the widths of the hidden layers of the predictor and of the classifier, None for
    no such head; encoder_norm, pool: words of paper.CHOICES. Raises ValueError where the numbers do not fit together.
    """

    def __init__(
        self,
        channels: int,
        cnn_kernels: list[int],
        cnn_channels: list[int],
        layers: int,
        heads: int,
        ffn: int,
        dropout: float,
        mvp_hidden: list[int] | None = None,
        classifier_hidden: list[int] | None = None,
        classifier_dropout: float = 0.0,
        encoder_norm: str = "output",
        pool: str = "cls",
        points: int = paper.POINTS,
    ):
        super().__init__()
        hidden, self.pool = cnn_channels[-1], pool
        if len(cnn_kernels) != len(cnn_channels) or any(kernel % 2 == 0 for kernel in cnn_kernels):
            raise ValueError(
                f"--cnn-kernels {cnn_kernels}: expected one odd size for each of --cnn-channels {cnn_channels}; "
                "an even one would change the length"
            )
        if hidden % (2 * heads):
            raise ValueError(f"--cnn-channels: expected a last number divisible by 2 x --heads {heads}, found {hidden}")
        self.encoder = Encoder(channels, cnn_kernels, cnn_channels, encoder_norm == "output")
        self.cls = nn.Parameter(torch.randn(hidden) * 0.02)  # assumed: learned
        # Sines in even and cosines in odd columns, of wavelengths 2 pi to 20000 pi (assumed).
        rate = torch.exp(torch.arange(0, hidden, 2) * (-math.log(10000.0) / hidden))
        angle = torch.arange(points + 1)[:, None] * rate  # (N, D / 2)
        positions = torch.stack([angle.sin(), angle.cos()], dim=-1).flatten(1)  # (N, D)
        self.register_buffer("positions", positions, persistent=False)
        self.layers = nn.ModuleList(TransformerLayer(hidden, heads, ffn, dropout) for _ in range(layers))
        if mvp_hidden:
            self.predictor = FCN(hidden, mvp_hidden, channels)
        if classifier_hidden:
            inputs = hidden if pool == "cls" else 2 * hidden
            self.classifier = Classifier(inputs, classifier_hidden, classifier_dropout)

    def encode(
        self,
        signals: Tensor,
        mask: Tensor | None = None,
        seed: Tensor | None = None,
        selection: Selection | None = None,
    ) -> Tensor:
        """Return the output of the last layer: (B, C, L) -> (B, N, D), or (T, D) for a selection of the tokens.

        mask (B, L) bool: the points of the signals that are set to 0, in every channel. seed (layers, B) int64, from 0
        to 2^62 - 1: the seeds of the dropout in the layers; by default they come from PyTorch's generator."""
        if mask is not None:
            signals = signals.masked_fill(mask[:, None], 0.0)
        points = self.encoder(signals)
        # The sum is float32 also where autocast on a GPU leaves the points in bfloat16: the first layer adds to it.
        x = torch.cat([self.cls.expand(len(points), 1, -1), points], dim=1) + self.positions
        if seed is None and self.training:
            seed = torch.randint(2**62, (len(self.layers), len(x)), device=x.device)
        for number, layer in enumerate(self.layers):
            last = number == len(self.layers) - 1
            x = layer(x, None if seed is None else seed[number], selection if last else None)
        return x

    def reconstruct(self, signals: Tensor, mask: Tensor, seed: Tensor | None = None) -> Tensor:
        """Predict all values of signals (B, C, L) whose points in mask (B, L) are hidden: (B, C, L) (figure 1 A)."""
        return self.predictor(self.encode(signals, mask, seed)[:, 1:]).transpose(1, 2)

    def reconstruction_loss(
        self, signals: Tensor, mask: Tensor, seed: Tensor | None = None, count: Tensor | None = None
    ) -> Tensor:
        """Return the mean squared error of `reconstruct` over the masked points and all channels (assumed), a scalar.

        mask (B, L) bool may stay on the CPU: counting its points there does not wait for a GPU. count: by how many
        masked points the sum is divided; another number than that of `mask` where these are a share of a batch."""
        selection = masked_tokens(mask)
        points = selection.tokens - selection.tokens // (mask.shape[1] + 1) - 1  # (T,) indices among the B L points
        masked = mask.flatten()[points].nonzero().squeeze(1)  # indices among the T tokens
        tensors = (*selection, points, masked, mask)
        *selection, points, masked, mask = (x.to(signals.device, non_blocking=True) for x in tensors)
        predicted = self.predictor(self.encode(signals, mask, seed, Selection(*selection)))  # (T, C)
        error = (predicted.to(signals.dtype) - take(signals.transpose(1, 2), points)).square().mean(dim=1)
        count = torch.as_tensor(len(masked) if count is None else count)
        return error[masked].sum() / count.clamp(min=1)  # a short batch may have no masked point

    def pooled(self, signals: Tensor, seed: Tensor | None = None) -> Tensor:
        """Return what the classifier reads of the last layer: (B, C, L) -> (B, D), its CLS (paper 3.2); or with `pool`
        "tokens" (B, 2 D), the mean and the SD over its other tokens (assumed)."""
        if self.pool == "tokens":
            spread, mean = torch.std_mean(self.encode(signals, seed=seed)[:, 1:], dim=1, correction=0)
            return torch.cat([mean, spread], dim=1)
        batch = torch.arange(len(signals), device=signals.device)
        cls = Selection(batch * self.positions.shape[0], batch, torch.zeros_like(batch)[:, None])
        return self.encode(signals, seed=seed, selection=cls)

    def features(self, signals: Tensor, seed: Tensor | None = None) -> Tensor:
        """Return the classifier's last hidden layer, the input of late fusion (paper 3.4): (B, C, L) -> (B, width)."""
        return self.classifier.features(self.pooled(signals, seed))

    def classify(self, signals: Tensor, seed: Tensor | None = None) -> Tensor:
        """Return the logit of high arousal or high valence of each segment: (B, C, L) -> (B,) (figure 1 B)."""
        return self.classifier.output(self.features(signals, seed)).squeeze(-1)


class FusionModel(nn.Module):
    """This is late fusion: a network over the concatenated `features` of the frozen EEG and ECG models (paper 3.4)."""

    def __init__(self, inputs: int, fusion_hidden: list[int], fusion_dropout: float):
        super().__init__()
        self.classifier = FCN(inputs, fusion_hidden, 1, fusion_dropout)

    def forward(self, features: Tensor) -> Tensor:
        """Return the logit of high arousal or high valence of each segment: (B, inputs) -> (B,)."""
        return self.classifier(features).squeeze(-1)


def take(x: Tensor, index: Tensor) -> Tensor:
    """Return the tokens at index (T,) int64 of the flattened batch: (B, N, D) -> (T, D)."""
    return x.flatten(0, 1).index_select(0, index)


def sample_mask(batch: int, points: int, probability: float, span: int, generator: torch.Generator) -> Tensor:
    """Draw a mask (B, L) bool on the CPU, for all channels (paper 3.3). Each point starts, with `probability`, a masked
    span of `span` points (both assumed). Spans may overlap, and they end with the segment."""
    starts = torch.rand(batch, points, generator=generator) < probability
    started = F.pad(starts.cumsum(1), (span, 0))
    return started[:, span:] > started[:, :-span]  # true where a span started at one of the last `span` points


def masked_tokens(mask: Tensor) -> Selection:
    """Select the tokens of the masked points of mask (B, L) bool, and others until the count of each segment is a
    multiple of 32: the same shapes come again, and PyTorch need not compile its bfloat16 products anew."""
    batch, points = mask.shape
    counts = (mask.sum(dim=1, keepdim=True).clamp(min=1) + 31) // 32 * 32
    order = mask.byte().argsort(dim=1, descending=True, stable=True)[:, : int(counts.max())]
    used = torch.arange(order.shape[1], device=mask.device) < counts  # (B, M)
    tokens = order + 1 + torch.arange(batch, device=mask.device)[:, None] * (points + 1)
    return Selection(tokens[used], used.flatten().nonzero().squeeze(1), torch.where(used, order + 1, -1))


def parameter_count(model: nn.Module) -> int:
    """Return the number of parameters of a model."""
    return sum(parameter.numel() for parameter in model.parameters())
