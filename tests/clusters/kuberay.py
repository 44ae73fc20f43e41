"""A strict model of the fields of KubeRay 1.7 (`ray.io/v1`) that this project's files may use; anything else is refused.

Written from the field lists of KubeRay's API reference; pods are modelled as far as the files need it.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

Quantity = Annotated[str, Field(pattern=r"^\d+(\.\d+)?(m|Ki|Mi|Gi|Ti)?$")]
Name = Annotated[str, Field(pattern=r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$")]
Labels = dict[str, str]


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class Metadata(Strict):
    name: Name
    namespace: Name | None = None
    labels: Labels = {}
    annotations: dict[str, str] = {}


class KeyRef(Strict):
    name: Name
    key: str


class ValueFrom(Strict):
    secretKeyRef: KeyRef


class Variable(Strict):
    name: str
    value: str | None = None
    valueFrom: ValueFrom | None = None

    @model_validator(mode="after")
    def one_source(self) -> Self:
        assert (self.value is None) != (self.valueFrom is None), "a variable has either a value or a source"
        return self


class Mount(Strict):
    name: Name
    mountPath: Annotated[str, Field(pattern="^/")]
    readOnly: bool = False


class Needs(Strict):
    requests: dict[str, Quantity]
    limits: dict[str, Quantity]

    @model_validator(mode="after")
    def extended_are_equal(self) -> Self:
        for name, amount in self.requests.items():
            if "/" in name:
                assert self.limits.get(name) == amount, f"{name}: limit and request must be equal"
        return self


class Container(Strict):
    name: Name
    image: str
    args: list[str] = []
    command: list[str] = []
    env: list[Variable] = []
    resources: Needs
    volumeMounts: list[Mount] = []


class Claim(Strict):
    claimName: Name
    readOnly: bool = False


class EmptyDir(Strict):
    medium: Literal["", "Memory"] = ""
    sizeLimit: Quantity | None = None


class ConfigMap(Strict):
    name: Name


class Volume(Strict):
    name: Name
    persistentVolumeClaim: Claim | None = None
    emptyDir: EmptyDir | None = None
    configMap: ConfigMap | None = None

    @model_validator(mode="after")
    def one_source(self) -> Self:
        given = [self.persistentVolumeClaim, self.emptyDir, self.configMap]
        assert sum(source is not None for source in given) == 1, "a volume has one source"
        return self


class Toleration(Strict):
    key: str
    operator: Literal["Exists", "Equal"] = "Equal"
    value: str | None = None
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"]


class PodSecurity(Strict):
    fsGroup: int


class PodSpec(Strict):
    securityContext: PodSecurity | None = None
    containers: Annotated[list[Container], Field(min_length=1)]
    volumes: list[Volume] = []
    nodeSelector: Labels = {}
    tolerations: list[Toleration] = []
    terminationGracePeriodSeconds: int = 30
    restartPolicy: Literal["Always", "OnFailure", "Never"] = "Always"

    @model_validator(mode="after")
    def mounted_volumes_exist(self) -> Self:
        names = {volume.name for volume in self.volumes}
        mounted = {mount.name for container in self.containers for mount in container.volumeMounts}
        assert mounted == names, f"volumes {sorted(names)}, mounted {sorted(mounted)}"
        return self


class Template(Strict):
    metadata: dict[str, Any] = {}
    spec: PodSpec


class HeadGroup(Strict):
    resources: dict[str, str] = {}
    labels: Labels = {}
    rayStartParams: dict[str, str] = {}
    template: Template


class WorkerGroup(Strict):
    groupName: Name
    replicas: int = 0
    minReplicas: int = 0
    maxReplicas: int
    numOfHosts: int = 1
    idleTimeoutSeconds: int | None = None
    priority: int | None = None
    resources: dict[str, str] = {}
    labels: Labels = {}
    rayStartParams: dict[str, str] = {}
    template: Template

    @model_validator(mode="after")
    def in_order(self) -> Self:
        assert self.minReplicas <= self.replicas <= self.maxReplicas, "minReplicas <= replicas <= maxReplicas"
        return self


class AuthOptions(Strict):
    mode: Literal["token", "disabled"]
    secretName: Name | None = None
    enableK8sTokenAuth: bool = False


class AutoscalerOptions(Strict):
    version: Literal["v1", "v2"] = "v2"
    idleTimeoutSeconds: int = 60
    upscalingMode: Literal["Default", "Aggressive", "Conservative"] = "Default"


class FaultTolerance(Strict):
    backend: Literal["redis", "rocksdb"]
    storage: dict[str, Any]


class NetworkPolicy(Strict):
    mode: Literal["DenyAll", "DenyAllIngress", "DenyAllEgress"]


class ClusterSpec(Strict):
    rayVersion: str
    authOptions: AuthOptions
    enableInTreeAutoscaling: bool = False
    autoscalerOptions: AutoscalerOptions | None = None
    gcsFaultToleranceOptions: FaultTolerance | None = None
    networkPolicy: NetworkPolicy
    tlsOptions: dict[str, Any] | None = None
    upgradeStrategy: dict[str, Any] | None = None
    headGroupSpec: HeadGroup
    workerGroupSpecs: list[WorkerGroup]


class RayCluster(Strict):
    apiVersion: Literal["ray.io/v1"]
    kind: Literal["RayCluster"]
    metadata: Metadata
    spec: ClusterSpec


class Condition(Strict):
    jobStatus: Literal["SUCCEEDED", "FAILED"] | None = None
    jobDeploymentStatus: Literal["Failed"] | None = None
    ttlSeconds: int = 0


class DeletionRule(Strict):
    policy: Literal["DeleteCluster", "DeleteWorkers", "DeleteSelf", "DeleteNone"]
    condition: Condition


class DeletionStrategy(Strict):
    deletionRules: Annotated[list[DeletionRule], Field(min_length=1)]


class JobSpec(Strict):
    entrypoint: str
    runtimeEnvYAML: str | None = None
    jobId: str | None = None
    submissionMode: Literal["K8sJobMode", "HTTPMode", "InteractiveMode", "SidecarMode"] = "K8sJobMode"
    backoffLimit: int = 0
    activeDeadlineSeconds: int | None = None
    preRunningDeadlineSeconds: int | None = None
    shutdownAfterJobFinishes: bool = False
    ttlSecondsAfterFinished: int = 0
    suspend: bool = False
    clusterSelector: Labels | None = None
    submitterPodTemplate: Template | None = None
    entrypointNumCpus: float | None = None
    entrypointNumGpus: float | None = None
    entrypointResources: str | None = None
    metadata: dict[str, str] = {}
    managedBy: str | None = None
    deletionStrategy: DeletionStrategy | None = None
    rayClusterSpec: ClusterSpec

    @model_validator(mode="after")
    def one_way_to_go(self) -> Self:
        both = self.deletionStrategy is not None and self.shutdownAfterJobFinishes
        assert not both, "deletionStrategy excludes shutdownAfterJobFinishes"
        return self


class RayJob(Strict):
    apiVersion: Literal["ray.io/v1"]
    kind: Literal["RayJob"]
    metadata: Metadata
    spec: JobSpec
