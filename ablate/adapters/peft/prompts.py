"""Trained virtual tokens before every example; the base's weights do not change.

Prefix tuning (arXiv 2101.00190), prompt tuning (2104.08691) and P-tuning (2103.10385). The
positions of virtual tokens do not restart, so packed examples would see each other's; and there is
no change of a weight that could be merged.
"""

import re

from ablate.adapters.method import PRECISIONS, Method, Shapes, Size
from ablate.adapters.options import Options, whole
from ablate.errors import UserError

# Matrices whose shape gives the model's width and the width of a layer's keys: the key projection
# of Llama-like models, or a projection that computes queries, keys and values together.
_KEYS, _ALL_THREE = ("k_proj",), ("c_attn", "query_key_value")


def _attention(shapes: Shapes) -> tuple[int, int, int]:
    """Return the model's width, the width of a layer's keys and the number of layers."""
    keys = {n: s for n, s in shapes.items() if n.endswith(_KEYS)}
    whole = {n: s for n, s in shapes.items() if n.endswith(_ALL_THREE)}
    found = keys or whole
    if not found:
        raise UserError("adapter: finds no matrix that computes this model's keys; choose another")
    d, width = next(iter(found.values()))
    return width, d if keys else width, len({re.sub(r"\D*(\d+).*", r"\1", n) for n in found})


def _prefix_count(tokens: int, shapes: Shapes, options: Options) -> int:
    _, keys, layers = _attention(shapes)
    return tokens * layers * 2 * keys


def _prompt_count(tokens: int, shapes: Shapes, options: Options) -> int:
    return tokens * _attention(shapes)[0]


def _p_tuning_count(hidden: int, shapes: Shapes, options: Options) -> int:
    """Return the count of the virtual tokens and of a network with two hidden layers."""
    width = _attention(shapes)[0]
    network = (width + 1) * hidden + (hidden + 1) * hidden + (hidden + 1) * width
    return options["tokens"] * width + network


def _longest(shapes: Shapes, options: Options) -> int:
    return int(options["most_tokens"])


ROWS = {
    # PEFT draws a prefix from N(0, 1). Zero keys and values still get attention, so outputs start
    # near the base's but not at them.
    "prefix": Method(
        paper="2101.00190",
        config="PrefixTuningConfig",
        formula="2 n x key width a layer",
        options={"most_tokens": whole(64)},
        names={"most_tokens": ""},
        fixed={"init_weights": "zero"},
        size=Size(setting="num_virtual_tokens", count=_prefix_count, largest=_longest),
        placed=False,
        matched=False,
        starts_at_base=False,
        merges=False,
        packs=False,
        precisions=PRECISIONS,
    ),
    "prompt": Method(
        paper="2104.08691",
        config="ablate.adapters.peft_compat:PromptTuningConfig",
        formula="n x width, once",
        options={"most_tokens": whole(64)},
        names={"most_tokens": ""},
        fixed={"prompt_tuning_init": "SAMPLE_VOCAB"},
        size=Size(setting="num_virtual_tokens", count=_prompt_count, largest=_longest),
        placed=False,
        matched=False,
        starts_at_base=False,
        starts_nonzero=True,  # tokens of zeros would be no nearer to the base
        merges=False,
        packs=False,
        precisions=PRECISIONS,
    ),
    "p_tuning": Method(
        paper="2103.10385",
        config="ablate.adapters.peft_compat:PromptEncoderConfig",
        formula="(tokens + 2 h) x width + h^2 + biases, once",
        options={"tokens": whole(20)},
        names={"tokens": "num_virtual_tokens"},
        size=Size(
            setting="encoder_hidden_size",
            count=_p_tuning_count,
            largest=lambda shapes, options: 2**16,
        ),
        placed=False,
        starts_at_base=False,
        starts_nonzero=True,  # tokens of zeros would be no nearer to the base
        merges=False,
        packs=False,
        precisions=PRECISIONS,
    ),
}
