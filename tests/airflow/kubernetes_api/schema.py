"""Checks manifests as a Kubernetes API server does that was told to be strict.

The `kubernetes` package ships no OpenAPI document. It ships what was generated from one: a class
for each schema, with the types of its fields (`openapi_types`), their names in JSON
(`attribute_map`), and setters that refuse None for what is required. Enumerations and rules between
fields did not survive the generator; those that our manifests can break are listed below.
"""

import re
from collections.abc import Iterator
from functools import cache
from typing import Any

import kubernetes.client.models
from kubernetes.client import Configuration

KINDS = {"Pod": ("v1", "V1Pod"), "Job": ("batch/v1", "V1Job")}
MAX_ANNOTATION_BYTES = 256 << 10  # of all annotations of an object

_ENUMERATIONS = {
    ("V1PodSpec", "restartPolicy"): {"Always", "OnFailure", "Never"},
    ("V1Toleration", "operator"): {"Exists", "Equal"},
    ("V1Toleration", "effect"): {"NoSchedule", "PreferNoSchedule", "NoExecute"},
    ("V1EmptyDirVolumeSource", "medium"): {"", "Memory"},
    ("V1Container", "imagePullPolicy"): {"Always", "Never", "IfNotPresent"},
    ("V1Container", "terminationMessagePolicy"): {"File", "FallbackToLogsOnError"},
    ("V1JobSpec", "completionMode"): {"NonIndexed", "Indexed"},
    ("V1PodFailurePolicyRule", "action"): {"FailJob", "FailIndex", "Ignore", "Count"},
    ("V1PodFailurePolicyOnExitCodesRequirement", "operator"): {"In", "NotIn"},
}
_SCALARS = {"str": str, "int": int, "bool": bool, "float": (int, float), "datetime": str}
_QUANTITY = re.compile(r"[0-9]+(\.[0-9]+)?(m|k|M|G|T|P|Ki|Mi|Gi|Ti|Pi)?")
_NAME = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
_LABEL_VALUE = re.compile(r"([A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?)?")
_KEY = re.compile(
    r"([a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?/)?[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?"
)


def faults(manifest: Any) -> list[str]:
    """What is wrong with a Pod or a Job, each with the path of the field."""
    if not isinstance(manifest, dict) or manifest.get("kind") not in KINDS:
        return [f"kind must be one of {sorted(KINDS)}"]
    version, model = KINDS[manifest["kind"]]
    if manifest.get("apiVersion") != version:
        return [f"apiVersion must be {version}"]
    found = list(_of_model(model, manifest, manifest["kind"]))
    if found:  # what follows may count on the shape
        return found
    found = list(_of_metadata(manifest["metadata"]))
    if manifest["kind"] == "Pod":
        return found + list(_of_pod_spec(manifest["spec"]))
    return found + list(_of_job_spec(manifest["spec"]))


def _of_model(name: str, value: Any, path: str) -> Iterator[str]:
    if not isinstance(value, dict):
        yield f"{path}: must be an object, got {value!r}"
        return
    model = getattr(kubernetes.client.models, name)
    attributes = {field: attribute for attribute, field in model.attribute_map.items()}
    for field in sorted(value.keys() - attributes.keys()):
        yield f"{path}.{field}: unknown field of {name}"
    for attribute in sorted(_required(name)):
        if value.get(model.attribute_map[attribute]) is None:
            yield f"{path}.{model.attribute_map[attribute]}: required"
    for field, held in value.items():
        if field not in attributes or held is None:
            continue
        place = f"{path}.{field}"
        yield from _of_type(model.openapi_types[attributes[field]], held, place)
        allowed = _ENUMERATIONS.get((name, field))
        if allowed is not None and held not in allowed:
            yield f"{place}: must be one of {sorted(allowed)}, got {held!r}"


