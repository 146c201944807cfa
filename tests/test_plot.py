"""What the pictures draw: positions and counts, not pixels."""

import functools

import jax
import jax.numpy as jnp
import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import optax
import pytest
from helpers import gen_state, network, network_loss, train
from matplotlib.colors import to_rgb

import gen_optax
from gen_optax import ProbeStatus, plot


@pytest.fixture(autouse=True)
def _close_figures():
    yield
    plt.close("all")


def history(**columns):
    """Ten steps, a probe at each second one; by default all of them accepted."""
    n = 10
    probed = np.arange(n) % 2
    rate = np.geomspace(1e-3, 1e-2, n)
    made = dict(
        learning_rate=rate,
        applied_learning_rate=rate,
        value=np.ones(n),
        slope=np.full(n, 2.0),
        curvature=np.full(n, 10.0),
        optimal_learning_rate=np.full(n, 0.2),
        r_squared=np.ones(n),
        status=np.full(n, int(ProbeStatus.ACCEPTED)),
        accepted=np.ones(n, bool),
        num_probes=np.cumsum(probed),
        num_accepted=np.cumsum(probed),
    )
    return made | columns


def lines(ax):
    """The lines by the first word of their labels."""
    return {line.get_label().split(" (")[0]: line.get_xydata() for line in ax.get_lines()}


def legend(ax):
    return [text.get_text() for text in ax.get_legend().get_texts()]


@functools.cache
def trained():
    """The states of the default optimizer after each of 30 steps, stacked."""
    params, batch = network()
    return train(gen_optax.gen_adamw(num_steps=30), params, network_loss, 30, **batch)[-1]


def at(states, i):
    return jax.tree.map(lambda x: x[i], states)


def test_trace_of_accepted_probes():
    drawn = lines(plot.learning_rate(history()))
    assert drawn.keys() == {r"learning rate $\eta$", "$b/A$"}
    np.testing.assert_allclose(drawn[r"learning rate $\eta$"], np.c_[1:11, np.geomspace(1e-3, 1e-2, 10)])
    np.testing.assert_allclose(drawn["$b/A$"], np.c_[[2, 4, 6, 8, 10], [0.2] * 5])


def test_trace_shows_the_applied_rate_where_it_differs():
    given = history()
    given["applied_learning_rate"] = given["learning_rate"] * np.linspace(1, 0, 10)
    drawn = lines(plot.learning_rate(given))["as applied"]
    np.testing.assert_allclose(drawn[:-1, 1], given["applied_learning_rate"][:-1])
    assert np.isnan(drawn[-1, 1])  # 0 has no place on a logarithmic axis


def test_trace_names_each_reason_in_a_row_of_its_own_below_the_data():
    below = {name: column / 1e3 for name, column in history().items() if name.endswith("learning_rate")}
    status = np.full(10, int(ProbeStatus.ACCEPTED))
    status[[1, 2]] = ProbeStatus.ASCENT  # step 3 is no probe, it still tells of the last one
    status[[5, 6, 7, 8]] = ProbeStatus.POOR_FIT
    ax = plot.learning_rate(history(status=status, **below))
    drawn = lines(ax)
    np.testing.assert_array_equal(drawn["loss rose"][:, 0], [2])
    np.testing.assert_array_equal(drawn["no parabola"][:, 0], [6, 8])
    np.testing.assert_array_equal(drawn["$b/A$"][:, 0], [4, 10])
    rows = [drawn[name][0, 1] for name in ("loss rose", "no parabola")]
    assert rows[0] != rows[1]
    lowest = ax.transAxes.inverted().transform(ax.transData.transform((1, 1e-6)))[1]
    assert max(rows) + 0.02 < lowest
    assert ax.get_ylim()[1] < 1e-3  # the rows take no part in the scale of the data
    assert ax.get_ylim()[0] > 1e-8
    assert {"loss rose (1)", "no parabola (2)", "$b/A$ (2)"} <= set(legend(ax))


def test_trace_keeps_the_legend_off_the_data():
    for given in (history(), history(status=np.full(10, int(ProbeStatus.ASCENT)))):
        ax = plot.learning_rate(given)
        ax.figure.canvas.draw()
        highest = max(np.nanmax(line.get_ydata()) for line in ax.get_lines() if line.get_transform() == ax.transData)
        assert ax.get_legend().get_window_extent().y0 > ax.transData.transform((1, highest))[1]


