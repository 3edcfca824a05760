"""Means over seeds and scenes, and mean differences of two networks on the same scenes, with 95 % intervals."""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 2000
"""Number of resamples; 50 of them lie below the 2.5 % quantile."""

Floats = NDArray[np.float64]


class MeanInterval(NamedTuple):
    """A mean with its 95 % interval."""

    value: float
    low: float
    high: float

    @property
    def says_more(self) -> bool:
        """Return whether the whole interval lies above 0."""
        return self.low > 0

    @property
    def says_less(self) -> bool:
        """Return whether the whole interval lies below 0."""
        return self.high < 0


def mean_of(values: Sequence[Floats]) -> MeanInterval:
    """Return the mean of ``values``: for each seed an array (N,), of the same N scenes."""
    return difference_of(values, None)


def difference_of(values: Sequence[Floats], others: Sequence[Floats] | None, share: float = 1.0) -> MeanInterval:
    """Return the mean of ``values`` less ``share`` times the mean of ``others``.

    Both have for each seed an array (N,), of the same N scenes. The interval is the percentile bootstrap's: each
    resample draws seeds with replacement, separately for each side, and scenes with replacement, the same for both
    sides. With one seed the spread over seeds is unknown, and the interval is over scenes alone. The same arguments
    give the same interval.
    """
    times, state = _scene_draws(len(values[0]))
    rng = np.random.default_rng(0)
    rng.bit_generator.state = state
    means = _resampled(rng, values, times)
    value = float(np.mean(values))
    if others is not None:
        means = means - share * _resampled(rng, others, times)
        value -= share * float(np.mean(others))
    low, high = np.quantile(means, [0.025, 0.975])
    return MeanInterval(value, float(low), float(high))


@lru_cache(maxsize=4)
def _scene_draws(n_scenes: int) -> tuple[Floats, Any]:
    """Return how often each resample counts each scene, (RESAMPLES, N), and the state of the generator after it."""
    rng = np.random.default_rng(0)
    times = rng.multinomial(n_scenes, np.full(n_scenes, 1 / n_scenes), RESAMPLES) / n_scenes
    return times, rng.bit_generator.state


def _resampled(rng: np.random.Generator, values: Sequence[Floats], times: Floats) -> Floats:
    """Return the means (RESAMPLES,) of resampled seeds, with each scene counted ``times`` (RESAMPLES, N) times."""
    n_seeds = len(values)
    drawn = rng.multinomial(n_seeds, np.full(n_seeds, 1 / n_seeds), RESAMPLES) / n_seeds
    means: Floats = ((drawn @ np.stack(list(values))) * times).sum(axis=1)
    return means
