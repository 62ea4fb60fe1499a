"""The whole model once more, from dsv4-reference alone: one sequence, token by token, float64, lists and loops.

No cache, no plan, no operator of the runtime: only the containers of the weights and ``Weight.dequantize``. With
``"official"`` values are rounded where the official inference code rounds them, with ``"engine"`` where public serving
engines do: float32 through norm and rotation up to one quantisation (§5.5), FP8 keys of the indexer with float32 scores
(§6.5), FP8 before wo_a (§8), E4M3 by 32 columns before MXFP4 experts (§9.5).
"""

from __future__ import annotations

import math
from functools import cache, lru_cache
from typing import Literal

import ml_dtypes
import numpy as np
import torch

from dsv4.runtime.model.config import ModelConfig
from dsv4.runtime.model.weights import (
    AttentionWeights,
    BlockWeights,
    CompressorWeights,
    ExpertWeights,
    HeadMixWeights,
    ModelWeights,
    MoeWeights,
    StreamMixWeights,
)
from dsv4.runtime.weight import Format, Weight

F64 = torch.float64
E2M1 = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6], dtype=F64)


def scale_of(amax: float, largest: float) -> float:
    return 2.0 ** math.ceil(math.log2(amax / largest))


def fp8(x: torch.Tensor, block: int, floor: float = 1e-4) -> torch.Tensor:
    """§4.2, §4.3: blocks of the last dimension through E4M3."""
    out = x.clone()
    for row in out.view(-1, block):
        scale = scale_of(max(float(row.abs().max()), floor), 448)
        values = (row / scale).clamp(-448, 448).float().numpy().astype(ml_dtypes.float8_e4m3fn)
        row[:] = torch.from_numpy(values.astype(np.float64)) * scale
    return out


def fp4(x: torch.Tensor) -> torch.Tensor:
    """§6.3: blocks of 32 through E2M1, ties to the even code."""
    out = x.clone()
    for row in out.view(-1, 32):
        scale = scale_of(max(float(row.abs().max()), 6 * 2.0**-126), 6)
        for i, value in enumerate((row / scale).clamp(-6, 6).tolist()):
            code = min(range(8), key=lambda c: (abs(abs(value) - float(E2M1[c])), c % 2))
            row[i] = math.copysign(float(E2M1[code]), value) * scale
    return out


@lru_cache
def sylvester(n: int) -> torch.Tensor:
    return torch.tensor([[(-1.0) ** bin(i & j).count("1") for j in range(n)] for i in range(n)], dtype=F64)


