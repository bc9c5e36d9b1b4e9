// What the kernel says of the threads of this process.
#include "cuffd_threads.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

// The text of /proc/self/task/THREAD/status; 0 if the thread has gone.
static size_t read_status(const char *thread, char *text, size_t capacity) {
  char path[64];
  snprintf(path, sizeof path, "/proc/self/task/%.20s/status", thread);
  int fd = open(path, O_RDONLY | O_CLOEXEC);
  if (fd < 0) return 0;
  size_t length = 0;
  for (ssize_t got; length < capacity - 1 && (got = read(fd, text + length, capacity - 1 - length)) > 0;)
    length += (size_t)got;
  close(fd);
  text[length] = 0;
  return length;
}

int cuffd_threads_blocking(int signal, int32_t *threads, int capacity) {
  DIR *tasks = opendir("/proc/self/task");
  if (!tasks) return -errno;
  int count = 0;
  for (struct dirent *task; (task = readdir(tasks));) {
    char text[8192];
    if (task->d_name[0] == '.' || !read_status(task->d_name, text, sizeof text)) continue;
    const char *blocked = strstr(text, "\nSigBlk:");
    if (!blocked || strncmp(text, "Name:\tiou-", 10) == 0) continue;
    if (!(strtoull(blocked + 8, NULL, 16) >> (signal - 1) & 1)) continue;
    if (count < capacity) threads[count] = (int32_t)atoi(task->d_name);
    count++;
  }
  closedir(tasks);
  return count;
}
