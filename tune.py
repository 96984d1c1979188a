"""Search the hyper-parameters of a stage with Ray Tune, on the validation data of one fold (paper 4.3, 4.4).

    python tune.py --stage finetune --modality eeg --target arousal --fold 3 --trials 50

Every flag that tune.py does not know goes to the stage, and a hyper-parameter that is named there is not searched. The
first trial takes the others as the stage does, the paper's numbers; the following trials draw them from SPACE, by
--seed. ASHA stops a trial whose validation loss, at some epoch, is not among the best of the trials that were there
before. The folder runs/paper/tune/eeg/fold3/arousal receives trials.csv, one line a trial, and best.json, which the
stage takes through --hyperparameters.

The learning rate of fine-tuning and fusion does not depend on how many epochs there are: each trial is judged by its
best epoch, so that their number is searched, too. In pre-training, or with --epochs, the last epoch counts.

A trial is the stage itself with --validation-only, by which it reads no signal of a test segment. The same command
after a kill draws the same trials, hears the epochs that were done from their logs, and goes on. With one trial at a
time the table is then the same, too; with --concurrent, which trials ASHA stops depends on who comes first."""

import argparse
import csv
import hashlib
import io
import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import paper
from common import ray_stages, script
from common.files import only_writer, read_json, write_atomically, write_json
from protocol import records
from protocol import run as runs
from protocol.segments import data_sha256, open_segments

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
FAMILIES = {"pretrain": "pretraining", "finetune": "network", "fuse": "fusion"}  # stage -> family of its models


def parse() -> tuple[argparse.Namespace, list[str]]:
    """Our flags, and those of the stage."""
    parser = script.Parser(__doc__, allow_abbrev=False)
    count = script.positive(int)
    add = parser.add_argument
    add("--stage", choices=SPACE, default="finetune", help="what to search (default: %(default)s; paper 4.3, 4.4)")
    add("--trials", type=count, default=50, metavar="N", help="how many (default: 50; assumed)")
    add("--fresh", action="store_true", help="start over, removing what an earlier search wrote")
    add = parser.add_argument_group("which trials ASHA stops").add_argument
    add("--grace-epochs", type=count, default=10, metavar="N", help="none before this epoch (default: 10; assumed)")
    reduction = "ASHA lets the best one in N go on at N, N * N ... times as many epochs (default: 4; assumed)"
    add("--reduction", type=script.positive(int, least=2), default=4, metavar="N", help=reduction)
    add = parser.add_argument_group("machine and output").add_argument
    add("--concurrent", type=count, default=1, metavar="N", help="trials at a time; see below (default: 1; assumed)")
    gpus = "GPUs of a trial, 0.25 for four on one (default: 1 where the cluster has any; assumed)"
    add("--gpus", type=script.positive(float, zero=True), metavar="X", help=gpus)
    address = "the Ray cluster, auto for the one that runs here (default: start Ray on this machine; assumed)"
    add("--address", default="local", help=address)
    add("--print-flags", action="store_true", help="print the stage's flags and the space, and stop")
    return parser.parse_known_args()


def resolve(stage: str, given: list[str]) -> tuple[dict, dict, set[str]]:
    """The stage's flags as it resolves them itself, the part of SPACE that was not given, and the names that were."""
    command = [sys.executable, str(ray_stages.HERE / f"{stage}.py"), *given, "--print-flags"]
    called = subprocess.run(command, capture_output=True, text=True)
    print(called.stderr, end="", file=sys.stderr)
    if called.returncode:
        raise SystemExit(called.returncode)
    flags = json.loads(called.stdout)
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


def open_search(args: argparse.Namespace, flags: dict, space: dict) -> tuple[Path, dict]:
    """The folder of the search, and its record: that of the model that it is for, with all flags and the space; nothing
    is written yet. Raises ValueError where another search, or a changed split, is found there."""
    opened = argparse.Namespace(**{**flags, "run": Path(flags["run"]), "data": Path(flags["data"])})
    modalities = [flags["modality"]] if "modality" in flags else paper.FUSED
    model = records.model_of(opened, FAMILIES[args.stage], modalities)
    target = flags.get("target")
    folder = model.path(opened.run / "tune", flags["fold"], target, "")
    opened.validation_only = folder
    run = runs.open_run(opened)
    rows = run.labelled(flags["fold"], target, model)[0] if target else run.split(flags["fold"])
    print(f"{folder}: searching {', '.join(space)}; the signals of the {len(rows['test'])} test segments are not read")

    extra = [open_segments(Path(each), flags["modality"], flags["trust_data"]) for each in flags.get("extra", ())]
    extra = [data_sha256(data) for data in extra]
    fixed = {name: value for name, value in flags.items() if name not in records.FREE_FLAGS}
    known_by = {"tune": {"grace_epochs": args.grace_epochs, "reduction": args.reduction}, args.stage: fixed}
    record = records.record_of(run, model, flags["fold"], target, rows, known_by, extra_sha256=extra, space=space)
    path = folder / "search.json"
    if path.exists() and not args.fresh:
        earlier = read_json(path, {"family": str}, "start over with --fresh")
        records.check_record(path, earlier, record, "use the same flags, or --fresh")
    return folder, record


