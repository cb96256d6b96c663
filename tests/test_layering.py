"""The architecture as rules: who may import whom, how long a file may be, and what importing the package costs."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "slamkern"

# From the bottom up; a module may import only from layers below its own.
LAYERS = (
    {"direct", "errors", "extension", "files", "languages", "moments", "pages", "reference", "tensorfile", "version"},
    {"kernels", "native"},
    {"backends"},
    {"ops", "row_ops"},
    {"quantised"},
    {"autograd", "neurons", "stats"},
    {"ffn", "norms", "resampling", "rotary", "scores"},
    {"discovery", "selection"},
    {"patch", "trainable"},
    {"fp8"},
    {"recorder"},
)
# Text in, token batches out: these never hear of kernels, statistics or patched models.
TEXT = {"answers", "corpus", "data", "packing", "parallel", "prompts", "records", "tasks"}
TEXT_MAY_USE = TEXT | {"errors", "files", "languages"}


def module_of(path: Path) -> str:
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def imports_of(path: Path) -> set[str]:
    """Top-level modules of the package that a file imports anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "slamkern":
            rest = node.module.split(".")[1:]
            found |= {rest[0]} if rest else {alias.name for alias in node.names}
        elif isinstance(node, ast.Import):
            found |= {alias.name.split(".")[1] for alias in node.names if alias.name.startswith("slamkern.")}
    return found


FILES = sorted(path for path in PACKAGE.rglob("*.py") if path.name != "__init__.py" or path.parent != PACKAGE)
RANK = {name: rank for rank, layer in enumerate(LAYERS) for name in layer}


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_nothing_imports_upwards(path):
    module, imported = module_of(path), imports_of(path)
    if module in TEXT:
        assert imported <= TEXT_MAY_USE
    elif module in RANK:
        rank = RANK[module]
        allowed = {name for name, other in RANK.items() if other < rank} | {module}
        # Within the lowest layer, leaves may use the errors and files beside them.
        allowed |= LAYERS[0] if rank == 0 else set()
        assert imported <= allowed, imported - allowed


def test_only_ops_registers_ops_and_only_kernels_know_triton():
    for path in FILES:
        text = path.read_text(encoding="utf-8")
        if module_of(path) not in ("ops", "row_ops"):
            assert "torch.library" not in text, path
        if module_of(path) != "kernels":
            assert "import triton" not in text, path


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_one_idea_a_file(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 250


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
