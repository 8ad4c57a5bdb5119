"""Figures for a paper column: one function per figure, each takes tables and returns a Figure."""
