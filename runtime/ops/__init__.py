"""Public operators, one file each: the function, its torch registration, its contract.

Importing any of them registers all of them under ``torch.ops.dsv4``.
"""

from dsv4.runtime.ops import fmha, rms_norm

__all__ = ["fmha", "rms_norm"]
