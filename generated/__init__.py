"""Emitted kernels, committed to be read; never edited by hand."""