def _of_type(kind: str, value: Any, path: str) -> Iterator[str]:
    if kind == "object":  # a number or a string, in the schemas that we meet
        return
    if kind.startswith("list["):
        if not isinstance(value, list):
            yield f"{path}: must be a list, got {value!r}"
            return
        for index, item in enumerate(value):
            yield from _of_type(kind[5:-1], item, f"{path}[{index}]")
    elif kind.startswith("dict["):
        if not isinstance(value, dict):
            yield f"{path}: must be an object, got {value!r}"
            return
        for key, item in value.items():
            yield from _of_type(kind[5:-1].partition(", ")[2], item, f"{path}.{key}")
    elif kind in _SCALARS:
        is_bool = isinstance(value, bool)
        if not isinstance(value, _SCALARS[kind]) or is_bool != (kind == "bool"):
            yield f"{path}: must be {kind}, got {value!r}"
    else:
        yield from _of_model(kind, value, path)


@cache
def _required(name: str) -> frozenset[str]:
    """The attributes whose setter refuses None."""
    model = getattr(kubernetes.client.models, name)
    blank = model.__new__(model)
    blank.local_vars_configuration = Configuration()
    required = set()
    for attribute in model.openapi_types:
        try:
            setattr(blank, attribute, None)
        except ValueError:
            required.add(attribute)
    return frozenset(required)


def _of_metadata(metadata: dict[str, Any]) -> Iterator[str]:
    if not _NAME.fullmatch(metadata.get("name") or ""):
        yield f"metadata.name: {metadata.get('name')!r} is no DNS label"
    yield from _of_labels(metadata)


def _of_labels(metadata: dict[str, Any]) -> Iterator[str]:
    labels, annotations = metadata.get("labels") or {}, metadata.get("annotations") or {}
    for key in [*labels, *annotations]:
        if not _KEY.fullmatch(key):
            yield f"metadata: {key!r} is no key of a label or an annotation"
    for key, value in labels.items():
        if not _LABEL_VALUE.fullmatch(value):
            yield f"metadata.labels.{key}: {value!r} is no label value"
    size = sum(len(f"{key}{value}".encode()) for key, value in annotations.items())
    if size > MAX_ANNOTATION_BYTES:
        yield f"metadata.annotations: {size} bytes are more than {MAX_ANNOTATION_BYTES}"


def _of_pod_spec(spec: dict[str, Any]) -> Iterator[str]:
    volumes = [volume["name"] for volume in spec.get("volumes") or []]
    for name in {name for name in volumes if volumes.count(name) > 1}:
        yield f"spec.volumes: {name!r} is there twice"
    containers = [*spec["containers"], *(spec.get("initContainers") or [])]
    for container in containers:
        if not container.get("image"):
            yield f"container {container['name']!r} has no image"
        mounts = container.get("volumeMounts") or []
        paths = [mount["mountPath"] for mount in mounts]
        for path in {path for path in paths if paths.count(path) > 1}:
            yield f"container {container['name']!r} has two mounts at {path!r}"
        for mount in mounts:
            if mount["name"] not in volumes:
                yield f"container {container['name']!r} mounts no volume: {mount['name']!r}"
        yield from _of_resources(container)
        for variable in container.get("env") or []:
            if "value" in variable and "valueFrom" in variable:
                yield f"variable {variable['name']!r} has value and valueFrom"


def _of_resources(container: dict[str, Any]) -> Iterator[str]:
    resources = container.get("resources") or {}
    limits, requests = resources.get("limits") or {}, resources.get("requests") or {}
    for name, quantity in [*limits.items(), *requests.items()]:
        if not _QUANTITY.fullmatch(quantity):
            yield f"container {container['name']!r}: {quantity!r} is no quantity of {name}"
    for name, quantity in requests.items():
        # Devices are not overcommitted: a request must equal the limit.
        if "/" in name and limits.get(name) != quantity:
            yield f"container {container['name']!r}: the request of {name} must equal its limit"


def _of_job_spec(spec: dict[str, Any]) -> Iterator[str]:
    template = spec["template"]
    yield from _of_labels(template.get("metadata") or {})
    yield from _of_pod_spec(template["spec"])
    policy = template["spec"].get("restartPolicy", "Always")
    if policy == "Always":
        yield "spec.template.spec.restartPolicy: must be OnFailure or Never in a Job"
    if spec.get("podFailurePolicy") and policy != "Never":
        yield "spec.podFailurePolicy: wants restartPolicy Never"
    if spec.get("completionMode") == "Indexed" and spec.get("completions") is None:
        yield "spec.completions: required with completionMode Indexed"
