"""Tiny models of the architectures that are scored, far from uniform in what they predict."""

import copy

import torch
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    MistralConfig,
    Qwen2Config,
    Qwen3Config,
)

TINY = {
    "vocab_size": 512,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "initializer_range": 0.3,  # far from uniform predictions, so that a leak shows
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
GPT = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128, "vocab_size": 512}
ENDS = {"initializer_range": 0.3, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
CONFIGS = {
    "GPT2LMHeadModel": GPT2Config(**GPT, **ENDS),
    "GPTNeoXForCausalLM": GPTNeoXConfig(**{**TINY, "num_key_value_heads": 4}),
    "LlamaForCausalLM": LlamaConfig(**TINY, tie_word_embeddings=True),
    "MistralForCausalLM": MistralConfig(**TINY, sliding_window=None),
    "Qwen2ForCausalLM": Qwen2Config(**TINY),
    "Qwen3ForCausalLM": Qwen3Config(**TINY, head_dim=8),
}


def model_of(name: str = "LlamaForCausalLM", seed: int = 0) -> torch.nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(copy.deepcopy(CONFIGS[name])).eval()
    for parameter in model.parameters():  # GPT-2 scales some matrices down
        parameter.requires_grad_(False)
    return model
