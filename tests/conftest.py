"""The environment every test runs in, and fixtures that many share."""

import os
import tempfile

# One thread a process: the models here are too small to share, and test processes run side by side.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
# What runs keep for the next one (tables, hashes of weights) is of this process and those that it starts.
if "HF_HOME" not in os.environ:
    _home = tempfile.TemporaryDirectory(prefix="slamkern-tests-")
    os.environ["HF_HOME"] = _home.name

import torch

# Without a GPU the Triton kernels are interpreted. Triton reads this when first imported, which transformers does.
os.environ.setdefault("TRITON_INTERPRET", "0" if torch.cuda.is_available() else "1")

from collections.abc import Callable, Iterator
from dataclasses import replace
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from packaging.version import Version
from support.tiny_causal_lm import save_folder
from support.tiny_models import tiny_model

_old_interpreter = find_spec("triton") is not None and Version(version("triton")) < Version("3.7")
if _old_interpreter and os.environ["TRITON_INTERPRET"] == "1" and Version(version("numpy")) >= Version("2.4"):
    raise pytest.UsageError(
        f"Triton {version('triton')} interprets kernels with NumPy before 2.4, and this is {version('numpy')}:"
        " pip install 'numpy<2.4'"
    )


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model and its tokenizer on disk, to be read; who changes something copies it."""
    return save_folder(tmp_path_factory.mktemp("model"))


@pytest.fixture
def llama() -> Any:
    return tiny_model("llama")


@pytest.fixture
def input_ids() -> torch.Tensor:
    return torch.randint(3, 96, (2, 12), generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="session")
def tiny_tokenizer() -> Callable[..., Any]:
    """A tokenizer over the 96 ids of the tiny models: one token a character, by code point."""
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {"<pad>": 0, "<s>": 1, "</s>": 2} | {chr(32 + index): 3 + index for index in range(93)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("[\\s\\S]"), "isolated")
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="?"
    )


@pytest.fixture
def fit(tiny_tokenizer, monkeypatch):
    """Train a fresh tiny model whose layers 0 and 2 are selected; returns (model, result)."""
    from support.tiny_training import CONFIG, PAIRS, selected

    from slamkern.data.prompts import Prompt
    from slamkern.training.loop import train

    # The instruction of a translation is longer than these tiny texts: leave it out.
    monkeypatch.setattr(Prompt, "translation", lambda self, pair: (self._render(pair.source, "English"), pair.target))

    def fit(config=CONFIG, *, model=None, pairs=PAIRS, out=None, **options):
        if model is None:
            model = selected()
        config = replace(config, output_dir=out)
        return model, train(model, tiny_tokenizer, pairs, config, progress=False, **options)

    return fit


@pytest.fixture
def one_process(tmp_path: Path) -> Iterator[None]:
    """A process group of this process alone, as DistributedDataParallel and fully_shard ask for one."""
    store = torch.distributed.FileStore(str(tmp_path / "store"), 1)
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()
