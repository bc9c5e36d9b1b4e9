// Threads and processes.
#include "CTestSupport.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

struct start {
  void (*body)(void *);
  void *context;
};

static void *run(void *raw) {
  struct start start = *(struct start *)raw;
  free(raw);
  ct_unblock_signals();
  start.body(start.context);
  return NULL;
}

uint64_t ct_thread_start(void (*body)(void *), void *context) {
  struct start *start = malloc(sizeof *start);
  if (!start) abort();
  *start = (struct start){body, context};
  pthread_t thread;
  if (pthread_create(&thread, NULL, run, start)) abort();
  return (uint64_t)thread;
}

void ct_unblock_signals(void) {
  sigset_t none;
  sigemptyset(&none);
  pthread_sigmask(SIG_SETMASK, &none, NULL);
}

void ct_thread_join(uint64_t thread) { pthread_join((pthread_t)thread, NULL); }

// A deadline ends a hang; it judges no speed. What takes a second here may take a minute on a slow and busy machine. Where hangs are
// expected (`make mutate`), PINKIT_DEADLINE_FACTOR=1 ends them sooner.
static int deadline_factor(void) {
  const char *factor = getenv("PINKIT_DEADLINE_FACTOR");
  return factor && atoi(factor) > 0 ? atoi(factor) : 10;
}

static void *wait_for_deadline(void *raw) {
  struct timespec span = {(time_t)(intptr_t)raw * deadline_factor(), 0};
  while (nanosleep(&span, &span) < 0 && errno == EINTR);
  static const char text[] = "the test's deadline has passed\n";
  if (write(STDERR_FILENO, text, sizeof text - 1) < 0) _exit(98);
  _exit(97);
}

void ct_deadline(int seconds) {
  sigset_t all, old;
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, &old);
  pthread_t thread;
  if (pthread_create(&thread, NULL, wait_for_deadline, (void *)(intptr_t)seconds)) abort();
  pthread_detach(thread);
  pthread_sigmask(SIG_SETMASK, &old, NULL);
}

// ---- processes ----

pid_t ct_fork(void) { return fork(); }
// Not through the C library: a sanitizer has a say there, and waits for threads that a child of fork() does not have.
void ct_exit(int status) { syscall(SYS_exit_group, status); }
void ct_alarm(int seconds) { alarm((unsigned)(seconds * deadline_factor())); }

int ct_wait(pid_t child) {
  int status = 0;
  while (waitpid(child, &status, 0) < 0)
    if (errno != EINTR) return -errno;
  return WIFSIGNALED(status) ? 1000 + WTERMSIG(status) : WEXITSTATUS(status);
}

extern char **environ;

// `list` has 16 places; returns what its words lie in.
static char *split(const char *path, const char *arguments, char separator, char **list) {
  char *copy = strdup(arguments);
  int count = 0;
  list[count++] = (char *)path;
  for (char *at = copy; at && *at && count < 15;) {
    list[count++] = at;
    char *next = strchr(at, separator);
    if (next) *next++ = 0;
    at = next;
  }
  list[count] = NULL;
  return copy;
}

int ct_spawn(const char *path, const char *arguments, char separator, char *output, int capacity) {
  char *list[16], *copy = split(path, arguments, separator, list);
  int ends[2];
  if (pipe2(ends, O_CLOEXEC)) return -errno;
  posix_spawn_file_actions_t actions;
  posix_spawn_file_actions_init(&actions);
  posix_spawn_file_actions_adddup2(&actions, ends[1], STDOUT_FILENO);
  pid_t child;
  int error = posix_spawn(&child, path, &actions, NULL, list, environ);
  posix_spawn_file_actions_destroy(&actions);
  close(ends[1]);
  free(copy);
  int length = 0;
  while (!error && length < capacity - 1) {
    ssize_t got = read(ends[0], output + length, (size_t)(capacity - 1 - length));
    if (got < 0 && errno == EINTR) continue;
    if (got <= 0) break;
    length += (int)got;
  }
  output[length] = 0;
  close(ends[0]);
  return error ? -error : ct_wait(child);
}

pid_t ct_serve(const char *path, const char *arguments, char separator, int *input) {
  int in[2], out[2];
  if (pipe2(in, O_CLOEXEC)) return -errno;
  if (pipe2(out, O_CLOEXEC)) {
    close(in[0]), close(in[1]);
    return -EMFILE;
  }
  char *list[16], *copy = split(path, arguments, separator, list);
  posix_spawn_file_actions_t actions;
  posix_spawn_file_actions_init(&actions);
  posix_spawn_file_actions_adddup2(&actions, in[0], STDIN_FILENO);
  posix_spawn_file_actions_adddup2(&actions, out[1], STDOUT_FILENO);
  posix_spawnattr_t attributes;
  posix_spawnattr_init(&attributes);
  posix_spawnattr_setflags(&attributes, POSIX_SPAWN_SETSID);
  pid_t child;
  int error = posix_spawn(&child, path, &actions, &attributes, list, environ);
  posix_spawnattr_destroy(&attributes);
  posix_spawn_file_actions_destroy(&actions);
  free(copy);
  close(in[0]);
  close(out[1]);
  char byte;
  ssize_t got = 0;
  while (!error && (got = read(out[0], &byte, 1)) < 0 && errno == EINTR);
  close(out[0]);
  if (!error && got == 1) {
    *input = in[1];
    return child;
  }
  close(in[1]);
  if (!error) ct_wait(child);
  return error ? -error : -EPIPE;
}

