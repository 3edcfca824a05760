"""Reads what Ray's autoscaler is doing from the private places that ``ray status`` reads; Ray has no public function.

tests/test_scale_from_zero.py fails where these places move.
"""

import json

import ray


def is_launching() -> bool:
    """Return whether the autoscaler of the connected cluster brings nodes, or tries to in vain; False without one."""
    # Imported here, so that a Ray without these places fails only the job that waits for a GPU.
    from ray._private.ray_constants import DEBUG_AUTOSCALING_STATUS  # noqa: PLC0415
    from ray.autoscaler.v2.sdk import get_cluster_status  # noqa: PLC0415
    from ray.experimental.internal_kv import _internal_kv_get  # noqa: PLC0415

    if kept := _internal_kv_get(DEBUG_AUTOSCALING_STATUS):
        report = json.loads(kept).get("autoscaler_report", {})
        types = report.get("node_availability_summary", {}).get("node_availabilities", {}).values()
        sold_out = any(not one["is_available"] for one in types)
        return bool(report.get("pending_launches") or report.get("pending_nodes") or sold_out)
    # The autoscaler's second version does not write the text that the first one keeps.
    status = get_cluster_status(ray.get_runtime_context().gcs_address)
    return bool(status.pending_launches or status.pending_nodes or status.failed_launches)
