"""The architecture as rules: who may import whom, how long a file may be, and what importing the package costs."""

import ast
import subprocess
import sys
from collections.abc import Mapping, Set
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "slamkern"

# Each folder and the folders it may import from, besides its own; every one may use the files at the top.
TOP = {
    "digests",
    "distributed",
    "errors",
    "files",
    "item_stream",
    "progress",
    "reading",
    "run_folder",
    "schemas",
    "version",
}
FOLDERS: dict[str, set[str]] = {
    "schemas": set(),
    "kernels": set(),
    "ops": {"kernels"},
    "modules": {"ops"},
    "data": set(),
    "probe": {"modules", "data", "ops"},
    "selection": {"probe", "modules"},
    "training": {"selection", "probe", "modules", "data", "ops"},
    "evaluation": {"training", "modules", "data"},
    "report": {"evaluation", "selection", "probe", "data"},
    "integrations": {"evaluation", "training", "selection", "modules", "data"},
    "bakeoff": {"pipeline", "report", "evaluation", "training", "selection", "probe", "modules", "data"},
    "bench": {"training", "selection", "probe", "modules", "data", "ops", "pipeline"},
}
FILES = sorted(path for path in PACKAGE.rglob("*.py") if path.parent != PACKAGE)
MAX_FLOORS = 10
OURS = ("slamkern", "csrc", "benchmarks", "tests")


def folder_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0]


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__")


MODULES = {module_name(path): path for path in PACKAGE.rglob("*.py")}


def imports_of(path: Path) -> set[str]:
    """Modules of the package that a file imports anywhere in it, except for type checking alone."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "slamkern":
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                found.add(inner if inner in MODULES else node.module)
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names if alias.name.split(".")[0] == "slamkern"}
    return found - {module_name(path)}


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_nothing_imports_upwards(path):
    folder = folder_of(path)
    imported = {name.split(".")[1] for name in imports_of(path) if "." in name}
    if folder in FOLDERS:
        assert imported <= FOLDERS[folder] | TOP | {folder}


def floors_of(graph: Mapping[str, Set[str]]) -> dict[str, int]:
    """How many floors stand on one another up to each node; AssertionError names a circle."""
    floors: dict[str, int] = {}

    def floor(name: str, above: tuple[str, ...] = ()) -> int:
        assert name not in above, " -> ".join((*above, name))
        if name not in floors:
            floors[name] = 1 + max((floor(below, (*above, name)) for below in graph[name]), default=0)
        return floors[name]

    for name in graph:
        floor(name)
    return floors


def test_no_module_imports_itself_through_others():
    modules = {name for name, path in MODULES.items() if path.name != "__init__.py"}
    assert floors_of({name: imports_of(MODULES[name]) & modules for name in modules})


def test_folders_stand_on_few_floors():
    folders: dict[str, set[str]] = {}
    for path in FILES:
        below = {name.split(".")[1] for name in imports_of(path) if "." in name}
        folders.setdefault(folder_of(path), set()).update(below - TOP - {folder_of(path)})
    assert max(floors_of(folders).values()) <= MAX_FLOORS


def test_only_ops_registers_ops_and_only_kernels_know_triton():
    for path in FILES:
        text = path.read_text(encoding="utf-8")
        if folder_of(path) != "ops":
            assert "torch.library" not in text, path
        if folder_of(path) != "kernels":
            assert "import triton" not in text, path


def test_one_idea_a_file():
    files = (path for folder in OURS for path in (PACKAGE.parent / folder).rglob("*"))
    ours = [path for path in files if path.suffix in (".py", ".cpp", ".cu", ".cuh", ".h")]
    lines = {str(path): len(path.read_text(encoding="utf-8").splitlines()) for path in ours}
    assert {name: count for name, count in lines.items() if count > 250} == {} and len(lines) > len(FILES)


def test_import_is_light():
    heavy = ("transformers", "triton", "matplotlib", "datasets", "typer", "pandas")
    code = f"import sys, slamkern; print([name for name in {heavy} if name in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=PACKAGE.parent)
    assert out.stdout.strip() == "[]"


def test_a_fresh_import_is_enough_to_run_a_patched_model():
    code = """
import slamkern, torch
from transformers import LlamaConfig, LlamaForCausalLM
sizes = dict(vocab_size=8, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2)
model = slamkern.patch_model(LlamaForCausalLM(LlamaConfig(bos_token_id=1, eos_token_id=2, **sizes)))
model(input_ids=torch.ones(1, 2, dtype=torch.int64))
"""
    subprocess.run([sys.executable, "-c", code], check=True, cwd=PACKAGE.parent)


def test_public_names_exist():
    import slamkern

    assert sorted(slamkern.__all__, key=str.lower) == sorted(set(slamkern.__all__), key=str.lower)
    for name in slamkern.__all__:
        assert hasattr(slamkern, name)
