"""Search the hyper-parameters of a stage with Ray Tune, on the validation data of one fold (paper 4.3, 4.4).

    python tune.py --stage finetune --modality eeg --target arousal --fold 3 --trials 50

Every flag that is not one of those below goes to the stage, and what it names is not searched. The first trial is the
stage as those flags leave it, the paper's numbers; the others are drawn from SPACE by --seed. ASHA stops a trial whose
validation loss is, at some epoch, not among the best of those that came as far before it. The folder

    runs/paper/tune/eeg/fold3/arousal

receives trials.csv, one line a trial, and best.json, which the stage takes through --hyperparameters. Where --epochs is
left out, its number is searched for free in fine-tuning and fusion, whose learning rate knows nothing of it: the best
epoch of every trial is looked for. Otherwise, and in pre-training, only a trial's last epoch counts.

A trial is the stage itself with --validation-only, by which it reads no signal of a test segment. It trains in a folder
named by its hyper-parameters, and resumes there: the same command after a kill lets Tune draw the same trials, hears
the epochs that were done from their logs, and goes on. One trial at a time, ASHA's decisions then are the same,
too, and so is the table. With --concurrent above 1 only the draws are a function of the seed: which trials ASHA stops
depends on who comes first.
"""

import argparse
import contextlib
import csv
import hashlib
import importlib
import io
import json
import os
import shlex
import shutil
import sys
import time
from pathlib import Path

import paper
from common import ray_stages
from common.files import sha256_of_file, write_atomically, write_json
from protocol import folds, records
from protocol.segments import open_segments
from training import checkpoints, loop

# stage -> flag -> how it is drawn, in Tune's words (assumed: the paper does not say what it searched, or how). Not the
# masks of pre-training: fewer and shorter ones make its validation loss lower, by which trials are compared.
SPACE = {
    "pretrain": {
        "lr": ("loguniform", 1e-5, 1e-2),
        "weight_decay": ("loguniform", 1e-5, 1e-1),
        "dropout": ("uniform", 0.0, 0.4),
        "mvp_hidden": ("choice", ["64", "128", "256"]),
        "warmup_epochs": ("choice", ["10", "30", "60"]),
    },
    "finetune": {
        "lr": ("loguniform", 1e-5, 1e-2),
        "lr_factor": ("uniform", 0.3, 1.0),
        "lr_every": ("choice", ["15", "30", "45"]),
        "weight_decay": ("loguniform", 1e-6, 1e-2),
        "dropout": ("uniform", 0.0, 0.4),
        "classifier_dropout": ("uniform", 0.0, 0.7),
        "classifier_hidden": ("choice", ["64", "256", "128 64", "1024 512"]),
    },
    "fuse": {
        "lr": ("loguniform", 1e-6, 1e-2),
        "lr_factor": ("uniform", 0.3, 1.0),
        "lr_every": ("choice", ["10", "20", "40"]),
        "weight_decay": ("loguniform", 1e-6, 1e-2),
        "fusion_dropout": ("uniform", 0.0, 0.5),
        "fusion_hidden": ("choice", ["32", "64", "64 32", "256 64"]),
    },
}
RESULT = ("epochs", "outcome", "best_epoch", "validation_loss", "log")  # columns of trials.csv after the flags
RETRIES = 3  # of a trial whose worker or node died


def parse() -> tuple[argparse.Namespace, list[str]]:
    """Our flags, and those of the stage."""
    parser = paper.Parser(description=__doc__, allow_abbrev=False)
    count = paper.positive(int)
    parser.add_argument(
        "--stage", choices=SPACE, default="finetune", help="what to search (default: %(default)s; paper 4.3, 4.4)"
    )
    parser.add_argument("--trials", type=count, default=50, metavar="N", help="how many (default: 50; assumed)")
    parser.add_argument(
        "--concurrent",
        type=count,
        default=1,
        metavar="N",
        help="so many trials at a time; see above (default: 1; assumed)",
    )
    parser.add_argument(
        "--gpus",
        type=paper.positive(float, zero=True),
        metavar="X",
        help="GPUs of a trial, 0.25 for four on one (default: 1 where the cluster has any; assumed)",
    )
    parser.add_argument(
        "--grace-epochs", type=count, default=10, metavar="N", help="ASHA stops no trial before (default: 10; assumed)"
    )
    parser.add_argument(
        "--reduction",
        type=paper.positive(int, least=2),
        default=4,
        metavar="N",
        help="ASHA lets the best one in N go on at N, N * N ... times as many epochs (default: 4; assumed)",
    )
    parser.add_argument(
        "--address",
        default="local",
        help="the Ray cluster, auto for the one that runs here (default: start Ray on this machine; assumed)",
    )
    parser.add_argument("--fresh", action="store_true", help="start over, removing what an earlier search wrote")
    parser.add_argument("--print-flags", action="store_true", help="print the stage's flags and the space, and stop")
    return parser.parse_known_args()


