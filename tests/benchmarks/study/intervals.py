"""Means over seeds and scenes with their 95 % intervals, and of the difference of two networks on the same scenes."""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 2000
"""The 2.5 % quantile then rests on 50 of them."""

Floats = NDArray[np.float64]


class MeanInterval(NamedTuple):
    """A mean with its 95 % interval."""

    value: float
    low: float
    high: float

    @property
    def says_more(self) -> bool:
        """Whether the whole interval lies above 0."""
        return self.low > 0

    @property
    def says_less(self) -> bool:
        """Whether the whole interval lies below 0."""
        return self.high < 0


def mean_of(values: Sequence[Floats]) -> MeanInterval:
    """Return the mean of one array (N,) a seed, of the same N scenes."""
    return difference_of(values, None)


def difference_of(values: Sequence[Floats], others: Sequence[Floats] | None, share: float = 1.0) -> MeanInterval:
    """Return the mean of ``values`` less ``share`` times that of ``others``, arrays (N,) a seed of the same N scenes.

    The interval is the percentile bootstrap's: each resample draws seeds with replacement, for either side its own, and
    scenes with replacement, for both sides the same. One seed says nothing of the spread over seeds, so then the
    interval is over scenes alone. The same arguments give the same interval.
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
    """Return (RESAMPLES,) means, with each scene counted ``times`` (RESAMPLES, N)."""
    n_seeds = len(values)
    drawn = rng.multinomial(n_seeds, np.full(n_seeds, 1 / n_seeds), RESAMPLES) / n_seeds
    means: Floats = ((drawn @ np.stack(list(values))) * times).sum(axis=1)
    return means
