"""What other programs write of evaluations, read into one form."""
