"""A wrong spec ends in one line: file, line, field, what was found, what would be valid."""

import re

import pytest

from dsv4.generator.spec import SpecError, default_plans, load_arch, load_model, load_op, plan, read_op

GOOD = """\
op: scale
doc: y = a x
template: {sm_90a: norm/scale.py.j2}
dims:
  T: {dynamic: any, min: 0}
  d: {static: [64, 96], multiple_of: 8, max: 4096}
tensors:
  x: {shape: [T, d], dtype: bf16}
outputs:
  y: {shape: [T, d], dtype: bf16}
variants:
  pdl: [false, true]
tunables:
  tile: [32, 64]
  order: [rows, columns]
let:
  threads: 2 * tile
constraints:
  - {check: order != 'columns' or tile == 64, reason: tile = 64}
storage:
  sm_90a:
    smem:
      - {name: row, dtype: f32, elements: threads}
    roles:
      - {name: all, warps: threads // 32}
numerics: {reference: scale, class: exact, tolerance: {ulp_bf16: 1}}
defaults:
  sm_90a: {tile: 32, order: rows}
build:
  - dims: {d: [64]}
"""


def error_of(text):
    with pytest.raises(SpecError) as caught:
        read_op(text, "specs/ops/scale.yaml")
    return caught.value


def changed(old, new):
    assert GOOD.count(old) == 1, old
    return GOOD.replace(old, new)


def test_the_unchanged_spec_is_good():
    assert read_op(GOOD, "specs/ops/scale.yaml").op == "scale"


@pytest.mark.parametrize(
    "old, new, line, field, valid",
    [
        ("doc: y = a x\n", "", 1, "doc", "one sentence"),
        ("doc: y = a x", "dok: y = a x", 2, "dok", "did you mean doc?"),
        ("dtype: bf16}\noutputs", "dtype: bf17}\noutputs", 8, "tensors.x.dtype", "did you mean bf16?"),
        ("shape: [T, d], dtype: bf16}\nv", "shape: [T, n], dtype: bf16}\nv", 10, "outputs.y.shape[1]", "T, d"),
        ("tile: [32, 64]", "tile: [32, 1.5]", 14, "tunables.tile", "integers, true/false, names"),
        ("tile: [32, 64]", "tile: [32, [64]]", 14, "tunables.tile", "integers"),
        ("tile: [32, 64]", "tile: [1..100000]", 14, "tunables.tile", "at most 256 values"),
        ("tile: [32, 64]", "tile: [32, true]", 14, "tunables.tile", "values of one kind"),
        ("tile: [32, 64]", "ti__le: [32]", 14, "tunables.ti__le", "a name of letters"),
        ("dtype: bf16}\noutputs", "dtype: bf16, optional: tile}\noutputs", 8, "tensors.x.optional", "pdl"),
        ("tile: [32, 64]", "tile: [32, 32]", 14, "tunables.tile", "without repetitions"),
        ("tile: 32, order", "tile: 48, order", 28, "defaults.sm_90a.tile", "32, 64"),
        ("tile: 32, order: rows", "order: rows", 28, "defaults.sm_90a", "tile: one of its values"),
        ("build:", "buckets: [{sizes: {d: [0, 9]}, set: {tile: 64}}]\nbuild:", 29, "buckets[0].sizes.d", "T"),
        ("build:", "buckets: [{sizes: {T: [9, 0]}, set: {tile: 64}}]\nbuild:", 29, "buckets[0].sizes", "or null"),
        ("build:", "buckets: [{sizes: {T: [0, 9]}, set: {tile: 48}}]\nbuild:", 29, "buckets[0].set.tile", "32, 64"),
        ("build:", "buckets: [{sizes: {T: [0, 9]}, set: {til: 64}}]\nbuild:", 29, "buckets[0].set.til", "tile"),
        ("build:", "buckets: [{sizes: {}, set: {tile: 64}}]\nbuild:", 29, "buckets[0].sizes", "at least 1"),
        ("build:", "buckets: [{sizes: {T: [0]}, set: {tile: 64}}]\nbuild:", 29, "buckets[0].sizes.T", ""),
        ("static: [64, 96]", "static: [64, 100]", 6, "dims.d.static", "multiples of 8 from 1 to 4096"),
        ("static: [64, 96]", "static: [64], dynamic: any", 6, "dims.d", "exactly one of"),
        ("dims: {d: [64]}", "dims: {d: [68]}", 30, "build[0].dims.d", "multiples of 8"),
        ("dims: {d: [64]}", "dims: {T: [64]}", 30, "build[0].dims.T", "d"),
        ("'columns' or", "'colums' or", 19, "constraints[0].check", "did you mean columns?"),
        ("tile == 64,", "tyle == 64,", 19, "constraints[0].check", "did you mean tile?"),
        ("elements: threads}", "elements: T}", 23, "storage.sm_90a.smem[0].elements", "threads"),
        ("elements: threads}", "size: 4}", 23, "storage.sm_90a.smem[0].size", "name, bytes"),
        ("warps: threads // 32", "warps: threads ** 2", 25, "storage.sm_90a.roles[0].warps", "an expression of"),
        ("template: {sm_90a:", "template: {sm_80:", 3, "template.sm_80", "sm_100a, sm_90a"),
        ("norm/scale.py.j2", "../../etc/passwd", 3, "template.sm_90a", "family/name.py.j2"),
        ("op: scale", "op: 'scale; import os'", 1, "op", "a name of letters"),
        ("  x: {shape", "  x.__class__: {shape", 8, "tensors.x.__class__", "a name of letters"),
        ("order: [rows, columns]", "order: [rows, \"'); os.system('x\"]", 15, "tunables.order", "a name of letters"),
        ("class: exact, ", "", 26, "numerics.class", "accumulation class"),
        ("pdl: [false, true]", "tile: [false, true]", 14, "tunables.tile", "a name that is not one of variants's"),
    ],
)
def test_one_line_with_file_line_field_found_and_valid(old, new, line, field, valid):
    text = str(error_of(changed(old, new)))
    assert "\n" not in text
    assert text.startswith(f"specs/ops/scale.yaml:{line}: {field}"), text
    assert ": found " in text and "; valid: " in text
    assert valid in text.split("; valid: ")[1], text


