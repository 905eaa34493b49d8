# Two commands matter: make demo, make test. The README says what they do.
SHELL  := /bin/bash
PORT   ?= 8080
export PORT

bin    := bin/serai bin/seraid bin/serai-proxy bin/serai-priv

.PHONY: build demo test test-go test-perl test-rig lint bench soak fuzz clean

build:
	@mkdir -p bin
	go build -o bin/ ./cmd/...

demo:
	@packaging/install demo
	@$(MAKE) --no-print-directory build
	@exec demo/run

test:
	@packaging/install test
	@$(MAKE) --no-print-directory lint test-perl test-go

lint:
	@test -z "$$(gofmt -l . | tee /dev/stderr)" || { echo "gofmt -w these files" >&2; exit 1; }
	go vet ./...
	go tool staticcheck ./...

test-perl:
	prove -Iperl -r perl/t

# One package at a time where servers, accounts and cgroups are real.
test-go:
	go test -race -timeout 20m $$(go list ./... | grep -v /test/)
	go test -timeout 20m -count=1 -v ./test/root/...

test-rig:
	@packaging/install rig
	@$(MAKE) --no-print-directory build
	test/rig/run

bench:
	@packaging/install bench
	@$(MAKE) --no-print-directory build
	go run ./bench

# Sick customers beside good ones, for ten minutes: make soak FOR=2m
FOR ?= 10m
soak:
	@packaging/install bench
	@$(MAKE) --no-print-directory build
	go run ./bench -only soak -for $(FOR)

# Each fuzz target for a while: make fuzz TIME=1m
TIME ?= 20s
fuzz:
	@for p in $$(go list ./...); do \
		for f in $$(go test -list '^Fuzz' $$p | grep ^Fuzz); do \
			echo "$$p $$f"; go test -run '^$$' -fuzz "^$$f\$$" -fuzztime $(TIME) -fuzzminimizetime 10x $$p || exit 1; \
		done; \
	done

clean:
	rm -rf bin
