"""Reports of histories whose answers are known, and a schedule that is copied from a run and trained with."""

import functools
import subprocess
import sys

import jax
import jax.numpy as jnp
import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import optax
import pytest
from sklearn.datasets import load_digits

import gen_optax
import gen_optax.plot
from gen_optax import Notice, ProbeStatus

STEPS = 400


@pytest.fixture(autouse=True)
def _close_figures():
    yield
    plt.close("all")


def history(n=1000, rho=0.8, level=1e-2, decay=None, every=16, search=50, **columns):
    """A run of `n` steps: `search` probes at calls 2, 3, ..., then one at every `every`-th call.

    `rho` is the factor by which the steps of each probe fell short of their minimum.
    """
    step = np.arange(1, n + 1)
    probed = ((step > 1) & (step <= search + 1)) | ((step > search + 1) & (step % every == 0))
    rate = np.where(step <= search, level * step / max(search, 1), level) * np.ones(n)
    applied = rate * (np.ones(n) if decay is None else decay(step - 1))
    before = np.append(1.0, applied[:-1])
    before = np.where(before > 0, before, 1.0)
    made = dict(
        learning_rate=rate,
        applied_learning_rate=applied,
        slope=rho / before,
        curvature=1 / before**2,
        optimal_learning_rate=rho * before,
        status=np.full(n, int(ProbeStatus.ACCEPTED)),
        num_probes=np.cumsum(probed),
        notices=np.zeros(n, int),
    )
    return made | columns


def hold_then_linear(count, num_steps=1000):
    return np.clip(4 * (1 - count / num_steps), 0, 1)


def after_the_search(given):
    """The entries at which there was a probe after the search."""
    return np.flatnonzero((np.diff(given["num_probes"], prepend=0) > 0) & (given["num_probes"] > 50))


def rates(found, n):
    return np.asarray(jax.vmap(found.schedule())(jnp.arange(n)))


# --- a run whose answers are known -----------------------------------------------------------------------------------


def test_six_lines():
    given = history(decay=hold_then_linear)
    for name in ("learning_rate", "applied_learning_rate"):
        given[name][600] = 2e-2
    status = given["status"]
    status[after_the_search(given)[:11]] = ProbeStatus.FALSE_ALARM
    assert str(gen_optax.report(given)).splitlines() == [
        "Learning rate: 0.01, between 0.01 and 0.02 after the search.",
        "Search: the first 51 of 1,000 steps (5.1 %).",
        "Probes: 109, 90 % readable; the others: false alarm 10 %.",
        "Limit: curvature; the steps raised the loss of a fresh batch at 0 % of the probes, and the minimum lies 0.8 "
        "times as far as they went.",
        "Set-up: no notice.",
        "To copy: peak 0.01 after 51 steps of warm-up, hold, linear to 0 from step 750 to 1,000.",
    ]


def test_the_schedule_is_warm_up_level_and_decay():
    found = gen_optax.report(history(decay=hold_then_linear))
    step = np.arange(1, 1001)
    expected = 1e-2 * np.minimum(step / 51, 1) * hold_then_linear(step - 1)
    np.testing.assert_allclose(rates(found, 1000), expected, rtol=1e-4, atol=1e-9)
    assert found.copied.decay == pytest.approx((750, 1000))
    assert float(found.schedule()(2000)) == 0


def test_a_decay_that_has_not_ended_is_drawn_out_to_its_end():
    given = {name: column[:900] for name, column in history(decay=hold_then_linear).items()}
    assert gen_optax.report(given).copied.decay == pytest.approx((750, 1000))


@pytest.mark.parametrize("num_steps", [30, 51])
def test_a_decay_that_begins_between_two_steps_is_copied_as_it_is(num_steps):
    given = history(num_steps, decay=functools.partial(hold_then_linear, num_steps=num_steps), search=5, every=4)
    found = gen_optax.report(given)
    np.testing.assert_allclose(rates(found, num_steps)[6:], given["applied_learning_rate"][6:], rtol=1e-4, atol=1e-9)
    assert str(found).endswith(f"linear to 0 from step {round(0.75 * num_steps)} to {num_steps}.")


def test_another_decay_is_read_off():
    cosine = optax.cosine_decay_schedule(1.0, 3000)
    given = history(3000, decay=lambda count: np.asarray(cosine(count)))
    found = gen_optax.report(given)
    assert found.copied.decay is None
    assert len(found.copied.factors[0]) <= 1000
    np.testing.assert_allclose(rates(found, 3000)[51:], given["applied_learning_rate"][51:], rtol=1e-2, atol=1e-7)
    assert str(found).endswith("hold, and all of it times the decay of the run.")


