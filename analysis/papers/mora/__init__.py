"""The study "MoRA: High-Rank Updating" (Jiang et al., arXiv 2405.12130)."""
