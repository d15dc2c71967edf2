#!/usr/bin/env bash
# gaie.sh PORT ENDPOINTS [flow-control]: the Go picker of the Gateway API Inference Extension 1.5.0, for
# `bench picker … --start 'gaie=bench/peers/gaie.sh {port} {endpoints}' --body-may-change`. Builds it once, into
# ~/.cache/pointsman. It can only learn its pods from an API server: kubernetes.py answers for one.
set -euo pipefail
port=$1 endpoints=$2 flow_control=${3:-}
here=$(cd "$(dirname "$0")" && pwd)
version=1.5.0
cache=${XDG_CACHE_HOME:-$HOME/.cache}/pointsman/gaie-$version
if [ ! -x "$cache/epp" ]; then
    mkdir -p "$cache"
    module=$(go mod download -json "sigs.k8s.io/gateway-api-inference-extension@v$version" | sed -n 's/.*"Dir": "\(.*\)".*/\1/p')
    GOWORK=off go build -C "$module" -o "$cache/epp" ./cmd/epp >&2
fi
run=$(mktemp -d)
python3 "$here/kubernetes.py" "$run" "$endpoints" $$ 2>"$run/kubernetes.log" &
until [ -s "$run/kubeconfig" ]; do sleep 0.05; done
cat > "$run/plugins.yaml" <<'Y'
# The defaults of its chart: queue 2, KV 2, prefix 3; metrics by the newer data layer.
apiVersion: inference.networking.x-k8s.io/v1alpha1
kind: EndpointPickerConfig
plugins:
- type: queue-scorer
- type: kv-cache-utilization-scorer
- type: prefix-cache-scorer
- type: metrics-data-source
  parameters: {scheme: http, path: /metrics, insecureSkipVerify: true}
- type: core-metrics-extractor
schedulingProfiles:
- name: default
  plugins:
  - {pluginRef: queue-scorer, weight: 2}
  - {pluginRef: kv-cache-utilization-scorer, weight: 2}
  - {pluginRef: prefix-cache-scorer, weight: 3}
dataLayer:
  sources:
  - pluginRef: metrics-data-source
    extractors:
    - pluginRef: core-metrics-extractor
Y
if [ -n "$flow_control" ]; then
    # As ours: 100 MB of what waits, for 30 s at most.
    cat >> "$run/plugins.yaml" <<'Y'
featureGates: [flowControl]
flowControl: {maxBytes: 104857600, defaultRequestTTL: 30s}
Y
fi
export KUBECONFIG=$run/kubeconfig NAMESPACE=default POD_NAME=epp-6d9f7c8b5-abcde
exec "$cache/epp" --pool-name bench --pool-namespace default --grpc-port "$port" --grpc-health-port $((port + 1)) \
    --metrics-port $((port + 2)) --secure-serving=false --metrics-endpoint-auth=false --enable-pprof=false --tracing=false \
    --zap-log-level info --zap-encoder json --config-file "$run/plugins.yaml" 2>"$run/epp.log"
