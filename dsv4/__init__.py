"""DeepSeek-V4 kernels: generated, verified, measured."""
