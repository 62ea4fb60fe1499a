"""From a call to what serves it: a kernel of the cache, or the PyTorch reference.

Each operator has a table from the shapes and device of a call to an ``Entry``, a plain callable that takes the
operator's arguments, outputs included. Only a call that finds no entry comes here; later calls of the same shape cost
one dictionary look-up. Watching (``trace_dispatch``) and debug mode cost nothing when they are off: turning them on
empties the tables, and the entries made from then on record or check before they run.
"""

from __future__ import annotations

import contextlib
import functools
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from dsv4.runtime import loader, settings
from dsv4.runtime.artifact import Scalar
from dsv4.runtime.cache import Artifact, KernelCache
from dsv4.runtime.errors import ArtifactRefused, KernelMissing, forget_said, say_once
from dsv4.runtime.identity import device_identity
from dsv4.runtime.warm import tiny_arguments

Entry = Callable[..., Any]

ARCH_OF_CAPABILITY: dict[tuple[int, int], str] = {(9, 0): "sm_90a", (10, 0): "sm_100a", (10, 3): "sm_100a"}
REFERENCE = "reference"
EMPTY = "empty"
ASKED = "asked"
SHAPES_ONLY = "meta"
"""The device whose tensors have no data: a step on them says which kernels it would ask for on a GPU."""
TABLE_ENTRIES_MAX = 16384
TABLED_DEVICES = ("cpu", "cuda")
"""A key holds ``tensor.get_device()``, which is quicker than ``tensor.device`` and tells only these two apart."""


@dataclass(frozen=True)
class Call:
    """One call as ``trace_dispatch`` saw it: of a kernel, or of the reference in its place.

    ``implementation`` is an artifact's name, ``"reference"``, or ``"empty"`` where there was nothing to compute.
    ``key`` is the artifact's key. An operator that takes several kernels is as many calls. On the device ``meta``,
    whose tensors have no data, nothing is served: ``"asked"`` is a kernel that would be asked for on a GPU,
    ``"reference"`` a call that no kernel is made for.
    """

    op: str
    implementation: str
    key: str | None
    device: str
    sizes: dict[str, int]
    variant: dict[str, Scalar]


@dataclass(frozen=True)
class Request:
    """What has to be served: static ``dims`` and dynamic ``sizes`` by the spec's names, and the variant's flags.

    ``empty`` says that there is nothing to compute, so that no kernel is launched.
    """

    op: str
    device: torch.device
    dims: dict[str, int]
    sizes: dict[str, int]
    variant: dict[str, Scalar]
    empty: bool = False


@dataclass(frozen=True)
class Loaded:
    """A kernel in this process: its host function, already run once (its module is on the device)."""

    artifact: Artifact
    function: Callable[..., Any]


class _State:
    """What this process has chosen and loaded."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.settings: settings.Settings | None = None
        self.cache: KernelCache | None = None
        self.tables: dict[str, dict[Any, Entry]] = {}
        self.loaded: dict[tuple[Path, tuple[int, int]], Loaded] = {}
        self.watchers: list[list[Call]] = []


_state = _State()


def arch_of(device: torch.device) -> str | None:
    """The arch whose kernels serve ``device``, None where it has none. Of the device ``meta`` that of the GPU here, for
    which the kernels would be."""
    if device.type == SHAPES_ONLY and torch.cuda.is_available():
        return ARCH_OF_CAPABILITY.get(torch.cuda.get_device_capability())
    return _arch_of_gpu(device) if device.type == "cuda" else None


@functools.cache
def _arch_of_gpu(device: torch.device) -> str | None:
    """Kept, for operators that ask at each call."""
    return ARCH_OF_CAPABILITY.get(torch.cuda.get_device_capability(device))


def table(op: str) -> dict[Any, Entry]:
    """The operator's table of entries; the same object for the life of the process."""
    return _state.tables.setdefault(op, {})


def current_settings() -> settings.Settings:
    with _state.lock:
        if _state.settings is None:
            _state.settings = settings.from_environment()
        return _state.settings


def current_cache() -> KernelCache:
    """The cache that kernels are taken from."""
    with _state.lock:
        if _state.cache is None:
            _state.cache = KernelCache(current_settings().cache)
        return _state.cache


