"""The whole network of the paper.

Shapes: B batch, C input channels, L points (1280), N tokens (L + 1, CLS first), T tokens asked for, D hidden, H heads.

    signals (B, C, L) -> Encoder -> (B, L, D) -> CLS, positions -> (B, N, D) -> TransformerLayer x 2 -> (B, N, D)
    tokens 1..L -> predictor  -> (B, C, L)  masked value prediction (paper 3.2.1, figure 1 A)
    token 0     -> classifier -> (B,)       arousal or valence      (paper 3.2.2, figure 1 B)
    hidden layers of the EEG and the ECG classifier -> FusionModel -> (B,)  (paper 3.4, figure 2)
"""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import paper
from kernels.attention import attention
from kernels.conv1d import conv1d
from kernels.dropout import dropout


class Rows(NamedTuple):
    """The T tokens of a batch that alone are asked for, one sample after the other; M is the most of one sample."""

    tokens: Tensor  # (T,) int64: which of the batch's B N they are
    places: Tensor  # (T,) int64: where they stand in (B, M)
    numbers: Tensor  # (B, M) int64: which of their sample's N they are, then -1


class Encoder(nn.Module):
    """1D-CNN that keeps the length: (B, C, L) -> (B, L, D). Stride 1, ReLU (paper 4.3).

    Assumed: zero padding, and a layer norm over the channels after the first convolution only.
    """

    def __init__(self, channels: int, kernels: list[int], widths: list[int]):
        super().__init__()
        sizes = zip([channels, *widths], widths, kernels)
        self.convolutions = nn.ModuleList(nn.Conv1d(i, o, k, padding=k // 2) for i, o, k in sizes)
        self.norm = nn.LayerNorm(widths[0])

    def forward(self, signals: Tensor) -> Tensor:
        first, *others = self.convolutions
        x = self.norm(conv1d(signals.transpose(1, 2), first.weight, first.bias)).relu()  # (B, L, 64)
        for convolution in others:
            x = conv1d(x, convolution.weight, convolution.bias).relu()  # (B, L, 128), (B, L, D)
        return x


class SelfAttention(nn.Module):
    """Multi-head self-attention with the parameters of `torch.nn.MultiheadAttention`: (B, N, D) -> (B, N, D)."""

    def __init__(self, hidden: int, heads: int, dropout: float):
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.in_proj_weight = nn.Parameter(nn.init.xavier_uniform_(torch.empty(3 * hidden, hidden)))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * hidden))
        self.out_proj = nn.Linear(hidden, hidden)
        nn.init.zeros_(self.out_proj.bias)

    def forward(self, x: Tensor, seed: Tensor | None, rows: Rows | None = None) -> Tensor:
        """x (B, N, D), seed (B,) int64 of the dropout -> (B, N, D); where rows are given, of these tokens: (T, D)."""
        hidden = x.shape[-1]
        if rows is None:
            q, packed = F.linear(x, self.in_proj_weight, self.in_proj_bias).split((hidden, 2 * hidden), dim=-1)
        else:  # (B, M, D) and (B, N, 2D)
            q = F.linear(take(x, rows.tokens), self.in_proj_weight[:hidden], self.in_proj_bias[:hidden])
            padded = q.new_zeros(rows.numbers.numel(), hidden)
            q = padded.index_copy(0, rows.places, q).view(*rows.numbers.shape, hidden)
            packed = F.linear(x, self.in_proj_weight[hidden:], self.in_proj_bias[hidden:])
        q = q.unflatten(-1, (self.heads, -1)).transpose(1, 2)  # (B, H, N or M, D / H)
        k, v = packed.unflatten(-1, (2, self.heads, -1)).permute(2, 0, 3, 1, 4)  # (B, H, N, D / H) each
        p, numbers = self.dropout if self.training else 0.0, None if rows is None else rows.numbers
        mixed = attention(q, k, v, dropout_p=p, seed=seed, rows=numbers).transpose(1, 2).flatten(2)
        return self.out_proj(mixed if rows is None else take(mixed, rows.places))

    def cls_weights(self, x: Tensor) -> Tensor:
        """(B, N, D) -> (B, H, N): what the first token takes of each token, without dropout; each row sums to 1."""
        q, k, _ = F.linear(x, self.in_proj_weight, self.in_proj_bias).chunk(3, dim=-1)
        q, k = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in (q[:, :1], k))
        return (q @ k.mT / math.sqrt(q.shape[-1])).softmax(dim=-1).squeeze(2)


