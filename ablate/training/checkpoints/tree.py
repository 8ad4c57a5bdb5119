"""Trees of numbers, texts and tensors as JSON and named tensors: no pickle, no loss of a bit."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

TENSOR, TUPLE = "__tensor__", "__tuple__"
PLAIN = (str, int, float, bool, type(None))
Tensors = dict[str, Tensor]


def pack(tree: Any, tensors: Tensors, path: str = "") -> Any:
    """Return `tree` ready for JSON; its tensors are added to `tensors` under their path.

    Args:
        tree: dictionaries by text, lists, tuples, plain values and tensors.
        tensors: by name.
        path: of the tree in a larger one.

    Raises:
        TypeError: something in it is of another kind.
    """
    if isinstance(tree, Tensor):
        return _placed(tree, tensors, path)
    if type(tree) in PLAIN:
        return tree
    if isinstance(tree, Mapping) and all(isinstance(key, str) for key in tree):
        return {key: pack(value, tensors, f"{path}/{key}") for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        items = [pack(value, tensors, f"{path}/{i}") for i, value in enumerate(tree)]
        return items if isinstance(tree, list) else {TUPLE: items}
    raise TypeError(f"{path}: {type(tree).__name__} has no place in a checkpoint")


def unpack(tree: Any, tensor: Callable[[str], Tensor], device: torch.device) -> Any:
    """Return the tree that `pack` was given.

    Args:
        tree: what it returned, from JSON.
        tensor: from a name to the tensor, on the CPU.
        device: where the tensors go that were not on the CPU.
    """
    if isinstance(tree, list):
        return [unpack(value, tensor, device) for value in tree]
    if not isinstance(tree, dict):
        return tree
    if TENSOR in tree:
        place = torch.device("cpu") if tree["cpu"] else device
        stored = tensor(tree[TENSOR])
        made = torch.empty_strided(tree["shape"], tree["stride"], dtype=stored.dtype, device=place)
        return made.copy_(stored)
    if TUPLE in tree:
        return tuple(unpack(value, tensor, device) for value in tree[TUPLE])
    return {key: unpack(value, tensor, device) for key, value in tree.items()}


def _placed(tensor: Tensor, tensors: Tensors, path: str) -> dict[str, Any]:
    """Return the reference to a tensor, which is in `tensors` afterwards."""
    tensors[path] = tensor.detach()
    return {
        TENSOR: path,
        "cpu": tensor.device.type == "cpu",
        "shape": list(tensor.shape),
        "stride": list(torch.empty_like(tensor, device="meta").stride()),
    }
