"""The search for the fastest configuration that is right."""
