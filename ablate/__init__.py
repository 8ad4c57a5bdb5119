"""Factorial ablation studies of LLM instruction fine-tuning."""

__version__ = "0.1.0"
