// What a host program does to a library: signal handlers, timers, forks, filters and limits. For tests only.
#ifndef CTESTSUPPORT_H
#define CTESTSUPPORT_H

#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

// ---- memory accesses that the compiler cannot remove ----

// Whether the thread sanitizer is in: it delays signals, runs their handlers with all signals blocked, and has no child of fork().
int ct_has_thread_sanitizer(void);
// Whether any sanitizer is in.
int ct_has_sanitizer(void);
void ct_store(uint64_t address, uint8_t value);
// Counts calls of malloc(3), calloc(3), realloc(3), memalign(3), aligned_alloc(3) and posix_memalign(3) while `inside` says yes, on whatever
// thread; not under a sanitizer. Errors that are thrown are shown to nobody any more.
void ct_watch_allocations(int (*_Nonnull inside)(void));
int ct_watched_allocations(void);
// Errors thrown inside meanwhile, whoever caught them.
int ct_watched_errors(void);
// Allocates and frees in the way of that number, from 0 on in this order; whether there is such a way.
int ct_allocate(int kind);
// Sequentially consistent.
void ct_store_in_order(uint64_t address, uint64_t value);
uint8_t ct_load(uint64_t address);
// Words that another thread may touch: relaxed.
void ct_store_word(uint64_t address, uint64_t value);
uint64_t ct_load_word(uint64_t address);
// Stores with errno set to a value of its own; whether errno still has it afterwards.
int ct_store_keeps_errno(uint64_t address, uint8_t value);
void ct_spoil_errno(void);
// Stores; returns 0, or the signal that a handler of ct_handle got instead.
int ct_try_store(uint64_t address, uint8_t value);
// Loads; the byte, or minus the signal.
int ct_try_load(uint64_t address);
// Overwrites 64 bytes of every xmm register around a store; whether they still hold their values.
int ct_store_keeps_registers(uint64_t address, uint8_t value);

// ---- signal handlers of the host ----

enum {
  ct_plain = 0,
  ct_siginfo = 1,       // SA_SIGINFO
  ct_reset_hand = 2,    // SA_RESETHAND
  ct_no_defer = 4,      // SA_NODEFER
  ct_chains = 8,        // hands faults that are not its own to the handler it replaced
  ct_swallows = 16,     // does not
};
// Installs a handler that records what it sees and makes the access succeed. It blocks SIGUSR1 while it runs.
int ct_handle(int signal_number, int flags);
int ct_default(int signal_number);
int ct_ignore(int signal_number);
// An inaccessible page, and a page behind the end of its file: the handler opens the one and extends the other.
uint64_t ct_guard_page(void);
uint64_t ct_truncated_page(void);
int ct_extend_truncated_page(void);
int ct_cut_truncated_page(void);

int ct_seen_count(void);
int ct_seen_signal(void);
int ct_seen_code(void);
uint64_t ct_seen_address(void);
int ct_seen_on_alternate_stack(void);
// Gives the calling thread an alternate stack for signals.
int ct_use_alternate_stack(void);
// Whether the signal was blocked while the handler ran.
int ct_seen_blocked(int signal_number);
// Whether the calling thread blocks it now.
int ct_is_blocked(int signal_number);
int ct_raise(int signal_number);
int ct_kill(int signal_number);

// ---- storms ----

// From now on SIGPROF increments a 32-bit counter in one page after the other of `pages` pages from `base`.
int ct_profile(uint64_t base, int pages, int page_size);
// Sends SIGPROF to the calling thread every so many microseconds, until the thread ends its timer.
int ct_profile_this_thread(int microseconds);
void ct_end_profile_of_this_thread(void);
// setitimer(ITIMER_PROF), for the whole process.
int ct_profile_process(int microseconds);
// How many times the handler ran, and the sum of what it added.
uint64_t ct_profile_count(void);

// ---- threads ----

// Threads of a task pool block signals; those of a program do not, and those started here do not either.
void ct_unblock_signals(void);
uint64_t ct_thread_start(void (*_Nonnull body)(void *_Nullable), void *_Nullable context);
void ct_thread_join(uint64_t thread);
// Ends the process with status 97 and a message if it still runs after ten times so many seconds: a hang, on any machine.
void ct_deadline(int seconds);

// ---- processes ----

