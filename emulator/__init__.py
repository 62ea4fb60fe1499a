"""Run compiled kernels on a CPU and find what is wrong with them. Under construction: core/README.md says how far."""
