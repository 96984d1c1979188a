"""Several processes that train one model: `torchrun --nproc-per-node 8 pretrain.py ...`, on one node or several.

Each process computes its share of every batch, and the gradients are added up, so that all hold the same weights.
The process of rank 0 alone prints and writes. Where torchrun started none (environment variable WORLD_SIZE), there is
one process, and nothing here does anything.

When one process fails or is killed, all end: torchrun stops the others of its node, within 30 s if they do not end by
themselves, and in the processes of other nodes the next exchange fails."""

import hashlib
import os
import sys
from contextlib import contextmanager, nullcontext, redirect_stderr, redirect_stdout

import torch
import torch.distributed as dist


def world() -> int:
    """The number of processes; ValueError where only half of what torchrun says is there."""
    if ("WORLD_SIZE" in os.environ) != ("RANK" in os.environ):
        raise ValueError("expected both or none of WORLD_SIZE and RANK in the environment, found one; unset it")
    return int(os.environ.get("WORLD_SIZE", "1"))


def rank() -> int:
    """The number of this process, from 0."""
    return int(os.environ["RANK"]) if world() > 1 else 0


def share(count: int) -> slice:
    """Which of `count` samples are this process's; none where there are fewer than processes."""
    return slice(rank() * count // world(), (rank() + 1) * count // world())


def add(tensor: torch.Tensor, operation=dist.ReduceOp.SUM) -> torch.Tensor:
    """The sum of what the processes have in `tensor`, which is overwritten; ConnectionError where one has ended."""
    if world() > 1:
        try:
            dist.all_reduce(tensor, operation)
        except RuntimeError as error:
            reason = str(error).split("] ", 1)[-1].split(". ")[0]  # "[file of gloo:line] Connection closed. Advice ..."
            raise ConnectionError(
                f"another process of this training was killed or does not answer ({reason}); the last checkpoint is "
                "kept, and the same command goes on from there"
            )
    return tensor


def add_gradients(model: torch.nn.Module, loss: torch.Tensor) -> torch.Tensor:
    """Put the sums over all processes into the gradients of `model`; the sum of their scalars `loss`."""
    if world() == 1:
        return loss
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    flat = add(torch.cat([*(gradient.flatten() for gradient in gradients), loss.reshape(1)]))
    *sums, loss = flat.split([*(gradient.numel() for gradient in gradients), 1])
    for gradient, sum_ in zip(gradients, sums):
        gradient.copy_(sum_.view_as(gradient))
    return loss[0]


def largest(number: int) -> int:
    """The largest of the processes' numbers."""
    return add(torch.tensor(number), dist.ReduceOp.MAX).item() if world() > 1 else number


def all_have(text: str) -> bool:
    """Whether all processes have the same text."""
    number = int.from_bytes(hashlib.sha256(text.encode()).digest()[:7])
    return largest(number) == -largest(-number)


def take_gpu(device: str) -> None:
    """Make "cuda" this process's own GPU, the one of its number within the node; ValueError where there is none."""
    if world() == 1 or not device.startswith("cuda"):
        return
    local, found = int(os.environ.get("LOCAL_RANK", rank())), torch.cuda.device_count()
    if device != "cuda":
        raise ValueError(f"--device {device}: each of {world()} processes takes a GPU of its own; leave the number out")
    if local >= found:
        raise ValueError(f"--device cuda: expected a GPU for process {local} of this node, found {found} GPUs")
    torch.cuda.set_device(local)


@contextmanager
def together():
    """Join the other processes, and end with them: the first to fail raises its error, the others exit with code 2 and
    print nothing. A GPU without memory is a ValueError."""
    try:
        with joined() if world() > 1 else nullcontext():
            yield
    except torch.OutOfMemoryError as error:
        raise ValueError(f"the GPU has too little memory ({error}); take a smaller --batch-size, or --device cpu")


@contextmanager
def joined():
    """`together` where there are several processes; ConnectionError where they cannot be joined."""
    # Imported by the first optimizer, it would keep the group's threads alive, which can abort a Python that ends.
    import torch._dynamo

    try:
        store, number, count = next(dist.rendezvous("env://"))
        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
        dist.init_process_group(backend, store=store, rank=number, world_size=count)
    except (RuntimeError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise ConnectionError(f"the {world()} processes of this training could not be joined ({reason})")
    try:
        with open(os.devnull, "w") as nowhere:
            out, err = (sys.stdout, sys.stderr) if rank() == 0 else (nowhere, nowhere)
            with redirect_stdout(out), redirect_stderr(err):
                yield
    except (Exception, KeyboardInterrupt):  # SystemExit is a signal, or --print-flags: the same in all of them
        if not is_first_to_fail(store):
            raise SystemExit(2) from None
        raise
    dist.destroy_process_group()


def is_first_to_fail(store: dist.Store) -> bool:
    """Whether no process has asked this before."""
    try:
        return store.add("failed", 1) == 1
    except RuntimeError:  # the store ended with the process that kept it
        return True
