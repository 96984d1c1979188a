"""The whole experiment on a Ray cluster: every stage of every fold as a task, then the tables (paper 5).

    python cluster.py --run runs/paper --folds 0-9 --address auto

does what reproduce.sh does one by one, as far as machines and GPUs allow (its sets for pre-training are given by
--eeg-extra and --ecg-extra): a cell of the grid, say eeg/fold3/arousal-random, is one call of finetune.py. Fine-tuning
waits for its pre-training and fusion for both its models. A cell that is done says so and is skipped. One whose worker
or node died is tried again on another, from its checkpoint; one that fails for good leaves out those that need it, and
the others go on (exit code 1).

Without --address Ray is started on this machine. All nodes must see this folder, the data and the run under the same
path, and have the same environment. What a cell prints, in all its attempts, is in <cell>.log, beside its checkpoint.
With the same flags and --threads the predictions are those of reproduce.sh in every bit.
"""

import argparse
import os
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import paper
from common import ray_stages
from protocol import folds
from training import loop

STAGES = ("pretrain", "finetune", "fuse")
GPUS = (1.0, 0.5, 0.25)  # of a cell of each stage: assumed
SECONDS = 1  # between two looks at the logs
OWN_FLAGS = ("--modality", "--target", "--init", "--fold", "--run", "--data", "--extra", "--threads")  # of a cell


@dataclass
class Cell:
    """One call of a stage, and how far it is."""

    stage: str
    row: tuple[str, str]  # of the table: (modality, what is trained)
    fold: int
    flags: list[str]
    needs: list[str]  # names of the cells that must be done before
    state: str = "waiting"  # running, done, failed or left out
    attempts: int = 0
    epoch: str = ""
    reason: str = ""

    @property
    def name(self) -> str:
        return f"{self.row[0]}/fold{self.fold}/{self.row[1]}"


def parse() -> argparse.Namespace:
    parser = paper.Parser(description=__doc__)
    group = parser.add_argument_group("grid")
    group.add_argument("--folds", type=fold_list, metavar="K-K", help="such as 0-9 or 0,3,5-7 (default: all; paper 5)")
    for name, choices in (("--targets", paper.TARGETS), ("--inits", ("pretrained", "random"))):
        group.add_argument(name, choices=choices, nargs="+", default=list(choices), help="(default: both; paper 5.1)")
    for modality in paper.MODALITIES:
        group.add_argument(
            f"--{modality}-extra",
            nargs="*",
            default=[],
            metavar="DIR",
            help=f"further prepared sets for the {modality} pre-training (default: none; paper 4.1.1)",
        )
    group.add_argument(
        "--flags", default="", metavar="FLAGS", help='of every stage, as in --flags="--batch-size 32" (assumed)'
    )
    for stage in STAGES:
        group.add_argument(
            f"--{stage}-flags",
            default="",
            metavar="FLAGS",
            help=f"of {stage}.py, where {{fold}}, {{modality}}, {{target}} and {{name}} (of the checkpoint, as in "
            "arousal-random) stand for the cell's (assumed)",
        )
    group = parser.add_argument_group("cluster")
    group.add_argument(
        "--address",
        default="local",
        help="the Ray cluster: HOST:PORT, or auto for the one that this machine belongs to (default: start Ray here)",
    )
    group.add_argument(
        "--threads",
        type=paper.positive(int),
        default=1,
        metavar="N",
        help="CPUs of a cell, and its --threads, whatever Ray sets; results are bit-equal for the same number "
        "(default: %(default)s; assumed)",
    )
    group.add_argument(
        "--gpus",
        type=paper.positive(float, zero=True),
        nargs=3,
        metavar="X",
        help="GPUs of a pre-training, a fine-tuning and a fusion; 0.25: four share one (default: "
        f"{' '.join(f'{each:g}' for each in GPUS)} where the cluster has any; assumed)",
    )
    group.add_argument(
        "--retries",
        type=paper.positive(int, zero=True),
        default=3,
        metavar="N",
        help="how often a cell is tried again whose worker or node died (default: %(default)s; assumed)",
    )
    folds.add_flags(parser)
    parser.add_argument("--print-flags", action="store_true", help="print every resolved flag as JSON and stop")
    args = parser.parse_args()
    folds.resolve_flags(args)
    if args.folds is None:
        args.folds = list(range(args.n_folds))
    loop.stop_if_printing(args)
    if max(args.folds) >= args.n_folds:
        raise ValueError(f"--folds {max(args.folds)}: expected 0 to {args.n_folds - 1}, as the run has {args.n_folds}")
    return args


