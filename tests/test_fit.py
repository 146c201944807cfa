"""fit_quadratic against float64 NumPy, at every scale."""

import functools
import itertools

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gen_optax
from gen_optax import _fit, fit_quadratic

FIT = jax.jit(fit_quadratic)


def parabola(t, value, slope, curvature):
    t = np.asarray(t, np.float64)
    return value - slope * t + curvature * t**2 / 2


@hypothesis.given(
    log_step=st.floats(-12, 6),
    log_loss=st.floats(-30, 30),
    minimum=st.floats(-3, 3),
    points=st.sampled_from([(-1, 0, 1), (0, 0.5, 1), (-1, -0.5, 0, 0.5, 1), (0, 1, 2, 3), (-2, 0.25, 1)]),
)
def test_recovers_a_parabola_at_every_scale(log_step, log_loss, minimum, points):
    """Loss 1e-30 to 1e30, learning rate 1e-12 to 1e6. The change of the loss dominates, so 1e-4 is due in float32."""
    h, unit = 10.0**log_step, 10.0**log_loss
    x = np.array(points, np.float64)
    losses = unit * (0.5 * x**2 - minimum * x)
    hypothesis.assume(1e-37 < unit / h < 1e37)  # slope and curvature themselves are float32 numbers
    hypothesis.assume(1e-37 < unit / h / h < 1e37)
    fit = FIT(jnp.asarray(h * x, jnp.float32), jnp.asarray(losses, jnp.float32))
    np.testing.assert_allclose(fit.curvature, unit / h / h, rtol=1e-4)
    np.testing.assert_allclose(fit.slope, unit * minimum / h, rtol=1e-4, atol=1e-4 * unit / h)
    np.testing.assert_allclose(fit.minimizer, h * minimum, rtol=1e-4, atol=1e-4 * h)
    np.testing.assert_allclose(fit.r_squared, 1, atol=1e-5)


@pytest.mark.parametrize("h", [1e-12, 1e6])
@pytest.mark.parametrize("unit", [1e-30, 1.0, 1e30])
def test_the_minimizer_survives_where_slope_and_curvature_leave_float32(h, unit):
    fit = FIT(h * jnp.array([-1.0, 0.0, 1.0]), unit * jnp.array([3.5, 1.0, 0.5]))
    np.testing.assert_allclose(fit.minimizer, h * 0.75, rtol=1e-5)


@hypothesis.given(st.integers(0, 10_000), st.integers(3, 12), st.booleans())
def test_least_squares_is_numpys(seed, n, weighted):
    """Scattered points and losses that are no parabola: against numpy.polyfit in float64."""
    rng = np.random.default_rng(seed)
    t = np.linspace(-1, 1, n) + 0.3 / n * rng.uniform(-1, 1, n)
    losses = rng.normal(size=n)
    weights = rng.uniform(0.5, 2.0, n) if weighted else np.ones(n)
    rest = 12 - n  # one shape, one compilation; points of weight 0 do not count
    with jax.enable_x64(True):
        fit = FIT(
            np.append(t, np.full(rest, 9.0)),
            np.append(losses, np.full(rest, np.nan)),
            np.append(weights, np.zeros(rest)),
        )
    c2, c1, c0 = np.polyfit(t, losses, 2, w=np.sqrt(weights))
    np.testing.assert_allclose([fit.slope, fit.curvature], [-c1, 2 * c2], rtol=1e-8, atol=1e-8)
    residual = np.sum(weights * (losses - np.polyval([c2, c1, c0], t)) ** 2)
    total = np.sum(weights * (losses - np.average(losses, weights=weights)) ** 2)
    np.testing.assert_allclose(fit.r_squared, 1 - residual / total, atol=1e-8)


