"""Emission: a plan goes in, a readable and formatted CuTeDSL module comes out, byte for byte the same every time.

What a template may see is ``op, arch, dims, variant, config, budget, contract`` and ``header``. Every value that it
reaches is checked on the way (identifier, enum or number), so nothing written in a YAML file can become code.
"""

from __future__ import annotations

import ast
import enum
import functools
import hashlib
import re
import subprocess
import traceback
from collections.abc import Callable, Iterator, Mapping
from importlib import resources
from typing import Any

import jinja2
from jinja2.runtime import Context

from dsv4.generator.kernel import EmittedSource, KernelPlan

LINE_LENGTH = 100
DEVICE_PACKAGE = "dsv4.generator.device"
ALLOWED_IMPORTS = ("__future__", "collections", "cuda", "cutlass", "dataclasses", "functools", "math", "typing")
_SAFE_TEXT = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+*/-]*\Z")


class EmitError(ValueError):
    """A template or a plan from which no source can be made. One line: template, line, name, what would be valid."""


def emit(plan: KernelPlan, *, loader: jinja2.BaseLoader | None = None) -> EmittedSource:
    """Render the template of ``plan`` and format the result.

    ``loader`` replaces the project's own templates (tests). The text depends on the plan, the template and the pinned
    formatter only: no dates, no machine. Raises :class:`EmitError` if a name is undefined, if a value that is not an
    identifier, an enum or a number reaches the template, or if the result is not the module that docs/contracts.md
    describes (``VARIANTS``, ``launch``, ``arguments``; imports of cutlass and ``dsv4.generator.device`` alone).
    """
    environment = _environment(loader)
    where = f"template {plan.template}"
    door = {
        "op": plan.op,
        "arch": plan.arch,
        "dims": plan.dims,
        "variant": plan.variant,
        "config": plan.config,
        "contract": plan.contract,
        "budget": plan.budget,
    }
    try:
        for name, value in door.items():
            _checked(value, name)
        text = environment.get_template(plan.template).render(door, header=header(plan))
    except EmitError as error:
        raise EmitError(f"{where}: {error}") from None
    except jinja2.TemplateSyntaxError as error:
        raise EmitError(f"template {error.name or plan.template}, line {error.lineno}: {error.message}") from None
    except jinja2.TemplateNotFound as error:
        raise EmitError(f"template {error.name} not found (below generator/templates)") from None
    except jinja2.UndefinedError as error:
        raise EmitError(f"{_raised_at(error, plan.template)}: {error.message}") from None
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise EmitError(f"{_raised_at(error, plan.template)}: {type(error).__name__}: {error}") from None
    text = format_source(text, plan.template)
    devices = _inspect_module(text, plan)
    return EmittedSource(plan, text, hashlib.sha256(text.encode()).hexdigest(), devices)


def header(plan: KernelPlan) -> str:
    """The comment at the top of an emitted file: what it was made from, and nothing that changes by itself."""

    def pairs(values: Mapping[str, object]) -> str:
        return ", ".join(f"{name}={value}" for name, value in values.items()) or "-"

    return "\n".join(
        (
            f"# Emitted from generator/templates/{plan.template} for op {plan.op} on {plan.arch}. Do not edit.",
            f"# dims: {pairs(plan.dims)}",
            f"# config: {pairs(plan.config)}",
            f"# spec sha256: {plan.spec_sha256}",
        )
    )


