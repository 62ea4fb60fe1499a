"""Compilation in killable worker processes, and the artifacts that come out."""
