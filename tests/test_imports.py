"""Who may import whom: the rooms of the house, and the libraries that only some may load."""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent
ROOMS = ("trainer", "tasks", "components", "utils")

# The other rooms that a room may enter.
MAY_ENTER = {
    "utils": set(),
    "trainer": {"utils"},
    "components": {"utils"},
    "tasks": {"utils", "components", "trainer"},
}

# What the Trainer needs, and what it may load inside of a function.
TRAINER_LIBRARIES = {"torch", "accelerate", "safetensors", "numpy", "tqdm"}
TRAINER_LAZY = {"tensorboard", "wandb", "matplotlib"}

# Heavy or optional: never loaded by importing one of our modules.
HEAVY = {
    "transformers",
    "diffusers",
    "lhotse",
    "h5py",
    "pystoi",
    "pesq",
    "pyworld",
    "wandb",
    "audiomentations",
    "matplotlib",
    "tensorboard",
    "espeakng_loader",
    "sentencepiece",
    "kenlm",
    "gradio",
}

# Run as a process of its own, imported by nobody.
PROGRAMS = {"espeak_worker.py"}


def modules(room: str) -> list[Path]:
    return sorted((REPOSITORY / room).rglob("*.py"))


def imports(path: Path) -> Iterator[tuple[str, bool, int]]:
    """(dotted name, at the top level and not for type checkers, line) of every import."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    deferred: set[ast.AST] = set()
    for node in ast.walk(tree):
        is_typing = isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)
        if is_typing or isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            deferred.update(ast.walk(node))
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node not in deferred, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: relative import"
            yield from ((f"{node.module}.{alias.name}", node not in deferred, node.lineno) for alias in node.names)


def found_imports() -> list[tuple[str, Path, str, bool, int]]:
    return [(room, path, *found) for room in ROOMS for path in modules(room) for found in imports(path)]


def test_the_check_sees_every_room():
    assert all(modules(room) for room in ROOMS)


def test_a_room_enters_only_the_rooms_it_may():
    wrong = [
        f"{path.relative_to(REPOSITORY)}:{line} imports {name}"
        for room, path, name, _, line in found_imports()
        if (entered := name.split(".")[0]) in ROOMS and entered != room and entered not in MAY_ENTER[room]
    ]
    assert wrong == []


def test_no_task_imports_another_task():
    wrong = [
        f"{path.relative_to(REPOSITORY)}:{line} imports {name}"
        for room, path, name, _, line in found_imports()
        if room == "tasks" and name.startswith("tasks.") and name.split(".")[1] != path.relative_to(REPOSITORY).parts[1]
    ]
    assert wrong == []


def test_the_trainer_needs_torch_and_accelerate_and_knows_no_audio():
    wrong = []
    for room, path, name, eager, line in found_imports():
        library = name.split(".")[0]
        if room != "trainer" or library in {*ROOMS, *sys.stdlib_module_names, *TRAINER_LIBRARIES}:
            continue
        if eager or library not in TRAINER_LAZY:
            wrong.append(f"{path.relative_to(REPOSITORY)}:{line} imports {name}")
    assert wrong == []


def test_heavy_libraries_are_loaded_where_they_are_used():
    wrong = [
        f"{path.relative_to(REPOSITORY)}:{line} imports {name}"
        for _, path, name, eager, line in found_imports()
        if path.name not in PROGRAMS
        and eager
        and (name.split(".")[0] in HEAVY or name.startswith("torch.utils.tensorboard"))
    ]
    assert wrong == []


@pytest.mark.parametrize("entry", ["train.py", "inference.py"])
def test_an_entry_point_loads_no_torch_before_the_prompt_is_understood(entry):
    eager = {name.split(".")[0] for name, is_eager, _ in imports(REPOSITORY / entry) if is_eager}
    assert eager <= {"__future__", "pathlib", "typing", "utils"}
    assert len((REPOSITORY / entry).read_text().splitlines()) <= 60


def test_the_way_from_the_prompt_to_a_typo_loads_no_torch():
    """Not by ast: what `utils.config` and `utils.validate` bring along is asked of python itself."""
    import subprocess

    ours = "utils.config, utils.validate, utils.build, utils.launch, utils.save, utils.seed, utils.stored_run"
    code = f"import sys, {ours}; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
