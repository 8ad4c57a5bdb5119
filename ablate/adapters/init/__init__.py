"""The factor `init`: its levels, and the data and activations that they may use."""
