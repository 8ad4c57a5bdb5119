"""Three factors as one PEFT tuner type: Delta-W = scale * B M A, of which some train.

    h = W x + scale * B M A x                          B (D, N), A (N, K), M between them
    h = W x + scale * B M A x - scale0 * B0 M0 A0 x    where the start is compensated

`rules` says which values the factors start with and which form M has; `factors.TRAINS` says which
of them train. MoSLoRA, LoRA-SB, LoRA-XS, SLoRA, NLoRA, IntTune, PMSS, NoRA, LoRA-Mini, LaMDA and
LoLDU are settings of this layer.

Where the start is not zero, the initial values of the trained factors (B0, M0, A0) are stored and
their product is subtracted in every forward pass: training begins at the base model, the base
weight is never changed, and disabling the adapter gives the base exactly. Dropout applies to the
input of the difference only. Factors that do not train and stored initial values are buffers that
are saved with the adapter, so nothing is recomputed when it is loaded.

A new adapter holds zeros; `start` fills it. LaMDA's training hooks are in `lamda`. This module must
be imported before PEFT loads a saved adapter of this type.

Letters: D outputs, K inputs, N inner size, I size inside a pair.
"""

from collections.abc import Container
from dataclasses import dataclass, field
from typing import cast

import torch
from peft import PeftConfig
from peft.tuners._buffer_dict import BufferDict
from torch import Tensor, nn

from ablate.adapters.additive import AdditiveLinear, AdditiveModel, dense_layer
from ablate.adapters.three_factor.factors import (
    CORES,
    FACTORS,
    TRAINS,
    Factors,
    difference,
    product,
    through,
)
from ablate.adapters.three_factor.rules import RULES, Given
from ablate.adapters.three_factor.spec import inner_size, pair_size
from ablate.adapters.tuner_types import TunerType, register