pid_t ct_fork(void);
// In the child: ends it without running anything.
void ct_exit(int status);
// The exit status, or 1000 + the signal that ended it.
int ct_wait(pid_t child);
void ct_alarm(int seconds);
// Forks a process that stops this one, and has it go on, so many times; for ct_wait.
pid_t ct_stop_again_and_again(int times, int stopped_ms, int running_ms);
// How many threads of this process have a name that begins with `name`.
int ct_threads_named(const char *_Nonnull name);
// Runs a program with arguments separated by `separator`; its standard output (at most `capacity` - 1 bytes) goes to `output`.
// Returns as ct_wait does, or -errno.
int ct_spawn(const char *_Nonnull path, const char *_Nonnull arguments, char separator, char *_Nonnull output, int capacity);
// Starts a program in a session of its own and waits for its first byte of standard output; then it reads from `input` until that is closed.
// The process, or -errno; -EPIPE if it ended without a byte.
pid_t ct_serve(const char *_Nonnull path, const char *_Nonnull arguments, char separator, int *_Nonnull input);
// Sends a line to a Unix socket, and gets one. 0 or -errno; -EPIPE without an answer.
int ct_ask(const char *_Nonnull socket, const char *_Nonnull line, char *_Nonnull answer, int capacity);
// Runs this very process image again, with the crash backtracer on, and compares what it writes to standard error with `expected`.
// Returns as ct_wait does, or -1 if `expected` is not in it. `choice` is what ct_backtrace_choice returns there; -1 elsewhere.
int ct_run_with_backtraces(int choice, const char *_Nonnull expected);
int ct_backtrace_choice(void);
// Whether the runtime that runs here can start its backtracer: swift-backtrace lies in libexec of the toolchain.
int ct_has_backtracer(void);

// ---- descriptors and limits ----

int ct_descriptor_count(void);
int ct_userfaultfd_count(void);
// Closes up to `count` userfaultfds, the lowest or the highest numbers first; returns how many.
int ct_close_userfaultfds(int count, int highest_first);
// The lowest open descriptor number whose link says userfaultfd, or -1.
int ct_first_userfaultfd(void);
// A descriptor of /dev/null in the place of the number.
int ct_occupy(int fd);
int ct_is_dev_null(int fd);
// Lowers the limit on open files so that `spare` more can be opened; ct_restore_file_limit lifts it.
int ct_limit_files(int spare);
int ct_restore_file_limit(void);
int ct_raise_file_limit(void);
// 0 lifts the limit.
int ct_limit_address_space(uint64_t spare_bytes);
// Whether the system lets this process have more threads (RLIMIT_NPROC). It is not root's any more after the first call.
int ct_allow_threads(int allowed);
int ct_mapping_count(void);

// ---- files ----

// The first so many bytes of a file, shared: what is stored there survives the process. The address, or 0.
uint64_t ct_map_file(const char *_Nonnull path, uint64_t length);
// RLIMIT_FSIZE, in bytes; 0 lifts it as far as it may be.
int ct_limit_file_size(uint64_t bytes);
// EXT4_IOC_SHUTDOWN and XFS_IOC_GOINGDOWN: from now on the file system of the directory fails, as when its device is gone.
int ct_shut_down(const char *_Nonnull directory);

// ---- privileges ----

// From now on userfaultfd(2) and USERFAULTFD_IOC_NEW fail with EPERM.
int ct_forbid_userfaultfd(void);
// From now on io_uring_setup(2) fails with EPERM, as in a container.
int ct_forbid_io_uring(void);
// process_vm_readv(2) and process_vm_writev(2).
int ct_forbid_memory_copies(void);
// From now on opening /proc/self/pagemap and the like fails too: becomes the user nobody.
int ct_become_nobody(void);
// /proc shows the process to its user again, which changing users had ended.
int ct_show_in_proc(void);

// ---- pins and mappings ----

int ct_memfd(const char *_Nonnull name);
// memfd_secret(2); -errno.
int ct_memfd_secret(void);
// Makes a file for direct I/O.
int ct_open_direct(const char *_Nonnull path);
// Moves bytes between memory at `address`, which the kernel pins meanwhile, and `other`: process_vm_writev(2) or _readv of this process.
ssize_t ct_move_pinned(uint64_t address, void *_Nonnull other, size_t length, int writes);
// Stores; returns how many faults that took.
int ct_store_faults(uint64_t address, uint8_t value);

