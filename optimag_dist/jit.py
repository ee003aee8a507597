"""numba compilation, kept on disk where it can be."""

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import extending, njit, types
from numba.core import cgutils

# numba annotates the function an intrinsic is made of, not the one that compiled code calls.
intrinsic: Any = extending.intrinsic


def jit(**options: Any) -> Callable[[Callable[..., Any]], Any]:
    """``numba.njit`` with its disk cache, so that not every Ray worker compiles again.

    A read-only installation without a writable home has no place for it, which numba reports when the function is
    decorated; such a process compiles for itself.
    """

    def decorate(function: Callable[..., Any]) -> Any:
        try:
            return njit(cache=True, **options)(function)
        except RuntimeError:
            return njit(**options)(function)

    return decorate


@intrinsic
def prefetch(typingctx, array, index):  # type: ignore[no-untyped-def]
    """Ask for the cache line of ``array[index]``; never faults, changes nothing. For compiled code."""

    def codegen(context, builder, signature, args):  # type: ignore[no-untyped-def]
        array_type, index_type = signature.args
        struct = context.make_array(array_type)(context, builder, args[0])
        place = context.cast(builder, args[1], index_type, types.intp)
        pointer = cgutils.get_item_pointer(context, builder, array_type, struct, [place])
        byte_pointer = builder.bitcast(pointer, ir.IntType(8).as_pointer())
        i32 = ir.IntType(32)
        function_type = ir.FunctionType(ir.VoidType(), [byte_pointer.type, i32, i32, i32])
        function = builder.module.declare_intrinsic("llvm.prefetch", [byte_pointer.type], function_type)
        read, keep_in_all_levels, data = 0, 3, 1
        builder.call(function, [byte_pointer, i32(read), i32(keep_in_all_levels), i32(data)])
        return context.get_dummy_value()

    return types.none(array, index), codegen
