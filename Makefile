# `make demo` and `make test` work on a bare Debian 12 with a Swift toolchain; `make help` lists the rest.

SOURCES := Package.swift Sources Tests Benchmarks Examples

# A test may raise SIGSEGV and SIGBUS on purpose, and PinKit handles both: the sanitizers must leave them alone. Tests take
# /proc and all descriptors away from a process, and the leak check at its end needs both. Some ask for more memory than there is.
SANITIZER := handle_segv=0:handle_sigbus=0:allow_user_segv_handler=1:halt_on_error=1:exitcode=66:allocator_may_return_null=1
SANITIZED := SWIFT_BACKTRACE=enable=no \
  ASAN_OPTIONS=$(SANITIZER):detect_leaks=0 \
  TSAN_OPTIONS=$(SANITIZER):suppressions=$(CURDIR)/scripts/tsan-suppressions

.PHONY: help demo tour pinctl test build bench figures soak fuzz shared-words sanitize sanitize-fault-path mutate docs completions man \
  format lint clean dependencies test-dependencies figure-dependencies

help: ## List the targets
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 22

demo: pinctl ## Show the main job on this machine, in less than a minute once it is built
	@.build/release/pinctl demo

tour: pinctl ## Show every feature on this machine
	@.build/release/pinctl demo all

pinctl: dependencies
	@mkdir -p .build
	@echo "Building PinKit, a few minutes the first time; .build/demo.log has the details ..."
	@swift build -c release --product pinctl > .build/demo.log 2>&1 || { cat .build/demo.log; exit 1; }

test: test-dependencies ## Run all tests; the last line counts them, and says what was skipped
	swift build --build-tests
	@scripts/count-tests swift test --skip-build --disable-xctest

build: dependencies ## Build the release
	swift build -c release

bench: build ## Measure PinKit beside the raw kernel
	.build/release/pinctl bench

figures: figure-dependencies ## Draw the bench and write the README's table of ratios; three minutes after the build, on an idle machine
	swift build -c release --product pinctl
	@scripts/figures

soak: test-dependencies ## Run the tests that race against shadow models, each round with another seed, for SOAK_MINUTES (60)
	@SOAK_MINUTES=$(SOAK_MINUTES) scripts/soak
soak: SOAK_MINUTES ?= 60

fuzz: dependencies ## Drive what reads bytes from outside by coverage, for FUZZ_MINUTES (60)
	@FUZZ_MINUTES=$(FUZZ_MINUTES) scripts/fuzz
fuzz: FUZZ_MINUTES ?= 60

sanitize: test-dependencies ## Run the tests under the thread and address sanitizers
	swift build --build-tests --sanitize=thread --scratch-path .build-thread
	clang -D_GNU_SOURCE -O1 -fPIC -shared scripts/tsan-mutex.c -o .build-thread/tsan-mutex.so
	$(SANITIZED) scripts/count-tests env LD_PRELOAD=$(CURDIR)/.build-thread/tsan-mutex.so \
	  swift test --skip-build --disable-xctest --sanitize=thread --scratch-path .build-thread
	$(SANITIZED) scripts/count-tests swift test --disable-xctest --sanitize=address --scratch-path .build-address

# Suites of the fault path, where a wrong access breaks everybody's memory.
FAULT_PATH := ParallelProtection|ArmingSlice|SignalPatience|BudgetTests|LimitTests|WriteProtectLock|LockOrderTests|AllocationTests|FirstWriteTests|ErrnoInjectionTests|ForeignRemovalTests|WriteTrackerTests|WrprotectOrderTests|TeardownRace|StressTests|ExactnessTests|FaultAround|SnapshotTests|SnapshotRace|CloneTests|PinRaceTests|FileRaceTests

sanitize-fault-path: test-dependencies ## The suites of the fault path under the address sanitizer
	$(SANITIZED) scripts/count-tests swift test --disable-xctest --sanitize=address --scratch-path .build-address --filter '$(FAULT_PATH)'

shared-words: test-dependencies ## See that calls of threads with pages of their own write no word that they share
	swift build -c release --product hotpaths
	scripts/shared-words .build/release/hotpaths

mutate: test-dependencies ## Break the code in every place that Tests/Mutations names, and see that a suite notices (ids: scripts/mutate ID)
	@scripts/mutate

docs: dependencies ## Build the book; a warning is an error
	swift package generate-documentation --target PinKit --warnings-as-errors

completions: pinctl ## Write what bash, zsh and fish complete pinctl by to .build/completions
	@mkdir -p .build/completions
	@.build/release/pinctl --generate-completion-script bash > .build/completions/pinctl.bash
	@.build/release/pinctl --generate-completion-script zsh > .build/completions/_pinctl
	@.build/release/pinctl --generate-completion-script fish > .build/completions/pinctl.fish
	@echo "bash: source .build/completions/pinctl.bash, or copy it to ~/.local/share/bash-completion/completions"
	@echo "zsh:  copy .build/completions/_pinctl into a directory of \$$fpath"
	@echo "fish: copy .build/completions/pinctl.fish to ~/.config/fish/completions"

man: dependencies ## Write the manual page of pinctl to .build/man
	swift package --allow-writing-to-package-directory generate-manual
	@mkdir -p .build/man/man1
	@sed 's/^$$/.Pp/' .build/plugins/GenerateManual/outputs/pinctl/pinctl.1 > .build/man/man1/pinctl.1
	@echo "man -l .build/man/man1/pinctl.1"

format: ## Format the sources in place
	swift format -i -p -r $(SOURCES)

lint: ## Check the format, that the README shows the example as it is, that breakages are in their places, and the floors
	if command -v python3 > /dev/null; then scripts/mutate --check; else echo "no python3: breakages are not checked"; fi
	@if command -v python3 > /dev/null; then scripts/floors || [ $$? -eq 2 ]; else echo "no python3: floors are not checked"; fi
	sed -n '/^```swift/,/^```$$/p' README.md | sed '1d;$$d' | diff - Examples/track-writes/Sources/track-writes/main.swift
	swift format lint -s -p -r $(SOURCES)

clean: ## Remove everything that was built
	rm -rf .build .build-* Examples/*/.build

dependencies:
	@scripts/ensure-dependencies

test-dependencies:
	@scripts/ensure-dependencies tests

figure-dependencies:
	@scripts/ensure-dependencies figures
