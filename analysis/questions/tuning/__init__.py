"""The best score to expect from a tuning budget."""
