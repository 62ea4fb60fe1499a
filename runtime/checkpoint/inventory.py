"""Every tensor of a checkpoint: name, dtype and shape, from the configuration and the layout (dsv4-reference §14).

For the official layout these are 69,187 tensors for Flash and 145,116 for Pro, as many as the released index files
name.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from dsv4.runtime.checkpoint.layouts import Layout
from dsv4.runtime.model.config import ModelConfig
from dsv4.runtime.model.schedule import LayerSchedule, schedule
from dsv4.runtime.weight import FP8_BLOCK, MXFP4_BLOCK, NVFP4_BLOCK, Format

PACKED = ("I8", "U8")
"""Two FP4 codes a byte; the official files call it I8, NVIDIA's U8."""

PROJECTIONS = ("w1", "w2", "w3")
"""Gate, down, up."""


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """One tensor. ``dtypes`` are those that its header may name (the first is written), ``op`` the operator that reads
    it, ``group`` what it is loaded with: ``embed``, a layer's prefix, or ``head``. ``stack``, of the routed experts'
    tensors: the key within the group of the stack of all experts that it goes to."""

    name: str
    dtypes: tuple[str, ...]
    shape: tuple[int, ...]
    op: str
    group: str
    stack: str | None = None

    @property
    def key(self) -> str:
        """The name within the group, where a routed expert's tensor stands for the stack."""
        if self.stack is not None:
            return self.stack
        return self.name if self.group in ("embed", "head") else self.name[len(self.group) + 1 :]


def inventory(config: ModelConfig, layout: Layout) -> dict[str, TensorSpec]:
    """All tensors by name, groups in the order in which they are loaded."""
    specs = _Writer(config, layout)
    everything = [*specs.ends("embed"), *specs.ends("head")]
    for layer in schedule(config):
        everything += specs.layer(layer)
    order = {group: place for place, group in enumerate(groups(config))}
    return {spec.name: spec for spec in sorted(everything, key=lambda spec: order[spec.group])}


def groups(config: ModelConfig) -> tuple[str, ...]:
    """The groups in loading order: embedding, main layers, head, MTP layer."""
    layers = [layer.prefix for layer in schedule(config)]
    main = config.num_hidden_layers
    return ("embed", *layers[:main], "head", *layers[main:])


