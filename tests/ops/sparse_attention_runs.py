"""Cases of sparse_attention_decode of one's own making, and single requests of a case, in the emulator."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from dsv4.generator.build import BuildResult
from dsv4.generator.verify import cases
from dsv4.generator.verify.case import Case
from dsv4.generator.verify.emulator import EmulatedKernel
from dsv4.generator.verify.operators.sparse_attention_decode import Shape, case_of
from dsv4.runtime.cache import Artifact
from tests.ops import builds as builds

EVERY_LENGTH = 5
"""The case in which the requests have one length each."""


def alone_and_again(result: BuildResult, alone: Sequence[int]) -> None:
    """The same bits under two schedules, and those of the requests ``alone`` without the others."""
    artifact = Artifact.read(builds.folder(result))
    made = artifact.manifest
    case = cases(made.op, made.dims, made.variant, config=made.config)[EVERY_LENGTH]
    whole = launched(artifact, case, slice(None), "late")
    for got, again in zip(whole, launched(artifact, case, slice(None), "early"), strict=True):
        assert torch.equal(got.view(torch.int16), again.view(torch.int16))
    for request in alone:
        found = launched(artifact, case, slice(request, request + 1), "mixed:1")
        for got, one in zip(whole, found, strict=True):
            assert torch.equal(got[request].view(torch.int16), one[0].view(torch.int16))


def every_case(result: BuildResult) -> None:
    """No finding in any case of the kernel, under three schedules."""
    made = builds.manifest(result)
    count = len(cases(made.op, made.dims, made.variant, config=made.config))
    for schedule in ("mixed:0", "late", "early"):
        assert builds.findings(result, range(count), schedule) == []


def launched(artifact: Artifact, case: Case, requests: slice, schedule: str) -> tuple[torch.Tensor, torch.Tensor]:
    """out and lse of some requests of a case."""
    kernel = EmulatedKernel(artifact)
    kernel.schedule = schedule
    values = dict(case.inputs)
    for name in ("q", "index0", "index1", "length0", "length1"):
        value = values[name]
        values[name] = value[requests].clone() if isinstance(value, torch.Tensor) else value
    q = values["q"]
    assert isinstance(q, torch.Tensor)
    out, lse = torch.empty_like(q), torch.empty(q.shape[0], q.shape[2], q.shape[1])
    values.update(max_logits=None, out=out, lse=lse, **case.inouts)
    kernel(*[values[argument.name] for argument in artifact.manifest.contract.arguments])
    assert kernel.report is not None and kernel.report.ok
    return out, lse


def of_shape(result: BuildResult, pages: tuple[int, int]) -> Case:
    """Two tiles and a bit of rows from either pool, half of the entries no row at all, with these page sizes."""
    made = builds.manifest(result)
    shape = Shape(f"pages of {pages}", 2, 1, (128, 70), pages, holes=0.5, lengths=(1 << 30, 67))
    generator = torch.Generator().manual_seed(sum(pages))
    return case_of(shape, made.dims, made.variant, generator, torch.device("cpu"))


def apart(case: Case, more_bytes: int) -> Case:
    """The same with so many bytes of 0xFF, which are NaN in a row, after each page of the packed pools."""
    inputs = dict(case.inputs)
    for name in ("pool0", "pool1"):
        pool = inputs[name]
        if isinstance(pool, torch.Tensor):
            wide = torch.full((pool.shape[0], pool.shape[1] + more_bytes), 0xFF, dtype=torch.uint8)
            wide[:, : pool.shape[1]] = pool
            inputs[name] = wide[:, : pool.shape[1]]
    return replace(case, inputs=inputs)