def resolve(stage: str, given: list[str]) -> tuple[dict, dict, set[str]]:
    """The stage's flags as it resolves them itself, what of SPACE was not given, and the names that were."""
    argv, sys.argv = sys.argv, [f"{stage}.py", *given, "--print-flags"]
    try:
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            importlib.import_module(stage).parse()
    except SystemExit as stop:
        if stop.code:
            raise
    finally:
        sys.argv = argv
    flags = json.loads(printed.getvalue())
    named = {word.split("=")[0][2:].replace("-", "_") for word in given if word.startswith("--")}
    if named - set(flags):
        raise ValueError(f"--{min(named - set(flags))}: expected a flag of {stage}.py in full; see its --help")
    if flags["validation_only"] or flags.get("test_data"):
        raise ValueError("--validation-only, --test-data: expected neither; every trial of a search sees no test data")
    space = {name: drawn for name, drawn in SPACE[stage].items() if name not in named}
    if not space:
        raise ValueError(f"all of {', '.join(SPACE[stage])} were given, so there is nothing to search; leave some out")
    if stage != "pretrain" and "epochs" not in named:
        space["epochs"] = ("up to", flags["epochs"])
    return flags, space, named


def words(value) -> str:
    """A flag's value as the command line has it."""
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)


def open_search(args: argparse.Namespace, flags: dict, space: dict) -> tuple[Path, dict]:
    """The folder of the search and what it is to be known by; ValueError where another one, or a changed split, is
    found there. Nothing is written yet."""
    target = flags["target"] + records.suffix(argparse.Namespace(**flags)) if "target" in flags else "pretrain"
    modality = flags.get("modality") or ("fused-crossfit" if flags["cross_fit"] else "fused")
    folder = Path(flags["run"]) / "tune" / modality / f"fold{flags['fold']}" / target
    opened = {**flags, "run": Path(flags["run"]), "data": Path(flags["data"]), "validation_only": folder}
    run = folds.open_run(argparse.Namespace(**opened))
    rows = {name: len(part) for name, part in run.split(flags["fold"]).items()}
    print(f"{folder}: searching {', '.join(space)} on {rows['validation']} validation segments of fold {flags['fold']}")
    print(f"the signals of its {rows['test']} test segments are not read")

    fixed = {name: value for name, value in flags.items() if name not in checkpoints.FREE_FLAGS}
    search = {"stage": args.stage, "grace_epochs": args.grace_epochs, "reduction": args.reduction, **fixed}
    search = json.loads(json.dumps({**search, "space": space, "made_of": made_of(flags)}))
    path = folder / "search.json"
    if path.exists() and not args.fresh:
        try:
            earlier = dict(json.loads(path.read_text()))
        except (ValueError, TypeError):
            raise ValueError(f"{path}: expected the JSON of a search, found other bytes; start over with --fresh")
        if earlier.get("made_of") != search["made_of"]:
            raise ValueError(f"{path}: this search was started from other weights, models or --extra sets; use --fresh")
        for name in search:
            if earlier.get(name) != search[name]:
                flag = f"--{name.replace('_', '-')}"
                raise ValueError(
                    f"{path}: this search was started with {flag} {words(earlier.get(name))}, found "
                    f"{words(search[name])}; use the same flags, or --fresh"
                )
    return folder, search


def made_of(flags: dict) -> list[str]:
    """The SHA-256 of what every trial starts from: further sets, a pre-training, or the models to be fused."""
    here, fold = Path(flags["run"]), f"fold{flags['fold']}"
    if "extra" in flags:
        return [folds.data_sha256(open_segments(Path(extra), flags["modality"])) for extra in flags["extra"]]
    if flags["init"] == "random" and "modality" in flags:
        return []
    if "modality" in flags:
        return [sha256_of_file(here / flags["modality"] / fold / "pretrain.pt")]
    name, parts = flags["target"] + records.suffix(argparse.Namespace(**flags)), flags["cross_fit"]
    names = [name + records.left_out(part, parts) for part in range(parts)] if parts else [name]
    return [sha256_of_file(here / modality / fold / f"{each}.pt") for each in names for modality in paper.MODALITIES]


