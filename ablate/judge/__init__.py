"""Generated answers compared by a judge: by rule, by a local model, or by an endpoint."""
