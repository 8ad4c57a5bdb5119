"""Which models may take the short ways of `choices` and `generate`; all others take lm-eval's own.

The short ways hand positions and attention masks to the model themselves. They were compared with
the plain forward pass for the architectures below, a test does so for each; elsewhere (prefix
tuning, sliding windows, state-space models, position biases) they might be silently wrong.
"""

import inspect
from typing import Any

from torch import nn

CHECKED = (
    "GPT2LMHeadModel",
    "GPTNeoXForCausalLM",
    "LlamaForCausalLM",
    "MistralForCausalLM",
    "Qwen2ForCausalLM",
    "Qwen3ForCausalLM",
)


def inner(model: nn.Module) -> Any:
    """Return the transformers model inside `model`: what an adapter wraps, or the model itself."""
    unwrap = getattr(model, "get_base_model", None)
    return unwrap() if unwrap else model


def cache_name(model: nn.Module) -> str:
    """Return what the forward pass of `model` calls what it has read, and its output too.

    transformers renames `past_key_values` to `cache` in 5.24, and drops the old name in 5.40.
    """
    known = inspect.signature(type(inner(model)).forward).parameters
    return "cache" if "cache" in known else "past_key_values"


def short_ways(model: nn.Module) -> bool:
    """Return whether `model` is one that `choices` and `generate` are known to be exact for."""
    core = inner(model)
    # A prompt's virtual tokens, and an adapter that looks for its invocation in what it is given.
    configs = getattr(model, "peft_config", {}).values()
    prompts = any(
        c.is_prompt_learning or getattr(c, "alora_invocation_tokens", None) for c in configs
    )
    window = getattr(core.config, "sliding_window", None)
    attention = getattr(core.config, "_attn_implementation", None)
    known = type(core).__name__ in CHECKED and attention in ("sdpa", "eager")
    return known and not prompts and window is None