def configure(
    *,
    cache: str | Path | None = None,
    missing: settings.Missing | None = None,
    debug: bool | None = None,
    pdl: bool | None = None,
) -> None:
    """Change how operators are served from now on; what is left out stays as it is.

    ``cache``: folder of the kernel cache (``DSV4_CACHE``). ``missing``: ``"raise"`` raises ``KernelMissing`` where no
    kernel serves a CUDA tensor, ``"reference"`` says so once and computes with PyTorch (``DSV4_MISSING``). ``debug``:
    check values too (``DSV4_DEBUG=1``). ``pdl``: take the kernels compiled for programmatic dependent launch
    where there are any (``DSV4_PDL=1``). Calling it with no argument makes kernels that were built or chosen since the
    start visible. Raises ``SettingError`` for a value that is not valid.
    """
    given = {"cache": Path(cache) if cache is not None else None, "missing": missing, "debug": debug, "pdl": pdl}
    with _state.lock:
        _state.settings = replace(current_settings(), **{k: v for k, v in given.items() if v is not None})  # type: ignore[arg-type]
        _state.cache = None
        _state.loaded.clear()
        _arch_of_gpu.cache_clear()
        forget_said()
        _forget_entries()


def reset() -> None:
    """Forget settings, cache and loaded kernels, as if the process had just started; the environment is read anew."""
    with _state.lock:
        _state.settings = None
        _state.cache = None
        _state.loaded.clear()
        forget_said()
        _forget_entries()


def _forget_entries() -> None:
    for entries in _state.tables.values():
        entries.clear()


@contextlib.contextmanager
def trace_dispatch() -> Iterator[list[Call]]:
    """While open, the list that it gives grows by one ``Call`` for each call of an operator, in any thread.

    A CUDA graph's replay calls nothing and adds nothing.
    """
    calls: list[Call] = []
    with _state.lock:
        _state.watchers.append(calls)
        _forget_entries()
    try:
        yield calls
    finally:
        with _state.lock:
            _state.watchers = [other for other in _state.watchers if other is not calls]
            _forget_entries()


def is_traced() -> bool:
    """Whether a ``trace_dispatch`` is open."""
    return bool(_state.watchers)


def make_entry(
    key: Any,
    request: Request,
    *,
    reference: Entry,
    empty: Entry,
    adapt: Callable[..., Entry] | None,
    check: Callable[..., None],
    check_values: Callable[..., None],
    table_of: str = "",
    stages: tuple[Request, ...] = (),
) -> Entry:
    """Decide what serves ``request``, remember it under ``key`` and return it.

    ``reference`` and ``empty`` compute with PyTorch, ``adapt`` makes the entry that calls a kernel (``None``: none is
    made for such a call), ``check`` holds the arguments to the contract (in front of everything but a kernel, which
    does so itself) and ``check_values`` to their domains. ``table_of``: the operator in whose table the entry is kept,
    where the kernel's is another. ``stages``: what other kernels have to do after the one of ``request``; ``adapt``
    gets all of them, and the reference serves where one is missing. Raises ``KernelMissing`` as the caller chose.
    """
    with _state.lock:
        kernels = _kernels((request, *stages), is_made=adapt is not None)
        entry = adapt(*kernels) if kernels and adapt else _checked(empty if request.empty else reference, check)
        if current_settings().debug and request.device.type != SHAPES_ONLY:
            entry = _checked(_checked(entry, check_values), check)
        if _state.watchers and adapt is not None and not request.empty and request.device.type == SHAPES_ONLY:
            entry = _recorded(entry, [_call(each, each.op, ASKED) for each in (request, *stages)])
        elif _state.watchers:
            by_torch = _call(request, table_of or request.op, EMPTY if request.empty else REFERENCE)
            by_kernels = [
                _call(each, each.op, kernel.artifact.manifest.name, kernel.artifact.manifest.key)
                for each, kernel in zip((request, *stages), kernels, strict=False)
            ]
            entry = _recorded(entry, by_kernels or [by_torch])
        if request.device.type in TABLED_DEVICES:
            entries = table(table_of or request.op)
            if len(entries) >= TABLE_ENTRIES_MAX:
                entries.clear()
            entries[key] = entry
        return entry


def _checked(entry: Entry, check: Callable[..., None]) -> Entry:
    def checked(*arguments: Any, **options: Any) -> Any:
        check(*arguments, **options)
        return entry(*arguments, **options)

    return checked


def _kernels(requests: tuple[Request, ...], *, is_made: bool) -> tuple[Loaded, ...]:
    """A kernel for each of ``requests``, or none at all."""
    if requests[0].empty:
        return ()
    if not is_made:
        without_kernel(requests[0])
        return ()
    found = []
    for request in requests:
        kernel = serve(request)
        if kernel is None:
            return ()
        found.append(kernel)
    return tuple(found)


def _call(request: Request, op: str, implementation: str, key: str | None = None) -> Call:
    sizes = {**request.dims, **request.sizes}
    return Call(op, implementation, key, str(request.device), sizes, dict(request.variant))


