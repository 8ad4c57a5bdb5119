"""ReMoRA (arXiv 2405.12130, section 3.3) and ReLoRA (2307.05695) as PEFT tuner types.

From time to time (`restarts` says when) what an adapter has learnt is added to the fixed weights
and the adapter starts again, so that the sum of its changes may have a higher rank than any:

    W = W0 + past + Delta-W        at a restart: past += Delta-W, then Delta-W = 0

The function stays as it was. `past` is a tensor of the adapter and not folded into W0, as the
papers do it: so disabling the adapter gives the base, exactly, and what is saved is the adapter
alone. It costs one more matrix of the base layer's shape, in memory and on disk, and one more
product with it from the first restart on.

ReMoRA starts again with M = 0 and groups the entries in another way, since the same maps would give
the same set of functions again. ReLoRA starts again with B = 0 and a fresh A.

Letters: D outputs, K inputs, r rank.
"""

from abc import abstractmethod
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, cast

import torch
from peft import LoraConfig, LoraModel, PeftConfig
from peft.tuners._buffer_dict import BufferDict
from peft.tuners.lora import Linear as LoraLinear
from peft.tuners.lora import LoraLayer
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.pytorch_utils import Conv1D

from ablate.adapters.mora.layer import (
    MoraConfig,
    MoraLinear,
    MoraModel,
    TunerType,
    dense_layer,
    register,
)
from ablate.adapters.mora.spec import GROUPS

# --- layers


class RestartLayer(nn.Module, BaseTunerLayer):
    """A linear layer whose adapters remember what was added up at their restarts.

    It goes in front of the layer of the method that is restarted. `past` is in the layout of the
    base layer's weight, `stage` counts the restarts; both are saved with the adapter. `stage_of` is
    `stage` in Python's numbers, so that a forward pass need not wait for the device to read it.
    """

    REMEMBERED = ("past", "stage", "stage_of")

    if TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any: ...

    def update_layer(self, adapter_name: str, *args: Any, **kwargs: Any) -> None:
        """Add an adapter, or replace the one of this name; it has no past."""
        if "past" not in self._modules:
            self.past, self.stage = BufferDict(persistent=True), BufferDict(persistent=True)
            self.stage_of: dict[str, int] = {}
            self.register_load_state_dict_post_hook(_loaded)
        weight = self.get_base_layer().weight
        exact = torch.promote_types(weight.dtype, torch.float32)
        self.past[adapter_name] = torch.zeros(weight.shape, dtype=exact)
        self.stage[adapter_name] = torch.zeros((), dtype=torch.int64)
        self.stage_of[adapter_name] = 0
        super().update_layer(adapter_name, *args, **kwargs)

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Return the output of the base layer, of every active adapter's past and of its change.

        Raises:
            ValueError: the batch mixes adapters.
        """
        if kwargs.get("adapter_names") is not None:
            raise ValueError("adapter_names: restarted adapters take no batch that mixes adapters")
        out: Tensor = super().forward(x, *args, **kwargs)
        if self.disable_adapters or self.merged:
            return out
        for name in self.active_adapters:
            if self.stage_of.get(name):
                past = self.past[name]
                past_DK = past.T if isinstance(self.get_base_layer(), Conv1D) else past
                out = out + F.linear(self._cast_input_dtype(x, past.dtype), past_DK).to(out.dtype)
        return out

    def get_delta_weight(self, adapter: str) -> Tensor:
        """Return the whole change of the weight, the past included, in the weight's layout."""
        change: Tensor = super().get_delta_weight(adapter)
        return change + self.past[adapter] if self.stage_of[adapter] else change

    @torch.no_grad()
    def restart(self, adapter: str, generator: torch.Generator) -> None:
        """Add the adapter's change to its past and start it again; the outputs stay the same."""
        if self.merged:
            self.unmerge()
        self.past[adapter].copy_(self.get_delta_weight(adapter))
        self.stage[adapter] += 1
        self.stage_of[adapter] += 1
        self.begin(adapter, generator)

    @abstractmethod
    def begin(self, adapter: str, generator: torch.Generator) -> None:
        """Put the adapter to the start of the stage that it is in, where it changes nothing."""

    def resume(self, adapter: str) -> None:
        """Follow the tensors of an adapter that were just loaded."""
        self.stage_of[adapter] = int(self.stage[adapter])


def _loaded(layer: nn.Module, incompatible: Any) -> None:
    for adapter in cast(RestartLayer, layer).stage:
        cast(RestartLayer, layer).resume(adapter)


