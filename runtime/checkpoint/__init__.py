"""Checkpoints: which tensors a configuration has, reading them from safetensors files, and bringing them to a device."""
