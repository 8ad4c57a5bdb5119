"""ReMoRA (arXiv 2405.12130, section 3.3) as a PEFT tuner type.

At a restart M is reset to zero and the entries are grouped in another way, since the same maps
would give the same set of functions again. How restarts work is in `restart_layer`.

Letters: D outputs, K inputs.
"""

from dataclasses import dataclass

import torch
from peft.tuners._buffer_dict import BufferDict
from torch import Tensor

from ablate.adapters.mora.layer import MoraConfig, MoraLinear, MoraModel
from ablate.adapters.mora.restart_layer import RestartLayer
from ablate.adapters.mora.spec import GROUPS
from ablate.adapters.tuner_types import TunerType, register


@dataclass
class RemoraConfig(MoraConfig):
    """Configuration of a ReMoRA adapter: that of a MoRA adapter by sharing, and `groups`.

    Attributes:
        groups: how the grouping changes at a restart, a key of `spec.GROUPS`.
    """

    groups: str = "cycle"

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = TunerType.REMORA
        if self.groups not in GROUPS:
            raise ValueError(f"groups={self.groups}: must be one of {', '.join(GROUPS)}")
        if self.mora_type != "sharing":
            raise ValueError(f"mora_type={self.mora_type}: ReMoRA starts from sharing")


class RemoraLinear(RestartLayer, MoraLinear):
    """A linear layer with ReMoRA adapters."""

    other_param_names = (
        *MoraLinear.other_param_names,
        *RestartLayer.REMEMBERED,
        "groups",
        "order_in",
        "order_out",
    )

    def update_layer(self, adapter_name: str, config: RemoraConfig) -> None:
        """Add an adapter, or replace the one of this name; its change is zero."""
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
        """Set M to zero and change the grouping to that of the current stage."""
        self.mora_M[adapter].zero_()
        if adapter in self.order_in:
            for order in (self.order_in[adapter], self.order_out[adapter]):
                order.copy_(torch.randperm(len(order), generator=generator))
        self._regroup(adapter)

    def resume(self, adapter: str) -> None:
        """Update the Python state after an adapter's tensors were loaded."""
        super().resume(adapter)
        self._regroup(adapter)

    def _regroup(self, adapter: str) -> None:
        types = GROUPS[self.groups[adapter]]
        self.mora_type[adapter] = types[self.stage_of[adapter] % len(types)]

    def change(self, name: str, x_K: Tensor) -> Tensor:
        """Return decomp(M comp(x)) of an adapter, with the entries in the current stage's order."""
        if name not in self.order_in:
            return super().change(name, x_K)
        y_D = super().change(name, x_K.index_select(-1, self.order_in[name]))
        return y_D.index_select(-1, self.order_out[name])

    def delta(self, name: str) -> Tensor:
        """Return Delta-W (d, k) of the current stage, without the past."""
        change_DK = super().delta(name)
        if name not in self.order_in:
            return change_DK
        return change_DK[self.order_out[name]][:, self.order_in[name].argsort(stable=True)]


class RemoraModel(MoraModel):
    """A model whose targeted linear layers carry ReMoRA adapters."""

    tuner_layer_cls = RemoraLinear


register(TunerType.REMORA, RemoraConfig, RemoraModel)