def test_three_symmetric_points_are_algorithm_1():
    """eta* = h/2 (L- - L+) / (L+ - 2 L0 + L-), on losses far from a parabola."""
    rng = np.random.default_rng(0)
    for _ in range(20):
        h, (minus, zero, plus) = 10.0 ** rng.uniform(-6, 2), rng.uniform(1, 2, 3)
        if plus - 2 * zero + minus < 0.05:
            continue
        fit = FIT(jnp.array([-h, 0, h]), jnp.array([minus, zero, plus]))
        np.testing.assert_allclose(fit.minimizer, h / 2 * (minus - plus) / (plus - 2 * zero + minus), rtol=2e-5)
        np.testing.assert_allclose(fit.r_squared, 1, atol=1e-5)


def test_r_squared_can_fail():
    """Noise on five points: the value itself, not only that it is small."""
    t = np.linspace(-1, 1, 5)
    losses = np.array([1.0, -1.0, 1.0, -1.0, 1.0])
    c = np.polyfit(t, losses, 2)
    expected = 1 - np.sum((losses - np.polyval(c, t)) ** 2) / np.sum((losses - losses.mean()) ** 2)
    assert expected < 0.5
    np.testing.assert_allclose(fit_quadratic(t, losses).r_squared, expected, atol=1e-6)


def test_a_large_offset_costs_only_its_own_rounding():
    """L0 = 1e6 and changes of 64: differences are exact, so the fit is as good as the losses."""
    losses = np.float32(1e6) + np.array([3.5, 1.0, 0.5], np.float32) * 64
    np.testing.assert_allclose(fit_quadratic([-1.0, 0.0, 1.0], losses).minimizer, 0.75, rtol=1e-6)


def test_weights_leave_points_out():
    t = np.array([-1.0, 0.0, 1.0, 2.0, 1e9])
    losses = np.append(parabola(t[:4], 1.0, 2.0, 3.0), np.nan)
    fit = FIT(t, losses.astype(np.float32), np.array([1.0, 1, 1, 1, 0]))
    np.testing.assert_allclose([fit.slope, fit.curvature], [2.0, 3.0], rtol=1e-5)
    # Weights of zero and none are the same as fewer points, whatever the scale of the weights.
    fit = FIT(t[:4], losses[:4].astype(np.float32), np.full(4, 1e-20, np.float32))
    np.testing.assert_allclose([fit.slope, fit.curvature], [2.0, 3.0], rtol=1e-5)


@pytest.mark.parametrize(
    ("losses", "minimizer"),
    [([1.0, 2.0, 1.0], 0.0), ([2.0, 1.0, 0.0], np.inf), ([0.0, 1.0, 2.0], -np.inf), ([1.0, 1.0, 1.0], 0.0)],
    ids=["saddle", "descending line", "ascending line", "flat"],
)
def test_without_a_minimum(losses, minimizer):
    fit = fit_quadratic([-1.0, 0.0, 1.0], losses)
    assert fit.curvature <= 0
    assert fit.minimizer == minimizer


def test_debug_nans_stays_quiet_on_every_finite_input():
    """Also op by op, where jnp.where evaluates both sides."""
    with jax.debug_nans(True):
        for losses in ([1.0, 1.0, 1.0], [1.0, 2.0, 1.0], [2.0, 1.0, 0.0], [2.0, 1.0, 2.0], [0.0, 0.0, 0.0]):
            assert np.isfinite(fit_quadratic([-1.0, 0.0, 1.0], losses).slope)
            assert np.isfinite(fit_quadratic([1.0, 1.0, 1.0], losses).curvature)
            assert np.isfinite(fit_quadratic([0.0, 0.0, 0.0], losses).curvature)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_loss_that_is_not_finite_makes_every_field_nan(bad):
    for i in range(3):
        losses = np.ones(3, np.float32)
        losses[i] = bad
        assert all(np.isnan(FIT(np.array([-1.0, 0.0, 1.0]), losses)))


