"""The bytes of packed pages, at the addresses that dsv4-reference §4.4 and §6.5 give, and the rules of rows."""

from __future__ import annotations

import pytest
import torch

from dsv4.runtime.pool import Pool, PoolFormat, page_bytes
from dsv4.runtime.reference.pages import fake_quantize, read_rows, write_rows
from dsv4.runtime.reference.quantize import fake_quantize_mxfp4


def filled(format: PoolFormat, rows: int, page: int) -> tuple[Pool, torch.Tensor]:
    torch.manual_seed(page)
    pool = Pool.allocate(rows, format=format, page=page)
    values = torch.randn(rows, pool.width).mul(3).bfloat16()
    order = torch.randperm(rows)
    write_rows(pool, order, values[order])
    return pool, values


def test_page_bytes() -> None:
    sizes = {page: page_bytes(PoolFormat.KV_FP8, page) for page in (64, 2, 256)}
    assert sizes == {64: 37440, 2: 1728, 256: 149760}
    assert page_bytes(PoolFormat.INDEX_FP8, 64) == 8640


@pytest.mark.parametrize("page", [64, 2, 53])
def test_kv_rows_byte_by_byte(page: int) -> None:
    pool, values = filled(PoolFormat.KV_FP8, 130, page)
    expected = fake_quantize(values, "fq64")
    for row in (0, 1, page - 1, page, 129):
        base, s = pool.data[row // page], row % page
        token = base[576 * s : 576 * s + 576]
        scales = base[576 * page + 8 * s : 576 * page + 8 * s + 8]
        assert scales[7] == 0
        for block in range(7):
            scale = 2.0 ** (int(scales[block]) - 127)
            code = token[64 * block : 64 * block + 64].view(torch.float8_e4m3fn).double()
            assert torch.equal(code * scale, expected[row, 64 * block : 64 * block + 64].double())
        assert torch.equal(token[448:576].view(torch.bfloat16), values[row, 448:])
    everything = read_rows(pool, torch.arange(130))
    assert torch.equal(everything, expected.float())
    assert torch.equal(read_rows(pool, torch.arange(130), dtype=torch.bfloat16), expected)


@pytest.mark.parametrize("format", [PoolFormat.INDEX_FP8, PoolFormat.INDEX_FP4])
def test_index_rows_byte_by_byte(format: PoolFormat) -> None:
    page = 64
    pool, values = filled(format, 100, page)
    width = 128 if format is PoolFormat.INDEX_FP8 else 64
    for row in (0, 63, 64, 99):
        base, s = pool.data[row // page], row % page
        body = base[width * s : width * s + width]
        tail = base[width * page + 4 * s : width * page + 4 * s + 4]
        got = read_rows(pool, torch.tensor([row]), dtype=torch.float64)[0]
        if format is PoolFormat.INDEX_FP8:
            scale = tail.view(torch.float32).double()
            assert scale.log2().frac() == 0 and 224 < values[row].abs().max().double() / scale <= 448
            assert torch.equal(got, body.view(torch.float8_e4m3fn).double() * scale)
        else:
            assert torch.equal(got, fake_quantize_mxfp4(values[row].double()))
            low, high = int(body[17]) & 15, int(body[17]) >> 4
            table = [0, 0.5, 1, 1.5, 2, 3, 4, 6]
            scale = 2.0 ** (int(tail[34 // 32]) - 127)
            signed = [(-1 if code & 8 else 1) * table[code & 7] * scale for code in (low, high)]
            assert got[34:36].tolist() == signed


@pytest.mark.parametrize("format", list(PoolFormat))
def test_none_reads_zero_and_writes_to_scratch(format: PoolFormat) -> None:
    pool = Pool.allocate(10, format=format, page=4, dtype=torch.float32, width=128)
    assert pool.rows == 12
    values = torch.full((3, pool.width), 2.0)
    write_rows(pool, torch.tensor([5, -1, -1], dtype=torch.int32), values)
    assert torch.equal(read_rows(pool, torch.tensor([5])), values[:1])
    assert not read_rows(pool, torch.tensor([0, 1, 2, 3, 4, 6, 7, 8, 9, 10])).any()
    assert torch.equal(read_rows(pool, torch.tensor([11])), values[:1])  # the scratch row has them
    got = read_rows(pool, torch.tensor([[-1, 5], [5, -1]]))
    assert got.shape == (2, 2, pool.width) and not got[0, 0].any() and not got[1, 1].any() and got[0, 1].all()


def test_none_reads_zero_beside_nan() -> None:
    pool = Pool.allocate(3, page=4, dtype=torch.float32)
    pool.data.fill_(torch.nan)
    assert torch.equal(read_rows(pool, torch.tensor([-1])), torch.zeros(1, 512))


def test_plain_pool_and_its_rounding() -> None:
    values = torch.randn(4, 512)
    plain = Pool.allocate(8, page=4, dtype=torch.float32)
    write_rows(plain, torch.arange(4), values)
    assert torch.equal(read_rows(plain, torch.arange(4)), values)
    write_rows(plain, torch.arange(4), values, fake="fq64")
    assert torch.equal(read_rows(plain, torch.arange(4)), fake_quantize(values, "fq64"))
    index = Pool.allocate(8, page=4, dtype=torch.bfloat16, width=128)
    write_rows(index, torch.arange(4), values[:, :128].bfloat16(), fake="fp4")
    expected = fake_quantize_mxfp4(values[:, :128].bfloat16())
    assert torch.equal(read_rows(index, torch.arange(4), dtype=torch.bfloat16), expected)


def test_no_rows() -> None:
    for format in PoolFormat:
        pool = Pool.allocate(0, format=format, page=2)
        write_rows(pool, torch.zeros(0, dtype=torch.int64), torch.zeros(0, pool.width))
        assert read_rows(pool, torch.zeros(3, 0, dtype=torch.int32)).shape == (3, 0, pool.width)


def test_a_pool_that_is_not_one_is_refused() -> None:
    with pytest.raises(ValueError, match=r"valid: uint8 \[pages, 1168 or more\]"):
        Pool(torch.zeros(3, 1167, dtype=torch.uint8), PoolFormat.KV_FP8, 2)
    with pytest.raises(ValueError, match=r"valid: contiguous \[pages, 2, width\]"):
        Pool(torch.zeros(3, 4, 512), PoolFormat.PLAIN, 2)
