"""Packed weights are the weights: every layout, size and share, beside numpy's."""

from __future__ import annotations

import numpy as np
import pytest
import torch

pytest.importorskip("numba")

from tritongru.backends.numba import backward, bound, problem, sharing, threads
from tritongru.backends.numba.kernels import fields as at
from tritongru.backends.numba.kernels.packing import pack
from tritongru.backends.numba.kernels.vector_type import PANEL, count_lanes
from tritongru.backends.numba.problem import make_plan, round_up
from tritongru.tools.oracle.cases import Case, make_arguments, run_case

DTYPES = {np.dtype(np.float32): torch.float32, np.dtype(np.float64): torch.float64}


def packed(matrix: np.ndarray, width: int) -> np.ndarray:
    """Return (K,N) in panels (N/width, K, width)."""
    return np.concatenate([matrix[:, i : i + width].ravel() for i in range(0, matrix.shape[1], width)])


@pytest.mark.parametrize("packers", [1, 3])
@pytest.mark.parametrize("layout", ["keras", "torch", "scattered"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("inputs", "units"), [(1, 1), (3, 7), (17, 8), (40, 33), (16, 48), (5, 100)])
def test_packed_weights(inputs: int, units: int, dtype: np.dtype, layout: str, packers: int) -> None:
    lanes = count_lanes(dtype.itemsize)
    P, N = round_up(units, lanes), round_up(units, lanes * PANEL)

    def weights(rows: int) -> torch.Tensor:
        if layout == "scattered":
            return torch.randn(3 * units, rows, 2, dtype=DTYPES[dtype])[..., 1].t()
        given = torch.randn(rows, 3 * units, dtype=DTYPES[dtype])
        return given.t().contiguous().t() if layout == "torch" else given

    w, u = weights(inputs), weights(units)
    bias_x, bias_h = torch.randn(2, 3 * units, dtype=DTYPES[dtype]).unbind()
    # What is not written stays NaN.
    sizes = dict(W=3 * P * inputs, RECURRENT=3 * P * units, BIAS=3 * P, BIAS_N=P)
    found = {name: np.full(size, np.nan, dtype) for name, size in sizes.items()}
    z, r = (units, 0) if layout == "torch" else (0, units)
    fields = dict(
        UNITS=units, INPUT=inputs, PADDED=P, COLUMNS=N, RESET_AFTER=1, Z_AT=units + z, R_AT=units + r, N_AT=3 * units,
        U_GIVEN=u.data_ptr(), U_ROW=u.stride(0), U_COLUMN=u.stride(1), BIAS_X=bias_x.data_ptr(),
        W_GIVEN=w.data_ptr(), W_ROW=w.stride(0), W_COLUMN=w.stride(1), BIAS_H=bias_h.data_ptr(),
        **{name: value.ctypes.data for name, value in found.items()},
    )  # fmt: skip

    def run(**more: int) -> None:
        for packer in range(packers):
            plan = make_plan(fields | more)
            plan[at.PACKER], plan[at.PACKERS] = packer, packers
            pack.for_dtype(dtype).call(plan.ctypes.data, 0.0)

    def gates(value: torch.Tensor, width: int) -> list[np.ndarray]:
        """Return z, r and n (.., width), zeros beyond the units."""
        each = (value.numpy()[..., begin : begin + units] for begin in (z, r, 2 * units))
        return [np.pad(one, [(0, 0)] * (one.ndim - 1) + [(0, width - units)]) for one in each]

    run()
    for name, given in (("W", w), ("RECURRENT", u)):
        right = packed(np.concatenate(gates(given, P), axis=1), lanes * PANEL)
        np.testing.assert_array_equal(found[name], right)
    x, h = gates(bias_x, P), gates(bias_h, P)
    np.testing.assert_array_equal(found["BIAS"], np.concatenate((x[0] + h[0], x[1] + h[1], x[2])))
    np.testing.assert_array_equal(found["BIAS_N"], h[2])

    transposed = np.full(3 * P * N, np.nan, dtype)
    run(TRANSPOSED=1, D_H0=1, RECURRENT=transposed.ctypes.data)
    each = gates(u, P)
    right = np.concatenate((each[2].T, each[0].T, each[1].T))
    np.testing.assert_array_equal(transposed, packed(np.pad(right, [(0, 0), (0, N - units)]), lanes * PANEL))


@pytest.mark.parametrize("way", ["apart", "ahead by one", "ahead by all"])
@pytest.mark.parametrize(
    "case",
    [Case(20, 9, 5, 150), Case(20, 9, 5, 150, lengths=True, layout="torch"), Case(9, 40, 5, 64, recompute=True),
     Case(2, 9, 5, 150, "float64", go_backwards=True, reset_after=False)],
    ids=str,
)  # fmt: skip
def test_who_packs_makes_no_difference(case: Case, way: str, monkeypatch) -> None:
    monkeypatch.setattr(threads, "LEAST_WORK", 1)
    monkeypatch.setattr(sharing, "MOST_SHARES", 1)
    monkeypatch.setattr(backward, "CHUNK_ROWS", 40)
    monkeypatch.setattr(backward, "CHUNK", 0)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    right = run_case(make_arguments(case), "numba")
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    monkeypatch.setattr(problem, "second_cache", lambda: 1 << 30 if way == "apart" else 0)
    monkeypatch.setattr(problem, "PACKED_ALONE", 1 if way == "ahead by all" else 1 << 30)
    packers, pack_ahead = [], problem.pack_ahead
    for module in (problem, backward, bound):
        monkeypatch.setattr(
            module, "pack_ahead",
            lambda plans, dtype: (packers.extend(int(plan[at.PACKERS]) for plan in plans), pack_ahead(plans, dtype)),
        )  # fmt: skip
    for _ in range(3):
        found = run_case(make_arguments(case), "numba")
        for name, value in right.items():
            assert torch.equal(found[name], value), name
    # Two rows are one part, which packs by itself if not all threads do.
    one = 1 if case.batch > 2 else 0
    assert set(packers) == {{"apart": 0, "ahead by one": one, "ahead by all": 3}[way]}


def test_copies_of_packed_weights_are_small(monkeypatch) -> None:
    monkeypatch.setattr(problem, "second_cache", lambda: 1 << 20)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 16)
    assert problem.count_packers(1 << 20, 16) == 0
    assert problem.count_packers((1 << 20) + 64, 16) == 4
    assert problem.count_packers(1 << 20, 17) == 4
    assert problem.count_packers(1 << 18, 1) == 0
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    assert problem.count_packers(1 << 22, 1) == 0