// Addresses in a child of known memory, in pages of 4096 bytes.
struct ct_known {
  uint64_t small;    // 64 private pages, each second one of the first 32 written
  uint64_t file;     // 16 shared pages of a file: 4 written, 4 read, 8 untouched
  uint64_t huge;     // 2 MiB where a huge page is wanted
  uint64_t twice;    // 8 pages of a memfd, mapped twice: 4 touched by both, 2 by one, 2 by none
  uint64_t sparse;   // 1 TiB with one page in its middle
  uint64_t guarded;  // 8 private pages, the first 4 write-protected by a userfaultfd if `is_guarded`
  uint64_t is_guarded;
};
// Starts a child that waits for its end; it ends with this process.
pid_t ct_start_known(int file, struct ct_known *_Nonnull known);
void ct_end(pid_t child);

uint64_t ct_map_anonymous(uint64_t length, int shared);
// Shared memory of a memfd that may not be written any more but through this mapping: no hole can be punched. The address, or 0.
uint64_t ct_map_sealed(uint64_t length);

// ---- scans ----

// Counts the places in all readable memory of the process, through /proc/self/mem, that hold the `count` bytes `masked` ^ `mask`; writes
// the addresses of the first `capacity`. Memory of the scan's own is left out. Or -errno.
int ct_scan_memory(
  const uint8_t *_Nonnull masked, int count, uint8_t mask, uint64_t *_Nonnull found, int capacity,
  uint64_t *_Nonnull bytes_scanned, uint64_t *_Nonnull bytes_refused);
// Writes `masked` ^ `mask` to `target`, and leaves it nowhere else.
void ct_unmask(void *_Nonnull target, const uint8_t *_Nonnull masked, int count, uint8_t mask);

// Calls `body` and writes what it leaves in the vector registers: at most 2,048 bytes; returns how many, 0 where they cannot be read.
int ct_vector_registers_after(void (*_Nonnull body)(void *_Nullable), void *_Nullable context, void *_Nonnull registers);

// ---- locked memory ----

int ct_limit_locked_memory(uint64_t bytes);
// Bytes of the calling process's memory that are read as another process would, with process_vm_readv(2): how many, or -errno.
long ct_read_of_process(pid_t process, uint64_t address, void *_Nonnull target, uint64_t count);

// Writes a setting of /proc or /sys; 0 or -errno. And whether that is allowed.
int ct_write_file(const char *_Nonnull path, const char *_Nonnull text);
int ct_may_write(const char *_Nonnull path);

// ---- programs that close what they did not open, and lock themselves in ----

// Closes every number from `first` to `last` (at most the limit) whose link in /proc says `kind` ("": all of them), then opens a file of the
// program's own in the place of each that was open: 64 KiB of which all bytes are known. Returns how many, or -errno.
int ct_seize_descriptors(int first, int last, const char *_Nonnull kind);
// 0 if all those files are open, and as they were made; or a number of which it is not so.
int ct_check_seized(void);
// Makes a swap file of so many bytes and swaps to it; 0 or -errno. And ends that, and removes the file.
int ct_swap_on(const char *_Nonnull path, long bytes);
int ct_swap_off(const char *_Nonnull path);
// How many numbers from 3 up to `below` have that kind.
int ct_low_descriptors_of(const char *_Nonnull kind, int below);
// From now on kcmp(2) fails with EPERM.
int ct_forbid_kcmp(void);
int ct_forbid_membarrier(void);
// From now on it ends the process.
int ct_die_of_kcmp(void);
// From now on fstat(2) fails with EIO, for numbers that are closed as well.
int ct_fail_fstat(void);
// chroot(2).
int ct_enter_jail(const char *_Nonnull directory);
// The calling thread, and those it starts, have mounts of their own; then an empty file system over /proc.
int ct_own_mounts(void);
int ct_cover_proc(void);
// ct_userfaultfd_count where there is no /proc.
int ct_userfaultfd_count_by_ioctl(void);

// Where the marks of ct_hot_run() lie, 64 bytes each: the first is written when a call has ended, the one of 1 + 2 * call + thread when it begins.
uintptr_t ct_hot_marks(void);
// Calls `body` on two threads, one after the other and both alive, with each number below `calls` (31 at most): three times, and once between marks.
void ct_hot_run(void (*_Nonnull body)(void *_Nullable, int, int), void *_Nullable context, int calls);

#endif
