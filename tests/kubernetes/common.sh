# What both tiers do, cluster.sh here and tests/cluster/node.sh: keys, a network namespace, and the API server with what belongs to
# it. Sourced, not run; whoever sources it has set
#
#   BIN      the folders with the programs, as in PATH
#   RUN      a folder of its own: keys, etcd, logs, pids, admin.kubeconfig
#   CLUSTER  the namespace, and the veth on this side
#   NODES    the bridge: API server, this machine, pods      API_IP, HOST_IP    the first two
#   SERVICES addresses of Services                           SERVICE_API_IP     the API server's
#
# Names of functions and variables are those of both scripts.
# shellcheck shell=bash
: "${BIN:?}" "${RUN:?}" "${CLUSTER:?}" "${NODES:?}" "${API_IP:?}" "${HOST_IP:?}" "${SERVICES:?}" "${SERVICE_API_IP:?}"
SCRIPT=${0##*/}
PATH=$BIN:$PATH
export KUBECONFIG=$RUN/admin.kubeconfig KUBECACHEDIR=$RUN/kubectl

alive() { [ -s "$RUN/pid/$1" ] && kill -0 "$(cat "$RUN/pid/$1")" 2>/dev/null; }

# start NAME ARGUMENTS...: the program of that name, as a daemon in the namespace. Not by `ip netns exec`: that hides the cgroups.
start() {
    local name=$1
    shift
    alive "$name" && return
    setsid nohup nsenter --net="/run/netns/$CLUSTER" "$name" "$@" >>"$RUN/log/$name.log" 2>&1 </dev/null &
    echo $! >"$RUN/pid/$name"
}

# kill_daemons NAME...: in that order. An orderly end takes the API server 10 s, and all that it holds goes anyway.
kill_daemons() {
    for name in "$@"; do
        if alive "$name"; then kill -9 "$(cat "$RUN/pid/$name")" || true; fi
    done
}

# wait_for SECONDS PROGRAM COMMAND...: until the command succeeds; what the program said last if it does not.
wait_for() {
    local until=$((SECONDS + $1)) program=$2
    shift 2
    until "$@" >/dev/null 2>&1; do
        if ((SECONDS >= until)) || ! alive "$program"; then
            echo "$SCRIPT: $program does not serve; the end of $RUN/log/$program.log:" >&2
            tail -5 "$RUN/log/$program.log" >&2
            return 1
        fi
        sleep 0.1
    done
}

# needs PACKAGES PROGRAM...: root and those programs, which the Debian packages have.
needs() {
    local packages=$1 missing
    shift
    for program in "$@"; do
        command -v "$program" >/dev/null || missing="${missing:-} $program"
    done
    if [ -n "${missing:-}" ]; then
        echo "$SCRIPT: not installed:$missing (Debian: apt-get install $packages)" >&2
        return 1
    fi
    if [ "$(id -u)" != 0 ]; then
        echo "$SCRIPT: root is needed, to make a network namespace" >&2
        return 1
    fi
}

# certificate NAME SUBJECT [NAMES]: a key, and a certificate signed by the cluster's CA.
certificate() {
    local file=$RUN/pki/$1
    [ -s "$file.crt" ] && return
    openssl req -new -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj "$2" -keyout "$file.key" -out "$file.csr" 2>/dev/null
    openssl x509 -req -in "$file.csr" -CA "$RUN/pki/ca.crt" -CAkey "$RUN/pki/ca.key" -days 3650 -set_serial "0x$(openssl rand -hex 8)" \
        -extfile <(printf 'keyUsage=digitalSignature\nextendedKeyUsage=clientAuth,serverAuth\n%s' "${3:+subjectAltName=$3}") \
        -out "$file.crt" 2>/dev/null
}

# kubeconfig NAME SUBJECT: for a client with such a certificate, in $RUN/NAME.kubeconfig.
kubeconfig() {
    certificate "$1" "$2"
    cat >"$RUN/$1.kubeconfig" <<Y
apiVersion: v1
kind: Config
current-context: $CLUSTER
contexts: [{name: $CLUSTER, context: {cluster: $CLUSTER, user: $1}}]
clusters: [{name: $CLUSTER, cluster: {server: "https://$API_IP:6443", certificate-authority-data: $(base64 -w0 "$RUN/pki/ca.crt")}}]
users:
- name: $1
  user: {client-certificate-data: $(base64 -w0 "$RUN/pki/$1.crt"), client-key-data: $(base64 -w0 "$RUN/pki/$1.key")}
Y
}

# A bridge in the namespace, with this machine on it by a veth pair. Nothing leads further out.
network() {
    [ -e "/run/netns/$CLUSTER" ] && return
    ip netns add "$CLUSTER"
    local inside="nsenter --net=/run/netns/$CLUSTER"
    $inside ip link set lo up
    $inside ip link add cni0 address 02:00:00:00:00:01 type bridge
    $inside ip addr add "$API_IP/${NODES#*/}" dev cni0
    ip link add "$CLUSTER" type veth peer name host0 netns "$CLUSTER"
    $inside ip link set host0 master cni0
    $inside ip link set host0 up
    $inside ip link set cni0 up
    ip addr add "$HOST_IP/${NODES#*/}" dev "$CLUSTER"
    ip link set "$CLUSTER" up
    ip route replace "$SERVICES" via "$API_IP"
}

no_network() {
    ip link del "$CLUSTER" 2>/dev/null || true
    ip netns del "$CLUSTER" 2>/dev/null || true
}

keys() {
    [ -s "$RUN/pki/sa.pub" ] && return
    openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 3650 -subj "/CN=$CLUSTER-ca" \
        -addext keyUsage=critical,keyCertSign,digitalSignature -keyout "$RUN/pki/ca.key" -out "$RUN/pki/ca.crt" 2>/dev/null
    openssl genrsa -out "$RUN/pki/sa.key" 2048 2>/dev/null
    openssl rsa -in "$RUN/pki/sa.key" -pubout -out "$RUN/pki/sa.pub" 2>/dev/null
}

prepare() {
    mkdir -p "$RUN/pki" "$RUN/pid" "$RUN/log"
    network
    keys
}

# control_plane: etcd, the API server, the controllers and the scheduler.
control_plane() {
    local names=localhost,DNS:kubernetes,DNS:kubernetes.default,DNS:kubernetes.default.svc,DNS:kubernetes.default.svc.cluster.local
    certificate apiserver "/CN=kube-apiserver" "DNS:$names,IP:127.0.0.1,IP:$API_IP,IP:$SERVICE_API_IP"
    # By which it reaches a kubelet.
    certificate apiserver-kubelet "/O=system:masters/CN=kube-apiserver-kubelet-client"
    kubeconfig admin "/O=system:masters/CN=admin"
    kubeconfig kube-controller-manager "/CN=system:kube-controller-manager"
    kubeconfig kube-scheduler "/CN=system:kube-scheduler"

    start etcd --data-dir "$RUN/etcd" --unsafe-no-fsync --log-level warn \
        --listen-client-urls http://127.0.0.1:2379 --advertise-client-urls http://127.0.0.1:2379 --listen-peer-urls http://127.0.0.1:2380
    start kube-apiserver --etcd-servers http://127.0.0.1:2379 --advertise-address "$API_IP" --secure-port 6443 \
        --service-cluster-ip-range "$SERVICES" --allow-privileged --authorization-mode Node,RBAC \
        --client-ca-file "$RUN/pki/ca.crt" --tls-cert-file "$RUN/pki/apiserver.crt" --tls-private-key-file "$RUN/pki/apiserver.key" \
        --kubelet-client-certificate "$RUN/pki/apiserver-kubelet.crt" --kubelet-client-key "$RUN/pki/apiserver-kubelet.key" \
        --service-account-issuer https://kubernetes.default.svc.cluster.local \
        --service-account-key-file "$RUN/pki/sa.pub" --service-account-signing-key-file "$RUN/pki/sa.key" \
        --kubelet-preferred-address-types InternalIP
    wait_for 120 kube-apiserver kubectl get --raw /readyz
    start kube-controller-manager --kubeconfig "$RUN/kube-controller-manager.kubeconfig" --leader-elect=false \
        --use-service-account-credentials --root-ca-file "$RUN/pki/ca.crt" --service-account-private-key-file "$RUN/pki/sa.key" \
        --cluster-signing-cert-file "$RUN/pki/ca.crt" --cluster-signing-key-file "$RUN/pki/ca.key"
    start kube-scheduler --kubeconfig "$RUN/kube-scheduler.kubeconfig" --leader-elect=false
    wait_for 60 kube-controller-manager kubectl get serviceaccount default
}
