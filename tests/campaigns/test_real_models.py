"""Real models from GGUF files: patched, trained for a few steps, exported, and loaded by plain transformers.

``SLAMKERN_GGUF=gemma.gguf:qwen.gguf pytest -m campaign tests/campaigns/test_real_models.py``; the numbers go to
``results/real_models.json``, a row a file. Gemma 3 270M and Qwen2.5-Coder-0.5B need 6 GB of memory and some minutes.
"""

import gc
import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch

import slamkern
from slamkern.data.pairs import Pair
from slamkern.files import write_json
from slamkern.modules.fused_loss import computes_loss
from slamkern.pipeline.loading import load_model

FILES = [Path(name) for name in os.environ.get("SLAMKERN_GGUF", "").split(os.pathsep) if name]
RESULTS = Path(__file__).parent / "results" / "real_models.json"
LAYERS = (0, 1)
GERMAN = "Anna hat {} Äpfel und isst {}. Wie viele bleiben?"
ENGLISH = "Anna has {} apples and eats {}. How many remain?"
NUMBERS = ((9, 4), (12, 5), (7, 2), (30, 11), (8, 3), (21, 6), (15, 9), (40, 13))
PAIRS = [Pair(GERMAN.format(*pair), ENGLISH.format(*pair), "de") for pair in NUMBERS]


@torch.no_grad()
def logits_of(model: Any, ids: torch.Tensor) -> torch.Tensor:
    return model.eval()(input_ids=ids, use_cache=False).logits


def apart(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    """Frobenius norm of the difference over that of ``theirs``."""
    return float((ours.double() - theirs.double()).norm() / theirs.double().norm())


@pytest.mark.campaign
@pytest.mark.timeout(0)
@pytest.mark.skipif(not FILES, reason="SLAMKERN_GGUF names no .gguf file (several: separated by the path separator)")
@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_patch_train_export_and_load_without_slamkern(file: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    model, tokenizer = load_model(str(file), dtype="float32", device="cpu")
    ids = tokenizer(PAIRS[0].source + " " + PAIRS[0].target, return_tensors="pt").input_ids
    stock = logits_of(model, ids)
    with torch.no_grad():
        stock_loss = float(model(input_ids=ids, labels=ids, use_cache=False).loss)

    slamkern.patch_model(model, loss=True)
    assert computes_loss(model) and all(row.fused for row in slamkern.explain(model))
    patched = apart(logits_of(model, ids), stock)
    with torch.no_grad():
        fused_loss = float(model.train()(input_ids=ids, labels=ids, use_cache=False).loss)

    slamkern.apply_selection(model, LAYERS)
    config = slamkern.TrainConfig(
        output_dir=tmp_path / "trained", learning_rate=1e-4, max_steps=4, tokens_per_batch=256,
        gradient_accumulation_steps=1,
    )  # fmt: skip
    result = slamkern.train(model, tokenizer, PAIRS, config, progress=False)
    trained = logits_of(model, ids)

    exported = slamkern.export_model(model, tokenizer, tmp_path / "exported")
    state = model.state_dict()
    plain = AutoModelForCausalLM.from_pretrained(exported, dtype=torch.float32)
    other = plain.state_dict()
    loaded = logits_of(plain, ids)
    row = {
        "file": file.name,
        "model": type(model).__name__,
        "dtype": "float32",
        "parameters": result.total_parameters,
        "trained_parameters": result.trained_parameters,
        "steps": result.steps,
        "loss_first": result.loss_first,
        "loss_last": result.loss_last,
        "logits_changed_by_training": apart(trained, stock),
        "patched_logits_from_stock": patched,
        "fused_loss_from_stock": abs(fused_loss - stock_loss) / stock_loss,
        "exported_weights_bit_equal": state.keys() == other.keys()
        and all(torch.equal(other[name], tensor) for name, tensor in state.items()),
        "exported_logits_from_patched": apart(loaded, trained),
        "exported_logits_bit_equal_to_unpatched": torch.equal(loaded, logits_of(slamkern.unpatch_model(model), ids)),
    }
    rows = json.loads(RESULTS.read_text()) if RESULTS.exists() else []
    write_json(
        RESULTS, sorted([*(old for old in rows if old["file"] != file.name), row], key=lambda each: each["file"])
    )
    del model, plain, state, other
    gc.collect()
    assert row["loss_last"] < row["loss_first"] and row["logits_changed_by_training"] > 1e-4
    assert row["exported_weights_bit_equal"] and row["exported_logits_bit_equal_to_unpatched"]
    # Fused and stock add and round in another order, in every layer: float32 leaves five or six digits of the logits.
    for name in ("patched_logits_from_stock", "fused_loss_from_stock", "exported_logits_from_patched"):
        assert row[name] < 1e-5, (name, row[name])