int ct_ask(const char *path, const char *line, char *answer, int capacity) {
  struct sockaddr_un address = {.sun_family = AF_UNIX};
  if (strlen(path) >= sizeof address.sun_path) return -ENAMETOOLONG;
  strcpy(address.sun_path, path);
  int connection = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
  if (connection < 0) return -errno;
  int length = 0, error = 0;
  if (connect(connection, (struct sockaddr *)&address, sizeof address)) error = errno;
  else if (send(connection, line, strlen(line), MSG_NOSIGNAL) < 0 || send(connection, "\n", 1, MSG_NOSIGNAL) < 0) error = errno;
  while (!error && length < capacity - 1) {
    ssize_t got = read(connection, answer + length, 1);
    if (got < 0 && errno == EINTR) continue;
    if (got <= 0) error = got < 0 ? errno : EPIPE;
    else if (answer[length++] == '\n') break;
  }
  close(connection);
  answer[length > 0 && answer[length - 1] == '\n' ? length - 1 : length] = 0;
  return -error;
}

static char *read_all(const char *path, size_t *length) {
  int fd = open(path, O_RDONLY | O_CLOEXEC);
  char *text = malloc(1 << 20);
  *length = 0;
  for (;;) {
    ssize_t got = fd < 0 ? 0 : read(fd, text + *length, (1 << 20) - 1 - *length);
    if (got <= 0) break;
    *length += (size_t)got;
  }
  if (fd >= 0) close(fd);
  text[*length] = 0;
  return text;
}

static char **strings(char *text, size_t length, const char *extra) {
  size_t count = 0;
  for (size_t i = 0; i < length; i++) count += text[i] == 0;
  char **list = calloc(count + 2, sizeof *list);
  size_t at = 0, next = 0;
  size_t name = extra ? (size_t)(strchr(extra, '=') - extra) + 1 : 0;
  while (next < length) {
    if (!extra || strncmp(text + next, extra, name)) list[at++] = text + next;
    next += strlen(text + next) + 1;
  }
  if (extra) list[at++] = (char *)extra;
  return list;
}

int ct_run_with_backtraces(int choice, const char *expected) {
  char settings[256];
  // The choice travels as a limit on the frames that are printed.
  snprintf(settings, sizeof settings,
    "SWIFT_BACKTRACE=enable=yes,color=no,interactive=no,output-to=stderr,threads=crashed,images=none,symbolicate=off,limit=%d",
    100 + choice);
  size_t arguments_length, environment_length;
  char **arguments = strings(read_all("/proc/self/cmdline", &arguments_length), arguments_length, NULL);
  char **environment = strings(read_all("/proc/self/environ", &environment_length), environment_length, settings);
  int ends[2];
  if (pipe2(ends, O_CLOEXEC)) return -errno;
  pid_t child = fork();
  if (child == 0) {
    dup2(ends[1], STDERR_FILENO);
    // Whatever numbers the environment tells the harness to talk through: there is nobody to talk to.
    int null = open("/dev/null", O_RDWR);
    for (int fd = 3; fd < 1024; fd++)
      if (fd != null) dup2(null, fd);
    execve("/proc/self/exe", arguments, environment);
    _exit(96);
  }
  close(ends[1]);
  char *text = malloc(1 << 20);
  size_t length = 0;
  for (ssize_t got; length < (1 << 20) - 1; length += (size_t)got) {
    got = read(ends[0], text + length, (1 << 20) - 1 - length);
    if (got < 0 && errno == EINTR) got = 0;
    else if (got <= 0) break;
  }
  text[length] = 0;
  close(ends[0]);
  int status = ct_wait(child), found = strstr(text, expected) != NULL;
  free(text);
  return found ? status : -1;
}

int ct_backtrace_choice(void) {
  const char *value = getenv("SWIFT_BACKTRACE"), *limit = value ? strstr(value, ",limit=") : NULL;
  return limit ? atoi(limit + 7) - 100 : -1;
}

int ct_has_backtracer(void) {
  size_t length;
  char *maps = read_all("/proc/self/maps", &length), *found = strstr(maps, "/lib/swift/linux/libswiftCore.so");
  int result = 0;
  if (found) {
    *found = 0;
    char *start = strrchr(maps, ' '), path[4096];
    if (start) {
      snprintf(path, sizeof path, "%s/libexec/swift/linux/swift-backtrace", start + 1);
      result = access(path, X_OK) == 0;
    }
  }
  free(maps);
  return result;
}

pid_t ct_stop_again_and_again(int times, int stopped_ms, int running_ms) {
  pid_t parent = getpid(), child = fork();
  if (child) return child;
  struct timespec stopped = {stopped_ms / 1000, (long)(stopped_ms % 1000) * 1000000};
  struct timespec running = {running_ms / 1000, (long)(running_ms % 1000) * 1000000};
  for (int i = 0; i < times; i++) {
    kill(parent, SIGSTOP);
    nanosleep(&stopped, NULL);
    kill(parent, SIGCONT);
    nanosleep(&running, NULL);
  }
  syscall(SYS_exit_group, 0);
  return 0;
}

int ct_threads_named(const char *name) {
  DIR *tasks = opendir("/proc/self/task");
  if (!tasks) return -1;
  int count = 0;
  for (struct dirent *task; (task = readdir(tasks));) {
    char path[300], text[32] = {0};
    snprintf(path, sizeof path, "/proc/self/task/%s/comm", task->d_name);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0) continue;
    ssize_t bytes = read(fd, text, sizeof text - 1);
    close(fd);
    if (bytes > 0 && strncmp(text, name, strlen(name)) == 0) count++;
  }
  closedir(tasks);
  return count;
}
