"""Our kernels beside their peers, on a GPU; one file per operator (`python -m benchmarks.<op> --help`)."""