def test_an_open_end_holds():
    found = gen_optax.report(history())
    assert str(found).endswith("To copy: peak 0.01 after 51 steps of warm-up, hold.")
    np.testing.assert_allclose(rates(found, 5000)[51:], 1e-2, rtol=1e-5)


@pytest.mark.parametrize("power", [-0.5, 0.7])
def test_a_level_that_moves_is_a_power_of_the_step(power):
    level = 1e-2 * (np.arange(1, 2001) / 52) ** power
    found = gen_optax.report(history(2000, level=level))
    assert found.copied.power == pytest.approx(power, abs=1e-6)
    np.testing.assert_allclose(rates(found, 2000)[51:], level[51:], rtol=1e-3)
    assert f"0.01 after 51 steps of warm-up, then times (step / 52)^{power:.2f}" in str(found)
    assert found.learning_rate_range == pytest.approx((min(level[51], level[-1]), max(level[51], level[-1])))


def test_a_level_that_scatters_is_held_at_its_median():
    trend = (np.arange(1, 2001) / 52) ** 0.2  # by a factor of two, which the scatter hides
    level = 1e-2 * trend * np.exp(np.random.default_rng(0).normal(size=2000))
    found = gen_optax.report(history(2000, level=level))
    assert found.copied.power == 0
    assert found.copied.peak == pytest.approx(np.median(level[51:]))


def test_steps_that_were_not_taken_are_no_decay():
    given = history()
    given["applied_learning_rate"][[200, 300]] = 0
    given["status"][[200, 300]] = ProbeStatus.JUMP
    found = gen_optax.report(given)
    np.testing.assert_allclose(rates(found, 1000)[51:], 1e-2, rtol=1e-5)


# --- the search ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("every", "search"), [(16, 50), (4, 50), (2, 50), (16, 20), (100, 50)])
def test_the_search_ends_where_probes_become_fewer(every, search):
    found = gen_optax.report(history(every=every, search=search))
    assert search + 1 <= found.search_steps <= search + 2  # a regular probe may follow at once


def test_a_search_in_a_history_of_every_tenth_step():
    given = {name: column[9::10] for name, column in history().items()}
    found = gen_optax.report(given, steps=np.arange(10, 1001, 10))
    assert 45 <= found.search_steps <= 60
    assert (found.last_step, found.num_probes) == (1000, 109)
    assert "Probes: 109 (the history tells of " in str(found)
    np.testing.assert_allclose(rates(found, 1000)[60:], 1e-2, rtol=1e-5)


def test_even_probes_are_no_search():
    found = gen_optax.report(history(search=0, every=8))
    assert found.search_steps == 0
    assert found.limit == "not clear"
    assert "Search: the history shows none" in str(found)
    assert str(found).endswith("To copy: peak 0.01 at once, hold.")


def test_a_run_that_ends_in_its_search():
    given = {name: column[:40] for name, column in history().items()}
    found = gen_optax.report(given)
    assert found.search_steps == 40
    assert "Search: the first 40 of 40 steps (100 %)." in str(found)
    assert "before the run ended in the search" in str(found)
    assert found.learning_rate == pytest.approx(6e-3, rel=0.05)  # of the second half


def test_a_probe_of_the_search_that_waited_does_not_end_it():
    given = history()
    probed = np.diff(given["num_probes"], prepend=0)
    probed[20:24] = 0  # until a new batch comes
    assert gen_optax.report(given | dict(num_probes=np.cumsum(probed))).search_steps == 51


def test_probes_stay_rare_once_they_are():
    """Alarms bring single probes out of turn, and in the end most turns are left out."""
    given = history(3000)
    extra = np.zeros(3000, int)
    extra[[400, 401, 403]] = 1
    probed = np.diff(given["num_probes"], prepend=0) + extra
    probed[2000:] *= np.arange(2000, 3000) % 128 == 127
    assert gen_optax.report(given | dict(num_probes=np.cumsum(probed))).search_steps == 51


# --- what limits the rate --------------------------------------------------------------------------------------------


