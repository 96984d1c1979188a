"""The training loop that pretrain.py, finetune.py and fuse.py share: seeds, schedules, the loop in parts, resume, log.

All randomness is a function of (seed, step): the order of an epoch, the masks and the dropout of a step are drawn
afresh from those numbers. So training that was killed at any moment and started again ends in the same weights as
training left alone. Orders, masks and the layers' dropout (on GPUs, that of attention) are those of the whole batch
also where several processes share it: their number changes the other dropouts and the last bits alone."""

import argparse
import json
import signal
import time
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from common import script
from common.files import write_atomically
from common.script import plain_flags, positive
from paper import MODALITIES, TARGETS
from protocol import records
from protocol import run as runs
from protocol.leaks import open_test_sets, seen
from training import checkpoints, distributed, machine
from training.trained import load_weights, write_predictions

FINITE_EVERY = 20  # steps between two looks at the loss: each look makes the CPU wait for the GPU


def parse(doc: str, stage: str) -> argparse.Namespace:
    """The flags of pretrain.py, finetune.py or fuse.py, those of the run resolved; doc: the docstring of the script."""
    parser = script.Parser(doc)
    if stage != "fuse":
        parser.add_argument("--modality", choices=MODALITIES, required=True, help="signals to learn from (paper 3)")
    if stage != "pretrain":
        parser.add_argument("--target", choices=TARGETS, required=True, help="what to recognise (paper 3.2.2)")
    fold = positive(int, zero=True)
    parser.add_argument("--fold", type=fold, required=True, metavar="K", help="test fold, counted from 0 (paper 5)")
    runs.add_flags(parser)
    if stage == "pretrain":
        what = "further prepared data sets (paper 4.1.1)"
        parser.add_argument("--extra", type=Path, nargs="*", default=[], metavar="DIR", help=what)
    else:
        add_variants(parser.add_argument_group("variants, named in the files as in arousal-random.pt"))
    script.add_hyperparameters(parser, stage)
    group = parser.add_argument_group("machine and checkpoints")
    machine.add_flags(group)
    what = "save this often within an epoch; 0: every step (default: %(default)s; assumed)"
    group.add_argument("--checkpoint-minutes", type=positive(float, zero=True), default=10.0, metavar="X", help=what)
    group.add_argument("--fresh", action="store_true", help="start over, replacing what an earlier call wrote")
    script.add_print_flag(group)
    what = "take hyper-parameters from a best.json of tune.py, where no flag names them (paper 4.3, 4.4)"
    group.add_argument("--hyperparameters", type=Path, metavar="FILE", help=what)
    what = (
        "a trial of tune.py: write to DIR and end with the validation loss. The signals of the fold's test "
        "segments are not read, and nothing is predicted (paper 4.3, 4.4)"
    )
    group.add_argument("--validation-only", type=Path, metavar="DIR", help=what)
    args = parser.parse_args()
    if args.validation_only and getattr(args, "test_data", None):
        raise ValueError("--validation-only: makes no predictions; leave out --test-data")
    runs.resolve_flags(args)
    return args


def add_variants(group) -> None:
    """The flags of finetune.py and fuse.py that give a model files of its own, and --test-data."""
    what = "first weights (paper 3.2.2, 5.1, 5.3)"
    group.add_argument("--init", choices=("pretrained", "random"), default="pretrained", help=what)
    what = (
        "train the classifier alone, on CNN, CLS and Transformer as --init left them, without dropout there "
        "(-frozen; default: everything is trained, paper 3.2.2)"
    )
    group.add_argument("--freeze", action="store_true", help=what)
    script.add_label_flags(group)
    what = (
        "after training, also predict every rated segment of these other prepared sets, with the same channels, "
        "rate, length and pre-processing, into arousal@dreamer.npy. Scales of rating differ: high is above the mean "
        "that --threshold takes of the other set's own ratings; a number is taken as it is (assumed)"
    )
    group.add_argument("--test-data", type=Path, nargs="+", default=[], metavar="DATA", help=what)