class RemoraLinear(RestartLayer, MoraLinear):
    """A linear layer with ReMoRA adapters."""

    other_param_names = (
        *MoraLinear.other_param_names,
        *RestartLayer.REMEMBERED,
        "groups",
        "order_in",
        "order_out",
    )

    def update_layer(self, adapter_name: str, config: "RemoraConfig") -> None:
        """Add an adapter, or replace the one of this name; it starts as a no-op."""
        if "order_in" not in self._modules:
            self.groups: dict[str, str] = {}
            self.order_in = BufferDict(persistent=True)
            self.order_out = BufferDict(persistent=True)
        self.groups[adapter_name] = config.groups
        if config.groups == "permute":
            self.order_in[adapter_name] = torch.arange(self.in_features)
            self.order_out[adapter_name] = torch.arange(self.out_features)
        super().update_layer(adapter_name, config)

    def begin(self, adapter: str, generator: torch.Generator) -> None:
        """Set M to zero and group the entries in the next way."""
        self.mora_M[adapter].zero_()
        if adapter in self.order_in:
            for order in (self.order_in[adapter], self.order_out[adapter]):
                order.copy_(torch.randperm(len(order), generator=generator))
        self._regroup(adapter)

    def resume(self, adapter: str) -> None:
        """Follow the tensors of an adapter that were just loaded."""
        super().resume(adapter)
        self._regroup(adapter)

    def _regroup(self, adapter: str) -> None:
        types = GROUPS[self.groups[adapter]]
        self.mora_type[adapter] = types[self.stage_of[adapter] % len(types)]

    def change(self, name: str, x_K: Tensor) -> Tensor:
        """Return decomp(M comp(x)) of an adapter, its entries in the order of the stage."""
        if name not in self.order_in:
            return super().change(name, x_K)
        y_D = super().change(name, x_K.index_select(-1, self.order_in[name]))
        return y_D.index_select(-1, self.order_out[name])

    def delta(self, name: str) -> Tensor:
        """Return Delta-W (d, k) of the stage alone, without the past."""
        change_DK = super().delta(name)
        if name not in self.order_in:
            return change_DK
        return change_DK[self.order_out[name]][:, self.order_in[name].argsort(stable=True)]


class ReloraLinear(RestartLayer, LoraLinear):
    """A linear layer with ReLoRA adapters."""

    other_param_names = (*LoraLayer.other_param_names, *RestartLayer.REMEMBERED)

    def __init__(
        self, base_layer: nn.Module, adapter_name: str, config: "ReloraConfig", **kwargs: Any
    ) -> None:
        inner = (
            base_layer.get_base_layer() if isinstance(base_layer, BaseTunerLayer) else base_layer
        )
        stored_as_KD = isinstance(dense_layer(inner, "ReLoRA"), Conv1D)
        super().__init__(
            base_layer, adapter_name, config, is_target_conv_1d_layer=stored_as_KD, **kwargs
        )
        self.fan_in_fan_out = stored_as_KD

    def begin(self, adapter: str, generator: torch.Generator) -> None:
        """Set B to zero and draw A anew."""
        self.lora_B[adapter].weight.zero_()
        draw_rows(self.lora_A[adapter].weight, generator)


@torch.no_grad()
def draw_rows(A_rK: Tensor, generator: torch.Generator) -> None:
    """Fill A from U(-1/sqrt(k), 1/sqrt(k)), PEFT's law for LoRA, in place.

    Row by row, so that a seed's A at rank 4 is the first four rows of its A at rank 16.
    """
    bound = A_rK.shape[1] ** -0.5
    for row_K in A_rK:
        row_K.copy_(torch.empty(len(row_K)).uniform_(-bound, bound, generator=generator))


# --- tuner types


@dataclass
class RemoraConfig(MoraConfig):
    """Configuration of a ReMoRA adapter: that of a MoRA adapter by sharing, and `groups`.

    Attributes:
        groups: how the grouping changes at a restart, a key of `rows.mora.GROUPS`.
    """

    groups: str = "cycle"

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = TunerType.REMORA
        if self.groups not in GROUPS:
            raise ValueError(f"groups={self.groups}: must be one of {', '.join(GROUPS)}")
        if self.mora_type != "sharing":
            raise ValueError(f"mora_type={self.mora_type}: ReMoRA starts from sharing")


class RemoraModel(MoraModel):
    """A model whose targeted linear layers carry ReMoRA adapters."""

    tuner_layer_cls = RemoraLinear


# What ReLoRA takes of LoRA's settings, beside those of every PEFT configuration.
_OF_LORA = {
    "r", "lora_alpha", "lora_dropout", "use_rslora", "fan_in_fan_out", "target_modules",
    "exclude_modules", "modules_to_save", "layers_to_transform", "layers_pattern", "rank_pattern",
    "alpha_pattern",
}  # fmt: skip


@dataclass
class ReloraConfig(LoraConfig):
    """Configuration of a ReLoRA adapter: that of plain LoRA, whose variants are refused."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = TunerType.RELORA
        plain, taken = LoraConfig(), _OF_LORA | {setting.name for setting in fields(PeftConfig)}
        for setting in fields(LoraConfig):
            given = getattr(self, setting.name)
            if setting.name not in taken and given != getattr(plain, setting.name):
                raise ValueError(f"{setting.name}={given}: ReLoRA restarts plain LoRA only")


class ReloraModel(LoraModel):
    """A model whose targeted linear layers carry ReLoRA adapters."""

    tuner_layer_cls = ReloraLinear

    @staticmethod
    def _create_new_module(
        lora_config: ReloraConfig, adapter_name: str, target: nn.Module, **kwargs: Any
    ) -> ReloraLinear:
        return ReloraLinear(target, adapter_name, lora_config, **kwargs)

    def add_weighted_adapter(self, *args: Any, **kwargs: Any) -> None:
        """Refuse: PEFT would combine the factors and leave out the past.

        Raises:
            ValueError: always.
        """
        raise ValueError("ReLoRA adapters cannot be combined; convert them to LoRA first")


register(TunerType.REMORA, RemoraConfig, RemoraModel)
register(TunerType.RELORA, ReloraConfig, ReloraModel)
