"""What a configuration is expected to take, from the spec's counts and the chip's rates; nothing here was measured."""