def test_trace_of_a_run_that_found_no_rate():
    zero = np.zeros(10)
    given = history(learning_rate=zero, applied_learning_rate=zero, optimal_learning_rate=zero)
    ax = plot.learning_rate(given | dict(status=np.full(10, int(ProbeStatus.BELOW_ROUNDING))))
    ax.figure.canvas.draw()
    assert len(lines(ax)["change below rounding"]) == 5


def test_trace_has_words_for_every_reason():
    reasons = [status for status in ProbeStatus if status not in (ProbeStatus.NONE, ProbeStatus.ACCEPTED)]
    n = len(reasons)
    given = {name: column[:n] for name, column in history().items()}
    given |= dict(status=np.array(reasons), num_probes=np.arange(1, n + 1))
    ax = plot.learning_rate(given)
    assert len(legend(ax)) == n + 1
    marks = [line for line in ax.get_lines() if line.get_label().endswith("(1)")]
    assert len({line.get_marker() for line in marks}) == n
    assert len({line.get_ydata()[0] for line in marks}) == n


def test_trace_leaves_gaps_where_there_is_no_rate():
    given = history()
    given["learning_rate"] = given["applied_learning_rate"] = np.r_[0.0, np.nan, np.full(8, 0.1)]
    given["optimal_learning_rate"] = np.r_[np.full(9, 0.2), np.inf]
    drawn = lines(plot.learning_rate(given))
    assert np.isnan(drawn[r"learning rate $\eta$"][:2, 1]).all()
    assert np.isnan(drawn["$b/A$"][-1, 1])


def test_trace_on_given_axes_and_steps():
    ax = plt.subplots()[1]
    assert plot.learning_rate(history(), ax, steps=10 * np.arange(10)) is ax
    np.testing.assert_array_equal(lines(ax)["$b/A$"][:, 0], [10, 30, 50, 70, 90])
    assert (ax.get_xlabel(), ax.get_ylabel(), ax.get_yscale()) == ("step", "learning rate", "log")
    with pytest.raises(ValueError, match="one number per entry"):
        plot.learning_rate(history(), steps=[1, 2])


