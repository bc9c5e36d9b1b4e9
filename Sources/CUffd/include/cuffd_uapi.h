// Kernel constants as typed values. System headers may be older than the kernel that runs: what they lack is
// declared here under #ifndef, and whether the kernel has it is probed at run time, never assumed.
#ifndef CUFFD_UAPI_H
#define CUFFD_UAPI_H

#include <linux/userfaultfd.h>
#include <stdint.h>
#include <sys/ioctl.h>

#ifndef UFFD_USER_MODE_ONLY
#define UFFD_USER_MODE_ONLY 1
#endif
#ifndef USERFAULTFD_IOC_NEW
#define USERFAULTFD_IOC_NEW _IO(0xAA, 0x00)
#endif
#ifndef UFFDIO_CONTINUE_MODE_WP
#define UFFDIO_CONTINUE_MODE_WP ((uint64_t)1 << 1)
#endif
#ifndef UFFDIO_POISON
#define _UFFDIO_POISON (0x08)
struct uffdio_poison {
  struct uffdio_range range;
  uint64_t mode;
  int64_t updated;
};
#define UFFDIO_POISON _IOWR(UFFDIO, _UFFDIO_POISON, struct uffdio_poison)
#endif
#ifndef UFFDIO_MOVE
#define _UFFDIO_MOVE (0x05)
struct uffdio_move {
  uint64_t dst;
  uint64_t src;
  uint64_t len;
  uint64_t mode;
  int64_t move;
};
#define UFFDIO_MOVE _IOWR(UFFDIO, _UFFDIO_MOVE, struct uffdio_move)
#endif

// UFFD_FEATURE_*
static const uint64_t cuffd_feature_pagefault_flag_wp = (uint64_t)1 << 0;
static const uint64_t cuffd_feature_event_fork = (uint64_t)1 << 1;
static const uint64_t cuffd_feature_event_remap = (uint64_t)1 << 2;
static const uint64_t cuffd_feature_event_remove = (uint64_t)1 << 3;
static const uint64_t cuffd_feature_missing_hugetlbfs = (uint64_t)1 << 4;
static const uint64_t cuffd_feature_missing_shmem = (uint64_t)1 << 5;
static const uint64_t cuffd_feature_event_unmap = (uint64_t)1 << 6;
static const uint64_t cuffd_feature_sigbus = (uint64_t)1 << 7;
static const uint64_t cuffd_feature_thread_id = (uint64_t)1 << 8;
static const uint64_t cuffd_feature_minor_hugetlbfs = (uint64_t)1 << 9;
static const uint64_t cuffd_feature_minor_shmem = (uint64_t)1 << 10;
static const uint64_t cuffd_feature_exact_address = (uint64_t)1 << 11;
static const uint64_t cuffd_feature_wp_hugetlbfs_shmem = (uint64_t)1 << 12;
static const uint64_t cuffd_feature_wp_unpopulated = (uint64_t)1 << 13;
static const uint64_t cuffd_feature_poison = (uint64_t)1 << 14;
static const uint64_t cuffd_feature_wp_async = (uint64_t)1 << 15;
static const uint64_t cuffd_feature_move = (uint64_t)1 << 16;

// UFFDIO_REGISTER_MODE_*
static const uint64_t cuffd_register_missing = (uint64_t)1 << 0;
static const uint64_t cuffd_register_wp = (uint64_t)1 << 1;
static const uint64_t cuffd_register_minor = (uint64_t)1 << 2;

// UFFDIO_WRITEPROTECT_MODE_*
static const uint64_t cuffd_wp_mode_wp = (uint64_t)1 << 0;
static const uint64_t cuffd_wp_mode_dontwake = (uint64_t)1 << 1;

// UFFDIO_COPY_MODE_*, UFFDIO_CONTINUE_MODE_*
static const uint64_t cuffd_mode_dontwake = (uint64_t)1 << 0;
static const uint64_t cuffd_mode_wp = (uint64_t)1 << 1;

// UFFD_EVENT_*
static const uint8_t cuffd_event_pagefault = 0x12;
static const uint8_t cuffd_event_fork = 0x13;
static const uint8_t cuffd_event_remap = 0x14;
static const uint8_t cuffd_event_remove = 0x15;
static const uint8_t cuffd_event_unmap = 0x16;

// UFFD_PAGEFAULT_FLAG_*
static const uint64_t cuffd_pagefault_write = (uint64_t)1 << 0;
static const uint64_t cuffd_pagefault_wp = (uint64_t)1 << 1;
static const uint64_t cuffd_pagefault_minor = (uint64_t)1 << 2;

// PAGEMAP_SCAN, Linux 6.7
struct cuffd_page_region {
  uint64_t start;
  uint64_t end;
  uint64_t categories;
};

struct cuffd_pm_scan {
  uint64_t size;
  uint64_t flags;
  uint64_t start;
  uint64_t end;
  uint64_t walk_end;
  uint64_t vec;
  uint64_t vec_len;
  uint64_t max_pages;
  uint64_t category_inverted;
  uint64_t category_mask;
  uint64_t category_anyof_mask;
  uint64_t return_mask;
};

static const uint64_t cuffd_page_is_wpallowed = (uint64_t)1 << 0;
static const uint64_t cuffd_page_is_written = (uint64_t)1 << 1;
static const uint64_t cuffd_page_is_file = (uint64_t)1 << 2;
static const uint64_t cuffd_page_is_present = (uint64_t)1 << 3;
static const uint64_t cuffd_page_is_swapped = (uint64_t)1 << 4;
static const uint64_t cuffd_page_is_pfnzero = (uint64_t)1 << 5;
static const uint64_t cuffd_page_is_huge = (uint64_t)1 << 6;
static const uint64_t cuffd_page_is_soft_dirty = (uint64_t)1 << 7;
static const uint64_t cuffd_page_is_guard = (uint64_t)1 << 8;  // Linux 6.15
static const uint64_t cuffd_scan_wp_matching = (uint64_t)1 << 0;
static const uint64_t cuffd_scan_check_wpasync = (uint64_t)1 << 1;

#endif
