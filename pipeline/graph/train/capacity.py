"""What the cluster has now, beside what the processes of a training need."""

import ray
from ray.util.placement_group import PlacementGroup, placement_group_table, remove_placement_group

from pipeline.graph.resources import Machine
from pipeline.graph.train.plan import counted
from pipeline.graph.train.worker import WorkerPlan


def machine_now() -> Machine:
    """Return what the cluster has, whoever uses it."""
    has: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
    return Machine(has.get("CPU", 0.0), has.get("GPU", 0.0), None)


def free_now() -> Machine:
    """Return what nobody uses."""
    free: dict[str, float] = ray.available_resources()  # type: ignore[no-untyped-call]
    return Machine(free.get("CPU", 0.0), free.get("GPU", 0.0), None)


def nodes_now() -> list[Machine]:
    """Return what each machine of the cluster has."""
    has = [node["Resources"] for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]
    return [Machine(each.get("CPU", 0.0), each.get("GPU", 0.0), None) for each in has]


def free_leftovers() -> None:
    """Give back the room that this driver's lost processes still hold.

    Where a process is lost while it starts, or the one that runs the others at any time, Ray Train leaves their
    placement group behind, which Ray keeps as long as the driver. A group's id ends with that of its job.
    """
    job_id = ray.get_runtime_context().get_job_id()
    for group_id, group in placement_group_table().items():
        if group_id.endswith(job_id) and group["state"] != "REMOVED":
            remove_placement_group(PlacementGroup(ray.PlacementGroupID.from_hex(group_id)))


def fits_a_node(layout: WorkerPlan) -> bool:
    """Return whether there is a machine that could hold one of the processes, were it free."""
    return any(node.cpus >= layout.worker_cpus and node.gpus >= layout.cuda for node in nodes_now())


def in_words(layout: WorkerPlan) -> str:
    """Return how many processes there are, and what each of them takes."""
    each = counted(layout.worker_cpus, "CPU") + " and a GPU" * layout.cuda
    return f"{counted(layout.workers, 'process')} with {each}{' each' * (layout.workers > 1)}"


def no_room(layout: WorkerPlan) -> str:
    """Return in words that the processes find no room, and what there is."""
    has, free = machine_now(), free_now()
    there = f"{counted(has.cpus, 'CPU')}, {free.cpus:g} free"
    if layout.cuda:
        there += f", and {counted(has.gpus, 'GPU')}, {free.gpus:g} free"
    return f"no room for {in_words(layout)}: this Ray cluster has {there}"
