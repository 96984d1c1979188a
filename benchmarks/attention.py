"""The attention operator alone: ours against PyTorch's back ends."""

import importlib.metadata
import importlib.util
import json
import platform
import statistics
import time
import warnings

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

import paper
from kernels.attention import attention

BACKENDS = {"flash": SDPBackend.FLASH_ATTENTION, "cudnn": SDPBackend.CUDNN_ATTENTION,
            "efficient": SDPBackend.EFFICIENT_ATTENTION, "math": SDPBackend.MATH}
TOLERANCE = {torch.bfloat16: 1e-2, torch.float16: 2e-3, torch.float32: 2e-3}  # of an output or gradient, by its norm


def attention_rivals(seed):
    """{name: function of (q, k, v, dropout probability)}: ours, PyTorch's back ends and, if installed, flash-attn."""

    def back_end(name):
        def run(q, k, v, p):
            with sdpa_kernel(BACKENDS[name]):
                return scaled_dot_product_attention(q, k, v, dropout_p=p)
        return run

    rivals = {"ours": lambda q, k, v, p: attention(q, k, v, p, seed), **{name: back_end(name) for name in BACKENDS}}
    try:
        from flash_attn import flash_attn_func
    except ImportError:
        return rivals

    def flash_attn(q, k, v, p):
        return flash_attn_func(*(x.transpose(1, 2) for x in (q, k, v)), p).transpose(1, 2)

    return {**rivals, "flash-attn": flash_attn}


def attention_error(rival, q, k, v, gradient):
    """The largest error, relative to its norm, of output and gradients of the first sample, without dropout."""
    q, k, v = (x[:1].detach().requires_grad_() for x in (q, k, v))
    exact = [x.detach().double().requires_grad_() for x in (q, k, v)]
    weights = torch.softmax(exact[0] @ exact[1].transpose(-1, -2) / q.shape[-1] ** 0.5, -1)
    true = weights @ exact[2]
    found = rival(q, k, v, 0.0)
    trues = true, *torch.autograd.grad(true, exact, gradient[:1].double())
    founds = found, *torch.autograd.grad(found, (q, k, v), gradient[:1])
    return max(((x - y).norm() / y.norm()).item() for x, y in zip(founds, trues))


def timer(work, device):
    """A function that does the work once and returns the microseconds; on a GPU it replays a CUDA graph of it."""
    for _ in range(2):
        work()
    if device == "cpu":
        def run():
            start = time.perf_counter()
            work()
            return (time.perf_counter() - start) * 1e6
        return run
    stream, graph = torch.cuda.Stream(), torch.cuda.CUDAGraph()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        work()
    torch.cuda.synchronize()
    with torch.cuda.graph(graph):
        work()

    def run():
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        graph.replay()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) * 1e3
    return run


def attention_row(flags, batch, p):
    """{rival: {"forward", "backward", "both": median microseconds} or {"failed": why}} for one batch size and p."""
    dtype, device = getattr(torch, flags.dtype), flags.device
    shape = batch, flags.tokens, 3, flags.heads, flags.head_size
    packed = torch.randn(shape, device=device).to(dtype).transpose(1, 3)
    gradient = torch.randn(batch, flags.tokens, flags.heads, flags.head_size, device=device).to(dtype).transpose(1, 2)
    q, k, v = (x.requires_grad_() for x in packed.unbind(2))
    seed = torch.randint(2**62, (batch,), device=device)
    timers, row = {}, {}
    for name, rival in attention_rivals(seed).items():
        def forward(rival=rival):
            with torch.no_grad():
                rival(q, k, v, p)

        def both(rival=rival):
            torch.autograd.grad(rival(q, k, v, p), (q, k, v), gradient)

        try:
            error = attention_error(rival, q, k, v, gradient)
            if not error < TOLERANCE[dtype]:
                raise ValueError(f"its gradients are off by {error:.1e}")
            timers[name] = timer(forward, device), timer(both, device)
        except (RuntimeError, ValueError) as reason:
            row[name] = {"failed": str(reason).splitlines()[0][:80]}
            if device == "cuda":
                torch.cuda.empty_cache()
    times = {name: [] for name in timers}
    for _ in range(flags.repeats):
        for name, (forward, both) in timers.items():
            times[name].append((forward(), both()))
    for name, rounds in times.items():
        alone, whole = (statistics.median(column) for column in zip(*rounds))
        row[name] = {"forward": alone, "backward": whole - alone, "both": whole}
    return row


