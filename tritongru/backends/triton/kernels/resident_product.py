"""Products of the resident kernels: weights that stay in registers or in shared memory, rows in the product's layout.

s_g[w] = sum over parts i of  rows_g[i][w] @ weights_g[i][w],     g = z, r, n;  w: the warps along the sum
a_g    = sum over w of s_g[w]                                     they meet in shared memory
"""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.ampere import mma_v2


@gluon.jit
def cube(a, b, c):
    """Return (len(a), len(b), len(c)) numbers a + b + c, of slices of one layout."""
    return (
        gl.expand_dims(gl.expand_dims(a, 1), 2)
        + gl.expand_dims(gl.expand_dims(b, 0), 2)
        + gl.expand_dims(gl.expand_dims(c, 0), 1)
    )


@gluon.jit
def load_weights(u, first, S_K: gl.constexpr, S_N: gl.constexpr, SHARED: gl.constexpr, C: gl.constexpr):
    """Return the parts (WARPS_K, PART, BLOCK_H) of a matrix (U,U), strides S_K, S_N, from column `first` on.

    A tuple of NK of them in registers, or one array of shared memory.
    """
    w = gl.arange(0, C.WARPS_K, gl.SliceLayout(1, gl.SliceLayout(2, C.right)))
    k = gl.arange(0, C.PART, gl.SliceLayout(0, gl.SliceLayout(2, C.right)))
    n = first + gl.arange(0, C.BLOCK_H, gl.SliceLayout(0, gl.SliceLayout(1, C.right)))
    place = cube(w * (C.PART * S_K), k * S_K, n * S_N)
    k_all = cube(w * C.PART, k, n * 0)
    n_all = cube(w * 0, k * 0, n)
    SPAN: gl.constexpr = C.WARPS_K * C.PART
    parts = ()
    if SHARED:
        parts = gl.allocate_shared_memory(u.dtype.element_ty, [C.NK, C.WARPS_K, C.PART, C.BLOCK_H], C.stay)
    for i in gl.static_range(C.NK):
        if C.HAS_TAIL or not C.WHOLE:
            part = gl.load(u + place + i * SPAN * S_K, mask=(k_all + i * SPAN < C.U) & (n_all < C.U), other=0.0)
        else:
            part = gl.load(u + place + i * SPAN * S_K)
        if SHARED:
            parts.index(i).store(part)
        else:
            parts = parts + (part,)
    return parts


@gluon.jit
def load_gates(u, first, S_K: gl.constexpr, S_N: gl.constexpr, S_GATE: gl.constexpr, C: gl.constexpr):
    """Return the parts of gates z, r, n of a matrix (U,3U) whose gates are S_GATE apart."""
    w_z = load_weights(u + C.GATE_Z * S_GATE, first, S_K, S_N, C.SHARED_Z, C)
    w_r = load_weights(u + C.GATE_R * S_GATE, first, S_K, S_N, C.SHARED_R, C)
    w_n = load_weights(u + 2 * S_GATE, first, S_K, S_N, C.SHARED_N, C)
    return w_z, w_r, w_n


@gluon.jit
def add_part(rows, weights, i: gl.constexpr, sum, SHARED: gl.constexpr, C: gl.constexpr):
    """Return `sum` and the product of rows (WARPS_K, BLOCK_B, PART) with part `i` of one gate's weights.

    Called for one gate after the other, part by part: products of different sums need not wait for each other.
    """
    if SHARED:
        sum = mma_v2(rows, weights.index(i).load(C.right), sum, input_precision=C.PRECISION)
    else:
        sum = mma_v2(rows, weights[i], sum, input_precision=C.PRECISION)
    return sum


@gluon.jit
def multiply(rows, weights, i: gl.constexpr, sums, SHARED: gl.constexpr, C: gl.constexpr):
    """Return `sums`, one for each of the weights, and the products of rows with part `i` of these.

    rows: (WARPS_K, BLOCK_B, PART), one for all weights or one for each.
    """
    added = ()
    for gate in gl.static_range(len(weights)):
        added = added + (add_part(rows[gate if len(rows) > 1 else 0], weights[gate], i, sums[gate], SHARED[gate], C),)
    return added


@gluon.jit
def keep(values, kept, io: gl.constexpr):
    """Store what a program multiplies in its own shared memory, array by array."""
    for i in gl.static_range(len(values)):
        kept[i].store(gl.expand_dims(values[i].to(io), 0))


@gluon.jit
def multiply_kept(kept, weights, sums, SHARED: gl.constexpr, C: gl.constexpr):
    """Return `sums` and the products of the weights with what is kept, one array for all of them or one for each."""
    rows = ()
    for i in gl.static_range(len(kept)):
        rows = rows + (kept[i].load(C.left),)
    return multiply(rows, weights, 0, sums, SHARED, C)


@gluon.jit
def allocate_kept(io: gl.constexpr, COUNT: gl.constexpr, C: gl.constexpr):
    """Return shared memory for so many arrays that a program multiplies."""
    kept = ()
    for _ in gl.static_range(COUNT):
        kept = kept + (gl.allocate_shared_memory(io, [1, C.BLOCK_B, C.BLOCK_H], C.state),)
    return kept


@gluon.jit
def allocate_meeting(COUNT: gl.constexpr, C: gl.constexpr):
    """Return shared memory where the warps' sums of so many products meet; none for warps that have theirs alone.

    An allocation for each: between stores to parts of one, Triton puts a barrier each.
    """
    places = ()
    for _ in gl.static_range(COUNT):
        if C.WARPS_K > 1:
            places = places + (gl.allocate_shared_memory(gl.float32, [C.WARPS_K, C.BLOCK_B, C.BLOCK_H], C.meeting),)
        else:
            places = places + (0,)
    return places


@gluon.jit
def bring(places, sums, C: gl.constexpr):
    """Store the warps' sums where they meet."""
    if C.WARPS_K > 1:
        for i in gl.static_range(len(sums)):
            places[i].store(sums[i])


@gluon.jit
def meet(place, sum, C: gl.constexpr):
    """Return (BLOCK_B, BLOCK_H): the warps' sums added, those that `place` got."""
    if C.WARPS_K > 1:
        met = gl.sum(place.load(C.sums), 0)
    else:
        met = gl.sum(sum, 0)
    return met
