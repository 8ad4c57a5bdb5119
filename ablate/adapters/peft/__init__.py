"""The other methods that PEFT implements: a row of the registry each. No torch."""
