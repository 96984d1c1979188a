"""Device, precision, training loop, schedules, checkpoints, resume and log: what the three training scripts share.

All randomness is a function of (seed, step): the order of an epoch, the masks and the dropout of a step are drawn
afresh from those numbers. So a checkpoint needs no generator's state, and training that was killed at any moment and
started again ends in the same weights as training left alone. Orders, masks and the layers' dropout are those of
the whole batch in each of several processes (ranks.py), which take their share of it: their number changes the other
dropouts and the last bits alone.
"""

import argparse
import ctypes
import io
import json
import platform
import signal
import sys
import time
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

import paper
import ranks
from datasets import normalise_name
from folds import data_sha256, write_atomically
from model import SingleModalityModel
from segments import Segments

PREDICTION_DTYPE = np.dtype([("segment", "i8"), ("label", "i1"), ("probability", "f4")])
CHECKPOINT = {  # key -> type
    **dict.fromkeys(("model", "optimizer", "schedule", "random", "flags", "identity", "channels", "versions"), dict),
    "epoch": int,
}
# What changes the numbers in a segment; the rest of the pre-processing only chooses which segments there are.
PREPROCESSING = ("low", "high", "filter", "filter_order", "resampling", "normalise")
VARIANT = ("init", "freeze", "shuffle_labels", "label_fraction")  # flags that give a model files of its own
FREE_FLAGS = (
    "run",
    "data",
    "extra",
    "test_data",
    "device",
    "threads",
    "checkpoint_minutes",
    "fresh",
    "print_flags",
)  # on resuming
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


def add_variant_flags(parser: argparse.ArgumentParser) -> None:
    """Flags of VARIANT, which finetune.py and fuse.py share."""
    group = parser.add_argument_group("variant of the single-modality models, named in the files: arousal-random.pt")
    group.add_argument(
        "--init", choices=("pretrained", "random"), default="pretrained", help="first weights (paper 3.2.2, 5.1, 5.3)"
    )
    group.add_argument(
        "--freeze",
        action="store_true",
        help="train the classifier alone, on CNN, CLS and Transformer as --init left them, without dropout there "
        "(-frozen; default: everything is trained, paper 3.2.2)",
    )
    add_label_flags(group)


def add_label_flags(group) -> None:
    """Those that change the labels of training, for models of any kind."""
    group.add_argument(
        "--shuffle-labels",
        action="store_true",
        help="control: deal the labels of training and validation anew among the trials of each subject, by --seed and "
        "--fold; test labels stay true. What a model still scores above chance it owes to the share of high ratings "
        "of a subject it has met (-shuffled; assumed)",
    )
    group.add_argument(
        "--label-fraction",
        type=share,
        default=1.0,
        metavar="X",
        help="train on this share of the training trials of each class alone, drawn by --seed and --fold, those of a "
        "smaller share among those of a larger; validation, test and threshold stay. Whole trials, also where --split "
        "shares trials with the test (-fraction0.1; default: 1; assumed)",
    )


def add_test_flag(parser: argparse.ArgumentParser) -> None:
    """--test-data, which finetune.py and fuse.py share."""
    parser.add_argument(
        "--test-data",
        type=Path,
        nargs="+",
        default=[],
        metavar="DATA",
        help="after training, also predict every rated segment of these other prepared sets, with the same channels, "
        "rate, length and pre-processing, into arousal@dreamer.npy. Scales of rating differ: high is above the mean "
        "that --threshold takes of the other set's own ratings; a number is taken as it is (assumed)",
    )


def share(text: str) -> float:
    """The argparse type of a number above 0 and up to 1."""
    value = float(text)
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError(f"expected a number above 0 and up to 1, found {text}")
    return value