def _recorded(entry: Entry, made: list[Call]) -> Entry:
    def recorded(*arguments: Any, **options: Any) -> Any:
        for calls in _state.watchers:
            calls.extend(made)
        return entry(*arguments, **options)

    return recorded


def serve(request: Request) -> Loaded | None:
    """The kernel for ``request``, loaded and run once, or ``None`` where the reference is to serve.

    Artifacts that are refused are said once each and the next candidate is taken. Raises ``KernelMissing`` where a CUDA
    tensor has no kernel and ``missing`` is ``"raise"``, or while a CUDA graph is captured (see ``warmup``).
    """
    if request.device.type != "cuda":
        return None
    capability = torch.cuda.get_device_capability(request.device)
    arch = ARCH_OF_CAPABILITY.get(capability)
    wanted = {**request.dims, **request.sizes, **request.variant}
    what = f"{request.op} on {request.device} ({arch or f'compute capability {capability}'}), {wanted}"
    cache = current_cache()
    if arch is not None:
        here = device_identity(_index(request.device))
        # Without a kernel for dependent launch one that waits for the launch before is right, too.
        variants = [request.variant, *([{**request.variant, "pdl": False}] if request.variant.get("pdl") else [])]
        asked = ((request.op, arch, request.dims, variant, request.sizes) for variant in variants)
        for artifact in (each for question in asked for each in cache.candidates(*question, device=here)):
            try:
                return _load(artifact, request.device, capability)
            except ArtifactRefused as error:
                say_once(f"kernel refused: {error}")
    reason = f"{what}: no kernel in {cache.root}" + (f" ({cache.refused})" if cache.refused else "")
    if current_settings().missing == "raise":
        raise KernelMissing(f"{reason}; valid: build one with dsv4-gen build, or choose missing='reference'")
    static = {**request.dims, **request.variant}
    say_once(f"{request.op} on {request.device} ({arch}), {static}: no kernel in {cache.root}; PyTorch serves instead")
    return None


def _index(device: torch.device) -> int:
    return torch.cuda.current_device() if device.index is None else device.index


def without_kernel(request: Request) -> None:
    """PyTorch serves a call that no kernel is made for. Said once, or raised, as the caller chose."""
    if request.device.type != "cuda":
        return
    if current_settings().missing == "raise":
        raise KernelMissing(
            f"{request.op} on {request.device}, {request.variant}: no kernel is made for it; valid: missing='reference'"
        )
    say_once("PyTorch serves the calls that no kernel is made for; dsv4.trace_dispatch() lists them")


def _load(artifact: Artifact, device: torch.device, capability: tuple[int, int]) -> Loaded:
    """Load ``artifact`` and run it once on the smallest arguments, so that its module is on the device.

    Left to the first real call, the module would be loaded then, which a CUDA graph's capture does not survive.
    """
    known = _state.loaded.get((artifact.folder, capability))
    if known is not None:
        return known
    if torch.cuda.is_current_stream_capturing():
        raise KernelMissing(
            f"{artifact.manifest.name}: found a CUDA graph being captured before the kernel was loaded; "
            f"valid: call dsv4.warmup() or the operator once before the capture"
        )
    function = loader.load(artifact, capability)
    function(*tiny_arguments(artifact.manifest, device))
    loaded = _state.loaded[artifact.folder, capability] = Loaded(artifact, function)
    return loaded


def warmup(ops: list[str] | tuple[str, ...] | None = None, *, device: torch.device | str | None = None) -> list[str]:
    """Load every kernel that may serve ``device`` (default: the current CUDA device) and run it once.

    Done before a CUDA graph is captured. ``ops`` restricts it to these operators. Kernels that may serve are the
    defaults and what was tuned here. Returns the names of the artifacts; an empty list where there is no GPU. Artifacts
    that are refused are said once.
    """
    if not torch.cuda.is_available():
        return []
    place = torch.device(device) if device is not None else torch.device("cuda", torch.cuda.current_device())
    capability = torch.cuda.get_device_capability(place)
    arch = ARCH_OF_CAPABILITY.get(capability)
    here = device_identity(_index(place))
    warmed = []
    with _state.lock:
        cache = current_cache()
        for op, built_for in cache.kinds():
            if built_for != arch or (ops is not None and op not in ops):
                continue
            chosen = {entry.key for entry in cache.tuned(op, arch) if entry.serves_on(here)}
            for artifact in cache.artifacts(op, arch):
                if artifact.manifest.is_default or artifact.manifest.key in chosen:
                    try:
                        _load(artifact, place, capability)
                        warmed.append(artifact.manifest.name)
                    except ArtifactRefused as error:
                        say_once(f"kernel refused: {error}")
    return warmed
