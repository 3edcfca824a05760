"""The part of KubeRay's schema of a RayJob that a manifest is written in, to be checked by jsonschema.

Written from the fields of KubeRay 1.3 (ray-operator/apis/ray/v1, rayjob_types.go and raycluster_types.go); pods are
checked by Kubernetes' own schema. A field that is not listed is refused, as ``kubectl --validate=strict`` does.
"""

from typing import Any

TEXT = {"type": "string"}
FLAG = {"type": "boolean"}
COUNT = {"type": "integer", "minimum": 0, "maximum": 2**31 - 1}
TEXTS = {"type": "object", "additionalProperties": TEXT}
"""Of ``ray start``'s options all values are text: 0 without quotes is refused."""
POD = {"type": "object", "required": ["spec"]}


def fields(required: tuple[str, ...] = (), **properties: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": list(required), "additionalProperties": False}


WORKERS = fields(
    ("groupName", "maxReplicas", "minReplicas", "rayStartParams", "template"),
    groupName=TEXT,
    replicas=COUNT,
    minReplicas=COUNT,
    maxReplicas=COUNT,
    numOfHosts=COUNT,
    idleTimeoutSeconds=COUNT,
    rayStartParams=TEXTS,
    template=POD,
    suspend=FLAG,
    scaleStrategy=fields(workersToDelete={"type": "array", "items": TEXT}),
)
HEAD = fields(("rayStartParams", "template"), rayStartParams=TEXTS, template=POD, serviceType=TEXT, enableIngress=FLAG)
AUTOSCALER = fields(
    idleTimeoutSeconds=COUNT,
    upscalingMode={"enum": ["Default", "Aggressive", "Conservative"]},
    image=TEXT,
    imagePullPolicy={"enum": ["Always", "IfNotPresent", "Never"]},
    resources={"type": "object"},
    env={"type": "array"},
    envFrom={"type": "array"},
    volumeMounts={"type": "array"},
    securityContext={"type": "object"},
)
CLUSTER = fields(
    ("headGroupSpec",),
    headGroupSpec=HEAD,
    workerGroupSpecs={"type": "array", "items": WORKERS},
    rayVersion=TEXT,
    enableInTreeAutoscaling=FLAG,
    autoscalerOptions=AUTOSCALER,
    headServiceAnnotations=TEXTS,
    suspend=FLAG,
    managedBy=TEXT,
)
JOB = fields(
    entrypoint=TEXT,
    rayClusterSpec=CLUSTER,
    shutdownAfterJobFinishes=FLAG,
    ttlSecondsAfterFinished=COUNT,
    activeDeadlineSeconds=COUNT,
    backoffLimit=COUNT,
    submissionMode={"enum": ["K8sJobMode", "HTTPMode", "InteractiveMode"]},
    submitterConfig=fields(backoffLimit=COUNT),
    submitterPodTemplate=POD,
    runtimeEnvYAML=TEXT,
    entrypointNumCpus={"type": "number"},
    entrypointNumGpus={"type": "number"},
    entrypointResources=TEXT,
    jobId=TEXT,
    metadata=TEXTS,
    clusterSelector=TEXTS,
    deletionPolicy={"enum": ["DeleteCluster", "DeleteWorkers", "DeleteSelf", "DeleteNone"]},
    suspend=FLAG,
    managedBy=TEXT,
)
RAYJOB = fields(
    ("apiVersion", "kind", "metadata", "spec"),
    apiVersion={"const": "ray.io/v1"},
    kind={"const": "RayJob"},
    metadata={"type": "object"},
    spec=JOB,
)
