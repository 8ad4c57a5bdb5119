"""The version of the package: what pyproject.toml, records and `ablate --version` state."""

__version__ = "0.2.0"
