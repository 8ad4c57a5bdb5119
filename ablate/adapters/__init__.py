"""The adapter factor: what trains, how large it is, and where it starts."""
