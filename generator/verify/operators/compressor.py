"""compressor: the compressed entries that a step completes, in rows of a pool, and the rows of state that it leaves.

The rule: an entry is held to the float64 result of the same gather, unrounded until it is stored. Packed rows: at most
one code step on at most 0.1 % of the codes, scales equal unless the block's largest magnitude lies within two float32
units of where the scale doubles; bf16 numbers are the correctly rounded ones but for 0.1 %, and never further off than
float32 explains. Rows of state are copies and one float32 addition, so equal to the bit. Every other byte of pool and
state stays as it was.

Most plans are those of the model (``compression_plans``); the state before is random, as steps before would leave it.
"""

from __future__ import annotations

import math

import torch

from dsv4.generator.verify import judging
from dsv4.generator.verify.case import Case, Value, Verdict
from dsv4.generator.verify.compression_plans import CompressionPlan, planned
from dsv4.generator.verify.pages import bytes_differ, judge_pages
from dsv4.generator.verify.unit_rows import WIDTH, unit_rows
from dsv4.runtime.artifact import Scalar
from dsv4.runtime.pool import Pool, PoolFormat, page_bytes
from dsv4.runtime.reference import pages
from dsv4.runtime.reference.compressor import Compression
from dsv4.runtime.reference.compressor import compressor as reference

ROTARY = 64
THOROUGH_CASES = (1, 2)
"""Chunks from anywhere, and drafts (numbers in the list without empty cases)."""

WORKLOAD_SIZES = {"T": 64, "length": 1, "spare": 1}
"""T tokens in sequences of ``length`` each, spread over phases, in a cache that takes ``spare`` of them back."""

BACKGROUND = 0xA5
"""What the pool's bytes are before: none of them may change outside the rows that are written."""
HUGE = 1e40
"""An eps beside which a mean of squares is nothing."""
PLAN = ("phase", "fresh", "stored", "entry_rows", "state_rows")


def cases(
    dims: dict[str, int], variant: dict[str, Scalar], *, config: dict[str, Scalar], seed: int, device: torch.device
) -> list[Case]:
    ratio = dims["m"]
    made = _Cases(dims, variant, seed, device)
    chunks, drafts, decoding = _chunks(ratio)
    made.add("a step of every length from the beginning: nothing is stored", planned(ratio, _from_zero(ratio)))
    made.add(
        "chunks from anywhere, without rows to spare: tokens take the rows of others", planned(ratio, chunks, spare=0)
    )
    made.add("drafts after every phase, three to spare", planned(ratio, drafts, spare=3), page=5)
    made.add("decoding: most sequences complete nothing", planned(ratio, decoding, padding=2))
    made.add("one long chunk after a short one", planned(ratio, [(0, 3), (ratio - 1, 2 * ratio + 41)], spare=2), page=1)
    made.add("products with gaps between rows", planned(ratio, [(ratio - 2, ratio + 5)]), gap=24)
    made.add("no sequence has a place: nothing is written", planned(ratio, [], padding=5))
    by_hand = hand_made(ratio, dims["D"], seed)
    made.add("entries of absent, stored and fresh tokens by hand, in any order", by_hand)
    few = planned(ratio, [(ratio - 2, 2), (2 * ratio - 1, 1), (3 * ratio, 1), (ratio - 3, 3)], spare=2)
    made.add("one token decides, of scores up to 80", few, score_size=30.0)
    made.add("all scores equal, large and small values", few, score_size=0.0, value_size=1e4)
    made.add("tiny values: eps counts", few, value_size=1e-3, eps=1e-5)
    made.add("NaN in one sequence, infinity in another", few, strange=True)
    if dims["D"] == WIDTH and not variant["hadamard"]:
        made.add_copies("entries of one token that stay as they are: the pool's bytes are the quantiser's")
    if config.get("state_ctas") == 132 or dims["D"] == 128:
        made.add("more tokens than CTAs that keep them", planned(ratio, [(5, 601), (3, 1)]))
    return made.list


def _from_zero(ratio: int) -> list[tuple[int, int]]:
    return [(0, length) for length in ((1, 2, 3, 5, 17, 127) if ratio == 4 else (1, 127, 128, 129, 300))]


def _chunks(ratio: int) -> tuple[list[tuple[int, int]], list[tuple[int, int]], list[tuple[int, int]]]:
    """(first, length) of sequences in three steps: prefill from anywhere, drafts, decoding."""
    if ratio == 4:
        chunks = [(first, 9 - first % 3) for first in range(1, 9)] + [(18, 1), (19, 2), (21, 17)]
        return chunks, [(first, 4) for first in range(13)], [(first, 1) for first in (0, 3, 4, 5, 6, 7, 11, 14, 15)]
    chunks = [(1, 130), (100, 60), (127, 1), (129, 126), (255, 4), (130, 20)]
    return chunks, [(125, 4), (124, 4), (126, 4), (253, 4), (0, 4)], [(126, 1), (127, 1), (0, 1), (383, 1), (128, 1)]


class _Cases:
    """The list of cases, and the generator that all their numbers come from."""

    def __init__(self, dims: dict[str, int], variant: dict[str, Scalar], seed: int, device: torch.device) -> None:
        self.width, self.ratio, self.variant, self.device = dims["D"], dims["m"], variant, device
        self.channels = self.width * (2 if self.ratio == 4 else 1)
        self.generator = torch.Generator(device="cpu").manual_seed(seed)
        self.list: list[Case] = []

    def normal(self, *shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=self.generator)

    def products(self, tokens: int, scale: float, gap: int) -> torch.Tensor:
        """[tokens, channels] with ``gap`` NaN after each row, which nobody may read."""
        dtype = torch.float32 if self.variant["inputs"] == "f32" else torch.bfloat16
        padded = torch.full((tokens, self.channels + gap), math.nan, dtype=dtype)
        padded[:, : self.channels] = (scale * self.normal(tokens, self.channels)).to(dtype)
        return padded

    def add(
        self,
        name: str,
        plan: CompressionPlan,
        *,
        value_size: float = 1.0,
        score_size: float = 1.5,
        gap: int = 0,
        page: int = 64,
        eps: float = 1e-6,
        strange: bool = False,
    ) -> None:
        compression, tokens = plan.compression, plan.compression.phase.shape[0]
        kv, score = self.products(tokens, value_size, gap), self.products(tokens, score_size, gap)
        state = torch.cat(
            (
                value_size * self.normal(plan.state_rows, self.channels),
                score_size * self.normal(plan.state_rows, self.channels),
            ),
            dim=-1,
        )
        if strange:
            kv[0, self.channels - 3], score[2, self.channels - 5] = math.nan, math.inf
        inputs: dict[str, Value] = {
            "kv": kv.to(self.device)[:, : self.channels],
            "score": score.to(self.device)[:, : self.channels],
            "ape": (0.5 * min(score_size, 1.0) * self.normal(self.ratio, self.channels)).to(self.device),
            "norm": (1 + 0.3 * self.normal(self.width)).to(torch.bfloat16).to(self.device),
            "cos_sin": plan.cos_sin.to(self.device),
            **{each: getattr(compression, each).to(self.device) for each in PLAN},
            "page": page,
            "apart": int(plan.apart),
            "eps": eps,
        }
        pool = make_pool(self.variant, self.width, plan.pool_rows, page, self.device)
        self.list.append(make_case(self.variant, name, inputs, state.to(self.device), pool))

    def add_copies(self, name: str) -> None:
        """Entries of one token each, which norm and rotation leave as it is."""
        plan = copies(self.ratio)
        count = plan.compression.phase.shape[0]
        halves = self.channels // self.width
        kv = torch.cat([unit_rows(count, self.generator) for _ in range(halves)], dim=-1)
        dtype = torch.float32 if self.variant["inputs"] == "f32" else torch.bfloat16
        compression = plan.compression
        inputs: dict[str, Value] = {
            "kv": kv.to(dtype).to(self.device),
            "score": self.products(count, 1.5, 0).to(self.device),
            "ape": self.normal(self.ratio, self.channels).to(self.device),
            "norm": torch.ones(self.width, dtype=torch.bfloat16, device=self.device),
            "cos_sin": plan.cos_sin.to(self.device),
            **{each: getattr(compression, each).to(self.device) for each in PLAN},
            "page": 5,
            "apart": 1,
            "eps": 0.0,
        }
        pool = make_pool(self.variant, self.width, plan.pool_rows, 5, self.device)
        state = self.normal(plan.state_rows, 2 * self.channels)
        self.list.append(make_case(self.variant, name, inputs, state.to(self.device), pool, exact=True))


def make_case(
    variant: dict[str, Scalar],
    name: str,
    inputs: dict[str, Value],
    state: torch.Tensor,
    pool: Pool,
    exact: bool = False,
) -> Case:
    expected = expected_float64(inputs, state, rotate_hadamard=bool(variant["hadamard"]))
    rows = _tensor(inputs, "entry_rows")
    written = Pool(pool.data.clone(), pool.format, pool.page)
    pages.write_rows(written, rows[rows >= 0], expected["entries"][rows >= 0])
    name_of_pool = pool_name(variant)
    expected[name_of_pool] = flat(written)
    return Case(
        op="compressor",
        name=name,
        inputs=inputs,
        outputs={},
        expected=expected,
        limits={"format": float(list(FORMATS).index(str(variant["format"]))), "exact": float(exact)},
        inouts={"state": state, name_of_pool: flat(pool)},
    )


def expected_float64(
    inputs: dict[str, Value], state: torch.Tensor, *, rotate_hadamard: bool
) -> dict[str, torch.Tensor]:
    """``entries`` float64 [N, D], ``error`` [N, D], what float32 may be off them, and ``state`` float32 afterwards.

    ``error`` is 2^-20 of Σ weight · |value|, taken through norm, rotation and transform: where the values of a channel
    cancel, it is more than rounding.
    """
    compression = Compression(
        phase=_tensor(inputs, "phase"),
        fresh=_tensor(inputs, "fresh"),
        stored=_tensor(inputs, "stored"),
        entry_rows=_tensor(inputs, "entry_rows"),
        state_rows=_tensor(inputs, "state_rows"),
    )
    kv, score, ape = _tensor(inputs, "kv"), _tensor(inputs, "score"), _tensor(inputs, "ape")
    norm, cos_sin = _tensor(inputs, "norm"), _tensor(inputs, "cos_sin")
    eps = inputs["eps"]
    assert isinstance(eps, float)
    eps32 = float(torch.tensor(eps, dtype=torch.float32))
    count, width, channels = compression.entry_rows.shape[0], norm.shape[0], kv.shape[1]
    numbered = compression._replace(entry_rows=torch.arange(count, device=kv.device))
    still = torch.zeros_like(cos_sin)
    still[:, : ROTARY // 2] = 1.0

    def run(values: torch.Tensor, kept: torch.Tensor, **given: torch.Tensor) -> torch.Tensor:
        into = Pool.allocate(count, page=1, width=width, dtype=torch.float64, device=kv.device)
        weight, turns = given.get("norm", norm), given.get("cos_sin", cos_sin)
        hadamard, size = rotate_hadamard and not given, HUGE if given else eps32
        common = {"eps": size, "rotate_hadamard": hadamard, "dtype": torch.float64}
        reference(values.double(), score.double(), ape, weight, turns, kept.clone(), into, numbered, **common)  # type: ignore[arg-type]
        return into.data.view(-1, width)[:count]

    def mean(values: torch.Tensor, kept: torch.Tensor) -> torch.Tensor:
        """Before the norm: beside a huge eps it is a division by a number."""
        return run(values, kept, norm=torch.ones_like(norm), cos_sin=still) * math.sqrt(HUGE)

    before = state.double()
    magnitudes = torch.cat((before[:, :channels].abs(), before[:, channels:]), dim=-1)
    scale = norm.double().abs() * (mean(kv, before).square().mean(dim=-1, keepdim=True) + eps32).rsqrt()
    size = mean(kv.abs(), magnitudes) * scale
    pairs = size[:, -ROTARY:].unflatten(-1, (-1, 2)).norm(dim=-1).repeat_interleave(2, dim=-1)
    size = torch.cat((size[:, :-ROTARY], pairs), dim=-1)
    if rotate_hadamard:
        size = size.square().mean(dim=-1, keepdim=True).sqrt().expand_as(size)
    after = state.clone()
    gates = score.to(torch.float32) + ape[compression.phase]
    is_kept = compression.state_rows >= 0
    after[compression.state_rows[is_kept]] = torch.cat((kv.to(torch.float32), gates), dim=-1)[is_kept]
    return {"entries": run(kv, before), "error": 2.0**-20 * size, "state": after}


def judge(got: dict[str, torch.Tensor], case: Case) -> Verdict:
    """The module's rule; the figures are those of what the written rows say."""
    rows, expected = _tensor(case.inputs, "entry_rows"), case.expected["entries"]
    (name,) = (each for each in case.inouts if each != "state")
    after, before = as_pool(got[name], case), as_pool(case.inouts[name], case)
    if after.format is PoolFormat.PLAIN:
        written = rows[rows >= 0]
        said = got[name][written].to(torch.float64)
        findings = judging.bf16_within(name, got[name][written], expected[rows >= 0], case.expected["error"][rows >= 0])
        elsewhere = got[name].view(torch.int16) != case.inouts[name].view(torch.int16)
        elsewhere[written] = False
        if elsewhere.any():
            findings.append(f"{name}: {int(elsewhere.sum())} numbers that were not to be written have changed")
    else:
        pool = judge_pages(after, before.data, rows, expected, name=name)
        findings, said = list(pool.findings), pool.values
    if case.limits["exact"]:
        findings += bytes_differ(got[name], case.expected[name], name)
    state, wanted = got["state"].contiguous(), case.expected["state"]
    wrong = state.view(torch.int32) != wanted.view(torch.int32)
    if wrong.any():
        row, column = wrong.nonzero()[0].tolist()
        findings.append(
            f"state: {int(wrong.sum())} of {wrong.numel()} numbers are wrong, the first at [{row}, {column}]: "
            f"{float(state[row, column]):.9g} instead of {float(wanted[row, column]):.9g}"
        )
    return judging.verdict(said, expected[rows >= 0], findings)


def first_wrong(
    got: dict[str, torch.Tensor], case: Case, config: dict[str, Scalar]
) -> tuple[str, tuple[int, ...], str] | None:
    """The first number of state that is wrong, else the first byte (or bf16) of the pool that is not the expected."""
    wrong = got["state"].contiguous().view(torch.int32) != case.expected["state"].view(torch.int32)
    if wrong.any():
        row, column = wrong.nonzero()[0].tolist()
        half = "score" if column >= wrong.shape[1] // 2 else "kv"
        return "state", (row, column), f"row {row} of the state, its {half}"
    (name,) = (each for each in case.inouts if each != "state")
    mine, theirs = got[name], case.expected[name]
    different = (mine != theirs) & ~((mine != mine) & (theirs != theirs))
    if not different.any():
        return None
    row, column = different.nonzero()[0].tolist()
    return name, (row, column), "the pool's " + ("page" if name == "pool" else "row") + f" {row}"


def workload(
    dims: dict[str, int], variant: dict[str, Scalar], sizes: dict[str, int], *, seed: int, device: torch.device
) -> dict[str, Value]:
    """Random products for sequences that begin at phases spread over 0 … m − 1, a few entries after the first."""
    ratio, width, length = dims["m"], dims["D"], sizes["length"]
    count = -(-sizes["T"] // length)
    chunks = [(2 * ratio + index * ratio // max(count, 1) % ratio, length) for index in range(count)]
    plan = planned(ratio, chunks, spare=sizes["spare"])
    channels = width * (2 if ratio == 4 else 1)
    generator = torch.Generator(device=device).manual_seed(seed)
    dtype = torch.float32 if variant["inputs"] == "f32" else torch.bfloat16

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, device=device)

    pool = make_pool(variant, width, plan.pool_rows, 64, device)
    return {
        "kv": normal(count * length, channels).to(dtype),
        "score": normal(count * length, channels).to(dtype),
        "ape": normal(ratio, channels),
        "norm": normal(width).to(torch.bfloat16),
        "cos_sin": plan.cos_sin.to(device),
        "state": normal(plan.state_rows, 2 * channels),
        pool_name(variant): flat(pool),
        **{each: getattr(plan.compression, each).to(device) for each in PLAN},
        "page": 64,
        "apart": int(plan.apart),
        "eps": 1e-6,
    }


# ---------------------------------------------------------------------------------------------------------------------
# Inputs


def hand_made(ratio: int, width: int, seed: int) -> CompressionPlan:
    """Six entries whose slots hold nobody, rows of state or tokens of the step in any order, in rows far apart.

    No row of state is read and written. The last entry has no member at all, the one before is not complete.
    """
    generator = torch.Generator(device="cpu").manual_seed(seed)
    slots, tokens, rows = (8 if ratio == 4 else ratio), 3 * ratio, 4 * ratio

    def choice(high: int, *shape: int) -> torch.Tensor:
        return torch.randint(high, shape, generator=generator)

    kind = choice(3, 6, slots)
    turn = torch.arange(slots) % ratio
    fresh = turn + ratio * choice(tokens // ratio, 6, slots)
    stored = choice(rows // 2, 6, slots)
    kind[5] = 0
    complete = torch.tensor([7, 0, 130, 65, -1, 9])
    angles = 6.2832 * torch.rand(6, ROTARY // 2, generator=generator)
    kept = rows // 2 + torch.randperm(rows // 2, generator=generator)
    state_rows = torch.full((tokens,), -1)
    state_rows[::2] = kept[: len(state_rows[::2])]
    return CompressionPlan(
        compression=Compression(
            phase=torch.arange(tokens) % ratio,
            fresh=torch.where(kind == 1, fresh, -1),
            stored=torch.where(kind == 2, stored, -1),
            entry_rows=complete,
            state_rows=state_rows,
        ),
        cos_sin=torch.cat((angles.cos(), angles.sin()), dim=-1),
        state_rows=rows + 1,
        pool_rows=192,
        apart=True,
    )


def copies(ratio: int) -> CompressionPlan:
    """Entries of one token each of the step, in a slot of its own; the state keeps none."""
    slots = 8 if ratio == 4 else ratio
    places = torch.arange(0, slots, max(1, slots // 8))
    fresh = torch.full((len(places), slots), -1)
    fresh[torch.arange(len(places)), places] = torch.arange(len(places)).flip(0)
    still = torch.zeros(len(places), ROTARY)
    still[:, : ROTARY // 2] = 1.0
    return CompressionPlan(
        compression=Compression(
            phase=(places % ratio).flip(0),
            fresh=fresh,
            stored=torch.full_like(fresh, -1),
            entry_rows=3 * torch.arange(len(places)) + 1,
            state_rows=torch.full((len(places),), -1),
        ),
        cos_sin=still,
        state_rows=2,
        pool_rows=3 * len(places) + 2,
        apart=True,
    )


FORMATS = {
    "kv_fp8": PoolFormat.KV_FP8,
    "index_fp8": PoolFormat.INDEX_FP8,
    "index_fp4": PoolFormat.INDEX_FP4,
    "plain": PoolFormat.PLAIN,
}


def make_pool(variant: dict[str, Scalar], width: int, rows: int, page: int, device: torch.device) -> Pool:
    """A pool of at least ``rows`` rows, full of a byte that nobody writes by accident."""
    format, count = FORMATS[str(variant["format"])], -(-rows // page) + 1
    if format is PoolFormat.PLAIN:
        data = torch.full((count, page, 2 * width), BACKGROUND, dtype=torch.uint8, device=device)
        return Pool(data.view(torch.bfloat16), format, page)
    data = torch.full((count, page_bytes(format, page)), BACKGROUND, dtype=torch.uint8, device=device)
    return Pool(data, format, page)


def pool_name(variant: dict[str, Scalar]) -> str:
    return "plain_pool" if variant["format"] == "plain" else "pool"


def flat(pool: Pool) -> torch.Tensor:
    """A pool's data as the kernel takes it: u8 [pages, page bytes], or bf16 [rows, D]."""
    return pool.data.view(-1, pool.width) if pool.format is PoolFormat.PLAIN else pool.data


def as_pool(data: torch.Tensor, case: Case) -> Pool:
    """The pool of a case, from the data as the kernel takes it."""
    page, norm = case.inputs["page"], _tensor(case.inputs, "norm")
    assert isinstance(page, int)
    format = list(FORMATS.values())[int(case.limits["format"])]
    return Pool(data.view(-1, page, norm.shape[0]) if format is PoolFormat.PLAIN else data, format, page)


def _tensor(values: dict[str, Value], name: str) -> torch.Tensor:
    found = values[name]
    assert isinstance(found, torch.Tensor)
    return found
