"""The paged KV cache: what a byte budget holds, blocks and their owners, the rows that the model writes and reads."""