def run(flags):
    """Our attention beside every back end of PyTorch's, in turns, dropout included; useful FLOPs alone are counted."""
    if flags.device == "cuda" and not torch.cuda.is_available():
        raise ValueError("--device cuda: no GPU is visible to PyTorch; use --device cpu")
    versions = {"device": torch.cuda.get_device_name() if flags.device == "cuda" else platform.processor() or "CPU",
                "torch": torch.__version__, "cudnn": torch.backends.cudnn.version(),
                "triton": importlib.metadata.version("triton") if importlib.util.find_spec("triton") else None}
    warnings.filterwarnings("ignore", message=".*kernel|.*attention", category=UserWarning)
    work = 4 * flags.tokens**2 * flags.head_size * flags.heads  # FLOPs a sample, forward; the backward pass 2.5 times
    rows = []
    for batch in flags.batches:
        for p in flags.dropouts:
            rows.append({"batch": batch, "p": p, "rivals": attention_row(flags, batch, p)})
            if flags.device == "cuda":
                torch.cuda.empty_cache()
    if flags.json:
        print(json.dumps({"versions": versions, "flags": vars(flags), "rows": rows}))
        return
    print(", ".join(f"{name} {value}" for name, value in versions.items()))
    print(f"{flags.tokens} tokens, {flags.heads} heads of {flags.head_size}, {flags.dtype}; medians of {flags.repeats}")
    print("| batch | p | | forward us | backward us | both us | forward TFLOP/s | backward | both | both / ours |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    for row in rows:
        ours = row["rivals"].get("ours", {}).get("both", float("nan"))
        for name, times in row["rivals"].items():
            head = f"| {row['batch']} | {row['p']} | {name} |"
            if "failed" in times:
                print(head, f"{times['failed']} | | | | | | |")
                continue
            rates = (work * row["batch"] * share / times[key] / 1e6
                     for key, share in (("forward", 1), ("backward", 2.5), ("both", 3.5)))
            print(head, " | ".join(f"{times[key]:.0f}" for key in ("forward", "backward", "both")), "|",
                  " | ".join(f"{rate:.1f}" if flags.device == "cpu" else f"{rate:.0f}" for rate in rates),
                  f"| {times['both'] / ours:.2f} |")


def add_flags(part) -> None:
    count = paper.positive(int)
    part.add_argument("--batches", type=count, nargs="+", default=[1, 16, 64, 256], help="samples (default: 1 to 256)")
    part.add_argument("--dropouts", type=float, nargs="+", default=[0.0, 0.1, 0.125],
                      help="dropout probabilities (default: 0, the paper's, and one that is a multiple of 1/16)")
    part.add_argument("--tokens", type=count, default=1281, help="tokens a sample (default: %(default)s)")
    part.add_argument("--heads", type=count, default=2, help="heads (default: %(default)s)")
    part.add_argument("--head-size", type=count, default=128, help="features a head (default: %(default)s)")
    part.add_argument("--dtype", choices=("bfloat16", "float16", "float32"), default="bfloat16",
                      help="precision (default: %(default)s)")
    part.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="device (default: %(default)s)")
    part.add_argument("--repeats", type=count, default=15, help="rounds (default: %(default)s)")
    part.add_argument("--json", action="store_true", help="print the figures as JSON")
