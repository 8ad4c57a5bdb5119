"""The study "LoRA Learns Less and Forgets Less" (Biderman et al., arXiv 2405.09673)."""
