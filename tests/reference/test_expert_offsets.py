"""The permutation that sorts routes by expert, held against loops over routes."""

from __future__ import annotations

import pytest
import torch

from dsv4.runtime.reference.expert_offsets import expert_offsets, padded_rows


@pytest.mark.parametrize(
    ("tokens", "count", "k", "align"), [(0, 8, 2, 4), (1, 8, 2, 1), (13, 5, 3, 4), (70, 16, 6, 128)]
)
def test_every_route_has_a_row_of_its_expert_in_order(tokens: int, count: int, k: int, align: int) -> None:
    generator = torch.Generator().manual_seed(tokens)
    scores = torch.rand(tokens, count, generator=generator)
    experts = scores.argsort(dim=1)[:, :k].to(torch.int32)
    experts[torch.rand(tokens, k, generator=generator) < 0.1] = -1
    found = expert_offsets(experts, count=count, align=align)
    rows_of: dict[int, list[int]] = {e: [] for e in range(count)}
    for token in range(tokens):
        for place in range(k):
            expert, row = int(experts[token, place]), int(found.route_row[token, place])
            if expert < 0:
                assert row == -1
            else:
                assert int(found.row_token[row]) == token
                rows_of[expert].append(row)
    start = 0
    for e in range(count):
        assert int(found.counts[e]) == len(rows_of[e])
        assert int(found.offsets[e]) == start and start % align == 0
        assert rows_of[e] == list(range(start, start + len(rows_of[e])))
        start += -(-len(rows_of[e]) // align) * align
    assert int(found.offsets[count]) == start
    used = sum(map(len, rows_of.values()))
    assert len(found.row_token) == padded_rows(tokens, k, count, align) >= start
    assert int((found.row_token >= 0).sum()) == used


def test_the_rows_suffice_for_the_worst_choice() -> None:
    experts = torch.arange(8, dtype=torch.int32).view(8, 1)  # one route an expert: the most padding
    found = expert_offsets(experts, count=8, align=16)
    assert int(found.offsets[8]) == 8 * 16 <= len(found.row_token)
