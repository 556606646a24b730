// Package e2e tests the real programs: dsco in its three roles, ds, and an
// application (e2e/service), on hosts with the kernel's own TCP/IP, and with
// clients that know nothing of all this: curl, socat, redis-cli.
//
// Each test has a network of its own, in network namespaces: that of
// internal/testbed, whose documentation draws it.
//
// What the tests need of the machine is found out by probes (internal/probe):
// they skip without it, or fail if DS_REQUIRE says so. Programs are built once.
//
//	make e2e                            all of them
//	go test ./e2e -run Optimised -v     one, with what is measured
//	DS_E2E_KEEP=/tmp/e2e go test ./e2e  keep logs, configurations and captures
//	DS_E2E_RACE=1 go test ./e2e         the programs with the race detector, slower
package e2e
