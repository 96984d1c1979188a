"""A stage of the method (pretrain.py, finetune.py, fuse.py) on a Ray cluster: what tune.py and cluster.py share.

Each stage runs as a process of its own, by the command line that a shell would give: its exit code says what happened,
SIGTERM saves, and the same command goes on from the checkpoint, on whichever node, to the same last bit."""

import logging
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

from common.files import AT_WORK

HERE = Path(__file__).parent.parent  # the folder of the scripts
RETRIES = 3  # of a stage whose worker or node died
# A stage whose Ray worker dies with its node would train on beside the one that takes its place; so it is told to save
# and stop, where Ray does not kill it first. Setpriv comes with Linux.
WITH_PARENT = ["setpriv", "--pdeathsig", "TERM"] if shutil.which("setpriv") else []


def start_ray(address: str, threads: int, gpus: float):
    """The module ray, connected to the cluster at `address`, or to one that it starts on this machine where that is
    "local"; ValueError where Ray is missing, nothing answers, or no node has `threads` CPUs and `gpus` of a GPU."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # Ray prints pages of a dead node's log into the table, which says itself what is tried again.
    os.environ.setdefault("RAY_DEDUP_LOGS_SKIP_REGEX", "Raylet is terminated|marked dead|retries remaining")
    try:
        import ray.tune
    except ImportError as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"Ray is needed, and optional ({reason}); pip install -r requirements-ray.txt")
    local = {"include_dashboard": False} if address == "local" else {}
    host, _, port = address.rpartition(":")
    try:
        if host and port.isdecimal():  # Ray itself would try for minutes
            socket.create_connection((host, int(port)), 5).close()
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, **local)
    except (OSError, RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        if local:
            raise ValueError(
                f"Ray could not be started here ({reason}); set RAY_TMPDIR to a folder of your own with a short path"
            )
        raise ValueError(
            f"--address {address}: no Ray cluster there, or it wants a token ({reason}); start one with `ray start "
            "--head`, and set RAY_AUTH_MODE=token here as there"
        )
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    if not any(node.get("CPU", 0) >= threads and node.get("GPU", 0) >= gpus for node in nodes):
        found = ", ".join(f"{node.get('CPU', 0):g} and {node.get('GPU', 0):g}" for node in nodes)
        flags = f"--threads {threads}, --gpus {gpus:g}"
        raise ValueError(f"{flags}: expected a node with as many CPUs and GPUs, found {found}")
    return ray


def run_stage(
    script: str, flags: list[str], log: Path, threads: int, folder: str, meanwhile=lambda: None
) -> tuple[int, str]:
    """Run `script` in `folder`, its output appended to `log`; its exit code, and what it said last, which is its reason
    where it failed. `meanwhile` is called as long as it runs, and once more; where that raises, the script is stopped.
    Raises ChildProcessError where it was ended from outside, so that the same command may well succeed."""
    command = [sys.executable, str(HERE / script), *flags, "--threads", str(threads)]
    log.parent.mkdir(parents=True, exist_ok=True)
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}  # Ray has set its own
    with open(log, "a") as file:
        print(f"--- on {socket.gethostname()}: {shlex.join(command)}", file=file, flush=True)
        streams = {"stdin": subprocess.DEVNULL, "stdout": file, "stderr": subprocess.STDOUT}
        process = subprocess.Popen([*WITH_PARENT, *command], cwd=folder, env=environment, **streams)
    try:
        while process.poll() is None:
            time.sleep(0.2)
            meanwhile()
    finally:
        process.terminate()
        code = process.wait()
    meanwhile()
    said = log.read_text(errors="replace").rstrip().rpartition("\n")[2]
    stopped = code < 0 or code - 128 in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1)
    if stopped or AT_WORK in said:  # what another node is still ending
        raise ChildProcessError(f"{script} ended with {code}: {said}")
    return code, said
