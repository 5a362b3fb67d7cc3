"""Products with weights as they lie, and the ends of rows that they read and write."""

from __future__ import annotations

import ctypes
import itertools
import mmap
import subprocess
import sys

import numpy as np
import pytest
import torch

from tritongru import environment
from tritongru.backends.numba.compile import Kernel
from tritongru.backends.numba.kernels.dots import COLUMNS
from tritongru.backends.numba.kernels.unpacked import multiply_unpacked
from tritongru.backends.numba.kernels.vector_type import count_lanes
from tritongru.backends.numba.kernels.vectors import load_first, pointer, store, store_first
from tritongru.backends.numba.short import is_short
from tritongru.call.problem import Inputs, Variant

DTYPES = [torch.float32, torch.float64]
# Rows on both sides of each number from which they are taken four or eight at a time, or columns are turned.
ROWS = [1, 2, 3, 4, 5, 7, 8, 9, 11, 15, 16, 17, 24, 39, 40, 43, 48]
LENGTHS = [1, 3, 15, 16, 17, 40, 64, 81, 127, 128, 131, 259]


def multiply_part(plan, like):
    multiply_unpacked(
        pointer(plan[0], like), 0, plan[1], plan[2], pointer(plan[3], like), plan[4], plan[5], plan[6], plan[7],
        plan[8], pointer(plan[9], like), plan[10], plan[11], plan[12] != 0,
    )  # fmt: skip


multiply = Kernel(multiply_part)


def product(
    a: torch.Tensor, w: torch.Tensor, first: int = 0, end: int | None = None, gap: int = 0, back: bool = False
) -> torch.Tensor:
    """Return a (rows,K) w (K,N), in some columns alone: the others are NaN."""
    out = torch.full((a.shape[0], w.shape[1]), torch.nan, dtype=a.dtype)
    end = w.shape[1] if end is None else end
    addresses_and_sizes = (
        a.data_ptr(), a.stride(0), a.shape[1], w.data_ptr(), *w.stride(), first, end, gap, out.data_ptr(), w.shape[1],
        a.shape[0], back,
    )  # fmt: skip
    plan = np.array(addresses_and_sizes, np.int64)
    multiply.for_dtype(np.dtype(str(a.dtype).removeprefix("torch."))).call(plan.ctypes.data, 0.0)
    return out


def weights(K: int, N: int, dtype: torch.dtype, by_column: bool) -> torch.Tensor:
    return torch.randn(N, K, dtype=dtype).t() if by_column else torch.randn(K, N, dtype=dtype)


@pytest.mark.parametrize("by_column", [True, False], ids=["torch", "keras"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_products_of_any_size(dtype: torch.dtype, by_column: bool) -> None:
    for rows, K, N in itertools.product(ROWS, LENGTHS, [1, 3, COLUMNS, 21, 48, 50, 99]):
        a, w = torch.randn(rows, K, dtype=dtype), weights(K, N, dtype, by_column)
        right = a.double() @ w.double()
        # Half a unit in the last place for each of K sums and products, of what the sums may have reached.
        allowed = K * torch.finfo(dtype).eps * (a.abs().double() @ w.abs().double())
        found = product(a, w)
        assert ((found.double() - right).abs() <= allowed).all(), (rows, K, N)
        assert torch.equal(product(a, w, back=True), found), (rows, K, N)


@pytest.mark.parametrize("by_column", [True, False], ids=["torch", "keras"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_some_columns_have_the_bits_that_all_have(dtype: torch.dtype, by_column: bool) -> None:
    lanes = count_lanes(dtype.itemsize)
    units = 7 * lanes + 3
    for rows, K in itertools.product(ROWS, LENGTHS):
        a, w = torch.randn(rows, K, dtype=dtype), weights(K, 3 * units, dtype, by_column)
        whole = product(a, w)
        for first, end in ((0, 2 * lanes), (2 * lanes, 5 * lanes), (5 * lanes, units)):
            some = product(a, w, first, end, units, back=first > 0)
            for gate in range(3):
                columns = slice(gate * units + first, gate * units + end)
                assert torch.equal(some[:, columns], whole[:, columns]), (rows, K, first, gate)
                some[:, columns] = torch.nan
            assert some.isnan().all(), (rows, K, first)  # and nothing else was written


@pytest.mark.parametrize(
    "is_torch, rows, units, large, small",
    [
        (True, 1, 255, 64, 64),
        (True, 1, 256, 256, 64),
        (True, 2, 512, 16, 16),
        (False, 1, 191, 64, 64),
        (False, 1, 192, 32, 64),
        (False, 1, 448, 8, 64),
        (False, 1, 768, 16, 64),
        (False, 4, 448, 8, 8),
    ],
)
def test_up_to_how_many_steps_weights_are_read_as_they_lie(
    is_torch: bool, rows: int, units: int, large: int, small: int, monkeypatch
) -> None:
    for cache, most in ((1 << 21, large), (1 << 20, small)):
        monkeypatch.setattr(environment, "second_cache", lambda cache=cache: cache)
        for steps in (most, most + 1):
            w, u = (weights(K, 3 * units, torch.float32, is_torch) for K in (5, units))
            a = Inputs(torch.empty(steps, rows, 5), w, None, u, None, torch.empty(rows, units))
            assert is_short(a, Variant(reset_after=True)) == (steps == most), (cache, steps)


def ends_part(plan, like):
    source, target = pointer(plan[0], like), pointer(plan[1], like)
    found = load_first(source, 0, plan[2])
    store(pointer(plan[3], like), 0, found)
    store_first(target, 0, found, plan[2])


ends = Kernel(ends_part)


def check_ends(dtype: np.dtype) -> None:
    """Read and write the last numbers before a page that nobody may touch."""
    page, lanes = mmap.PAGESIZE, count_lanes(dtype.itemsize)
    memory = mmap.mmap(-1, 4 * page)
    begin = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    library = ctypes.CDLL(None, use_errno=True)
    library.mprotect.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    assert library.mprotect(begin + page, page, 0) == 0
    assert library.mprotect(begin + 3 * page, page, 0) == 0
    source, target = (np.frombuffer(memory, dtype, page // dtype.itemsize, k * page) for k in (0, 2))
    source[:], target[:] = np.arange(1, source.size + 1), -1
    for count in range(lanes + 1):
        whole, place = np.full(lanes, np.nan, dtype), page - count * dtype.itemsize
        plan = np.array((begin + place, begin + 2 * page + place, count, whole.ctypes.data), np.int64)
        ends.for_dtype(dtype).call(plan.ctypes.data, 0.0)
        last = source[source.size - count :]
        assert (whole == np.concatenate((last, np.zeros(lanes - count)))).all(), count
        assert (target[target.size - count :] == last).all() and (target[: target.size - count] == -1).all(), count
        target[:] = -1


@pytest.mark.skipif(sys.platform != "linux", reason="mprotect as glibc has it")
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_nothing_is_touched_beyond_the_end(dtype: str) -> None:
    """In a process of its own, which reading or writing there would end."""
    done = subprocess.run([sys.executable, __file__, dtype], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "right\n"), done.stderr


if __name__ == "__main__":
    check_ends(np.dtype(sys.argv[1]))
    print("right")
