"""Objects with CuTeDSL's plain C interface: the generated header says what the host function takes."""

from __future__ import annotations

import ctypes
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from dsv4.emulator.errors import ArgumentRefused, ObjectRefused

_SCALARS: dict[str, type[Any]] = {
    "float": ctypes.c_float, "double": ctypes.c_double, "bool": ctypes.c_bool,
    "int8_t": ctypes.c_int8, "int16_t": ctypes.c_int16, "int32_t": ctypes.c_int32, "int64_t": ctypes.c_int64,
    "uint8_t": ctypes.c_uint8, "uint16_t": ctypes.c_uint16, "uint32_t": ctypes.c_uint32, "uint64_t": ctypes.c_uint64,
    "cudaStream_t": ctypes.c_void_p, "void *": ctypes.c_void_p,
}  # fmt: skip
_STRUCT = re.compile(r"typedef struct \{(?P<body>[^}]*)\} (?P<name>\w+_Tensor_\w+_t);")
_FIELD = re.compile(r"(?P<type>void \*|int32_t|int64_t)\s*(?P<name>\w+)(?:\[(?P<count>\d+)\])?;")
_WRAPPER = re.compile(
    r"cute_dsl_(?P<prefix>\w+)_wrapper\(\w+ \*module(?:, )?(?P<parameters>[^)]*)\)\s*\{"
    r".*?(?P<entry>_mlir_\w+)\(args, \d+\)",
    re.DOTALL,
)
_PARAMETER = re.compile(r"(?P<type>\w+(?: \*)?)\s*(?P<name>\w+)$")


@dataclass(frozen=True)
class TensorView:
    """A tensor as the worker places it: address, shape and strides in elements; which of them the kernel takes.

    ``shapes`` and ``strides_taken`` are the dimensions whose extent and stride are not compiled in; ``None``: not said.
    """

    address: int
    shape: Sequence[int]
    strides: Sequence[int]
    shapes_taken: Sequence[int] | None = None
    strides_taken: Sequence[int] | None = None


@dataclass(frozen=True)
class Parameter:
    """One parameter of the host function. ``fields`` of a tensor: (name, C type, count) in the struct's order."""

    name: str
    type: str
    fields: tuple[tuple[str, str, int], ...] = ()


@dataclass(frozen=True)
class Interface:
    """What a generated header declares."""

    prefix: str
    entry: str
    parameters: tuple[Parameter, ...]


def parse_header(text: str) -> Interface:
    """The interface of one exported function. Raises ObjectRefused for a header of another kind."""
    structs = {
        match["name"]: tuple(
            (field["name"], field["type"], int(field["count"] or 1)) for field in _FIELD.finditer(match["body"])
        )
        for match in _STRUCT.finditer(text)
    }
    wrapper = _WRAPPER.search(text)
    if wrapper is None:
        raise ObjectRefused("header: found no cute_dsl_*_wrapper; valid: the header that export_to_c wrote")
    found = []
    for raw in filter(None, (each.strip() for each in wrapper["parameters"].split(","))):
        match = _PARAMETER.match(raw)
        kind = match["type"] if match else raw
        if kind.removesuffix(" *") in structs:
            found.append(Parameter(match["name"], "tensor", structs[kind.removesuffix(" *")]))  # type: ignore[index]
        elif kind in _SCALARS and match:
            found.append(Parameter(match["name"], kind))
        else:
            raise ObjectRefused(f"header: parameter {raw!r} is not supported; valid: tensors, {', '.join(_SCALARS)}")
    return Interface(wrapper["prefix"], wrapper["entry"], tuple(found))


