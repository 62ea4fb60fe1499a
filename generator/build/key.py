"""The build key: everything that a compiled kernel and its manifest depend on, as one number."""

from __future__ import annotations

import functools
import platform
from dataclasses import dataclass
from importlib import metadata
from typing import Any

from dsv4.generator.build.host import c_compiler_version
from dsv4.generator.build.loading import sha256_text
from dsv4.generator.emit import device_sources
from dsv4.generator.kernel import EmittedSource, KernelPlan
from dsv4.runtime.artifact import MANIFEST_SCHEMA, SUPPORT_ABI, digest

BUILD_SCHEMA = 1  # to be raised when this package writes other artifacts from the same input
DEFAULT_OPT_LEVEL = 2  # level 3 changes ptxas alone, and gave the sm_100a attention kernels stack frames
_COMPILER_PACKAGES = (
    "nvidia-cutlass-dsl",
    "nvidia-cutlass-dsl-libs-base",
    "nvidia-cutlass-dsl-libs-core",
    "nvidia-cutlass-dsl-libs-cu12",
    "nvidia-cutlass-dsl-libs-cu13",
    "apache-tvm-ffi",
)


@dataclass(frozen=True)
class BuildKey:
    """``key`` names the artifact's folder, ``function`` the host function in its kernel.so."""

    key: str
    function: str
    targets: tuple[str, ...]
    opt_level: int
    devices: dict[str, str]  # sha256 of each device module, as the key saw it


def build_key(source: EmittedSource) -> BuildKey:
    """The key of an emitted kernel: 32 hex digits of a sha256 over text, toolchain, options and the plan's facts."""
    plan = source.plan
    targets, opt_level = compile_targets(plan), int(plan.config.get("opt_level", DEFAULT_OPT_LEVEL))
    devices = {name: sha256_text(text) for name, text in device_sources(source.devices).items()}
    key = digest(
        {
            "schemas": [BUILD_SCHEMA, MANIFEST_SCHEMA, SUPPORT_ABI],
            "source": source.sha256,
            "devices": devices,
            "arch": plan.arch,
            "targets": targets,
            "options": {"opt_level": opt_level, "line_info": True},
            "toolchain": toolchain(),
            "facts": _facts(plan),
        }
    )[:32]
    return BuildKey(key, f"dsv4_{plan.op}_{key[:12]}", targets, opt_level, devices)


def compile_targets(plan: KernelPlan) -> tuple[str, ...]:
    """What to compile for, in the order of trying: the plan's target (a family such as sm_100f), then its arch."""
    return tuple(dict.fromkeys((plan.build_target, plan.arch)))


@functools.cache
def _toolchain() -> tuple[tuple[str, str], ...]:
    versions = {"python": ".".join(platform.python_version_tuple()[:2]), "gcc": c_compiler_version()}
    for package in _COMPILER_PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return tuple(versions.items())


def toolchain() -> dict[str, str]:
    """Versions of everything that turns a source into an artifact."""
    return dict(_toolchain())


def _facts(plan: KernelPlan) -> dict[str, Any]:
    """What the manifest repeats from the plan, so that a manifest is a function of its key."""
    return {
        **plan.identity,
        "is_default": plan.is_default,
        "bucket": plan.bucket,
        "numeric_class": plan.numeric_class,
        "spec": plan.spec_sha256,
        "capabilities": plan.compute_capabilities,
        "contract": plan.contract.model_dump(mode="json"),
        "predicted": plan.predicted.model_dump(mode="json"),
    }
