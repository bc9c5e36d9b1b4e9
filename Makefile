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