@functools.lru_cache(maxsize=256)
def format_source(text: str, name: str = "source") -> str:
    """``text`` as the pinned ruff formats it: its own settings only, no configuration file of any folder."""
    import ruff  # type: ignore[import-untyped]  # a machine that only measures has none

    command = [ruff.find_ruff_bin(), "format", "--isolated", "--no-cache", "--quiet", "--target-version", "py311"]
    command += ["--line-length", str(LINE_LENGTH), "--stdin-filename", "source.py", "-"]
    done = subprocess.run(command, input=text, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        reason = " ".join(done.stderr.split()) or f"exit code {done.returncode}"
        raise EmitError(f"template {name} does not render to Python: {reason}")
    return done.stdout


def device_sources(devices: tuple[str, ...]) -> dict[str, str]:
    """The text of each device module, by its dotted name: what the build key has to contain besides the source."""
    return {name: _device_text(name) or "" for name in devices}


# ---------------------------------------------------------------------------------------------------------------------
# The guard: what may reach a template


def _checked(value: Any, what: str) -> Any:
    """``value`` itself, if a template may see it. Containers are checked to their leaves, objects when reached into."""
    if isinstance(value, enum.Enum):
        return _checked(value.value, what)
    if isinstance(value, str) and not _SAFE_TEXT.match(value):
        raise EmitError(f"{what} is {value!r}; only identifiers, enums and numbers can reach a template")
    if isinstance(value, Mapping):
        for key, item in value.items():
            _checked(key, f"a key of {what}")
            _checked(item, f"{what}.{key}")
    elif isinstance(value, list | tuple | set | frozenset):
        for index, item in enumerate(value):
            _checked(item, f"{what}[{index}]")
    return value


class _GuardedContext(Context):
    def call(self, obj: Callable[..., Any], *arguments: Any, **keywords: Any) -> Any:
        result = super().call(obj, *arguments, **keywords)
        if type(obj).__module__.startswith("jinja2") or isinstance(getattr(obj, "__self__", None), str):
            return result  # text that a template wrote itself
        if isinstance(result, Iterator):
            result = list(result)
        return _checked(result, f"the result of {getattr(obj, '__name__', 'a call')}()")


class _GuardedEnvironment(jinja2.Environment):
    context_class = _GuardedContext

    def getattr(self, obj: Any, attribute: str) -> Any:
        value = super().getattr(obj, attribute)
        return value if _is_plumbing(obj, value) else _checked(value, attribute)

    def getitem(self, obj: Any, argument: Any) -> Any:
        value = super().getitem(obj, argument)
        return value if _is_plumbing(obj, value) else _checked(value, str(argument))


def _is_plumbing(obj: Any, value: Any) -> bool:
    """Whether Jinja's own machinery is at work: a macro of an imported template, the ``loop`` variable, an error."""
    return callable(value) or isinstance(value, jinja2.Undefined) or type(obj).__module__.startswith("jinja2")


def _finalize(value: Any) -> Any:
    """What ``{{ value }}`` writes: Python's own spelling of numbers and flags; text; nothing else."""
    if isinstance(value, enum.Enum):
        value = value.value
    if value is None or isinstance(value, bool | int | float):
        if isinstance(value, float) and (value != value or value in (float("inf"), float("-inf"))):
            return f'float("{value}")'
        return repr(value)
    if isinstance(value, str | jinja2.Undefined):
        return value
    raise EmitError(f"{{{{ … }}}} got a {type(value).__name__}; write out its elements instead")


@functools.lru_cache(maxsize=8)
def _environment(loader: jinja2.BaseLoader | None) -> jinja2.Environment:
    if loader is None:
        loader = jinja2.PackageLoader("dsv4.generator", "templates")
    return _GuardedEnvironment(
        loader=loader,
        undefined=jinja2.StrictUndefined,
        finalize=_finalize,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,
    )


def _raised_at(error: Exception, template: str) -> str:
    """``template NAME, line N``: Jinja rewrites its traceback so that the frames name template files and lines."""
    place = f"template {template}"
    for frame in traceback.extract_tb(error.__traceback__):
        if frame.filename.endswith((".j2", "<template>")):
            file = template if frame.filename == "<template>" else frame.filename.split("/templates/")[-1]
            place = f"template {file}, line {frame.lineno}"
    return place


# ---------------------------------------------------------------------------------------------------------------------
# The emitted module: its shape and the device code that it imports


def _inspect_module(text: str, plan: KernelPlan) -> tuple[str, ...]:
    """Check the shape of the emitted module and return the device modules that it imports, directly or not."""
    tree = ast.parse(text)
    functions = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
    for name in ("launch", "arguments"):
        if name not in functions:
            raise EmitError(f"template {plan.template} defines no function {name}(), see docs/contracts.md")
    try:
        variants = served_variants(text)
    except EmitError as error:
        raise EmitError(f"template {plan.template}: {error}") from None
    if plan.variant not in variants:
        raise EmitError(f"template {plan.template}: VARIANTS {variants} does not contain {plan.variant}")
    return _device_imports(tree, plan.template)


def served_variants(text: str) -> tuple[dict[str, Any], ...]:
    """The value of ``VARIANTS`` in an emitted module. Raises :class:`EmitError` if it is missing or not a literal."""
    for node in ast.parse(text).body:
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        if isinstance(node, ast.Assign | ast.AnnAssign) and any(
            isinstance(target, ast.Name) and target.id == "VARIANTS" for target in targets
        ):
            try:
                return tuple(ast.literal_eval(node.value))  # type: ignore[arg-type]
            except (TypeError, ValueError):
                raise EmitError("VARIANTS of an emitted module has to be a literal tuple of dicts") from None
    raise EmitError("an emitted module has to define VARIANTS, the flags that it serves")


def _device_imports(tree: ast.Module, template: str) -> tuple[str, ...]:
    found: dict[str, None] = {}
    queue: list[tuple[ast.Module, str | None]] = [(tree, None)]
    while queue:
        module, own_name = queue.pop()
        origin = own_name or f"template {template}"
        for names, line in _imports(module, own_name):
            if not names[0].startswith(f"{DEVICE_PACKAGE}."):
                if names[-1].split(".")[0] not in ALLOWED_IMPORTS:
                    valid = f"cutlass and {DEVICE_PACKAGE}"
                    raise EmitError(f"{origin} imports {names[-1]} (line {line}); only {valid} are allowed")
                continue
            name = next((name for name in names if _device_text(name) is not None), None)
            if name is None:
                raise EmitError(f"{origin} imports {names[-1]} (line {line}), which does not exist")
            if name not in found:
                found[name] = None
                queue.append((ast.parse(_device_text(name) or ""), name))
    return tuple(sorted(found))


def _imports(module: ast.Module, own_name: str | None) -> list[tuple[tuple[str, ...], int]]:
    """What ``module`` imports, each with its line: the dotted names that it may mean, the longest first.

    ``from a.b import c`` means the module ``a.b.c`` or something in ``a.b``. Relative imports are resolved against
    ``own_name``.
    """
    found: list[tuple[tuple[str, ...], int]] = []
    for node in ast.walk(module):
        if isinstance(node, ast.Import):
            found += [((alias.name,), node.lineno) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                package = own_name or ""
                if own_name and not _is_package(own_name):
                    package = own_name.rpartition(".")[0]
                for _ in range(node.level - 1):
                    package = package.rpartition(".")[0]
                base = f"{package}.{base}".rstrip(".")
            found += [((f"{base}.{alias.name}", base), node.lineno) for alias in node.names]
    return found


def _is_package(name: str) -> bool:
    return _device_path(name).joinpath("__init__.py").is_file()


def _device_path(name: str) -> Any:
    parts = name[len("dsv4.generator.") :].split(".")
    return resources.files("dsv4.generator").joinpath(*parts)


def _device_text(name: str) -> str | None:
    """The source of the device module ``name``, or None if there is no such module."""
    path = _device_path(name)
    if path.joinpath("__init__.py").is_file():
        return path.joinpath("__init__.py").read_text()
    parent, leaf = name.rpartition(".")[::2]
    file = _device_path(parent).joinpath(f"{leaf}.py")
    return file.read_text() if file.is_file() else None
