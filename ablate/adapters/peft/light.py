"""Methods that train a few vectors; none of them can reach LoRA's budget.

IA3 (arXiv 2205.05638), bias tuning (BEFT, 2509.15974) and LayerNorm tuning (2312.11420).
"""

from typing import Any

from ablate.adapters.method import PRECISIONS, Method, Shapes
from ablate.adapters.options import Options

# IA3 scales keys, values and the input of the second matrix of the feed-forward part. The names in
# Llama-like models, GPT-2, GPT-NeoX and OPT.
INNER = ("down_proj", "mlp.c_proj", "dense_4h_to_h", "fc2")
SCALED = ("k_proj", "v_proj", "attn.c_attn", "query_key_value", *INNER)


def _ia3_complete(arguments: dict[str, Any], shapes: Shapes) -> dict[str, Any]:
    return {**arguments, "feedforward_modules": [name for name in shapes if name.endswith(INNER)]}


def _ia3_parameters(rank: int, shapes: Shapes, options: Options) -> int:
    return sum(k if name.endswith(INNER) else d for name, (d, k) in shapes.items())


ROWS = {
    "ia3": Method(
        paper="2205.05638",
        config="IA3Config",
        formula="d; k of the second feed-forward matrix",
        complete=_ia3_complete,
        parameters=_ia3_parameters,
        only=SCALED,
        matched=False,
        starts_nonzero=True,  # scales, from one
        precisions=PRECISIONS,
    ),
    # The bias is added to layers without one, into which it cannot be merged.
    "beft": Method(
        paper="2509.15974",
        config="BeftConfig",
        formula="d",
        parameters=lambda rank, shapes, options: sum(d for d, _ in shapes.values()),
        quiet="Detected that the base layer has no bias",
        matched=False,
        merges=False,
        conv1d=False,
        precisions=PRECISIONS,
    ),
    "layernorm": Method(
        paper="2312.11420",
        config="LNTuningConfig",
        formula="the norms, once",
        placed=False,
        trains_norms=True,
        quiet="Unsupported layer type",
        matched=False,
        precisions=(
            "fp32",
        ),  # the copies have the base's type: bf16 near 1 moves by 1/128 at least
        vectors_only=True,
    ),
}