def warmup_then_linear(args: argparse.Namespace):
    """Linear rise to `lr` over `warmup_epochs`, then linear decay to 0 after the last step (paper 4.3)."""

    def learning_rate(step: int, steps: int) -> float:
        warmup, total = args.warmup_epochs * steps, args.epochs * steps
        return args.lr * ((step + 1) / warmup if step < warmup else (total - step) / (total - warmup))

    return learning_rate


def step_decay(args: argparse.Namespace):
    """`lr` times `lr_factor` every `lr_every` epochs (paper 4.3, 4.4)."""

    def learning_rate(step: int, steps: int) -> float:
        return args.lr * args.lr_factor ** (step // steps // args.lr_every)

    return learning_rate


def optimizer_of(model, args: argparse.Namespace) -> torch.optim.Optimizer:
    """Adam with L2 weight decay (paper 4.3, 4.4), in the form of --decay (assumed).

    decoupled: the matrices shrink beside Adam's step; norms, biases and CLS, which have one dimension, do not. coupled:
    the decay of all weights is part of the gradient, which Adam divides by its size: where it is weak, only decay acts.
    """
    parameters, options = list(model.parameters()), {"lr": args.lr, "betas": (args.beta1, args.beta2), "fused": True}
    if args.decay == "coupled":
        return torch.optim.Adam(parameters, weight_decay=args.weight_decay, **options)
    decayed = {"params": [each for each in parameters if each.ndim > 1], "weight_decay": args.weight_decay}
    kept = {"params": [each for each in parameters if each.ndim <= 1], "weight_decay": 0.0}
    return torch.optim.AdamW([decayed, kept], **options)


def seed_step(seed: int, step: int) -> torch.Generator:
    """Seed torch for one step (dropout) and return a CPU generator for its masks; validation counts steps from -1 down,
    so that its masks are the same in every epoch."""
    number = int(np.random.SeedSequence([seed, step + 2**32]).generate_state(1, np.uint64)[0] >> 1)
    torch.manual_seed(number)
    return torch.Generator().manual_seed(number)


def layer_seeds(generator: torch.Generator, count: int, mine: slice, args) -> torch.Tensor:
    """(layers, b) int64 seeds of the dropout of the layers for the samples `mine` of a batch of `count`, the same
    whatever the number of processes."""
    source = None  # torch's generator, which several processes have seeded apart
    if distributed.world() > 1:
        source = torch.Generator(args.device).manual_seed(generator.initial_seed())
    return torch.randint(2**62, (args.layers, count), generator=source, device=args.device)[:, mine]


def share_of(loss, places: np.ndarray, generator: torch.Generator, args) -> torch.Tensor:
    """What this process adds to the mean loss of the batch at `places`."""
    mine = distributed.share(len(places))
    if distributed.world() > 1:  # no two processes drop the same
        torch.manual_seed(generator.initial_seed() + 1 + distributed.rank())
    with machine.autocast(args):
        if mine.start < mine.stop:
            return loss(places, generator, mine)
        return 0 * loss(places, generator, slice(0, 1))  # for gradients of zeros where a process has no sample


def validation_batches(validation: np.ndarray, args):
    """Yield the places and the generator of each validation batch."""
    for number, places in enumerate(np.array_split(validation, -(-len(validation) // args.batch_size))):
        yield places, seed_step(args.seed, -1 - number)


class Training:
    """The training of one model: how far it is, and each act of its loop.

    loss(places, generator, mine) -> the share of the samples places[mine] in the mean loss of the samples at `places`,
    random by `generator` or `layer_seeds`; train, validation: places (int arrays); learning_rate(step, steps an epoch);
    path: the checkpoint, with a log of one JSON line an epoch beside it (.jsonl); record: kept in the checkpoint and
    compared on resuming; origin: kept; watch: a `Watch` or None; about: what each line of the log says, too."""

    def __init__(
        self, run, model, loss, train, validation, learning_rate, path, args, record, origin, watch=None, about=None
    ):
        self.run, self.model, self.loss, self.train, self.validation = run, model, loss, train, validation
        self.learning_rate, self.path, self.args, self.record, self.origin = learning_rate, path, args, record, origin
        self.watch, self.about = watch, about or {}
        self.flags, self.log = plain_flags(args), path.with_suffix(".jsonl")
        self.optimizer = optimizer_of(model, args)
        self.steps = -(-len(train) // args.batch_size)  # of an epoch
        self.epoch, self.step = 0, 0  # finished epochs, and finished steps of the one at work
        self.total, self.seconds, self.lr = 0.0, 0.0, args.lr  # of the epoch at work: sum of the losses, time
        self.first = distributed.rank() == 0  # this process writes and prints
        self.resumed = path.exists() and not args.fresh

    def fit(self) -> None:
        """Train `model` for args.epochs, or go on where an earlier call stopped. Raises ValueError where a checkpoint
        is of another making, or the loss is not finite; SystemExit on SIGTERM and Ctrl-C, after saving."""
        self.begin()
        done = self.epoch * self.steps + self.step
        bar = tqdm(total=self.args.epochs * self.steps, initial=done, unit="step", disable=None, smoothing=0.05)
        with stop_signals() as self.received, bar:
            self.saved = time.monotonic()
            while self.epoch < self.args.epochs:
                # One pass over the training segments, in an order that only the seed and the epoch decide.
                self.train_epoch(bar)
                # The loss on the validation segments, under masks that are the same in every epoch.
                validation_loss = self.validate()
                # A line of the log says what the epoch gave, and a checkpoint is what the next epoch starts from.
                self.close_epoch(validation_loss, bar)

    def begin(self) -> None:
        """Take up the checkpoint, or clear away what an earlier training left; read the log."""
        if self.resumed:
            self.resume()
        elif self.watch:
            self.watch.begin()
        # All processes have read the checkpoint, too, before the first one writes a new one.
        fixed = {**self.flags, **dict.fromkeys(records.FREE_FLAGS)}
        if not distributed.all_have(json.dumps([self.epoch, self.step, self.record, fixed])):
            raise ValueError(
                f"{self.path}: expected the same checkpoint, data and flags in all processes, found others in some; "
                "start all with the same command, and keep --run and the data where every node sees them"
            )
        self.lines = []
        if self.first:
            machine.say_crowded(self.args)
            self.run.start()
            self.path.parent.mkdir(parents=True, exist_ok=True)
            # A call that was killed while it was writing has left these.
            for unfinished in self.path.parent.glob(f"{self.path.stem}.*.tmp"):
                unfinished.unlink()
            # A line after these was written, but the checkpoint that follows it was not.
            self.lines = records.read_log(self.log)[: self.epoch]

    def resume(self) -> None:
        """Load the checkpoint; ValueError where it is of another making, or its flags are others."""
        path, state = self.path, checkpoints.take_up(self.path, self.record, self.flags)
        load_weights(self.model, path, state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.watch:
            self.watch.take_up(path, state["watch"])
        self.epoch, self.step, schedule = state["epoch"], state["random"]["step"], state["schedule"]
        self.total, self.seconds, self.lr = schedule["loss_sum"], schedule["seconds"], schedule["lr"]
        if (threads := state["flags"]["threads"]) != self.flags["threads"]:
            print(f"{path}: was trained with --threads {threads}; results may differ in the last bits")
        print(f"{path}: resuming at epoch {self.epoch + 1}, step {self.step}", flush=True)

    def train_epoch(self, bar) -> None:
        """Take the steps of one epoch that are left."""
        args = self.args
        order = np.random.default_rng([args.seed, self.epoch]).permutation(self.train)
        self.model.train()
        self.sum = torch.tensor(self.total, dtype=torch.float64, device=args.device)
        self.seen, self.rate = 0, None
        self.started = self.last = time.monotonic()
        while self.step < self.steps:
            places = order[self.step * args.batch_size : (self.step + 1) * args.batch_size]
            self.sum += self.train_step(places) * len(places)
            self.step, self.seen = self.step + 1, self.seen + len(places)
            # The processes agree on whether to stop: all of them make the same steps.
            stop = self.asked()
            save_now = stop or time.monotonic() - self.saved >= 60 * args.checkpoint_minutes
            # Rarely, for it makes the CPU wait for the GPU: is the loss a number still, and how fast is this?
            if self.step % FINITE_EVERY == 0 or self.step == self.steps or save_now:
                self.look(bar)
            bar.update()
            if save_now:
                self.stop_if(stop)
                self.save()

    def train_step(self, places: np.ndarray) -> torch.Tensor:
        """One step on the samples at `places`; their mean loss."""
        args, number = self.args, self.epoch * self.steps + self.step
        generator = seed_step(args.seed, number)
        self.lr = self.learning_rate(number, self.steps)
        for group in self.optimizer.param_groups:
            group["lr"] = self.lr
        # Each process has the gradient of its share of the batch; their sum is that of the batch.
        own_loss = share_of(self.loss, places, generator, args)
        own_loss.backward()
        batch_loss = distributed.add_gradients(self.model, own_loss.detach())
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return batch_loss

    def look(self, bar) -> None:
        """Bring loss, time and speed up to date; ValueError where the loss is not finite."""
        self.total = self.sum.item()
        if not np.isfinite(self.total):
            raise ValueError(
                f"{self.path}: the loss is not finite at epoch {self.epoch + 1}, step {self.step} (within the last "
                f"{FINITE_EVERY} steps), learning rate {self.lr:.2e}; the last checkpoint is kept: lower --lr"
            )
        now = time.monotonic()
        self.seconds, self.last = self.seconds + now - self.last, now
        self.rate = self.seen / (now - self.started)
        loss = self.total / min(self.step * self.args.batch_size, len(self.train))
        bar.set_postfix_str(f"epoch {self.epoch + 1}, loss {loss:.4f}, {self.rate:.1f} samples/s", refresh=False)

    @torch.no_grad()
    def validate(self) -> float:
        """The mean loss on the validation samples; ValueError where it is not finite."""
        self.model.eval()
        sum_ = torch.zeros((), dtype=torch.float64, device=self.args.device)
        for places, generator in validation_batches(self.validation, self.args):
            sum_ += share_of(self.loss, places, generator, self.args) * len(places)
            self.stop_if(self.asked())
        distributed.add(sum_)
        if not torch.isfinite(sum_):
            raise ValueError(
                f"{self.path}: the validation loss is not finite after epoch {self.epoch + 1}; the last checkpoint is "
                "kept: lower --lr"
            )
        return sum_.item() / len(self.validation)

    def close_epoch(self, validation_loss: float, bar) -> None:
        """Write the epoch's line of the log, then the checkpoint, and stop here if a signal asked for it."""
        line = {
            "epoch": self.epoch + 1,
            "train_loss": self.total / len(self.train),
            "validation_loss": validation_loss,
            "lr": self.lr,
            "samples_per_s": None if self.rate is None else round(self.rate, 2),
            "seconds": round(self.seconds, 3),
            "resumed": self.resumed,
            **self.about,
        }
        warning = ""
        if self.watch:
            line["watch"], warning = self.watch.after_epoch()
        self.lines.append(line)
        if self.first:
            text = "".join(json.dumps(each) + "\n" for each in self.lines)
            write_atomically(self.log, lambda file: file.write(text.encode()))
        if bar.disable:
            print(
                f"{self.path}: epoch {self.epoch + 1}/{self.args.epochs}, loss {line['train_loss']:.4f}, "
                f"validation {line['validation_loss']:.4f}, {line['samples_per_s']} samples/s",
                flush=True,
            )
        if warning and self.first:
            bar.write(f"note: {self.path}: epoch {self.epoch + 1}, {warning}")
        self.epoch, self.step, self.total, self.seconds, self.resumed = self.epoch + 1, 0, 0.0, 0.0, False
        self.save()
        self.stop_if(self.asked())

    def save(self) -> None:
        """Write the checkpoint, by the first process alone, and note the time."""
        if self.first:
            state = {
                "model": self.model.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "schedule": {"lr": self.lr, "loss_sum": self.total, "seconds": self.seconds},
                "epoch": self.epoch,
                "random": {"step": self.step},
                "watch": self.watch.state if self.watch else {},
                "flags": self.flags,
                "record": self.record,
                **self.origin,
                "versions": records.versions(torch),
            }
            checkpoints.save(self.path, state)
            # What an earlier training predicted goes with its weights, and not before.
            if not self.resumed:
                predicted = [self.path.with_suffix(ending) for ending in (".npy", ".json")]
                for each in [*predicted, *self.path.parent.glob(f"{self.path.stem}@*")]:
                    each.unlink(missing_ok=True)
        self.saved = time.monotonic()

    def asked(self) -> int:
        """The signal that this or another process has received, else 0."""
        return distributed.largest(self.received[0] if self.received else 0)

    def stop_if(self, number: int) -> None:
        """Save and raise SystemExit where `number` is that of a signal."""
        if number:
            self.save()
            go_on = "the same command without --fresh" if self.args.fresh else "the same command"
            print(
                f"{self.path}: stopped by {signal.Signals(number).name} at epoch {self.epoch + 1}, step {self.step}; "
                f"{go_on} goes on from there",
                flush=True,
            )
            raise SystemExit(128 + number)


def train_and_test(run: runs.Run, model: records.Model, rows: dict, labels, record: dict, before: list, args, train):
    """Train a model that knows labels, unless an earlier call did, and write its predictions of the test segments.

    before: what the models that it is made from have `seen`; train(path, record, origin) trains it. Raises ValueError
    where a set of --test-data does not fit, or an earlier training had other data, folds or flags."""
    path = checkpoint_path(run, model, args)
    known = seen([(run.data, np.concatenate([rows["train"], rows["validation"]]))], before)
    origin = checkpoints.origin(run.data, model.modalities, known)
    others = open_test_sets(run, args.test_data, args.target, known, args.trust_data)
    for data, *_ in others:
        checkpoints.check_data(run.data.folder, origin, data)
    with checkpoints.only_training(path):
        if not is_finished(path, record, args):
            train(path, record, origin)
        # The test segments are looked at here, once, after the last epoch.
        if not args.validation_only and distributed.rank() == 0:
            write_predictions(path, run, [(run.data, rows["test"], labels), *others], args)


def checkpoint_path(run: runs.Run, model: records.Model, args: argparse.Namespace) -> Path:
    """The checkpoint of a model in its run, or in the folder of --validation-only."""
    path = model.path(run.folder, args.fold, getattr(args, "target", None), ".pt")
    return args.validation_only / path.name if args.validation_only else path


def is_finished(path: Path, record: dict, args: argparse.Namespace) -> bool:
    """Whether an earlier call finished this training; ValueError where it had other data, folds or flags."""
    if args.fresh or not path.exists():
        return False
    return checkpoints.take_up(path, record, plain_flags(args))["epoch"] >= args.epochs


@contextmanager
def stop_signals():
    """Yields a list that receives the signals that end a training; a second one ends the process at once.

    SIGHUP comes where a terminal is closed (under nohup it is ignored, and stays so), SIGUSR1 from Slurm."""
    received = []
    numbers = [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1]
    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
        numbers.append(signal.SIGHUP)

    def note(number, _frame):
        received.append(number)
        for each in previous:
            signal.signal(each, signal.SIG_DFL)

    previous = {number: signal.signal(number, note) for number in numbers}
    try:
        yield received
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