def test_a_history_that_starts_in_the_middle_does_not_invent_a_probe():
    later = {name: column[2:] for name, column in history(num_probes=50 + np.arange(10) // 2).items()}
    np.testing.assert_array_equal(lines(plot.learning_rate(later))["$b/A$"][:, 0], [3, 5, 7])


def test_every_form_of_a_history_draws_the_same():
    states = trained()
    one_by_one = [at(states, i) for i in range(30)]
    forms = {
        "arrays": gen_optax.metrics(states),
        "traced arrays": {name: jnp.asarray(x) for name, x in gen_optax.metrics(states).items()},
        "dicts": [gen_optax.metrics(state) for state in one_by_one],
        "optimizer states": one_by_one,
        "GenStates": [gen_state(state) for state in one_by_one],
        "one GenState of arrays": gen_state(states),
        "a tuple of dicts": tuple(gen_optax.metrics(state) for state in one_by_one),
    }
    drawn = {name: lines(plot.learning_rate(form)) for name, form in forms.items()}
    for name, found in drawn.items():
        assert found.keys() == drawn["arrays"].keys(), name
        for label, points in found.items():
            np.testing.assert_array_equal(points, drawn["arrays"][label], err_msg=name)
    points = drawn["arrays"]["$b/A$"]
    assert len(points) == gen_state(one_by_one[-1]).info.num_accepted


def test_infos_show_the_probes_without_a_rate():
    states = trained()
    infos = [at(gen_state(states).info, i) for i in range(30)]
    expected = lines(plot.learning_rate(gen_state(states)))
    for form in (infos, gen_state(states).info):
        drawn = lines(plot.learning_rate(form))
        assert r"learning rate $\eta$" not in drawn
        np.testing.assert_array_equal(drawn["$b/A$"], expected["$b/A$"])
    with pytest.raises(ValueError, match=r"not state\.info"):
        plot.decrease(infos, np.zeros(30))


def test_infos_without_a_probe_have_neither_rate_nor_legend():
    state = gen_optax.gen_adamw(controller=gen_optax.algorithm_1()).init(jnp.zeros(3))
    ax = plot.learning_rate([gen_state(state).info] * 3)
    ax.figure.canvas.draw()
    assert ax.get_legend() is None
    assert not ax.get_lines()


def test_an_empty_history_and_several_rates_are_refused():
    with pytest.raises(ValueError, match="empty"):
        plot.learning_rate([])
    with pytest.raises(ValueError, match="several learning rates"):
        plot.learning_rate({f"0/{name}": column for name, column in history().items()})


def test_parabola_through_the_losses():
    step_sizes = np.array([-0.1, 0.0, 0.1])
    losses = 1.0 - 2.0 * step_sizes + 5.0 * step_sizes**2
    info = {name: column[0] for name, column in history().items()}
    ax = plot.parabola(info, step_sizes, losses, learning_rate=0.05)
    drawn = lines(ax)
    np.testing.assert_array_equal(drawn["loss along the step"], np.c_[step_sizes, losses])
    t, fitted = drawn["fitted parabola"].T
    np.testing.assert_allclose(fitted, 1.0 - 2.0 * t + 5.0 * t**2)
    assert t[0] <= -0.1
    assert t[-1] > 0.2  # past the minimum
    np.testing.assert_array_equal(drawn[r"$\eta^* = b/A$ = 0.2"][:, 0], [0.2, 0.2])
    np.testing.assert_array_equal(drawn[r"$\eta$ = 0.05"][:, 0], [0.05, 0.05])


@pytest.mark.parametrize("best", [0.2, -0.2])
def test_parabola_alone_spans_start_and_minimum(best):
    t = lines(plot.parabola(dict(value=1.0, slope=10 * best, curvature=10.0, optimal_learning_rate=best)))
    t = t["fitted parabola"][:, 0]
    assert t.min() < min(0, best)
    assert t.max() > max(0, best)


def test_parabola_names_a_minimum_out_of_sight():
    info = dict(value=1.0, slope=2.0, curvature=0.002, optimal_learning_rate=1000.0)
    ax = plot.parabola(info, [-0.1, 0.0, 0.1], [1.2, 1.0, 0.8])
    assert any("out of sight" in text for text in legend(ax))
    assert ax.get_xlim()[1] < 1


@pytest.mark.parametrize(("slope", "curvature", "best"), [(2.0, -1.0, np.inf), (np.nan, np.nan, np.nan)])
def test_parabola_without_a_minimum(slope, curvature, best):
    ax = plot.parabola(dict(value=1.0, slope=slope, curvature=curvature, optimal_learning_rate=best))
    assert legend(ax) == ["fitted parabola"]


def test_parabola_says_why_it_was_not_used():
    info = {name: column[0] for name, column in history(status=np.full(10, int(ProbeStatus.POOR_FIT))).items()}
    assert "fitted parabola, not used: no parabola" in legend(plot.parabola(info))


def test_parabola_of_a_history_is_the_last():
    given = history(value=np.arange(10.0))
    for form in (given, [{name: column[i] for name, column in given.items()} for i in range(10)]):
        t, fitted = lines(plot.parabola(form))["fitted parabola"].T
        np.testing.assert_allclose(fitted, 9.0 - 2.0 * t + 5.0 * t**2)


def test_parabola_of_a_real_info():
    assert "fitted parabola" in legend(plot.parabola(at(gen_state(trained()).info, 4)))[0]


def test_parabola_needs_both_or_none():
    with pytest.raises(ValueError, match="together"):
        plot.parabola(history(), step_sizes=[0.0, 1.0])


def test_decrease_shows_accepted_probes_at_what_they_promise():
    status = np.full(10, int(ProbeStatus.ACCEPTED))
    status[3] = ProbeStatus.ASCENT
    given = history(status=status)
    given["applied_learning_rate"] = given["learning_rate"] / 2
    actual = np.linspace(0.0, 0.1, 10)
    drawn = lines(plot.decrease(given, actual, along="step"))
    h = given["applied_learning_rate"][[1, 5, 7, 9]]
    np.testing.assert_allclose(drawn["accepted probes"], np.c_[2.0 * h - 5.0 * h**2, actual[[1, 5, 7, 9]]])
    np.testing.assert_allclose(drawn["as predicted"][:, 0], drawn["as predicted"][:, 1])
    assert drawn["as predicted"][-1, 0] == pytest.approx(drawn["accepted probes"][:, 0].max())


def test_decrease_of_probes_ahead_is_that_of_their_own_step():
    """On a quadratic the prediction is exact, and of the same index as the step: no neighbour is."""

    def loss_fn(w):
        return jnp.sum(jnp.array([1.0, 3.0, 10.0]) * w**2)

    w = jnp.array([1.0, -2.0, 0.5])
    controller = gen_optax.algorithm_1(init_learning_rate=0.01, smoothing=0.95)
    tx = gen_optax.gen_sgd(controller=controller, probe=gen_optax.exact(), every=2)
    _, _, losses, states = train(tx, w, loss_fn, 21)
    probed, actual = jax.tree.map(lambda x: x[:-1], gen_state(states)), losses[:-1] - losses[1:]
    drawn = lines(plot.decrease(probed, actual, along="step"))
    predicted, actual = drawn["accepted probes"].T
    assert len(predicted) == 10
    np.testing.assert_allclose(predicted, actual, rtol=1e-3, atol=1e-5)


def test_decrease_of_paths_is_that_of_the_steps_since_the_anchor():
    """On the batch of the probe itself both are the same difference of two losses."""
    params, batch = network()
    tx = gen_optax.gen_adamw(num_steps=80)
    _, _, losses, states = train(tx, params, network_loss, 80, **batch)
    length = np.r_[0, optax.tree.get(states, "probe").length[:-1]]  # as each call of update finds it
    actual = losses[np.arange(80) - length] - losses
    drawn = lines(plot.decrease(gen_optax.metrics(states), actual))
    predicted, real = drawn["accepted probes"].T
    assert len(predicted) > 10
    assert length.max() == 16
    np.testing.assert_allclose(predicted, real, rtol=1e-3, atol=1e-5)


def test_decrease_of_a_first_entry_has_no_rate_before_it():
    one = {name: column[1:2] for name, column in history().items()}
    assert len(lines(plot.decrease(one, [0.1], along="path"))["accepted probes"]) == 0
    with pytest.raises(ValueError, match="'paths'"):
        plot.decrease(one, [0.1], along="paths")


def test_decrease_without_accepted_probes_and_with_one():
    none = history(status=np.full(10, int(ProbeStatus.ASCENT)))
    assert len(lines(plot.decrease(none, np.zeros(10)))["accepted probes"]) == 0
    one = {name: column[1:2] for name, column in history().items()}
    assert len(lines(plot.decrease(one, [0.1], along="step"))["accepted probes"]) == 1
    with pytest.raises(ValueError, match="one actual decrease per step"):
        plot.decrease(history(), np.zeros(9))


@pytest.mark.parametrize("style", ["default", "dark_background"])
def test_every_picture_is_drawn_on_light_and_on_dark(style, tmp_path):
    with plt.style.context(style):
        figure, axes = plt.subplots(1, 3, layout="constrained")
        plot.learning_rate(history(), axes[0])
        plot.decrease(history(), np.zeros(10), axes[1])
        plot.parabola(history(), [-0.1, 0.0, 0.1], [1.2, 1.0, 0.9], 0.1, axes[2])
        figure.savefig(tmp_path / "picture.png")
        background = to_rgb(plt.rcParams["axes.facecolor"])
    for ax in axes:
        assert ax.get_xlabel()
        assert ax.get_ylabel()
        for line in ax.get_lines():
            assert contrast(to_rgb(line.get_color()), background) >= 3  # what WCAG asks of graphics


def contrast(a, b):
    """Ratio of the relative luminances of two colours, as WCAG defines it."""

    def luminance(colour):
        c = np.array(colour)
        return np.where(c <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4) @ [0.2126, 0.7152, 0.0722]

    dark, light = sorted([luminance(a), luminance(b)])
    return (light + 0.05) / (dark + 0.05)
