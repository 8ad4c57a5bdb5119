"""MoRA (arXiv 2405.12130) as a PEFT tuner type: one square matrix between two fixed linear maps.

    h = W x + decomp(M comp(x))            M is q x q and starts at zero, nothing else is trained

Let n = ceil(k / q). The input x is padded circularly to n q entries and seen as n groups of q.

    sharing  (Eq. 6)   comp adds the groups up, decomp repeats M's output down to d entries
    rotation (Eq. 9)   group i is turned by R_i, passes through M, and the outputs are put end to
                       end: cut at d, or repeated to d where n q < d

R_i pairs entry s with s + q/2 and turns the pair by i 10000^(-2s/q), as RoPE does (group 0 stays).
Both are linear in x, so a weight change Delta-W exists and merging is exact. Sharing has rank at
most q; rotation is not limited so, but on a wide layer (k > d) it reads only the groups that reach
an output.

There is no alpha and no random start. The angles are computed in every call, so the layer follows
device and dtype moves and holds adapters of any rank side by side. Import this module before PEFT
is asked to load a saved adapter of this type.

Letters: D outputs, K inputs, Q side of the square matrix, N groups, H half of Q.
"""

import enum
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from peft import PeftConfig
from peft.mapping import (
    PEFT_TYPE_TO_CONFIG_MAPPING,
    PEFT_TYPE_TO_PREFIX_MAPPING,
    PEFT_TYPE_TO_TUNER_MAPPING,
)
from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer, check_adapters_to_merge
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.pytorch_utils import Conv1D

from ablate.adapters.table import square_side


def sharing(x_K: Tensor, M_QQ: Tensor, d: int) -> Tensor:
    """Return decomp(M comp(x)) of length `d`, groups of the input added up."""
    return _repeated(F.linear(_groups(x_K, len(M_QQ)).sum(-2), M_QQ), d)