def fold_list(text: str) -> list[int]:
    """The argparse type of 0,3,5-7."""
    if not re.fullmatch(r"\d+(-\d+)?(,\d+(-\d+)?)*", text):
        raise argparse.ArgumentTypeError(f"expected folds such as 0-9 or 0,3,5-7, found {text}")
    found = set()
    for part in text.split(","):
        first, _, last = part.partition("-")
        found |= set(range(int(first), int(last or first) + 1))
    if not found:
        raise argparse.ArgumentTypeError(f"expected folds such as 0-9, the lower first, found {text}")
    return sorted(found)


def free_flags(flag: str, text: str) -> list[str]:
    """The words of --flags or --<stage>-flags; ValueError where they cannot be, or name what the grid sets itself."""
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise ValueError(f"{flag} {text}: {error}; correct it")
    for word in words:
        if word.split("=")[0] in OWN_FLAGS:
            raise ValueError(f"{flag} {text}: the grid sets {word.split('=')[0]} itself; leave it out")
    return words


def grid(args: argparse.Namespace) -> dict[str, Cell]:
    """name -> cell, each after those that it needs."""
    cells = {}

    def add(stage, modality, what, fold, flags, needs=()):
        named = {"fold": str(fold), "modality": modality, "target": flags.get("target", ""), "name": what}
        given = free_flags("--flags", args.flags) + free_flags(f"--{stage}-flags", getattr(args, f"{stage}_flags"))
        for name, value in named.items():
            given = [word.replace("{" + name + "}", value) for word in given]
        own = [
            word
            for name, value in {**flags, "fold": fold, "run": args.run, "data": args.data}.items()
            for word in (f"--{name}", value)
        ]
        extra = getattr(args, f"{modality}_extra") if stage == "pretrain" else []
        words = [*map(str, own), *(["--extra", *extra] if extra else []), *given]
        cell = Cell(stage, (modality, what), fold, words, list(needs))
        cells[cell.name] = cell
        return cell.name

    for fold in args.folds:
        pretrained = {}
        if "pretrained" in args.inits:
            for modality in paper.MODALITIES:
                pretrained[modality] = add("pretrain", modality, "pretrain", fold, {"modality": modality})
        for target in args.targets:
            for init in args.inits:
                what, flags = target + ("-random" if init == "random" else ""), {"target": target, "init": init}
                models = []
                for modality in paper.MODALITIES:
                    needs = [pretrained[modality]] if init == "pretrained" else []
                    models.append(add("finetune", modality, what, fold, {"modality": modality, **flags}, needs))
                add("fuse", "fused", what, fold, flags, models)
    return cells


def run_cell(stage: str, flags: list[str], log: Path, threads: int, folder: str, *needed: tuple) -> tuple[str, str]:
    """(state, reason) of a cell, inside a Ray worker. Raises ChildProcessError where the stage was killed."""
    if any(state != "done" for state, _ in needed):
        return "left out", ""
    process = ray_stages.start(f"{stage}.py", flags, Path(folder) / log, threads, folder)
    code, reason = process.wait(), ray_stages.last_line(Path(folder) / log)
    if ray_stages.was_stopped(code):
        raise ChildProcessError(f"{stage}.py ended with {code}: {reason}")
    return ("failed" if code else "done"), reason


def look(cell: Cell, log: Path) -> list[str]:
    """Bring a cell's attempts and epoch up to date with its log; a line if it was started since."""
    news, text = [], log.read_text(errors="replace") if log.exists() else ""
    started = re.findall(f"^{ray_stages.START}(.*?):", text, re.MULTILINE)
    if len(started) > cell.attempts:
        again = f", attempt {len(started)}, for its worker or node died" if len(started) > 1 else ""
        cell.state, cell.attempts = "running", len(started)
        news.append(f"{cell.name}: running on {started[-1]}{again}")
    epochs = re.findall(r": epoch (\d+/\d+),", text)
    cell.epoch = epochs[-1] if epochs else ""
    return news


