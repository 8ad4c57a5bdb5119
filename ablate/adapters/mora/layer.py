"""MoRA (arXiv 2405.12130) as a PEFT tuner type: one square matrix between two fixed linear maps.

    h = W x + decomp(M comp(x))            M is q x q and starts at zero, nothing else is trained

The maps are those of `square`. They are linear in x, so a weight change Delta-W exists and merging
is exact. There is no alpha and no random start. Nothing is cached, so the layer follows moves to
another device or type and can hold adapters of different ranks. This module must be imported before
PEFT loads a saved adapter of this type.
"""

from collections.abc import Container
from dataclasses import dataclass, field

import torch
from peft import PeftConfig
from torch import Tensor, nn

from ablate.adapters.additive import AdditiveLinear, AdditiveModel, dense_layer
from ablate.adapters.mora.spec import square_side
from ablate.adapters.mora.square import MAPS
from ablate.adapters.tuner_types import TunerType, register


@dataclass
class MoraConfig(PeftConfig):
    """Configuration of a MoRA adapter.

    Attributes:
        r: the LoRA rank whose parameter count is matched; each matrix gets its own side q.
        mora_type: which maps, a key of `square.MAPS`.
        mora_dropout: probability that an input entry is dropped, before comp.
        target_modules: names or a pattern as in PEFT's LoraConfig.
        exclude_modules: names or a pattern left out of the targets.
        modules_to_save: further modules to train and save whole.
    """

    r: int = 8
    mora_type: str = "sharing"
    mora_dropout: float = 0.0
    target_modules: list[str] | str | None = "all-linear"
    exclude_modules: list[str] | str | None = None
    modules_to_save: list[str] | None = field(default=None)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = TunerType.MORA
        if self.mora_type not in MAPS:
            raise ValueError(f"mora_type={self.mora_type}: must be one of {', '.join(MAPS)}")
        if self.r < 1:
            raise ValueError(f"r={self.r}: must be at least 1")
        if isinstance(self.target_modules, list):
            self.target_modules = set(self.target_modules)  # type: ignore[assignment]
        if isinstance(self.exclude_modules, list):
            self.exclude_modules = set(self.exclude_modules)  # type: ignore[assignment]


class MoraLinear(AdditiveLinear):
    """A linear layer with MoRA adapters: `nn.Linear`, or the transposed `Conv1D` of GPT-2."""

    adapter_layer_names: tuple[str, ...] = ("mora_M",)
    other_param_names: tuple[str, ...] = ("mora_type", "mora_dropout")

    def __init__(self, base_layer: nn.Module, adapter_name: str, config: MoraConfig) -> None:
        super().__init__(base_layer, adapter_name)
        dense_layer(self.get_base_layer(), "MoRA")
        self.mora_M = nn.ParameterDict()
        self.mora_dropout = nn.ModuleDict()
        self.mora_type: dict[str, str] = {}
        self.update_layer(adapter_name, config)

    @property
    def held(self) -> Container[str]:
        """The names of the adapters that this layer has."""
        return self.mora_type

    def update_layer(self, adapter_name: str, config: MoraConfig) -> None:
        """Add an adapter, or replace the one of this name; its change is zero."""
        q = square_side(config.r, (self.out_features, self.in_features), config.mora_type)
        drop = nn.Dropout(config.mora_dropout) if config.mora_dropout else nn.Identity()
        self.mora_type[adapter_name] = config.mora_type
        self.mora_dropout[adapter_name] = drop
        self.mora_M[adapter_name] = nn.Parameter(torch.zeros(q, q))
        self._move_adapter_to_device_of_base_layer(adapter_name)
        self.set_adapter(self.active_adapters, inference_mode=config.inference_mode)

    def change(self, name: str, x_K: Tensor) -> Tensor:
        """Return decomp(M comp(x)) of an adapter, dropout included, in M's precision."""
        M_QQ = self.mora_M[name]
        x_K = self.mora_dropout[name](self._cast_input_dtype(x_K, M_QQ.dtype))
        return MAPS[self.mora_type[name]].change(x_K, M_QQ, self.out_features)

    def delta(self, name: str) -> Tensor:
        """Return Delta-W (d, k) of an adapter, in single precision at least."""
        M_QQ = self.mora_M[name]
        exact = M_QQ.to(torch.promote_types(M_QQ.dtype, torch.float32))
        return MAPS[self.mora_type[name]].delta(exact, self.out_features, self.in_features)


class MoraModel(AdditiveModel):
    """A model whose targeted linear layers carry MoRA adapters."""

    prefix = "mora_"
    tuner_layer_cls = MoraLinear


register(TunerType.MORA, MoraConfig, MoraModel)
