"""How a call of an operator becomes a call of its kernel."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from dsv4.runtime import contract
from dsv4.runtime.artifact import Scalar
from dsv4.runtime.dispatch import Entry, Loaded


@dataclass(frozen=True)
class Served:
    """Which kernel serves a call: static ``dims``, dynamic ``sizes`` and the ``variant`` by the names of its spec.

    ``op`` is the kernel's operator where it is another than the one that is called. The flag ``pdl`` is added from the
    settings.
    """

    dims: dict[str, int]
    sizes: dict[str, int]
    variant: dict[str, Scalar]
    op: str = ""


@dataclass(frozen=True)
class KernelPath:
    """``serves`` gets the operator's arguments and options and gives ``None`` for a call that no kernel is made for
    (float64, a rounding that only the official code has). ``call`` gets the kernel's host function in front of them: it
    allocates the outputs, calls the function and returns what the operator returns.
    """

    serves: Callable[..., Served | None]
    call: Callable[..., Any]

    def adapted(self, kernel: Loaded) -> Entry:
        """An entry that calls ``kernel``; what its host function complains of becomes a ``ContractError``."""
        function, manifest = kernel.function, kernel.artifact.manifest
        call = self.call

        def checked(*arguments: Any) -> None:
            try:
                function(*arguments)
            except (ValueError, TypeError) as error:
                names = (argument.name for argument in manifest.contract.arguments)
                values = dict(zip(names, arguments, strict=True))
                raise contract.explain(manifest.op, manifest.contract, values, error) from None

        return lambda *arguments, **options: call(checked, *arguments, **options)
