"""The model behind a report: proposed or default, fitted, and the sections that describe it."""
