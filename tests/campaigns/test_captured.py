"""Which architectures CUDA graphs can hold: ``pytest -m campaign tests/campaigns/test_captured.py``, a quarter of a
minute.

Every one whose packed sequences are right, by the rows of ``benchmarks.families``, tiny, on a device without data. A
sample are ordinary tests (tests/training/test_cuda_graphs.py).
"""

from pathlib import Path

import pytest
from support.graphs import launches_of_training
from support.packed_models import examples

from benchmarks import families, results
from slamkern.data.buckets import in_bucket
from slamkern.data.packing import collate
from slamkern.errors import SlamkernError
from slamkern.files import write_json
from slamkern.modules.patch import patch_model

RESULTS = Path(__file__).with_name("results") / "captured.json"


@pytest.mark.campaign
def test_every_packed_architecture_is_captured_or_says_which_op_waits(monkeypatch):
    rows = [row for file in results.read_files() for row in file["stages"].get("families", {}).get("rows", [])]
    names = sorted({row["family"] for row in rows if isinstance(row.get("packed"), float)})
    waiting = {}
    for name in names:
        model = patch_model(families.build(name), strict=False)
        if (head := model.get_output_embeddings()) is not None:
            head.requires_grad_(False)
        first, second = (in_bucket(collate(examples(lengths))) for lengths in ((5, 17, 1, 9, 30), (9, 20, 11, 6, 17)))
        try:
            _, once, again = launches_of_training(model, [first, first, second], monkeypatch)
            assert once == again, name
        except SlamkernError as error:
            waiting[name] = str(error).partition(",")[0]
    write_json(RESULTS, {"architectures": len(names), "waiting": waiting})
    assert len(names) > 50 and set(waiting) == {"gemma3n_text"}
