"""This part measures a training step of the paper's EEG network: ours against PyTorch's, each in its own process."""

import multiprocessing
import os
import re
import statistics
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn
from tqdm import tqdm

import paper
from common.script import positive
from model import SingleModalityModel, sample_mask, take
from training.machine import keep_memory

CHANNELS = len(paper.MODALITIES["eeg"].channels)
TASKS = ("pre-training", "fine-tuning")
SIDES = ("ours", "stock", "compiled")


class StockModel(SingleModalityModel):
    """This is the same network as its users would write it: PyTorch's modules compute every token of every layer."""

    def __init__(self, *args, heads: int, ffn: int, dropout: float, **others):
        super().__init__(*args, heads=heads, ffn=ffn, dropout=dropout, **others)
        layers = (nn.TransformerEncoderLayer(len(self.cls), heads, ffn, dropout, batch_first=True) for _ in self.layers)
        self.layers = nn.ModuleList(layers)

    def encode(self, signals, mask=None, seed=None, selection=None):
        """Return what SingleModalityModel.encode does: all tokens, or those of a selection."""
        if mask is not None:
            signals = signals.masked_fill(mask[:, None], 0.0)
        first, *others = self.encoder.convolutions
        x = self.encoder.norm(first(signals).transpose(1, 2)).relu().transpose(1, 2)
        for convolution in others:
            x = convolution(x).relu()
        x = self.encoder.output_norm(x.transpose(1, 2))
        x = torch.cat([self.cls.expand(len(x), 1, -1), x], dim=1) + self.positions
        for layer in self.layers:
            x = layer(x)
        return x if selection is None else take(x, selection.tokens)

    def reconstruction_loss(self, signals, mask, seed=None):
        """Return the loss of the masked points, from the predictions of all points."""
        mask = mask.to(signals.device)
        error = (self.reconstruct(signals, mask).to(signals.dtype) - signals).square().mean(dim=1)  # (B, L)
        return error[mask].mean()


def build(side, dropout):
    """Return the network of one side with both heads; all sides have the same weights."""
    torch.manual_seed(0)
    numbers = {**paper.PRETRAIN, **paper.FINETUNE}
    network = {name: numbers[name][0] for name in (*paper.NETWORK, "mvp_hidden", "classifier_hidden")}
    network |= {"dropout": dropout, "classifier_dropout": numbers["classifier_dropout"][0] * (dropout > 0)}
    model = SingleModalityModel(CHANNELS, **network)
    if side == "ours":
        return model
    stock = StockModel(CHANNELS, **network)
    stock.load_state_dict(model.state_dict())
    return stock


class Noise:
    """This is a batch of noise with labels, and the loss of a model on it."""

    def __init__(self, batch_size, device, seed=0):
        self.generator = torch.Generator().manual_seed(seed)
        self.signals = torch.randn((batch_size, CHANNELS, paper.POINTS), generator=self.generator).to(device)
        self.labels = (torch.rand(batch_size, generator=self.generator) < 0.5).float().to(device)

    def loss(self, model, task):
        """Return the loss of one task; the masked points are drawn anew each time."""
        signals = self.signals.to(model.cls.dtype)
        if task == "fine-tuning":
            logits, labels = model.classify(signals).to(signals.dtype), self.labels.to(signals.dtype)
            return F.binary_cross_entropy_with_logits(logits, labels)
        probability, span = (value for value, *_ in paper.MASKING.values())
        masking = probability, round(span * paper.RATE), self.generator
        return model.reconstruction_loss(signals, sample_mask(len(signals), paper.POINTS, *masking))


def work(side, task, flags, pipe):
    """Train on one batch again and again, as one side's process: answer each True with the seconds of a step by the
    clock and by the CPUs (fair on a machine that others use, too), and False with the most memory in use, in bytes."""
    torch.set_num_threads(flags.threads)
    if side == "ours" or flags.allocator == "same":
        keep_memory()
    model = build(side, paper.NETWORK["dropout"][0]).to(flags.device).train()
    optimizer = torch.optim.Adam(model.parameters(), 1e-4, fused=True if side == "ours" else None)
    noise = Noise(flags.batch_size, flags.device)
    wait = torch.cuda.synchronize if flags.device == "cuda" else lambda: None
    if side == "compiled":
        model.encode = torch.compile(model.encode)

    def turn(steps):
        wait()
        start, start_cpu = time.perf_counter(), time.process_time()
        for _ in range(steps):
            with torch.autocast(flags.device, torch.bfloat16, enabled=flags.precision == "bf16"):
                loss = noise.loss(model, task)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        wait()
        return (time.perf_counter() - start) / steps, (time.process_time() - start_cpu) / steps

    turn(2)
    pipe.send("ready")
    if flags.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    while pipe.recv():
        pipe.send(turn(flags.steps))
    peak = 1024 * int(re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())[1])
    pipe.send(torch.cuda.max_memory_allocated() if flags.device == "cuda" else peak)


