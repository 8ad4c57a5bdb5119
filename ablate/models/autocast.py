"""The precision of a matrix product under autocast, for products that autocast does not see."""

import torch
from torch import Tensor


def product_dtype(tensor: Tensor) -> torch.dtype:
    """Return the precision that a linear layer would take `tensor` in; float64 is left alone."""
    kind = tensor.device.type
    if torch.is_autocast_enabled(kind) and tensor.dtype != torch.float64:
        return torch.get_autocast_dtype(kind)
    return tensor.dtype
