"""One training step of the paper's network: ours against stock PyTorch, each side in a process of its own."""

import json
import multiprocessing
import re
import statistics
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn
from tqdm import tqdm

import paper
from model import SingleModalityModel, masked_mse, sample_mask, take
from training import loop

# Forward and backward of one segment of the paper's EEG network, every token computed, Q K^T twice.
SAMPLE_GFLOP = 30.4
PEAK_TFLOPS = {
    "H100": {"bf16": 989.0, "fp32": 67.0},
    "A100": {"bf16": 312.0, "fp32": 19.5},
}  # dense, of the data sheets
TASKS = ("pre-training", "fine-tuning")


class StockModel(SingleModalityModel):
    """The same network as its users would write it: PyTorch's own modules, every token of every layer computed."""

    def __init__(self, *args, heads: int, ffn: int, dropout: float, **others):
        super().__init__(*args, heads=heads, ffn=ffn, dropout=dropout, **others)
        layers = (nn.TransformerEncoderLayer(len(self.cls), heads, ffn, dropout, batch_first=True) for _ in self.layers)
        self.layers = nn.ModuleList(layers)

    def encode(self, signals, mask=None, seed=None, rows=None):
        if mask is not None:
            signals = signals.masked_fill(mask[:, None], 0.0)
        first, *others = self.encoder.convolutions
        x = self.encoder.norm(first(signals).transpose(1, 2)).relu().transpose(1, 2)
        for convolution in others:
            x = convolution(x).relu()
        x = torch.cat([self.cls.expand(len(x), 1, -1), x.transpose(1, 2)], dim=1) + self.positions
        for layer in self.layers:
            x = layer(x)
        return x if rows is None else take(x, rows.tokens)

    def reconstruction_loss(self, signals, mask, seed=None):
        mask = mask.to(signals.device)
        return masked_mse(self.reconstruct(signals, mask), signals, mask)


def build(side, dropout):
    """The paper's EEG network of one side, with both heads, from the same weights."""
    torch.manual_seed(0)
    network = {name: row[0] for name, row in paper.NETWORK.items()} | {"dropout": dropout}
    network |= {name: paper.FINETUNE[name][0] for name in ("classifier_hidden", "classifier_dropout")}
    network |= {"mvp_hidden": paper.PRETRAIN["mvp_hidden"][0]}
    network["classifier_dropout"] *= dropout > 0
    model = SingleModalityModel(len(paper.EEG_CHANNELS), **network)
    if side == "ours":
        return model
    stock = StockModel(len(paper.EEG_CHANNELS), **network)
    stock.load_state_dict(model.state_dict())
    return stock


def losses(model, batch_size, device, seed=0):
    """{task: function without arguments that returns the loss of one batch of noise}."""
    generator = torch.Generator().manual_seed(seed)
    signals = torch.randn(batch_size, len(paper.EEG_CHANNELS), paper.POINTS, generator=generator).to(device)
    labels = (torch.rand(batch_size, generator=generator) < 0.5).float().to(device)
    probability, span = (paper.MASKING[name][0] for name in ("mask_probability", "mask_span"))

    def pretraining():
        mask = sample_mask(batch_size, paper.POINTS, probability, span, generator)
        return model.reconstruction_loss(signals.to(model.cls.dtype), mask)

    def finetuning():
        return F.binary_cross_entropy_with_logits(model.classify(signals.to(model.cls.dtype)).float(), labels)

    return dict(zip(TASKS, (pretraining, finetuning)))


def gradients(side, task, precision, device, seed):
    """{parameter: gradient} of two segments without dropout; precision fp64, too."""
    model = build(side, 0.0).to(device, torch.float64 if precision == "fp64" else torch.float32)
    with torch.autocast(device, torch.bfloat16, enabled=precision == "bf16"):
        loss = losses(model, 2, device, seed)[task]()
    loss.backward()
    return {name: x.grad.double() for name, x in model.named_parameters() if x.grad is not None}


