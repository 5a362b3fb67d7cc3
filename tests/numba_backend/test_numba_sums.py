"""The gradients that are sums over all steps, of few rows and of many, and the products with narrow panels."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from tritongru import environment, gru, repeats
from tritongru.backends.eager.sums import Sums
from tritongru.backends.numba import backward, plain_sums, sums
from tritongru.backends.numba.compile import Kernel
from tritongru.backends.numba.kernels import panel_sums as kernel
from tritongru.backends.numba.kernels.products import multiply
from tritongru.backends.numba.kernels.vector_type import PANEL, count_lanes
from tritongru.backends.numba.kernels.vectors import pointer
from tritongru.call.problem import Inputs

ALL, NONE = Inputs(*[True] * 5, False), Inputs(*[False] * 6)


def draw(rows: int, inputs: int, units: int, by_column: bool, dtype=torch.float32) -> tuple[Inputs, Tensor, Tensor]:
    """Return a call's inputs of one step, the gradients of its pre-activations, and the states that entered."""

    def weights(*shape: int) -> Tensor:
        return torch.randn(shape[::-1], dtype=dtype).t() if by_column else torch.randn(shape, dtype=dtype)

    x, bias, h0 = (torch.randn(shape, dtype=dtype) for shape in ((1, rows, inputs), (3 * units,), (rows, units)))
    a = Inputs(x, weights(inputs, 3 * units), bias, weights(units, 3 * units), bias, h0)
    return a, torch.randn(rows, 4 * units, dtype=dtype), torch.randn(rows, units, dtype=dtype)


def hold_against(found: Inputs, a: Inputs, wanted: Inputs, d: Tensor, entering: Tensor) -> None:
    """Compare gradients with those of float64, and their layouts with those of the weights."""
    q, zr, n = d.double().split([U := entering.shape[1], 2 * U, U], 1)
    projected, recurrent, x, h = torch.cat((zr, n), 1), torch.cat((zr, q), 1), a.x.flatten(0, -2).double(), entering
    d_x = (projected if a.w is None else projected @ a.w.double().t()).view(a.x.shape)
    right = Inputs(d_x, x.t() @ projected, projected.sum(0), h.double().t() @ recurrent, recurrent.sum(0), None)
    for name in ("x", "w", "bias_x", "u", "bias_h"):
        value = getattr(found, name)
        assert (value is not None) == (getattr(wanted, name) and getattr(a, name) is not None), name
        if value is None:
            continue
        # A sum of so many products, each partial sum rounded.
        terms = 3 * U if name == "x" else d.shape[0]
        tolerance = torch.finfo(value.dtype).eps * (terms + 8)
        torch.testing.assert_close(value.double(), getattr(right, name), rtol=tolerance, atol=tolerance, msg=name)
        if name in ("w", "u"):
            assert value.stride() == getattr(a, name).stride() or 1 in value.shape


def add_in_parts(a: Inputs, wanted: Inputs, d: Tensor, entering: Tensor, begins: list[int]) -> Inputs:
    """Return the sums, of the rows from each of `begins` on in this order."""
    found, rows = plain_sums.PlainSums(a, wanted, len(d), awake=True), a.x.flatten(0, -2)
    ends = dict(zip(sorted(begins), [*sorted(begins)[1:], len(d)], strict=True))
    for begin in begins:
        part = slice(begin, ends[begin])
        found.add(begin, rows[part], d[part], entering[part])
    return found.finish()


@pytest.fixture(autouse=True)
def in_parts(monkeypatch) -> None:
    """However little there is to compute, and if the other threads were late last time."""
    monkeypatch.setattr(sums, "LEAST_OF_AWAKE", 1)
    for module in (sums, plain_sums):
        monkeypatch.setattr(module, "may_share", lambda meets: True)


@pytest.fixture
def as_many(monkeypatch) -> None:
    """No rows are few."""
    monkeypatch.setattr(plain_sums, "is_few", lambda *_: False)


