"""Two sides compared: runs matched, their items paired, one verdict."""
