// A block device with a volatile cache, for tests: what was not flushed may be gone when its power fails. A plugin of nbdkit.
//
// forgetful-disk, beside it, builds it and makes a disk of it.
//
// A write is acknowledged when it is in the cache. FLUSH makes stable what was acknowledged before it, FUA the write that has it. Each sector
// is stable alone: when the power fails, a sector has its stable content, or that of any write to it that was not flushed since. So of the
// writes after the last flush some are there, some are not and some are torn, in no order, as the seed has it.
//
// Commands are lines of text to the control socket, each answered with one line. Numbers are decimal.
//
//     cut COUNT SEED PID   The power fails at the COUNT-th write or flush from now on, which is not carried out; 0: now. PID, unless it is 0,
//                          is killed first, so that no instruction of that process runs after the failure. Then every request fails with EIO
//                          until there is power again.
//     wait                 Answered when the power has failed.
//     power                There is power again, over what survived. What is armed is disarmed.
//     state                `on WRITES FLUSHES UNSTABLE` or `off …`: since the power came, and how many writes a failure may take now.
//
// Requests are served one after the other, so a write that is under way while a flush is counts as before or after it.
#define _GNU_SOURCE
#define NBDKIT_API_VERSION 2
#define THREAD_MODEL NBDKIT_THREAD_MODEL_SERIALIZE_ALL_REQUESTS
#include <errno.h>
#include <nbdkit-plugin.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

enum { sector = 512 };

// A write that was not flushed.
struct volatile_write {
  uint64_t offset, count, order;
  struct volatile_write *next;
  char bytes[];
};

static int64_t size = 64 << 20;
static const char *control;
// What the device answers reads with, what is stable, and for each sector which write was the last to become so by FUA.
static char *cached, *stable;
static uint64_t *stable_order;

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t failed = PTHREAD_COND_INITIALIZER;
static struct volatile_write *oldest, **newest = &oldest;
static uint64_t order, writes, flushes, unstable;
static int is_off;
static uint64_t failures;
// What is armed: how many requests are left, or -1.
static int64_t countdown = -1;
static uint64_t seed;
static pid_t victim;

// splitmix64
static uint64_t roll(void) {
  uint64_t z = seed += 0x9e3779b97f4a7c15;
  z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9;
  z = (z ^ z >> 27) * 0x94d049bb133111eb;
  return z ^ z >> 31;
}

static void forget_writes(void) {
  while (oldest) {
    struct volatile_write *write = oldest;
    oldest = write->next;
    free(write);
  }
  newest = &oldest;
  unstable = 0;
}

// A third of the writes survives, a third does not, and each sector of the others has its own luck.
static void lose(void) {
  for (struct volatile_write *write = oldest; write; write = write->next) {
    unsigned luck = roll() % 3;
    for (uint64_t at = 0; at < write->count; at += sector) {
      uint64_t place = write->offset + at;
      if (stable_order[place / sector] > write->order || luck == 0 || (luck == 2 && roll() % 2)) continue;
      memcpy(stable + place, write->bytes + at, sector);
    }
  }
  // Nothing else differs.
  for (struct volatile_write *write = oldest; write; write = write->next)
    memcpy(cached + write->offset, stable + write->offset, write->count);
  forget_writes();
}

static void fail_now(void) {
  if (is_off) return;
  is_off = 1;
  failures++;
  countdown = -1;
  if (victim > 0) kill(victim, SIGKILL);
  lose();
  pthread_cond_broadcast(&failed);
}

// Whether the request is refused. With the lock.
static int refused(int counts) {
  if (counts && countdown > 0 && --countdown == 0) fail_now();
  if (!is_off) return 0;
  nbdkit_set_error(EIO);
  return 1;
}

static int forgetful_pread(void *handle, void *bytes, uint32_t count, uint64_t offset, uint32_t flags) {
  (void)handle, (void)flags;
  pthread_mutex_lock(&lock);
  int result = refused(0) ? -1 : 0;
  if (!result) memcpy(bytes, cached + offset, count);
  pthread_mutex_unlock(&lock);
  return result;
}

static int forgetful_pwrite(void *handle, const void *bytes, uint32_t count, uint64_t offset, uint32_t flags) {
  (void)handle;
  pthread_mutex_lock(&lock);
  int result = refused(1) ? -1 : 0;
  if (!result) {
    writes++;
    order++;
    memcpy(cached + offset, bytes, count);
    if (flags & NBDKIT_FLAG_FUA) {
      memcpy(stable + offset, bytes, count);
      for (uint64_t at = 0; at < count; at += sector) stable_order[(offset + at) / sector] = order;
    } else {
      struct volatile_write *write = malloc(sizeof *write + count);
      if (!write) abort();
      *write = (struct volatile_write){.offset = offset, .count = count, .order = order};
      memcpy(write->bytes, bytes, count);
      *newest = write;
      newest = &write->next;
      unstable++;
    }
  }
  pthread_mutex_unlock(&lock);
  return result;
}

