//go:build tools

// Package tools names the program that `make bench` builds from this module, so that go.mod requires it.
package tools

import _ "github.com/prometheus-community/yet-another-cloudwatch-exporter/cmd/yace"
