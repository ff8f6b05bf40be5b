// Prometheus operator's CustomResourceDefinitions, which its Go module has as files. Nothing is compiled: `make helm-tools` copies them.
module example.org/cml-worker-exporter/deploy/helm/tools/crds

go 1.24.0

require github.com/prometheus-operator/prometheus-operator v0.85.0
