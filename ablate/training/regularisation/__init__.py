"""Regularisers that act during training."""
