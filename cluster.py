"""Run the whole experiment on a Ray cluster: every stage of every fold as a task, then the tables (paper 5).

    python cluster.py --run runs/paper --address auto

This does what reproduce.sh does one by one (flags such as --eeg-extra give the further sets for pre-training). A cell
of the grid, say eeg/fold3/arousal-random, is one call of a stage, here of finetune.py, which waits for the cells that
it needs. A cell that is done says so and is skipped. A cell whose worker or node died is tried again on another, from
its checkpoint. Where a cell fails for good, the cells that need it are left out, and the others go on (exit code 1).

All nodes must see this folder, the data and the run under the same path, and have the same environment. What a cell
prints, in all its attempts, is in <cell>.log, beside its checkpoint. With the same flags and --threads the predictions
are those of reproduce.sh in every bit."""

import argparse
import itertools
import os
import shlex
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import paper
from common import ray_stages, script
from common.files import only_writer
from protocol import records
from protocol import run as runs

GPUS = {"pretrain": 1.0, "finetune": 0.5, "fuse": 0.25}  # of a cell of each stage: assumed
OWN_FLAGS = ("--modality", "--target", "--init", "--fold", "--run", "--data", "--extra", "--threads")  # of a cell


@dataclass
class Cell:
    """One call of a stage, and how it ended."""

    stage: str
    model: records.Model
    target: str | None  # None in pre-training
    fold: int
    flags: list[str]
    state: str = ""  # done, failed or left out
    reason: str = ""

    @property
    def name(self) -> str:
        """The path of its checkpoint within the run, without .pt."""
        return self.model.path(Path(), self.fold, self.target, "").as_posix()

    @property
    def needs(self) -> list[str]:
        """The names of the cells that must be done before."""
        return [replace(self, model=parent).name for parent in records.parents(self.model)]


def parse() -> argparse.Namespace:
    parser = script.Parser(__doc__)
    add = parser.add_argument
    whole = script.positive(int, zero=True)
    add("--fold", nargs="+", type=whole, metavar="K", help="test folds, counted from 0 (default: all; paper 5)")
    where = "the Ray cluster: HOST:PORT, or auto for the one that this machine belongs to (default: start Ray here)"
    add("--address", default="local", help=where)
    runs.add_flags(parser)
    add = parser.add_argument_group("grid").add_argument
    for name, choices in (("--targets", paper.TARGETS), ("--inits", ("pretrained", "random"))):
        add(name, choices=choices, nargs="+", default=list(choices), help="(default: all; paper 5.1)")
    for modality in paper.MODALITIES:
        extra = f"further prepared sets for the {modality} pre-training (default: none; paper 4.1.1)"
        add(f"--{modality}-extra", nargs="*", default=[], metavar="DIR", help=extra)
    add("--flags", default="", metavar="FLAGS", help='of every stage, as in --flags="--batch-size 32" (assumed)')
    for stage in GPUS:
        own = f"of {stage}.py, where {{fold}}, {{modality}}, {{target}} and {{name}} (of the checkpoint, as in "
        add(f"--{stage}-flags", default="", metavar="FLAGS", help=own + "arousal-random) are the cell's (assumed)")
    group = parser.add_argument_group("cluster and output")
    add = group.add_argument
    threads = "CPUs of a cell, and its --threads; results are bit-equal for the same number (default: 1; assumed)"
    add("--threads", type=script.positive(int), default=1, metavar="N", help=threads)
    gpus = "GPUs of a cell of each stage; 0.25: four share one (default: 1 0.5 0.25 where there are any; assumed)"
    add("--gpus", type=script.positive(float, zero=True), nargs=len(GPUS), metavar="X", help=gpus)
    script.add_print_flag(group)
    args = parser.parse_args()
    runs.resolve_flags(args)
    args.fold = list(range(args.n_folds)) if args.fold is None else sorted(set(args.fold))
    script.stop_if_printing(args)
    return args


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


def grid(args: argparse.Namespace, modalities=tuple(paper.MODALITIES)) -> dict[str, Cell]:
    """The cells by name, each after those that it needs; fusion only where `modalities` has all that it fuses."""
    models = []
    if "pretrained" in args.inits:
        models += [("pretrain", records.pretraining(modality), None) for modality in modalities]
    for target, init in itertools.product(args.targets, args.inits):
        models += [("finetune", records.Model("network", (name,), init=init), target) for name in modalities]
        if set(paper.FUSED) <= set(modalities):
            models.append(("fuse", records.Model("fusion", paper.FUSED, init=init), target))
    cells = [Cell(stage, model, target, fold, []) for fold in args.fold for stage, model, target in models]
    for cell in cells:
        cell.flags = flags_of(cell, args)
    return {cell.name: cell for cell in cells}


