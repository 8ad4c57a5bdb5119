"""From a command line to typed cells: override grammar, composition, grid, schema. No torch."""