class TransformerLayer(nn.Module):
    """Post-norm Transformer layer, (B, N, D) -> (B, N, D); its state loads from and into
    `torch.nn.TransformerEncoderLayer(..., batch_first=True)` one to one."""

    def __init__(self, hidden: int, heads: int, ffn: int, dropout: float):
        super().__init__()
        self.self_attn = SelfAttention(hidden, heads, dropout)
        self.linear1, self.linear2 = nn.Linear(hidden, ffn), nn.Linear(ffn, hidden)
        self.norm1, self.norm2 = nn.LayerNorm(hidden), nn.LayerNorm(hidden)
        self.dropout = dropout

    def forward(self, x: Tensor, seed: Tensor | None = None, rows: Rows | None = None) -> Tensor:
        """x (B, N, D) -> (B, N, D). seed (B,) int64 draws the dropout; needed only where dropout is on.

        rows: only these tokens are asked for: (T, D), the same numbers for a fraction of the work."""
        mixed = self.self_attn(x, seed, rows)
        x = self.norm1((x if rows is None else take(x, rows.tokens)) + self.drop(mixed, 1, seed, rows))
        widened = self.drop(self.linear1(x), 2, seed, rows, relu=True)  # (B, N, ffn) or (T, ffn)
        return self.norm2(x + self.drop(self.linear2(widened), 3, seed, rows))

    def drop(self, x: Tensor, place: int, seed: Tensor | None, rows: Rows | None, relu: bool = False) -> Tensor:
        """Dropout at one of the layer's places, after a ReLU if asked for. On the CPU, where torch's is slow, its mask
        is that of the attention operator: a function of the seed, the place, the token and the column."""
        if x.device.type != "cpu" or not self.training or self.dropout == 0.0:
            return F.dropout(x.relu() if relu else x, self.dropout, self.training)
        # Seeds 2^61 apart: another mask than at the other places and in the attention.
        return dropout(x, self.dropout, seed - (place << 61), None if rows is None else rows.numbers, relu)


class FCN(nn.Module):
    """Fully-connected network: hidden layers with ReLU, each followed by dropout, and a linear output."""

    def __init__(self, inputs: int, hidden: list[int], outputs: int, dropout: float = 0.0):
        super().__init__()
        self.hidden = nn.ModuleList(nn.Linear(i, o) for i, o in zip([inputs, *hidden], hidden))
        self.output = nn.Linear(hidden[-1], outputs)
        self.dropout = nn.Dropout(dropout)

    def features(self, x: Tensor) -> Tensor:
        """(..., inputs) -> (..., hidden[-1]): the last hidden layer, after ReLU and dropout."""
        for layer in self.hidden:
            x = self.dropout(layer(x).relu())
        return x

    def forward(self, x: Tensor) -> Tensor:
        return self.output(self.features(x))


