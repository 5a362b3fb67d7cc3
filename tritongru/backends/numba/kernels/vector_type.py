"""The type of a vector of floats for numba, as wide as the processor's registers, and its arithmetic.

numba vectorises a loop where LLVM can prove that its arrays do not overlap. Here the vectors are explicit, so the
machine code follows from the source with every version of LLVM, which splits or joins them where the processor's are
narrower or wider. No operation has fast-math flags: a NaN stays one, and sums keep their order.
"""

from __future__ import annotations

import operator

from llvmlite import binding, ir
from numba import types
from numba.core import cgutils, config
from numba.extending import lower_builtin, models, register_model, type_callable


def _register_bytes() -> int:
    """Return how wide vectors are: as AVX-512's registers where numba compiles for them, else as those of AVX2."""
    features = getattr(config, "CPU_FEATURES", None)  # NUMBA_CPU_FEATURES, in place of the processor's
    if features is None:
        features = binding.get_host_cpu_features().flatten()
    return 64 if "+avx512f" in features.split(",") else 32


WIDTH = _register_bytes()
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
        super().__init__(manager, kind, llvm_type(kind))


def llvm_element(kind: types.Float) -> ir.Type:
    """Return the LLVM type of a number."""
    return ir.FloatType() if kind == types.float32 else ir.DoubleType()


def llvm_type(kind: Vector) -> ir.VectorType:
    """Return the LLVM type of a vector."""
    return ir.VectorType(llvm_element(kind.element), kind.lanes)


def llvm_integers(kind: Vector) -> ir.VectorType:
    """Return the LLVM type of a vector of integers as wide."""
    return ir.VectorType(ir.IntType(kind.element.bitwidth), kind.lanes)


def splat(builder, vector: ir.VectorType, value):
    """Return a vector of that LLVM type with `value`, an element, in all lanes."""
    single = builder.insert_element(ir.Constant(vector, ir.Undefined), value, ir.Constant(ir.IntType(32), 0))
    lanes = ir.Constant(ir.VectorType(ir.IntType(32), vector.count), [0] * vector.count)
    return builder.shuffle_vector(single, ir.Constant(vector, ir.Undefined), lanes)


def as_vector(context, builder, kind: Vector, given, value):
    """Return `value` of the numba type `given`, a vector or a number, as a vector of `kind`."""
    if isinstance(given, Vector):
        return value
    return splat(builder, llvm_type(kind), context.cast(builder, value, given, kind.element))


def common_vector(*kinds) -> Vector | None:
    """Return the vector among `kinds` if the rest are vectors like it or numbers."""
    vectors = {kind for kind in kinds if isinstance(kind, Vector)}
    if len(vectors) != 1 or not all(isinstance(kind, Vector | types.Number) for kind in kinds):
        return None
    return vectors.pop()


def call_intrinsic(builder, name: str, kind: Vector, *arguments):
    """Call LLVM's intrinsic of that name on vectors of `kind`."""
    vector = llvm_type(kind)
    suffix = f"v{kind.lanes}f{kind.element.bitwidth}"
    function = cgutils.get_or_insert_function(
        builder.module, ir.FunctionType(vector, [vector] * len(arguments)), f"llvm.{name}.{suffix}"
    )
    return builder.call(function, arguments)


def call_masked(builder, name: str, kind: Vector, place, count, result: ir.Type, value):
    """Call LLVM's masked load or store for the first `count` lanes.

    Args:
        place: a pointer to a vector of `kind`. count: of 64 bits.
        result: the LLVM type of what is returned. value: the vector of which the other lanes are loaded, or the first
            are stored.
    """
    integers = llvm_integers(kind)
    lanes = ir.Constant(integers, list(range(kind.lanes)))
    single = builder.trunc(count, integers.element) if integers.element.width < 64 else count
    mask = builder.icmp_signed("<", lanes, splat(builder, integers, single))
    align = ir.Constant(ir.IntType(32), kind.element.bitwidth // 8)
    given = (value, place, align, mask) if name == "store" else (place, align, mask, value)
    vector = f"v{kind.lanes}f{kind.element.bitwidth}"
    function = cgutils.get_or_insert_function(
        builder.module, ir.FunctionType(result, [each.type for each in given]), f"llvm.masked.{name}.{vector}.p0"
    )
    return builder.call(function, given)


def _register_operator(function, name: str) -> None:
    @type_callable(function)
    def type_operator(context):
        def typer(a, b):
            return common_vector(a, b)

        return typer

    def lower(context, builder, signature, arguments):
        kind = signature.return_type
        a, b = (as_vector(context, builder, kind, *pair) for pair in zip(signature.args, arguments, strict=True))
        return getattr(builder, name)(a, b)

    for pair in ((Vector, Vector), (Vector, types.Number), (types.Number, Vector)):
        lower_builtin(function, *pair)(lower)


for _function, _name in (
    (operator.add, "fadd"), (operator.sub, "fsub"), (operator.mul, "fmul"), (operator.truediv, "fdiv"),
):  # fmt: skip
    _register_operator(_function, _name)


def vector_like(like) -> Vector:
    """Return the vector's type for a vector, a number of its type, or a pointer to such numbers."""
    return like if isinstance(like, Vector) else Vector(like.dtype if isinstance(like, types.CPointer) else like)
