"""Published tables fitted again, each with the noise that its own numbers show."""
