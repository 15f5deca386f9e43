"""Operations over long rows, against the plain formulas, in every layout and across the borders of blocks."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from longrec.nn import long_rows
from longrec.nn.long_rows import dot, map_blocks, take_each, weigh_by_dot
from longrec.nn.lookup import Use, allocate_columns, join, look_up
from longrec.nn.segments import Segments
from longrec.nn.selection import Selection, select_all, select_newest, select_older, select_top
from longrec.testing.batches import FEW, grouped, ragged, shared

BATCHES = {
    "single": ragged(8, fields=FEW, longest=20),
    "grouped": grouped([2, 0, 0, 1, 3, 3], fields=FEW),
    "shared": shared(3, 6, fields=FEW),
    "empty": ragged(2, lengths=[0, 0], fields=FEW),
}


def inputs_of(layout: str) -> tuple[Segments, Tensor, Tensor]:
    """Segments, a vector of each row and the stored events, in double precision."""
    segments = Segments.of(BATCHES[layout], "seen")
    torch.manual_seed(1)
    x_BD = torch.randn(segments.rows, 5, dtype=torch.float64, requires_grad=True)
    k_UD = torch.randn(segments.requests.positions, 5, dtype=torch.float64, requires_grad=True)
    return segments, x_BD, k_UD


@pytest.mark.parametrize("block", [1, 3, 1_000])
@pytest.mark.parametrize("layout", BATCHES)
def test_products_and_their_gradients_are_those_of_the_plain_formula(
    layout: str, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(long_rows, "_BLOCK", block)
    segments, x_BD, k_UD = inputs_of(layout)
    plain_N = segments.dot(x_BD, k_UD)
    assert torch.equal(dot(x_BD, k_UD, segments), plain_N)
    with torch.no_grad():
        torch.testing.assert_close(dot(x_BD, k_UD, segments), plain_N)
    plain_BD, (u_BD, read_UD) = segments.weighted_sum(plain_N, k_UD), weigh_by_dot(x_BD, k_UD, segments)
    assert torch.equal(read_UD, k_UD)
    torch.testing.assert_close(u_BD, plain_BD)
    g_BD = torch.randn_like(u_BD)
    for own, plain in zip(*(torch.autograd.grad(u, (x_BD, k_UD), g_BD) for u in (u_BD, plain_BD)), strict=True):
        torch.testing.assert_close(own, plain)


def test_some_columns_of_wider_events_can_be_read() -> None:
    segments, x_BD, k_UD = inputs_of("single")
    u_BD, _ = weigh_by_dot(x_BD[:, :2], k_UD[:, 1:3], segments)
    plain_BD = segments.weighted_sum(segments.dot(x_BD[:, :2], k_UD[:, 1:3]), k_UD[:, 1:3])
    torch.testing.assert_close(u_BD, plain_BD)
    own, plain = (torch.autograd.grad(u.sum(), k_UD)[0] for u in (u_BD, plain_BD))
    torch.testing.assert_close(own, plain)


@pytest.mark.parametrize("layout", BATCHES)
@pytest.mark.parametrize("reads", ["all", "some", "both", "some alone"])
def test_what_else_reads_the_history_adds_its_gradient(layout: str, reads: str) -> None:
    segments, x_BD, k_UD = inputs_of(layout)
    table = nn.Parameter(k_UD.detach())
    ids_U = torch.arange(len(table), dtype=torch.int32)

    def gradients(joined: bool) -> tuple[Tensor | None, Tensor]:
        e_UD = table[ids_U.long()]
        if joined:
            (into_UD,) = allocate_columns(table.detach(), len(table), [5])
            e_UD = join(look_up(table, [Use(ids_U, into=into_UD)]))
        u_BD = segments.weighted_sum(segments.dot(x_BD, e_UD), e_UD)
        if joined:
            u_BD, e_UD = weigh_by_dot(x_BD, e_UD, segments)
        result = torch.zeros((), dtype=torch.float64) if reads == "some alone" else u_BD.square().sum()
        if reads in ("all", "both"):
            result = result + e_UD.pow(3).sum()
        if reads != "all":
            (newest_SD,) = take_each(e_UD, [select_newest(segments, 2)])
            result = result + newest_SD.square().sum()
        of_x, of_table = torch.autograd.grad(result, (x_BD, table), allow_unused=True)
        return of_x, of_table.to_dense()

    for own, plain in zip(gradients(True), gradients(False), strict=True):
        assert (own is None) == (plain is None)
        if own is not None:
            torch.testing.assert_close(own, plain)


def test_a_function_of_positions_is_computed_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(long_rows, "_BLOCK", 4)
    sizes: list[int] = []
    x_ND = torch.randn(10, 3)
    assert torch.equal(map_blocks(lambda x: sizes.append(len(x)) or x > 0, x_ND), x_ND > 0)
    assert sizes == [4, 4, 2]


@pytest.mark.parametrize("layout", BATCHES)
def test_selections_are_gathered_together_as_apart(layout: str) -> None:
    segments, _, k_UD = inputs_of(layout)
    top = select_top(torch.randn(segments.rows * segments.positions if segments.shared else segments.positions),
                     segments, 2)  # fmt: skip
    for selections in ([select_newest(segments, 2), top, select_older(segments, 1)], [top, select_all(segments)]):
        expect_apart(k_UD, selections)


def expect_apart(k_UD: Tensor, selections: list[Selection]) -> None:
    together, apart = take_each(k_UD, selections), [selection.take(k_UD) for selection in selections]
    for own, plain in zip(together, apart, strict=True):
        assert torch.equal(own, plain)
    own, plain = (torch.autograd.grad(sum(x.square().sum() for x in xs), k_UD)[0] for xs in (together, apart))
    torch.testing.assert_close(own, plain)
