"""From a table of scores to inference: frame -> fit -> effects -> figures -> report; no torch."""
