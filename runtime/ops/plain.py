"""The door of most operators: arguments are checked, what serves the call is decided and remembered, torch is obeyed.

The public function of an operator gives its arguments to an ``Operator``, which checks them at the first call of each
shape, decides what serves it and remembers that. An operator without a kernel is served by its reference, which is
made of torch's own operators: fake tensors, torch.compile, export and functional transforms go through it without a
registration. An operator with a kernel has a ``TorchFace`` besides, by which a trace records calls with tensors on a
GPU. A call that is traced is not recorded by ``trace_dispatch``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Generic, ParamSpec, TypeVar

import torch

from dsv4.runtime import contract, dispatch
from dsv4.runtime.artifact import Scalar
from dsv4.runtime.ops import door
from dsv4.runtime.ops.kernel import KernelPath, Served
from dsv4.runtime.ops.torch_face import TorchFace
from dsv4.runtime.pool import Pool
from dsv4.runtime.routing import PLAIN, dispatch_modes, functorch_level, is_compiling
from dsv4.runtime.weight import Quantized, Weight

KERNEL_DEVICES = ("cuda", dispatch.SHAPES_ONLY)
"""Types of device for whose tensors it is asked which kernel they may be given. (Tests add the CPU, with kernels on the
emulator.) On ``meta`` none is called: the trace then says what a GPU would be asked for."""

P = ParamSpec("P")
R = TypeVar("R")
ValueCheck = Callable[[str, dict[str, Any]], None]


class Operator(Generic[P, R]):
    """Calls ``reference`` with positional arguments as ``ports`` describe them and options by keyword.

    ``stem``: the operator's name in the trace and in errors. ``ports``: one line an argument, see ``door``.
    ``dynamic``: names of sizes that vary from call to call (the rest are the model's). ``check_values``: for debug
    mode, takes the operator's name and the arguments and options by name and raises ``ContractError`` for values
    outside their domain. ``kernel``: how its kernel is called, or several ways, of which the first that serves a call
    is taken. ``mutates``, ``returns`` and ``rebuild``: see ``TorchFace``.
    """

    def __init__(
        self,
        stem: str,
        reference: Callable[P, R],
        *ports: str,
        dynamic: tuple[str, ...] = ("T",),
        check_values: ValueCheck | None = None,
        kernel: KernelPath | tuple[KernelPath, ...] = (),
        mutates: tuple[str, ...] = (),
        returns: int = 0,
        rebuild: Callable[[list[torch.Tensor], dict[str, Any]], Any] | None = None,
    ) -> None:
        self.stem = stem
        self.reference = reference
        self.ports = tuple(door.Port.read(line) for line in ports)
        self.dynamic = frozenset((*dynamic, door.ROWS))
        self._check_values = check_values
        self._paths = (kernel,) if isinstance(kernel, KernelPath) else kernel
        self._face = (
            TorchFace(stem, self.ports, reference, self._run, mutates=mutates, returns=returns, rebuild=rebuild)
            if self._paths
            else None
        )
        self._table = dispatch.table(stem)

    def __call__(self, *arguments: P.args, **options: P.kwargs) -> R:
        if is_compiling() or dispatch_modes() or functorch_level() is not None:
            return self._seen_by_torch(arguments, options)
        return self._run(*arguments, **options)

    def _run(self, *arguments: Any, **options: Any) -> Any:
        key = (self, *map(_key, arguments), *options.values())
        entry = self._table.get(key)
        if entry is None:
            entry = self._make_entry(key, arguments, options)
        return entry(*arguments, **options)

    def _seen_by_torch(self, arguments: tuple[Any, ...], options: dict[str, Any]) -> Any:
        """A functional transform goes into the reference; a trace takes the kernel as one operator, for a GPU's.

        (While torch.compile traces, it answers for ``functorch_level`` that there is one.)
        """
        transformed = not is_compiling() and functorch_level() is not None
        if self._face is not None and not transformed and _on_gpu(arguments):
            return self._face(arguments, options)
        return self.reference(*arguments, **options)

    def _make_entry(self, key: Any, arguments: tuple[Any, ...], options: dict[str, Any]) -> dispatch.Entry:
        sizes, device = door.check(self.stem, self.ports, arguments[: len(self.ports)])
        path, stages = self._path(device, arguments, options)
        if path is None:
            plain = dispatch.Request(
                self.stem,
                device,
                dims={name: size for name, size in sizes.items() if name not in self.dynamic},
                sizes={name: size for name, size in sizes.items() if name in self.dynamic},
                variant={**_formats(self.ports, arguments), **_scalars(options)},
            )
            requests = [plain]
        else:
            requests = [
                dispatch.Request(
                    served.op or self.stem,
                    device,
                    dims=dict(served.dims),
                    sizes=dict(served.sizes),
                    variant={**served.variant, "pdl": dispatch.current_settings().pdl},
                    empty=0 in sizes.values(),
                )
                for served in stages
            ]
        shapes_only = device.type == dispatch.SHAPES_ONLY
        reference = _made_once(self.reference) if shapes_only else self.reference
        entry = dispatch.make_entry(
            key,
            requests[0],
            reference=reference,
            empty=reference,
            adapt=path.adapted if path else None,
            check=_nothing,
            check_values=self._values_checked,
            table_of=self.stem,
            stages=tuple(requests[1:]),
        )
        if shapes_only and dispatch.is_traced():  # the end of the trace empties the table
            self._table[key] = entry
        return entry

    def _path(
        self, device: torch.device, arguments: tuple[Any, ...], options: dict[str, Any]
    ) -> tuple[KernelPath | None, tuple[Served, ...]]:
        """The way to the kernels that serve the call, and which they are."""
        if device.type in KERNEL_DEVICES and _are_plain(arguments):
            for path in self._paths:
                served = path.serves(*arguments, **options)
                if served is not None:
                    return path, served if isinstance(served, tuple) else (served,)
        return None, ()

    def _values_checked(self, *arguments: Any, **options: Any) -> None:
        if self._check_values is not None:
            names = (port.name for port in self.ports)
            self._check_values(self.stem, {**dict(zip(names, arguments, strict=False)), **options})


def in_range(op: str, name: str, values: torch.Tensor | None, low: int, high: int) -> None:
    """Debug mode: raises ``ContractError`` unless low ≤ every value < high (reads the tensor)."""
    if values is None or values.numel() == 0:
        return
    least, most = int(values.min()), int(values.max())
    if least < low or most >= high:
        raise contract.refusal(op, name, f"values from {least} to {most}", f"{low} to {high - 1}")


def _made_once(reference: Callable[..., Any]) -> Callable[..., Any]:
    """``reference`` for calls of one key without data: its first result, which is but shapes, serves them all."""
    results: list[Any] = []

    def made(*arguments: Any, **options: Any) -> Any:
        if not results:
            results.append(reference(*arguments, **options))
        return results[0]

    return made


def _nothing(*arguments: Any, **options: Any) -> None:
    """The door has been passed when the entry was made, and the key says all that it looked at."""


def _on_gpu(arguments: tuple[Any, ...]) -> bool:
    return any(tensor.device.type == "cuda" for value in arguments for tensor in door.tensors(value))


def _are_plain(arguments: tuple[Any, ...]) -> bool:
    """Whether all memory may be handed to a kernel; other subclasses of Tensor decide for themselves."""
    return all(type(tensor) in PLAIN for value in arguments for tensor in door.tensors(value))


def _key(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return type(value), value.shape, value.dtype, value.device
    if isinstance(value, Weight):
        return value.format, value.codes.shape, value.codes.dtype, value.device
    if isinstance(value, Pool):
        return value.format, value.page, value.data.shape, value.data.stride(0), value.data.dtype, value.device
    if isinstance(value, tuple) and any(isinstance(part, torch.Tensor) for part in value):
        return tuple(map(_key, value))
    if type(value).__hash__ is None:
        return type(value)  # no operator takes such a thing; the door says so
    return value


def _formats(ports: tuple[door.Port, ...], arguments: tuple[Any, ...]) -> dict[str, Scalar]:
    """How packed arguments are stored, and the dtype of the first plain tensor."""
    found: dict[str, Scalar] = {}
    for port, value in zip(ports, arguments, strict=False):
        if isinstance(value, Weight | Pool):
            found[port.name] = value.format.value
        elif isinstance(value, Quantized):
            found[port.name] = f"{str(value.codes.dtype).removeprefix('torch.')}_by_{value.block}"
    return found


def _scalars(options: dict[str, Any]) -> dict[str, Scalar]:
    shown: dict[str, Scalar] = {}
    for name, value in options.items():
        if isinstance(value, torch.dtype):
            shown[name] = str(value).removeprefix("torch.")
        elif isinstance(value, bool | int | float | str):
            shown[name] = value
    return shown
