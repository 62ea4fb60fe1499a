"""CuTeDSL device code that the templates share; imports nothing but cutlass."""