def gradient_errors(task, flags):
    """{side: {parameter: error of its gradient, relative to the norm of that in float64}}, the median of three batches:
    a single ReLU on the other side of zero multiplies the error of a batch."""
    torch.set_num_threads(flags.threads)
    errors = {side: [] for side in flags.sides}
    for seed in range(3):
        exact = gradients("stock", task, "fp64", flags.device, seed)
        for side, batches in errors.items():
            found = gradients(side, task, flags.precision, flags.device, seed)
            batches.append({name: ((found[name] - x).norm() / x.norm()).item() for name, x in exact.items()})
    return {
        side: {name: statistics.median(batch[name] for batch in batches) for name in batches[0]}
        for side, batches in errors.items()
    }


def work(side, task, flags, pipe):
    """The life of one side's process: for each request some steps and the seconds of one, by the clock and of the
    CPUs: on a machine that others use too, with one thread, the latter are the fair ones."""
    torch.set_num_threads(flags.threads)
    if side == "ours" or flags.allocator == "same":
        loop.keep_memory()
    model = build(side, paper.NETWORK["dropout"][0]).to(flags.device).train()
    optimizer = torch.optim.Adam(model.parameters(), 1e-4, fused=True if side == "ours" else None)
    loss = losses(model, flags.batch_size, flags.device)[task]
    if side == "compiled":
        model.encode = torch.compile(model.encode)

    def step():
        with torch.autocast(flags.device, torch.bfloat16, enabled=flags.precision == "bf16"):
            value = loss()
        value.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    def turn():
        """Seconds a step. On a GPU steps overlap, as in training: what the CPU does for one hides behind the last."""
        wait()
        start, start_cpu = time.perf_counter(), time.process_time()
        for _ in range(flags.steps):
            step()
        wait()
        return (time.perf_counter() - start) / flags.steps, (time.process_time() - start_cpu) / flags.steps

    wait = torch.cuda.synchronize if flags.device == "cuda" else lambda: None
    step()
    step()
    pipe.send("ready")
    if flags.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    while pipe.recv():
        pipe.send(turn())
    if flags.device == "cuda":
        pipe.send(torch.cuda.max_memory_allocated())
    else:
        pipe.send(1024 * int(re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())[1]))


def peak_flops(flags):
    """FLOP/s of the device: --peak, else its data sheet's, else those of a product of two large matrices."""
    if flags.peak:
        return flags.peak * 1e12
    if flags.device == "cuda":
        name = torch.cuda.get_device_name()
        for device, peaks in PEAK_TFLOPS.items():
            if device in name:
                return peaks[flags.precision] * 1e12
        raise ValueError(f"--peak: the peak of {name} is not known here; give it in TFLOP/s")
    torch.set_num_threads(flags.threads)
    a = torch.randn(3072, 3072).to(torch.bfloat16 if flags.precision == "bf16" else torch.float32)
    seconds = []
    for _ in range(8):
        start = time.perf_counter()
        a @ a
        seconds.append(time.perf_counter() - start)
    return 2 * 3072**3 / min(seconds)


def answer(side, pipe):
    """What the process of a side sends next; ValueError where it has ended."""
    try:
        return pipe.recv()
    except EOFError:
        raise ValueError(f"--sides {side}: its process failed, for the reason printed above; leave it out")


