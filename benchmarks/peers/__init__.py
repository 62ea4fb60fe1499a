"""Adapters of other people's kernels, one file per project; none of their code is here."""
