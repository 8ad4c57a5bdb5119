"""How large what a YAML text says is when its aliases are written out.

A file of ten lines may say a billion things: every alias of an alias is walked through by whoever
reads it.
"""

import yaml

from ablate.errors import UserError

LARGEST = 100_000  # entries of a file of settings, or of a task


def check_yaml_size(place: str, text: str) -> None:
    """Check that a YAML text says no more than can be read; one that is no YAML is not judged.

    Raises:
        UserError: its aliases, written out, are too many; `place` begins the message.
    """
    if "&" not in text and 2 * len(text) <= LARGEST:
        return  # without an alias two characters say at most three things: no need to parse them
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
        size = _size(root, {}) if root else 0
    except (yaml.YAMLError, ValueError, RecursionError):
        return
    if size > LARGEST:
        raise UserError(f"{place}: says more than {LARGEST:,} things with its aliases written out")


def _size(node: yaml.Node, known: dict[int, int]) -> int:
    """Return how many nodes there are in one and below it; aliases are one object each."""
    if id(node) not in known:
        known[id(node)] = LARGEST + 1  # of an alias to what it is in
        below = node.value if isinstance(node, yaml.CollectionNode) else ()
        nodes = [n for each in below for n in (each if isinstance(each, tuple) else (each,))]
        known[id(node)] = 1 + sum(_size(n, known) for n in nodes)
    return known[id(node)]
