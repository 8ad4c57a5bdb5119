"""Which parameters of a model are the base's own, and which its adapter's."""

from typing import Any

from torch import nn


def base_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return the base's own parameters that train, by name; not those that an adapter added."""
    own: Any = getattr(model, "adapter_own", frozenset())
    return {n: p for n, p in model.named_parameters() if p.requires_grad and n not in own}
