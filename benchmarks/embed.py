"""embed beside torch: ``python -m benchmarks.embed --help``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from benchmarks.harness.cli import main
from benchmarks.harness.operator import Call, Case, Inputs, Peer, Work
from benchmarks.kernels import TOKENS, compiled_peer, loaded_kernel, our_peers
from benchmarks.peers import tile_kernels

if TYPE_CHECKING:
    import torch

COLUMNS = (4096, 7168)
VOCABULARY, STREAMS = 129280, 4


class EmbedBenchmark:
    """The initial streams of each token; the table and the sizes of Flash and Pro, tokens i64."""

    op = "embed"
    ours = "dsv4 kernel"

    def cases(self) -> list[Case]:
        sizes = [(tokens, columns) for columns in COLUMNS for tokens in TOKENS]
        return [Case(f"T={tokens} d={columns}", {"T": tokens, "d": columns}) for tokens, columns in sizes]

    def peers(self) -> list[Peer]:
        return [
            *our_peers(kernel),
            Peer("tile-kernels", tile_kernels.embed, "torch's gather, TileKernels' copies", tile_kernels.versions),
            compiled_peer(formula, arguments),
        ]

    def make_inputs(self, case: Case, seed: int) -> Inputs:
        import torch

        tokens, columns = int(case.sizes["T"]), int(case.sizes["d"])
        generator = torch.Generator(device="cuda").manual_seed(seed)
        options: dict[str, Any] = {"device": "cuda", "dtype": torch.bfloat16}
        return {
            "tokens": torch.randint(VOCABULARY, (tokens,), device="cuda", generator=generator),
            "table": torch.randn(VOCABULARY, columns, generator=generator, **options),
            "streams": torch.full((tokens, STREAMS, columns), float("nan"), **options),
        }

    def check(self, case: Case, inputs: Inputs, output: Any) -> Mapping[str, float]:
        """Every element equal."""
        wrong = int((output != formula(*arguments(inputs))).sum().item())
        if wrong:
            raise ValueError(f"{wrong} of {output.numel()} elements differ; valid: none")
        return {"wrong": 0.0}

    def work(self, case: Case) -> Work:
        tokens, columns = int(case.sizes["T"]), int(case.sizes["d"])
        return Work(bytes=tokens * (2 * columns * (1 + STREAMS) + 8), flops=0)


def formula(tokens: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
    return table[tokens][:, None].expand(-1, STREAMS, -1).contiguous()


def arguments(s: Inputs) -> tuple[Any, ...]:
    return s["tokens"], s["table"]


def kernel(case: Case, *, pdl: bool) -> Call:
    dims, sizes = {"d": int(case.sizes["d"])}, {"T": int(case.sizes["T"]), "V": VOCABULARY}
    variant = {"long_tokens": True, "copies": STREAMS, "pdl": pdl}
    return loaded_kernel("embed", dims=dims, variant=variant, sizes=sizes, result=lambda s: s["streams"])


BENCHMARK = EmbedBenchmark()

if __name__ == "__main__":
    main(BENCHMARK, "benchmarks.embed")