@pytest.mark.usefixtures("as_many")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("by_column", [False, True])
@pytest.mark.parametrize(("inputs", "units"), [(1, 1), (4, 5), (48, 16), (50, 40), (150, 33), (9, 100)])
def test_sums_of_many_rows(inputs: int, units: int, by_column: bool, dtype, monkeypatch) -> None:
    for rows in (1, 3, 66, 3 * kernel.BLOCK + 5, 2 * kernel.AT_ONCE + 1):
        a, d, entering = draw(rows, inputs, units, by_column, dtype)
        for wanted in (ALL, Inputs(False, True, False, True, True, False), Inputs(True, *[False] * 5), NONE):
            # Each thread packs for itself, or all what all read.
            for begins, alone_up_to in (([0], 1 << 20), ([rows // 2, 0] if rows > 1 else [0], 0)):
                monkeypatch.setattr(plain_sums, "PACKED_ALONE", alone_up_to)
                monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
                alone = add_in_parts(a, wanted, d, entering, begins)
                hold_against(alone, a, wanted, d, entering)
                for threads in (2, 7):  # no bit depends on them
                    monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
                    for found, right in zip(add_in_parts(a, wanted, d, entering, begins), alone, strict=True):
                        assert found is right is None or torch.equal(found, right)


@pytest.mark.usefixtures("as_many")
def test_sums_without_a_product_or_rows() -> None:
    a, d, entering = draw(70, 9, 3, True)
    a = a._replace(w=None)
    hold_against(plain_sums.sum_plainly(a, ALL, d, entering, False), a, ALL, d, entering)
    for rows, inputs in ((0, 4), (70, 0), (3, 0)):
        a, d, entering = draw(rows, inputs, 5, False)
        hold_against(plain_sums.sum_plainly(a, ALL, d, entering, False), a, ALL, d, entering)


@pytest.mark.usefixtures("as_many")
def test_rows_that_are_some_of_a_larger_tensor() -> None:
    a, d, entering = draw(200, 7, 6, True)
    wide = torch.randn(1, 200, 11)
    a = a._replace(x=wide[..., 2:9])
    hold_against(plain_sums.sum_plainly(a, ALL, d, entering, False), a, ALL, d, entering)


@pytest.mark.usefixtures("as_many")
def test_errors_grow_with_blocks() -> None:
    """Of very many rows the sums are more exact than those of one number after the other."""
    rows = 1 << 17
    a, d, entering = draw(rows, 1, 1, False)
    a, d = a._replace(x=a.x.abs()), d.abs()
    found = plain_sums.sum_plainly(a, ALL, d, entering, False)
    for sums_of, terms in ((found.bias_x, d[:, 1:]), (found.w[0], a.x[0] * d[:, 1:])):
        right = terms.double().sum(0)
        one_by_one = torch.from_numpy(np.cumsum(terms.numpy(), 0, dtype=np.float32)[-1])
        assert (sums_of - right).abs().max() < 0.3 * (one_by_one - right).abs().max()


@pytest.mark.parametrize("rows", [1, 3, 64, 300])
@pytest.mark.parametrize("inputs", [1, 4, 150])
@pytest.mark.parametrize("units", [1, 5, 40])
@pytest.mark.parametrize("by_column", [False, True])
def test_sums_of_few_rows(rows: int, inputs: int, units: int, by_column: bool, monkeypatch) -> None:
    a, d, entering = draw(rows, inputs, units, by_column)
    for wanted in (ALL, Inputs(False, True, False, True, True, False)):
        monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
        few = sums.sum_few_rows(a, wanted, d, entering, True)
        for threads in (2, 7):  # no bit depends on them
            monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
            for found, right in zip(sums.sum_few_rows(a, wanted, d, entering, True), few, strict=True):
                assert found is right is None or torch.equal(found, right)
        hold_against(few, a, wanted, d, entering)
    # The same states as those that left a step and that which entered the first, in either direction.
    for batch in {1, rows}:
        steps, unread = entering.view(-1, batch, units), torch.full((1, batch, units), float("nan"))
        for reverse in (False, True):
            after = torch.cat((unread, steps[:-1]) if reverse else (steps[1:], unread))
            h0 = steps[-1 if reverse else 0]
            for turned in (False, True):
                few_rows = sums.FewRows(a.x[0], a._replace(h0=h0), batch, (turned, turned), True, reverse)
                d_u = torch.empty(few.u.shape[::-1] if turned else few.u.shape)
                few_rows.run(*(t.data_ptr() for t in (d, a.x, a.w, after, h0)), 0, 0, d_u.data_ptr(), 0, 0)
                found = d_u.t() if turned else d_u
                # The sums are over the same rows in the same order, whichever of the two factors is read first.
                assert torch.equal(found, few.u)


@pytest.mark.parametrize(
    "by_column, inputs, units, large, small",
    [
        (True, 600, 512, 256, 64),  # much to compute for each row
        (False, 600, 512, 256, 64),
        (True, 200, 64, 376, 376),  # little
        (False, 8, 8, 512, 512),
        (True, 8, 512, 64, 64),  # few inputs, whose products are the slower
        (False, 8, 512, 256, 64),
        (True, 8, 200, 129, 129),
    ],
)
def test_up_to_how_many_rows_are_few(
    by_column: bool, inputs: int, units: int, large: int, small: int, monkeypatch
) -> None:
    w = draw(1, inputs, units, by_column)[0].w
    for cache, most in ((1 << 21, large), (1 << 20, small)):
        monkeypatch.setattr(environment, "second_cache", lambda cache=cache: cache)
        assert [rows for rows in range(0, 1000) if sums.is_few(rows, w, units)] == [*range(1, most + 1)]
    assert not sums.is_few(1, w[:0], units)


@pytest.mark.parametrize(("cache", "by_library"), [(1 << 21, True), (1 << 20, False)])
@pytest.mark.parametrize(("steps", "units"), [(17, 256), (16, 256), (17, 255)])
def test_many_rows_of_many_units_are_for_a_library(
    cache: int, by_library: bool, steps: int, units: int, monkeypatch
) -> None:
    """Of more rows than are few, with a large second cache; a call like an earlier one goes the same way."""
    monkeypatch.setattr(environment, "second_cache", lambda: cache)
    repeats.forget()
    made = []
    monkeypatch.setattr(backward, "Sums", lambda *arguments: made.append(arguments) or Sums(*arguments))
    leaves = [torch.randn(s) / 8 for s in ((16, steps, 4), (4, 3 * units), (units, 3 * units), (2, 3 * units))]
    leaves = [leaf.requires_grad_() for leaf in leaves]
    exact = [leaf.detach().double().requires_grad_() for leaf in leaves]
    weights = torch.randn(16, steps, units)
    right = torch.autograd.grad((gru(*exact, backend="reference")[0] * weights).sum(), exact)
    for _ in range(2):
        found = torch.autograd.grad((gru(*leaves, backend="numba")[0] * weights).sum(), leaves)
        for value, truth in zip(found, right, strict=True):
            torch.testing.assert_close(value.double(), truth, rtol=1e-4, atol=2e-5 * float(truth.abs().max()))
    expected = by_library and steps * 16 > sums.FEW_ROWS_OF_LARGE_CACHE and units >= sums.LIBRARY_UNITS
    assert len(made) == 2 * expected
    repeats.forget()


def multiply_part(plan, like):
    a, w, out, groups = (pointer(plan[0], like), pointer(plan[1], like), pointer(plan[2], like), pointer(plan[3], 0))
    K, N, end, rows, count, size, back = plan[4], plan[5], plan[6], plan[7], plan[8], plan[9], plan[10]
    multiply(a, K, 0, K, w, K, 0, end, out, N, groups, count, rows, size, back != 0)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_of_a_narrow_panel_no_more_is_computed(dtype: str) -> None:
    """Every vector is computed that was asked for, with the bits of whole panels, and nothing is written behind it."""
    number, compiled = np.dtype(dtype), Kernel(multiply_part).for_dtype(np.dtype(dtype))
    lanes = count_lanes(number.itemsize)
    random, N = np.random.default_rng(0), 2 * PANEL * lanes
    for rows, size in ((8, 4), (12, 4), (11, 4), (4, 4), (19, 4), (2, 2), (1, 1)):
        for K in (5, 700):
            a, w = random.standard_normal((rows, K)).astype(dtype), random.standard_normal((K, N)).astype(dtype)
            packed = np.ascontiguousarray(w.reshape(K, 2, N // 2).transpose(1, 0, 2))
            groups = np.arange(0, rows, size)

            def run(end: int, back: bool, a=a, packed=packed, groups=groups, K=K, rows=rows, size=size) -> np.ndarray:
                out = np.full((-(-rows // 4) * 4, N), np.nan, number)
                arrays = [array.__array_interface__["data"][0] for array in (a, packed, out, groups)]
                plan = np.array((*arrays, K, N, end, rows, len(groups), size, back), np.int64)
                compiled.call(plan.__array_interface__["data"][0], 0.0)
                return out[:rows]

            whole = run(N, False)
            assert np.abs(whole - a.astype(np.float64) @ w).max() < np.finfo(number).eps * 64 * K**0.5
            for vectors in range(1, 2 * PANEL + 1):
                for back in (False, True):
                    found = run(vectors * lanes, back)
                    assert np.array_equal(found[:, : vectors * lanes], whole[:, : vectors * lanes])
                    assert np.isnan(found[:, -(-vectors // PANEL) * PANEL * lanes :]).all()
