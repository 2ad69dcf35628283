"""The rules of the house that a machine can check: who may import whom, how long things are, what they are called."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MODULES = sorted(path for package in ("franca", "reproduce") for path in (ROOT / package).rglob("*.py"))
TESTS = sorted((ROOT / "tests").glob("*.py"))

# Data goes one way: a module of the harness imports only modules to its left.
LAYERS = (
    "errors quantities files terminal places validate compose sources overrides rules versions spec sites containers",
    "resolve audit plan",
    "attempts snapshot launch runs evaluator",
    "json_text problems labels log_head records dialects logs lineage frames curves bands",
    "checks layers conventions axes conclusions verdict comparison weights_verdict",
    "signatures figures report",
    "published references progress causes endings beside standing phases",
    "judging vouching live released weights pipeline sweeps sweep_report probes",
    "overview tables screen console asking watching sweeping signing live_command log_commands cli",
)
ORDER = [name for layer in LAYERS for name in layer.split()]
SHARED = (
    "franca.config.",
    "franca.schedules.",
    "franca.flops.",
    "franca.memory.",
    "franca.closed_form.",
    "franca.laws.",
)
PURE = (
    "franca/config.py",
    "franca/schedules.py",
    "franca/masking.py",
    "franca/flops.py",
    "franca/memory.py",
    "franca/closed_form.py",
    "franca/laws.py",
)
BANNED = {"utils", "util", "helpers", "helper", "common", "misc", "base", "core"}
MODULE_LINES, FUNCTION_LINES = 400, 40
LONG_FUNCTIONS = {("franca/train/loop.py", "train"): 120}


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def imports(path: Path) -> Iterator[str]:
    """Every module that a file imports, at its top or inside a function; `from a import b` counts as `a.b` too."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: a relative import"
            assert node.module is not None
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def room(module: str) -> str | None:
    """The place in `ORDER` of a module of the harness; None of the package itself and of other packages."""
    parts = module.split(".")
    return parts[1] if parts[0] == "reproduce" and len(parts) > 1 else None


def test_harness_imports_go_to_the_left() -> None:
    """No module of the harness imports one that comes after it, and every module has its place."""
    for path in sorted((ROOT / "reproduce").rglob("*.py")):
        own = path.relative_to(ROOT / "reproduce").with_suffix("").parts[0]
        if own in ("__init__", "__main__"):
            continue
        assert own in ORDER, f"{name_of(path)} has no place in ORDER"
        for module in imports(path):
            other = room(module)
            if other in ORDER and other != own:
                assert ORDER.index(other) < ORDER.index(own), f"{name_of(path)} imports {module}"


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_harness_and_trainer_share_only_the_configuration(path: Path) -> None:
    """The harness imports of the trainer what says of a recipe what it is and costs, and the trainer nothing of it."""
    for module in imports(path):
        if name_of(path).startswith("reproduce/"):
            assert module.split(".")[0] != "franca" or (module + ".").startswith(SHARED)
        else:
            assert module.split(".")[0] != "reproduce"


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_torch_stays_in_the_trainer(path: Path) -> None:
    """Neither the harness nor the pure modules import torch, and one module alone speaks to other processes."""
    found = {module for module in imports(path) if module.split(".")[0] == "torch"}
    if name_of(path).startswith("reproduce/") or name_of(path) in PURE:
        assert not found
    if name_of(path) != "franca/distributed.py":
        assert not {
            module
            for module in found
            if module.startswith("torch.distributed") and not module.startswith("torch.distributed.checkpoint")
        }


@pytest.mark.parametrize("path", MODULES + TESTS, ids=name_of)
def test_module_fits_on_a_few_screens(path: Path) -> None:
    """A module has at most 400 lines."""
    assert len(path.read_text().splitlines()) <= MODULE_LINES


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_function_fits_on_a_screen(path: Path) -> None:
    """A function has at most 40 lines; only the training loop, which is read from top to bottom, has more."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            limit = LONG_FUNCTIONS.get((name_of(path), node.name), FUNCTION_LINES)
            assert node.end_lineno is not None
            assert node.end_lineno - node.lineno + 1 <= limit, f"{name_of(path)}:{node.lineno}: {node.name}"


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_module_is_named_after_what_it_makes(path: Path) -> None:
    """No module is a drawer for leftovers or takes the name of one of the standard library."""
    assert path.stem not in BANNED
    assert path.stem not in sys.stdlib_module_names
    assert not {folder.name for folder in path.relative_to(ROOT).parents} & BANNED


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_module_says_what_it_is(path: Path) -> None:
    """Every module begins with a docstring, and a package's `__init__` holds nothing else, but for a lazy name."""
    tree = ast.parse(path.read_text())
    assert ast.get_docstring(tree)
    if path.stem == "__init__":
        rest = [getattr(node, "name", None) for node in tree.body[1:]]
        assert rest == (["__getattr__"] if name_of(path) == "franca/__init__.py" else [])


def test_harness_runs_without_torch() -> None:
    """Importing every module of the harness leaves torch unimported."""
    modules = [
        ".".join(path.relative_to(ROOT).with_suffix("").parts)
        for path in MODULES
        if path.parts[-2] == "reproduce" and path.stem not in ("__init__", "__main__")
    ]
    script = f"import sys, {', '.join(modules)}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0