def table(cells: dict[str, Cell]) -> list[str]:
    """One row a model, one column a fold, and a line on every cell that failed."""
    columns = sorted({cell.fold for cell in cells.values()})
    lines = [["", *(f"fold {fold}" for fold in columns)]]
    for row in dict.fromkeys(cell.row for cell in cells.values()):
        line = [" ".join(row)]
        for fold in columns:
            cell = cells[f"{row[0]}/fold{fold}/{row[1]}"]
            shown = {"waiting": ".", "running": cell.epoch or "0"}.get(cell.state, cell.state)
            line.append(shown + (f", {cell.attempts} tries" if cell.attempts > 1 else ""))
        lines.append(line)
    widths = [max(map(len, column)) for column in zip(*lines)]
    failed = [f"{cell.name} failed: {cell.reason}" for cell in cells.values() if cell.state == "failed"]
    return ["  ".join(map(str.ljust, line, widths)).rstrip() for line in lines] + failed


def work_off(cells: dict[str, Cell], ray, args: argparse.Namespace) -> None:
    """Run every cell, and show how far they are: as a table on a terminal, else by a line a change."""
    gpus = args.gpus or (GPUS if ray.cluster_resources().get("GPU") else (0, 0, 0))
    task, refs, live = ray.remote(run_cell), {}, sys.stdout.isatty()
    for cell in cells.values():
        log = args.run / f"{cell.name}.log"
        log.unlink(missing_ok=True)
        options = task.options(
            name=cell.name,
            num_cpus=args.threads,
            num_gpus=gpus[STAGES.index(cell.stage)],
            max_retries=args.retries,
            retry_exceptions=[ChildProcessError],
        )
        needed = [refs[name] for name in cell.needs]
        refs[cell.name] = options.remote(cell.stage, cell.flags, log, args.threads, os.getcwd(), *needed)

    cell_of, height = {ref: cells[name] for name, ref in refs.items()}, 0
    while cell_of:
        ready, _ = ray.wait(list(cell_of), timeout=SECONDS)
        news = []
        for ref, cell in cell_of.items():
            news += look(cell, args.run / f"{cell.name}.log")
        for ref in ready:
            cell = cell_of.pop(ref)
            try:
                cell.state, cell.reason = ray.get(ref)
            except ray.exceptions.RayError as error:
                cell.state, cell.reason = "failed", str(error).strip().rpartition("\n")[2]
            needed = [name for name in cell.needs if cells[name].state != "done"]
            if needed:
                cell.state, cell.reason = "left out", f"needs {' and '.join(needed)}"
            news.append(f"{cell.name}: {cell.state}" + (f", {cell.reason}" if cell.reason else ""))
        if live:
            width = shutil.get_terminal_size().columns
            lines = [line[: width - 1] for line in table(cells)]
            back = f"\x1b[{height}F\x1b[J" if height else ""
            print(back + "\n".join(lines), flush=True)
            height = len(lines)
        elif news:
            print("\n".join(news), flush=True)
    if not live:
        print("\n".join(table(cells)))


def main() -> None:
    args = parse()
    run = folds.open_run(args)
    for fold in args.folds:
        run.split(fold)
    cells = grid(args)
    (ray,) = ray_stages.start_ray(args.address, args.threads, max(args.gpus or (0,)))
    run.start()  # here and once, not by many cells at a time
    nodes = sum(node["Alive"] for node in ray.nodes())
    print(f"{args.run}: {len(cells)} cells on {nodes} node{'s' if nodes > 1 else ''}", flush=True)
    work_off(cells, ray, args)
    ray.shutdown()

    undone = [cell for cell in cells.values() if cell.state != "done"]
    for cell in undone:
        print(f"cluster.py: {cell.name} {cell.state}, {cell.reason}", file=sys.stderr)
    print(f"{len(cells) - len(undone)} of {len(cells)} cells are done", flush=True)
    command = [sys.executable, str(ray_stages.HERE / "evaluate.py"), "--run", str(args.run), "--data", str(args.data)]
    evaluation = subprocess.run(command)
    raise SystemExit(1 if undone else evaluation.returncode)


if __name__ == "__main__":
    loop.run_script(main)
