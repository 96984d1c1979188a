"""Measure ours and its rivals side by side: the same work, in turns, in one run.

    python benchmark.py attention --batches 64 256             # the operator alone
    python benchmark.py step --device cpu --batch-size 16      # a training step of the paper's EEG network
    python benchmark.py prepare --raw ~/eegmat                 # recordings, against MNE-Python
    python benchmark.py evaluate                               # the tables of a run of the paper's size
    python benchmark.py evidence --run runs/a runs/b           # what pre-training gives, runs of one design pooled

Each part prints one table."""

from common import script  # first: it says how the threads of PyTorch wait
import torch

from analysis import pooled
from benchmarks import attention, evaluation, preparation, step


def main():
    parser = script.Parser(__doc__)
    parser.usage = "%(prog)s PART [flags]"
    parts = parser.add_subparsers(metavar="PART", required=True, prog=parser.prog)
    modules = {"attention": attention, "step": step, "prepare": preparation, "evaluate": evaluation, "evidence": pooled}
    for name, module in modules.items():
        about = module.run.__doc__
        part = parts.add_parser(name, doc=about, help=about)
        module.add_flags(part)
        part.set_defaults(measure=module.run)
    flags = parser.parse_args()
    if getattr(flags, "device", "cpu") == "cuda" and not torch.cuda.is_available():
        raise ValueError("--device cuda: no GPU is visible to PyTorch; use --device cpu")
    flags.measure(flags)


if __name__ == "__main__":
    script.run(main)
