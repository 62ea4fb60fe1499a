"""FlashMLA's names: ``from dsv4 import flash_mla``. See ``dsv4.runtime.flash_mla``."""

from dsv4.runtime.flash_mla import (
    FlashMLASchedMeta,
    flash_mla_sparse_fwd,
    flash_mla_with_kvcache,
    get_mla_metadata,
)

__all__ = ["FlashMLASchedMeta", "flash_mla_sparse_fwd", "flash_mla_with_kvcache", "get_mla_metadata"]
