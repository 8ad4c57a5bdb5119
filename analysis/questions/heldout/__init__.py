"""Held-out loss per role."""