class CModule:
    """An opened object with this interface. Its kernels are loaded at the first call, as a program would do it."""

    def __init__(self, library: ctypes.CDLL, header: str) -> None:
        self._library = library
        self._interface = parse_header(header)
        self._loaded = False

    def get_function(self, name: str) -> Callable[..., None]:
        """The host function: tensors as TensorView, numbers, streams as integers."""
        if name != self._interface.prefix:
            raise ObjectRefused(f"function: found {name!r}; valid: {self._interface.prefix}")
        return self._call

    def _load(self) -> None:
        handle, code, device = ctypes.c_void_p(), ctypes.c_int32(0), ctypes.c_int32(0)
        place = ctypes.pointer(handle)  # the header's libraryPtr: the functions get its address
        steps: list[tuple[str, tuple[Any, ...]]] = [("init", (place, code)), ("load_to_device", (place, device, code))]
        for step, taken in steps:
            pointers = (ctypes.c_void_p * len(taken))(*(ctypes.addressof(each) for each in taken))
            getattr(self._library, f"_mlir_{self._interface.prefix}_cuda_{step}")(pointers)
            if code.value:
                raise RuntimeError(f"the object's kernels cannot be loaded (CUDA error {code.value})")
        self._kept = (handle, place)
        self._loaded = True

    def _call(self, *values: Any) -> None:
        parameters = self._interface.parameters
        if len(values) != len(parameters):
            names = ", ".join(each.name for each in parameters)
            raise ArgumentRefused(f"{len(values)} arguments; valid: {len(parameters)} ({names})")
        if not self._loaded:
            self._load()
        made = [_made(parameter, value) for parameter, value in zip(parameters, values, strict=True)]
        code = ctypes.c_int32(0)
        arguments = (ctypes.c_void_p * (len(made) + 1))(*(ctypes.addressof(each) for each in (*made, code)))
        getattr(self._library, self._interface.entry)(arguments, len(arguments))
        if code.value:
            raise RuntimeError(f"the host code ends with CUDA error {code.value}")


def _made(parameter: Parameter, value: Any) -> Any:
    """The argument's C object."""
    if parameter.type == "tensor":
        if not isinstance(value, TensorView):
            raise ArgumentRefused(f"argument {parameter.name}: found {type(value).__name__}; valid: a tensor")
        return _struct(parameter, value)
    if isinstance(value, ctypes.c_void_p):
        value = value.value
    if isinstance(value, TensorView) or not isinstance(value, (bool, int, float, type(None))):
        raise ArgumentRefused(f"argument {parameter.name}: found {type(value).__name__}; valid: {parameter.type}")
    try:
        return _SCALARS[parameter.type](value)
    except TypeError as error:
        raise ArgumentRefused(f"argument {parameter.name}: {error}; valid: {parameter.type}") from None


def _struct(parameter: Parameter, value: TensorView) -> ctypes.Structure:
    types = {"void *": ctypes.c_void_p, "int32_t": ctypes.c_int32, "int64_t": ctypes.c_int64}
    fields = [(name, types[kind] if kind == "void *" else types[kind] * n) for name, kind, n in parameter.fields]
    made = type("Tensor", (ctypes.Structure,), {"_fields_": fields})()
    for name, _, count in parameter.fields:
        if name == "data":
            made.data = value.address
        elif name == "dynamic_shapes":
            taken = _taken(parameter.name, "shapes", count, value.shapes_taken, range(len(value.shape)))
            made.dynamic_shapes[:] = [value.shape[axis] for axis in taken]
        elif name == "dynamic_strides":
            axes = [axis for axis, stride in enumerate(value.strides) if stride != 1]
            taken = _taken(parameter.name, "strides", count, value.strides_taken, range(len(value.strides)), axes)
            made.dynamic_strides[:] = [value.strides[axis] for axis in taken]
        else:
            raise ArgumentRefused(f"argument {parameter.name}: the header's field {name!r} is not supported")
    return made


def _taken(name: str, what: str, count: int, said: Sequence[int] | None, *guesses: Sequence[int]) -> Sequence[int]:
    """Which dimensions fill a struct's array: what the caller said, or the one way in which it can be filled."""
    if said is not None and len(said) == count:
        return said
    fitting = [guess for guess in guesses if len(guess) == count]
    if said is None and fitting:
        return fitting[0]
    raise ArgumentRefused(
        f"argument {name}: the kernel takes {count} {what} of a tensor of {len(guesses[0])} dimensions; say which: "
        f"dynamic(tensor, shapes=..., strides=...)"
    )
