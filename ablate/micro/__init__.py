"""The embedded world: a generator of text, facts, instruction sets and benchmarks."""
