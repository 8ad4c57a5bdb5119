"""Mixed models from matrices and formulas: profiled deviance, Laplace approximation, search."""
