#!/usr/bin/env bash
# Under Swift Testing an error of a typed throw allocates memory, also where the function that threw it caught it.
#
# A typed error of a plain struct is returned by value: in a program, throwing and catching one calls no allocator. The runtime offers hooks
# that hear of every error that is thrown, and Swift Testing installs them as a test runs, to remember where an error came from. From then on
# each error of the process allocates, whoever throws it, on whatever thread, and whether or not anybody outside sees it. So a test that counts
# allocations sees some that the program does not make, and code that may not allocate (in a signal handler, or while it serves a page fault
# that the allocator itself may wait for) must not throw where tests shall run it.
#
# Seen: Swift 6.3.1, x86_64, debug and release, calls of malloc(3) and calloc(3) for one error after the first:
#   a program: 0
#   a test: 1
#
# Needs a Swift 6.3 toolchain in PATH, which brings Swift Testing. Nothing of PinKit is used.
# Exit: 0 as stated; 1 no longer as stated; 77 cannot be seen here.
set -euo pipefail

cannot() { echo "cannot be seen here: $*"; exit 77; }
command -v swift > /dev/null || cannot "there is no swift in PATH"
version=$(swift --version 2> /dev/null | head -1)
[[ $version == *"Swift version 6.3"* ]] || cannot "it was seen with Swift 6.3, and this is: $version"

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
mkdir -p Sources/CCount/include Sources/Refusing Sources/program Tests/RefusingTests

cat > Package.swift << 'END'
// swift-tools-version: 6.2
import PackageDescription

let package = Package(
  name: "refusing",
  targets: [
    .target(name: "CCount"),
    .target(name: "Refusing", dependencies: ["CCount"]),
    .executableTarget(name: "program", dependencies: ["Refusing"]),
    .testTarget(name: "RefusingTests", dependencies: ["Refusing"]),
  ])
END
echo 'int allocations(void);' > Sources/CCount/include/CCount.h
cat > Sources/CCount/count.c << 'END'
#include <stddef.h>
#include "CCount.h"
static __thread int count;
extern void *__libc_malloc(size_t), *__libc_calloc(size_t, size_t);
void *malloc(size_t size) { count++; return __libc_malloc(size); }
void *calloc(size_t items, size_t size) { count++; return __libc_calloc(items, size); }
int allocations(void) { return count; }
END
cat > Sources/Refusing/Refusing.swift << 'END'
import CCount

struct Refusal: Error { let code: Int32 }

@inline(never) func refuse(_ code: Int32) throws(Refusal) { if code > 0 { throw Refusal(code: code) } }

@inline(never) func attempt(_ code: Int32) -> Int32 {
  do throws(Refusal) { try refuse(code) } catch { return error.code }
  return 0
}

/// How often this thread allocates for the second error.
public func allocationsOfAnError() -> Int32 {
  _ = attempt(1)
  let before = allocations()
  _ = attempt(2)
  return allocations() - before
}
END
echo 'import Refusing
print("a program: \(allocationsOfAnError())")' > Sources/program/main.swift
echo 'import Refusing
import Testing
@Test func refusal() { print("a test: \(allocationsOfAnError())") }' > Tests/RefusingTests/RefusingTests.swift

echo "$version"
failed=0
for configuration in debug release; do
  swift build -c "$configuration" --build-tests -Xswiftc -enable-testing > log 2>&1 || cannot "$(tail -1 log)"
  program=$(swift run -c "$configuration" --skip-build program 2> /dev/null | tail -1)
  test=$(swift test -c "$configuration" --skip-build --disable-xctest 2> /dev/null | grep -a '^a test: ') || test="a test: not run"
  echo "$configuration: $program; $test"
  [ "$program" = "a program: 0" ] && [[ $test =~ ^a\ test:\ [1-9] ]] || failed=1
done

if [ "$failed" = 0 ]; then echo "as stated"; else echo "no longer as stated"; fi
exit "$failed"
