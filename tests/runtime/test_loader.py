"""The loader: a sound artifact is called, every other one is refused in one line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from dsv4.runtime import loader
from dsv4.runtime.cache import Artifact
from dsv4.runtime.errors import ArtifactRefused

H100, B200 = (9, 0), (10, 0)


def refused(artifact: Artifact, reason: str, capability: tuple[int, int] = H100) -> None:
    with pytest.raises(ArtifactRefused, match=reason) as raised:
        loader.load(artifact, capability)
    assert "\n" not in str(raised.value)


def test_sound_artifact_is_loaded_and_called(make: Any, support: Path, compiled: dict[str, bytes]) -> None:
    function = loader.load(make(so=compiled["kernel"]), H100)
    before = function()
    x = torch.zeros(2, 64, dtype=torch.bfloat16)
    function(x, x[0], x, 1e-6)
    assert function() - before == 100
    assert function() % 100 == 1  # the support library's ABI, through its symbol


def test_host_function_complains_like_tvm_ffi(make: Any, support: Path, compiled: dict[str, bytes]) -> None:
    function = loader.load(make(so=compiled["kernel"]), H100)
    with pytest.raises(ValueError, match="argument #1"):
        function(1)


def test_truncated(make: Any, support: Path, compiled: dict[str, bytes]) -> None:
    artifact = make(so=compiled["kernel"])
    (artifact.folder / "kernel.so").write_bytes(compiled["kernel"][:-100])
    refused(artifact, r"kernel\.so: found sha256 .*cut short or altered")


@pytest.mark.parametrize("name", ["kernel.so", "kernel.ptx"])
def test_altered_by_one_byte(make: Any, support: Path, compiled: dict[str, bytes], name: str) -> None:
    artifact = make(so=compiled["kernel"])
    path = artifact.folder / name
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    refused(artifact, f"{name}: found sha256")


def test_missing_file(make: Any, support: Path, compiled: dict[str, bytes]) -> None:
    artifact = make(so=compiled["kernel"])
    (artifact.folder / "kernel.so").unlink()
    refused(artifact, r"kernel\.so: found none \(No such file or directory\)")


def test_other_arch(make: Any, support: Path, compiled: dict[str, bytes]) -> None:
    refused(make(so=compiled["kernel"]), r"compute_capabilities: found a device of 10\.0; valid: 9\.0", B200)


def test_other_processor(make: Any, support: Path, compiled: dict[str, bytes], without_features: None) -> None:
    fine = make("b" * 32, host_isa=("sse3", "avx2"))
    loader.verify(fine, H100)
    refused(make(so=compiled["kernel"], host_isa=("avx2", "avx512f")), "host_isa: found a processor without avx512f")


@pytest.mark.parametrize(("needed", "fine"), [("2.17", True), ("2.31", True), ("2.32", False), ("2.100", False)])
def test_glibc(make: Any, without_features: None, needed: str, fine: bool) -> None:
    artifact = make(glibc=needed)
    if fine:
        loader.verify(artifact, H100)
    else:
        refused(artifact, rf"glibc: found 2\.31 here; valid: {needed} or newer")


def test_unknown_glibc(make: Any) -> None:
    refused(make(glibc="unknown"), "glibc: found 'unknown'; valid: a version")


def test_other_support_abi(make: Any) -> None:
    refused(make(support_abi=2), "support_abi: found 2; valid: 1")


def test_unknown_schema(make: Any) -> None:
    refused(make(manifest_schema=9), "manifest_schema: found 9; valid: 1")


@pytest.mark.parametrize("name", ["../kernel.so", "/etc/passwd", "a/b"])
def test_files_outside_the_folder(make: Any, name: str) -> None:
    artifact = make()
    files = {**artifact.manifest.files, name: "0" * 64}
    refused(Artifact(artifact.folder, artifact.manifest.model_copy(update={"files": files})), "files: found")


def test_no_object(make: Any) -> None:
    refused(make(files={}), r"files: found no kernel\.so")


def test_not_a_library(make: Any, support: Path) -> None:
    refused(make(so=b"\x7fELF, or so it says"), r"kernel\.so: cannot be opened: ")


def test_function_that_is_not_there(make: Any, support: Path, compiled: dict[str, bytes]) -> None:
    refused(make("b" * 32, so=compiled["kernel"]), r"kernel\.so: cannot be opened: .*dsv4_rms_norm_bbb")


@pytest.mark.parametrize("place", ["root", "folder", "kernel.so"])
def test_world_writable(make: Any, fresh_runtime: Path, place: str) -> None:
    artifact = make()
    {"root": fresh_runtime, "folder": artifact.folder, "kernel.so": artifact.folder / "kernel.so"}[place].chmod(0o777)
    refused(artifact, "found mode 0777, world-writable")


def test_support_library_missing(make: Any) -> None:
    refused(make(), r"support: found none")


def test_support_library_altered(make: Any, support: Path, compiled: dict[str, bytes]) -> None:
    support.write_bytes(compiled["support"] + b"\0")
    refused(make(so=compiled["kernel"]), r"libdsv4_support-1\.so: found sha256")


def test_support_record_damaged(make: Any, support: Path, compiled: dict[str, bytes]) -> None:
    support.with_suffix(".json").write_text("{}")
    refused(make(so=compiled["kernel"]), r"libdsv4_support-1\.json: found no readable sha256")
