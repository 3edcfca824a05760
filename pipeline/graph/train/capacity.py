"""Compares the present resources of the cluster with the needs of the processes of a training."""

import ray

from pipeline.annotate.resources import Machine
from pipeline.graph.train.plan import WorkerPlan, counted


def machine_now() -> Machine:
    """Return all CPUs and GPUs of the cluster, free or not."""
    return _machine(ray.cluster_resources())  # type: ignore[no-untyped-call]


def free_now() -> Machine:
    """Return the free CPUs and GPUs of the cluster."""
    return _machine(ray.available_resources())  # type: ignore[no-untyped-call]


def nodes_now() -> list[Machine]:
    """Return the CPUs and GPUs of each machine of the cluster, free or not."""
    return [_machine(node["Resources"]) for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]


def _machine(resources: dict[str, float]) -> Machine:
    return Machine(resources.get("CPU", 0.0), resources.get("GPU", 0.0), None)


def fits_a_node(plan: WorkerPlan) -> bool:
    """Return whether any machine of the cluster is large enough for one of the processes."""
    return any(node.cpus >= plan.worker_cpus and node.gpus >= plan.cuda for node in nodes_now())


def in_words(plan: WorkerPlan) -> str:
    """Return in words the number of processes and the CPUs and GPUs of each process."""
    each = counted(plan.worker_cpus, "CPU") + " and a GPU" * plan.cuda
    return f"{counted(plan.workers, 'process')} with {each}{' each' * (plan.workers > 1)}"


def no_room(plan: WorkerPlan) -> str:
    """Return in words that the processes find no room, with all and the free CPUs and GPUs of the cluster."""
    machine, free = machine_now(), free_now()
    offered = f"{counted(machine.cpus, 'CPU')}, {free.cpus:g} free"
    if plan.cuda:
        offered += f", and {counted(machine.gpus, 'GPU')}, {free.gpus:g} free"
    return f"no room for {in_words(plan)}: this Ray cluster has {offered}"