def measure(task, flags):
    """Return {side: (turns of (seconds, CPU seconds), peak bytes)}; the sides take turns, so that each works alone."""
    context, workers = multiprocessing.get_context("spawn"), {}
    for side in flags.sides:
        pipe, end = context.Pipe()
        process = context.Process(target=work, args=(side, task, flags, end), daemon=True)
        process.start()
        end.close()
        pipe.recv()
        workers[side] = process, pipe
    turns = {side: [] for side in workers}
    for _ in tqdm(range(flags.repeats), unit="round", desc=task, disable=None):
        for side, (_, pipe) in workers.items():
            pipe.send(True)
            turns[side].append(pipe.recv())
    found = {}
    for side, (process, pipe) in workers.items():
        pipe.send(False)
        found[side] = turns[side], pipe.recv()
        process.join()
    return found


def small(steps):
    """Pre-train a small network, in a process of its own; return samples a second."""
    sizes = {"cnn_kernels": [33, 17, 9], "cnn_channels": [16, 32, 32], "layers": 1, "heads": 1, "ffn": 64}
    model = SingleModalityModel(CHANNELS, **sizes, dropout=0.0, encoder_norm="output", mvp_hidden=[128]).train()
    optimizer, noise = torch.optim.AdamW(model.parameters(), 1e-4, fused=True), Noise(8, "cpu")
    for step in range(-5, steps):
        if step == 0:
            start = time.perf_counter()
        noise.loss(model, "pre-training").backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return 8 * steps / (time.perf_counter() - start)


def side_by_side(flags):
    """Print samples a second of a small network alone and of two at once, in turns, with threads that wait as long as
    by default, and as in our scripts."""
    found = {(spins, count): [] for spins in ("300000", "1000") for count in (1, 2)}
    for _ in tqdm(range(flags.repeats), unit="round", desc="side by side", disable=None):
        for (spins, count), rates in found.items():
            os.environ["GOMP_SPINCOUNT"] = spins
            with ProcessPoolExecutor(count, multiprocessing.get_context("spawn")) as pool:
                rates.append(sum(pool.map(small, [flags.steps] * count)))
    print(f"{os.cpu_count()} cores, {torch.get_num_threads()} threads each, medians of {flags.repeats}")
    print("| GOMP_SPINCOUNT | at once | samples/s of all |\n|---|---|---|")
    for (spins, count), rates in found.items():
        print(f"| {spins} | {count} | {statistics.median(rates):.0f} |")


def run(flags):
    """A training step of the paper's network, ours, stock PyTorch's and the same compiled, in turns."""
    if flags.side_by_side:
        return side_by_side(flags)
    flags.sides = list(dict.fromkeys(["ours", *flags.sides]))
    head = "{device}, {precision}, batch {batch_size}, {threads} threads, allocator {allocator}, medians of {repeats}"
    print(head.format(**vars(flags)) + f", torch {torch.__version__}")
    print("| | | s a step | CPU s | samples/s | peak memory, GB | time / ours | CPU / ours |")
    print("|---|---|---|---|---|---|---|---|")
    for task in TASKS:
        try:
            found = measure(task, flags)
        except EOFError:
            raise ValueError("--sides: the process of one failed, for the reason printed above; leave it out")
        for side, (turns, peak) in found.items():
            seconds, cpu = map(statistics.median, zip(*turns))
            # A turn beside that of ours in the same round, as the clock of a machine varies.
            pairs = [[a / b for a, b in zip(*pair)] for pair in zip(turns, found["ours"][0])]
            ratio, cpu_ratio = map(statistics.median, zip(*pairs))
            columns = f"{seconds:.4g} | {cpu:.4g} | {flags.batch_size / seconds:.4g} | {peak / 1e9:.2f}"
            print(f"| {task} | {side} | {columns} | {ratio:.2f} | {cpu_ratio:.2f} |")


def add_flags(part) -> None:
    """Add the flags of this part."""
    add, count = part.add_argument, positive(int)
    add("--device", choices=("cuda", "cpu"), default="cuda", help="device (default: %(default)s)")
    add("--batch-size", type=count, default=64, help="segments a step (default: %(default)s)")
    add("--precision", choices=("fp32", "bf16"), default="bf16", help="bf16 is autocast (default: %(default)s)")
    add("--sides", choices=SIDES, nargs="+", default=SIDES, help="beside ours (default: both)")
    allocator = "CPU memory: only ours is kept for the next step, or that of all (default: %(default)s)"
    add("--allocator", choices=("default", "same"), default="default", help=allocator)
    add("--threads", type=count, default=torch.get_num_threads(), help="CPU threads (default: all)")
    add("--steps", type=count, default=1, help="steps a turn (default: %(default)s)")
    what = "instead: a small network alone and two at once on the CPU, where threads wait long, and as ours do"
    add("--side-by-side", action="store_true", help=what)
    add("--repeats", type=count, default=5, help="turns of each side (default: %(default)s)")
