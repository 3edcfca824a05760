"""The figures of a run for Prometheus, by name; the dashboard in ``jobs/schedule`` draws them."""

from typing import Literal, NamedTuple

OUTPUT_LABEL = "output"
"""The label of every series: the URL of the output, without secrets."""


class Metric(NamedTuple):
    """A figure of the last run that worked on an output; a counter begins anew with each run."""

    kind: Literal["counter", "gauge"]
    about: str


METRICS = {
    "camlake_images_total": Metric("counter", "Images that the run annotated."),
    "camlake_rejected_images_total": Metric("counter", "Images that the run rejected."),
    "camlake_read_bytes_total": Metric("counter", "Encoded bytes of the images that the run read."),
    "camlake_written_bytes_total": Metric("counter", "Bytes of the files that the run committed, known at its end."),
    "camlake_store_retries_total": Metric("counter", "Requests to stores that the run repeated."),
    "camlake_decode_seconds_total": Metric("counter", "Seconds that the workers spent on decoding, summed up."),
    "camlake_network_seconds_total": Metric("counter", "Seconds that the workers spent in the network, summed up."),
    "camlake_workers": Metric("gauge", "Workers with a network, each on a GPU, a share of one, or a CPU core."),
    "camlake_planned_images": Metric("gauge", "Images that the run has to annotate or reject."),
    "camlake_done_before_images": Metric("gauge", "Images that earlier runs have done."),
    "camlake_run_started_timestamp_seconds": Metric("gauge", "When the run began, in seconds since 1970."),
    "camlake_run_ended_timestamp_seconds": Metric("gauge", "When the run ended, in seconds since 1970; 0 until then."),
    "camlake_run_succeeded": Metric("gauge", "1 where all work of the run is done; 0 until then and after a failure."),
}
