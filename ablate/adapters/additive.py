"""The common base of PEFT tuner types whose adapters add a linear change to a linear layer.

    h = W x + sum over the active adapters of Delta-W x

Because a Delta-W exists, merging is exact and an adapter can be converted to LoRA factors. A
subclass defines which adapters a layer has, the change of an output, and Delta-W.

Letters: D outputs, K inputs.
"""

import warnings
from abc import abstractmethod
from collections.abc import Container
from typing import TYPE_CHECKING, Any

import torch
from peft import PeftConfig
from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer, check_adapters_to_merge
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D


def dense_layer(layer: nn.Module, method: str) -> nn.Linear | Conv1D:
    """Return `layer` if its weight is a floating-point matrix.

    Raises:
        TypeError: it is not a linear layer, or it is quantised, where merging would be wrong.
    """
    if isinstance(layer, nn.Linear | Conv1D) and layer.weight.is_floating_point():
        return layer
    raise TypeError(
        f"{method} adapts nn.Linear and Conv1D with floating-point weights, not "
        f"{type(layer).__name__}"
    )


class AdditiveLinear(nn.Module, BaseTunerLayer):
    """A linear layer with additive adapters: `nn.Linear`, or the transposed `Conv1D` of GPT-2."""

    if (
        TYPE_CHECKING
    ):  # PEFT's attributes are untyped, and nn.Module types every unknown one as a tensor

        def __getattr__(self, name: str) -> Any: ...

    def __init__(self, base_layer: nn.Module, adapter_name: str) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.merged_adapters: list[str] = []
        self._disable_adapters = False
        self._active_adapter = adapter_name
        inner = self.get_base_layer()
        self.transposed = isinstance(inner, Conv1D)  # stored as (inputs, outputs)
        rows, columns = inner.weight.shape
        self.out_features, self.in_features = (
            (columns, rows) if self.transposed else (rows, columns)
        )

    @property
    @abstractmethod
    def held(self) -> Container[str]:
        """The names of the adapters that this layer has."""

    @abstractmethod
    def change(self, name: str, x_K: Tensor) -> Tensor:
        """Return Delta-W x of an adapter, dropout included, in the adapter's own precision."""

    @abstractmethod
    def delta(self, name: str) -> Tensor:
        """Return Delta-W (d, k) of an adapter, in single precision at least."""

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Return the base layer's output plus the change of every active adapter."""
        if self.disable_adapters and self.merged:
            self.unmerge()
        out: Tensor = self.base_layer(x, *args, **kwargs)
        if self.disable_adapters or self.merged:
            return out
        for name in self.active_adapters:
            if name in self.held:
                out = out + self.change(name, x).to(out.dtype)
        return out

    def get_delta_weight(self, adapter: str) -> Tensor:
        """Return Delta-W in the layout of the base layer's weight, in single precision at least."""
        change_DK = self.delta(adapter)
        return change_DK.T if self.transposed else change_DK

    @torch.no_grad()
    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Add the adapters to the base weight; `safe_merge` refuses a result that is not finite."""
        for name in check_adapters_to_merge(self, adapter_names):
            if name not in self.held:
                continue
            weight = self.get_base_layer().weight
            merged = weight.data + self.get_delta_weight(name).to(weight.dtype)
            if safe_merge and not merged.isfinite().all():
                raise ValueError(f"merging adapter {name} gives weights that are not finite")
            weight.data = merged
            self.merged_adapters.append(name)

    @torch.no_grad()
    def unmerge(self) -> None:
        """Subtract the merged adapters from the base weight again."""
        if not self.merged:
            warnings.warn("Already unmerged. Nothing to do.", stacklevel=2)
        while self.merged_adapters:
            name = self.merged_adapters.pop()
            weight = self.get_base_layer().weight
            weight.data -= self.get_delta_weight(name).to(weight.dtype)

    def supports_lora_conversion(self, adapter_name: str = "default") -> bool:
        """Return True: the change is additive, so PEFT can turn it into LoRA factors."""
        return True


class AdditiveModel(BaseTuner):
    """A model whose targeted linear layers carry additive adapters."""

    target_module_mapping: dict[str, list[str]] = {}  # noqa: RUF012  no defaults by architecture

    def _create_and_replace(
        self,
        peft_config: PeftConfig,
        adapter_name: str,
        target: nn.Module,
        target_name: str,
        parent: nn.Module,
        **kwargs: Any,
    ) -> None:
        if isinstance(target, self.tuner_layer_cls):
            target.update_layer(adapter_name, peft_config)
            return
        layer = self.tuner_layer_cls(target, adapter_name, peft_config)
        if adapter_name not in self.active_adapters:
            layer.requires_grad_(False)  # a further adapter trains only once it is made active
        self._replace_module(parent, target_name, layer, target)
