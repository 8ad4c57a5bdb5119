"""How much of what masking or the prompt loss weight does is the size of its steps."""
