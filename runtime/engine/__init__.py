"""Generation: sequences of different lengths in one batch, prefill in chunks, decoding, drafts of the MTP layer."""