class _Writer:
    """Writes specs of one configuration; the methods follow the table of dsv4-reference §14.1."""

    def __init__(self, config: ModelConfig, layout: Layout) -> None:
        self.config, self.layout = config, layout
        self.wide = ("F32",) if layout.name == "plain" and config.torch_dtype == "float32" else ("BF16",)

    def ends(self, group: str) -> Iterator[TensorSpec]:
        c = self.config
        if group == "embed":
            yield TensorSpec("embed.weight", self.wide, (c.vocab_size, c.hidden_size), "embed", group)
            return
        yield TensorSpec("head.weight", self.wide, (c.vocab_size, c.hidden_size), "lm_head", group)
        yield TensorSpec("norm.weight", self.wide, (c.hidden_size,), "rms_norm", group)
        yield from self.head_mix(group, "")

    def layer(self, layer: LayerSchedule) -> Iterator[TensorSpec]:
        c, group = self.config, layer.prefix
        yield from self.mix(group, "hc_attn")
        yield self.norm(group, "attn_norm.weight", c.hidden_size)
        yield from self.attention(layer)
        yield from self.mix(group, "hc_ffn")
        yield self.norm(group, "ffn_norm.weight", c.hidden_size)
        yield from self.moe(layer)
        if layer.is_mtp:
            for name in ("e_proj", "h_proj"):
                yield from self.linear(group, name, c.hidden_size, c.hidden_size, self.layout.mtp_projections)
            for name in ("enorm", "hnorm", "norm"):
                yield self.norm(group, f"{name}.weight", c.hidden_size)
            yield from self.head_mix(group, f"{group}.")

    def attention(self, layer: LayerSchedule) -> Iterator[TensorSpec]:
        c, group = self.config, layer.prefix
        form = self.layout.mtp_attention if layer.is_mtp else self.layout.attention
        heads = c.num_attention_heads * c.head_dim
        yield TensorSpec(f"{group}.attn.attn_sink", ("F32",), (c.num_attention_heads,), "sparse_attention", group)
        yield from self.linear(group, "attn.wq_a", c.q_lora_rank, c.hidden_size, form)
        yield self.norm(group, "attn.q_norm.weight", c.q_lora_rank)
        yield from self.linear(group, "attn.wq_b", heads, c.q_lora_rank, form)
        yield from self.linear(group, "attn.wkv", c.head_dim, c.hidden_size, form)
        yield self.norm(group, "attn.kv_norm.weight", c.head_dim)
        latent = c.o_groups * c.o_lora_rank
        yield from self.linear(group, "attn.wo_a", latent, c.group_width, form, op="grouped_output")
        yield from self.linear(group, "attn.wo_b", c.hidden_size, latent, form, op="grouped_output")
        if layer.has_compressor:
            yield from self.compressor(layer, "attn.compressor", c.head_dim)
        if layer.has_indexer:
            width = c.index_n_heads * c.index_head_dim
            yield from self.linear(group, "attn.indexer.wq_b", width, c.q_lora_rank, form, op="indexer_q")
            name = f"{group}.attn.indexer.weights_proj.weight"
            yield TensorSpec(name, self.wide, (c.index_n_heads, c.hidden_size), "indexer_q", group)
            yield from self.compressor(layer, "attn.indexer.compressor", c.index_head_dim)

    def compressor(self, layer: LayerSchedule, name: str, width: int) -> Iterator[TensorSpec]:
        group, channels = layer.prefix, layer.overlap * width
        yield TensorSpec(f"{group}.{name}.ape", ("F32",), (layer.ratio, channels), "compressor", group)
        for part in ("wkv", "wgate"):
            shape = (channels, self.config.hidden_size)
            yield TensorSpec(f"{group}.{name}.{part}.weight", self.wide, shape, "compressor", group)
        yield TensorSpec(f"{group}.{name}.norm.weight", self.wide, (width,), "compressor", group)

    def moe(self, layer: LayerSchedule) -> Iterator[TensorSpec]:
        c, group = self.config, layer.prefix
        gate = f"{group}.ffn.gate"
        yield TensorSpec(f"{gate}.weight", self.wide, (c.n_routed_experts, c.hidden_size), "router", group)
        if layer.router == "hash":
            yield TensorSpec(f"{gate}.tid2eid", ("I64",), (c.vocab_size, c.num_experts_per_tok), "router", group)
        else:
            yield TensorSpec(f"{gate}.bias", ("F32",), (c.n_routed_experts,), "router", group)
        shared = self.layout.mtp_shared if layer.is_mtp else self.layout.shared
        yield from self.expert(group, "ffn.shared_experts", shared, "linear")
        routed = self.layout.mtp_experts if layer.is_mtp else self.layout.experts
        for expert in range(c.n_routed_experts):
            yield from self.expert(group, f"ffn.experts.{expert}", routed, "experts", stack="ffn.experts")

    def expert(self, group: str, name: str, form: Format, op: str, *, stack: str | None = None) -> Iterator[TensorSpec]:
        inner, outer = self.config.moe_intermediate_size, self.config.hidden_size
        for part in PROJECTIONS:
            rows, columns = (outer, inner) if part == "w2" else (inner, outer)
            place = None if stack is None else f"{stack}.{part}"
            yield from self.linear(group, f"{name}.{part}", rows, columns, form, op=op, stack=place)

    def linear(
        self,
        group: str,
        name: str,
        rows: int,
        columns: int,
        form: Format,
        *,
        op: str = "linear",
        stack: str | None = None,
    ) -> Iterator[TensorSpec]:
        for part, dtypes, shape in self.parts(rows, columns, form):
            place = None if stack is None else f"{stack}.{part}"
            yield TensorSpec(f"{group}.{name}.{part}", dtypes, shape, op, group, place)

    def parts(self, rows: int, columns: int, form: Format) -> list[tuple[str, tuple[str, ...], tuple[int, ...]]]:
        """What a linear [rows, columns] consists of in this format."""
        if form is Format.PLAIN:
            return [("weight", self.wide, (rows, columns))]
        if form is Format.FP8_BLOCK:
            blocks = (-(-rows // FP8_BLOCK), -(-columns // FP8_BLOCK))
            return [("weight", ("F8_E4M3",), (rows, columns)), ("scale", ("F8_E8M0",), blocks)]
        if form is Format.MXFP4:
            blocks = (rows, columns // MXFP4_BLOCK)
            return [("weight", PACKED, (rows, columns // 2)), ("scale", ("F8_E8M0",), blocks)]
        return [
            ("weight", PACKED[::-1], (rows, columns // 2)),
            ("weight_scale", ("F8_E4M3",), (rows, columns // NVFP4_BLOCK)),
            ("weight_scale_2", ("F32",), ()),
            ("input_scale", ("F32",), ()),
        ]

    def mix(self, group: str, name: str) -> Iterator[TensorSpec]:
        c = self.config
        yield TensorSpec(f"{group}.{name}_fn", ("F32",), (c.stream_mixes, c.hc_mult * c.hidden_size), "mhc_pre", group)
        yield TensorSpec(f"{group}.{name}_base", ("F32",), (c.stream_mixes,), "mhc_pre", group)
        yield TensorSpec(f"{group}.{name}_scale", ("F32",), (3,), "mhc_pre", group)

    def head_mix(self, group: str, before: str) -> Iterator[TensorSpec]:
        c = self.config
        shape = (c.hc_mult, c.hc_mult * c.hidden_size)
        yield TensorSpec(f"{before}hc_head_fn", ("F32",), shape, "mhc_head", group)
        yield TensorSpec(f"{before}hc_head_base", ("F32",), (c.hc_mult,), "mhc_head", group)
        yield TensorSpec(f"{before}hc_head_scale", ("F32",), (1,), "mhc_head", group)

    def norm(self, group: str, name: str, width: int) -> TensorSpec:
        return TensorSpec(f"{group}.{name}", self.wide, (width,), "rms_norm", group)