class SingleModalityModel(nn.Module):
    """The emotion recogniser for one modality (paper 3.2, 3.3), with a predictor, a classifier, or both.

    channels: C (10 for EEG, 1 for ECG); points: L; cnn_channels: widths of the CNN, the last is D; mvp_hidden and
    classifier_hidden: hidden layers of the two heads, None for no such head. Raises ValueError where the numbers do
    not fit together.
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
        points: int = paper.POINTS,
    ):
        super().__init__()
        hidden = cnn_channels[-1]
        if len(cnn_kernels) != len(cnn_channels) or any(kernel % 2 == 0 for kernel in cnn_kernels):
            raise ValueError(
                f"--cnn-kernels {cnn_kernels}: expected one odd size for each of --cnn-channels {cnn_channels}; "
                "an even one would change the length"
            )
        if hidden % (2 * heads):
            raise ValueError(f"--cnn-channels: expected a last number divisible by 2 x --heads {heads}, found {hidden}")
        self.encoder = Encoder(channels, cnn_kernels, cnn_channels)
        self.cls = nn.Parameter(torch.randn(hidden) * 0.02)  # assumed: learned
        self.register_buffer("positions", sinusoidal_positions(points + 1, hidden), persistent=False)
        self.layers = nn.ModuleList(TransformerLayer(hidden, heads, ffn, dropout) for _ in range(layers))
        if mvp_hidden:
            self.predictor = FCN(hidden, mvp_hidden, channels)
        if classifier_hidden:
            self.classifier = FCN(hidden, classifier_hidden, 1, classifier_dropout)

    def tokens(self, signals: Tensor) -> Tensor:
        """(B, C, L) -> (B, N, D): CLS and the encoded points, with their positions; what the first layer takes."""
        points = self.encoder(signals)
        # In float32 also where autocast on a GPU has left the points in bfloat16, as the first layer adds to them.
        return torch.cat([self.cls.expand(len(points), 1, -1), points], dim=1) + self.positions

    def encode(
        self, signals: Tensor, mask: Tensor | None = None, seed: Tensor | None = None, rows: Rows | None = None
    ) -> Tensor:
        """(B, C, L) -> (B, N, D), or (T, D) with rows, which spares the last layer all other tokens.

        mask (B, L) bool: these points of the input are set to 0, in every channel. seed (layers, B) int64, below 2^62,
        draws the dropout of the layers; by default it comes from torch's generator.
        """
        if mask is not None:
            signals = signals.masked_fill(mask[:, None], 0.0)
        x = self.tokens(signals)
        if seed is None and self.training:
            seed = torch.randint(2**62, (len(self.layers), len(x)), device=x.device)
        for number, layer in enumerate(self.layers):
            last = number == len(self.layers) - 1
            x = layer(x, None if seed is None else seed[number], rows if last else None)
        return x

    def reconstruct(self, signals: Tensor, mask: Tensor, seed: Tensor | None = None) -> Tensor:
        """(B, C, L) signals with the points of mask (B, L) hidden -> (B, C, L) predicted values (path A)."""
        return self.predictor(self.encode(signals, mask, seed)[:, 1:]).transpose(1, 2)

    def reconstruction_loss(
        self, signals: Tensor, mask: Tensor, seed: Tensor | None = None, count: Tensor | None = None
    ) -> Tensor:
        """`masked_mse` of `reconstruct`, computed from the masked points and few others.

        mask (B, L) bool may stay on the CPU, where counting its points keeps no GPU waiting. count: the number of the
        whole batch's masked points, where these samples are a share of it.
        """
        rows = masked_tokens(mask)
        points = rows.tokens - rows.tokens // (mask.shape[1] + 1) - 1  # among the batch's B L
        masked = mask.flatten()[points].nonzero().squeeze(1)  # among the T
        *rows, points, masked, mask = (x.to(signals.device, non_blocking=True) for x in (*rows, points, masked, mask))
        predicted = self.predictor(self.encode(signals, mask, seed, Rows(*rows)))  # (T, C)
        error = (predicted.to(signals.dtype) - take(signals.transpose(1, 2), points)).square().mean(dim=1)
        count = torch.as_tensor(len(masked) if count is None else count)
        return error[masked].sum() / count.clamp(min=1)  # a short batch may have no masked point

    def encode_cls(self, signals: Tensor, seed: Tensor | None = None) -> Tensor:
        """(B, C, L) -> (B, D): the token CLS alone, the classifier's input."""
        batch = torch.arange(len(signals), device=signals.device)
        cls = Rows(batch * self.positions.shape[0], batch, torch.zeros_like(batch)[:, None])
        return self.encode(signals, seed=seed, rows=cls)

    def features(self, signals: Tensor, seed: Tensor | None = None) -> Tensor:
        """(B, C, L) -> (B, F): the last hidden layer of the classifier, what late fusion takes (paper 3.4)."""
        return self.classifier.features(self.encode_cls(signals, seed))

    def classify(self, signals: Tensor, seed: Tensor | None = None) -> Tensor:
        """(B, C, L) -> (B,) logits of high arousal or valence (path B)."""
        return self.classifier.output(self.features(signals, seed)).squeeze(-1)

    def cls_attention(self, signals: Tensor) -> Tensor:
        """(B, C, L) -> (B, H, N): the last layer's attention weights of CLS, of a model in evaluation mode."""
        x = self.tokens(signals)
        for layer in self.layers[:-1]:
            x = layer(x)
        return self.layers[-1].self_attn.cls_weights(x)


