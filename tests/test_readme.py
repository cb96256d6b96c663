"""The Python of README.md runs as printed; a tiny model and a few questions take the place of what it names."""

import re
from pathlib import Path

import pytest
from support.tiny_models import tiny_model
from transformers import AutoModelForCausalLM

import slamkern

README = Path(__file__).resolve().parents[1] / "README.md"
QUESTIONS = {"en": "Anna has {} apples.", "de": "Anna hat {} Apfel.", "sw": "Anna ana tofaa {}."}


@pytest.fixture
def place(tmp_path, monkeypatch, tiny_tokenizer):
    """An empty working directory with the model ``tiny`` and the folder ``questions``."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    tiny_model(max_position_embeddings=1024).save_pretrained("tiny")
    tiny_tokenizer.save_pretrained("tiny")
    for code in ("de", "sw"):
        folder = tmp_path / "questions" / f"{code}-en"
        folder.mkdir(parents=True)
        for each in (code, "en"):
            lines = [QUESTIONS[each].format(number) for number in range(8)]
            (folder / f"train.{each}").write_text("\n".join(lines) + "\n")
    return tmp_path


def test_the_python_of_the_readme_runs(place):
    pytest.importorskip("trl")
    blocks = re.findall(r"^```python\n(.*?)^```", README.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    assert len(blocks) == 2
    smaller = {
        "Qwen/Qwen2.5-Coder-0.5B-Instruct": "tiny",
        ', device_map="cuda"': "",
        "k=6": "k=2",
        "packing=True": "packing=True, use_cpu=True",
    }
    names: dict[str, object] = {}
    for block in blocks:
        for printed, tiny in smaller.items():
            block = block.replace(printed, tiny)
        exec(compile(block, str(README), "exec"), names)
    trained = {f"model.layers.{i}.mlp.{name}_proj.weight" for i in names["selection"].layers for name in ("up", "down")}
    for folder, dtype in (("aligned", "bfloat16"), ("aligned-trl/slamkern", "float32")):
        fresh = AutoModelForCausalLM.from_pretrained("tiny", dtype=dtype)
        before = {name: tensor.clone() for name, tensor in fresh.state_dict().items()}
        assert set(slamkern.load_delta(fresh, folder)) == trained
        assert any(not tensor.equal(before[name]) for name, tensor in fresh.state_dict().items()), folder
    exported = slamkern.export_model(names["model"], names["tokenizer"], "model-aligned")
    assert AutoModelForCausalLM.from_pretrained(exported).dtype == names["model"].dtype