def sharing_delta(M_QQ: Tensor, d: int, k: int) -> Tensor:
    """Return Delta-W (d, k) of `sharing`."""
    q = len(M_QQ)
    t = torch.arange(-(-k // q) * q, device=M_QQ.device)
    folded_QK = M_QQ.new_zeros(q, k).index_add_(1, t % k, M_QQ[:, t % q])
    return folded_QK[torch.arange(d, device=M_QQ.device) % q]


def rotation(x_K: Tensor, M_QQ: Tensor, d: int) -> Tensor:
    """Return decomp(M comp(x)) of length `d`, each group of the input turned by its own angle."""
    q = len(M_QQ)
    seen_NQ = _groups(x_K, q)[..., : -(-d // q), :]  # what lies beyond would be cut off below
    return _repeated(F.linear(_turned(seen_NQ), M_QQ).flatten(-2), d)


def rotation_delta(M_QQ: Tensor, d: int, k: int) -> Tensor:
    """Return Delta-W (d, k) of `rotation`: blocks M R_i down the diagonal, folded to k and d."""
    q = len(M_QQ)
    n = -(-k // q)
    # M R_i acts on a row of M as R_i's transpose, the turn the other way.
    blocks_QNQ = _turned(M_QQ.unsqueeze(-2).expand(q, n, q), clockwise=True)
    row_D = torch.arange(d, device=M_QQ.device) % (n * q)
    group_D = row_D // q
    column_DQ = group_D[:, None] * q + torch.arange(q, device=M_QQ.device)
    return M_QQ.new_zeros(d, k).scatter_add_(1, column_DQ % k, blocks_QNQ[row_D % q, group_D])


def _groups(x_K: Tensor, q: int) -> Tensor:
    """Return the last dimension, padded circularly to a multiple of `q`, as (..., N, Q)."""
    k = x_K.shape[-1]
    pad = -k % q
    if pad > k:  # one group, longer than the input
        x_K = x_K[..., torch.arange(q, device=x_K.device) % k]
    elif pad:
        x_K = torch.cat([x_K, x_K[..., :pad]], dim=-1)
    return x_K.unflatten(-1, (-1, q))


def _repeated(y: Tensor, d: int) -> Tensor:
    """Return the last dimension repeated end to end, and cut, to length `d`."""
    copies = -(-d // y.shape[-1])
    return y.unsqueeze(-2).expand(*y.shape[:-1], copies, y.shape[-1]).flatten(-2)[..., :d]


def _turned(v_NQ: Tensor, *, clockwise: bool = False) -> Tensor:
    """Return group i of (..., N, Q) turned by R_i."""
    n, q = v_NQ.shape[-2:]
    exact = torch.promote_types(v_NQ.dtype, torch.float32)
    pair_H = torch.arange(q // 2, device=v_NQ.device, dtype=exact)
    group_N = torch.arange(n, device=v_NQ.device, dtype=exact)
    angle_NH = group_N[:, None] * 10000.0 ** (-2 * pair_H / q)
    cos_NH = angle_NH.cos().to(v_NQ.dtype)
    sin_NH = (-angle_NH if clockwise else angle_NH).sin().to(v_NQ.dtype)
    a_NH, b_NH = v_NQ.chunk(2, dim=-1)
    return torch.cat([a_NH * cos_NH - b_NH * sin_NH, b_NH * cos_NH + a_NH * sin_NH], dim=-1)


Operator = Callable[[Tensor, Tensor, int], Tensor]
Delta = Callable[[Tensor, int, int], Tensor]

TYPES: dict[str, tuple[Operator, Delta]] = {
    "sharing": (sharing, sharing_delta),
    "rotation": (rotation, rotation_delta),
}


class TunerType(str, enum.Enum):  # noqa: UP042  PEFT writes the value into JSON as a plain string
    """The names of this project's tuner types beside PEFT's own."""

    MORA = "MORA"


@dataclass
class MoraConfig(PeftConfig):
    """Configuration of a MoRA adapter.

    Attributes:
        r: the LoRA rank whose parameter count is matched; each matrix gets its own side q.
        mora_type: sharing or rotation.
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
        if self.mora_type not in TYPES:
            raise ValueError(f"mora_type={self.mora_type}: must be one of {', '.join(TYPES)}")
        if self.r < 1:
            raise ValueError(f"r={self.r}: must be at least 1")
        if isinstance(self.target_modules, list):
            self.target_modules = set(self.target_modules)  # type: ignore[assignment]
        if isinstance(self.exclude_modules, list):
            self.exclude_modules = set(self.exclude_modules)  # type: ignore[assignment]


class MoraLinear(nn.Module, BaseTunerLayer):
    """A linear layer with MoRA adapters: `nn.Linear`, or the transposed `Conv1D` of GPT-2."""

    adapter_layer_names = ("mora_M",)
    other_param_names = ("mora_type", "mora_dropout")

    if TYPE_CHECKING:  # PEFT's names are untyped, and nn.Module calls every unknown name a tensor

        def __getattr__(self, name: str) -> Any: ...

    def __init__(self, base_layer: nn.Module, adapter_name: str, config: MoraConfig) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.mora_M = nn.ParameterDict()
        self.mora_dropout = nn.ModuleDict()
        self.mora_type: dict[str, str] = {}
        self.merged_adapters: list[str] = []
        self._disable_adapters = False
        self._active_adapter = adapter_name
        inner = self.get_base_layer()
        # A quantised layer's weight is not the matrix itself: refuse it rather than merge wrongly.
        if not isinstance(inner, nn.Linear | Conv1D) or not inner.weight.is_floating_point():
            raise TypeError(
                "MoRA adapts nn.Linear and Conv1D with floating-point weights, not "
                f"{type(inner).__name__}"
            )
        self.transposed = isinstance(inner, Conv1D)  # stored as (inputs, outputs)
        rows, columns = inner.weight.shape
        self.out_features, self.in_features = (
            (columns, rows) if self.transposed else (rows, columns)
        )
        self.update_layer(adapter_name, config)

    def update_layer(self, adapter_name: str, config: MoraConfig) -> None:
        """Add an adapter, or replace the one of this name; it starts as a no-op."""
        q = square_side(config.r, (self.out_features, self.in_features), config.mora_type)
        drop = nn.Dropout(config.mora_dropout) if config.mora_dropout else nn.Identity()
        self.mora_type[adapter_name] = config.mora_type
        self.mora_dropout[adapter_name] = drop
        self.mora_M[adapter_name] = nn.Parameter(torch.zeros(q, q))
        self._move_adapter_to_device_of_base_layer(adapter_name)
        self.set_adapter(self.active_adapters, inference_mode=config.inference_mode)

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Return the base layer's output plus the change of every active adapter."""
        if self.disable_adapters and self.merged:
            self.unmerge()
        out: Tensor = self.base_layer(x, *args, **kwargs)
        if self.disable_adapters or self.merged:
            return out
        for name in self.active_adapters:
            if name in self.mora_M:
                out = out + self._change(name, x).to(out.dtype)
        return out

    def _change(self, name: str, x: Tensor) -> Tensor:
        operator, _ = TYPES[self.mora_type[name]]
        M_QQ = self.mora_M[name]
        x_K = self.mora_dropout[name](self._cast_input_dtype(x, M_QQ.dtype))
        return operator(x_K, M_QQ, self.out_features)

    def get_delta_weight(self, adapter: str) -> Tensor:
        """Return Delta-W in the layout and dtype of the base layer's weight."""
        _, delta = TYPES[self.mora_type[adapter]]
        M_QQ = self.mora_M[adapter]
        exact = M_QQ.to(torch.promote_types(M_QQ.dtype, torch.float32))
        change = delta(exact, self.out_features, self.in_features)
        return (change.T if self.transposed else change).to(self.get_base_layer().weight.dtype)

    @torch.no_grad()
    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Add the adapters to the base weight; `safe_merge` refuses a result that is not finite."""
        for name in check_adapters_to_merge(self, adapter_names):
            if name not in self.mora_M:
                continue
            weight = self.get_base_layer().weight
            merged = weight.data + self.get_delta_weight(name)
            if safe_merge and not merged.isfinite().all():
                raise ValueError(f"merging adapter {name} gives weights that are not finite")
            weight.data = merged
            self.merged_adapters.append(name)

    @torch.no_grad()
    def unmerge(self) -> None:
        """Take the merged adapters out of the base weight again."""
        if not self.merged:
            warnings.warn("Already unmerged. Nothing to do.", stacklevel=2)
        while self.merged_adapters:
            name = self.merged_adapters.pop()
            self.get_base_layer().weight.data -= self.get_delta_weight(name)

    def supports_lora_conversion(self, adapter_name: str = "default") -> bool:
        """Return True: the change is additive, so PEFT can turn it into LoRA factors."""
        return True


class MoraModel(BaseTuner):
    """A model whose targeted linear layers carry MoRA adapters."""

    prefix = "mora_"
    tuner_layer_cls = MoraLinear
    target_module_mapping: dict[str, list[str]] = {}  # noqa: RUF012  no defaults by architecture

    def _create_and_replace(
        self,
        peft_config: MoraConfig,
        adapter_name: str,
        target: nn.Module,
        target_name: str,
        parent: nn.Module,
        **kwargs: Any,
    ) -> None:
        if isinstance(target, MoraLinear):
            target.update_layer(adapter_name, peft_config)
            return
        layer = MoraLinear(target, adapter_name, peft_config)
        if adapter_name not in self.active_adapters:
            layer.requires_grad_(False)  # a further adapter trains only once it is made active
        self._replace_module(parent, target_name, layer, target)


# PEFT's own registration refuses names that its enum does not know; the tables do not.
PEFT_TYPE_TO_CONFIG_MAPPING[TunerType.MORA] = MoraConfig
PEFT_TYPE_TO_TUNER_MAPPING[TunerType.MORA] = MoraModel
PEFT_TYPE_TO_PREFIX_MAPPING[TunerType.MORA] = MoraModel.prefix
