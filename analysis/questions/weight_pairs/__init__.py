"""Whether a pair of weights, of the prompt and of the answer, is more than its ratio."""
