"""Checkpoints of a run under way: what they hold, how they are written, and when."""