def trial_folder(folder: Path, config: dict) -> Path:
    """Where a trial trains: a name that only its hyper-parameters give."""
    return folder / hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()[:12]


def epochs_of(folder: Path) -> list[dict]:
    """The lines of the log that a stage writes, one an epoch."""
    return [json.loads(line) for log in folder.glob("*.jsonl") for line in log.read_text().splitlines()]


def train(config: dict, stage: str, given: list[str], epochs: int, search: Path, threads: int, folder: str) -> None:
    """One trial, inside a Ray worker: run the stage, and tell Tune its validation loss after every epoch."""
    from ray import tune

    # The worker's next trial waits until this one's stage has saved and ended. Tune gives that 2 seconds, too few on a
    # busy machine, and then waits for ever.
    os.environ["TUNE_FUNCTION_THREAD_TIMEOUT_S"] = "600"
    here, reported = Path(folder) / trial_folder(search, config), 0
    log = here / "log.txt"

    def report() -> int:
        lines = epochs_of(here)
        for line in lines[reported:]:
            tune.report(
                {"epoch": line["epoch"], "validation_loss": line["validation_loss"]}
            )  # ends here if ASHA stops it
        return len(lines)

    reported = report()  # before anything is started: an earlier call may have finished it, or ASHA stopped it
    if reported == epochs:
        return
    flags = [word for name, value in config.items() for word in (f"--{name.replace('_', '-')}", *str(value).split())]
    process = ray_stages.start(f"{stage}.py", [*given, *flags, "--validation-only", str(here)], log, threads, folder)
    try:
        while process.poll() is None:
            time.sleep(0.2)
            reported = report()
    finally:
        process.terminate()
        process.wait()
    reported = report()
    if ray_stages.was_stopped(process.returncode):
        raise ChildProcessError(ray_stages.last_line(log))
    if process.returncode:
        tune.report({"epoch": reported, "validation_loss": float("inf"), "failed": ray_stages.last_line(log)})


def row_of(trial, folder: Path, space: dict, epochs: int) -> dict:
    """The line of trials.csv of a Tune trial that has ended, from the epochs that Tune heard of."""
    last = trial.last_result or {}
    here = trial_folder(folder, trial.config)
    lines = epochs_of(here)[: last.get("epoch", 0)]
    if last.get("failed") or trial.status == "ERROR":
        outcome = "failed: " + (last.get("failed") or "its worker or node died too often")
    else:
        outcome = "finished" if len(lines) == epochs else "stopped"
    counted = lines if "epochs" in space else lines[-1:]
    best = min(counted, key=lambda line: line["validation_loss"], default={})
    values = {name: trial.config[name] for name in space if name != "epochs"}
    result = len(lines), outcome, best.get("epoch"), best.get("validation_loss"), f"{here.name}/log.txt"
    return {**values, **dict(zip(RESULT, result))}


def write_table(folder: Path, rows: list[dict]) -> None:
    """trials.csv, whole or not at all."""
    text = io.StringIO(newline="")
    table = csv.DictWriter(text, ["trial", *rows[0]], lineterminator="\n")
    table.writeheader()
    table.writerows({"trial": number, **row} for number, row in enumerate(rows))
    write_atomically(folder / "trials.csv", lambda file: file.write(text.getvalue().encode()))


