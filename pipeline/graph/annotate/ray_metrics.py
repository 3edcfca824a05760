"""Shows the figures of a run as metrics of Ray, which Prometheus reads with ``ray_`` before each name."""

from collections.abc import Mapping

from ray.util.metrics import Counter, Gauge

from schemas.prometheus import METRICS, OUTPUT_LABEL


class RayMetrics:
    """The figures of this driver's run on the cluster it is connected to; they end with the driver."""

    def __init__(self, output: str) -> None:
        """``output``: the output's URL without secrets."""
        keys = (OUTPUT_LABEL,)
        self._tags, self._shown = {OUTPUT_LABEL: output}, dict.fromkeys(METRICS, 0.0)
        self._counters = {
            name: Counter(name, one.about, keys) for name, one in METRICS.items() if one.kind == "counter"
        }
        self._gauges = {name: Gauge(name, one.about, keys) for name, one in METRICS.items() if one.kind == "gauge"}

    def __call__(self, values: Mapping[str, float]) -> None:
        """Show the present values; a counter of Ray takes what has been added since the last call."""
        for name, counter in self._counters.items():
            if (more := values[name] - self._shown[name]) > 0:
                counter.inc(more, self._tags)
        for name, gauge in self._gauges.items():
            gauge.set(values[name], self._tags)
        self._shown |= values
