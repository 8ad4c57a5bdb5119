"""What sees differences of cells best: accuracy or margins, all items or the telling ones."""
