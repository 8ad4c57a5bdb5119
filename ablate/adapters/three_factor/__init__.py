"""Adapters of three factors, B M A."""
