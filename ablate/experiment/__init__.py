"""What a cell is: its identity, the grid checked as a design, tuned learning rates. No torch."""