@dataclass
class ThreeFactorConfig(PeftConfig):
    """Configuration of a three-factor adapter.

    Attributes:
        r: the inner size N; a matrix with a smaller side has that side.
        start: how the factors start and what is between them, a key of `starts.RULES`.
        trains: which factors train, a key of `TRAINS`.
        scale: what the product is multiplied with; where it trains, at the start.
        dropout: probability that an input entry is dropped on its way to the factors.
        nesting: the inner size over that inside a pair.
        step: the length of the first update that a start from a gradient imitates; null is the
            run's own.
        freeze: the share of a run after which B has been frozen, as `lamda` does it; 0 is never.
        target_modules: names or a pattern as in PEFT's LoraConfig.
        exclude_modules: names or a pattern left out of the targets.
        modules_to_save: further modules to train and save whole.
    """

    r: int = 8
    start: str = "kaiming"
    trains: str = "all"
    scale: float = 1.0
    dropout: float = 0.0
    nesting: int = 2
    step: float | None = None
    freeze: float = 0.0
    target_modules: list[str] | str | None = "all-linear"
    exclude_modules: list[str] | str | None = None
    modules_to_save: list[str] | None = field(default=None)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = TunerType.THREE_FACTOR
        for name, allowed in (("start", RULES), ("trains", TRAINS)):
            if getattr(self, name) not in allowed:
                given = getattr(self, name)
                raise ValueError(f"{name}={given}: must be one of {', '.join(allowed)}")
        for name in ("r", "nesting"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: must be at least 1")
        if isinstance(self.target_modules, list):
            self.target_modules = set(self.target_modules)  # type: ignore[assignment]
        if isinstance(self.exclude_modules, list):
            self.exclude_modules = set(self.exclude_modules)  # type: ignore[assignment]


class ThreeFactorLinear(AdditiveLinear):
    """A linear layer with three-factor adapters.

    A tensor of an adapter is in `factor_<name>` if it trains, else in `fixed_<name>`; the
    stored initial value of one that trains is in `start_<name>`.
    """

    adapter_layer_names = tuple(f"factor_{name}" for name in FACTORS)
    other_param_names = (
        *(f"{role}_{name}" for role in ("fixed", "start") for name in FACTORS),
        "inner",
        "settings",
        "drop",
    )

    def __init__(self, base_layer: nn.Module, adapter_name: str, config: ThreeFactorConfig) -> None:
        super().__init__(base_layer, adapter_name)
        dense_layer(self.get_base_layer(), "a three-factor adapter")
        for name in FACTORS:
            setattr(self, f"factor_{name}", nn.ParameterDict())
            setattr(self, f"fixed_{name}", BufferDict(persistent=True))
            setattr(self, f"start_{name}", BufferDict(persistent=True))
        self.drop = nn.ModuleDict()
        self.inner: dict[str, int] = {}
        self.settings: dict[str, ThreeFactorConfig] = {}
        self.update_layer(adapter_name, config)

    @property
    def held(self) -> Container[str]:
        """The names of the adapters that this layer has."""
        return self.settings

    def update_layer(self, adapter_name: str, config: ThreeFactorConfig) -> None:
        """Add an adapter, or replace the one of this name; it is a no-op until it is started."""
        if adapter_name in self.settings:
            self._forget(adapter_name)
        self.settings[adapter_name] = config
        self.inner[adapter_name] = inner_size(config.r, (self.out_features, self.in_features))
        self.drop[adapter_name] = nn.Dropout(config.dropout) if config.dropout else nn.Identity()
        compensated = RULES[config.start].compensated
        for name, tensor in self._empty(adapter_name).items():
            trains = name in TRAINS[config.trains]
            if trains:
                getattr(self, f"factor_{name}")[adapter_name] = nn.Parameter(tensor.clone())
            if trains and compensated:
                getattr(self, f"start_{name}")[adapter_name] = tensor.clone()
            if not trains:
                getattr(self, f"fixed_{name}")[adapter_name] = tensor
        self._move_adapter_to_device_of_base_layer(adapter_name)
        self.set_adapter(self.active_adapters, inference_mode=config.inference_mode)

    def _forget(self, adapter_name: str) -> None:
        for attribute in (*self.adapter_layer_names, *self.other_param_names):
            held = getattr(self, attribute)
            if adapter_name in held:
                del held[adapter_name]

    def _empty(self, adapter_name: str) -> Factors:
        config, n = self.settings[adapter_name], self.inner[adapter_name]
        core, i = RULES[config.start].core, pair_size(n, config.nesting)
        shapes = {
            "B": (self.out_features, n),
            "M": (n, n) if core == "full" else (n,),
            "up": (n, i),
            "down": (i, n),
            "A": (n, self.in_features),
        }
        names = ("B", *CORES[core], "A")
        return {name: torch.zeros(shapes[name]) for name in names} | {
            "scale": torch.tensor(float(config.scale))
        }

    def _at(self, adapter_name: str, roles: tuple[str, ...]) -> Factors:
        """Return each factor from the first of `roles` that holds it."""
        found = {}
        for name in ("B", *CORES[RULES[self.settings[adapter_name].start].core], "A", "scale"):
            for role in roles:
                held = getattr(self, f"{role}_{name}")
                if adapter_name in held:
                    found[name] = held[adapter_name]
                    break
        return found

    def _terms(self, adapter_name: str) -> list[Factors]:
        """Return what adds up to the adapter's change."""
        now = self._at(adapter_name, ("factor", "fixed"))
        if not RULES[self.settings[adapter_name].start].compensated:
            return [now]
        return difference(now, self._at(adapter_name, ("start", "fixed")))

    def change(self, name: str, x_K: Tensor) -> Tensor:
        """Return Delta-W x of an adapter, dropout included."""
        terms = self._terms(name)
        x_K = self.drop[name](self._cast_input_dtype(x_K, terms[0]["A"].dtype))
        return cast(Tensor, sum(through(x_K, term) for term in terms))

    def delta(self, name: str) -> Tensor:
        """Return Delta-W (d, k), in single precision at least."""
        exact = [
            {n: t.to(torch.promote_types(t.dtype, torch.float32)) for n, t in term.items()}
            for term in self._terms(name)
        ]
        return cast(Tensor, sum(product(term) for term in exact))

    @torch.no_grad()
    def begin(self, adapter_name: str, given: Given) -> None:
        """Fill an adapter by its start rule, as `given` by `start`."""
        scale = torch.tensor(given.scale, dtype=torch.float64)
        factors = RULES[self.settings[adapter_name].start].make(given) | {"scale": scale}
        for name, tensor in factors.items():
            for role in ("factor", "fixed", "start"):
                held = getattr(self, f"{role}_{name}")
                if adapter_name in held:
                    held[adapter_name].copy_(tensor)


class ThreeFactorModel(AdditiveModel):
    """A model whose targeted linear layers carry three-factor adapters."""

    prefix = "factor_"
    tuner_layer_cls = ThreeFactorLinear


register(TunerType.THREE_FACTOR, ThreeFactorConfig, ThreeFactorModel)
