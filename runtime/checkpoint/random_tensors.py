"""Random tensors of any layout, decided by the seed and the tensor's name: what tests and the demo load.

A linear is drawn as codes and scales of the official format, and the other layouts hold the same numbers: bf16 says
every FP8 and MXFP4 value exactly, and NVFP4 every MXFP4 one. So one seed gives one model, in whatever layout it is
written; only the linears that the official layout has in FP8 are others where they are NVFP4.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping

import torch

from dsv4.runtime.checkpoint.convert import mxfp4_to_nvfp4
from dsv4.runtime.checkpoint.inventory import TensorSpec, inventory
from dsv4.runtime.checkpoint.layouts import LAYOUTS
from dsv4.runtime.model.config import ModelConfig
from dsv4.runtime.weight import FP8_BLOCK, MXFP4_BLOCK, Format, Weight

INPUT_SCALE = 8.0 / (6.0 * 448.0)
"""Of NVFP4 linears, whose inputs are normalised: a few is the most that they reach."""

_DTYPES = {"BF16": torch.bfloat16, "F32": torch.float32, "I64": torch.int64}
_E8M0_BIAS = 127
_CODE_RMS = {Format.FP8_BLOCK: 2.0, Format.MXFP4: 2.9}


class RandomTensors:
    """The tensors of ``specs``, an inventory of ``config``; each is made when it is asked for."""

    def __init__(self, config: ModelConfig, specs: Mapping[str, TensorSpec], seed: int) -> None:
        self.config, self.specs, self.seed = config, specs, seed
        self.official = inventory(config, LAYOUTS["fp8_mxfp4"])
        self._last: tuple[str, Weight] | None = None  # a linear's tensors are asked for one after another

    def __call__(self, name: str) -> tuple[str, torch.Tensor]:
        """The dtype, in the format's words, and the tensor."""
        spec = self.specs[name]
        dtype = spec.dtypes[0]
        stem, _, part = name.rpartition(".")
        if f"{stem}.scale" in self.official:
            tensor = self._part(stem, part)
            return dtype, tensor.view(torch.int8) if dtype == "I8" else tensor
        return dtype, self._plain(spec).to(_DTYPES[dtype])

    def _generator(self, name: str) -> torch.Generator:
        digest = hashlib.sha256(f"{self.seed}/{name}".encode()).digest()
        return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)

    def _plain(self, spec: TensorSpec) -> torch.Tensor:
        """What no layout quantises."""
        key, shape, generator = spec.key, spec.shape, self._generator(spec.name)
        if key.endswith("tid2eid"):
            scores = torch.rand((shape[0], self.config.n_routed_experts), generator=generator)
            return scores.argsort(dim=-1)[:, : shape[1]]
        values = torch.randn(shape, generator=generator)
        if key.endswith(("norm.weight", "_scale")):
            return 1 + 0.1 * values
        if key.endswith(("_base", ".bias")):
            return 0.3 * values
        if key.endswith(("attn_sink", ".ape", "embed.weight")):
            return values
        return values / math.sqrt(shape[-1])

    def _part(self, stem: str, part: str) -> torch.Tensor:
        if self._last is None or self._last[0] != stem:
            self._last = stem, self._stored(stem)
        weight = self._last[1]
        tensor = {
            "weight": weight.codes,
            "scale": weight.scale,
            "weight_scale": weight.scale,
            "weight_scale_2": weight.scale_2,
            "input_scale": weight.input_scale,
        }[part]
        assert tensor is not None
        return tensor

    def _stored(self, stem: str) -> Weight:
        """The linear ``stem`` in the format that the specs say."""
        if f"{stem}.weight_scale_2" in self.specs:
            return self._nvfp4(stem)
        form = Format.FP8_BLOCK if self.official[f"{stem}.weight"].dtypes == ("F8_E4M3",) else Format.MXFP4
        weight = self._drawn(stem, form)
        if f"{stem}.scale" in self.specs:
            return weight
        return Weight.plain(weight.dequantize(_DTYPES[self.specs[f"{stem}.weight"].dtypes[0]]))

    def _drawn(self, stem: str, form: Format) -> Weight:
        """Codes at random, and scales that make a row's sum of squares about 1, up to a factor of 2 either way."""
        official = self.official[f"{stem}.weight"]
        rows, columns = official.shape
        columns *= 1 if official.dtypes == ("F8_E4M3",) else 2
        generator = self._generator(f"{stem}.weight")
        middle = _E8M0_BIAS + round(-math.log2(math.sqrt(columns) * _CODE_RMS[form]))
        if form is Format.FP8_BLOCK:
            codes = (2 * torch.randn((rows, columns), generator=generator)).to(torch.float8_e4m3fn)
            blocks = (-(-rows // FP8_BLOCK), -(-columns // FP8_BLOCK))
        else:
            codes = torch.randint(0, 256, (rows, columns // 2), dtype=torch.uint8, generator=generator)
            blocks = (rows, columns // MXFP4_BLOCK)
        scale = torch.randint(middle - 1, middle + 2, blocks, dtype=torch.uint8, generator=generator)
        return Weight(form, codes, scale.view(torch.float8_e8m0fnu))

    def _nvfp4(self, stem: str) -> Weight:
        """Gate and up share their scale of the whole matrix, as in NVIDIA's files."""
        before, _, part = stem.rpartition(".")
        names = [f"{before}.w1", f"{before}.w3"] if part in ("w1", "w3") else [stem]
        drawn = [self._drawn(name, Format.MXFP4) for name in names]
        scales = [weight.scale for weight in drawn if weight.scale is not None]
        together = Weight(
            Format.MXFP4,
            torch.cat([weight.codes for weight in drawn]),
            torch.cat([scale.view(torch.uint8) for scale in scales]).view(torch.float8_e8m0fnu),
        )
        converted = mxfp4_to_nvfp4(together)
        height = drawn[0].codes.shape[0]
        own = slice(height, 2 * height) if part == "w3" else slice(0, height)
        assert converted.scale is not None
        scale = converted.scale[own].contiguous()
        return Weight(Format.NVFP4, converted.codes[own], scale, converted.scale_2, torch.tensor(INPUT_SCALE))
