"""Whatever dtype, layout or kind of array features come in, every metric is what it is for the same numbers in float64."""
import warnings

import numpy as np
import pytest
import torch

from diffprune.metrics import evaluate as M
from diffprune.metrics.bootstrap import bootstrap
from diffprune.metrics.copying import copying_test, mann_whitney_z
from diffprune.metrics.fidelity import kernel_distances
from diffprune.metrics.frechet import FrechetDraws
from diffprune.metrics.memorization import authenticity, leaked_rows, memorization, replicated_share
from diffprune.metrics.neighbours import ball_counts, nearest
from diffprune.report.pairs import likeness

warnings.filterwarnings("ignore")
RNG = np.random.default_rng(0)
GENERATED, REAL, TRAIN = (np.round(np.maximum(40 * RNG.standard_normal((n, 12)) + 20, 0)).clip(0, 120) for n in (90, 80, 130))
TRAIN[:3] = GENERATED[:3]  # whole numbers up to 120: every dtype below holds them, float16 too, and none of their squares

MAKE = {  # how the same numbers may come
    **{str(np.dtype(t)): lambda X, t=t: X.astype(t) for t in (np.float16, np.float32, np.float64, np.longdouble,
                                                             np.uint8, np.int8, np.int16, np.int32, np.int64, ">f4", ">f8")},
    **{str(t): lambda X, t=t: torch.from_numpy(X).to(t)
       for t in (torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.uint8)},
    "gradient": lambda X: torch.from_numpy(X).float().requires_grad_(),
    "Fortran order": lambda X: np.asfortranarray(X.astype(np.float32)),
    "every second row": lambda X: np.repeat(X.astype(np.float32), 2, 0)[::2],
    "reversed": lambda X: X[::-1].astype(np.float32)[::-1],
    "read-only": lambda X: np.frombuffer(X.astype(np.float32).tobytes(), np.float32).reshape(X.shape),
    "transposed tensor": lambda X: torch.from_numpy(X.T.copy()).float().T,
    "list": lambda X: X.tolist(),
}
METRICS = {  # of generated, real and training features
    "fd": lambda g, r, t: M.frechet_distance(g, r),
    "fd of few": lambda g, r, t: M.frechet_distance(g[:9], r[:8]),
    "fd to moments": lambda g, r, t: M.frechet_distance(g[:9], M.feature_stats(r)),
    "fd of draws": lambda g, r, t: FrechetDraws(g, r).distance(np.arange(50)),
    "fd_infinity": lambda g, r, t: M.fd_infinity(g, r, random_state=0).value,
    "moments": lambda g, r, t: [*M.feature_stats(r).mean, M.feature_stats(r).cov.sum()],
    "kid": lambda g, r, t: M.kernel_distance(g, r, 5, 40),
    "kid of draws": lambda g, r, t: kernel_distances(g, r, [np.arange(50), np.arange(40, 90)], 3, 20),
    "inception_score": lambda g, r, t: M.inception_score(g),
    "precision and recall": lambda g, r, t: M.precision_recall(g, r),
    "density and coverage": lambda g, r, t: M.density_coverage(g, r),
    "vendi": lambda g, r, t: M.vendi_score(g),
    "vendi, rbf": lambda g, r, t: M.vendi_score(g, kernel="rbf"),
    "nearest": lambda g, r, t: np.stack(nearest(g, t, 3)),
    "balls": lambda g, r, t: ball_counts(g, t, M.ball_radii(t, 3).astype(np.float32)),
    "authenticity": lambda g, r, t: authenticity(nearest(g, t), t),
    "leaks": lambda g, r, t: len(leaked_rows(nearest(g, t), t)),
    "c_t": lambda g, r, t: copying_test(g, r, t, 2, random_state=0).c_t,
    "memorization": lambda g, r, t: [v for k, v in vars(memorization(g, r, t, 0.05, 2, random_state=0)).items() if k != "reasons"],
    "everything": lambda g, r, t: list(M.evaluate(g, r, g[:, :4] if not isinstance(g, list) else [x[:4] for x in g]).values()),
    "intervals": lambda g, r, t: np.array(list(M.measure(g, r, n_draws=4).values())),
    "likeness": lambda g, r, t: (lambda l: [l.gain, l.auc.mean(), l.pairs.sum()])(likeness(g[:80], r)),
}


@pytest.fixture(scope="module")
def expected(): return {name: metric(GENERATED, REAL, TRAIN) for name, metric in METRICS.items()}


@pytest.mark.parametrize("kind", MAKE)
def test_every_kind_of_features_gives_the_same_numbers(kind, expected):
    sets = [MAKE[kind](X) for X in (GENERATED, REAL, TRAIN)]
    for name, metric in METRICS.items():
        found = metric(*sets)
        np.testing.assert_allclose(found, expected[name], rtol=1e-9, atol=1e-9, err_msg=name)
        assert np.isfinite(found).all(), name


@pytest.mark.parametrize("wrong", [lambda X: X > 0, lambda X: X.astype(str), lambda X: X + 1j, lambda X: X.astype(object)])
def test_what_is_no_number_is_refused_in_words(wrong):
    for metric in METRICS.values():
        with pytest.raises(ValueError, match="must be numbers"): metric(*(wrong(X) for X in (GENERATED, REAL, TRAIN)))


def test_counts_do_not_overflow():
    z = mann_whitney_z(np.zeros(1_200_000, np.float32), np.r_[np.ones(1), np.zeros(1_200_000)])
    assert np.isfinite(z) and z < 0
    distances = np.arange(200)
    assert replicated_share(distances.astype(np.uint8), distances.astype(np.float16), 0.05).share == pytest.approx(0.05)
    assert bootstrap(np.mean, distances.astype(np.uint8), n_draws=3, random_state=0).value == 99.5
