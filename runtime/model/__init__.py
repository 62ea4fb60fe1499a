"""DeepSeek-V4 itself: configuration, layer schedule, weights, and the forward pass on ``dsv4.runtime.ops``."""
