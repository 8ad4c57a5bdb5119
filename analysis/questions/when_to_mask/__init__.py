"""When it pays to mask the prompt: the effect of training on it over ratio and size of the data."""
