"""mhc_post_pre beside the two kernels that it fuses: ``python -m benchmarks.mhc_post_pre --help``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from benchmarks import mhc_post, mhc_pre
from benchmarks.harness.cli import main
from benchmarks.harness.operator import Call, Case, Inputs, Peer, Work
from benchmarks.kernels import compiled_peer, loaded_kernel
from benchmarks.peers import flashinfer, tile_kernels
from benchmarks.peers.read_only import read_only

if TYPE_CHECKING:
    import torch


class MhcPostPreBenchmark:
    """The next streams, and from them the input of the next sub-layer and its weights; Flash and Pro."""

    op = "mhc_post_pre"
    ours = "dsv4"

    def cases(self) -> list[Case]:
        return mhc_pre.BENCHMARK.cases()

    def peers(self) -> list[Peer]:
        return [
            Peer("dsv4", lambda case: ours(case, pdl=False), "what the operator takes, called bare"),
            Peer("dsv4 pdl", lambda case: ours(case, pdl=True), "programmatic dependent launch", shown=False),
            Peer("dsv4 one launch", lambda case: kernel(case, pdl=False), "the kernel mhc_post_pre", shown=False),
            Peer("dsv4 two launches", two_kernels, "mhc_post and mhc_pre one after the other", shown=False),
            Peer(
                "tile-kernels", tile_peer, "TileKernels' post and its two of pre, torch's norm", tile_kernels.versions
            ),
            Peer("flashinfer", flashinfer_peer, "flashinfer's post, torch's product, its rest", flashinfer.versions),
            compiled_peer(formula, arguments),
            read_only(lambda s: s["fn"]),
        ]

    def make_inputs(self, case: Case, seed: int) -> Inputs:
        made = mhc_pre.make_inputs(case, seed)
        made["next_post"], made["next_comb"] = made.pop("post"), made.pop("comb")
        return {**made, **mhc_post.BENCHMARK.make_inputs(case, seed)}

    def check(self, case: Case, inputs: Inputs, output: Any) -> Mapping[str, float]:
        """The new streams as mhc_post's, the rest against float64 of the new streams that the peer itself gave."""
        new_streams, y, post, comb = output
        before = mhc_post.BENCHMARK.check(case, inputs, new_streams)
        return {**before, **mhc_pre.check_against(inputs, new_streams, y, post, comb)}

    def work(self, case: Case) -> Work:
        tokens, columns = int(case.sizes["T"]), int(case.sizes["d"])
        before, after = mhc_post.BENCHMARK.work(case), mhc_pre.BENCHMARK.work(case)
        read_again = tokens * mhc_pre.STREAMS * columns * 2
        return Work(bytes=before.bytes + after.bytes - read_again, flops=before.flops + after.flops)


def formula(*tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
    new_streams = mhc_post.formula(*tensors[:4])
    return new_streams, *mhc_pre.formula(new_streams, *tensors[4:])


def arguments(s: Inputs) -> tuple[Any, ...]:
    return *mhc_post.arguments(s), *mhc_pre.arguments(s)[1:]


def result(s: Inputs) -> tuple[Any, ...]:
    return s["new_streams"], s["y"], s["next_post"], s["next_comb"]


def kernel(case: Case, *, pdl: bool) -> Call:
    dims, sizes = {"d": int(case.sizes["d"])}, {"T": int(case.sizes["T"])}
    return loaded_kernel("mhc_post_pre", dims=dims, variant={"norm": True, "pdl": pdl}, sizes=sizes, result=result)


def two_kernels(case: Case, *, pdl: bool = False) -> Call:
    return one_after_the_other(mhc_post.kernel(case, pdl=pdl), mhc_pre.kernel(case, pdl=pdl))


def ours(case: Case, *, pdl: bool) -> Call:
    """One kernel of few tokens, two of many."""
    from dsv4.runtime.ops.mhc_post_pre import two_launches_from

    many = int(case.sizes["T"]) >= two_launches_from(int(case.sizes["d"]))
    return two_kernels(case, pdl=pdl) if many else kernel(case, pdl=pdl)


def tile_peer(case: Case) -> Call:
    return one_after_the_other(tile_kernels.mhc_post(case), mhc_pre.tile_peer(case))


def flashinfer_peer(case: Case) -> Call:
    return one_after_the_other(flashinfer.mhc_post(case), flashinfer.mhc_pre(case))


def one_after_the_other(first: Call, second: Call) -> Call:
    """mhc_post, and mhc_pre of the streams that it gives."""

    def call(s: Inputs) -> Any:
        streams = first(s)
        after = second({**s, "streams": streams, "post": s["next_post"], "comb": s["next_comb"]})
        return streams, *after

    return call


BENCHMARK = MhcPostPreBenchmark()

if __name__ == "__main__":
    main(BENCHMARK, "benchmarks.mhc_post_pre")
