"""The kernel's arithmetic in NumPy: every operation rounded to float32 once, a fused multiplication and addition too."""

import numpy as np
from numpy.typing import NDArray

from lotts.kernels.philox_normal.reference import Words, _uniform

Floats = NDArray[np.float32]


def fma(x: Floats, y: Floats | float, z: Floats | float) -> Floats:
    """x y + z, rounded once: the sum in float64, rounded to odd where it is not exact, rounds to float32 as the exact one does."""
    product = x.astype(np.float64) * np.asarray(y, dtype=np.float32).astype(np.float64)  # exact
    z = np.broadcast_to(np.asarray(z, dtype=np.float32), product.shape).astype(np.float64)
    total = product + z
    beside = total - product
    error = (product - (total - beside)) + (z - beside)
    even = total.view(np.int64) & 1 == 0
    toward = np.nextafter(total, np.copysign(np.inf, error))
    return np.where((error != 0) & even, toward, total).astype(np.float32)


def series(x: Floats, *coefficients: float) -> Floats:
    """A polynomial by Horner's rule, the highest coefficient first."""
    total = np.full_like(x, coefficients[0])
    for coefficient in coefficients[1:]:
        total = fma(x, total, coefficient)
    return total


def box_muller(first: Words, second: Words) -> tuple[Floats, Floats]:
    """Two standard normal numbers from two words."""
    u = np.maximum(_uniform(first), np.float32(1.0e-7)).view(np.int32)
    exponent = (u - np.int32(0x3F3504F3)) & np.int32(-0x800000)
    f = (u - exponent).view(np.float32) - np.float32(1)
    logarithm = series(
        f,
        0.20683106811029547,
        -0.3308966623607358,
        0.34584270877084433,
        -0.3969738801712468,
        0.49923176288796506,
        -0.6667529036582661,
        1.0000125511670699,
        -1.9999991259206136,
    )
    radius = np.sqrt(fma(f, logarithm, exponent.astype(np.float32) * np.float32(-1.6525916589735634e-07)))

    angle = _uniform(second) * np.float32(6.283185307179586)
    turns = fma(angle, 0.3183098861837907, 12582912.0)
    sign = turns.view(np.int32) << 31
    turns = turns - np.float32(12582912.0)
    t = fma(turns, 8.742277657347586e-08, fma(turns, -3.1415927410125732, angle))
    s = t * t
    cosine = series(s, 2.3189033527160063e-05, -0.0013855708530172706, 0.041663963347673416, -0.4999993145465851, 1.0)
    sine = series(s, 2.5988488232542295e-06, -0.00019806032651104033, 0.008333008736371994, -0.16666656732559204, 1.0)
    radius = (radius.view(np.int32) ^ sign).view(np.float32)
    return radius * cosine, radius * t * sine
