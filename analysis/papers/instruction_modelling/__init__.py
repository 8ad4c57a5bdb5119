"""Instruction Tuning With Loss Over Instructions (Shi et al., arXiv 2405.14394)."""