def trial_folder(folder: Path, config: dict) -> Path:
    """The folder in which a trial trains; its name follows from the trial's hyper-parameters alone."""
    return folder / hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()[:12]


def epochs_of(folder: Path) -> list[dict]:
    """The lines of the log that a stage writes, one an epoch."""
    return [line for log in folder.glob("*.jsonl") for line in records.read_log(log)]


def train(config: dict, stage: str, given: list[str], epochs: int, search: Path, threads: int, folder: str) -> None:
    """Run the stage as one trial, inside a Ray worker, and tell Tune its validation loss after every epoch."""
    from ray import tune

    # Tune gives a trial that it stops 2 seconds to save and end, too few on a busy machine, and then waits for ever.
    os.environ["TUNE_FUNCTION_THREAD_TIMEOUT_S"] = "600"
    here, reported = Path(folder) / trial_folder(search, config), 0

    def report() -> None:
        nonlocal reported
        for line in epochs_of(here)[reported:]:
            reported += 1
            # Tune ends the trial here where ASHA stops it.
            tune.report({name: line[name] for name in ("epoch", "validation_loss")})

    # Before anything is started: an earlier call may have finished the trial, or ASHA stopped it.
    report()
    if reported == epochs:
        return
    flags = [word for name, value in config.items() for word in script.command_line(name, value)]
    flags = [*given, *flags, "--validation-only", str(here)]
    # A stage that was killed is tried again; one that failed would fail again, and only ends its trial.
    code, said = ray_stages.run_stage(f"{stage}.py", flags, here / "log.txt", threads, folder, report)
    if code:
        tune.report({"epoch": reported, "validation_loss": float("inf"), "failed": said})


def line_of(trial, folder: Path, space: dict, epochs: int) -> dict:
    """The line of trials.csv of a Tune trial that has ended, from the epochs that Tune heard of."""
    last, here = trial.last_result or {}, trial_folder(folder, trial.config)
    lines = epochs_of(here)[: last.get("epoch", 0)]
    outcome = "finished" if len(lines) == epochs else "stopped"
    if last.get("failed") or trial.status == "ERROR":
        outcome = f"failed: {last.get('failed') or 'its worker or node died too often'}"
    counted = lines if "epochs" in space else lines[-1:]
    best = min(counted, key=lambda line: line["validation_loss"], default={})
    return {
        **{name: trial.config[name] for name in space if name != "epochs"},
        "epochs": len(lines),
        "outcome": outcome,
        "best_epoch": best.get("epoch"),
        "validation_loss": best.get("validation_loss"),
        "log": f"{here.name}/log.txt",
    }


def table_keeper(tune, folder: Path, space: dict, epochs: int, count: int):
    """A Tune callback that writes the table and prints a line after every trial; its `lines` are those of the table."""

    class Keeper(tune.Callback):
        lines = []

        def on_trial_complete(self, iteration, trials, trial, **info):
            ended = [each for each in trials if each is trial or each.is_finished()]
            self.lines[:] = [line_of(each, folder, space, epochs) for each in ended]
            text = io.StringIO(newline="")
            table = csv.DictWriter(text, ["trial", *self.lines[0]], lineterminator="\n")
            table.writeheader()
            table.writerows({"trial": number, **line} for number, line in enumerate(self.lines))
            write_atomically(folder / "trials.csv", lambda file: file.write(text.getvalue().encode()))
            line = self.lines[ended.index(trial)]
            drawn = [f"{name} {x:.3g}" if isinstance(x, float) else f"{name} {x}" for name, x in trial.config.items()]
            loss = f"validation loss {line['validation_loss']:.4f}" if line["epochs"] else "no epoch"
            number = f"trial {trials.index(trial)} ({len(ended)} of {count} done)"
            print(f"{number}, {line['outcome']} after epoch {line['epochs']}: {loss}; {', '.join(drawn)}")

        on_trial_error = on_trial_complete

    return Keeper()


