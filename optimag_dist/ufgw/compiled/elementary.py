"""exp and log in a form that the compiler vectorises; libm's are called entry by entry."""

import numpy as np
from numba import types
from numba.extending import overload

from optimag_dist.jit import jit


def exp(x):  # type: ignore[no-untyped-def]
    """exp for normal results (no overflow, no denormals).

    exp(x) = 2ⁿ exp(r), n = ⌊x log₂e + ½⌉, |r| ≤ ½ log 2, with log 2 in two parts so that r is exact, and Taylor's
    polynomial of a degree whose remainder is below the rounding.
    """
    raise NotImplementedError("compiled code only")


@jit(fastmath={"contract"})
def _exp32(x):  # type: ignore[no-untyped-def]
    n = np.floor(x * np.float32(1.44269504) + np.float32(0.5))
    r = x - n * np.float32(0.693145752)
    r = r - n * np.float32(1.42860677e-6)
    y = np.float32(1 / 5040)
    y = y * r + np.float32(1 / 720)
    y = y * r + np.float32(1 / 120)
    y = y * r + np.float32(1 / 24)
    y = y * r + np.float32(1 / 6)
    y = y * r + np.float32(1 / 2)
    y = y * r + np.float32(1)
    y = y * r + np.float32(1)
    return y * np.int32((np.int32(n) + np.int32(127)) << np.int32(23)).view(np.float32)


@jit(fastmath={"contract"})
def _exp64(x):  # type: ignore[no-untyped-def]
    n = np.floor(x * 1.4426950408889634 + 0.5)
    r = x - n * 0.693147180369123816490
    r = r - n * 1.90821492927058770002e-10
    y = 1 / 6227020800
    y = y * r + 1 / 479001600
    y = y * r + 1 / 39916800
    y = y * r + 1 / 3628800
    y = y * r + 1 / 362880
    y = y * r + 1 / 40320
    y = y * r + 1 / 5040
    y = y * r + 1 / 720
    y = y * r + 1 / 120
    y = y * r + 1 / 24
    y = y * r + 1 / 6
    y = y * r + 0.5
    y = y * r + 1.0
    y = y * r + 1.0
    return y * np.int64((np.int64(n) + np.int64(1023)) << np.int64(52)).view(np.float64)


@jit(fastmath={"contract"})
def _log32(x):  # type: ignore[no-untyped-def]
    bits = np.float32(x).view(np.int32)
    exponent = (bits - np.int32(0x3F3504F3)) >> np.int32(23)
    mantissa = np.int32(bits - (exponent << np.int32(23))).view(np.float32)
    z = (mantissa - np.float32(1)) / (mantissa + np.float32(1))
    w = z * z
    y = np.float32(2 / 9)
    y = y * w + np.float32(2 / 7)
    y = y * w + np.float32(2 / 5)
    y = y * w + np.float32(2 / 3)
    y = y * w + np.float32(2)
    return np.float32(exponent) * np.float32(0.69314718) + z * y


def log(x):  # type: ignore[no-untyped-def]
    """log of normal positive numbers: of the power of two, and of a mantissa between √½ and √2 by its atanh series."""
    raise NotImplementedError("compiled code only")


@jit(error_model="numpy")
def log_ratio(x, y, tiny):  # type: ignore[no-untyped-def]
    """log(x/y) of positive numbers, also where x/y is below ``tiny``, the smallest normal number, or overflows."""
    ratio = x / y
    if tiny <= ratio < np.inf:
        return np.log(ratio)
    return np.log(x) - np.log(y)


@overload(log)
def _overload_log(x):  # type: ignore[no-untyped-def]
    return (lambda x: _log32(x)) if x == types.float32 else (lambda x: np.log(x))


@overload(exp)
def _overload_exp(x):  # type: ignore[no-untyped-def]
    return (lambda x: _exp32(x)) if x == types.float32 else (lambda x: _exp64(x))
