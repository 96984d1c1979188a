"""Ours and its rivals, side by side: the same work, in turns, in one run.

    python benchmark.py prepare --raw eegmat
    python benchmark.py cohort --folder /scratch
    python benchmark.py attention --batches 64 256
    python benchmark.py step --device cpu --batch-size 16
    python benchmark.py scale --folder /scratch/scale --processes 1 2 4 8
"""

import argparse
import sys

import paper
from benchmarks import attention, cohort, preparation, scale, step

PARTS = {"prepare": preparation, "cohort": cohort, "attention": attention, "step": step, "scale": scale}


def parse_flags(argv) -> argparse.Namespace:
    parser = paper.Parser(description=__doc__)
    parts = parser.add_subparsers(dest="part", required=True)
    for name, module in PARTS.items():
        module.add_flags(parts.add_parser(name, help=module.run.__doc__, description=module.run.__doc__))
    return parser.parse_args(argv)


def main(argv=None) -> int:
    try:
        flags = parse_flags(argv)
        PARTS[flags.part].run(flags)
    except (ValueError, OSError) as error:
        print(f"benchmark.py: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
