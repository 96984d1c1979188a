"""A Ray cluster of two nodes on this machine, for the tests of tune.py and cluster.py."""

import importlib.util
import os
import shutil
import signal
import tempfile
from contextlib import contextmanager

import pytest

needs_ray = pytest.mark.skipif(
    importlib.util.find_spec("ray") is None, reason="Ray is not installed (pip install -r requirements-ray.txt)"
)


@contextmanager
def two_nodes():
    """The cluster, each node of one CPU. Its workers would compute with three threads, were they not told otherwise."""
    folder = tempfile.mkdtemp(prefix="ray")  # the paths of sockets must be short
    before = os.environ.copy()
    os.environ |= {"RAY_USAGE_STATS_ENABLED": "0", "RAY_TMPDIR": folder, "OMP_NUM_THREADS": "3"}
    from ray.cluster_utils import Cluster

    cluster = Cluster()
    try:
        cluster.add_node(num_cpus=1, include_dashboard=False, include_log_monitor=False, no_monitor=True)
        cluster.add_node(num_cpus=1)
        yield cluster
    finally:
        cluster.shutdown()
        os.environ.clear()
        os.environ.update(before)
        shutil.rmtree(folder, ignore_errors=True)


def kill_raylet(node) -> None:
    raylet = node.all_processes["raylet"][0].process
    os.kill(raylet.pid, signal.SIGKILL)
    raylet.wait()  # until then its workers would take it for alive
