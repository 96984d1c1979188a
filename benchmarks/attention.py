"""This part measures the attention operator alone: ours against the back ends of PyTorch."""

import itertools
import statistics
import time
import warnings
from functools import partial

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

import paper
from common.script import positive
from kernels.attention import attention

BACKENDS = {"flash": "FLASH_ATTENTION", "cudnn": "CUDNN_ATTENTION", "efficient": "EFFICIENT_ATTENTION", "math": "MATH"}
TOKENS = paper.POINTS + 1  # of a sample: CLS is one
DROPOUTS = (0.0, 0.1, 0.125)  # none, the paper's, and one that is a multiple of 1/16
HEADS, HEAD_SIZE = paper.NETWORK["heads"][0], paper.NETWORK["cnn_channels"][0][-1] // paper.NETWORK["heads"][0]


def repeatable(work, device):
    """Do the work some times, and return a function that does it again: on a GPU the replay of its CUDA graph, so that
    the time which the host takes to launch it does not count."""
    for _ in range(2):
        work()
    if device == "cpu":
        return work
    stream, graph = torch.cuda.Stream(), torch.cuda.CUDAGraph()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        work()
    torch.cuda.synchronize()
    with torch.cuda.graph(graph):
        work()
    return graph.replay


def microseconds(work, device) -> float:
    """Do the work once, and return how long it took."""
    if device == "cpu":
        start = time.perf_counter()
        work()
        return (time.perf_counter() - start) * 1e6
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    work()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) * 1e3


def measure(flags, batch, p) -> dict:
    """Return {rival: (microseconds of the forward pass, of both passes), medians, or why it failed}."""
    device = flags.device
    # Views of one packed projection, as a Transformer makes them.
    packed = torch.randn(batch, TOKENS, 3, HEADS, HEAD_SIZE, device=device).bfloat16().transpose(1, 3)
    gradient = torch.randn(batch, TOKENS, HEADS, HEAD_SIZE, device=device).bfloat16().transpose(1, 2)
    q, k, v = (x.requires_grad_() for x in packed.unbind(2))
    seed = torch.randint(2**62, (batch,), device=device)

    def output(name):
        if name == "ours":
            return attention(q, k, v, p, seed)
        with sdpa_kernel(getattr(SDPBackend, BACKENDS[name])):
            return scaled_dot_product_attention(q, k, v, dropout_p=p)

    def both(name):
        torch.autograd.grad(output(name), (q, k, v), gradient)

    works, found = {}, {}
    # A rival that cannot do this is left out, and the table says why.
    for name in ("ours", *BACKENDS):
        try:
            works[name] = [repeatable(partial(work, name), device) for work in (torch.no_grad()(output), both)]
        except RuntimeError as reason:
            if name == "ours":
                raise
            found[name] = str(reason).splitlines()[0][:80]
            torch.cuda.empty_cache()
    # The rivals take turns, so that a change of the clock's rate meets all of them.
    rounds = {name: [] for name in works}
    for _ in range(flags.repeats):
        for name, passes in works.items():
            rounds[name].append([microseconds(work, device) for work in passes])
    return found | {name: tuple(map(statistics.median, zip(*times))) for name, times in rounds.items()}


def run(flags):
    """Our attention beside every back end of PyTorch's, in turns, dropout included; useful FLOPs alone are counted."""
    warnings.filterwarnings("ignore", message=".*kernel|.*attention", category=UserWarning)
    device = torch.cuda.get_device_name() if flags.device == "cuda" else "CPU"
    print(f"{device}, torch {torch.__version__}, cuDNN {torch.backends.cudnn.version()}")
    print(f"{TOKENS} tokens, {HEADS} heads of {HEAD_SIZE}, bfloat16; medians of {flags.repeats}")
    print("| batch | p | | forward us | backward us | both us | forward TFLOP/s | backward | both | both / ours |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    for batch, p in itertools.product(flags.batches, DROPOUTS):
        found = measure(flags, batch, p)
        # FLOPs, forward: two products, Q K^T and P V. The backward pass counts 2.5 times, as is usual.
        flops = 4 * TOKENS**2 * HEAD_SIZE * HEADS * batch
        for name, times in found.items():
            start = f"| {batch} | {p} | {name} |"
            if isinstance(times, str):
                print(start, times, "| | | | | | |")
                continue
            forward, both = times
            times = forward, both - forward, both
            columns = [f"{time:.0f}" for time in times]
            columns += [f"{flops * share / time / 1e6:.3g}" for time, share in zip(times, (1, 2.5, 3.5))]
            print(start, " | ".join(columns), f"| {both / found['ours'][1]:.2f} |")
        torch.cuda.empty_cache()


def add_flags(part) -> None:
    """Add the flags of this part."""
    count = positive(int)
    part.add_argument("--batches", type=count, nargs="+", default=[1, 16, 64, 256], help="samples (default: 1 to 256)")
    part.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="device (default: %(default)s)")
    part.add_argument("--repeats", type=count, default=15, help="rounds (default: %(default)s)")
