"""Benchmarks for a GPU: `make gpu` runs all of them after the tests marked `gpu`."""
