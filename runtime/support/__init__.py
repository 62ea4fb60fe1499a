"""The C support library that compiled kernels call instead of a compiler's runtime."""
