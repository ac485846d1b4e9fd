#!/usr/bin/env bash
# Checks deploy/: the files against their schemas and linters, the configurations in them with sidelink itself, and what a
# container would hold by running it in there, in a network of its own. Containers, pods and units are not started:
# deploy/README.md says so.
set -euo pipefail
cd "$(dirname "$0")/.."

venv=.venv/bin
sidelink=${1:-target/debug/sidelink}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
step() { printf 'deploy: %s\n' "$*"; }

step "Dockerfile"
"$venv/hadolint" deploy/Dockerfile
sh -n deploy/rootfs.sh

step "kubernetes"
for base in kubernetes kubernetes/monitoring; do
    kubectl kustomize "deploy/$base" >"$work/${base//\//-}.yaml"
done
# The first version with native sidecars that is on by default, and the newest known. They know nothing of the operator's kinds.
for version in 1.29.0 1.37.0; do
    "$venv/kubernetes-validate" --strict --quiet -k "$version" deploy/kubernetes/sidelink.yaml "$work/kubernetes.yaml"
done
"$venv/python" scripts/kubernetes.py "$work"
promtool check rules "$work/kubernetes-rules.yml" >/dev/null

step "compose"
"$venv/check-jsonschema" --builtin-schema vendor.compose-spec deploy/compose/compose.yaml
"$venv/python" - <<'PYTHON'
import ast, pathlib, yaml
folder = pathlib.Path("deploy/compose")
compose = yaml.safe_load((folder / "compose.yaml").read_text())
for name, service in compose["services"].items():
    for volume in service.get("volumes", []):
        source = volume.split(":")[0]
        if source.startswith("."):
            assert (folder / source).exists(), f"{name}: {source} is not there"
        else:
            assert source in compose["volumes"], f"{name}: no volume {source}"
    assert set(service.get("depends_on", [])) <= set(compose["services"]), name
ast.parse((folder / "app.py").read_text())
PYTHON
cp deploy/compose/sidelink/sidelink.toml "$work/compose.toml"

step "systemd"
sed "s#/usr/local/bin/sidelink#$(realpath "$sidelink")#" deploy/systemd/sidelink.service >"$work/sidelink.service"
systemd-analyze verify --man=no "$work/sidelink.service"
# 20 of 100 is well within "OK".
systemd-analyze security --offline=true --threshold=20 --no-pager "$work/sidelink.service" >"$work/security" ||
    { cat "$work/security"; exit 1; }

step "configurations"
for file in config/sidelink.toml "$work"/*.toml; do
    "$sidelink" check --config "$file" >/dev/null
done

step "what the image is built from"
# The files that .dockerignore lets through have to hold all that is compiled.
mkdir "$work/context"
sed -n 's/^!//p' .dockerignore | xargs cp --parents -rt "$work/context"
targets() {
    cargo metadata --manifest-path "$1/Cargo.toml" --no-deps --offline --locked --format-version 1 |
        "$venv/python" -c 'import json, sys
for target in json.load(sys.stdin)["packages"][0]["targets"]:
    if {"lib", "bin", "custom-build"} & set(target["kind"]): print(target["kind"], target["name"])'
}
diff <(targets .) <(targets "$work/context")
grep -qx 'COPY \. \.' deploy/Dockerfile

step "what a container holds, running"
deploy/rootfs.sh "$sidelink" "$work/root"
if [ "$(id -u)" -eq 0 ] && unshare --net true 2>/dev/null; then
    unshare --net "$venv/python" scripts/container.py "$work/root"
else
    step "NOT RUN in its folder: only root may change the root, and have a network apart"
fi