def measure(task, flags):
    """{side: its row} for one task; the sides take turns, one after the other alone on the machine."""
    errors, context, workers = gradient_errors(task, flags), multiprocessing.get_context("spawn"), {}
    for side in flags.sides:
        pipe, end = context.Pipe()
        process = context.Process(target=work, args=(side, task, flags, end), daemon=True)
        process.start()
        end.close()
        answer(side, pipe)
        workers[side] = process, pipe
    seconds = {side: [] for side in workers}
    for _ in tqdm(range(flags.repeats), unit="round", desc=task, disable=None):
        for side, (_, pipe) in workers.items():
            pipe.send(True)
            seconds[side].append(answer(side, pipe))
    rows = {}
    for side, (process, pipe) in workers.items():
        pipe.send(False)
        peak = answer(side, pipe)
        process.join()
        median, cpu = (statistics.median(times) for times in zip(*seconds[side]))
        to_ours = [[a / b for a, b in zip(*pair)] for pair in zip(seconds[side], seconds["ours"])]
        rows[side] = {
            "seconds": median,
            "cpu_seconds": cpu,
            "samples_per_s": flags.batch_size / median,
            **dict(zip(("time_to_ours", "cpu_time_to_ours"), map(statistics.median, zip(*to_ours)))),
            "peak_bytes": peak,
            "gradient_error": statistics.median(errors[side].values()),
            "gradient_error_to_ours": statistics.median(errors[side][name] / x for name, x in errors["ours"].items()),
        }
    return rows


def run(flags):
    """A training step of the paper's network, ours, stock PyTorch's and the same compiled, in turns."""
    if flags.device == "cuda" and not torch.cuda.is_available():
        raise ValueError("--device cuda: no GPU is visible to PyTorch; use --device cpu")
    flags.sides = list(dict.fromkeys(["ours", *flags.sides]))
    peak = peak_flops(flags)
    result = {task: measure(task, flags) for task in flags.tasks}
    for rows in result.values():
        for row in rows.values():
            row["share_of_peak"] = SAMPLE_GFLOP * 1e9 * row["samples_per_s"] / peak
    if flags.json:
        print(json.dumps({"flags": vars(flags), "torch": torch.__version__, "peak_flops": peak, "tasks": result}))
        return
    print(
        f"{flags.device}, {flags.precision}, batch {flags.batch_size}, {flags.threads} threads, allocator "
        f"{flags.allocator}, peak {peak / 1e12:.3g} TFLOP/s, torch {torch.__version__}; medians of {flags.repeats}"
    )
    print(
        "| | | s a step | CPU s | samples/s | share of peak | peak memory, GB | time / ours | CPU / ours "
        "| gradient error / ours |"
    )
    print("|---|---|---|---|---|---|---|---|---|---|")
    for task, rows in result.items():
        for side, row in rows.items():
            print(
                f"| {task} | {side} | {row['seconds']:.4g} | {row['cpu_seconds']:.4g} "
                f"| {row['samples_per_s']:.4g} | {row['share_of_peak']:.0%} "
                f"| {row['peak_bytes'] / 1e9:.2f} | {row['time_to_ours']:.2f} | {row['cpu_time_to_ours']:.2f} "
                f"| {row['gradient_error_to_ours']:.2f} |"
            )


def add_flags(part) -> None:
    count = paper.positive(int)
    part.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="device (default: %(default)s)")
    part.add_argument("--batch-size", type=count, default=64, help="segments a step (default: %(default)s)")
    part.add_argument(
        "--precision", choices=("fp32", "bf16"), default="bf16", help="bf16 is autocast (default: %(default)s)"
    )
    part.add_argument("--tasks", choices=TASKS, nargs="+", default=TASKS, help="what to train (default: both)")
    sides = ("ours", "stock", "compiled")
    part.add_argument("--sides", choices=sides, nargs="+", default=sides, help="beside ours (default: both)")
    part.add_argument(
        "--allocator",
        choices=("default", "same"),
        default="default",
        help="CPU memory: ours keeps it as its scripts do, the rivals as PyTorch does, or all as ours "
        "(default: %(default)s)",
    )
    part.add_argument("--threads", type=count, default=torch.get_num_threads(), help="CPU threads (default: all)")
    part.add_argument("--peak", type=paper.positive(float), help="TFLOP/s of the device, for its share")
    part.add_argument("--steps", type=count, default=1, help="steps a turn (default: %(default)s)")
    part.add_argument("--repeats", type=count, default=5, help="turns of each side (default: %(default)s)")
    part.add_argument("--json", action="store_true", help="print the figures as JSON")
