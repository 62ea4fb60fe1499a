"""PyTorch references, float32 and float64: the oracle and the CPU path."""
