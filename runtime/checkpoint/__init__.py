"""Checkpoints: which tensors a configuration has, and bringing them from safetensors files to a device."""
