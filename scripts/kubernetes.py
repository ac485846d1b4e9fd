#!/usr/bin/env python3
"""kubernetes.py DIRECTORY: checks what Kustomize has built in there from deploy/kubernetes, and writes beside it the configuration
of the ConfigMap and the rules of the PrometheusRule, for tools that check those."""

import pathlib
import sys

import yaml

work = pathlib.Path(sys.argv[1])


def documents(path):
    built = [document for document in yaml.safe_load_all(path.read_text()) if document]
    return {(document["kind"], document["metadata"]["name"]): document for document in built}


base = documents(work / "kubernetes.yaml")
plain = documents(pathlib.Path("deploy/kubernetes/sidelink.yaml"))
assert base == plain, "the base is the plain manifest"
monitoring = documents(work / "kubernetes-monitoring.yaml")
assert sorted(kind for kind, _ in monitoring) == ["PodMonitor", "PrometheusRule"], sorted(monitoring)

for name, text in base["ConfigMap", "sidelink"]["data"].items():
    (work / f"kubernetes-{name}").write_text(text)

# The monitor finds the pods of the base, and in them the port.
monitor = monitoring["PodMonitor", "sidelink"]["spec"]
pods = base["Deployment", "portal"]["spec"]["template"]
assert monitor["selector"]["matchLabels"].items() <= pods["metadata"]["labels"].items(), monitor["selector"]
containers = pods["spec"]["initContainers"] + pods["spec"]["containers"]
ports = {port["name"] for container in containers for port in container.get("ports", [])}
for endpoint in monitor["podMetricsEndpoints"]:
    assert endpoint["port"] in ports, f"no port {endpoint['port']} among {ports}"

rules = monitoring["PrometheusRule", "sidelink"]["spec"]
(work / "kubernetes-rules.yml").write_text(yaml.safe_dump(rules))
