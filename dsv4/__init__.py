"""DeepSeek-V4 kernels: generated, verified, measured.

The public names are loaded on first use, so that ``import dsv4`` costs nothing and the generator's workers, which
import this package too, need no torch. ``import dsv4.runtime.ops`` registers ``torch.ops.dsv4`` at once.
"""

import importlib
import pkgutil
from typing import TYPE_CHECKING, Any

# In a checkout this folder lies beside the rooms, not above them. With the checkout as working directory it is found
# first, so the rooms are looked for along the whole path, where the installation put them.
__path__ = pkgutil.extend_path(__path__, __name__)

if TYPE_CHECKING:
    from dsv4.runtime.cache import KernelCache
    from dsv4.runtime.dispatch import configure, trace_dispatch, warmup
    from dsv4.runtime.errors import (
        ArtifactRefused,
        CacheFull,
        CacheRefused,
        CheckpointError,
        ConfigError,
        ContractError,
        Dsv4Error,
        Dsv4Warning,
        KernelMissing,
        SettingError,
    )
    from dsv4.runtime.ops.fmha import fmha
    from dsv4.runtime.ops.fmha_varlen import fmha_paged, fmha_varlen
    from dsv4.runtime.ops.rms_norm import rms_norm

    __version__: str

__all__ = [
    "ArtifactRefused",
    "CacheFull",
    "CacheRefused",
    "CheckpointError",
    "ConfigError",
    "ContractError",
    "Dsv4Error",
    "Dsv4Warning",
    "KernelCache",
    "KernelMissing",
    "SettingError",
    "__version__",
    "configure",
    "fmha",
    "fmha_paged",
    "fmha_varlen",
    "rms_norm",
    "trace_dispatch",
    "warmup",
]

_HOMES = {
    "KernelCache": "dsv4.runtime.cache",
    "configure": "dsv4.runtime.dispatch",
    "fmha": "dsv4.runtime.ops.fmha",
    "fmha_paged": "dsv4.runtime.ops.fmha_varlen",
    "fmha_varlen": "dsv4.runtime.ops.fmha_varlen",
    "rms_norm": "dsv4.runtime.ops.rms_norm",
    "trace_dispatch": "dsv4.runtime.dispatch",
    "warmup": "dsv4.runtime.dispatch",
}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        value: Any = _version()
    elif name in __all__:
        value = getattr(importlib.import_module(_HOMES.get(name, "dsv4.runtime.errors")), name)
    else:
        raise AttributeError(f"module 'dsv4' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def _version() -> str:
    from importlib import metadata

    try:
        return metadata.version("dsv4-kernels")
    except metadata.PackageNotFoundError:
        return "0+checkout"
