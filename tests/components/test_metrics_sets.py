"""Distances between sets: against second implementations, closed forms, and what the floor is for."""

from pathlib import Path

import numpy as np
import pytest
import torch

from components.metrics import (
    Collection,
    FrechetAudioDistance,
    InceptionScore,
    KernelAudioDistance,
    LogMelStatsEmbedder,
)
from components.metrics.distances import (
    frechet_distance,
    gaussian_kernel,
    median_distance,
    nearest,
    polynomial_kernel,
    squared_distances,
    squared_maximum_mean_discrepancy,
)
from components.metrics.set_metrics import inception_score, log_softmax
from tests.components.metric_clips import Samples, carrying, silence
from utils.errors import UserError

DIGITS = Path(__file__).resolve().parents[3] / "shared" / "data" / "spoken_digits"


def two_sets(n=80, m=60, d=12, seed=0):
    generator = np.random.default_rng(seed)
    mix = generator.normal(size=(d, d)) / np.sqrt(d)
    return generator.normal(size=(n, d)) @ mix, generator.normal(size=(m, d)) + 0.5


def by_square_root(x, y):
    """The textbook's form."""
    linalg = pytest.importorskip("scipy.linalg")
    cov_x, cov_y = np.cov(x, rowvar=False), np.cov(y, rowvar=False)
    root = linalg.sqrtm(cov_x @ cov_y).real
    return np.square(x.mean(0) - y.mean(0)).sum() + np.trace(cov_x + cov_y - 2 * root)


def test_frechet_distance_is_that_of_scipys_square_root():
    x, y = two_sets()
    assert frechet_distance(x, y) == pytest.approx(by_square_root(x, y), rel=1e-9)


@pytest.mark.slow  # the library takes seconds to import
def test_frechet_distance_is_that_of_torchmetrics():
    fid = pytest.importorskip("torchmetrics.image.fid")
    x, y = two_sets(n=200, m=150, d=32)
    moments = [torch.from_numpy(part) for s in (x, y) for part in (s.mean(0), np.cov(s, rowvar=False))]
    assert frechet_distance(x, y) == pytest.approx(float(fid._compute_fid(*moments)), rel=1e-8)


def test_frechet_distance_of_fewer_vectors_than_dimensions_is_exact():
    generator = np.random.default_rng(0)
    x, y = generator.normal(size=(2, 10, 64))
    basis = np.linalg.qr(np.concatenate([x, y]).T)[0]  # they lie in 20 dimensions, where the square root is regular
    inside = by_square_root(x @ basis + 0, y @ basis)
    assert frechet_distance(x, y) == pytest.approx(inside, rel=1e-5)
    assert frechet_distance(x, x) == pytest.approx(0, abs=1e-10)


def test_frechet_distance_of_one_dimension_is_the_closed_form():
    x, y = np.array([[0.0], [2.0], [4.0]]), np.array([[1.0], [2.0], [9.0]])
    expected = (x.mean() - y.mean()) ** 2 + (x.std(ddof=1) - y.std(ddof=1)) ** 2
    assert frechet_distance(x, y) == pytest.approx(expected)


def test_frechet_distance_wants_two_vectors_of_one_dimension():
    with pytest.raises(ValueError, match="two vectors or more"):
        frechet_distance(np.zeros((1, 3)), np.zeros((5, 3)))
    with pytest.raises(ValueError, match="two vectors or more"):
        frechet_distance(np.zeros((5, 2)), np.zeros((5, 3)))


def test_kernel_distance_is_the_sum_over_pairs():
    x, y = two_sets(7, 5, 3)
    width = median_distance(y)
    k = lambda a, b: np.exp(-np.square(a - b).sum() / (2 * width**2))  # noqa: E731
    within_x = np.mean([k(x[i], x[j]) for i in range(7) for j in range(7) if i != j])
    within_y = np.mean([k(y[i], y[j]) for i in range(5) for j in range(5) if i != j])
    across = np.mean([k(a, b) for a in x for b in y])
    kernel = gaussian_kernel(width)
    ours = squared_maximum_mean_discrepancy(kernel(x, x), kernel(y, y), kernel(x, y))
    assert ours == pytest.approx(within_x + within_y - 2 * across, abs=1e-12)


@pytest.mark.slow  # the library takes seconds to import
def test_polynomial_kernel_distance_is_that_of_torchmetrics():
    kid = pytest.importorskip("torchmetrics.image.kid")
    x, y = two_sets(40, 40, 8)
    ours = squared_maximum_mean_discrepancy(*(polynomial_kernel(*p) for p in ((x, x), (y, y), (x, y))))
    theirs = kid.poly_mmd(torch.from_numpy(x), torch.from_numpy(y))
    assert ours == pytest.approx(float(theirs), rel=1e-9)


def test_median_distance_is_scipys():
    distance = pytest.importorskip("scipy.spatial.distance")
    x, y = two_sets()
    assert median_distance(x) == pytest.approx(np.median(distance.pdist(x)))
    assert squared_distances(x, y) == pytest.approx(distance.cdist(x, y, "sqeuclidean"))


def test_kernel_distance_has_no_bias_where_frechet_has():
    generator = np.random.default_rng(0)
    kernel, frechet = [], []
    for _ in range(40):
        x, y = generator.normal(size=(2, 40, 8))
        k = gaussian_kernel(4.0)
        kernel.append(squared_maximum_mean_discrepancy(k(x, x), k(y, y), k(x, y)))
        frechet.append(frechet_distance(x, y))
    assert abs(np.mean(kernel)) < 3 * np.std(kernel) / np.sqrt(40)
    assert np.mean(frechet) > 10 * np.std(frechet) / np.sqrt(40)


