"""Data: models, archs, operators."""
