import math

import numpy as np
import pytest

from trqam_fast.report.aggregate import (
    bootstrap,
    counts,
    estimates,
    improvement,
    iqm,
    limits,
    mean,
    profile,
    resample,
    task_means,
)

X = np.array([[5, 5, 8, 10], [0, 1, 9, 10], [2, 3, 9, 4], [3, 9, 2, 4], [7, 6, 0, 0]]) / 10
Y = np.array([[10, 9, 10, 6], [9, 4, 5, 9], [2, 4, 2, 5], [10, 2, 5, 5]]) / 10
TAUS = np.array([0.0, 0.25, 0.5, 0.75, 1.0])

# What rliable 1.2.0 says of X and Y: 50000 resamples, 10000 for the probability of improvement and
# 20000 for the profile.
MEAN, IQM, IQM_Y, IQM_PART = 0.485, 0.47, 0.6, 0.46
BETTER, WORSE = 0.39375, 0.60625
PROFILE = [0.85, 0.7, 0.4, 0.3, 0.0]
MEAN_LIMITS, IQM_LIMITS, BETTER_LIMITS = (0.34, 0.625), (0.27, 0.68), (0.2, 0.6)
PROFILE_LIMITS = [[0.7, 0.5, 0.2, 0.15, 0.0], [1.0, 0.9, 0.6, 0.5, 0.0]]

# The same of 500 resamples after np.random.seed(7).
SAME_LIMITS = [[0.34, 0.27], [0.62, 0.68525]]
SAME_PROFILE_LIMITS = [[0.7, 0.5, 0.2, 0.15, 0.0], [1.0, 0.9, 0.6, 0.5, 0.0]]

# The bootstrap's limits move by this much from seed to seed at the numbers of resamples here.
NOISE = 0.0125


def holes(scores, *where):
    scores = scores.copy()
    for place in where:
        scores[place] = math.nan
    return scores


def test_recorded_points():
    assert mean(X) == pytest.approx(MEAN, abs=1e-12)
    assert iqm(X) == pytest.approx(IQM, abs=1e-12)
    assert iqm(Y) == pytest.approx(IQM_Y, abs=1e-12)
    assert iqm(X[:3, :3]) == pytest.approx(IQM_PART, abs=1e-12)  # nine runs: two cut at each end
    assert improvement(X, Y) == pytest.approx(BETTER, abs=1e-12)
    assert improvement(Y, X) == pytest.approx(WORSE, abs=1e-12)
    np.testing.assert_allclose(profile(X, TAUS), PROFILE, atol=1e-12)


def test_recorded_limits():
    ours = estimates([mean, iqm], X, reps=20_000)
    for found, value, recorded in zip(ours, (MEAN, IQM), (MEAN_LIMITS, IQM_LIMITS), strict=True):
        assert found.value == pytest.approx(value)
        assert (found.low, found.high) == pytest.approx(recorded, abs=NOISE)
    (better,) = estimates([improvement], X, Y, reps=20_000)
    assert (better.low, better.high) == pytest.approx(BETTER_LIMITS, abs=NOISE)
    bands = limits(bootstrap(lambda drawn: profile(drawn, TAUS), X, reps=20_000))
    np.testing.assert_allclose(bands, PROFILE_LIMITS, atol=1 / X.size + 1e-9)  # a run more or less


def rliable_resamples(reps, seed):
    """What rliable draws from X: numpy's frozen generator, the runs of all tasks in one call."""
    np.random.seed(seed)
    indices = [np.random.choice(len(X), X.shape, replace=True) for _ in range(reps)]
    return resample(X, np.stack(indices))


def test_recorded_limits_of_the_same_resamples():
    drawn = rliable_resamples(500, seed=7)
    ours = limits(np.stack([mean(drawn), iqm(drawn)], axis=-1))
    np.testing.assert_allclose(ours, SAME_LIMITS, atol=1e-12)
    np.testing.assert_allclose(limits(profile(drawn, TAUS)), SAME_PROFILE_LIMITS, atol=1e-12)


@pytest.mark.parametrize("shape", [(1, 1), (2, 3), (5, 4), (8, 5), (7, 13)])
def test_points_are_those_of_rliable(shape):
    pytest.importorskip("rliable")
    from rliable import library, metrics

    generator = np.random.default_rng(sum(shape))
    x = generator.integers(0, 51, shape) / 50
    y = np.minimum(1.0, generator.integers(0, 51, (shape[0] + 2, shape[1])) / 50 + 0.1)
    assert mean(x) == pytest.approx(metrics.aggregate_mean(x), abs=1e-12)
    assert iqm(x) == pytest.approx(metrics.aggregate_iqm(x), abs=1e-12)
    theirs = metrics.probability_of_improvement(x, y)
    assert improvement(x, y) == pytest.approx(theirs, abs=1e-12)
    assert improvement(x, x) == pytest.approx(metrics.probability_of_improvement(x, x), abs=1e-12)
    np.testing.assert_allclose(profile(x, TAUS), library.score_distributions(x, TAUS), atol=1e-12)


