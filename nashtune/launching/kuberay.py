"""A KubeRay RayJob that runs a recipe on a Ray cluster of its own in Kubernetes, and the recipe as a ConfigMap.

Facts used, from the custom resource definition of ray.io/v1 RayJob and KubeRay's samples: `entrypoint` is handed to `ray job
submit`, which runs it on the head; `backoffLimit` is how often a failed job is tried again, each time with a new cluster;
`shutdownAfterJobFinishes` and `ttlSecondsAfterFinished` remove the cluster afterwards.
"""

from __future__ import annotations

from typing import Any

import yaml

from nashtune.launching.place import Place

MOUNT = "/nashtune"
RECIPE = "/etc/nashtune/recipe.yaml"
RETRIES = 3
HEADER = """\
# Run with:   kubectl apply -f {file}      Look with:  kubectl get rayjob {name}
# The volume claim {volume!r} must exist and be mountable by all machines at once (ReadWriteMany): the run folder lies there, so
# that a cluster made anew goes on where the one before stopped. The image must hold nashtune[ray] and Ray {ray}.
{secret}"""
SECRET = """\
# Keys come from a secret:  kubectl create secret generic {name}-env --from-literal=NAME=VALUE   (here: {names})
"""


def rayjob(place: Place, *, image: str, volume: str, ray_version: str, cpus: int, memory: str, file: str) -> str:
    """The manifests. Raises RecipeError where the recipe reads files of this machine."""
    place.refuse_local_files(MOUNT)
    name = place.name
    config = {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": f"{name}-recipe"},
        "data": {"recipe.yaml": place.recipe_text(f"{MOUNT}/runs")},
    }
    # Overrides are in the recipe's text already.
    command = " ".join(["nashtune", "run", RECIPE, *place.scale("ray")])
    pod = _pod(place, image, volume, cpus, memory)
    workers = place.nodes - 1
    cluster: dict[str, Any] = {
        "rayVersion": ray_version,
        "headGroupSpec": {"rayStartParams": {"dashboard-host": "0.0.0.0"}, "template": pod("ray-head")},
    }
    if workers:
        group = {"groupName": "workers", "replicas": workers, "minReplicas": workers, "maxReplicas": workers}
        cluster["workerGroupSpecs"] = [{**group, "rayStartParams": {}, "template": pod("ray-worker")}]
    job = {
        "apiVersion": "ray.io/v1",
        "kind": "RayJob",
        "metadata": {"name": name},
        "spec": {
            "entrypoint": command,
            "submissionMode": "K8sJobMode",
            "backoffLimit": RETRIES,
            "shutdownAfterJobFinishes": True,
            "ttlSecondsAfterFinished": 600,
            "rayClusterSpec": cluster,
        },
    }
    asked = [key for key, value in place.env if value is None]
    secret = SECRET.format(name=name, names=", ".join(asked)) if asked else ""
    header = HEADER.format(file=file, name=name, volume=volume, ray=ray_version, secret=secret)
    return header + yaml.dump_all([config, job], Dumper=_Dumper, sort_keys=False, allow_unicode=True)


def _pod(place: Place, image: str, volume: str, cpus: int, memory: str) -> Any:
    """A function from a container's name to the template of its pod: every machine is like the others."""
    resources: dict[str, Any] = {"cpu": str(cpus), "memory": memory}
    if place.gpus_per_node:
        resources["nvidia.com/gpu"] = str(place.gpus_per_node)
    env: list[dict[str, Any]] = [{"name": "HF_HOME", "value": f"{MOUNT}/hub"}]
    for name, value in place.env:
        source = {"secretKeyRef": {"name": f"{place.name}-env", "key": name}}
        env.append({"name": name, "value": value} if value is not None else {"name": name, "valueFrom": source})
    volumes = [
        {"name": "runs", "persistentVolumeClaim": {"claimName": volume}},
        {"name": "recipe", "configMap": {"name": f"{place.name}-recipe"}},
        {"name": "shm", "emptyDir": {"medium": "Memory"}},
    ]
    mounts = [
        {"name": "runs", "mountPath": MOUNT},
        {"name": "recipe", "mountPath": RECIPE.rpartition("/")[0]},
        {"name": "shm", "mountPath": "/dev/shm"},
    ]

    def template(name: str) -> dict[str, Any]:
        container = {"name": name, "image": image, "env": env, "volumeMounts": mounts}
        container["resources"] = {"limits": resources, "requests": resources}
        return {"spec": {"containers": [container], "volumes": volumes}}

    return template


class _Dumper(yaml.SafeDumper):
    """Whole texts as blocks, and no references between the pods."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.Node:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


_Dumper.add_representer(str, _text)