def search(args, given: list[str], flags: dict, space: dict, folder: Path, known_by: dict) -> list[dict]:
    """Run the trials; the rows of trials.csv, which is written after every trial."""
    os.environ |= {"TUNE_DISABLE_SIGINT_HANDLER": "1", "RAY_AIR_NEW_OUTPUT": "0"}
    gpus = args.gpus or 0
    ray, tune, schedulers, basic_variant = ray_stages.start_ray(
        args.address, flags["threads"], gpus, "ray.tune", "ray.tune.schedulers", "ray.tune.search.basic_variant"
    )
    if args.gpus is None and ray.cluster_resources().get("GPU"):
        gpus = 1
    path = folder / "search.json"
    if args.fresh and path.exists():
        shutil.rmtree(folder)
    folder.mkdir(parents=True, exist_ok=True)
    write_json(path, known_by)
    rows = []

    class Table(tune.Callback):
        def on_trial_complete(self, iteration, trials, trial, **info):
            rows[:] = [
                row_of(each, folder, space, flags["epochs"]) for each in trials if each is trial or each.is_finished()
            ]
            write_table(folder, rows)
            row = row_of(trial, folder, space, flags["epochs"])
            shown = {name: row[name] for name in trial.config}
            drawn = ", ".join(f"{name} {x:.3g}" if isinstance(x, float) else f"{name} {x}" for name, x in shown.items())
            loss = f"validation loss {row['validation_loss']:.4f}" if row["epochs"] else "no epoch"
            done = f"{len(rows)} of {args.trials} done"
            print(
                f"trial {trials.index(trial)} ({done}), {row['outcome']} after epoch {row['epochs']}: {loss}; {drawn}"
            )

        on_trial_error = on_trial_complete

    # A flag of several numbers is drawn as words: Tune takes no list for the first trial.
    like = {name: flags[name] for name in space if name != "epochs"}
    first = {
        name: words(value) if isinstance(value, list) or space[name][0] == "choice" else value
        for name, value in like.items()
    }
    trainable = tune.with_parameters(
        train,
        stage=args.stage,
        given=given,
        epochs=flags["epochs"],
        search=folder,
        threads=flags["threads"],
        folder=os.getcwd(),
    )
    ray_folder = folder.absolute() / "ray"  # Tune's own notes, which nobody needs afterwards: the logs say it all
    shutil.rmtree(ray_folder, ignore_errors=True)
    tuner = tune.Tuner(
        tune.with_resources(trainable, {"cpu": flags["threads"], "gpu": gpus}),
        param_space={name: getattr(tune, space[name][0])(*space[name][1:]) for name in like},
        tune_config=tune.TuneConfig(
            metric="validation_loss",
            mode="min",
            num_samples=args.trials,
            reuse_actors=True,
            search_alg=basic_variant.BasicVariantGenerator(
                points_to_evaluate=[first], max_concurrent=args.concurrent, random_state=flags["seed"]
            ),
            scheduler=schedulers.ASHAScheduler(
                time_attr="epoch",
                max_t=max(flags["epochs"], args.grace_epochs),
                grace_period=args.grace_epochs,
                reduction_factor=args.reduction,
            ),
        ),
        run_config=tune.RunConfig(
            name="ray",
            storage_path=str(folder.absolute()),
            verbose=0,
            callbacks=[Table()],
            failure_config=tune.FailureConfig(max_failures=RETRIES),
        ),
    )
    tuner.fit()
    ray.shutdown()
    shutil.rmtree(ray_folder, ignore_errors=True)
    return rows


def main() -> None:
    args, given = parse()
    flags, space, named = resolve(args.stage, given)
    if args.concurrent > 1 and "threads" not in named:
        flags["threads"] = max(1, flags["threads"] // args.concurrent)
        print(f"{flags['threads']} CPU threads a trial, for {args.concurrent} at a time; --threads changes that")
    if args.print_flags:
        print(json.dumps({**loop.plain_flags(args), "flags": flags, "space": space}, indent=1))
        return
    folder, known_by = open_search(args, flags, space)
    rows = search(args, given, flags, space, folder, known_by)

    counted = [row for row in rows if row["outcome"] == "finished" or ("epochs" in space and row["epochs"])]
    if not counted:
        raise ValueError(f"{folder}/trials.csv: no trial came to its end; the first: {rows[0]['outcome']}")
    best = min(counted, key=lambda row: row["validation_loss"])
    start = flags["hyperparameters"]
    known = set(paper.read_hyperparameters(Path(start), args.stage) if start else ()) | (
        named & set(paper.STAGES[args.stage])
    )
    chosen = {name: best[name] for name in space if name != "epochs"}
    for name, value in chosen.items():
        like = flags[name]
        chosen[name] = [type(like[0])(word) for word in value.split()] if isinstance(like, list) else type(like)(value)
    if "epochs" in space:
        chosen["epochs"] = best["best_epoch"]
    found = {
        "hyperparameters": {**{name: flags[name] for name in sorted(known)}, **chosen},
        **{name: flags[name] for name in ("modality", "target", "fold") if name in flags},
        "stage": args.stage,
        "trial": rows.index(best),
        "of_trials": len(rows),
        "validation_loss": best["validation_loss"],
        "validation_loss_of_first": rows[0]["validation_loss"],
    }
    path = folder / "best.json"
    write_json(path, found)
    print(f"{path}: those of trial {rows.index(best)}, validation loss {best['validation_loss']:.4f}")
    print(f"python {args.stage}.py {shlex.join(given)} --hyperparameters {shlex.quote(str(path))}")


if __name__ == "__main__":
    loop.run_script(main)