@pytest.mark.parametrize("points", [(1.0, 1.0, 1.0), (0.0, 1.0, 1.0), (0.1, 0.1, 0.3, 0.3), (1.0, 1.0, 1.001)])
def test_fewer_than_three_distinct_points_have_no_curvature(points):
    losses = np.linspace(1.0, 0.0, len(points))
    fit = fit_quadratic(points, losses)
    assert fit.curvature == 0
    assert np.isfinite(fit.slope)


def test_points_that_are_close_to_each_other_are_three_points():
    """A thousandth apart, where float32 leaves four digits of their distance."""
    t = np.array([1.0, 1.001, 1.002], np.float32)
    fit = fit_quadratic(t, 100 * (t.astype(np.float64) - 1.0005) ** 2)
    np.testing.assert_allclose([fit.slope, fit.curvature], [200.1, 200.0], rtol=1e-3)
    np.testing.assert_allclose(fit.minimizer, 1.0005, rtol=1e-5)
    np.testing.assert_allclose(fit.r_squared, 1.0, atol=1e-5)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.float32, jnp.int32])
def test_the_fit_is_float32_or_better(dtype):
    fit = fit_quadratic(jnp.array([-1, 0, 1]), jnp.array([3, 1, 2], dtype))
    assert all(x.dtype == jnp.float32 and x.shape == () for x in fit)
    np.testing.assert_allclose([fit.slope, fit.curvature], [0.5, 3.0], rtol=1e-6)
    with jax.enable_x64(True):
        fit = fit_quadratic(np.array([-1.0, 0, 1]), np.array([3.0, 1, 2]))
        assert all(x.dtype == jnp.float64 for x in fit)


@pytest.mark.parametrize("points", [(-1, -0.01, 0), (-1, 0, 0.01), (0, 0.5, 1), (-2, -0.5, 0.5, 1, 2)])
def test_the_resolution_of_points_is_that_of_their_worst_errors(points):
    """Against every sign of the errors. Of the points -1, 0, 1 the slope errs by 1 and the curvature by 4."""
    x = np.array(points, float)
    signs = jnp.array(list(itertools.product([-1.0, 1.0], repeat=len(points))))
    slope, curvature, _ = jax.jit(jax.vmap(functools.partial(_fit.fit_at, x)))(signs)
    worst = max(np.max(np.abs(slope)), np.max(np.abs(curvature)) / 4)
    np.testing.assert_allclose(_fit.resolution(x), 1 / worst, rtol=1e-5)


@pytest.mark.parametrize("size", [0.1, 0.3, 1.0, 3.0])
def test_the_resolution_of_algorithm_1_is_that_of_its_step(size):
    assert _fit.resolution(size * np.array([-1.0, 0.0, 1.0])) == min(size, size**2)


def test_vmap_and_grad():
    t = jnp.array([-1.0, 0.0, 1.0])
    losses = jnp.array([[3.0, 1.0, 2.0], [2.0, 1.0, 2.0]])
    fits = jax.jit(jax.vmap(lambda y: gen_optax.fit_quadratic(t, y)))(losses)
    np.testing.assert_allclose(fits.slope, [0.5, 0.0], atol=1e-6)
    # d slope / d losses of the symmetric three-point rule is (1/2, 0, -1/2).
    np.testing.assert_allclose(
        jax.jit(jax.grad(lambda y: fit_quadratic(t, y).slope))(losses[0]), [0.5, 0, -0.5], atol=1e-6
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([0.0, 1.0], [0.0, 1.0]), r"at least three.*\(2,\)"),
        (([0.0, 1.0, 2.0], [0.0, 1.0]), r"\(3,\).*\(2,\)"),
        ((np.zeros((3, 1)), np.zeros((3, 1))), r"\(3, 1\)"),
        ((0.0, 1.0), r"\(\)"),
        (([0.0, 1.0, 2.0], [0.0, 1.0, 2.0], [1.0]), r"weights.*\(3,\).*\(1,\)"),
    ],
)
def test_bad_shapes(arguments, message):
    with pytest.raises(ValueError, match=message):
        fit_quadratic(*arguments)
