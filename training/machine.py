"""The machine that a model runs on: device, precision and threads."""

import argparse
import ctypes
import os
from contextlib import suppress

import numpy as np
import torch

from common.script import positive, stop_if_printing
from training import distributed


def add_flags(group) -> None:
    """Add --device, --precision and --threads."""
    what = "cpu, cuda, cuda:1 ... (default: cuda if there is one; assumed)"
    group.add_argument("--device", default="auto", help=what)
    what = (
        "arithmetic; weights stay fp32, but with fp64, which is slow and there to compare with (default: bf16 on "
        "CUDA, else fp32; assumed)"
    )
    group.add_argument("--precision", choices=("auto", "fp32", "bf16", "fp64"), default="auto", help=what)
    what = "CPU threads; results are bit-equal for the same number (default: %(default)s; assumed)"
    group.add_argument("--threads", type=positive(int), default=torch.get_num_threads(), metavar="N", help=what)


def use(args: argparse.Namespace) -> None:
    """Resolve `auto`, print the flags where asked to (SystemExit), and set the number of threads; ValueError for a
    device that cannot be used."""
    if args.device == "auto":
        args.device = "cuda" if torch.cuda.is_available() else "cpu"
    if args.precision == "auto":
        args.precision = "bf16" if args.device.startswith("cuda") else "fp32"
    stop_if_printing(args)
    distributed.take_gpu(args.device)
    try:
        torch.zeros(1, device=args.device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"--device {args.device}: not usable here ({str(error).splitlines()[0]})")
    torch.set_num_threads(args.threads)
    keep_memory()


def say_crowded(args: argparse.Namespace) -> None:
    """Say so where other programs leave fewer cores free than this one has threads: both would wait for each other."""
    cores, busy = os.cpu_count(), os.getloadavg()[0]
    if args.device == "cpu" and 1 < args.threads and cores - busy < args.threads - 0.5:
        free = f"about {max(cores - busy, 0):.0f} of {cores} cores are free"
        print(f"{free}, for {args.threads} threads; --threads {max(1, round(cores - busy))} may be faster", flush=True)


def keep_memory() -> None:
    """Have the GNU C library keep freed memory for the next step instead of giving it back to the system, which would
    clear each page again. Elsewhere nothing happens."""
    with suppress(AttributeError, OSError, TypeError):  # no such function, or no such library
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(-4, 0)  # M_MMAP_MAX
        mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD


def device_and_dtype(args: argparse.Namespace) -> tuple[str, torch.dtype]:
    """Where the weights and the signals are, and in which precision."""
    return args.device, torch.float64 if args.precision == "fp64" else torch.float32


def tensor(array: np.ndarray, args: argparse.Namespace) -> torch.Tensor:
    """The array on the device, in the precision of the weights."""
    return torch.from_numpy(array).to(*device_and_dtype(args), non_blocking=True)


def autocast(args: argparse.Namespace):
    """The arithmetic of --precision as a context."""
    return torch.autocast(torch.device(args.device).type, torch.bfloat16, enabled=args.precision == "bf16")