class FusionModel(nn.Module):
    """Late fusion (paper 3.4): the concatenated features of the frozen EEG and ECG models, (B, F) -> (B,) logits."""

    def __init__(self, inputs: int, fusion_hidden: list[int], fusion_dropout: float):
        super().__init__()
        self.classifier = FCN(inputs, fusion_hidden, 1, fusion_dropout)

    def forward(self, features: Tensor) -> Tensor:
        return self.classifier(features).squeeze(-1)


def take(x: Tensor, index: Tensor) -> Tensor:
    """(B, N, D) -> (T, D): the rows of all samples, one after the other, that index (T,) int64 names."""
    return x.flatten(0, 1).index_select(0, index)


def sinusoidal_positions(tokens: int, hidden: int) -> Tensor:
    """(N, D) float32: sine in the even, cosine in the odd columns, wavelengths from 2 pi to 20000 pi (assumed)."""
    rate = torch.exp(torch.arange(0, hidden, 2) * (-math.log(10000.0) / hidden))
    angle = torch.arange(tokens)[:, None] * rate  # (N, D / 2)
    return torch.stack([angle.sin(), angle.cos()], dim=-1).flatten(1)


def sample_mask(batch: int, points: int, probability: float, span: int, generator: torch.Generator) -> Tensor:
    """(B, L) bool on the CPU: each point starts a span of masked points with `probability`; spans may overlap and end
    with the segment. One mask serves all channels (paper 3.3); probability and span are assumed."""
    starts = torch.rand(batch, points, generator=generator) < probability
    started = F.pad(starts.cumsum(1), (span, 0))
    return started[:, span:] > started[:, :-span]  # a span started at one of the last `span` points


def masked_tokens(mask: Tensor) -> Rows:
    """The tokens of the points of mask (B, L) bool, and then a few others of each sample: to a multiple of 32, so that
    the same shapes come again, for which PyTorch has its compiled products of bfloat16 ready."""
    batch, points = mask.shape
    counts = (mask.sum(dim=1, keepdim=True).clamp(min=1) + 31) // 32 * 32
    order = mask.byte().argsort(dim=1, descending=True, stable=True)[:, : int(counts.max())]
    asked = torch.arange(order.shape[1], device=mask.device) < counts
    tokens = order + 1 + torch.arange(batch, device=mask.device)[:, None] * (points + 1)
    return Rows(tokens[asked], asked.flatten().nonzero().squeeze(1), torch.where(asked, order + 1, -1))


def masked_mse(predicted: Tensor, signals: Tensor, mask: Tensor) -> Tensor:
    """Mean squared error of (B, C, L) predictions over the masked points of mask (B, L) and all channels (assumed)."""
    error = (predicted.to(signals.dtype) - signals).square().mean(dim=1)  # (B, L)
    return error[mask].sum() / mask.sum().clamp(min=1)


def parameter_count(model: nn.Module) -> int:
    """Number of trained parameters."""
    return sum(parameter.numel() for parameter in model.parameters())
