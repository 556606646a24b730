# Every target in one line each: `make help`. CI runs `make check`.

GO             ?= go
FUZZTIME       ?= 60s
FUZZTIME_CHECK ?= 5s
BENCH          ?= .

export GO

.PHONY: build help demo e2e check bench fuzz

build: ## build the commands into ./bin
	@mkdir -p bin
	$(GO) build -o bin/ ./cmd/...

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  %-8s %s\n", $$1, $$2 }' Makefile

demo: build ## hand live HTTP transfers over between two servers: processes as root, in memory otherwise
	./bin/ds demo

e2e: ## real programs and unmodified clients on hosts in network namespaces, handed off in full swing
	$(GO) test -count=1 -timeout 10m ./e2e/...

check: build ## everything CI checks: format, vet, staticcheck, vulnerabilities, modules, race tests, short fuzzing
	@FUZZTIME='$(FUZZTIME_CHECK)' sh internal/tools/check.sh

bench: build ## run the benchmarks of every package (BENCH=regexp), then time migrations
	$(GO) test -run='^$$' -bench='$(BENCH)' -benchmem ./...
	./bin/ds bench migrate

fuzz: ## fuzz every target of every package, FUZZTIME each (default 60s)
	@FUZZTIME='$(FUZZTIME)' sh internal/tools/fuzz.sh
