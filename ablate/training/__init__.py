"""The one training loop, its loss, optimizers, hooks and regularisation."""
