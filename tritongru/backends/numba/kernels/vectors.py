"""A vector of floats for numba, as wide as a register: loads, stores, arithmetic, and the little that exp needs.

numba vectorises a loop where LLVM can prove that its arrays do not overlap. Here the vectors are explicit, so the
machine code follows from the source with every version of LLVM, which splits or joins them where the processor's are
narrower or wider. No operation has fast-math flags: a NaN stays one, and sums keep their order.

Memory is reached through plain pointers, made of the addresses that a call hands over.
"""

from __future__ import annotations

import operator

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic, lower_builtin, models, register_model, type_callable

WIDTH = 32  # bytes: the registers of AVX2, two of NEON, half of one of AVX-512
PANEL = 3  # vectors of columns that one pass over the rows of a matrix takes


def count_lanes(itemsize: int) -> int:
    """Return how many numbers of `itemsize` bytes a vector has."""
    return WIDTH // itemsize


class Vector(types.Type):
    """The numba type of a vector of `element`, float32 or float64."""

    def __init__(self, element: types.Float):
        self.element = element
        self.lanes = count_lanes(element.bitwidth // 8)
        super().__init__(name=f"vector({element} x {self.lanes})")


@register_model(Vector)
class VectorModel(models.PrimitiveModel):
    """A vector is one value of LLVM."""

    def __init__(self, manager, kind: Vector):
        super().__init__(manager, kind, _llvm_type(kind))


def _llvm_element(kind: types.Float) -> ir.Type:
    return ir.FloatType() if kind == types.float32 else ir.DoubleType()


def _llvm_type(kind: Vector) -> ir.VectorType:
    return ir.VectorType(_llvm_element(kind.element), kind.lanes)


def _llvm_integers(kind: Vector) -> ir.VectorType:
    return ir.VectorType(ir.IntType(kind.element.bitwidth), kind.lanes)


def _splat(builder, kind: Vector, value):
    vector = _llvm_type(kind)
    single = builder.insert_element(ir.Constant(vector, ir.Undefined), value, ir.Constant(ir.IntType(32), 0))
    lanes = ir.Constant(ir.VectorType(ir.IntType(32), kind.lanes), [0] * kind.lanes)
    return builder.shuffle_vector(single, ir.Constant(vector, ir.Undefined), lanes)


def _as_vector(context, builder, kind: Vector, given, value):
    """Return `value` of the numba type `given`, a vector or a number, as a vector of `kind`."""
    if isinstance(given, Vector):
        return value
    return _splat(builder, kind, context.cast(builder, value, given, kind.element))


def _common(*kinds) -> Vector | None:
    """Return the vector among `kinds` if the rest are vectors like it or numbers."""
    vectors = {kind for kind in kinds if isinstance(kind, Vector)}
    if len(vectors) != 1 or not all(isinstance(kind, Vector | types.Number) for kind in kinds):
        return None
    return vectors.pop()


def _call(builder, name: str, kind: Vector, *arguments):
    """Call LLVM's intrinsic of that name on vectors of `kind`."""
    vector = _llvm_type(kind)
    suffix = f"v{kind.lanes}f{kind.element.bitwidth}"
    function = cgutils.get_or_insert_function(
        builder.module, ir.FunctionType(vector, [vector] * len(arguments)), f"llvm.{name}.{suffix}"
    )
    return builder.call(function, arguments)


def _register_operator(function, name: str) -> None:
    @type_callable(function)
    def type_operator(context):
        def typer(a, b):
            return _common(a, b)

        return typer

    def lower(context, builder, signature, arguments):
        kind = signature.return_type
        a, b = (_as_vector(context, builder, kind, *pair) for pair in zip(signature.args, arguments, strict=True))
        return getattr(builder, name)(a, b)

    for pair in ((Vector, Vector), (Vector, types.Number), (types.Number, Vector)):
        lower_builtin(function, *pair)(lower)


for _function, _name in (
    (operator.add, "fadd"), (operator.sub, "fsub"), (operator.mul, "fmul"), (operator.truediv, "fdiv"),
):  # fmt: skip
    _register_operator(_function, _name)


def _vector_like(like) -> Vector:
    """Return the vector's type for a vector, a number of its type, or a pointer to such numbers."""
    return like if isinstance(like, Vector) else Vector(like.dtype if isinstance(like, types.CPointer) else like)


@intrinsic
def lanes(typing, like):
    """How many numbers a vector like `like` has: a vector, a number, or a pointer."""
    count = _vector_like(like).lanes

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
    return builder.bitcast(builder.gep(start, [index]), _llvm_type(kind).as_pointer())


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
def load_first(typing, start, index, count):
    """The vector of `count` numbers from `index` on, and zeros: for the end of a row, beyond which nothing is read."""
    kind = Vector(start.dtype)

    def make(context, builder, signature, arguments):
        start, index, count = arguments
        space = cgutils.alloca_once_value(builder, ir.Constant(_llvm_type(kind), None))
        numbers = builder.bitcast(space, _llvm_element(kind.element).as_pointer())
        with cgutils.for_range(builder, count) as loop:
            number = builder.load(builder.gep(start, [builder.add(index, loop.index)]))
            builder.store(number, builder.gep(numbers, [loop.index]))
        return builder.load(space)

    return kind(start, types.int64, types.int64), make


@intrinsic
def store_first(typing, start, index, value, count):
    """Write the first `count` numbers of a vector from `index` on."""
    kind = value

    def make(context, builder, signature, arguments):
        start, index, value, count = arguments
        space = cgutils.alloca_once_value(builder, value)
        numbers = builder.bitcast(space, _llvm_element(kind.element).as_pointer())
        with cgutils.for_range(builder, count) as loop:
            number = builder.load(builder.gep(numbers, [loop.index]))
            builder.store(number, builder.gep(start, [builder.add(index, loop.index)]))
        return context.get_dummy_value()

    return types.void(start, types.int64, value, types.int64), make


@intrinsic
def spread(typing, start, index):
    """One number in all lanes."""
    kind = Vector(start.dtype)

    def make(context, builder, signature, arguments):
        return _splat(builder, kind, builder.load(builder.gep(arguments[0], [arguments[1]])))

    return kind(start, types.int64), make


@intrinsic
def full(typing, like, value):
    """A number in all lanes of a vector like `like`: a vector, a number, or a pointer."""
    kind = _vector_like(like)

    def make(context, builder, signature, arguments):
        return _as_vector(context, builder, kind, signature.args[1], arguments[1])

    return kind(like, value), make


@intrinsic
def fma(typing, a, b, c):
    """a b + c of vectors or numbers, rounded once where the processor can."""
    kind = _common(a, b, c)
    if kind is None:
        return None

    def make(context, builder, signature, arguments):
        pairs = zip(signature.args, arguments, strict=True)
        return _call(builder, "fmuladd", kind, *(_as_vector(context, builder, kind, *pair) for pair in pairs))

    return kind(a, b, c), make


@intrinsic
def absolute(typing, a):
    """|a|"""

    def make(context, builder, signature, arguments):
        return _call(builder, "fabs", a, *arguments)

    return a(a), make


@intrinsic
def where_above(typing, a, b, chosen, other):
    """`chosen` in the lanes where a > b, else `other`, which is also what a NaN gives."""
    kind = _common(a, b, chosen, other)
    if kind is None:
        return None

    def make(context, builder, signature, arguments):
        pairs = zip(signature.args, arguments, strict=True)
        first, second, yes, no = (_as_vector(context, builder, kind, *pair) for pair in pairs)
        return builder.select(builder.fcmp_ordered(">", first, second), yes, no)

    return kind(a, b, chosen, other), make


@intrinsic
def power_of_two(typing, shifted):
    """2^n of vectors n + 1.5 2^m, with m the bits of the mantissa: n then stands in the lowest bits.

    n must be the exponent of a normal number. A NaN gives some number: what it is multiplied by must be one too.
    """
    mantissa, bias = (23, 127) if shifted.element == types.float32 else (52, 1023)

    def make(context, builder, signature, arguments):
        integers = _llvm_integers(shifted)
        bits = builder.bitcast(arguments[0], integers)
        moved = builder.shl(bits, ir.Constant(integers, [mantissa] * shifted.lanes))
        one = ir.Constant(integers, [bias << mantissa] * shifted.lanes)
        return builder.bitcast(builder.add(moved, one), _llvm_type(shifted))

    return shifted(shifted), make


@intrinsic
def add_pairs(typing, a, b):
    """The sums of neighbours: those of a, then those of b. Of 2^n vectors, n times, it leaves the sum of each."""

    def make(context, builder, signature, arguments):
        kind = ir.VectorType(ir.IntType(32), a.lanes)
        even, odd = (
            builder.shuffle_vector(*arguments, ir.Constant(kind, list(range(first, 2 * a.lanes, 2))))
            for first in (0, 1)
        )
        return builder.fadd(even, odd)

    return a(a, b), make


@intrinsic
def pick(typing, a, lane):
    """One number of a vector."""

    def make(context, builder, signature, arguments):
        return builder.extract_element(arguments[0], builder.trunc(arguments[1], ir.IntType(32)))

    return a.element(a, types.int64), make


@intrinsic
def item_size(typing, like):
    """Bytes of a number."""
    count = like.bitwidth // 8

    def make(context, builder, signature, arguments):
        return ir.Constant(ir.IntType(64), count)

    return types.int64(like), make
