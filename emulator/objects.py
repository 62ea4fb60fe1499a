"""Where compiled kernels come from: a CuTeDSL function, files, or an artifact of this project."""

from __future__ import annotations

import inspect
import re
import shutil
import subprocess
import tempfile
import weakref
from pathlib import Path
from typing import Any

from dsv4.emulator.c_interface import parse_header
from dsv4.emulator.client import Object, Text
from dsv4.emulator.errors import ObjectRefused
from dsv4.runtime.artifact import sha256_file
from dsv4.runtime.cache import Artifact

_OPTIONS = "--enable-tvm-ffi --keep-ptx --keep-cubin --generate-line-info"
_FUNCTION = "dsv4_emulated"
_made: weakref.WeakKeyDictionary[Any, Object] = weakref.WeakKeyDictionary()


def from_compiled(compiled: Any) -> Object:
    """The object of what ``cute.compile`` returned. Raises ObjectRefused where it was not compiled with what it takes.

    It has to be compiled with ``--keep-ptx --keep-cubin``, and with ``--enable-tvm-ffi`` or for the arch that the
    compiling process was set to (``CUTE_DSL_ARCH``); with ``--generate-line-info`` findings name source lines.
    """
    texts, cubin = getattr(compiled, "__ptx__", None), getattr(compiled, "__cubin__", None)
    if not hasattr(compiled, "export_to_c"):
        raise ObjectRefused(
            f"found {type(compiled).__name__}; valid: what cute.compile returns, compiled with {_OPTIONS}"
        )
    if not texts:
        raise ObjectRefused(f"the compiled kernel holds no PTX; valid: one compiled with {_OPTIONS}")
    if (known := _made.get(compiled)) is not None:
        return known
    header = ""
    with tempfile.TemporaryDirectory(prefix="dsv4-emulator-") as folder:
        made, linked = Path(folder) / "kernel.o", Path(folder) / "kernel.so"
        try:
            if "file_path" in inspect.signature(compiled.export_to_c).parameters:  # without tvm-ffi
                compiled.export_to_c(file_path=folder, file_name="kernel", function_prefix=_FUNCTION)
                header = made.with_suffix(".h").read_text()
            else:
                compiled.export_to_c(str(made), function_name=_FUNCTION, export_only_tvm_ffi_symbols=True)
        except Exception as error:  # whatever the compiler raises for an object without the interface
            reason = " ".join(str(error).split())[:300]
            raise ObjectRefused(
                f"the compiled kernel cannot be exported ({reason}); compile it with {_OPTIONS}"
            ) from None
        _link(made, linked)
        text = Text(texts, cubin or None)
        found = Object(linked.read_bytes(), _FUNCTION, (text,), "the compiled kernel", header=header)
    _made[compiled] = found
    return found


def from_files(
    library: str | Path,
    *ptx: str | Path,
    cubin: str | Path | None = None,
    function: str = "",
    header: str | Path | None = None,
) -> Object:
    """A shared library (or an object file, which is linked) and its PTX files, one for each module that it loads.

    ``function`` may be left out where the library has one function only. With ``cubin`` (one PTX file) it is checked
    that PTX and object are of one compilation; without it they are matched by the kernels' names. An object that was
    exported with the plain C interface needs its generated ``header``.
    """
    path = Path(library)
    if not ptx:
        raise ObjectRefused(f"{path}: no PTX file is given; valid: the PTX of the same compilation (--keep-ptx)")
    if path.suffix == ".o":
        with tempfile.TemporaryDirectory(prefix="dsv4-emulator-") as folder:
            linked = Path(folder) / "kernel.so"
            _read(path)
            _link(path, linked)
            raw = linked.read_bytes()
    else:
        raw = _read(path)
    image = _read(Path(cubin)) if cubin is not None else None
    texts = tuple(Text(_read(Path(each)).decode(errors="replace"), image) for each in ptx)
    if header is not None:
        declared = _read(Path(header)).decode(errors="replace")
        return Object(raw, function or parse_header(declared).prefix, texts, str(path), header=declared)
    return Object(raw, function or _only_function(raw, path), texts, str(path))


def from_artifact(artifact: Artifact | str | Path) -> Object:
    """A kernel of the cache, whatever chip it is for. Raises ArtifactRefused or ObjectRefused.

    Checked are the hashes of its files; its owner and the host's processor are the loader's business.
    """
    if not isinstance(artifact, Artifact):
        artifact = Artifact.read(Path(artifact))
    folder, manifest = artifact.folder, artifact.manifest
    for name in ("kernel.so", "kernel.ptx", "kernel.cubin"):
        if name not in manifest.files or not (folder / name).is_file():
            raise ObjectRefused(f"{folder}: found no {name}; valid: a whole artifact (build it anew)")
        if sha256_file(folder / name) != manifest.files[name]:
            raise ObjectRefused(
                f"{folder / name}: its sha256 is not the manifest's; valid: what was built (build it anew)"
            )
    text = Text((folder / "kernel.ptx").read_text(), (folder / "kernel.cubin").read_bytes())
    library = (folder / "kernel.so").read_bytes()
    registers = manifest.used.registers or 0
    return Object(library, manifest.function, (text,), str(folder / "kernel.so"), registers)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ObjectRefused(
            f"{path}: cannot be read ({error.strerror}); valid: a file of the compiled kernel"
        ) from None


def _only_function(raw: bytes, path: Path) -> str:
    found = sorted({name.decode() for name in re.findall(rb"\0__tvm_ffi_(\w+)(?=\0)", raw)})
    if len(found) != 1:
        raise ObjectRefused(
            f"{path}: function: found {', '.join(found) or 'none'} in the object; valid: function=NAME of one that was "
            f"exported with tvm-ffi"
        )
    return found[0]


def _link(made: Path, library: Path) -> None:
    """A shared library that needs no other one; its symbols are found in what the emulating process has open."""
    compiler = shutil.which("gcc")
    if compiler is None:
        raise ObjectRefused("gcc: found none on PATH; it links the compiled object")
    command = [compiler, "-shared", "-nostdlib", "-Wl,--build-id=none", "-o", str(library), str(made)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise ObjectRefused(f"{made.name}: gcc cannot link it: {' '.join(done.stderr.split())[:300]}")
