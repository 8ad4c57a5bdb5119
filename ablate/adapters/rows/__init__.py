"""The rows of the adapter table, a module a family. No torch."""
