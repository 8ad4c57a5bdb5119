"""The best cells, and how sure that is."""
