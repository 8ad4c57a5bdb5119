"""Weighted Instruction Tuning (Chatterjee et al., arXiv 2507.07817)."""
