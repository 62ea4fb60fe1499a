"""Import an emitted module from its text under a name and file name that do not depend on where it lies.

The compiler writes file names into the line tables of PTX and cubin. With ``source.py`` for the emitted file and
package-relative names for everything else, the same kernel has the same bytes on every machine.
"""

from __future__ import annotations

import hashlib
import importlib.abc
import importlib.util
import inspect
import linecache
import os
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from dsv4.generator.build.ptx import SOURCE_NAME

MODULE_NAME = "dsv4_emitted"
DEVICE_PACKAGE = "dsv4.generator.device"


def load_source(text: str) -> ModuleType:
    """The emitted module, executed anew; an earlier one of the same name is forgotten."""
    sys.modules.pop(MODULE_NAME, None)
    # The compiler parses functions from their source lines, which Python keeps by file name: drop the last module's.
    linecache.cache[SOURCE_NAME] = (len(text), None, text.splitlines(keepends=True), SOURCE_NAME)
    loader = _TextLoader(text)
    spec = importlib.util.spec_from_loader(MODULE_NAME, loader, origin=SOURCE_NAME)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    module.__file__ = SOURCE_NAME
    sys.modules[MODULE_NAME] = module
    loader.exec_module(module)
    return module


def forget_device_modules() -> None:
    """Have the next emitted module import the device code as it is now (a long build may see it edited)."""
    for name in [name for name in sys.modules if name == DEVICE_PACKAGE or name.startswith(f"{DEVICE_PACKAGE}.")]:
        del sys.modules[name]
    folder = DEVICE_PACKAGE.replace(".", "/")
    for name in [name for name in linecache.cache if name.startswith(folder)]:
        del linecache.cache[name]


def changed_device_module(expected: dict[str, str]) -> str | None:
    """The name of an imported device module whose text has not the sha256 in ``expected``, or None."""
    for name, sha in expected.items():
        file = getattr(sys.modules.get(name), "__file__", None)
        if file is None or sha256_text(Path(file).read_text()) != sha:
            return name
    return None


def sha256_text(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


class _TextLoader(importlib.abc.InspectLoader):
    def __init__(self, text: str) -> None:
        self.text = text

    def get_source(self, fullname: str) -> str:
        return self.text

    def get_code(self, fullname: str) -> Any:
        return compile(self.text, SOURCE_NAME, "exec", dont_inherit=True)


def use_relative_file_names() -> None:
    """From now on ``inspect`` gives the files below ``sys.path`` relative names: the compiler asks it for them."""
    original = inspect.getsourcefile
    roots = sorted({os.path.abspath(path) + os.sep for path in sys.path if path}, key=len, reverse=True)
    roots += [f"{root}nvidia_cutlass_dsl{os.sep}dsl_packages{os.sep}" for root in roots]
    roots.sort(key=len, reverse=True)
    package = _package_root()

    def relative(item: Any) -> str | None:
        name = original(item)
        if name is None or not os.path.isabs(name):
            return name
        if package and name.startswith(package):
            return "dsv4/generator/" + name[len(package) :]
        for root in roots:
            if name.startswith(root):
                return name[len(root) :]
        return name

    inspect.getsourcefile = relative  # type: ignore[assignment]


def _package_root() -> str:
    import dsv4.generator

    return str(Path(next(iter(dsv4.generator.__path__)))) + os.sep
