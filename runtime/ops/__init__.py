"""Public operators: one file an operator, same stem as its spec."""