def variant(args: argparse.Namespace) -> str:
    """What the names of a model's files carry after the target: "", "-random", "-frozen-fraction0.1" ...; a flag of
    VARIANT that a script does not have is taken at its default."""
    flags = vars(args)
    parts = [
        "-random" if flags.get("init") == "random" else "",
        "-frozen" if flags.get("freeze") else "",
        "-shuffled" if flags.get("shuffle_labels") else "",
        f"-fraction{flags['label_fraction']:g}" if flags.get("label_fraction", 1.0) < 1 else "",
    ]
    return "".join(parts) + (left_out(*flags["leave_out"]) if flags.get("leave_out") else "")


def left_out(part: int, parts: int) -> str:
    """The last of a name's suffixes: of a model that `part` of the training rows was kept from."""
    return f"-out{part}of{parts}"


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
    """Resolve `auto`, print the flags where asked to, set the number of threads, check the fold."""
    use_machine(args)
    if args.fold >= args.n_folds:
        raise ValueError(f"--fold {args.fold}: expected 0 to {args.n_folds - 1}, as the run has {args.n_folds} folds")


def use_machine(args: argparse.Namespace) -> None:
    """The device, precision and threads of `finish_flags`."""
    if args.device == "auto":
        args.device = "cuda" if torch.cuda.is_available() else "cpu"
    if args.precision == "auto":
        args.precision = "bf16" if args.device.startswith("cuda") else "fp32"
    if args.print_flags:
        print(json.dumps(plain_flags(args), indent=1))
        raise SystemExit(0)
    ranks.take_gpu(args.device)
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


def plain_flags(args: argparse.Namespace) -> dict:
    """The flags as JSON values."""
    return json.loads(json.dumps(dict(sorted(vars(args).items())), default=str))


def run_script(main, processes: bool = False) -> None:
    """Call `main()`; what is wrong with the user's files or flags ends in one line on stderr and exit code 2.

    processes: the script may be one of several processes that train together.
    """
    try:
        if not processes:
            ranks.refuse()
        with ranks.together():
            main()
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        complain(f"{where}{error.strerror or error}")
    except ValueError as error:
        complain(str(error))
    except KeyboardInterrupt:
        raise SystemExit(128 + signal.SIGINT)


def complain(line: str) -> None:
    """Print one line on stderr and exit with code 2."""
    print(f"{Path(sys.argv[0]).name}: {' '.join(line.split())}", file=sys.stderr)
    raise SystemExit(2)


# ---- data -----------------------------------------------------------------------------------------------------------