@pytest.mark.parametrize(
    "bad, found",
    [
        ("doc: !!python/object/apply:os.system [echo]", "the YAML tag"),
        ("doc: !!str y", "the YAML tag"),
        ("doc: &a y", "alias or anchor"),
        ("doc: *a", "alias or anchor"),
        ("<<: {doc: y}", "a merge key"),
        ("doc: y\ndoc: z", "the same key twice"),
        ("? [a, b]\n: c", "a key that is not a plain name"),
        ("doc: [", "expected"),
        ("doc: " + "[" * 40 + "]" * 40, "deeper nesting"),
        ("doc: y\n---\ndoc: z", "a second document"),
    ],
)
def test_only_plain_data_is_read(bad, found):
    error = error_of(f"op: scale\n{bad}\n")
    assert found in str(error) and re.match(r"specs/ops/scale\.yaml:\d+: ", str(error)), error
    assert "\n" not in str(error)


def test_an_alias_bomb_is_refused_before_it_grows():
    bomb = "a: &a [x, x]\n" + "".join(f"{b}: &{b} [*{a}, *{a}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True))
    assert "alias or anchor" in str(error_of(bomb))


def test_an_empty_a_large_and_a_scalar_file():
    assert "nothing" in str(error_of(""))
    assert "at most 262144 bytes" in str(error_of("x" * 300_000))
    assert "one YAML mapping" in str(error_of("- a\n- b\n"))


def test_the_first_of_several_errors_is_told_with_their_number():
    text = str(error_of(changed("tile: [32, 64]", "tile: []").replace("dtype: bf16}\noutputs", "dtype: 7}\noutputs")))
    assert text.startswith("specs/ops/scale.yaml:8: tensors.x.dtype") and text.endswith("(and 1 more wrong field)")


@pytest.mark.parametrize("multiple, found", [("0", "found 0; valid: a positive integer"), ("T", "the name T in 'T'")])
def test_a_stride_multiple_is_a_number_that_flags_may_decide(multiple, found):
    x = "x: {shape: [T, d], dtype: bf16, strides: [any, 1]"
    error = error_of(changed("x: {shape: [T, d], dtype: bf16", f"{x}, stride_multiple: {multiple}"))
    assert (error.line, error.field) == (8, "tensors.x.stride_multiple") and found in str(error)
    spec = read_op(changed("x: {shape: [T, d], dtype: bf16", f"{x}, stride_multiple: 8 if pdl else 4"), "scale.yaml")
    for pdl, multiple in ((False, 4), (True, 8)):
        found = plan(spec, "sm_90a", variant={"pdl": pdl}).contract.arguments[0]
        assert (found.name, found.stride_multiple) == ("x", multiple)


def test_a_bucket_is_a_default_kernel_of_its_own_for_some_sizes():
    text = changed("build:", "buckets: [{sizes: {T: [5, null]}, when: d == 64 and pdl, set: {tile: 64}}]\nbuild:")
    spec = read_op(text.replace("dims: {d: [64]}", "variants: {pdl: [false, true]}"), "scale.yaml")
    made = [
        (each.dims["d"], each.variant["pdl"], each.config["tile"], each.bucket)
        for each in default_plans(spec, "sm_90a")
    ]
    assert made == [
        (64, False, 32, {}),
        (64, True, 32, {}),
        (64, True, 64, {"T": (5, None)}),
        (96, False, 32, {}),
        (96, True, 32, {}),
    ]
    assert all(each.is_default for each in default_plans(spec, "sm_90a"))
    assert not plan(spec, "sm_90a", dims={"d": 64}, config={"tile": 64}).is_default


def test_words_that_yaml_1_1_would_change_stay_words():
    spec = read_op(changed("doc: y = a x", "doc: no"), "specs/ops/scale.yaml")
    assert spec.doc == "no"


@pytest.mark.parametrize("load, name", [(load_op, "fhma"), (load_arch, "sm_80"), (load_model, "../ops/fmha")])
def test_unknown_names_list_what_exists(load, name):
    with pytest.raises(SpecError, match=r"found .*; valid: "):
        load(name)
