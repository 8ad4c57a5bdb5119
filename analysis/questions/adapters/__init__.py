"""Adapter and rank."""
