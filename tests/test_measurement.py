"""The one place where a measurement is judged: the first reason against it."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest
from helpers import measurement

import gen_optax
from gen_optax import ProbeStatus, _measurement


@pytest.mark.parametrize(
    ("measured", "status"),
    [
        (measurement(1.0, 2.0), "ACCEPTED"),
        (measurement(1.0, 2.0, value=np.nan), "NOT_FINITE"),
        (measurement(1.0, 2.0, value=-np.inf), "NOT_FINITE"),
        (measurement(np.nan, np.nan, end_value=np.nan), "OVERSHOOT"),
        (measurement(np.nan, np.nan, end_value=np.inf), "OVERSHOOT"),
        (measurement(np.nan, np.nan, end_value=np.inf, jumped=True, out_of_turn=True), "OVERSHOOT"),
        (measurement(np.nan, np.nan, value=np.nan, end_value=np.nan), "NOT_FINITE"),
        (measurement(1.0, 2.0, jumped=True), "JUMP"),
        (measurement(1.0, 2.0, jumped=True, out_of_turn=True), "JUMP"),
        (measurement(np.nan, np.nan, jumped=True), "JUMP"),
        (measurement(0.0, 2.0, jumped=True), "JUMP"),
        (measurement(1.0, 2.0, out_of_turn=True), "FALSE_ALARM"),
        (measurement(-1.0, 2.0, out_of_turn=True), "FALSE_ALARM"),
        (measurement(np.nan, 2.0, out_of_turn=True), "FALSE_ALARM"),
        (measurement(1.0, 2.0, value=np.nan, jumped=True, out_of_turn=True), "NOT_FINITE"),
        (measurement(np.nan, 2.0), "NOT_FINITE"),
        (measurement(1.0, np.inf), "NOT_FINITE"),
        (measurement(1.0, 2.0, r_squared=np.nan), "NOT_FINITE"),
        (measurement(0.0, 2.0, noise=0.0), "BELOW_ROUNDING"),
        (measurement(1e-7, 2.0), "BELOW_ROUNDING"),
        (measurement(-1e-7, 2.0), "BELOW_ROUNDING"),
        (measurement(-1.0, 2.0), "ASCENT"),
        (measurement(-1.0, -2.0), "ASCENT"),
        (measurement(1.0, -2.0), "NO_CURVATURE"),
        (measurement(1.0, 0.0, noise=0.0), "NO_CURVATURE"),
        (measurement(1.0, 1e-7), "NO_CURVATURE"),
        (measurement(1.0, 2.0, r_squared=0.98), "POOR_FIT"),
        (measurement(1.0, 2.0, r_squared=0.991), "ACCEPTED"),
    ],
)
def test_verdicts(measured, status):
    verdict = _measurement.judge(measured)
    assert ProbeStatus(int(verdict)).name == status
    assert verdict.dtype == jnp.int32


def test_a_probe_that_says_no_more_than_it_has_to():
    """The other fields have defaults: a fit that cannot fail, no noise, a turn of its own."""
    measured = gen_optax.Measurement(*map(jnp.float32, (1.0, 1.0, 2.0, 0.0, 0.1)))
    assert _measurement.judge(measured) == ProbeStatus.ACCEPTED


def along(probe, start, end, in_turn=True, searching=False, updates=1.0, spread=0.0):
    """What the direction of a probe reports of losses at both ends of a step."""
    nothing = dict.fromkeys(field.name for field in dataclasses.fields(gen_optax.Context))
    one, params = jnp.float32(1.0), jnp.float32([1.0, updates])
    known = {"learning_rate": one, "applied_learning_rate": one, "decay": one, "updates": params, "count": jnp.int32(7)}
    known |= {"in_turn": jnp.array(in_turn), "searching": jnp.array(searching), "every": 16, "loss": jnp.sum}
    context = gen_optax.Context(**(nothing | known | {"params": params}))
    state = probe.direction.init(params)
    if isinstance(probe.direction, gen_optax.Path):
        state = state._replace(losses=state.losses._replace(spread=jnp.float32(spread)))
    return probe.direction.measurement(state, context, *map(jnp.float32, (start, end, 1.0, 2.0)))


@pytest.mark.parametrize(
    ("rise", "probe", "in_turn", "searching", "jumped"),
    [
        (4.1, gen_optax.retrospective(), True, True, True),  # a rate that is being found
        (3.9, gen_optax.retrospective(), True, True, False),  # a fresh batch may lose by chance
        (4.1, gen_optax.retrospective(), True, False, True),
        (4.1, gen_optax.retrospective(), False, False, True),  # an alarm, and it was right
        (3.9, gen_optax.retrospective(), False, False, False),
        (4.1, gen_optax.finite_difference(independent=True), True, False, False),  # judged by its parabola
        (4.1, gen_optax.finite_difference(), True, False, False),
    ],
)
@pytest.mark.parametrize("level", [0.0, 100.0, -1.0])
def test_what_is_an_overshot_beyond_doubt(rise, probe, in_turn, searching, jumped, level):
    """Four times the largest change of late, whatever the level of the loss; nothing is known of the first change."""
    assert along(probe, level, level + rise, in_turn, searching, spread=1.0).jumped == jumped
    assert not along(probe, level, level + rise, in_turn, searching).jumped


@pytest.mark.parametrize("probe", [gen_optax.finite_difference(), gen_optax.exact(independent=True)])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_step_that_is_not_finite_leads_nowhere(probe, bad):
    """Whatever was measured along it."""
    assert _measurement.judge(along(probe, 1.0, 0.5)) == ProbeStatus.ACCEPTED
    assert _measurement.judge(along(probe, 1.0, 0.5, updates=bad)) == ProbeStatus.NOT_FINITE
