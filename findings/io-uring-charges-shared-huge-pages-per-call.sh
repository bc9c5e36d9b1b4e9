#!/usr/bin/env bash
# io_uring and RLIMIT_MEMLOCK: what fixed buffers that share transparent huge pages are charged depends on how they were
# registered.
#
# A fixed buffer is charged all of a huge page that it touches, and nothing for one that a buffer of the same ring's table holds
# already. A user without CAP_IPC_LOCK may have 5 MiB locked, and has a region of 4 MiB on two huge pages of 2 MiB.
#
#   per call   IORING_REGISTER_BUFFERS with that region as two buffers is refused with ENOMEM: a call does not see the buffers
#              that it is itself registering. Only a huge page that it met immediately before is not charged again: pieces of
#              4 KiB of the first, the second and the first huge page are charged 6 MiB, of the first, the first and the
#              second 4 MiB. The region twice, a third time, and a piece of 4 KiB, registered one after the other with
#              IORING_REGISTER_BUFFERS_UPDATE in a sparse table, are accepted and charged once: 4 MiB.
#   once       All of this is accepted, and charged once.
#
# Seen (Debian's kernels in qemu, without KVM):
#   Linux 6.1.0-50-cloud-amd64 (bookworm)                  once
#   Linux 6.12.117+deb13-cloud-amd64 (trixie)              once
#   Linux 6.18.44 (not Debian's, not in qemu)              per call
#   Linux 7.3.4+deb13-cloud-amd64 (trixie-backports)       once
#
# On 4 KiB pages there is no such sharing on any of these kernels: the second buffer over the same pages is charged again, one
# after the other too. The script looks at that as well, to show that the limit holds where it runs.
#
#   io-uring-charges-shared-huge-pages-per-call.sh                run it on the running kernel
#   io-uring-charges-shared-huge-pages-per-call.sh --build FILE   only build the program, static, to be run on another kernel
#
# Needs root (to become a user that has nothing charged), and gcc or clang with libc's and Linux's headers; on Debian, gcc
# and libc6-dev are installed where these are missing. Nothing of PinKit is used.
# Exit: 0 as stated, or a kernel that is not listed above; 1 no longer as stated; 77 cannot be seen here.
set -euo pipefail

user=64999
cannot() { echo "cannot be seen here: $*"; exit 77; }

build=
case ${1-} in
  '') ;;
  --build) build=${2:?--build needs a file};;
  *) echo "usage: $0 [--build FILE]" >&2; exit 2;;
esac
if [ -z "$build" ]; then
  [ "$(id -u)" = 0 ] || cannot "root is needed"
  ! getent passwd $user >/dev/null || cannot "user $user is taken"
fi

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT

cat > "$folder/charges.c" <<'PROGRAM'
#define _GNU_SOURCE
#include <errno.h>
#include <grp.h>
#include <linux/io_uring.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/utsname.h>
#include <sys/wait.h>
#include <unistd.h>

enum { USER = 64999, CANNOT = 77, CAP_IPC_LOCK = 14 };
static const size_t MIB = 1 << 20, HUGE = 2 << 20, REGION = 4 << 20;

_Noreturn static void cannot(const char *why) {
  printf(errno ? "cannot be seen here: %s (%s)\n" : "cannot be seen here: %s\n", why, strerror(errno));
  fflush(stdout);
  _exit(CANNOT);
}

