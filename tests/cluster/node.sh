#!/usr/bin/env bash
# node.sh up | down | load ARCHIVE...: a real Kubernetes of one node for tests: the API server and what belongs to it, containerd,
# kubelet, kube-proxy, CoreDNS, and Envoy Gateway with a GatewayClass `eg`. `cargo xtask cluster` calls it: docs/cluster.md.
#
#   BIN     the folders with the programs, as in PATH      RUN     a folder of its own: keys, etcd, containers, logs, pids, admin.kubeconfig
#   IMAGES  the folder of the archives that image.sh made  CHART   Envoy Gateway's Helm chart
#   VALUES  files with values for it, one a line, besides envoy-gateway.yaml here; those of the last time unless set
#
# All of it lives in a network namespace of its own; this machine reaches API server, pods and Services over a veth pair, and nothing
# leads further out. `up` leaves alone what already runs, `down` leaves the machine as it was. Runs beside tests/kubernetes/cluster.sh.
set -euo pipefail
CLUSTER=${CLUSTER:-pointsman-node}
NODES=${NODES:-198.19.128.0/18}
API_IP=${API_IP:-198.19.128.1}
HOST_IP=${HOST_IP:-198.19.128.2}
PODS=${PODS:-198.19.129.0-198.19.191.254}
SERVICES=${SERVICES:-198.19.192.0/18}
SERVICE_API_IP=${SERVICE_API_IP:-198.19.192.1}
SERVICE_DNS_IP=${SERVICE_DNS_IP:-198.19.192.10}
NODE=${NODE:-node1}
HERE=$(cd "$(dirname "$0")" && pwd)
# shellcheck source=tests/kubernetes/common.sh
. "$HERE/../kubernetes/common.sh"
SOCKET=$RUN/containerd/containerd.sock
GATEWAYS=envoy-gateway-system
# What kubelet changes of the machine is the same for all nodes on it: the first remembers here how it was, the last restores it.
MACHINE=/run/pointsman-node
SYSCTLS="vm/overcommit_memory vm/panic_on_oom kernel/panic kernel/panic_on_oops kernel/keys/root_maxkeys kernel/keys/root_maxbytes"

containers() { ctr --address "$SOCKET" --namespace k8s.io "$@"; }

# has_image NAME: as containerd calls it.
has_image() { containers images list -q | grep -Fx "$1" >/dev/null; }

# wait_for_rollout SECONDS NAMESPACE DEPLOYMENT: how its pods are, if they do not get ready.
wait_for_rollout() {
    kubectl --namespace "$2" rollout status "deployment/$3" --timeout "$1s" >/dev/null 2>&1 && return
    echo "$SCRIPT: deployment/$3 in $2 does not get ready (logs: $RUN/log):" >&2
    kubectl --namespace "$2" get pods >&2
    kubectl --namespace "$2" get events --field-selector type=Warning -o custom-columns=:.involvedObject.name,:.message --no-headers | tail -5 >&2
    return 1
}

routing() {
    nsenter --net="/run/netns/$CLUSTER" sh -c 'echo 1 >/proc/sys/net/ipv4/ip_forward
        echo 1 >/proc/sys/net/bridge/bridge-nf-call-iptables'
}

# The pods' cgroups go below one of the cluster's own: in each hierarchy of cgroup v1, or in that of v2.
cgroups() {
    local hierarchy file
    for hierarchy in $(cgroup_hierarchies); do
        mkdir -p "$hierarchy/$CLUSTER"
        for file in cpuset.cpus cpuset.mems; do
            # Empty in a new cgroup of v1, and then nothing may enter it.
            if [ -f /sys/fs/cgroup/cpuset/cpuset.cpus ] && [ -f "$hierarchy/$file" ]; then
                cat "$hierarchy/$file" >"$hierarchy/$CLUSTER/$file"
            fi
        done
    done
}

