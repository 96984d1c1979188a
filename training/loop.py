"""Device, precision, schedules, training loop, resume and log: what the three training scripts share.

All randomness is a function of (seed, step): the order of an epoch, the masks and the dropout of a step are drawn
afresh from those numbers. So a checkpoint needs no generator's state, and training that was killed at any moment and
started again ends in the same weights as training left alone. Orders, masks and the layers' dropout (on GPUs, that of
attention) are those of the whole batch in each of several processes (ranks.py), which take their share of it: their
number changes the other dropouts and the last bits alone.
"""

import argparse
import ctypes
import json
import signal
import sys
import time
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

import paper
from common.files import load_array, write_atomically, write_json
from protocol.batches import SignalRows
from protocol.folds import data_sha256
from training import checkpoints, distributed

PREDICTION_DTYPE = np.dtype([("segment", "i8"), ("label", "i1"), ("probability", "f4")])
AGAIN = "remove it and call the script that wrote it again"
FINITE_EVERY = 20  # steps between two looks at the loss: each look makes the CPU wait for the GPU


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Flags shared by the training scripts."""
    whole = paper.positive(int, zero=True)
    group = parser.add_argument_group("fold, machine and checkpoints")
    group.add_argument("--fold", type=whole, required=True, metavar="K", help="test fold, counted from 0 (paper 5)")
    add_machine_flags(group)
    group.add_argument(
        "--checkpoint-minutes",
        type=paper.positive(float, zero=True),
        default=10.0,
        metavar="X",
        help="save this often within an epoch; 0: every step (default: %(default)s; assumed)",
    )
    group.add_argument("--fresh", action="store_true", help="start over, replacing what an earlier call wrote")
    group.add_argument("--print-flags", action="store_true", help="print every resolved flag as JSON and stop")
    group.add_argument(
        "--hyperparameters",
        type=Path,
        metavar="FILE",
        help="take hyper-parameters from a best.json of tune.py, where no flag names them (paper 4.3, 4.4)",
    )
    group.add_argument(
        "--validation-only",
        type=Path,
        metavar="DIR",
        help="a trial of tune.py: write to DIR and end with the validation loss. The signals of the fold's test "
        "segments are not read, and nothing is predicted (paper 4.3, 4.4)",
    )


def add_machine_flags(group) -> None:
    """Device, precision and threads."""
    group.add_argument(
        "--device", default="auto", help="cpu, cuda, cuda:1 ... (default: cuda if there is one; assumed)"
    )
    group.add_argument(
        "--precision",
        choices=("auto", "fp32", "bf16", "fp64"),
        default="auto",
        help="arithmetic; weights stay fp32, but with fp64, which is slow and there to compare with (default: bf16 on "
        "CUDA, else fp32; assumed)",
    )
    group.add_argument(
        "--threads",
        type=paper.positive(int),
        default=torch.get_num_threads(),
        metavar="N",
        help="CPU threads; results are bit-equal for the same number (default: %(default)s; assumed)",
    )


def finish_flags(args: argparse.Namespace) -> None:
    """Resolve `auto`, print the flags where asked to (SystemExit), set the number of threads.

    Raises ValueError for flags that contradict each other, and for a device that cannot be used.
    """
    if args.validation_only and getattr(args, "test_data", None):
        raise ValueError("--validation-only: makes no predictions; leave out --test-data")
    use_machine(args)


def use_machine(args: argparse.Namespace) -> None:
    """The device, precision and threads of `finish_flags`; ValueError for a device that cannot be used."""
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


def keep_memory() -> None:
    """Have the GNU C library keep freed memory for the next step instead of giving it back to the system, which would
    clear each page again: M_MMAP_MAX 0, M_TRIM_THRESHOLD 2 GB. Elsewhere nothing happens."""
    with suppress(AttributeError, OSError, TypeError):  # no such function, or no such library
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(-4, 0)
        mallopt(-1, 2**31 - 1)


def stop_if_printing(args: argparse.Namespace) -> None:
    """With --print-flags, print the resolved flags as JSON and raise SystemExit."""
    if args.print_flags:
        print(json.dumps(plain_flags(args), indent=1))
        raise SystemExit(0)


def plain_flags(args: argparse.Namespace) -> dict:
    """The flags as JSON values."""
    return json.loads(json.dumps(dict(sorted(vars(args).items())), default=str))


def run_script(main, processes: bool = False) -> None:
    """Call `main()`; what is wrong with the user's files or flags ends in one line on stderr and exit code 2.

    processes: the script may be one of several processes that train together.
    """
    try:
        if not processes:
            distributed.refuse()
        with distributed.together():
            main()
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        complain(f"{where}{error.strerror or error}")
    except ValueError as error:
        complain(str(error))
    except torch.OutOfMemoryError as error:
        complain(f"the GPU has too little memory ({error}); take a smaller --batch-size, or --device cpu")
    except KeyboardInterrupt:
        raise SystemExit(128 + signal.SIGINT)


def complain(line: str) -> None:
    """Print one line on stderr and exit with code 2."""
    print(f"{Path(sys.argv[0]).name}: {' '.join(line.split())}", file=sys.stderr)
    raise SystemExit(2)


def device_and_dtype(args: argparse.Namespace) -> tuple[str, torch.dtype]:
    """Where the weights and the signals are, and in which precision."""
    return args.device, torch.float64 if args.precision == "fp64" else torch.float32


def autocast(args: argparse.Namespace):
    """The arithmetic of --precision as a context."""
    return torch.autocast(torch.device(args.device).type, torch.bfloat16, enabled=args.precision == "bf16")


# ---- schedules: (step, steps an epoch) -> learning rate -------------------------------------------------------------


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


# ---- the loop -------------------------------------------------------------------------------------------------------


@contextmanager
def stop_signals():
    """Yields a list that receives SIGTERM or SIGINT; a second one ends the process at once."""
    received = []

    def note(number, _frame):
        received.append(number)
        for each in previous:
            signal.signal(each, signal.SIG_DFL)

    previous = {number: signal.signal(number, note) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield received
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def is_done(path: Path, predictions: Path | None, identity: dict, args) -> bool:
    """Whether an earlier call with the same flags finished this training and wrote its predictions; ValueError where
    it had other data, folds or flags."""
    if args.fresh or not path.exists():
        return False
    state = checkpoints.load(path, "")
    checkpoints.check_identity(path, state["identity"], identity)
    checkpoints.check_flags(path, state["flags"], plain_flags(args))
    if state["epoch"] < args.epochs or (predictions and not predictions.exists()):
        return False
    print(f"{path}: already done, nothing to do")
    return True


def resume(path: Path, model, optimizer, identity: dict, flags: dict) -> tuple[int, int, float, float, float]:
    """Load a checkpoint into `model` and `optimizer`; epoch, step, sum of its losses, its seconds and learning rate.

    Raises ValueError where the checkpoint is of another making, or its flags are others.
    """
    state = checkpoints.load(path, "")
    checkpoints.check_identity(path, state["identity"], identity)
    checkpoints.check_flags(path, state["flags"], flags)
    checkpoints.load_weights(model, path, state["model"])
    optimizer.load_state_dict(state["optimizer"])
    epoch, step, schedule = state["epoch"], state["random"]["step"], state["schedule"]
    if state["flags"]["threads"] != flags["threads"]:
        print(f"{path}: was trained with --threads {state['flags']['threads']}; results may differ in the last bits")
    print(f"{path}: resuming at epoch {epoch + 1}, step {step}", flush=True)
    return epoch, step, schedule["loss_sum"], schedule["seconds"], schedule["lr"]


def fit(model, loss, train, validation, learning_rate, path: Path, args, identity: dict, origin: dict) -> None:
    """Train `model` for args.epochs, or go on where an earlier call stopped.

    loss(places, generator, mine) -> what the samples places[mine] add to the mean loss of those at `places`; what it
    draws at random for all `places` it draws from `generator`, or is seeded by `layer_seeds`;
    train, validation: places (int arrays); learning_rate(step, steps an epoch); path: the checkpoint, with a log of
    one JSON line an epoch beside it (.jsonl); identity: kept in the checkpoint and compared on resuming; origin: kept.
    Raises ValueError where a checkpoint is of another making, or the loss is not finite; on SIGTERM and Ctrl-C,
    SystemExit after saving.
    """
    flags = plain_flags(args)
    device, log = torch.device(args.device), path.with_suffix(".jsonl")
    optimizer = torch.optim.Adam(
        model.parameters(), lr=args.lr, betas=(args.beta1, args.beta2), weight_decay=args.weight_decay, fused=True
    )
    steps = -(-len(train) // args.batch_size)
    epoch, step, total, seconds, lr = 0, 0, 0.0, 0.0, args.lr
    first, resumed = distributed.rank() == 0, path.exists() and not args.fresh

    if resumed:
        epoch, step, total, seconds, lr = resume(path, model, optimizer, identity, flags)
    # All have read the checkpoint, too, before the first writes a new one.
    if not distributed.all_have(json.dumps([epoch, step, identity, {**flags, **dict.fromkeys(checkpoints.FREE_FLAGS)}])):
        raise ValueError(
            f"{path}: expected the same checkpoint, data and flags in all processes, found others in some; start all "
            "with the same command, and keep --run and the data where every node sees them"
        )
    if first:
        path.parent.mkdir(parents=True, exist_ok=True)
        if not resumed:
            for old in (path, log, path.with_suffix(".npy"), *path.parent.glob(f"{path.stem}@*")):
                old.unlink(missing_ok=True)
        for unfinished in path.parent.glob(f"{path.stem}.*.tmp"):  # of a call that was killed while writing
            unfinished.unlink()
    lines = read_log(log, epoch) if first else []

    def save():
        if not first:
            return
        checkpoints.save(
            path,
            {
                "model": model.state_dict(),
                "optimizer": optimizer.state_dict(),
                "schedule": {"lr": lr, "loss_sum": total, "seconds": seconds},
                "epoch": epoch,
                "random": {"step": step},
                "flags": flags,
                "identity": identity,
                **origin,
                "versions": checkpoints.versions(),
            },
        )

    def asked() -> int:
        """The signal that this or another process has received, else 0."""
        return distributed.largest(received[0] if received else 0)

    def stop_if(number: int):
        if number:
            save()
            name = signal.Signals(number).name
            go_on = "the same command without --fresh" if args.fresh else "the same command"
            print(
                f"{path}: stopped by {name} at epoch {epoch + 1}, step {step}; {go_on} goes on from there", flush=True
            )
            raise SystemExit(128 + number)

    bar = tqdm(total=args.epochs * steps, initial=epoch * steps + step, unit="step", disable=None, smoothing=0.05)
    with stop_signals() as received, bar:
        saved = time.monotonic()
        while epoch < args.epochs:
            order = np.random.default_rng([args.seed, epoch]).permutation(train)
            model.train()
            sum_, seen = torch.tensor(total, dtype=torch.float64, device=device), 0
            started = last = time.monotonic()
            while step < steps:
                places = order[step * args.batch_size : (step + 1) * args.batch_size]
                generator = seed_step(args.seed, epoch * steps + step)
                lr = learning_rate(epoch * steps + step, steps)
                for group in optimizer.param_groups:
                    group["lr"] = lr
                own_loss = share_of(loss, places, generator, args)
                own_loss.backward()
                batch_loss = distributed.add_gradients(model, own_loss.detach())
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
                sum_ += batch_loss * len(places)
                step, seen = step + 1, seen + len(places)
                stop = asked()
                save_now = stop or time.monotonic() - saved >= 60 * args.checkpoint_minutes
                if step % FINITE_EVERY == 0 or step == steps or save_now:
                    total = sum_.item()
                    if not np.isfinite(total):
                        raise ValueError(
                            f"{path}: the loss is not finite at epoch {epoch + 1}, step {step} (within the last "
                            f"{FINITE_EVERY} steps), learning rate {lr:.2e}; the last checkpoint is kept: lower --lr"
                        )
                    now = time.monotonic()
                    seconds, last = seconds + now - last, now
                    done = min(step * args.batch_size, len(train))
                    rate = seen / (now - started)
                    bar.set_postfix_str(
                        f"epoch {epoch + 1}, loss {total / done:.4f}, {rate:.1f} samples/s", refresh=False
                    )
                bar.update()
                if save_now:
                    stop_if(stop)
                    save()
                    saved = time.monotonic()

            model.eval()
            validation_sum = torch.zeros((), dtype=torch.float64, device=device)
            with torch.no_grad():
                for places, generator in validation_batches(validation, args):
                    validation_sum += share_of(loss, places, generator, args) * len(places)
                    stop_if(asked())
            distributed.add(validation_sum)
            if not torch.isfinite(validation_sum):
                raise ValueError(
                    f"{path}: the validation loss is not finite after epoch {epoch + 1}; the last checkpoint is kept: "
                    "lower --lr"
                )
            line = {
                "epoch": epoch + 1,
                "train_loss": total / len(train),
                "validation_loss": validation_sum.item() / len(validation),
                "lr": lr,
                "samples_per_s": round(rate, 2) if seen else None,
                "seconds": round(seconds, 3),
                "resumed": resumed,
            }
            lines.append(json.dumps(line) + "\n")
            if first:
                write_atomically(log, lambda file: file.write("".join(lines).encode()))
            if bar.disable:
                print(
                    f"{path}: epoch {epoch + 1}/{args.epochs}, loss {line['train_loss']:.4f}, "
                    f"validation {line['validation_loss']:.4f}, {line['samples_per_s']} samples/s",
                    flush=True,
                )
            epoch, step, total, seconds, resumed = epoch + 1, 0, 0.0, 0.0, False
            save()
            saved = time.monotonic()
            stop_if(asked())


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
    with autocast(args):
        if mine.start < mine.stop:
            return loss(places, generator, mine)
        return 0 * loss(places, generator, slice(0, 1))  # for gradients of zeros where a process has no sample


def validation_batches(validation: np.ndarray, args):
    """Yield the places and the generator of each validation batch."""
    for number, places in enumerate(np.array_split(validation, -(-len(validation) // args.batch_size))):
        yield places, seed_step(args.seed, -1 - number)


def read_log(log: Path, epochs: int) -> list[str]:
    """The lines of a log up to `epochs`: one after them was written, but the checkpoint that follows it was not."""
    try:
        return log.read_text().splitlines(keepends=True)[:epochs] if log.exists() else []
    except UnicodeDecodeError as error:
        raise ValueError(f"{log}: expected one line of JSON an epoch, found {error}; remove it")


@torch.no_grad()
def predict(forward, model, signals: SignalRows, places: np.ndarray, args) -> torch.Tensor:
    """forward(batch (B, C, L)) at all `places`, without dropout, as one tensor on the device: float32, or float64 with
    --precision fp64."""
    model.eval()
    outputs = []
    batches = np.array_split(places, -(-len(places) // args.batch_size))
    for batch in tqdm(batches, desc="predicting", unit="batch", disable=None, leave=False):
        with autocast(args):
            outputs.append(forward(signals.batch(batch, *device_and_dtype(args))).to(device_and_dtype(args)[1]))
    return torch.cat(outputs)


def read_predictions(path: Path, advice: str = AGAIN) -> np.ndarray:
    """The rows of a prediction file (PREDICTION_DTYPE); ValueError, ending in `advice`, where it is none."""
    predictions = load_array(path, advice)
    if predictions.dtype != PREDICTION_DTYPE or predictions.ndim != 1:
        found = f"{predictions.shape} of {predictions.dtype}"
        raise ValueError(f"{path}: expected rows of {PREDICTION_DTYPE}, found {found}; {advice}")
    return predictions


def write_predictions(path: Path, rows: np.ndarray, labels: np.ndarray, logits: torch.Tensor) -> None:
    """Write the test predictions: structured (segment, label, probability), one a row of segments.npy.

    logits: (n,), or (K, n), of which the K probabilities are averaged.
    """
    predictions = np.empty(len(rows), PREDICTION_DTYPE)
    predictions["segment"], predictions["label"] = rows, labels[rows]
    predictions["probability"] = torch.sigmoid(logits.double()).reshape(-1, len(rows)).mean(dim=0).cpu().numpy()
    write_atomically(path, lambda file: np.save(file, predictions))
    print(f"{path}: {len(rows)} test predictions")


def predict_elsewhere(path: Path, sets: list, logits, args: argparse.Namespace) -> None:
    """Predict the other labelled sets (`folds.open_test_sets`) with the model of `path`, unless that was done.

    logits(data, rows) -> as `write_predictions` takes them. Writes <stem>@<data set>.npy, whose rows are those of the
    other set's segments.npy, and then .json, which says which set that was. Raises ValueError where there are
    predictions on another set of the same name.
    """
    for data, rows, labels in sets:
        predictions = path.with_name(f"{path.stem}@{data.manifest['dataset']}.npy")
        about = {
            "data": str(data.folder),
            "data_set": data.manifest["dataset"],
            "data_sha256": data_sha256(data),
            "threshold": args.threshold,
        }
        note = predictions.with_suffix(".json")
        if predictions.exists() and note.exists() and note.read_text() == json.dumps(about, indent=1) + "\n":
            print(f"{predictions}: already done, nothing to do")
            continue
        if note.exists() and about["data_sha256"] not in note.read_text():
            raise ValueError(
                f"{note}: expected {data.folder} as it is now, found another set of that name, or this one prepared "
                f"otherwise; remove {predictions}, and it, or prepare one of the two with another --name"
            )
        write_predictions(predictions, rows, labels, logits(data, rows))
        write_json(note, about)
