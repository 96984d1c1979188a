"""The paper's tables from the test predictions of a run, and what an honest reading gives beside each number (paper 5).

    python evaluate.py --run runs/paper
    python evaluate.py --run runs/paper runs/subject --report     # protocols side by side; report.html with pictures

Numbers are means over the test folds. `±` is the half-width of a 95 % t-interval over folds (paper 5), a second `±` the
same corrected for folds that share training data, and [low, high] a bootstrap that draws subjects. P values of
differences are two-tailed, paired, and adjusted for the number of lines of their table (Holm)."""

import argparse
import json
import textwrap
from pathlib import Path

from common import script  # first: it says how the threads of NumPy wait, and what Ctrl-C says
from analysis import tables
from analysis.compared import Evaluated, evaluate
from analysis.reading import open_runs

WIDTH = 120  # of what is printed


def parse() -> argparse.Namespace:
    parser = script.Parser(__doc__)
    parser.add_argument(
        "--run",
        type=Path,
        nargs="+",
        default=[Path("runs/paper")],
        help="folders of runs; the first is compared with each of the others (default: runs/paper)",
    )
    parser.add_argument("--data", type=Path, help="the data set, if it was moved (default: what run.json says)")
    parser.add_argument("--details", action="store_true", help="also print differences, controls, AUROC and more")
    parser.add_argument("--report", action="store_true", help="also write report.html and figures into the first run")
    what = "leave out, and say so, what is damaged or was made by a model that was trained again since; show the others"
    parser.add_argument("--skip-stale", action="store_true", help=what)
    parser.add_argument("--json", action="store_true", help="print JSON, details included")
    group = parser.add_argument_group("further flags")
    for name, default, what in (
        ("bootstrap", 2000, "draws of subjects"),
        ("permutations", 9999, "random permutations where there are more than this"),
        ("seed", 0, "seed of draws and permutations"),
    ):
        kind, what = script.positive(int, zero=name == "seed"), f"{what} (default: %(default)s; assumed)"
        group.add_argument(f"--{name}", type=kind, default=default, metavar="N", help=what)
    script.add_trust_flag(group)
    script.add_print_flag(group)
    args = parser.parse_args()
    script.stop_if_printing(args)
    return args


def print_markdown(table: dict, said: set) -> None:
    """Print one table, its columns aligned for the terminal, and its notes but for those that were `said` before.

    A table that is too wide goes on below, with its first column again."""
    print(f"\n**{table['title']}**")
    columns = [[text.ljust(max(map(len, column))) for text in column] for column in zip(table["head"], *table["lines"])]
    blocks = [[columns[0]]]
    for column in columns[1:]:
        if len(blocks[-1]) > 1 and 1 + sum(len(each[0]) + 3 for each in [*blocks[-1], column]) > WIDTH:
            blocks.append([columns[0]])
        blocks[-1].append(column)
    for block in blocks:
        head, *lines = ["| " + " | ".join(line) + " |" for line in zip(*block)]
        print("", head, "|" + "|".join("-" * (len(column[0]) + 2) for column in block) + "|", *lines, sep="\n")
    notes = [note for note in table["notes"] if note not in said]
    if notes:
        print("", *(textwrap.fill(note, WIDTH, break_on_hyphens=False) for note in notes), sep="\n")
    said.update(notes)


def print_text(runs: list[Evaluated], found: list[dict], args: argparse.Namespace) -> None:
    """Print the tables and what to doubt: all of it with --details, about one screen without."""
    said = set()
    for table in found:
        if args.details or not table["details"]:
            print_markdown(table, said)
    print("\n**What to doubt**\n")
    for each in runs:
        for sentence in tables.doubts(each)[: None if args.details else 3]:
            sentence = f"{each.run.folder}: {sentence}" if len(runs) > 1 else sentence
            print(textwrap.fill(sentence, WIDTH, initial_indent="- ", subsequent_indent="  ", break_on_hyphens=False))
    print()
    for note in (note for each in runs for note in each.notes):
        print(f"note: {note}")
    if not args.details:
        print("--details prints differences, their tests, controls, AUROC and more; --report shows them with pictures")


def main() -> None:
    args = parse()
    runs = [evaluate(run, args) for run in open_runs(args.run, args.data, args.trust_data)]
    found = tables.all_tables(runs)
    if args.json:
        content = {"runs": [{**each.as_json(), "doubts": tables.doubts(each)} for each in runs], "tables": found}
        # JSON knows no NaN.
        print(json.dumps(json.loads(json.dumps(content), parse_constant=lambda name: None), indent=1))
    else:
        print_text(runs, found, args)
    if not args.report:
        return
    # Last, so that nothing that keeps it from being written keeps the tables from being seen.
    try:
        from analysis import report
    except ImportError as error:
        raise ValueError(f"--report: needs matplotlib ({error}); pip install matplotlib") from error
    page = report.write_report(runs, found, args.run[0])
    if not args.json:
        print(f"{page}: these tables and the pictures of {page.parent / 'figures'}")


if __name__ == "__main__":
    script.run(main)
