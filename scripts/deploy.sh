#!/usr/bin/env bash
# Checks deploy/: the files against their schemas and linters, the configurations in them with sidelink itself, and what a
# container would hold by running it in there. Containers, pods and units are not started: deploy/README.md says so.
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

step "what a container holds"
deploy/rootfs.sh "$sidelink" "$work/root"
if [ "$(id -u)" -eq 0 ]; then
    chroot --userspec=65532:65532 "$work/root" /usr/local/bin/sidelink check --config /etc/sidelink/sidelink.toml >/dev/null
else
    step "NOT RUN in its folder: only root may change the root"
fi
