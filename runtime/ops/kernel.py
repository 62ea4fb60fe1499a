"""How a call of an operator becomes a call of its kernel."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from dsv4.runtime import contract
from dsv4.runtime.artifact import Scalar
from dsv4.runtime.dispatch import Entry, Loaded


@dataclass(frozen=True)
class Served:
    """Which kernel serves a call: static ``dims``, dynamic ``sizes`` and the ``variant`` by the names of its spec.

    ``op`` is the kernel's operator where it is another than the one that is called. The flag ``pdl`` is added from the
    settings.
    """

    dims: Mapping[str, int]
    sizes: Mapping[str, int]
    variant: Mapping[str, Scalar]
    op: str = ""


def are(dtype: torch.dtype, *tensors: torch.Tensor | None) -> bool:
    """Whether all tensors that are given have this dtype."""
    return all(tensor is None or tensor.dtype == dtype for tensor in tensors)


@dataclass(frozen=True)
class KernelPath:
    """``serves`` gets the operator's arguments and options and gives ``None`` for a call that no kernel is made for
    (float64, a rounding that only the official code has), or a tuple where several kernels one after another serve it.
    ``call`` gets the host function of each kernel in front of the arguments: it allocates the outputs, calls the
    functions and returns what the operator returns.
    """

    serves: Callable[..., Served | tuple[Served, ...] | None]
    call: Callable[..., Any]

    def adapted(self, *kernels: Loaded) -> Entry:
        """An entry that calls ``kernels``; what a host function complains of becomes a ``ContractError``."""
        call = self.call
        functions = tuple(map(_checked, kernels))
        return lambda *arguments, **options: call(*functions, *arguments, **options)


def _checked(kernel: Loaded) -> Callable[..., None]:
    function, manifest = kernel.function, kernel.artifact.manifest

    def checked(*arguments: Any) -> None:
        try:
            function(*arguments)
        except (ValueError, TypeError) as error:
            names = (argument.name for argument in manifest.contract.arguments)
            values = dict(zip(names, arguments, strict=True))
            raise contract.explain(manifest.op, manifest.contract, values, error) from None

    return checked
