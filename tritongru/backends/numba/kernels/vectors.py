"""What can be done with vectors (`vector_type.py`): loads, stores, and the little that exp needs.

Memory is reached through plain pointers, made of the addresses that a call hands over.
"""

from __future__ import annotations

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from .vector_type import (
    Vector,
    as_vector,
    call_intrinsic,
    call_masked,
    common_vector,
    llvm_element,
    llvm_integers,
    llvm_type,
    splat,
    vector_like,
)


@intrinsic
def lanes(typing, like):
    """How many numbers a vector like `like` has: a vector, a number, or a pointer."""
    count = vector_like(like).lanes

    def make(context, builder, signature, arguments):
        return ir.Constant(ir.IntType(64), count)

    return types.int64(like), make


@intrinsic
def pointer(typing, address, like):
    """A pointer to numbers like `like` at an address."""
    result = types.CPointer(like)

    def make(context, builder, signature, arguments):
        return builder.inttoptr(arguments[0], context.get_value_type(result))

    return result(types.int64, like), make


@intrinsic
def advance(typing, start, count):
    """The pointer `count` numbers on."""

    def make(context, builder, signature, arguments):
        return builder.gep(arguments[0], [arguments[1]])

    return start(start, types.int64), make


def _place(context, builder, kind: Vector, start, index):
    return builder.bitcast(builder.gep(start, [index]), llvm_type(kind).as_pointer())


