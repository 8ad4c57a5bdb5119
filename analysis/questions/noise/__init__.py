"""Seeds and items: where the noise of a score lies."""
