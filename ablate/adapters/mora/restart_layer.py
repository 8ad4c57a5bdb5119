"""The layer of methods that restart: what was learnt so far is added to a fixed matrix.

ReMoRA (arXiv 2405.12130, section 3.3) and ReLoRA (2307.05695) add an adapter's change to the fixed
weights from time to time (`restarts` says when) and reset the adapter, so that the sum of its
changes can have a higher rank than each of them:

    W = W0 + past + Delta-W        at a restart: past += Delta-W, then Delta-W = 0

The function stays the same. `past` is a tensor of the adapter and not added to W0, as in the
papers: disabling the adapter gives the base exactly, and only the adapter is saved. From the first
restart on it costs one more matrix of the base layer's shape, in memory and on disk, and one more
product; before it, `past` is empty.

Letters: D outputs, K inputs.
"""

from abc import abstractmethod
from typing import TYPE_CHECKING, Any, cast

import torch
from peft.tuners._buffer_dict import BufferDict
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.pytorch_utils import Conv1D


class RestartLayer(nn.Module, BaseTunerLayer):
    """Mixin: a linear layer whose adapters store the sum of their changes up to the last restart.

    It comes before the layer class of the restarted method in the bases. `past` is in the layout of
    the base layer's weight, `stage` counts the restarts; both are saved with the adapter.
    `stage_of` is `stage` as a Python integer, so that a forward pass does not wait for the device.
    """

    REMEMBERED = ("past", "stage", "stage_of")

    if TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any: ...

    def update_layer(self, adapter_name: str, *args: Any, **kwargs: Any) -> None:
        """Add an adapter, or replace the one of this name; its past is zero."""
        if "past" not in self._modules:
            self.past, self.stage = BufferDict(persistent=True), BufferDict(persistent=True)
            self.stage_of: dict[str, int] = {}
            self.register_load_state_dict_post_hook(_loaded)
            self.register_load_state_dict_pre_hook(_make_room)
        self.past[adapter_name] = torch.zeros(0)
        self.stage[adapter_name] = torch.zeros((), dtype=torch.int64)
        self.stage_of[adapter_name] = 0
        super().update_layer(adapter_name, *args, **kwargs)

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Return the base layer's output plus every active adapter's past and current change.

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
        """Return the total change of the weight, past included, in the weight's layout."""
        change: Tensor = super().get_delta_weight(adapter)
        return change + self.past[adapter] if self.stage_of[adapter] else change

    @torch.no_grad()
    def restart(self, adapter: str, generator: torch.Generator) -> None:
        """Add the adapter's change to its past and reset it; the outputs stay the same."""
        if self.merged:
            self.unmerge()
        exact = torch.promote_types(self.get_base_layer().weight.dtype, torch.float32)
        change: Tensor = self.get_delta_weight(adapter)
        self.past[adapter] = change.to(exact).contiguous()
        self.stage[adapter] += 1
        self.stage_of[adapter] += 1
        self.begin(adapter, generator)

    @abstractmethod
    def begin(self, adapter: str, generator: torch.Generator) -> None:
        """Set the adapter to the start of its current stage, where its change is zero."""

    def resume(self, adapter: str) -> None:
        """Update the Python state after an adapter's tensors were loaded."""
        self.stage_of[adapter] = int(self.stage[adapter])


def _make_room(layer: nn.Module, state: dict[str, Tensor], prefix: str, *rest: Any) -> None:
    """Give `past` the shape that it has in the tensors about to be loaded."""
    own = cast(RestartLayer, layer)
    for adapter in list(own.past):
        stored = state.get(f"{prefix}past.{adapter}")
        if stored is not None and stored.shape != own.past[adapter].shape:
            device = own.get_base_layer().weight.device
            own.past[adapter] = torch.zeros_like(stored, device=device)


def _loaded(layer: nn.Module, incompatible: Any) -> None:
    for adapter in cast(RestartLayer, layer).stage:
        cast(RestartLayer, layer).resume(adapter)
