"""Facts about the memory that stored keys and values may take."""

import torch

from lotts.sparse import store


def test_what_pytorch_keeps_for_its_next_tensors_is_free(monkeypatch):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (1000, 9000))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 700)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 200)
    device = torch.device("cuda")
    assert store.free_bytes(device) == 1500
    assert store.over_budget(1200, device, offload=False) is None
    assert "sparse_offload=True" in store.over_budget(1201, device, offload=False)
