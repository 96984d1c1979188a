"""The house of the README: who may import whom, how large a room may be, and what each script can do without."""

import ast
import json
import re
import sys
from functools import cache
from graphlib import TopologicalSorter

import pytest

from prepared import FINETUNE, FUSE, PRETRAIN, ROOT, done, without

SCRIPTS = "prepare_data pretrain finetune fuse evaluate predict baseline tune cluster benchmark".split()
FLOORS = [  # from the top; an import goes down
    SCRIPTS,
    ["analysis", "benchmarks"],
    ["training", "preparing"],
    ["protocol"],
    ["model", "common", "datasets"],
    ["paper", "kernels"],
]
NO_TORCH = ["protocol", "preparing", "common", "datasets"]  # nor anything that they import
FORKED = "model pretrain finetune fuse training.loop protocol.segments protocol.folds".split()
OPTIONAL = "scipy sklearn matplotlib PIL edfio pandas threadpoolctl triton h5py wfdb ray".split()
DESCRIBED_ABOVE = ("main", "parse", "forward", "error")  # by the docstring of the script, or of the class


def module_of(path) -> str:
    """protocol/folds.py is protocol.folds, protocol/__init__.py is protocol."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


FILES = sorted([*ROOT.glob("*.py"), *ROOT.glob("[a-z]*/**/*.py")])
MODULES = {module_of(path): path for path in FILES}
for room in ("tests", "data", "raw", "runs", "predictions"):  # .gitignore, and the tests themselves
    MODULES = {name: path for name, path in MODULES.items() if name.split(".")[0] != room}
TREES = {name: ast.parse(path.read_text(), path.name) for name, path in MODULES.items()}


def room_of(module: str) -> str:
    """A folder is a room, and so is each file on top."""
    return module.split(".")[0]


def imported(tree, everywhere: bool) -> set[str]:
    """The modules that a file imports: of ours as MODULES has them, others by their first name.

    everywhere: also within functions, which import when they are called.
    """
    found, nodes = set(), [tree]
    while nodes:
        node = nodes.pop()
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda) and not everywhere:
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, "the project imports by full names"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
        nodes += ast.iter_child_nodes(node)
    return {known_part(name) for name in found}


def known_part(name: str) -> str:
    """protocol.folds.deal is protocol.folds; scipy.stats is scipy."""
    while name not in MODULES and "." in name:
        name = name.rpartition(".")[0]
    return name


IMPORTS = {name: imported(tree, everywhere=True) for name, tree in TREES.items()}


def arrows() -> dict[str, set[str]]:
    """room -> the other rooms that it imports."""
    found = {room_of(name): set() for name in MODULES}
    for name, others in IMPORTS.items():
        found[room_of(name)] |= {room_of(other) for other in others if other in MODULES} - {room_of(name)}
    return found


@cache
def loaded_by(module: str) -> frozenset[str]:
    """Everything that an import of `module` imports in turn, before any function is called."""
    found, waiting = set(), [module]
    while waiting:
        name = waiting.pop()
        if name in found:
            continue
        found.add(name)
        if name in MODULES:
            waiting += imported(TREES[name], everywhere=False) | ({name.rpartition(".")[0]} - {""})
    return frozenset(found)


def test_every_room_has_its_floor():
    assert sorted(arrows()) == sorted(room for floor in FLOORS for room in floor)


def test_imports_go_down_and_in_no_circle():
    floor = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}
    up = [(room, other) for room, others in arrows().items() for other in others if floor[other] <= floor[room]]
    assert up == []
    ours = {name: {other for other in others if other in MODULES} - {name} for name, others in IMPORTS.items()}
    TopologicalSorter(ours).prepare()  # CycleError where files of a room import each other
    # Nor does a script import another by a name that is known when it runs alone.
    assert [name for name in SCRIPTS if IMPORTS[name] & {"importlib", "runpy"}] == []


@pytest.mark.parametrize("room", NO_TORCH)
def test_rooms_that_know_no_torch(room):
    inside = [name for name in MODULES if room_of(name) == room]
    assert [name for name in inside if "torch" in IMPORTS[name] or "torch" in loaded_by(name)] == []


@pytest.mark.parametrize("script", ["evaluate", "baseline", "prepare_data"])
def test_scripts_that_need_no_torch(script, tmp_path):
    assert "torch" not in loaded_by(script)
    own = ["--dataset", "simulated"] if script == "prepare_data" else []
    finished = without(["torch"], f"{script}.py", *own, "--print-flags", cwd=tmp_path)
    assert finished.returncode == 0 and json.loads(finished.stdout), finished.stderr


@pytest.mark.slow
def test_training_needs_torch_numpy_and_tqdm_alone(work):
    cell = ("--modality", "ecg", "--fold", 3)
    for command in (
        ("pretrain.py", *cell, *PRETRAIN),
        ("finetune.py", *cell, "--target", "valence", *FINETUNE),
        ("fuse.py", "--target", "arousal", "--fold", 1, *FUSE, "--fresh"),
    ):
        finished = without(OPTIONAL, *command, cwd=work)
        assert finished.returncode == 0, finished.stderr
    assert (work / "runs/paper/ecg/fold3/valence.npy").exists()


def test_requirements_list_what_is_imported():
    """A package that a file imports before any function is called is in requirements.txt."""
    package = {"sklearn": "scikit-learn", "PIL": "pillow"}
    installed = set(re.findall(r"^([\w-]+)==", (ROOT / "requirements.txt").read_text(), re.MULTILINE))
    for name, tree in TREES.items():
        others = {room_of(other) for other in imported(tree, everywhere=False)} - sys.stdlib_module_names
        assert {package.get(other, other) for other in others - set(arrows())} <= installed, name


def lines(path) -> int:
    """The lines of a file, blank ones and comments among them."""
    return len(path.read_text().splitlines())


def test_the_house_stays_small():
    assert len(arrows()) <= 20
    assert sum(map(len, arrows().values())) <= 65
    assert len(list(ROOT.glob("*.py"))) <= 12
    assert sum(lines(MODULES[name]) for name in FORKED) <= 1500
    assert sum(map(lines, MODULES.values())) <= 10500
    assert lines(ROOT / "README.md") < 200


def test_no_function_is_longer_than_60_lines():
    for name, tree in TREES.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                assert node.end_lineno - node.lineno < 60, (name, node.name)


def test_everything_public_says_what_it_is():
    def of(node, where):
        """Files, classes, functions and methods without a docstring; what stands inside a function is its own."""
        if not isinstance(node, ast.Module) and (node.name.startswith("_") or node.name in DESCRIBED_ABOVE):
            return
        if ast.get_docstring(node) is None:
            yield where
        if not isinstance(node, ast.FunctionDef):
            for child in node.body:
                if isinstance(child, ast.FunctionDef | ast.ClassDef):
                    yield from of(child, f"{where}.{child.name}")

    assert [each for name, tree in TREES.items() for each in of(tree, name)] == []


PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_to_files(page):
    text = page.read_text()
    links = [link for link in re.findall(r"\]\(([^)\s]+)\)", text) if not link.startswith("http")]
    assert [link for link in links if not (page.parent / link).exists()] == []
    files = re.findall(r"`((?:[\w-]+/)*[\w-]+\.(?:py|sh|md|txt))`", text)
    assert [file for file in files if not (ROOT / file).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_have_flags_that_exist(page):
    for block in re.findall(r"^```\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL):
        for script, words in re.findall(r"(\w+)\.py +([^#\n]*)", block):
            for flag in re.findall(r"(?<!\S)--\w[\w-]*", words.replace(" -- ", " ")):
                assert flag in known_flags(script, words.split()[0]), (script, flag)


@cache
def known_flags(script: str, part: str) -> set[str]:
    """The flags that a script's help shows: of benchmark.py those of the part named, of tune.py its stages' too."""
    scripts = ["tune", "pretrain", "finetune", "fuse"] if script == "tune" else [script]
    parts = [part] if script == "benchmark" else []
    helps = [done(f"{each}.py", *parts, "--help", cwd=ROOT) for each in scripts]
    return set(re.findall(r"--\w[\w-]*", " ".join(helps)))
