import numpy as np
import pytest

from components.metrics import bootstrap, wilson_interval
from components.metrics.distances import frechet_distance
from components.metrics.intervals import centred_interval, percentiles


@pytest.mark.parametrize(("hits", "trials"), [(0, 10), (3, 10), (95, 100), (100, 100), (1, 1)])
def test_wilson_interval_is_scipys(hits, trials):
    stats = pytest.importorskip("scipy.stats")
    theirs = stats.binomtest(hits, trials).proportion_ci(0.95, method="wilson")
    assert wilson_interval(hits, trials) == pytest.approx((theirs.low, theirs.high), abs=1e-12)


def test_wilson_interval_of_nothing_is_none_and_of_nonsense_an_error():
    assert wilson_interval(0, 0) is None
    with pytest.raises(ValueError, match="4 hits in 3 trials"):
        wilson_interval(4, 3)


def test_bootstrap_of_a_mean_is_near_the_normal_interval_and_scipys():
    stats = pytest.importorskip("scipy.stats")
    values = np.random.default_rng(0).normal(5, 2, size=400)
    interval = bootstrap(values, num_draws=2000)
    half = 1.96 * values.std(ddof=1) / 20
    assert interval == pytest.approx((values.mean() - half, values.mean() + half), abs=0.03)
    theirs = stats.bootstrap((values,), np.mean, n_resamples=2000, method="percentile", random_state=0)
    assert interval == pytest.approx(tuple(theirs.confidence_interval), abs=0.03)


def test_bootstrap_holds_the_truth_as_often_as_it_says():
    generator = np.random.default_rng(1)
    intervals = [bootstrap(generator.exponential(size=60), num_draws=300, seed=i) for i in range(200)]
    assert 0.88 <= np.mean([low <= 1 <= high for low, high in intervals]) <= 0.99


def test_bootstrap_is_a_function_of_its_seed_and_of_rows():
    table = np.array([[1, 2], [3, 4], [0, 5], [2, 2]])
    ratio = lambda rows: rows[:, 0].sum() / rows[:, 1].sum()  # noqa: E731
    assert bootstrap(table, ratio, 50, seed=3) == bootstrap(table, ratio, 50, seed=3)
    assert bootstrap(table, ratio, 50, seed=3) != bootstrap(table, ratio, 50, seed=4)
    assert bootstrap(np.array([1.0])) is None


def test_draws_of_a_frechet_distance_miss_the_value_unless_they_are_centred():
    generator = np.random.default_rng(0)
    x, y = generator.normal(size=(2, 60, 16))
    value = frechet_distance(x, y)
    picks = generator.integers(60, size=(100, 2, 60))
    draws = np.array([frechet_distance(x[rows], y[others]) for rows, others in picks])
    assert percentiles(draws).low > value
    low, high = centred_interval(value, draws)
    assert low < value < high
