"""Several processes that train one model: `torchrun --nproc-per-node 8 pretrain.py ...`, on one node or several.

Each process computes its share of every batch, and the gradients are added up, so that all hold the same weights.
The process of rank 0 alone prints and writes. Where torchrun started none (environment variable WORLD_SIZE), there is
one process, and nothing here does anything.

The processes stand in a ring, in which each listens to the next one: that one says DONE or FAILED before it ends, and
if it says nothing, it was killed. So all end soon after one has, in the midst of whatever they do.
"""

import hashlib
import os
import sys
import threading
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist

DONE, FAILED, LOST = 0, 1, 2
GRACE = 5.0  # s that a process has to end by itself, with nothing half-written, once another has failed
GONE = (
    "another process of this training was killed or does not answer{}; the last checkpoint is kept, and the same "
    "command goes on from there"
)


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
            raise ConnectionError(GONE.format(f" ({reason})"))
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


def refuse() -> None:
    """ValueError where several processes were started of a script that is one."""
    if world() > 1:
        if rank() > 0:
            raise SystemExit(2)
        raise ValueError(f"runs as one process, found WORLD_SIZE {world()}; call it with python, not torchrun")


@contextmanager
def together():
    """Join the other processes, and leave with them however the block ends. An error is raised in the process that
    fails first; the others then exit with code 2 and print nothing."""
    if world() == 1:
        yield
        return
    ring = Ring()
    try:
        with open(os.devnull, "w") as nowhere:
            with redirect_stdout(sys.stdout if rank() == 0 else nowhere):
                with redirect_stderr(sys.stderr if rank() == 0 else nowhere):
                    yield
    except SystemExit:  # flags that are wrong, or a signal: the same in all of them
        ring.leave(DONE)
        raise
    except BaseException:
        first = ring.is_first_to_fail()
        ring.leave(FAILED)
        if not first:
            raise SystemExit(2) from None
        raise
    ring.leave(DONE)


class Ring(threading.Thread):
    """Joins the other processes, then listens to the next one. Raises ConnectionError where they cannot be joined."""

    def __init__(self):
        super().__init__(daemon=True)
        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
        try:
            self.store, number, count = next(dist.rendezvous("env://"))
            dist.init_process_group(backend, store=self.store, rank=number, world_size=count)
            self.group = dist.new_group(backend="gloo", timeout=timedelta(days=365))
        except (RuntimeError, ValueError) as error:
            reason = str(error).splitlines()[0]
            raise ConnectionError(f"the {world()} processes of this training could not be joined ({reason})")
        self.leaving, self.heard = threading.Event(), LOST
        self.start()

    def run(self):
        word = torch.tensor(LOST)
        with suppress(RuntimeError):
            dist.recv(word, (rank() + 1) % world(), group=self.group)
        self.heard = word.item()
        if self.heard == DONE or self.leaving.wait(GRACE):
            return
        if self.heard == LOST and self.is_first_to_fail():
            print(f"{Path(sys.argv[0]).name}: {GONE.format('')}", file=sys.__stderr__)
        self.say(FAILED)
        os._exit(2)

    def say(self, word: int) -> None:
        with suppress(RuntimeError):  # the process before this one has ended already
            dist.send(torch.tensor(word), (rank() - 1) % world(), group=self.group)

    def is_first_to_fail(self) -> bool:
        try:
            return self.store.add("failed", 1) == 1
        except RuntimeError:  # the store ended with the process that kept it
            return True

    def leave(self, word: int) -> None:
        """Tell the process before this one, and wait for the next one."""
        self.leaving.set()
        self.say(word)
        self.join(None if word == DONE else 2 * GRACE)
        if word == DONE and self.heard == LOST:
            raise ConnectionError(GONE.format(""))
        if word == DONE:
            dist.destroy_process_group()