def test_noise_where_the_batches_disagree():
    rho = np.where(np.arange(1000) // 16 % 2, 1.5, -0.4)
    found = gen_optax.report(history(rho=rho))
    assert found.limit == "noise"
    assert "at 49 % of the probes" in found.why


@pytest.mark.parametrize(
    ("rho", "limit"), [(0.8, "curvature"), (1.9, "curvature"), (5.0, "nothing"), (0.2, "not clear")]
)
def test_batches_that_agree(rho, limit):
    assert gen_optax.report(history(rho=rho)).limit == limit


def test_steps_that_are_taken_back_are_a_limit():
    given = history(rho=5.0)
    given["status"][after_the_search(given)[::10]] = ProbeStatus.JUMP
    found = gen_optax.report(given)
    assert found.limit == "curvature"
    assert "taken back 6 times" in found.why


def test_no_curvature_is_no_limit():
    given = history(rho=5.0)
    given["curvature"] *= -1
    found = gen_optax.report(given | dict(status=np.full(1000, int(ProbeStatus.NO_CURVATURE))))
    assert found.limit == "nothing"
    assert "out of sight" in found.why


def test_some_disagreement_or_few_probes_are_not_clear():
    rho = np.where(np.arange(1000) // 16 % 5, 1.5, -0.4)
    assert gen_optax.report(history(rho=rho)).limit == "not clear"
    short = {name: column[:120] for name, column in history().items()}
    found = gen_optax.report(short)
    assert (found.limit, found.why) == ("not clear", "only 4 readable probes after the search")


# --- what is wrong ---------------------------------------------------------------------------------------------------


def test_notices_are_said():
    given = history()
    given["notices"][500:] = int(Notice.VALUE_DIFFERS | Notice.BATCH_SEEN)
    found = gen_optax.report(given)
    assert found.notices == Notice.VALUE_DIFFERS | Notice.BATCH_SEEN
    assert "Set-up: VALUE_DIFFERS, the `value` given to update is not value_fn(params)" in str(found)
    assert "; BATCH_SEEN, all batches come back" in str(found)


def test_a_run_that_found_no_rate():
    tx = gen_optax.gen(optax.scale_by_adam())  # without its sign

    @jax.jit
    def step(w, state):
        value, grads = jax.value_and_grad(loss_fn)(w)
        updates, state = tx.update(grads, state, w, value=value, value_fn=loss_fn)
        return optax.apply_updates(w, updates), state, gen_optax.metrics(state)

    def loss_fn(w):
        return jnp.sum((w - 3.0) ** 2)

    w, collected = jnp.zeros(2), []
    state = tx.init(w)
    for _ in range(5):
        w, state, metrics = step(w, state)
        collected.append(metrics)
    found = gen_optax.report(collected)
    assert found.learning_rate == 0
    assert str(found).splitlines()[0] == "Learning rate: none after 5 steps; no rate was found, loss rose."
    assert "UPHILL" in str(found)
    with pytest.raises(ValueError, match="no rate was found, loss rose"):
        found.schedule()
    gen_optax.plot.report(collected).canvas.draw()


def test_bad_histories_are_refused():
    with pytest.raises(ValueError, match="empty"):
        gen_optax.report([])
    with pytest.raises(ValueError, match="needs learning_rate, slope in every entry"):
        gen_optax.report({name: x for name, x in history().items() if name not in ("learning_rate", "slope")})
    with pytest.raises(ValueError, match=r"not state\.info"):
        gen_optax.report([gen_optax.gen_adamw().init(jnp.zeros(3))[-1].info])
    with pytest.raises(ValueError, match="one number per entry"):
        gen_optax.report(history(), steps=[1, 2])
    with pytest.raises(ValueError, match="several learning rates"):
        gen_optax.report({f"0/{name}": column for name, column in history().items()})


@pytest.mark.parametrize("made", [gen_optax.report, gen_optax.plot.report])
def test_one_entry_is_no_history(made):
    """The last metrics, or those stacked over one step: how to record a history."""
    given = history(100)
    message = r"got one entry\. Collect one after each step, with history\.append\(gen_optax\.metrics\(state\)\)"
    for last in (
        {name: column[-1] for name, column in given.items()},
        {name: column[-1:] for name, column in given.items()},
        [{name: column[-1] for name, column in given.items()}],
        gen_optax.metrics(gen_optax.gen_adamw().init(jnp.zeros(3))),
    ):
        with pytest.raises(ValueError, match=message):
            made(last)
    assert not plt.get_fignums()
    made({name: column[-2:] for name, column in given.items()})


def test_entries_may_have_further_names():
    given = history(100)
    entries = [{name: column[i] for name, column in given.items()} for i in range(100)]
    entries[0]["accuracy"] = 0.1  # evaluated now and then
    assert str(gen_optax.report(entries)) == str(gen_optax.report(given))


def test_it_needs_no_matplotlib():
    code = "import sys; sys.modules['matplotlib'] = None; import gen_optax; gen_optax.report; print('fine')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "fine\n", done.stderr


# --- a real run ------------------------------------------------------------------------------------------------------


@functools.cache
def digits():
    """A fifth of the labels is random, so that the loss ends at a floor, and not where rounding leads."""
    data, generator = load_digits(), np.random.default_rng(0)
    labels = np.where(generator.random(1797) < 0.2, generator.integers(10, size=1797), data.target)
    return jnp.asarray(data.data / 16, jnp.float32), jnp.asarray(labels)


def digits_loss(params, chosen):
    x, labels = (column[chosen] for column in digits())
    logits = jax.nn.relu(x @ params["hidden"]) @ params["out"]
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


@functools.cache
def trained(tx):
    """The loss over all images at the end, and the history, with the loss of each step."""
    digits()
    tx = optax.with_extra_args_support(tx)
    keys = jax.random.split(jax.random.key(0), 3)
    params = {"hidden": jax.random.normal(keys[0], (64, 32)) / 8, "out": jax.random.normal(keys[1], (32, 10)) / 8}
    batches = jax.random.randint(keys[2], (STEPS, 64), 0, 1797)

    def step(carry, batch):
        params, state = carry
        value, grads = jax.value_and_grad(digits_loss)(params, batch)
        updates, state = tx.update(grads, state, params, value=value, value_fn=digits_loss, chosen=batch)
        params = optax.apply_updates(params, updates)
        has_metrics = any(isinstance(part, gen_optax.GenState) for part in state)
        return (params, state), {"loss": value, **(gen_optax.metrics(state) if has_metrics else {})}

    (params, _), log = jax.jit(lambda carry: jax.lax.scan(step, carry, batches))((params, tx.init(params)))
    return float(digits_loss(params, jnp.arange(1797))), jax.device_get(log)


def test_plain_adamw_with_the_copied_schedule_ends_where_gen_does():
    by_gen, log = trained(gen_optax.gen(optax.adamw(1.0), num_steps=STEPS))
    found = gen_optax.report(log)
    assert found.limit == "noise"
    assert found.search_steps == 51
    assert found.copied.decay == pytest.approx((3 * STEPS // 4, STEPS), abs=0.5)
    copied, _ = trained(optax.adamw(found.schedule()))
    assert copied == pytest.approx(by_gen, rel=0.03)
    lower, _ = trained(optax.adamw(lambda count: found.schedule()(count) / 3))
    assert lower > 1.06 * by_gen


def test_the_picture_of_a_run():
    _, log = trained(gen_optax.gen(optax.adamw(1.0), num_steps=STEPS))
    figure = gen_optax.plot.report(log)
    loss, below = figure.axes
    np.testing.assert_allclose(loss.get_lines()[0].get_ydata(), log["loss"])
    drawn = {line.get_label().split(" (")[0]: line for line in below.get_lines()}
    assert {"as applied", r"learning rate $\eta$", "$b/A$", "schedule to copy"} <= drawn.keys()
    expected = rates(gen_optax.report(log), STEPS)
    np.testing.assert_allclose(drawn["schedule to copy"].get_ydata(), expected, rtol=1e-5)
    assert drawn["schedule to copy"].get_linestyle() == "--"
    text = " ".join(figure.get_supxlabel().split())
    assert text == " ".join(str(gen_optax.report(log)).split())
    figure.canvas.draw()
    bottom = below.get_tightbbox(figure.canvas.get_renderer()).y0
    label = next(text for text in figure.texts if text.get_text() == figure.get_supxlabel())
    box = label.get_window_extent()
    assert box.y1 <= bottom
    assert box.x0 >= 0
    assert box.x1 <= figure.bbox.width


def test_the_picture_without_a_loss_on_a_figure_of_ones_own():
    figure = plt.figure()
    assert gen_optax.plot.report(history(100), figure, steps=10 * np.arange(1, 101)) is figure
    (ax,) = figure.axes
    np.testing.assert_array_equal(ax.get_lines()[0].get_xdata(), 10 * np.arange(1, 101))
