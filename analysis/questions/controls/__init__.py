"""Controls and measured false-positive rates."""
