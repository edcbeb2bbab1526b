"""The error function in array operations, which NumPy lacks.

Source: the rational approximations of fdlibm's s_erf.c (Sun Microsystems, 1993); within 1 ULP of math.erf in float64.
"""

from __future__ import annotations

from typing import Any

# Intervals of |x|: [0, 0.84375): x + x·P(x²)/Q(x²); [0.84375, 1.25): c + P(|x|-1)/Q(|x|-1);
# above: 1 - exp(-x² - 0.5625 + P(1/x²)/Q(1/x²)) / |x|, with one pair of polynomials below 1/0.35 and one above.
ONE_INTERVAL_C = 8.45062911510467529297e-01
NEAR_ZERO = (
    (1.28379167095512558561e-01, -3.25042107247001499370e-01, -2.84817495755985104766e-02,
     -5.77027029648944159157e-03, -2.37630166566501626084e-05),
    (1.0, 3.97917223959155352819e-01, 6.50222499887672944485e-02, 5.08130628187576562776e-03,
     1.32494738004321644526e-04, -3.96022827877536812320e-06),
)  # fmt: skip
NEAR_ONE = (
    (-2.36211856075265944077e-03, 4.14856118683748331666e-01, -3.72207876035701323847e-01, 3.18346619901161753674e-01,
     -1.10894694282396677476e-01, 3.54783043256182359371e-02, -2.16637559486879084300e-03),
    (1.0, 1.06420880400844228286e-01, 5.40397917702171048937e-01, 7.18286544141962662868e-02,
     1.26171219808761642112e-01, 1.36370839120290507362e-02, 1.19844998467991074170e-02),
)  # fmt: skip
MIDDLE = (
    (-9.86494403484714822705e-03, -6.93858572707181764372e-01, -1.05586262253232909814e+01,
     -6.23753324503260060396e+01, -1.62396669462573470355e+02, -1.84605092906711035994e+02,
     -8.12874355063065934246e+01, -9.81432934416914548592e+00),
    (1.0, 1.96512716674392571292e+01, 1.37657754143519042600e+02, 4.34565877475229228821e+02,
     6.45387271733267880336e+02, 4.29008140027567833386e+02, 1.08635005541779435134e+02, 6.57024977031928170135e+00,
     -6.04244152148580987438e-02),
)  # fmt: skip
FAR = (
    (-9.86494292470009928597e-03, -7.99283237680523006574e-01, -1.77579549177547519889e+01,
     -1.60636384855821916062e+02, -6.37566443368389627722e+02, -1.02509513161107724954e+03,
     -4.83519191608651397019e+02),
    (1.0, 3.03380607434824582924e+01, 3.25792512996573918826e+02, 1.53672958608443695994e+03,
     3.19985821950859553908e+03, 2.55305040643316442583e+03, 4.74528541206955367215e+02, -2.24409524465858183362e+01),
)  # fmt: skip


def evaluate_erf(xp: Any, x: Any) -> Any:
    """Return erf of a floating-point array, in its dtype; computed in float64. NaN stays NaN."""
    wide = x.astype(xp.float64).reshape(-1)
    size = xp.abs(wide)
    result = wide + wide * _ratio(NEAR_ZERO, wide * wide)
    for low, high, form in ((0.84375, 1.25, _near_one), (1.25, 1 / 0.35, _middle), (1 / 0.35, xp.inf, _far)):
        chosen = (size >= low) & ((size < high) | (high == xp.inf))
        if chosen.any():
            result[chosen] = xp.copysign(form(xp, size[chosen]), wide[chosen])
    return result.astype(x.dtype).reshape(x.shape)


def _near_one(xp: Any, size: Any) -> Any:
    return ONE_INTERVAL_C + _ratio(NEAR_ONE, size - 1.0)


def _middle(xp: Any, size: Any) -> Any:
    return _tail(xp, size, MIDDLE)


def _far(xp: Any, size: Any) -> Any:
    return _tail(xp, xp.minimum(size, 6.0), FAR)  # erf(6) is 1 in float64, and the polynomials end there


def _tail(xp: Any, size: Any, pair: Any) -> Any:
    return 1.0 - xp.exp(-size * size - 0.5625 + _ratio(pair, 1.0 / (size * size))) / size


def _ratio(pair: Any, x: Any) -> Any:
    above, below = (_polynomial(coefficients, x) for coefficients in pair)
    return above / below


def _polynomial(coefficients: tuple[float, ...], x: Any) -> Any:
    result = coefficients[-1] + 0.0 * x
    for coefficient in reversed(coefficients[:-1]):
        result = result * x + coefficient
    return result
