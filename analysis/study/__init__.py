"""What a study of fine-tuning runs asks of its table: doses, cells, controls, optima."""
