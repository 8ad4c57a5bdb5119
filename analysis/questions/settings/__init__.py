"""Other settings that a study varied."""