class SignalRows:
    """Chosen rows of one or more data folders as one array of segments, read from disk batch by batch.

    parts: (data, rows) pairs; modality: `eeg` or `ecg`. Raises ValueError where channels, rates or lengths differ.
    """

    def __init__(self, parts: list[tuple[Segments, np.ndarray]], modality: str):
        layouts = [layout(data, modality) for data, _ in parts]
        for (data, _), found in zip(parts, layouts):
            if found != layouts[0]:
                raise ValueError(f"{data.folder}: expected {modality} with {layouts[0]}, found {found}")
        arrays = [(data.folder / f"{modality}.npy", data.signals[modality]) for data, _ in parts]
        for path, array in arrays:
            if not array.flags.c_contiguous:
                raise ValueError(f"{path}: expected an array in C order, found Fortran order; prepare the data again")
        # Read, not mapped: every page of a mapped file that was looked at would count as memory of this process.
        self.files = [(path, open(path, "rb", buffering=0), array.offset) for path, array in arrays]
        self.part = np.concatenate([np.full(len(rows), number) for number, (_, rows) in enumerate(parts)])
        self.row = np.concatenate([rows for _, rows in parts])
        self.channels, self.points = arrays[0][1].shape[1:]

    def __len__(self) -> int:
        return len(self.row)

    def batch(self, places: np.ndarray, device: str, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        """(B, C, L) signals at `places` (0 .. len - 1) on `device`; ValueError where one is not finite."""
        signals = np.empty((len(places), self.channels, self.points), np.float32)
        for number, place in enumerate(places):
            path, file, start = self.files[self.part[place]]
            file.seek(start + int(self.row[place]) * signals[number].nbytes)
            if file.readinto(signals[number]) < signals[number].nbytes:
                raise ValueError(f"{path}: ends before row {self.row[place]}; prepare the data again with --fresh")
        if not np.isfinite(signals).all():
            place = places[np.flatnonzero(~np.isfinite(signals).all(axis=(1, 2)))[0]]
            path = self.files[self.part[place]][0]
            raise ValueError(f"{path}: row {self.row[place]} holds NaN or inf; prepare the data again with --fresh")
        return torch.from_numpy(signals).to(device, dtype, non_blocking=True)


def layout(data: Segments, modality: str) -> dict:
    """What segments must share to be trained on together."""
    if modality not in data.signals:
        raise ValueError(f"{data.folder}: expected {modality} signals, found none; prepare the data with --modalities")
    return {"channels": data.manifest["channels"][modality], **{key: data.manifest[key] for key in ("rate", "points")}}


def origin(data: Segments, modalities) -> dict:
    """What a checkpoint keeps of the signals that it was trained on, and predict.py compares with others."""
    manifest = data.manifest
    channels = {modality: layout(data, modality)["channels"] for modality in modalities}
    return {"channels": channels, **{key: manifest[key] for key in ("rate", "points", "preprocessing")}}


def check_data(path: Path, state: dict, data: Segments) -> None:
    """ValueError where a model was trained on other channels, rates or pre-processing than `data` has.

    state: a checkpoint, or what `origin` gave; path: what the line names besides the data.
    """
    manifest = data.manifest
    for modality, wanted in state["channels"].items():
        found = manifest["channels"].get(modality, [])
        if [normalise_name(name) for name in found] != [normalise_name(name) for name in wanted]:
            raise ValueError(
                f"{path}: expected the {modality} channels {' '.join(wanted)}, found {' '.join(found) or 'none'} in "
                f"{data.folder}; prepare them with --channels"
            )
    pairs = [(name, state.get(name), manifest[name]) for name in ("rate", "points")]
    pairs += [(name, state["preprocessing"].get(name), manifest["preprocessing"].get(name)) for name in PREPROCESSING]
    for name, wanted, found in pairs:
        if wanted != found:
            raise ValueError(
                f"{path}: expected segments prepared with {name} {wanted}, found {found} in {data.folder}; "
                "prepare them as the model's were"
            )


def place(args: argparse.Namespace) -> tuple[str, torch.dtype]:
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


# ---- checkpoints ----------------------------------------------------------------------------------------------------


def save_checkpoint(path: Path, state: dict) -> None:
    """Write the checkpoint whole or not at all."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    write_atomically(path, lambda file: file.write(buffer.getbuffer()))


def load_checkpoint(path: Path, needed_for: str) -> dict:
    """Read a checkpoint of ours; FileNotFoundError or ValueError, naming the file, where that cannot be done."""
    if not path.exists():
        raise FileNotFoundError(2, f"no such checkpoint; {needed_for}", str(path))
    content = io.BytesIO(path.read_bytes())
    try:
        state = torch.load(content, map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load raises whatever the damaged bytes happen to lead to
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"{path}: not a checkpoint that can be loaded ({reason[:120]}); write it again with --fresh")
    for key, kind in CHECKPOINT.items():
        if not isinstance(state, dict) or not isinstance(state.get(key), kind):
            raise ValueError(f"{path}: expected a checkpoint with {key}, found none; write it again with --fresh")
    return state


def check_identity(path: Path, found: dict, expected: dict) -> None:
    """ValueError where a checkpoint was made for other data, folds, fold, target, variant or base models."""
    for key, value in expected.items():
        if found.get(key) != value:
            raise ValueError(
                f"{path}: expected a checkpoint with {key.replace('_', ' ')} {value}, found {found.get(key)}; "
                "it belongs to another run or fold: write it again with --fresh, or use another --run"
            )


def load_weights(model: torch.nn.Module, path: Path, weights: dict, without: str = "") -> None:
    """Load `weights` into `model`, leaving out those whose name starts with `without` on either side."""
    own = model.state_dict()
    names = {name for name in own if not (without and name.startswith(without))}
    given = {name: value for name, value in weights.items() if name in names}
    for name in sorted(names):
        if name not in given or given[name].shape != own[name].shape:
            found = tuple(given[name].shape) if name in given else "none"
            raise ValueError(f"{path}: expected the weight {name} of shape {tuple(own[name].shape)}, found {found}")
    model.load_state_dict(given, strict=False)


def load_classifier(path: Path, state: dict, channels: int, points: int) -> SingleModalityModel:
    """The fine-tuned model of a checkpoint."""
    flags = state["flags"]
    model = SingleModalityModel(
        channels,
        **{name: flags[name] for name in paper.NETWORK},
        classifier_hidden=flags["classifier_hidden"],
        points=points,
    )
    load_weights(model, path, state["model"])
    return model.eval()  # without requires_grad_(False), by which torch chooses another product, and other last bits


def versions() -> dict:
    return {"python": platform.python_version(), "torch": str(torch.__version__), "numpy": np.__version__}


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
    """Whether an earlier call with the same flags finished this training and wrote its predictions."""
    if args.fresh or not path.exists():
        return False
    state = load_checkpoint(path, "")
    check_identity(path, state["identity"], identity)
    check_flags(path, state["flags"], plain_flags(args))
    if state["epoch"] < args.epochs or (predictions and not predictions.exists()):
        return False
    print(f"{path}: already done, nothing to do")
    return True


def fit(model, loss, train, validation, learning_rate, path: Path, args, identity: dict, origin: dict) -> None:
    """Train `model` for args.epochs, or go on where an earlier call stopped.

    loss(places, generator, mine) -> what the samples places[mine] add to the mean loss of those at `places`; what it
    draws at random for all `places` it draws from `generator`, or is seeded by `layer_seeds`;
    train, validation: places (int arrays); learning_rate(step, steps an epoch); path: the checkpoint, with a log of
    one JSON line an epoch beside it (.jsonl); identity: kept in the checkpoint and compared on resuming; origin: kept.
    Raises ValueError where a checkpoint is of another making, or the loss is not finite.
    """
    flags = plain_flags(args)
    device, log = torch.device(args.device), path.with_suffix(".jsonl")
    optimizer = torch.optim.Adam(
        model.parameters(), lr=args.lr, betas=(args.beta1, args.beta2), weight_decay=args.weight_decay, fused=True
    )
    steps = -(-len(train) // args.batch_size)
    epoch, step, total, seconds, lr = 0, 0, 0.0, 0.0, args.lr
    first, resumed = ranks.rank() == 0, path.exists() and not args.fresh

    if resumed:
        state = load_checkpoint(path, "")
        check_identity(path, state["identity"], identity)
        check_flags(path, state["flags"], flags)
        load_weights(model, path, state["model"])
        optimizer.load_state_dict(state["optimizer"])
        epoch, step = state["epoch"], state["random"]["step"]
        total, seconds, lr = (state["schedule"][key] for key in ("loss_sum", "seconds", "lr"))
        if state["flags"]["threads"] != args.threads:
            print(
                f"{path}: was trained with --threads {state['flags']['threads']}; results may differ in the last bits"
            )
        print(f"{path}: resuming at epoch {epoch + 1}, step {step}", flush=True)
    # All have read the checkpoint, too, before the first writes a new one.
    if not ranks.all_have(json.dumps([epoch, step, identity, {**flags, **dict.fromkeys(FREE_FLAGS)}])):
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
        save_checkpoint(
            path,
            {
                "model": model.state_dict(),
                "optimizer": optimizer.state_dict(),
                "schedule": {"lr": lr, "loss_sum": total, "seconds": seconds},
                "epoch": epoch,
                "random": {"seed": args.seed, "epoch": epoch, "step": step},
                "flags": flags,
                "identity": identity,
                **origin,
                "versions": versions(),
            },
        )

    def asked() -> int:
        """The signal that this or another process has received, else 0."""
        return ranks.largest(received[0] if received else 0)

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
            sum_, seen, started = torch.tensor(total, dtype=torch.float64, device=device), 0, time.monotonic()
            while step < steps:
                places = order[step * args.batch_size : (step + 1) * args.batch_size]
                generator = seed_step(args.seed, epoch * steps + step)
                lr = learning_rate(epoch * steps + step, steps)
                for group in optimizer.param_groups:
                    group["lr"] = lr
                own_loss = share_of(loss, places, generator, args)
                own_loss.backward()
                batch_loss = ranks.add_gradients(model, own_loss.detach())
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
                    done = min(step * args.batch_size, len(train))
                    rate = seen / (time.monotonic() - started)
                    bar.set_postfix_str(
                        f"epoch {epoch + 1}, loss {total / done:.4f}, {rate:.1f} samples/s", refresh=False
                    )
                bar.update()
                if save_now:
                    stop_if(stop)
                    save()
                    saved = time.monotonic()
            elapsed = time.monotonic() - started
            seconds += elapsed

            model.eval()
            validation_sum = torch.zeros((), dtype=torch.float64, device=device)
            with torch.no_grad():
                for places, generator in validation_batches(validation, args):
                    validation_sum += share_of(loss, places, generator, args) * len(places)
                    stop_if(asked())
            ranks.add(validation_sum)
            line = {
                "epoch": epoch + 1,
                "train_loss": total / len(train),
                "validation_loss": validation_sum.item() / len(validation),
                "lr": lr,
                "samples_per_s": round(seen / elapsed, 2) if seen else None,
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
    if ranks.world() > 1:
        source = torch.Generator(args.device).manual_seed(generator.initial_seed())
    return torch.randint(2**62, (args.layers, count), generator=source, device=args.device)[:, mine]


def share_of(loss, places: np.ndarray, generator: torch.Generator, args) -> torch.Tensor:
    """What this process adds to the mean loss of the batch at `places`."""
    mine = ranks.share(len(places))
    if ranks.world() > 1:  # no two processes drop the same
        torch.manual_seed(generator.initial_seed() + 1 + ranks.rank())
    with autocast(args):
        if mine.start < mine.stop:
            return loss(places, generator, mine)
        return 0 * loss(places, generator, slice(0, 1))  # for gradients of zeros where a process has no sample


def validation_batches(validation: np.ndarray, args):
    """Yield the places and the generator of each validation batch."""
    for number, places in enumerate(np.array_split(validation, -(-len(validation) // args.batch_size))):
        yield places, seed_step(args.seed, -1 - number)


def check_flags(path: Path, found: dict, expected: dict) -> None:
    """ValueError where a checkpoint was trained with other flags that change its result."""
    for name, value in expected.items():
        if name not in FREE_FLAGS and found.get(name) != value:
            raise ValueError(
                f"{path}: this training was started with --{name.replace('_', '-')} {found.get(name)}, found {value}; "
                "use the same flags, --fresh, or another --run"
            )


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
            outputs.append(forward(signals.batch(batch, *place(args))).to(place(args)[1]))
    return torch.cat(outputs)


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
    other set's segments.npy, and then .json, which says which set that was.
    """
    for data, rows, labels in sets:
        predictions = path.with_name(f"{path.stem}@{data.manifest['dataset']}.npy")
        about = {
            "data": str(data.folder),
            "data_set": data.manifest["dataset"],
            "data_sha256": data_sha256(data),
            "threshold": args.threshold,
        }
        note, text = predictions.with_suffix(".json"), (json.dumps(about, indent=1) + "\n").encode()
        if predictions.exists() and note.exists() and note.read_bytes() == text:
            print(f"{predictions}: already done, nothing to do")
            continue
        write_predictions(predictions, rows, labels, logits(data, rows))
        write_atomically(note, lambda file: file.write(text))
