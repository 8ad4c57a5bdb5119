"""ReLoRA (arXiv 2307.05695) as a PEFT tuner type: at a restart B is zero and A is drawn again.

How restarts work is in `restart_layer`.
"""

from dataclasses import dataclass, fields
from typing import Any

import torch
from peft import LoraConfig, LoraModel, PeftConfig
from peft.tuners.lora import Linear as LoraLinear
from peft.tuners.lora import LoraLayer
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn
from transformers.pytorch_utils import Conv1D

from ablate.adapters.additive import dense_layer
from ablate.adapters.lora.starts import draw_rows
from ablate.adapters.mora.restart_layer import RestartLayer
from ablate.adapters.tuner_types import TunerType, register

# The settings of LoRA that ReLoRA supports, in addition to those of every PEFT configuration.
_OF_LORA = {
    "r", "lora_alpha", "lora_dropout", "use_rslora", "fan_in_fan_out", "target_modules",
    "exclude_modules", "modules_to_save", "layers_to_transform", "layers_pattern", "rank_pattern",
    "alpha_pattern",
}  # fmt: skip


@dataclass
class ReloraConfig(LoraConfig):
    """Configuration of a ReLoRA adapter: that of plain LoRA, without settings of its variants."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = TunerType.RELORA
        plain, supported = LoraConfig(), _OF_LORA | {setting.name for setting in fields(PeftConfig)}
        for setting in fields(LoraConfig):
            given = getattr(self, setting.name)
            if setting.name not in supported and given != getattr(plain, setting.name):
                raise ValueError(f"{setting.name}={given}: ReLoRA restarts plain LoRA only")


class ReloraLinear(RestartLayer, LoraLinear):
    """A linear layer with ReLoRA adapters."""

    other_param_names = (*LoraLayer.other_param_names, *RestartLayer.REMEMBERED)

    def __init__(
        self, base_layer: nn.Module, adapter_name: str, config: ReloraConfig, **kwargs: Any
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
        """Set B to zero and draw A again."""
        self.lora_B[adapter].weight.zero_()
        draw_rows(self.lora_A[adapter].weight, generator)


class ReloraModel(LoraModel):
    """A model whose targeted linear layers carry ReLoRA adapters."""

    tuner_layer_cls = ReloraLinear

    @staticmethod
    def _create_new_module(
        lora_config: ReloraConfig, adapter_name: str, target: nn.Module, **kwargs: Any
    ) -> ReloraLinear:
        return ReloraLinear(target, adapter_name, lora_config, **kwargs)

    def add_weighted_adapter(self, *args: Any, **kwargs: Any) -> None:
        """Refuse: PEFT would combine the factors and ignore the past.

        Raises:
            ValueError: always.
        """
        raise ValueError("ReLoRA adapters cannot be combined; convert them to LoRA first")


register(TunerType.RELORA, ReloraConfig, ReloraModel)
