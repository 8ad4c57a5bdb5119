"""Published claims and figures, measured here beside what was published."""