def flags_of(cell: Cell, args: argparse.Namespace) -> list[str]:
    """The command line of a cell, after the name of its script."""
    own = {"fold": cell.fold, "run": args.run, "data": args.data}
    if cell.stage != "fuse":
        own["modality"] = cell.model.modalities[0]
    if cell.target:
        own |= {"target": cell.target, "init": cell.model.init}
    words = [str(word) for name, value in own.items() for word in (f"--{name}", value)]
    if cell.stage == "pretrain" and (extra := getattr(args, f"{own['modality']}_extra")):
        words += ["--extra", *extra]
    given = free_flags("--flags", args.flags)
    given += free_flags(f"--{cell.stage}-flags", getattr(args, f"{cell.stage}_flags"))
    named = {"fold": str(cell.fold), "modality": cell.model.folder, "target": cell.target or ""}
    for name, value in {**named, "name": Path(cell.name).name}.items():
        given = [word.replace("{" + name + "}", value) for word in given]
    return [*words, *given]


def held_modalities(run: runs.Run) -> list[str]:
    """The modalities that the data set holds; a line on each that it lacks, and on the fusion that needs it."""
    for name, modality in paper.MODALITIES.items():
        if name not in run.data.signals:
            fusion = ", and so is the fusion" if modality.fused else ""
            print(f"{run.data.folder}: holds no {modality.label}; its models are left out{fusion}")
    return [name for name in paper.MODALITIES if name in run.data.signals]


def run_cell(stage: str, flags: list[str], log: Path, threads: int, folder: str, *needed: tuple) -> tuple[str, str]:
    """Run a cell, inside a Ray worker; its (state, reason). Raises ChildProcessError where the stage was killed."""
    if any(state != "done" for state, _ in needed):
        return "left out", ""
    code, reason = ray_stages.run_stage(f"{stage}.py", flags, Path(folder) / log, threads, folder)
    return ("failed" if code else "done"), reason


def work_off(cells: dict[str, Cell], ray, args: argparse.Namespace) -> None:
    """Hand every cell to Ray, which runs it after the cells that it needs, and print a line when it has ended."""
    gpus = dict.fromkeys(GPUS, 0)
    if args.gpus or ray.cluster_resources().get("GPU"):
        gpus = dict(zip(GPUS, args.gpus or GPUS.values()))
    again = {"max_retries": ray_stages.RETRIES, "retry_exceptions": [ChildProcessError]}
    task, refs = ray.remote(num_cpus=args.threads, **again)(run_cell), {}
    for cell in cells.values():
        log = args.run / f"{cell.name}.log"
        log.unlink(missing_ok=True)
        needed = [refs[name] for name in cell.needs]
        cell_task = task.options(name=cell.name, num_gpus=gpus[cell.stage])
        refs[cell.name] = cell_task.remote(cell.stage, cell.flags, log, args.threads, os.getcwd(), *needed)
    cell_of = {ref: cells[name] for name, ref in refs.items()}
    while cell_of:
        (ref,), _ = ray.wait(list(cell_of))
        cell = cell_of.pop(ref)
        # Ray passes on what run_cell returned, or says why the worker or the node died.
        try:
            cell.state, cell.reason = ray.get(ref)
        except ray.exceptions.RayError as error:
            cell.state, cell.reason = "failed", str(error).strip().rpartition("\n")[2]
        if needed := [name for name in cell.needs if cells[name].state != "done"]:
            cell.state, cell.reason = "left out", f"needs {' and '.join(needed)}"
        print(f"{cell.name}: {cell.state}" + (f", {cell.reason}" if cell.reason else ""), flush=True)


def main() -> None:
    args = parse()
    run = runs.open_run(args)
    # Whatever is wrong with a fold or a flag is found before anything is started.
    for fold in args.fold:
        run.split(fold)
    cells = grid(args, held_modalities(run))
    with only_writer(args.run / "cluster"):
        ray = ray_stages.start_ray(args.address, args.threads, max(args.gpus or (0,)))
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
    script.run(main)
