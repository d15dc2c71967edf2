#!/usr/bin/env bash
# cluster.sh up | down: a real Kubernetes API for tests: etcd, kube-apiserver, kube-controller-manager, kube-scheduler, and kwok
# with a fake node, so that Deployments get Ready pods without containers. `cargo xtask api up|down` calls it.
#
#   BIN  the folder with the programs     RUN  a folder of its own: keys, etcd, logs, pids, admin.kubeconfig
#
# All of it lives in a network namespace of its own; this machine reaches it over a veth pair, and nothing leads further out. Needs
# root, iproute2 and openssl. `up` leaves alone what already runs. tests/cluster/node.sh has the same with a real node; both may run
# at once.
set -euo pipefail
CLUSTER=${CLUSTER:-pointsman}
NODES=${NODES:-198.18.0.0/16}
API_IP=${API_IP:-198.18.0.1}
HOST_IP=${HOST_IP:-198.18.0.2}
FAKE_PODS=${FAKE_PODS:-198.18.128.0/17}
SERVICES=${SERVICES:-198.19.0.0/17}
SERVICE_API_IP=${SERVICE_API_IP:-198.19.0.1}
FAKE_NODES=${FAKE_NODES:-1}            # of 1,000 pods each
# shellcheck source=tests/kubernetes/common.sh
. "$(dirname "$0")/common.sh"

# fake_node NUMBER: kwok plays the kubelet of those with the annotation.
fake_node() {
    cat <<Y
---
apiVersion: v1
kind: Node
metadata:
  name: fake$1
  annotations: {kwok.x-k8s.io/node: fake}
  labels: {kubernetes.io/hostname: fake$1, kubernetes.io/os: linux, kubernetes.io/arch: amd64, type: kwok}
status:
  allocatable: {cpu: "1000", memory: 4096Gi, pods: "1000"}
  capacity: {cpu: "1000", memory: 4096Gi, pods: "1000"}
Y
}

up() {
    needs "iproute2 openssl util-linux" ip openssl nsenter
    prepare
    control_plane
    # Outside RBAC's default roles; right for the tests' own.
    kubeconfig kwok "/O=system:masters/CN=kwok"
    start kwok --kubeconfig "$RUN/kwok.kubeconfig" --cidr "$FAKE_PODS" --node-ip "$API_IP" --node-lease-duration-seconds 40 \
        --manage-all-nodes=false --manage-nodes-with-annotation-selector kwok.x-k8s.io/node=fake
    for number in $(seq "$FAKE_NODES"); do fake_node "$number"; done | kubectl apply -f - >/dev/null
    wait_for 60 kwok kubectl wait --for=condition=Ready node/fake1 --timeout=1s
}

down() {
    kill_daemons kwok kube-scheduler kube-controller-manager kube-apiserver etcd
    no_network
    rm -rf "$RUN"
}

case ${1:-} in
up) up ;;
down) down ;;
*)
    echo "usage: $SCRIPT up | down" >&2
    exit 2
    ;;
esac
