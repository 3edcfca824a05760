"""The user's files about a cluster for a dry run: a Ray cluster file with node types, and a file with prices."""

from collections.abc import Mapping
from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from schemas.errors import UsageError
from schemas.url_secrets import shown_value

Price = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class Prices(BaseModel):
    """A price file."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    per_hour: Price | dict[str, Price]
    """Price an hour of the whole cluster, or of one machine for each instance type."""
    currency: str = ""

    @classmethod
    def parse(cls, document: Any, where: str) -> Self:
        """Return the prices of a YAML or JSON document; raises UsageError, which names the file as ``where``."""
        try:
            return cls.model_validate(document)
        except ValidationError as error:
            raise UsageError(
                f"{where}: {_problem(error, document)}; allowed: per_hour, a number from 0 on or such a "
                "number for each instance type, and currency, a word"
            ) from error

    def of(self, machines: Mapping[str, int] | None, where: str) -> float:
        """Return the price an hour of ``machines``, the number of machines of each instance type; None: types unknown.

        Raises UsageError where a price is missing.
        """
        if not isinstance(self.per_hour, dict):
            return self.per_hour
        if machines is None:
            raise UsageError(
                f"{where}: per_hour by instance type; allowed with --cluster FILE, which says how many there are, "
                "otherwise one number"
            )
        missing = sorted(set(machines) - set(self.per_hour))
        if missing:
            known = ", ".join(self.per_hour)
            raise UsageError(f"{where}: no price for {missing[0]}; allowed: one for each instance type; has {known}")
        return sum(self.per_hour[kind] * count for kind, count in machines.items())


class NodeType(BaseModel):
    """One of the ``available_node_types`` of a Ray cluster file; its other keys are ignored."""

    resources: dict[str, float]
    max_workers: int = Field(0, ge=0)
    node_config: dict[str, Any] = {}


class ClusterFile(BaseModel):
    """The part of a Ray cluster file that describes the machines."""

    available_node_types: dict[str, NodeType]
    head_node_type: str
    max_workers: int | None = Field(None, ge=0)

    @classmethod
    def parse(cls, document: Any, where: str) -> Self:
        """Return the cluster of a YAML document; raises UsageError, which names the file as ``where``."""
        allowed = "allowed: a Ray cluster file with head_node_type and the resources of each of available_node_types"
        try:
            cluster = cls.model_validate(document)
        except ValidationError as error:
            raise UsageError(f"{where}: {_problem(error, document)}; {allowed}") from error
        if cluster.head_node_type not in cluster.available_node_types:
            raise UsageError(f"{where}: head_node_type {cluster.head_node_type!r} is no node type; {allowed}")
        workers = sum(cluster.counts().values()) - 1
        if cluster.max_workers is not None and workers > cluster.max_workers:
            raise UsageError(
                f"{where}: its node types' max_workers add up to {workers}, which can't all be up; "
                f"allowed: up to the cluster's own max_workers, {cluster.max_workers}"
            )
        return cluster

    def counts(self) -> dict[str, int]:
        """Return the number of machines of each node type when all workers run; the head node counts too."""
        head = self.head_node_type
        counts = {name: node.max_workers + (name == head) for name, node in self.available_node_types.items()}
        return {name: count for name, count in counts.items() if count}

    def amount(self, resource: str) -> float:
        """Return the sum of ``resource`` (CPU or GPU) over all machines."""
        types = self.available_node_types
        return sum(types[name].resources.get(resource, 0) * count for name, count in self.counts().items())

    def instances(self) -> dict[str, int]:
        """Return the number of machines of each instance type, which is AWS's InstanceType or else the node type."""
        instances: dict[str, int] = {}
        for name, count in self.counts().items():
            kind = str(self.available_node_types[name].node_config.get("InstanceType", name))
            instances[kind] = instances.get(kind, 0) + count
        return instances


def _problem(error: ValidationError, document: Any) -> str:
    """Return a text with the first problem of a document and the wrong value."""
    if not isinstance(document, dict):
        return f"{shown_value(document)} is no mapping"
    problem = error.errors(include_url=False)[0]
    key = str(problem["loc"][0])
    if problem["type"] == "extra_forbidden":
        return f"unknown key {key!r}"
    place = ".".join(map(str, problem["loc"]))
    if problem["type"] == "missing":
        return f"{place} is missing"
    where, value = (key, document[key]) if key in Prices.model_fields else (place, problem["input"])
    return f"{where} {shown_value(value)}"
