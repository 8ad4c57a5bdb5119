"""The shape of a curve over the prompt loss weight, and whether it bears an optimum."""
