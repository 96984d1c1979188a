"""The Triton kernels of attention.py (none yet)."""


def runs_on(q):
    """Whether the kernels take this tensor's device, dtype and head size."""
    return False


def why_not(q):
    return "no Triton kernels"