cgroup_hierarchies() {
    if [ -f /sys/fs/cgroup/cgroup.controllers ]; then
        echo /sys/fs/cgroup
        return
    fi
    for hierarchy in /sys/fs/cgroup/*/; do
        # cpu and others are links to cpu,cpuacct.
        if [ -f "$hierarchy/cgroup.procs" ] && [ ! -L "${hierarchy%/}" ]; then echo "${hierarchy%/}"; fi
    done
}

# containerd with what it keeps below $RUN. Nothing is ever pulled.
container_runtime() {
    mkdir -p "$RUN/containerd" "$RUN/cni"
    cat >"$RUN/cni/10-bridge.conflist" <<J
{"cniVersion": "0.4.0", "name": "$CLUSTER", "plugins": [
  {"type": "bridge", "bridge": "cni0", "isGateway": true, "hairpinMode": true,
   "ipam": {"type": "host-local", "dataDir": "$RUN/leases", "routes": [{"dst": "0.0.0.0/0"}],
            "ranges": [[{"subnet": "$NODES", "gateway": "$API_IP", "rangeStart": "${PODS%-*}", "rangeEnd": "${PODS#*-}"}]]}}]}
J
    cat >"$RUN/containerd/config.toml" <<T
version = 2
root = "$RUN/containerd/root"
state = "$RUN/containerd/state"
disabled_plugins = ["io.containerd.snapshotter.v1.aufs", "io.containerd.snapshotter.v1.btrfs",
    "io.containerd.snapshotter.v1.devmapper", "io.containerd.snapshotter.v1.zfs", "io.containerd.internal.v1.opt"]
[grpc]
address = "$SOCKET"
[plugins."io.containerd.grpc.v1.cri"]
sandbox_image = "local/pause:1"
netns_mounts_under_state_dir = true
# A negative oom_score_adj takes CAP_SYS_RESOURCE, which not every machine gives.
restrict_oom_score_adj = true
[plugins."io.containerd.grpc.v1.cri".cni]
bin_dir = "/usr/lib/cni"
conf_dir = "$RUN/cni"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
Root = "$RUN/containerd/runc"
T
    start containerd --config "$RUN/containerd/config.toml"
    wait_for 30 containerd ctr --address "$SOCKET" version
    local archive
    for archive in "$IMAGES"/*.tar; do
        has_image "$(cat "${archive%.tar}.name")" || containers images import "$archive" >/dev/null
    done
}

remember_machine() {
    [ -d "$MACHINE" ] && return
    mkdir "$MACHINE"
    for name in $SYSCTLS; do echo "$name $(cat "/proc/sys/$name")"; done >"$MACHINE/sysctls"
    # kubelet's socket for devices is there, whatever --root-dir says.
    [ -e /var/lib/kubelet ] || touch "$MACHINE/without-kubelet"
}

restore_machine() {
    if [ ! -d "$MACHINE" ] || pgrep -x --runstates D,R,S kubelet >/dev/null; then return; fi
    while read -r name value; do echo "$value" >"/proc/sys/$name" || true; done <"$MACHINE/sysctls"
    [ ! -f "$MACHINE/without-kubelet" ] || rm -rf /var/lib/kubelet
    rm -r "$MACHINE"
}

kubelet_and_proxy() {
    kubeconfig kubelet "/O=system:nodes/CN=system:node:$NODE"
    kubeconfig kube-proxy "/CN=system:kube-proxy"
    mkdir -p "$RUN/kubelet"
    : >"$RUN/resolv.conf"              # no name server outside the cluster
    cat >"$RUN/kubelet.yaml" <<Y
apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
authentication: {x509: {clientCAFile: $RUN/pki/ca.crt}, anonymous: {enabled: false}}
cgroupDriver: cgroupfs
cgroupRoot: /$CLUSTER
clusterDNS: [$SERVICE_DNS_IP]
clusterDomain: cluster.local
containerRuntimeEndpoint: unix://$SOCKET
# What else is on this machine's disk is not the node's to evict pods for.
evictionHard: {memory.available: 100Mi, nodefs.available: 1%, imagefs.available: 1%}
failSwapOn: false
imageGCHighThresholdPercent: 100
makeIPTablesUtilChains: false
podLogsDir: $RUN/log/pods
resolvConf: $RUN/resolv.conf
volumePluginDir: $RUN/kubelet/plugins
Y
    # kube-proxy ends when its configuration is written, even with what it was.
    alive kube-proxy || cat >"$RUN/kube-proxy.yaml" <<Y
apiVersion: kubeproxy.config.k8s.io/v1alpha1
kind: KubeProxyConfiguration
clientConnection: {kubeconfig: $RUN/kube-proxy.kubeconfig}
clusterCIDR: $NODES
# The limits of connection tracking are the machine's.
conntrack: {maxPerCore: 0, min: 0}
hostnameOverride: $NODE
mode: nftables
# How late a Service may work; 1 s unless told.
nftables: {minSyncPeriod: 100ms}
Y
    remember_machine
    start kubelet --config "$RUN/kubelet.yaml" --kubeconfig "$RUN/kubelet.kubeconfig" --root-dir "$RUN/kubelet" \
        --cert-dir "$RUN/kubelet/pki" --hostname-override "$NODE" --node-ip "$API_IP"
    start kube-proxy --config "$RUN/kube-proxy.yaml"
    wait_for 90 kubelet kubectl wait --for=condition=Ready "node/$NODE" --timeout=1s
}

# Installed as its users do, by Helm; again only when chart or values changed. Values that nobody names anew stay.
envoy_gateway() {
    local made_from file values=("$HERE/envoy-gateway.yaml") arguments=()
    [ -n "${VALUES+named}" ] || VALUES=$(cat "$RUN/values" 2>/dev/null || true)
    while read -r file; do
        [ -z "$file" ] || values+=("$file")
    done <<<"$VALUES"
    for file in "${values[@]}"; do arguments+=(--values "$file"); done
    made_from=$(cat "$CHART" "${values[@]}" | sha256sum | cut -d' ' -f1)
    if [ "$(cat "$RUN/envoy-gateway" 2>/dev/null)" != "$made_from" ]; then
        # Helm's own folders are not those of whoever calls this. The annotation starts the pods anew: a changed ConfigMap takes a
        # minute to reach them.
        HELM_CACHE_HOME=$RUN/helm HELM_CONFIG_HOME=$RUN/helm HELM_DATA_HOME=$RUN/helm helm upgrade --install eg "$CHART" \
            --namespace "$GATEWAYS" --create-namespace "${arguments[@]}" \
            --set-string "deployment.pod.annotations.made-from=$made_from" >"$RUN/log/helm.log" 2>&1 || {
            echo "$SCRIPT: Envoy Gateway is not installed; helm says:" >&2
            tail -5 "$RUN/log/helm.log" >&2
            return 1
        }
        echo "$VALUES" >"$RUN/values"
        echo "$made_from" >"$RUN/envoy-gateway"
    fi
    kubectl apply -f "$HERE/gatewayclass.yaml" >/dev/null
    wait_for_rollout 120 "$GATEWAYS" envoy-gateway
    kubectl wait --for=condition=Accepted gatewayclass/eg --timeout=30s >/dev/null 2>&1 || {
        echo "$SCRIPT: Envoy Gateway does not accept gatewayclass/eg: kubectl -n $GATEWAYS logs deployment/envoy-gateway" >&2
        return 1
    }
}

up() {
    needs "containerd runc containernetworking-plugins nftables conntrack iproute2 openssl util-linux" \
        containerd ctr runc /usr/lib/cni/bridge nft conntrack ip openssl nsenter
    prepare
    routing
    cgroups
    # Images take as long as the API server does.
    container_runtime &
    local runtime=$!
    control_plane
    wait "$runtime"
    kubelet_and_proxy
    sed "s/@DNS_IP@/$SERVICE_DNS_IP/" "$HERE/coredns.yaml" | kubectl apply -f - >/dev/null
    envoy_gateway
    wait_for_rollout 90 kube-system coredns
}

# load ARCHIVE...: images from what `docker save` or `cargo xtask image` writes.
load() {
    if ! alive containerd; then
        echo "$SCRIPT: the cluster does not run: cargo xtask cluster up" >&2
        return 1
    fi
    local archive
    for archive in "$@"; do
        containers images import "$archive"
    done
}

# pids_below CGROUP_HIERARCHY: of the pods' processes.
pids_below() { find "$1/$CLUSTER" -name cgroup.procs -exec cat {} + 2>/dev/null || true; }

# The containers' processes and the shims that watch them: a shim's only sign of belonging here is the socket that it was given.
kill_containers() {
    local hierarchy pids
    pgrep -f -- "-address $SOCKET" | xargs -r kill -9 2>/dev/null || true
    hierarchy=$(cgroup_hierarchies | tail -1)
    for _ in $(seq 100); do
        pids=$(pids_below "$hierarchy")
        [ -n "$pids" ] || return 0
        xargs -r kill -9 <<<"$pids" 2>/dev/null || true
        sleep 0.05
    done
    echo "$SCRIPT: these processes of pods do not end: $(tr '\n' ' ' <<<"$pids")" >&2
    return 1
}

# What containerd, its plugins and kubelet write elsewhere and cannot be told to write below $RUN.
leftovers() {
    local task
    for task in "$RUN"/containerd/state/io.containerd.runtime.v2.task/k8s.io/*/; do
        [ ! -f "$task/address" ] || rm -f "$(sed 's,^unix://,,' "$task/address")"
        rm -f /var/lib/cni/results/*-"$(basename "$task")"-*
    done
    find /var/log/containers -maxdepth 1 -lname "$RUN/*" -delete 2>/dev/null || true
    for folder in /run/containerd/s /run/containerd /var/log/containers /var/lib/cni/results /var/lib/cni; do
        rmdir "$folder" 2>/dev/null || true
    done
}

down() {
    # kubelet first: it would start the others' containers anew.
    kill_daemons kubelet kube-proxy containerd
    kill_containers
    kill_daemons kube-scheduler kube-controller-manager kube-apiserver etcd
    awk -v run="$RUN/" 'index($2, run) == 1 { print $2 }' /proc/mounts | sort -r | xargs -r umount -l
    local hierarchy
    for hierarchy in $(cgroup_hierarchies); do
        find "$hierarchy/$CLUSTER" -depth -type d -exec rmdir {} + 2>/dev/null || true
    done
    leftovers
    restore_machine
    no_network
    # What `ip netns` mounts for the first namespace; busy, and left, while there are others.
    umount /run/netns 2>/dev/null && rmdir /run/netns || true
    rm -rf --one-file-system "$RUN"
}

case ${1:-} in
up) up ;;
down) down ;;
load)
    shift
    load "$@"
    ;;
*)
    echo "usage: $SCRIPT up | down | load ARCHIVE..." >&2
    exit 2
    ;;
esac
