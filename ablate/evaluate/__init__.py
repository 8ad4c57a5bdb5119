"""What a trained model is judged by: benchmarks, held-out loss per role, and measures."""
