import numpy as np
import pytest

from components.metrics import Diversity, MelCanvasEmbedder, Memorisation
from components.metrics.copies import rank_sum_z
from tests.components.metric_clips import RATE, Samples, carrying, tone
from utils.errors import UserError


def three_sets(seed=0, num=200):
    generator = np.random.default_rng(seed)
    return [generator.normal(size=(n, 4)) for n in (num, num, 400)]


def memorisation(generated, real, training, **options):
    metric = Memorisation(Samples(), **options)
    metric.update(carrying(generated, "g"), carrying(real, "r"))
    metric.update(training=carrying(training, "t"))
    return metric.compute()


def test_a_generator_that_draws_as_the_world_does_scores_the_floor():
    shares, zs = zip(*((r.value, r.details["z"]) for r in (memorisation(*three_sets(seed)) for seed in range(8))))
    assert np.mean(shares) == pytest.approx(0.05, abs=0.03)
    assert abs(np.mean(zs)) < 1.5


def test_a_generator_that_copies_is_found_and_its_pairs_are_named():
    generated, real, training = three_sets()
    generated[:40] = training[:40] + 0.01 * generated[:40]
    generated[5] = training[17]
    result = memorisation(generated, real, training, num_named=3)
    assert result.value > 0.2
    assert result.low > result.floor == 0.05
    assert -3 < result.details["z"] < -1.5  # a fifth of copies does not move the ranks enough
    assert result.details["num_copies"] == 1
    assert result.details["nearest"][0] == {"id": "g5", "training_id": "t17", "distance": 0.0}
    assert len(result.details["nearest"]) == 3


def test_a_generator_that_mostly_copies_moves_the_ranks():
    generated, real, training = three_sets()
    generated[:120] = training[:120] + 0.01 * generated[:120]
    assert memorisation(generated, real, training).details["z"] < -3


def test_held_out_clips_that_were_trained_on_do_not_set_the_threshold():
    generated, real, training = three_sets()
    clean = memorisation(generated, real[50:], training)
    real[:50] = training[:50]
    leaky = memorisation(generated, real, training)
    assert leaky.num_skipped == {"reference: is in the training set": 50}
    assert leaky.value == clean.value


def test_rank_sum_is_scipys():
    stats = pytest.importorskip("scipy.stats")
    generator = np.random.default_rng(0)
    one, other = generator.integers(0, 9, size=40), generator.integers(1, 10, size=30)  # with ties
    z = rank_sum_z(one, other)
    theirs = stats.mannwhitneyu(one, other, use_continuity=False, method="asymptotic").pvalue
    assert 2 * stats.norm.sf(abs(z)) == pytest.approx(theirs)
    assert z < 0


def test_a_quantile_is_a_share():
    with pytest.raises(UserError, match="quantile: expected a share"):
        Memorisation(Samples(), quantile=5)


def test_without_training_clips_there_is_no_answer():
    metric = Memorisation(Samples())
    metric.update(carrying(np.ones((3, 2))), carrying(np.ones((3, 2))))
    assert metric.compute().value is None
    assert metric.needs.training


def test_diversity_is_within_classes_and_stands_beside_that_of_real_clips():
    vectors = np.array([[0.0, 0], [3, 4], [100, 0], [100, 1], [50, 50]])
    labels = [{"word": word} for word in ("no", "no", "yes", "yes", "alone")]
    metric = Diversity(Samples(), target="word")
    metric.update(carrying(vectors, labels=labels), carrying(2 * vectors, labels=labels))
    metric.update(carrying(vectors[:1], "unnamed"))
    result = metric.compute()
    assert result.value == pytest.approx(3)
    assert result.details["per_class"] == pytest.approx({"no": 5.0, "yes": 1.0})
    assert (result.ceiling, result.details["ratio"]) == pytest.approx((6.0, 0.5))
    assert result.num_skipped == {"no label 'word'": 1, "alone in its class": 1}


def test_diversity_of_everything_as_one_is_scipys_mean_distance():
    distance = pytest.importorskip("scipy.spatial.distance")
    vectors = np.float32(np.random.default_rng(0).normal(size=(20, 3)))
    metric = Diversity(Samples())
    metric.update(carrying(vectors))
    assert metric.compute().value == pytest.approx(distance.pdist(np.float64(vectors)).mean(), rel=1e-6)


def test_the_mel_canvas_finds_a_copy_at_another_level():
    embedder = MelCanvasEmbedder(RATE, seconds=0.5)
    metric = Memorisation(embedder, quantile=0.5)
    training = [tone(f"t{i}", hertz=100 + 20 * i, seed=i) for i in range(6)]
    louder = tone("copy", hertz=160, seed=3)
    louder.samples[:] *= 1.7
    metric.update([louder], [tone(f"r{i}", hertz=107 + 20 * i, seed=50 + i) for i in range(6)], training)
    result = metric.compute()
    assert result.details["nearest"][0]["training_id"] == "t3"
    assert result.details["num_copies"] == 1
