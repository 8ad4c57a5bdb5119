"""The lighter LoRA layer against PEFT's: the same outputs and gradients."""

import copy

import pytest
import torch
from peft import LoraConfig, get_peft_model
from peft.tuners import lora
from torch import nn

from ablate.adapters.lora import forward
from tests import toys

# PEFT 0.21 uses an attribute that transformers 5.23 has deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing")
LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def adapted(dtype=torch.float64, **changes):
    torch.manual_seed(0)
    config = LoraConfig(r=3, lora_alpha=12, target_modules=LINEAR, task_type="CAUSAL_LM", **changes)
    model = get_peft_model(toys.llama(dtype), config, autocast_adapter_dtype=False)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.3)
    return model.train()


def both(**changes):
    theirs = adapted(**changes)
    ours = copy.deepcopy(theirs)
    forward.lighten(ours)
    return theirs, ours


def ran(model, device="cpu", dtype=None):
    ids = torch.randint(0, toys.VOCAB, (3, 11), generator=torch.Generator().manual_seed(1))
    model.zero_grad()
    with torch.autocast(device, dtype or torch.bfloat16, enabled=dtype is not None):
        logits = model(input_ids=ids.to(device), use_cache=False).logits
    logits.double().logsumexp(-1).sum().backward()
    grads = {
        n: p.grad.cpu().double().clone() for n, p in model.named_parameters() if p.requires_grad
    }
    return {"logits": logits.detach().cpu().double(), **grads}


def light(model):
    return [m for m in model.modules() if type(m) is forward.Linear]


def error(found, truth):
    return max(float((found[n] - truth[n]).norm() / truth[n].norm()) for n in truth)


@pytest.mark.parametrize("changes", [{}, {"use_rslora": True}])
def test_outputs_and_gradients_are_pefts(changes):
    theirs, ours = both(**changes)
    assert len(light(ours)) == 14
    assert error(ran(ours), ran(theirs)) < 1e-12


def test_in_16_bits_the_error_is_of_the_size_of_pefts():
    theirs, ours = both()
    truth = ran(theirs)
    theirs, ours = theirs.float(), ours.float()
    one, other = (error(ran(m, dtype=torch.bfloat16), truth) for m in (ours, theirs))
    assert one < 2 * other


@pytest.mark.parametrize(
    "changes",
    [{"lora_dropout": 0.5}, {"use_dora": True}],
    ids=["dropout", "dora"],
)
def test_what_does_more_is_computed_by_peft(changes):
    theirs, ours = both(**changes)
    torch.manual_seed(2)
    truth = ran(theirs)
    torch.manual_seed(2)
    assert error(ran(ours), truth) < 1e-12


def test_hooks_on_the_factors_act():
    theirs, ours = both()
    for model in (theirs, ours):
        for name, part in model.named_modules():
            if name.endswith("lora_A.default"):
                part.register_forward_hook(lambda _module, _args, out: 2 * out)
    assert error(ran(ours), ran(theirs)) < 1e-12


def test_a_disabled_and_a_merged_adapter_are_pefts():
    theirs, ours = both()
    ids = torch.arange(7)[None]
    with torch.no_grad():
        with theirs.disable_adapter(), ours.disable_adapter():
            torch.testing.assert_close(ours(input_ids=ids).logits, theirs(input_ids=ids).logits)
        one, other = (m.merge_and_unload()(input_ids=ids).logits for m in (ours, theirs))
    torch.testing.assert_close(one, other)


def test_layers_that_are_no_plain_lora_stay_as_they_are():
    model = nn.ModuleDict({"a": nn.Embedding(4, 4), "b": nn.Linear(4, 4)})
    config = LoraConfig(r=2, target_modules=["a", "b"])
    peft = get_peft_model(model, config)
    forward.lighten(peft)
    assert [type(m) for m in peft.modules() if isinstance(m, lora.LoraLayer)] == [
        lora.layer.Embedding, forward.Linear,
    ]  # fmt: skip


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_on_a_gpu_the_error_is_of_the_size_of_pefts(dtype):
    theirs, ours = both()
    truth = ran(theirs)
    theirs, ours = theirs.float().cuda(), ours.float().cuda()
    one, other = (error(ran(m, "cuda", dtype), truth) for m in (ours, theirs))
    assert one < 2 * other + 1e-6