static int forgetful_flush(void *handle, uint32_t flags) {
  (void)handle, (void)flags;
  pthread_mutex_lock(&lock);
  int result = refused(1) ? -1 : 0;
  if (!result) {
    flushes++;
    for (struct volatile_write *write = oldest; write; write = write->next)
      memcpy(stable + write->offset, cached + write->offset, write->count);
    forget_writes();
  }
  pthread_mutex_unlock(&lock);
  return result;
}

static void answer(int connection, const char *line) {
  long long count, process;
  unsigned long long number;
  pthread_mutex_lock(&lock);
  if (sscanf(line, "cut %lld %llu %lld", &count, &number, &process) == 3) {
    seed = number;
    victim = (pid_t)process;
    if (count > 0) countdown = count;
    // The victim reads the answer to a command of its own only if it lives.
    else fail_now();
    dprintf(connection, "ok\n");
  } else if (!strcmp(line, "wait\n")) {
    for (uint64_t before = failures; !is_off && failures == before;) pthread_cond_wait(&failed, &lock);
    dprintf(connection, "ok\n");
  } else if (!strcmp(line, "power\n")) {
    if (!is_off) seed = 0, victim = 0, lose();
    is_off = 0;
    countdown = -1;
    writes = flushes = 0;
    dprintf(connection, "ok\n");
  } else if (!strcmp(line, "state\n")) {
    dprintf(connection, "%s %llu %llu %llu\n", is_off ? "off" : "on", (unsigned long long)writes, (unsigned long long)flushes,
            (unsigned long long)unstable);
  } else {
    dprintf(connection, "?\n");
  }
  pthread_mutex_unlock(&lock);
}

static void *serve(void *raw) {
  int connection = (int)(intptr_t)raw;
  FILE *stream = fdopen(connection, "r");
  char line[256];
  while (stream && fgets(line, sizeof line, stream)) answer(connection, line);
  if (stream) fclose(stream);
  return NULL;
}

static void start(void *(*body)(void *), void *context) {
  pthread_t thread;
  if (pthread_create(&thread, NULL, body, context)) abort();
  pthread_detach(thread);
}

static void *listen_to(void *raw) {
  int listener = (int)(intptr_t)raw;
  for (;;) {
    int connection = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
    if (connection >= 0) start(serve, (void *)(intptr_t)connection);
  }
  return NULL;
}

static int forgetful_config(const char *key, const char *value) {
  if (!strcmp(key, "size")) return (size = nbdkit_parse_size(value)) < 0 ? -1 : 0;
  if (!strcmp(key, "control")) return (control = nbdkit_strdup_intern(value)) ? 0 : -1;
  nbdkit_error("unknown parameter %s", key);
  return -1;
}

static int forgetful_config_complete(void) {
  if (control && size > 0 && size % sector == 0) return 0;
  nbdkit_error("give control=SOCKET, and a size of whole sectors");
  return -1;
}

static void *pages(size_t count) {
  void *memory = mmap(NULL, count, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  return memory == MAP_FAILED ? NULL : memory;
}

static int forgetful_after_fork(void) {
  cached = pages(size);
  stable = pages(size);
  stable_order = pages(size / sector * sizeof *stable_order);
  struct sockaddr_un address = {.sun_family = AF_UNIX};
  snprintf(address.sun_path, sizeof address.sun_path, "%s", control);
  int listener = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
  if (!cached || !stable || !stable_order || strlen(control) >= sizeof address.sun_path || listener < 0 ||
      bind(listener, (struct sockaddr *)&address, sizeof address) || listen(listener, 16)) {
    nbdkit_error("cannot listen at %s: %m", control);
    return -1;
  }
  start(listen_to, (void *)(intptr_t)listener);
  return 0;
}

static void *forgetful_open(int readonly) {
  (void)readonly;
  return NBDKIT_HANDLE_NOT_NEEDED;
}
static int64_t forgetful_get_size(void *handle) {
  (void)handle;
  return size;
}
static int yes(void *handle) {
  (void)handle;
  return 1;
}
static int native_fua(void *handle) {
  (void)handle;
  return NBDKIT_FUA_NATIVE;
}
static int block_size(void *handle, uint32_t *minimum, uint32_t *preferred, uint32_t *maximum) {
  (void)handle;
  *minimum = sector, *preferred = 4096, *maximum = 1 << 20;
  return 0;
}

static struct nbdkit_plugin plugin = {
  .name = "forgetful",
  .version = "1",
  .longname = "A disk that forgets what was not flushed",
  .config = forgetful_config,
  .config_complete = forgetful_config_complete,
  .config_help = "control=SOCKET  (required) where commands are taken\nsize=SIZE       of the device, 64M",
  .after_fork = forgetful_after_fork,
  .open = forgetful_open,
  .get_size = forgetful_get_size,
  .block_size = block_size,
  .can_flush = yes,
  .can_fua = native_fua,
  .can_multi_conn = yes,
  .pread = forgetful_pread,
  .pwrite = forgetful_pwrite,
  .flush = forgetful_flush,
};

NBDKIT_REGISTER_PLUGIN(plugin)
