"""Base models: as files (content hash, shapes; no torch) and loaded into torch."""