def test_nearest_finds_a_copy_at_zero():
    x, y = two_sets()
    distances, indices = nearest(np.concatenate([x, y[7:8]]), y)
    assert distances[-1] == 0
    assert indices[-1] == 7
    assert distances[0] == pytest.approx(np.linalg.norm(x[0] - y, axis=1).min())


def test_the_floor_is_what_real_clips_of_the_same_number_score():
    generator = np.random.default_rng(0)
    metric = FrechetAudioDistance(Samples(), num_splits=10, num_draws=50)
    metric.update(carrying(generator.normal(size=(50, 8))), carrying(generator.normal(size=(100, 8))))
    result = metric.compute()
    assert result.details["floor_num_clips"] == result.details["floor_num_reference"] == 50
    assert result.details["value_at_floor"] == pytest.approx(result.floor, rel=0.3)  # drawn as the real ones are
    assert result.value < result.details["value_at_floor"]  # of 100 references
    assert result.low < result.value < result.high
    assert (result.num_used, result.num_skipped) == (50, {})


def test_training_clips_make_a_floor_at_the_very_numbers_of_the_value():
    generator = np.random.default_rng(0)
    metric = FrechetAudioDistance(Samples(), num_splits=10, num_draws=10)
    draw = lambda n: carrying(generator.normal(size=(n, 8)))  # noqa: E731
    metric.update(draw(60), draw(80), draw(200))
    result = metric.compute()
    assert (result.details["floor_num_clips"], result.details["floor_num_reference"]) == (60, 80)
    assert "value_at_floor" not in result.details
    assert result.value == pytest.approx(result.floor, rel=0.4)


@pytest.mark.skipif(not DIGITS.is_dir(), reason="needs the recorded digits")
def test_the_floor_of_real_digits_falls_as_one_over_their_numbers():
    collections = [Collection.read(name, DIGITS / f"manifest_{name}.jsonl") for name in ("test", "valid")]
    clips = [clip for one in collections for clip in one.clips(range(0, 250), 8_000)]
    floors = []
    for num in (50, 200):
        metric = FrechetAudioDistance(LogMelStatsEmbedder(8_000), num_draws=2)
        metric.update(clips[:num], clips)
        floors.append(metric.compute().floor)
    expected = (1 / 50 + 1 / 450) / (1 / 200 + 1 / 300)
    assert floors[0] / floors[1] == pytest.approx(expected, rel=0.35)


def test_infinity_takes_the_bias_away():
    generator = np.random.default_rng(0)
    metric = FrechetAudioDistance(Samples(), infinity=True, num_splits=1, num_draws=1)
    shift = np.array([1.0, 0, 0, 0])
    metric.update(carrying(generator.normal(size=(400, 4)) + shift), carrying(generator.normal(size=(400, 4))))
    details = metric.compute().details
    metric.reset()
    metric.update(carrying(generator.normal(size=(400, 16))), carrying(generator.normal(size=(400, 16))))
    same = metric.compute()
    assert details["infinity"] == pytest.approx(1.0, abs=0.15)
    assert abs(same.details["infinity"]) < 0.25 * same.value
    assert same.details["infinity_r2"] > 0.95


def test_a_set_of_one_has_no_distance_and_says_so():
    metric = FrechetAudioDistance(Samples())
    metric.update(carrying(np.ones((1, 3))), carrying(np.ones((4, 3))))
    assert metric.compute().value is None
    assert metric.compute().num_used == 1


def test_clips_without_a_usable_embedding_are_counted():
    metric = KernelAudioDistance(Samples())
    vectors = np.random.default_rng(0).normal(size=(6, 3))
    vectors[2] = np.nan
    metric.update(carrying(vectors), carrying(vectors[3:]))
    metric.update([silence(seconds=0)])
    result = metric.compute()
    assert result.num_used == 5
    assert result.num_skipped == {"generated: embedding not finite": 1, "empty": 1}


def test_an_unknown_kernel_is_told():
    with pytest.raises(UserError, match="kernel: expected gaussian or polynomial, got 'linear'"):
        KernelAudioDistance(Samples(), kernel="linear")


def test_inception_score_is_one_for_one_class_and_k_for_all_of_them():
    sure = 50.0 * np.eye(3)
    assert inception_score(log_softmax(np.repeat(sure[:1], 9, 0))) == pytest.approx(1)
    assert inception_score(log_softmax(np.tile(sure, (3, 1)))) == pytest.approx(3)
    assert inception_score(log_softmax(np.zeros((9, 3)))) == pytest.approx(1)


def test_inception_score_is_a_plain_loops_with_the_real_clips_as_its_ceiling():
    logits = np.random.default_rng(0).normal(size=(20, 3)) * 3
    probs = torch.softmax(torch.from_numpy(np.float32(logits)).double(), 1)
    divergences = [torch.nn.functional.kl_div(probs.mean(0).log(), row, reduction="sum") for row in probs]
    metric = InceptionScore(Samples(), num_draws=50)
    metric.update(carrying(logits), carrying(np.tile(50 * np.eye(3), (4, 1))))
    result = metric.compute()
    assert result.value == pytest.approx(float(torch.stack(divergences).mean().exp()))
    assert (result.floor, result.details["ceiling_num_clips"]) == (1.0, 12)
    assert result.ceiling == pytest.approx(3)
