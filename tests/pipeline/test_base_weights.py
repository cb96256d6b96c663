"""The hash of the base weights is computed once, and again as soon as anything about their files is another."""

import os
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from slamkern.digests import state_digest
from slamkern.pipeline import base_weights, loading
from slamkern.pipeline.base_weights import BaseWeights
from slamkern.pipeline.sections import ModelSection


@pytest.fixture
def hashed(monkeypatch, tmp_path):
    """Hashes that were computed, in order; nothing is kept from other tests."""
    digests: list[str] = []

    def counted(tensors):
        digests.append(state_digest(tensors))
        return digests[-1]

    monkeypatch.setattr(base_weights, "state_digest", counted)
    monkeypatch.setattr(base_weights, "SETTLED", 0.0)
    monkeypatch.setattr(base_weights, "_folder", lambda: tmp_path / "kept")
    return digests


@pytest.fixture
def section(tmp_path, model_folder):
    return ModelSection(name=str(shutil.copytree(model_folder, tmp_path / "model")))


def digest(section, before_reading=lambda: None):
    source = BaseWeights(section)
    model, _ = loading.load_model(**section.arguments())
    before_reading()
    return source.digest(model)


def changed_weights(section):
    """A file of the weights with one value changed."""
    tensors = {name: tensor.clone() for name, tensor in load_file(f"{section.name}/model.safetensors").items()}
    next(iter(tensors.values())).view(-1)[0] += 1
    save_file(tensors, f"{section.name}.new", metadata={"format": "pt"})
    return Path(f"{section.name}.new")


def test_it_is_computed_once_for_each_dtype(section, hashed):
    model, _ = loading.load_model(section.name)
    expected = state_digest(model.state_dict())
    assert [digest(section) for _ in range(3)] == [expected] * 3 and hashed == [expected]
    half = section.model_copy(update={"dtype": "bfloat16"})
    assert digest(half) == digest(half) != expected and len(hashed) == 2


def test_changed_weights_are_read_whatever_their_times_say(section, hashed):
    first = digest(section)
    path = Path(section.name, "model.safetensors")
    before = path.stat()
    with path.open("r+b") as file:  # name, inode, size and time of modification stay
        file.write(changed_weights(section).read_bytes())
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert digest(section) == hashed[-1] != first and len(hashed) == 2


def test_a_hash_of_files_that_changed_while_they_were_read_is_not_kept(section, hashed):
    new = changed_weights(section)
    digest(section, before_reading=lambda: new.replace(f"{section.name}/model.safetensors"))
    digest(section)
    assert len(hashed) == 2 and hashed[0] != hashed[1]


def test_a_hash_of_files_written_just_before_is_not_kept(section, hashed, monkeypatch):
    monkeypatch.setattr(base_weights, "SETTLED", 3600.0)
    digest(section)
    digest(section)
    assert len(hashed) == 2


def test_a_damaged_kept_hash_is_told_and_made_again(section, hashed, tmp_path, caplog):
    first = digest(section)
    (kept,) = (tmp_path / "kept").iterdir()
    kept.write_text(kept.read_text().replace(first[:8], "00000000"))
    assert digest(section) == first and len(hashed) == 2
    assert "damaged" in caplog.text
    assert digest(section) == first and len(hashed) == 2


def test_what_runs_code_of_its_own_is_read_every_time(section, hashed):
    trusting = section.model_copy(update={"trust_remote_code": True})
    assert digest(trusting) == digest(trusting) and len(hashed) == 2


def test_where_nothing_can_be_kept_a_run_goes_on(section, hashed, tmp_path):
    (tmp_path / "kept").write_text("a file where the folder should be")
    assert digest(section) == digest(section) == hashed[0] and len(hashed) == 2


def test_a_model_of_the_hub_is_known_by_its_files_in_the_cache(section, hashed, monkeypatch):
    import huggingface_hub

    named = ModelSection(name="owner/name")
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda name, **_: section.name)
    model, _ = loading.load_model(section.name)
    assert BaseWeights(named).digest(model) == BaseWeights(named).digest(model) and len(hashed) == 1
