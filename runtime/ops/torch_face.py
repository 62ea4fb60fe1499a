"""An operator with a kernel as one call that torch sees: registered under ``torch.ops.dsv4``, its schema made from the
ports.

While torch traces (torch.compile, export, fake tensors) a call with tensors on a GPU is recorded as this one operator,
so that the kernel runs later; its fake implementation is the reference on fake tensors. Records are taken apart into
tensors and plain values: a ``Weight`` into its four tensors, its format and whether it is expanded, a ``Pool`` into
data, format and page, a ``Compression`` into its five tensors, a ``Quantized`` into codes, scales and block.
"""

from __future__ import annotations

import inspect
import typing
from collections.abc import Callable, Collection, Iterator, Sequence
from itertools import islice
from typing import Any

import torch

from dsv4.runtime.ops import library
from dsv4.runtime.ops.door import Port
from dsv4.runtime.pool import Pool, PoolFormat
from dsv4.runtime.reference.compressor import Compression
from dsv4.runtime.weight import Format, Quantized, Weight

_OPTION_TYPES = {bool: "bool", int: "int", float: "float", str: "str", torch.dtype: "ScalarType"}
_PARTS: dict[str, tuple[tuple[str, str], ...]] = {
    "weight": (
        ("codes", "Tensor"),
        ("scale", "Tensor?"),
        ("scale_2", "Tensor?"),
        ("input_scale", "Tensor?"),
        ("format", "str"),
        ("expanded", "bool"),
    ),
    "pool": (("data", "Tensor"), ("format", "str"), ("page", "int")),
    "compression": tuple((name, "bool" if name == "apart" else "Tensor") for name in Compression._fields),
    "activation": (("codes", "Tensor"), ("scale", "Tensor?"), ("scale_2", "Tensor?"), ("block", "int")),
}


class TorchFace:
    """``name`` with the arguments of ``ports`` and the keyword options of ``reference``.

    ``run`` computes with real tensors, ``reference`` with fake ones. ``mutates`` names the ports that are written to.
    ``returns`` is how many tensors such an operator gives (torch wants to know it of an operator that writes to its
    arguments; others give a list). ``rebuild`` makes the operator's result from the tensors that it consists of and the
    options.
    """

    def __init__(
        self,
        name: str,
        ports: Sequence[Port],
        reference: Callable[..., Any],
        run: Callable[..., Any],
        *,
        mutates: Collection[str] = (),
        returns: int = 0,
        rebuild: Callable[[list[torch.Tensor], dict[str, Any]], Any] | None = None,
    ) -> None:
        self._ports = tuple(ports)
        self._options = tuple(_options(reference))
        self._rebuild = rebuild or _as_they_are
        arguments = [text for port in self._ports for text in _schema(port, port.name in mutates)]
        given = [f"{kind} {option}" for option, kind in self._options]
        self._returns = returns if mutates else None
        given_back = "Tensor[]" if self._returns is None else f"({', '.join(['Tensor'] * returns)})"
        schema = _with_letters(f"{name}({', '.join([*arguments, *given])}) -> {given_back}")
        self._op = library.register(schema, self._implementation(run), self._implementation(reference))

    def __call__(self, arguments: Sequence[Any], options: dict[str, Any]) -> Any:
        """The operator called through torch."""
        flat = [part for port, value in zip(self._ports, arguments, strict=True) for part in _taken_apart(port, value)]
        values = [options[option] for option, _ in self._options]
        return self._rebuild(list(_tensors(self._op(*flat, *values))), options)

    def _implementation(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def implementation(*flat: Any) -> Any:
            left = iter(flat)
            arguments = [_put_together(port, left) for port in self._ports]
            options = dict(zip((option for option, _ in self._options), left, strict=True))
            # An input that goes back beside codes (NVFP4's scale of the tensor) may be no output of a torch operator.
            given = {each.untyped_storage()._cdata for each in flat if isinstance(each, torch.Tensor)}
            tensors = [
                each.clone() if each.untyped_storage()._cdata in given else each
                for each in _tensors(function(*arguments, **options))
            ]
            if self._returns is None:
                return tensors
            return tensors[0] if self._returns == 1 else tuple(tensors) if tensors else None

        return implementation


def _options(reference: Callable[..., Any]) -> Iterator[tuple[str, str]]:
    """The keyword options of ``reference`` with their types in torch's schema language."""
    hints = typing.get_type_hints(reference)
    for name, parameter in inspect.signature(reference).parameters.items():
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY:
            yield name, _option_type(name, hints[name])


def _option_type(name: str, hint: Any) -> str:
    inner = [each for each in typing.get_args(hint) if each is not type(None)]
    if typing.get_origin(hint) is typing.Literal:
        return "str"
    if hint in _OPTION_TYPES:
        return _OPTION_TYPES[hint]
    if len(inner) == 1 and inner[0] in _OPTION_TYPES:
        return f"{_OPTION_TYPES[inner[0]]}?"
    raise TypeError(f"option {name}: found {hint}; valid: {', '.join(kind.__name__ for kind in _OPTION_TYPES)}")


def _schema(port: Port, mutated: bool) -> Iterator[str]:
    written = "(!)" if mutated else ""
    if port.kind not in _PARTS:
        yield f"Tensor{written}{'?' if port.optional else ''} {port.name}"
        return
    for part, kind in _PARTS[port.kind]:
        yield f"{kind}{written if part == 'data' else ''} {port.name}_{part}"


def _with_letters(schema: str) -> str:
    """Each ``(!)`` as an alias set of its own: ``(a!)``, ``(b!)``."""
    for letter in "abcdefgh":
        schema = schema.replace("(!)", f"({letter}!)", 1)
    return schema


def _taken_apart(port: Port, value: Any) -> list[Any]:
    if port.kind == "weight":
        return [value.codes, value.scale, value.scale_2, value.input_scale, value.format.value, value.expanded]
    if port.kind == "pool":
        return [value.data, value.format.value, value.page]
    if port.kind == "compression":
        return list(value)
    if port.kind == "activation":
        quantized = isinstance(value, Quantized)
        return [value.codes, value.scale, value.scale_2, value.block] if quantized else [value, None, None, 0]
    return [value]


def _put_together(port: Port, left: Iterator[Any]) -> Any:
    parts = list(islice(left, len(_PARTS.get(port.kind, (None,)))))
    if port.kind == "weight":
        codes, scale, scale_2, input_scale, format, expanded = parts
        return Weight(Format(format), codes, scale, scale_2, input_scale, expanded)
    if port.kind == "pool":
        data, format, page = parts
        return Pool(data, PoolFormat(format), page)
    if port.kind == "compression":
        return Compression(*parts)
    if port.kind == "activation":
        codes, scale, scale_2, block = parts
        return Quantized(codes, scale, block, scale_2) if block else codes
    return parts[0]


def _tensors(result: Any) -> Iterator[torch.Tensor]:
    if isinstance(result, torch.Tensor):
        yield result
    elif isinstance(result, tuple | list):
        for part in result:
            yield from _tensors(part)


def _as_they_are(tensors: list[torch.Tensor], options: dict[str, Any]) -> Any:
    """Nothing, the one tensor, or a tuple of them."""
    if len(tensors) < 2:
        return tensors[0] if tensors else None
    return tuple(tensors)
