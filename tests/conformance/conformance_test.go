// Package conformance_test runs upstream's conformance suite of the inference extension against the cluster of KUBECONFIG, with
// the flags of that suite; `cargo xtask cluster conformance` gives them.
package conformance_test

import (
	"testing"

	"sigs.k8s.io/gateway-api-inference-extension/conformance"
)

func TestConformance(t *testing.T) {
	conformance.RunConformance(t)
}
