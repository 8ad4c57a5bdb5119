"""Arms compared at their own best learning rates: a curve over rates for each."""
