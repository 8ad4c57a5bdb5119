"""The folder of results: store, schema of a record, provenance, log. No torch."""
