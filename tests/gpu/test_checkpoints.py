"""On a GPU: a run that goes on from a checkpoint ends as the undisturbed one, bit for bit."""

import pytest
import torch

from ablate.training.checkpoints import keeper
from tests.unit.test_checkpoints import contents, planned, same, trained

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"),
]
CASES = {
    "lora": (),
    "packed": ("execution.layout=packed", "base_precision=bf16", "train.precision=bf16"),
    "neftune and dropout": ("regulariser=neftune", "adapter.options.dropout=0.1"),
    "rank dropout": ("regulariser=rank_dropout",),
    "remora": ("adapter=remora", "adapter.options.restarts=3"),
    "adalora": ("adapter=adalora", "adapter.options.initial=0.1", "adapter.options.final=0.2"),
    "masters": ("adapter=full", "base_precision=bf16", "train.precision=bf16"),
    "offloaded": ("adapter=full", "base_precision=bf16", "execution.offload_optimizer=true"),
    "8 bits": ("adapter=full", "optimizer=adamw_8bit", "base_precision=bf16"),
    "bitsandbytes": ("adapter=full", "optimizer=adamw_bnb_8bit"),
    "paged": ("adapter=full", "optimizer=paged_adamw", "embeddings=trained"),
    "paged 8 bits": ("adapter=full", "optimizer=paged_adamw_8bit", "embeddings=trained"),
}


@pytest.mark.parametrize("name", CASES)
def test_a_resumed_run_ends_as_the_undisturbed_one(name, tmp_path, monkeypatch):
    monkeypatch.setattr(keeper, "LEAST_SHARE", 0)
    if any("adamw_bnb" in word or "paged" in word for word in CASES[name]):
        pytest.importorskip("bitsandbytes")
    named = planned(*CASES[name], "execution.device=cuda")
    whole = trained(named, tmp_path / "whole", monkeypatch)
    twice = trained(named, tmp_path / "twice", monkeypatch)
    if contents(whole, named.key)[2] != contents(twice, named.key)[2]:
        pytest.skip("its kernels give other bits each time")
    broken = trained(named, tmp_path / "broken", monkeypatch, interruptions=(2, 5))
    same(contents(broken, named.key), contents(whole, named.key))