class Naive:
    """Computes the streams and logits of every token of one sequence."""

    def __init__(
        self, config: ModelConfig, weights: ModelWeights, numerics: Literal["exact", "official", "engine"] = "exact"
    ) -> None:
        self.config, self.weights = config, weights
        self.official, self.engine = numerics == "official", numerics == "engine"
        self.matrices: dict[int, torch.Tensor] = {}
        self.experts: dict[tuple[int, int], tuple[Weight, Weight, Weight]] = {}
        self.kept: list[Weight] = []  # so that no other weight takes the id of one

    def bf16(self, x: torch.Tensor) -> torch.Tensor:
        """What goes from one operator to the next."""
        return x.bfloat16().double() if self.official or self.engine else x

    def stage(self, x: torch.Tensor) -> torch.Tensor:
        """What an engine's kernel keeps in float32."""
        return x.bfloat16().double() if self.official else x

    def linear(self, x: torch.Tensor, weight: Weight) -> torch.Tensor:
        if weight.format is Format.FP8_BLOCK and (self.official or self.engine):
            x = fp8(x, 128)
        if weight.format is Format.MXFP4 and (self.official or self.engine):
            x = fp8(x, 128 if self.official else 32)
        return self.bf16(self.matrix(weight) @ x)

    def matrix(self, weight: Weight) -> torch.Tensor:
        if id(weight) not in self.matrices:
            self.matrices[id(weight)] = weight.dequantize(F64)
            self.kept.append(weight)
        return self.matrices[id(weight)]

    def rms_norm(self, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return self.bf16(self.normed(x, weight))

    def normed(self, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return weight.double() * x / (x.square().mean() + self.config.rms_norm_eps).sqrt()

    # §3.3, §3.4
    @cache  # noqa: B019 — the model lives as long as its test
    def angles(self, position: int, ratio: int) -> torch.Tensor:
        c = self.config
        theta, r = (c.compress_rope_theta if ratio else c.rope_theta), c.qk_rope_head_dim
        f = 1.0 / theta ** (torch.arange(0, r, 2, dtype=torch.float32) / r)
        if ratio:
            yarn = c.rope_scaling
            assert yarn is not None

            def correction(turns: float) -> float:
                return r * math.log(yarn.original_max_position_embeddings / (2 * math.pi * turns)) / 2 / math.log(theta)

            low = max(math.floor(correction(yarn.beta_fast)), 0)
            high = min(math.ceil(correction(yarn.beta_slow)), r - 1)
            ramp = ((torch.arange(r // 2, dtype=torch.float32) - low) / (high - low)).clamp(0, 1)
            f = f / yarn.factor * ramp + f * (1 - ramp)
        return (torch.tensor(float(position)) * f).double()

    def rope(self, x: torch.Tensor, position: int, ratio: int, *, inverse: bool = False) -> torch.Tensor:
        angles = self.angles(position, ratio) * (-1 if inverse else 1)
        first = x.shape[-1] - self.config.qk_rope_head_dim
        pairs = torch.complex(x[..., first::2], x[..., first + 1 :: 2]) * torch.exp(1j * angles)
        out = x.clone()
        out[..., first::2], out[..., first + 1 :: 2] = pairs.real, pairs.imag
        return self.stage(out)

    # §2
    def mix(self, x: torch.Tensor, weights: StreamMixWeights | HeadMixWeights) -> torch.Tensor:
        flat = x.flatten()
        rho = 1 / (flat.square().mean() + self.config.rms_norm_eps).sqrt()
        return rho * (weights.fn.double() @ flat)

    def pre(self, x: torch.Tensor, weights: StreamMixWeights) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        eps, base, scale = self.config.hc_eps, weights.base.double(), weights.scale.double()
        mu = self.mix(x, weights)
        pre = torch.sigmoid(mu[:4] * scale[0] + base[:4]) + eps
        post = 2 * torch.sigmoid(mu[4:8] * scale[1] + base[4:8])
        c = torch.softmax((mu[8:] * scale[2] + base[8:]).view(4, 4), dim=1) + eps
        c = c / (c.sum(0, keepdim=True) + eps)
        for _ in range(self.config.hc_sinkhorn_iters - 1):
            c = c / (c.sum(1, keepdim=True) + eps)
            c = c / (c.sum(0, keepdim=True) + eps)
        return self.bf16(sum(pre[j] * x[j] for j in range(4))), post, c  # type: ignore[arg-type]

    def post(self, f: torch.Tensor, x: torch.Tensor, post: torch.Tensor, c: torch.Tensor) -> torch.Tensor:
        rows = [post[k] * f + sum(c[j, k] * x[j] for j in range(4)) for k in range(4)]
        return self.bf16(torch.stack(rows))

    def head(self, x: torch.Tensor, weights: HeadMixWeights, norm: torch.Tensor) -> torch.Tensor:
        pre = torch.sigmoid(self.mix(x, weights) * weights.scale.double() + weights.base.double()) + self.config.hc_eps
        h = self.bf16(sum(pre[k] * x[k] for k in range(4)))  # type: ignore[arg-type]
        return self.weights.head.double() @ self.rms_norm(h, norm)

    # §5
    def entries(self, xs: list[torch.Tensor], weights: CompressorWeights, ratio: int, width: int, index: bool):  # type: ignore[no-untyped-def]
        a = [self.matrix(weights.wkv) @ x for x in xs]
        g = [self.matrix(weights.wgate) @ x + weights.ape[p % ratio].double() for p, x in enumerate(xs)]
        found = []
        for e in range(len(xs) // ratio):
            own = range(ratio * e, ratio * e + ratio)
            upper = slice(width, 2 * width) if ratio == 4 else slice(0, width)
            members = [(g[p][upper], a[p][upper]) for p in own]
            if ratio == 4 and e:
                members += [(g[p][:width], a[p][:width]) for p in range(4 * e - 4, 4 * e)]
            share = torch.softmax(torch.stack([gate for gate, _ in members]), dim=0)
            z = self.stage((share * torch.stack([value for _, value in members])).sum(0))
            k = self.rope(self.stage(self.normed(z, weights.norm)), e * ratio, ratio)
            found.append(self.index_code(k) if index else self.fq64(k))
        return found

    def index_code(self, x: torch.Tensor) -> torch.Tensor:
        """The indexer's queries and keys: FP4 in the official code, FP8 with one scale in the engine."""
        if not (self.official or self.engine):
            return x
        turned = self.stage(x @ sylvester(x.shape[-1]) / math.sqrt(x.shape[-1]))
        return fp4(turned) if self.official else fp8(turned, x.shape[-1])

    def fq64(self, k: torch.Tensor) -> torch.Tensor:
        if self.official or self.engine:
            k = torch.cat((fp8(k[:448], 64), self.bf16(k[448:])))
        return k

    # §4, §6, §7, §8
    def attention(self, xs: list[torch.Tensor], w: AttentionWeights, ratio: int) -> list[torch.Tensor]:
        c = self.config
        lows = [self.rms_norm(self.linear(x, w.wq_a), w.q_norm) for x in xs]
        keys = [
            self.fq64(self.rope(self.stage(self.normed(self.linear(x, w.wkv), w.kv_norm)), p, ratio))
            for p, x in enumerate(xs)
        ]
        compressed = [] if w.compressor is None else self.entries(xs, w.compressor, ratio, c.head_dim, False)
        index_keys = []
        if w.indexer is not None:
            index_keys = self.entries(xs, w.indexer.compressor, ratio, c.index_head_dim, True)
        outputs = []
        for p, (x, low) in enumerate(zip(xs, lows, strict=True)):
            q = self.linear(low, w.wq_b).view(c.num_attention_heads, c.head_dim)
            if self.official:
                mean = self.bf16(self.bf16(q.square()).mean(-1, keepdim=True))
                q = self.bf16(q * self.bf16(self.bf16(mean + c.rms_norm_eps).rsqrt()))
            else:
                q = q / (q.square().mean(-1, keepdim=True) + c.rms_norm_eps).sqrt()
            q = self.bf16(self.rope(q, p, ratio))
            seen = keys[max(0, p - c.sliding_window + 1) : p + 1]
            if ratio:
                visible = range((p + 1) // ratio)
                chosen = list(visible) if w.indexer is None else self.chosen(x, low, p, w, index_keys, len(visible))
                seen = seen + [compressed[e] for e in chosen]
            matrix = torch.stack(seen)
            rows = []
            for head in range(c.num_attention_heads):
                scores = matrix @ q[head] / math.sqrt(c.head_dim)
                peak = scores.max()
                weights = (scores - peak).exp()
                total = weights.sum() + (w.sink[head].double() - peak).exp()
                out = self.bf16(self.bf16(weights) @ matrix / total)
                rows.append(out)
            grouped = self.rope(torch.stack(rows), p, ratio, inverse=True).view(c.o_groups, -1)
            if self.engine and w.wo_a.format is Format.FP8_BLOCK:
                grouped = fp8(grouped, 128, floor=1e-10)
            wo_a = self.matrix(w.wo_a).view(c.o_groups, -1, c.group_width)
            z = torch.cat([self.bf16(wo_a[g] @ grouped[g]) for g in range(c.o_groups)])
            outputs.append(self.linear(z, w.wo_b))
        return outputs

    def chosen(self, x, low, p, w, index_keys, visible) -> list[int]:  # type: ignore[no-untyped-def]
        c, indexer = self.config, w.indexer
        q = self.linear(low, indexer.wq_b).view(c.index_n_heads, c.index_head_dim)
        q = self.index_code(self.rope(q, p, 4))
        scale = c.index_head_dim**-0.5 * c.index_n_heads**-0.5
        weights = self.stage(self.stage(self.matrix(indexer.weights_proj) @ x) * scale)
        scores = []
        for e in range(visible):
            products = self.stage(q @ index_keys[e]).clamp(min=0)
            scores.append(float(self.stage(self.stage(weights * products).sum())))
        return sorted(range(visible), key=lambda e: (-scores[e], e))[: c.index_topk]

    # §9
    def expert(self, y: torch.Tensor, w1: Weight, w3: Weight, w2: Weight, route: float) -> torch.Tensor:
        limit = self.config.swiglu_limit
        gate, up = self.linear(y, w1).clamp(max=limit), self.linear(y, w3).clamp(-limit, limit)
        return self.linear(self.stage(gate / (1 + (-gate).exp()) * up * route), w2)

    def stacked(self, w: ExpertWeights, e: int) -> tuple[Weight, Weight, Weight]:
        if (id(w), e) not in self.experts:
            self.experts[id(w), e] = (w.w1[e], w.w3[e], w.w2[e])
        return self.experts[id(w), e]

    def moe(self, y: torch.Tensor, token: int, w: MoeWeights) -> torch.Tensor:
        c = self.config
        affinity = torch.log1p((w.router.weight.double() @ y).exp()).sqrt()
        if w.router.tid2eid is not None:
            chosen = w.router.tid2eid[token].tolist()
        else:
            assert w.router.bias is not None
            ranked = (affinity + w.router.bias.double()).tolist()
            chosen = sorted(range(c.n_routed_experts), key=lambda e: (-ranked[e], e))[: c.num_experts_per_tok]
        total = sum(affinity[e] for e in chosen)
        shared: ExpertWeights = w.shared
        out = self.expert(y, shared.w1, shared.w3, shared.w2, 1.0)
        for e in chosen:
            route = float(affinity[e] / total * c.routed_scaling_factor)
            out = out + self.expert(y, *self.stacked(w.experts, e), route)
        return self.bf16(out)

    def block(self, streams: list[torch.Tensor], tokens: list[int], w: BlockWeights, ratio: int) -> list[torch.Tensor]:
        mixed = [self.pre(x, w.attention_mix) for x in streams]
        updates = self.attention([self.rms_norm(u, w.attention_norm) for u, _, _ in mixed], w.attention, ratio)
        streams = [self.post(f, x, post, c) for f, x, (_, post, c) in zip(updates, streams, mixed, strict=True)]
        out = []
        for x, token in zip(streams, tokens, strict=True):
            u, post, c = self.pre(x, w.ffn_mix)
            out.append(self.post(self.moe(self.rms_norm(u, w.ffn_norm), token, w.moe), x, post, c))
        return out

    def forward(self, tokens: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
        """(streams [T, 4, d] leaving the last main layer, logits [T, vocabulary])."""
        streams = [self.bf16(self.weights.embed[token].double()).repeat(4, 1) for token in tokens]
        for layer, ratio in zip(self.weights.layers, self.config.compress_ratios, strict=False):
            streams = self.block(streams, tokens, layer, ratio)
        logits = [self.head(x, self.weights.head_mix, self.weights.norm) for x in streams]
        return torch.stack(streams), torch.stack(logits)

    def draft(self, streams: torch.Tensor, next_tokens: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
        """§10.2: streams of ``forward`` and the token after each."""
        mtp = self.weights.mtp
        assert mtp is not None
        joined = []
        for x, token in zip(streams, next_tokens, strict=True):
            embedded = self.rms_norm(self.bf16(self.weights.embed[token].double()), mtp.enorm)
            e = self.linear(embedded, mtp.e_proj)
            joined.append(
                self.bf16(torch.stack([e + self.linear(self.rms_norm(stream, mtp.hnorm), mtp.h_proj) for stream in x]))
            )
        after = self.block(joined, next_tokens, mtp.block, 0)
        return torch.stack(after), torch.stack([self.head(x, mtp.head_mix, mtp.norm) for x in after])
