// Shared by the files of CFloor.
#ifndef FLOOR_H
#define FLOOR_H

#include "CFloor.h"

#define FLOOR_PAGE ((uint64_t)4096)

// Ends the process with errno's reason.
void floor_check(int good, const char *what);

struct cfloor_watch {
  uint64_t base, length, fault_length;
  int mechanism;
  int uffd;      // -1 for mprotect
  int pagemap;  // async only, else -1
  uint64_t *written;  // thread only: a bit for each page, one writer
};

// Write-protects what of the range is populated, by PAGEMAP_SCAN.
void floor_scan_protect(const struct cfloor_watch *watch);

// UFFDIO_WRITEPROTECT; 1 = done, 0 = errno says why not. Async-signal-safe.
int floor_writeprotect(int uffd, uint64_t start, uint64_t length, uint64_t mode);

#endif
