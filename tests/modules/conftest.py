"""What tests of fused modules share."""

import pytest
import torch


@pytest.fixture
def one_process(tmp_path):
    """A process group of this process alone, as fully_shard asks for one."""
    store = torch.distributed.FileStore(str(tmp_path / "store"), 1)
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()
