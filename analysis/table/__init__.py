"""The results table prepared for analysis: frame, factors, items, adjusted means."""