@intrinsic
def load(typing, start, index):
    """The vector of the numbers from `index` on."""
    kind = Vector(start.dtype)

    def make(context, builder, signature, arguments):
        return builder.load(_place(context, builder, kind, *arguments), align=kind.element.bitwidth // 8)

    return kind(start, types.int64), make


@intrinsic
def store(typing, start, index, value):
    """Write a vector from `index` on."""

    def make(context, builder, signature, arguments):
        place = _place(context, builder, signature.args[2], *arguments[:2])
        builder.store(arguments[2], place, align=signature.args[2].element.bitwidth // 8)
        return context.get_dummy_value()

    return types.void(start, types.int64, value), make


@intrinsic
def store_turned(typing, target, o, next_row, source, i, next_column):
    """Write a square of as many numbers as a vector has each way: column j is read from i + j next_column on."""
    kind = Vector(source.dtype)

    def make(context, builder, signature, arguments):
        target, o, next_row, source, i, next_column = arguments
        count = kind.lanes

        def place(start, index, step, number):
            index = builder.add(index, builder.mul(step, ir.Constant(step.type, number)))
            return _place(context, builder, kind, start, index)

        align = kind.element.bitwidth // 8
        rows = [builder.load(place(source, i, next_column, lane), align=align) for lane in range(count)]
        # Squares of twice the size in each turn: of two rows the halves that lie across from each other change places.
        distance = 1
        while distance < count:
            stays = [lane & distance == 0 for lane in range(count)]
            upper = [lane if stay else count + lane - distance for lane, stay in enumerate(stays)]
            lower = [lane + distance if stay else count + lane for lane, stay in enumerate(stays)]
            for first in (lane for lane, stay in enumerate(stays) if stay):
                pair = rows[first], rows[first + distance]
                rows[first], rows[first + distance] = (_shuffle(builder, *pair, order) for order in (upper, lower))
            distance *= 2
        for row, value in enumerate(rows):
            builder.store(value, place(target, o, next_row, row), align=align)
        return context.get_dummy_value()

    return types.void(target, types.int64, types.int64, source, types.int64, types.int64), make


def _shuffle(builder, a, b, order: list[int]):
    """The numbers of a, then b, at the places `order`."""
    return builder.shuffle_vector(a, b, ir.Constant(ir.VectorType(ir.IntType(32), len(order)), order))


@intrinsic
def load_first(typing, start, index, count):
    """The vector of `count` numbers from `index` on, and zeros: for the end of a row, beyond which nothing is read."""
    kind = Vector(start.dtype)

    def make(context, builder, signature, arguments):
        start, index, count = arguments
        place, vector = _place(context, builder, kind, start, index), llvm_type(kind)
        return call_masked(builder, "load", kind, place, count, vector, ir.Constant(vector, None))

    return kind(start, types.int64, types.int64), make


@intrinsic
def store_first(typing, start, index, value, count):
    """Write the first `count` numbers of a vector from `index` on."""
    kind = value

    def make(context, builder, signature, arguments):
        start, index, value, count = arguments
        call_masked(builder, "store", kind, _place(context, builder, kind, start, index), count, ir.VoidType(), value)
        return context.get_dummy_value()

    return types.void(start, types.int64, value, types.int64), make


@intrinsic
def spread(typing, start, index):
    """One number in all lanes."""
    kind = Vector(start.dtype)

    def make(context, builder, signature, arguments):
        return splat(builder, llvm_type(kind), builder.load(builder.gep(arguments[0], [arguments[1]])))

    return kind(start, types.int64), make


@intrinsic
def full(typing, like, value):
    """A number in all lanes of a vector like `like`: a vector, a number, or a pointer."""
    kind = vector_like(like)

    def make(context, builder, signature, arguments):
        return as_vector(context, builder, kind, signature.args[1], arguments[1])

    return kind(like, value), make


@intrinsic
def fma(typing, a, b, c):
    """a b + c of vectors or numbers, rounded once where the processor can."""
    kind = common_vector(a, b, c)
    if kind is None:
        return None

    def make(context, builder, signature, arguments):
        pairs = zip(signature.args, arguments, strict=True)
        return call_intrinsic(builder, "fmuladd", kind, *(as_vector(context, builder, kind, *pair) for pair in pairs))

    return kind(a, b, c), make


@intrinsic
def absolute(typing, a):
    """|a|"""

    def make(context, builder, signature, arguments):
        return call_intrinsic(builder, "fabs", a, *arguments)

    return a(a), make


@intrinsic
def square_root(typing, a):
    """The square root of a vector."""

    def make(context, builder, signature, arguments):
        return call_intrinsic(builder, "sqrt", a, *arguments)

    return a(a), make


@intrinsic
def where_above(typing, a, b, chosen, other):
    """`chosen` in the lanes where a > b, else `other`, which is also what a NaN gives."""
    kind = common_vector(a, b, chosen, other)
    if kind is None:
        return None

    def make(context, builder, signature, arguments):
        pairs = zip(signature.args, arguments, strict=True)
        first, second, yes, no = (as_vector(context, builder, kind, *pair) for pair in pairs)
        return builder.select(builder.fcmp_ordered(">", first, second), yes, no)

    return kind(a, b, chosen, other), make


@intrinsic
def power_of_two(typing, shifted):
    """2^n of vectors n + 1.5 2^m, with m the bits of the mantissa: n then stands in the lowest bits.

    n must be the exponent of a normal number. A NaN gives some number: what it is multiplied by must be one too.
    """
    mantissa, bias = (23, 127) if shifted.element == types.float32 else (52, 1023)

    def make(context, builder, signature, arguments):
        integers = llvm_integers(shifted)
        bits = builder.bitcast(arguments[0], integers)
        moved = builder.shl(bits, ir.Constant(integers, [mantissa] * shifted.lanes))
        one = ir.Constant(integers, [bias << mantissa] * shifted.lanes)
        return builder.bitcast(builder.add(moved, one), llvm_type(shifted))

    return shifted(shifted), make


@intrinsic
def add_pairs(typing, a, b):
    """The sums of neighbours: those of a, then those of b. Of 2^n vectors, n times, it leaves the sum of each."""

    def make(context, builder, signature, arguments):
        even, odd = (_shuffle(builder, *arguments, list(range(first, 2 * a.lanes, 2))) for first in (0, 1))
        return builder.fadd(even, odd)

    return a(a, b), make


@intrinsic
def pick(typing, a, lane):
    """One number of a vector."""

    def make(context, builder, signature, arguments):
        return builder.extract_element(arguments[0], builder.trunc(arguments[1], ir.IntType(32)))

    return a.element(a, types.int64), make


def _store_parts(size: int):
    @intrinsic
    def store_parts(typing, start, index, step, value):
        kind = value

        def make(context, builder, signature, arguments):
            start, index, step, value = arguments
            part = ir.VectorType(llvm_element(kind.element), size).as_pointer()
            for first in range(0, kind.lanes, size):
                numbers = _shuffle(builder, value, value, list(range(first, first + size)))
                place = builder.bitcast(builder.gep(start, [index]), part)
                builder.store(numbers, place, align=kind.element.bitwidth // 8)
                index = builder.add(index, step)
            return context.get_dummy_value()

        return types.void(start, types.int64, types.int64, value), make

    return store_parts


# (start, index, step, vector): write two or four lanes of a vector after the other, `step` apart.
store_pairs, store_fours = _store_parts(2), _store_parts(4)


@intrinsic
def item_size(typing, like):
    """Bytes of a number."""
    count = like.bitwidth // 8

    def make(context, builder, signature, arguments):
        return ir.Constant(ir.IntType(64), count)

    return types.int64(like), make
