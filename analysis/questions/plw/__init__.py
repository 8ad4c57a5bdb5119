"""The prompt loss weight: curve, optimum, shape."""