// 4 MiB of memory with nothing mapped beside it, on huge pages or on none, and written to.
static char *region(int huge) {
  size_t reserved = REGION + 2 * HUGE;
  char *start = mmap(NULL, reserved, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (start == MAP_FAILED) cannot("mmap");
  char *memory = (char *)(((uintptr_t)start + 2 * HUGE - 1) / HUGE * HUGE);
  if (mprotect(memory, REGION, PROT_READ | PROT_WRITE)) cannot("mprotect");
  if (madvise(memory, REGION, huge ? MADV_HUGEPAGE : MADV_NOHUGEPAGE)) cannot("no transparent huge pages");
  memset(memory, 1, REGION);
  return memory;
}

// AnonHugePages of the mapping that starts at an address, in kB.
static long hugeKilobytes(const char *memory) {
  FILE *file = fopen("/proc/self/smaps", "r");
  if (!file) cannot("/proc/self/smaps");
  char line[512];
  long found = -1;
  int inside = 0;
  while (fgets(line, sizeof line, file)) {
    unsigned long from, to;
    if (sscanf(line, "%lx-%lx ", &from, &to) == 2) inside = from == (uintptr_t)memory && to == from + REGION;
    else if (inside) sscanf(line, "AnonHugePages: %ld kB", &found);
  }
  fclose(file);
  return found;
}

// A field of /proc/self/status: VmPin in kB, to which io_uring adds what it charges, or CapEff.
static unsigned long long status(const char *field, int base) {
  FILE *file = fopen("/proc/self/status", "r");
  if (!file) cannot("/proc/self/status");
  char line[512];
  unsigned long long value = ~0ULL;
  size_t length = strlen(field);
  while (fgets(line, sizeof line, file))
    if (!strncmp(line, field, length) && line[length] == ':') value = strtoull(line + length + 1, NULL, base);
  fclose(file);
  return value;
}

static int inOneCall(int ring, struct iovec *buffers, unsigned count) {
  return syscall(SYS_io_uring_register, ring, IORING_REGISTER_BUFFERS, buffers, count) < 0 ? errno : 0;
}

static int sparseTable(int ring, unsigned slots) {
  struct io_uring_rsrc_register table = {.nr = slots, .flags = IORING_RSRC_REGISTER_SPARSE};
  return syscall(SYS_io_uring_register, ring, IORING_REGISTER_BUFFERS2, &table, sizeof table) < 0 ? errno : 0;
}

static int inSlot(int ring, unsigned slot, struct iovec *buffer) {
  struct io_uring_rsrc_update2 update = {.offset = slot, .data = (uintptr_t)buffer, .nr = 1};
  return syscall(SYS_io_uring_register, ring, IORING_REGISTER_BUFFERS_UPDATE, &update, sizeof update) < 0 ? errno : 0;
}

// What came of it, on the terminal in words, and through the pipe in short.
static int record;
static void say(const char *what, int error) {
  unsigned long long charged = status("VmPin", 10);
  char outcome[64];
  snprintf(outcome, sizeof outcome, "%s", !error ? "accepted" : error == ENOMEM ? "ENOMEM" : strerror(error));
  printf("  %-64s %-9s charged %5llu kB\n", what, outcome, charged);
  dprintf(record, "%s %llu; ", outcome, charged);
}

enum { ONE, TWO, ALTERNATING, SORTED, ONE_BY_ONE, SMALL_PAGES, ATTEMPTS };

static void attempt(int which) {
  int huge = which != SMALL_PAGES;
  char *memory = region(huge);
  long found = hugeKilobytes(memory);
  if (which == ONE) printf("  AnonHugePages of the region: %ld kB\n", found);
  if (found != (huge ? (long)(REGION / 1024) : 0)) {
    errno = 0;
    cannot(huge ? "the region is not all on huge pages" : "the region is on huge pages though it should not be");
  }
  rlim_t limit = (which == ALTERNATING || which == SORTED ? 7 : 5) * MIB;
  if (setrlimit(RLIMIT_MEMLOCK, &(struct rlimit){limit, limit})) cannot("the limit on locked memory could not be set");
  if (setgroups(0, NULL) || setresgid(USER, USER, USER) || setresuid(USER, USER, USER)) cannot("becoming another user");
  if (status("CapEff", 16) >> CAP_IPC_LOCK & 1) cannot("CAP_IPC_LOCK stays");
  struct io_uring_params parameters = {0};
  int ring = syscall(SYS_io_uring_setup, 8, &parameters);
  if (ring < 0) cannot("io_uring_setup");

  struct iovec whole[2] = {{memory, REGION}, {memory, REGION}}, piece = {memory + 4096, 4096};
  struct iovec first = piece, second = {memory + HUGE, 4096};
  int error;
  switch (which) {
    case ONE: say("one call, the region once:", inOneCall(ring, whole, 1)); break;
    case TWO: say("one call, the region twice:", inOneCall(ring, whole, 2)); break;
    case ALTERNATING:
      say("one call, 4 KiB of the first, the second, the first huge page:", inOneCall(ring, (struct iovec[]){first, second, first}, 3));
      break;
    case SORTED:
      say("one call, 4 KiB of the first, the first, the second huge page:", inOneCall(ring, (struct iovec[]){first, first, second}, 3));
      break;
    case ONE_BY_ONE:
      if ((error = sparseTable(ring, 4))) { errno = error; cannot("no sparse tables of buffers"); }
      say("one after the other, the region:", inSlot(ring, 0, whole));
      say("  the region again:", inSlot(ring, 1, whole));
      say("  the region a third time:", inSlot(ring, 2, whole));
      say("  4 KiB of the region:", inSlot(ring, 3, &piece));
      break;
    case SMALL_PAGES:
      if ((error = sparseTable(ring, 2))) { errno = error; cannot("no sparse tables of buffers"); }
      say("on 4 KiB pages, one after the other, the region:", inSlot(ring, 0, whole));
      say("  the region again:", inSlot(ring, 1, whole));
      break;
  }
  // Given back here, and not whenever the closed ring is taken apart: the next attempt must find nothing charged.
  syscall(SYS_io_uring_register, ring, IORING_UNREGISTER_BUFFERS, NULL, 0);
  fflush(stdout);
  _exit(0);
}

#define LIMIT_HOLDS "accepted 4096; ENOMEM 4096; "
#define ONE_BY_ONE_ONCE "accepted 4096; accepted 4096; accepted 4096; accepted 4096; "
static const struct { const char *name, *meaning, *outcome; } behaviours[] = {
  {"per call", "huge pages that another buffer of the same call holds are charged again, "
   "those that an earlier call registered are not",
   "accepted 4096; " "ENOMEM 0; " "accepted 6144; " "accepted 4096; " ONE_BY_ONE_ONCE LIMIT_HOLDS},
  {"once", "the shared huge pages are charged once, in one call and one after the other",
   "accepted 4096; " "accepted 4096; " "accepted 4096; " "accepted 4096; " ONE_BY_ONE_ONCE LIMIT_HOLDS},
};
static const struct { int major, minor; const char *behaviour; } seen[] = {
  {6, 1, "once"}, {6, 12, "once"}, {6, 18, "per call"}, {7, 3, "once"},
};

int main(void) {
  setvbuf(stdout, NULL, _IOLBF, 0);
  struct utsname name;
  uname(&name);
  int major = 0, minor = 0;
  sscanf(name.release, "%d.%d", &major, &minor);
  printf("Linux %s, as user %d without CAP_IPC_LOCK, who may have 5 MiB locked (7 MiB for pieces in one call);\n"
         "a region of 4 MiB, on two huge pages where nothing else is said\n", name.release, USER);

  int ends[2];
  if (pipe(ends)) cannot("pipe");
  record = ends[1];
  for (int which = 0; which < ATTEMPTS; which++) {
    fflush(stdout);
    pid_t child = fork();
    if (child < 0) cannot("fork");
    if (child == 0) attempt(which);
    int ended;
    if (waitpid(child, &ended, 0) < 0 || !WIFEXITED(ended)) { printf("an attempt died\n"); return 1; }
    if (WEXITSTATUS(ended)) return WEXITSTATUS(ended);
  }
  close(ends[1]);
  char outcome[1024] = "";
  for (size_t length = 0; length < sizeof outcome - 1;) {
    ssize_t got = read(ends[0], outcome + length, sizeof outcome - 1 - length);
    if (got <= 0) break;
    length += got;
  }

  const char *is = "neither of the known ones", *was = NULL;
  for (size_t i = 0; i < sizeof behaviours / sizeof *behaviours; i++)
    if (!strcmp(outcome, behaviours[i].outcome)) {
      is = behaviours[i].name;
      printf("\"%s\": %s.\n", is, behaviours[i].meaning);
    }
  for (size_t i = 0; i < sizeof seen / sizeof *seen; i++)
    if (seen[i].major == major && seen[i].minor == minor) was = seen[i].behaviour;
  if (!was) {
    printf("Linux %d.%d is not one of the kernels that were looked at: its behaviour is \"%s\".\n", major, minor, is);
    return 0;
  }
  int same = !strcmp(is, was);
  printf("Linux %d.%d: stated \"%s\", seen \"%s\": %s.\n", major, minor, was, is, same ? "as stated" : "NO LONGER AS STATED");
  return !same;
}
PROGRAM

# compile FILE [OPTION…]
compile() {
  local compiler output=$1; shift
  compiler=$(command -v gcc || command -v clang) && "$compiler" -O1 -Wall -Wextra "$@" -o "$output" "$folder/charges.c"
}
install() {
  command -v apt-get >/dev/null &&
    { apt-get update && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends gcc libc6-dev; } >/dev/null
}
ready() { compile "$@" 2>/dev/null || { install && compile "$@"; } || cannot "the program could not be compiled"; }

if [ -n "$build" ]; then
  ready "$build" -static
  exit
fi
ready "$folder/charges"
result=0
"$folder/charges" || result=$?
exit "$result"
