"""The explorer of a report's page: its data, what it computes, and its program (`js/`)."""