def test_limits_are_those_of_rliable_from_the_same_resamples():
    pytest.importorskip("rliable")
    from rliable import library, metrics

    reps = 500
    drawn = rliable_resamples(reps, seed=7)
    np.random.seed(7)
    _, theirs = library.get_interval_estimates(
        {"x": X},
        lambda s: np.array([metrics.aggregate_mean(s), metrics.aggregate_iqm(s)]),
        reps=reps,
    )
    ours = limits(np.stack([mean(drawn), iqm(drawn)], axis=-1))
    np.testing.assert_allclose(ours, theirs["x"], atol=1e-12)
    np.random.seed(7)
    _, theirs = library.create_performance_profile({"x": X}, TAUS, reps=reps)
    np.testing.assert_allclose(limits(profile(drawn, TAUS)), theirs["x"], atol=1e-12)


def test_limits_of_improvement_are_those_of_rliable_from_the_same_resamples():
    pytest.importorskip("rliable")
    from rliable import library, metrics

    reps = 300
    np.random.seed(3)
    drawing = library.StratifiedIndependentBootstrap(X, Y)
    pairs = [[index[0] for index in drawing.update_indices()[0]] for _ in range(reps)]
    x = resample(X, np.stack([first for first, _ in pairs]))
    y = resample(Y, np.stack([second for _, second in pairs]))
    np.random.seed(3)
    _, theirs = library.get_interval_estimates(
        {"xy": [X, Y]},
        lambda a, b: np.array([metrics.probability_of_improvement(a, b)]),
        reps=reps,
    )
    np.testing.assert_allclose(limits(improvement(x, y)), theirs["xy"][:, 0], atol=1e-12)


def test_missing_runs_are_left_out():
    """A hole changes what its task has and no other; a task without runs is no task."""
    scores = holes(X, (0, 0), (3, 0), (slice(None), 2))
    present = [[0.0, 0.2, 0.7], list(X[:, 1]), list(X[:, 3])]
    assert counts(scores).tolist() == [3, 5, 0, 5]
    assert mean(scores) == pytest.approx(np.mean([np.mean(task) for task in present]))
    flat = np.sort(np.concatenate(present))
    assert iqm(scores) == pytest.approx(flat[3:-3].mean())
    assert profile(scores, np.array([0.45]))[0] == pytest.approx((flat > 0.45).mean())
    both = [improvement(X[:, [task]], Y[:, [task]]) for task in (0, 1, 3)]
    both[0] = improvement(np.array([[0.0], [0.2], [0.7]]), Y[:, [0]])
    assert improvement(scores, Y) == pytest.approx(np.mean(both))
    assert math.isnan(task_means(scores)[2])


def test_nothing_is_nothing():
    nothing = np.full((3, 2), math.nan)
    assert math.isnan(mean(nothing)) and math.isnan(iqm(nothing))
    assert math.isnan(improvement(nothing, X[:, :2])) and np.isnan(profile(nothing, TAUS)).all()
    for found in estimates([mean, iqm], nothing):
        assert all(map(math.isnan, found))


def test_resamples_stay_within_their_task():
    """Each task draws from its own runs, as many as it has."""
    scores = np.arange(12, dtype=float).reshape(4, 3)
    scores = holes(scores, (1, 0), (2, 0), (slice(None), 2))
    drawn = bootstrap(lambda s: s, scores, reps=400)
    assert drawn.shape == (400, 4, 3)
    assert set(np.unique(drawn[:, :, 0][~np.isnan(drawn[:, :, 0])])) == {0.0, 9.0}
    assert (~np.isnan(drawn[:, :, 0])).sum(1).tolist() == [2] * 400
    assert set(np.unique(drawn[:, :, 1])) == {1.0, 4.0, 7.0, 10.0}
    assert np.isnan(drawn[:, :, 2]).all()
    shares = [(drawn[:, :, 1] == value).mean() for value in (1.0, 4.0, 7.0, 10.0)]
    assert shares == pytest.approx([0.25] * 4, abs=0.05)


def test_the_bootstrap_is_seeded_and_works_in_parts(monkeypatch):
    one, again = (bootstrap(mean, X, reps=50, seed=1) for _ in range(2))
    np.testing.assert_array_equal(one, again)
    assert (bootstrap(mean, X, reps=50, seed=2) != one).any()
    monkeypatch.setattr("trqam_fast.report.aggregate.ELEMENTS_AT_ONCE", 7 * X.size)
    np.testing.assert_array_equal(bootstrap(mean, X, reps=50, seed=1), one)


def test_one_seed_has_no_interval():
    (found,) = estimates([mean], X[:1])
    assert found.value == pytest.approx(0.7) and math.isnan(found.low) and math.isnan(found.high)
    (found,) = estimates([improvement], X[:1], Y)  # the other method has several
    assert not math.isnan(found.low)


def test_unequal_resamples_are_refused():
    with pytest.raises(ValueError, match="one number"):
        iqm(np.stack([X, holes(X, (0, 0))]))