def search(args, given: list[str], flags: dict, space: dict, folder: Path, record: dict) -> list[dict]:
    """Run the trials; the lines of trials.csv, which is written after every trial."""
    os.environ |= {"TUNE_DISABLE_SIGINT_HANDLER": "1", "RAY_AIR_NEW_OUTPUT": "0"}
    ray = ray_stages.start_ray(args.address, flags["threads"], args.gpus or 0)
    tune = ray.tune
    if args.fresh and (folder / "search.json").exists():
        shutil.rmtree(folder)
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "search.json", record)

    gpus = args.gpus if args.gpus is not None else min(1, ray.cluster_resources().get("GPU", 0))
    kept = {"stage": args.stage, "given": given, "epochs": flags["epochs"], "search": folder}
    trainable = tune.with_parameters(train, **kept, threads=flags["threads"], folder=os.getcwd())
    trainable = tune.with_resources(trainable, {"cpu": flags["threads"], "gpu": gpus})
    ray_folder = folder.absolute() / "ray"  # Tune's own notes, which nobody needs afterwards: the logs say it all
    shutil.rmtree(ray_folder, ignore_errors=True)
    keeper = table_keeper(tune, folder, space, flags["epochs"], args.trials)
    again = tune.FailureConfig(max_failures=ray_stages.RETRIES)
    place = {"name": ray_folder.name, "storage_path": str(ray_folder.parent)}
    run_config = tune.RunConfig(**place, verbose=0, callbacks=[keeper], failure_config=again)
    drawn = {name: getattr(tune, how)(*limits) for name, (how, *limits) in space.items() if name != "epochs"}
    # The first trial is the stage as its flags leave it. Tune takes no list there: several numbers are drawn as words.
    first = {name: flags[name] for name in drawn}
    first |= {name: script.words(first[name]) for name in drawn if space[name][0] == "choice"}
    # ASHA stops trials by their losses.
    epochs = {"time_attr": "epoch", "grace_period": args.grace_epochs, "max_t": max(flags["epochs"], args.grace_epochs)}
    scheduler = tune.schedulers.ASHAScheduler(**epochs, reduction_factor=args.reduction)
    draws = {"points_to_evaluate": [first], "max_concurrent": args.concurrent, "random_state": flags["seed"]}
    algorithm = tune.search.basic_variant.BasicVariantGenerator(**draws)
    best = {"metric": "validation_loss", "mode": "min", "num_samples": args.trials, "reuse_actors": True}
    tune_config = tune.TuneConfig(**best, search_alg=algorithm, scheduler=scheduler)
    tune.Tuner(trainable, param_space=drawn, tune_config=tune_config, run_config=run_config).fit()
    ray.shutdown()
    shutil.rmtree(ray_folder, ignore_errors=True)
    return keeper.lines


def best_of(lines: list[dict], args: argparse.Namespace, flags: dict, space: dict, folder: Path) -> dict:
    """The content of best.json: all hyper-parameters of the best trial. ValueError where no trial came to its end."""
    counted = [line for line in lines if line["outcome"] == "finished" or ("epochs" in space and line["epochs"])]
    if not counted:
        raise ValueError(f"{folder}/trials.csv: no trial came to its end; the first: {lines[0]['outcome']}")
    best = min(counted, key=lambda line: line["validation_loss"])
    chosen = {name: flags[name] for name in paper.STAGES[args.stage]}
    for name in space:
        like, value = flags[name], best["best_epoch" if name == "epochs" else name]
        chosen[name] = [type(like[0])(word) for word in value.split()] if isinstance(like, list) else type(like)(value)
    return {
        "hyperparameters": chosen,
        **{name: flags[name] for name in ("modality", "target", *script.FOLD) if name in flags},
        **{"stage": args.stage, "trial": lines.index(best), "of_trials": len(lines)},
        "validation_loss": best["validation_loss"],
        "validation_loss_of_first": lines[0]["validation_loss"],
    }


def main() -> None:
    args, given = parse()
    flags, space, named = resolve(args.stage, given)
    if args.concurrent > 1 and "threads" not in named:
        flags["threads"] = max(1, flags["threads"] // args.concurrent)
        print(f"{flags['threads']} CPU threads a trial, for {args.concurrent} at a time; --threads changes that")
    if args.print_flags:
        print(json.dumps({**script.plain_flags(args), "flags": flags, "space": space}, indent=1))
        return
    folder, record = open_search(args, flags, space)
    with only_writer(folder):
        lines = search(args, given, flags, space, folder, record)
        best, path = best_of(lines, args, flags, space, folder), folder / "best.json"
        write_json(path, best)
    print(f"{path}: those of trial {best['trial']}, validation loss {best['validation_loss']:.4f}")
    print(f"python {args.stage}.py {shlex.join(given)} --hyperparameters {shlex.quote(str(path))}")


if __name__ == "__main__":
    script.run(main)
