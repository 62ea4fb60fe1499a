"""What the operators' benchmarks share: our kernel called bare, a formula compiled by torch, and the token counts."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

from benchmarks.harness.operator import Call, Inputs, Peer, Unavailable, proven

TOKENS = (1, 4, 16, 64, 256, 2048, 8192, 32768)
"""T: decoding up to 64, a chunk of a prefill above."""


class Wanted(NamedTuple):
    """A kernel that a benchmark asks for: its operator, static dimensions and flags, in the order of their names."""

    op: str
    dims: tuple[tuple[str, int], ...]
    variant: tuple[tuple[str, Any], ...]


_wanted: list[Wanted] | None = None


@contextmanager
def recorded() -> Iterator[list[Wanted]]:
    """While open no kernel is looked for: the list that it gives grows by what ``loaded_kernel`` is asked for."""
    global _wanted
    _wanted = []
    try:
        yield _wanted
    finally:
        _wanted = None


def loaded_kernel(
    op: str,
    *,
    dims: Mapping[str, int],
    variant: Mapping[str, Any],
    sizes: Mapping[str, int],
    result: Callable[[Inputs], Any],
) -> Call:
    """The host function of the kernel that serves this case, without anything in front of it.

    Its arguments are taken from the inputs by the names of its contract; those that the variant lacks are ``None``.
    ``result`` picks from the inputs what the kernel wrote. Raises ``Unavailable`` where the cache has no such kernel.
    """
    if _wanted is not None:
        _wanted.append(Wanted(op, tuple(sorted(dims.items())), tuple(sorted(variant.items()))))
        return result
    import torch

    try:
        from dsv4.runtime.cache import KernelCache
        from dsv4.runtime.dispatch import ARCH_OF_CAPABILITY
        from dsv4.runtime.errors import ArtifactRefused
        from dsv4.runtime.identity import device_identity
        from dsv4.runtime.loader import load
    except ImportError as error:
        raise Unavailable(f"dsv4 is not installed ({error})") from None
    capability = torch.cuda.get_device_capability()
    arch = ARCH_OF_CAPABILITY.get(capability, "no arch")
    cache = KernelCache()
    here = device_identity(torch.cuda.current_device())
    artifact = cache.find(op, arch, dict(dims), dict(variant), dict(sizes), device=here)
    if artifact is None:
        raise Unavailable(f"no kernel {op} for {arch}, {dict(dims)}, {dict(variant)}, {dict(sizes)} in {cache.root}")
    try:
        kernel = load(artifact, capability)
    except ArtifactRefused as error:
        raise Unavailable(str(error)) from None
    names = [None if argument.optional else argument.name for argument in artifact.manifest.contract.arguments]

    def call(s: Inputs) -> Any:
        kernel(*[None if name is None else s[name] for name in names])
        return result(s)

    return call


def our_peers(kernel: Callable[..., Call]) -> list[Peer]:
    """Our default kernel, called bare: ``kernel`` gives the call for a case, without and with dependent launch."""
    return [
        Peer("dsv4 kernel", lambda case: kernel(case, pdl=False), "the default kernel, called bare"),
        Peer("dsv4 kernel pdl", lambda case: kernel(case, pdl=True), "programmatic dependent launch"),
    ]


def compiled_peer(formula: Callable[..., Any], arguments: Callable[[Inputs], tuple[Any, ...]]) -> Peer:
    """The formula compiled by torch, for benchmarks in which every case has one."""
    return Peer("torch.compile", lambda case: compiled(formula, arguments), "the formula, compiled for each shape")


def compiled(formula: Callable[..., Any], arguments: Callable[[Inputs], tuple[Any, ...]]) -> Call:
    """``formula`` compiled by torch for the shapes of this case (dynamic=False), called with ``arguments``.

    Raises ``Unavailable`` where there is no Triton to compile with.
    """
    import torch

    if torch.version.cuda and importlib.util.find_spec("triton") is None:
        raise Unavailable("triton is not installed")
    torch.compiler.reset()
    function = torch.compile(formula, dynamic=False)
    # The compiler raises classes of its own for formulas that it cannot take.
    return proven(lambda s: function(*arguments(s)), "torch cannot compile it", (torch.OutOfMemoryError,))


def bf16_position(values: Any) -> Any:
    """Where each bf16 value stands among all of them: neighbours differ by one, also across zero."""
    import torch

    bits = values.contiguous().view(torch.int16).int()
    return torch.where(bits < 0, -(bits & 0x7FFF), bits)


def round_up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple
