"""Poison: a result depends on an unwritten value in exactly the lanes where it really does. Moves and packing."""

from __future__ import annotations

import numpy as np
import pytest

from tests.emulator.scalar_machine import FULL, ScalarMachine

A, B, ACTIVE = 0x000000FF, 0x0000F0F0, 0x0FFFFFFF


def _word(value: int = 5) -> np.ndarray:
    return np.full(32, value, np.uint64)


def _bad(
    machine: ScalarMachine, text: str, kinds: dict[str, str], values: dict[str, int] | None = None, d: str = "b32"
) -> int:
    inputs = {name: (kind, _word((values or {}).get(name, 5))) for name, kind in kinds.items()}
    return machine.run(text, inputs, {"%d": d}, mask=ACTIVE, bad={"%a": A, "%b": B}).bad["%d"]


@pytest.mark.parametrize(
    "text", ["add.s32", "mul.f32", "max.f32", "shl.b32", "div.u32", "add.f16x2", "cvt.rn.bf16x2.f32", "prmt.b32"]
)
def test_poison_of_either_source(scalar_machine: ScalarMachine, text: str) -> None:
    last = ", 0x5410" if text == "prmt.b32" else ""
    assert _bad(scalar_machine, f"{text} %d, %a, %b{last};", {"%a": "b32", "%b": "b32"}) == (A | B) & ACTIVE


def test_prmt_takes_only_what_it_selects(scalar_machine: ScalarMachine) -> None:
    assert _bad(scalar_machine, "prmt.b32 %d, %a, %b, 0x3210;", {"%a": "b32", "%b": "b32"}) == A
    assert _bad(scalar_machine, "prmt.b32 %d, %a, %b, 0x7654;", {"%a": "b32", "%b": "b32"}) == B & ACTIVE


def test_known_zero_and_known_ones(scalar_machine: ScalarMachine) -> None:
    assert _bad(scalar_machine, "and.b32 %d, %a, 0;", {"%a": "b32"}) == 0
    assert _bad(scalar_machine, "and.b32 %d, %a, %b;", {"%a": "b32", "%b": "b32"}, {"%b": 0}) == B & ACTIVE
    assert _bad(scalar_machine, "or.b32 %d, %a, -1;", {"%a": "b32"}) == 0
    assert _bad(scalar_machine, "xor.b32 %d, %a, %a;", {"%a": "b32"}) == 0
    assert _bad(scalar_machine, "sub.s32 %d, %a, %a;", {"%a": "b32"}) == 0


def test_selp_takes_the_chosen_source(scalar_machine: ScalarMachine) -> None:
    kinds = {"%a": "b32", "%b": "b32", "%p": "pred"}
    assert _bad(scalar_machine, "selp.b32 %d, %a, %b, %p;", kinds, {"%p": 1}) == A
    assert _bad(scalar_machine, "selp.b32 %d, %a, %b, %p;", kinds, {"%p": 0}) == B & ACTIVE
    assert _bad(scalar_machine, "selp.b32 %d, %a, %b, !%p;", kinds, {"%p": 0}) == A
    assert _bad(scalar_machine, "selp.b32 %d, 1, 2, %a;", {"%a": "pred"}) == A


def test_predicates(scalar_machine: ScalarMachine) -> None:
    kinds = {"%a": "pred", "%b": "pred"}
    assert _bad(scalar_machine, "and.pred %d, %a, %b;", kinds, {"%a": 0, "%b": 0}, "pred") == A & B
    assert _bad(scalar_machine, "and.pred %d, %a, %b;", kinds, {"%a": 1, "%b": 1}, "pred") == (A | B) & ACTIVE
    assert _bad(scalar_machine, "or.pred %d, %a, %b;", kinds, {"%a": 1, "%b": 1}, "pred") == A & B
    assert _bad(scalar_machine, "setp.lt.and.s32 %d, %a, 4, %q;", {"%a": "b32", "%q": "pred"}, {"%q": 0}, "pred") == 0
    assert _bad(scalar_machine, "setp.lt.s32 %d, %a, 4;", {"%a": "b32"}, None, "pred") == A


def test_halves_of_a_pair_are_poison_apart(scalar_machine: ScalarMachine) -> None:
    inputs = {"%a": ("b32", _word(1)), "%b": ("b32", _word(2)), "%f": ("b64", _word(0x3F8000003F800000))}
    text = ".reg .b64 %t; mov.b64 %t, {%a, %b}; mul.f32x2 %t, %t, %f; mov.b64 {%d, %e}, %t;"
    outcome = scalar_machine.run(text, inputs, {"%d": "b32", "%e": "b32"}, bad={"%b": FULL})
    assert (outcome.bad["%d"], outcome.bad["%e"]) == (0, FULL)


def test_masked_lanes_keep_their_poison(scalar_machine: ScalarMachine) -> None:
    inputs = {"%d": ("b32", _word(1)), "%p": ("pred", np.arange(32, dtype=np.uint64) % 2)}
    outcome = scalar_machine.run("@!%p mov.b32 %d, 9;", inputs, {}, bad={"%d": FULL})
    assert outcome.bad["%d"] == 0xAAAAAAAA
    assert outcome.values["%d"].tolist() == [9, 1] * 16


def test_pack_and_unpack(scalar_machine: ScalarMachine) -> None:
    value = np.arange(32, dtype=np.uint64) * np.uint64(0x0123456789ABCDEF) & np.uint64((1 << 64) - 1)
    text = ".reg .b16 %h<4>; mov.b64 {%h0, %h1, %h2, %h3}, %a; mov.b64 %d, {%h3, %h2, %h1, %h0};"
    outcome = scalar_machine.run(text, {"%a": ("b64", value)}, {"%d": "b64"})
    assert outcome.values["%d"].tolist() == [
        sum((v >> (16 * k) & 0xFFFF) << (48 - 16 * k) for k in range(4)) for v in value.tolist()
    ]
    swapped = scalar_machine.run(
        ".reg .b32 %l, %h; mov.b64 {%l, %h}, %d; mov.b64 %d, {%h, %l};", {"%d": ("b64", value)}, {}
    )
    assert swapped.values["%d"].tolist() == [v >> 32 | (v & FULL) << 32 for v in value.tolist()]
    half = scalar_machine.run(
        ".reg .b16 %h; mov.b32 {_, %h}, %a; mov.b32 %d, {%h, %h};", {"%a": ("b32", _word(0xABCD1234))}, {"%d": "b32"}
    )
    assert set(half.values["%d"].tolist()) == {0xABCDABCD}


def test_setp_with_two_results(scalar_machine: ScalarMachine) -> None:
    inputs = {"%a": ("b32", np.arange(32, dtype=np.uint64)), "%c": ("pred", np.arange(32, dtype=np.uint64) % 2)}
    outcome = scalar_machine.run("setp.lt.and.s32 %p|%q, %a, 10, %c;", inputs, {"%p": "pred", "%q": "pred"})
    assert outcome.values["%p"].tolist() == [int(n < 10 and n % 2 == 1) for n in range(32)]
    assert outcome.values["%q"].tolist() == [int(n >= 10 and n % 2 == 1) for n in range(32)]
