# Every target in one line each: `make help`. CI runs `make check`.

GO             ?= go
FUZZTIME       ?= 60s
FUZZTIME_CHECK ?= 5s
BENCH          ?= .
SEED           ?= 1
PREFIX         ?= /usr

export GO

.PHONY: build help demo e2e check soak bench model fuzz man install

build: ## build the commands into ./bin
	@mkdir -p bin
	$(GO) build -o bin/ ./cmd/...

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z0-9]+:.*## / { printf "  %-8s %s\n", $$1, $$2 }' Makefile

demo: build ## hand live HTTP transfers round three nodes: real daemons in namespaces, or in memory
	./bin/ds demo

e2e: ## real programs and unmodified clients on hosts in network namespaces, handed off in full swing
	$(GO) test -count=1 -timeout 10m ./e2e/...

check: build ## everything CI checks: format, vet, staticcheck, vulnerabilities, modules, race tests, short fuzzing
	@FUZZTIME='$(FUZZTIME_CHECK)' sh internal/tools/check.sh

soak: ## a million handoffs while everything ends, breaks or is late: 950 000 of the machines, 50 000 of real connections
	$(GO) test -count=1 -timeout 2h -v -run 'TestSoak$$' ./daemon/member -soak.handoffs=950000
	$(GO) test -count=1 -timeout 2h -v -run 'TestSoak$$' . -soak.handoffs=50000 -soak.seed=$(SEED)

bench: build ## run the benchmarks of every package (BENCH=regexp), then time migrations
	$(GO) test -run='^$$' -bench='$(BENCH)' -benchmem ./...
	./bin/ds bench migrate

model: ## check the model of the handoff (docs/model) and its mutations, with spin
	@sh internal/tools/model.sh

fuzz: ## fuzz every target of every package, FUZZTIME each (default 60s)
	@FUZZTIME='$(FUZZTIME)' sh internal/tools/fuzz.sh

man: build ## write the man pages, made of what --help says, into ./bin/man
	@rm -rf bin/man
	./bin/ds docs man bin/man/man1
	./bin/dsco docs man bin/man/man8

install: man ## install commands, man pages, units and completion below DESTDIR
	install -d $(DESTDIR)$(PREFIX)/bin $(DESTDIR)$(PREFIX)/share/man/man1 $(DESTDIR)$(PREFIX)/share/man/man8 \
		$(DESTDIR)$(PREFIX)/lib/systemd/system $(DESTDIR)$(PREFIX)/lib/sysusers.d $(DESTDIR)$(PREFIX)/lib/udev/rules.d \
		$(DESTDIR)$(PREFIX)/share/doc/dsco $(DESTDIR)$(PREFIX)/share/bash-completion/completions
	install bin/ds bin/dsco $(DESTDIR)$(PREFIX)/bin
	install -m 644 bin/man/man1/* $(DESTDIR)$(PREFIX)/share/man/man1
	install -m 644 bin/man/man8/* $(DESTDIR)$(PREFIX)/share/man/man8
	install -m 644 packaging/*.service $(DESTDIR)$(PREFIX)/lib/systemd/system
	install -m 644 packaging/dsco.sysusers $(DESTDIR)$(PREFIX)/lib/sysusers.d/dsco.conf
	install -m 644 packaging/dsco.rules $(DESTDIR)$(PREFIX)/lib/udev/rules.d/60-dsco.rules
	install -m 644 docs/*.toml docs/api.md $(DESTDIR)$(PREFIX)/share/doc/dsco
	./bin/ds completion bash >$(DESTDIR)$(PREFIX)/share/bash-completion/completions/ds
	./bin/dsco completion bash >$(DESTDIR)$(PREFIX)/share/bash-completion/completions/dsco
