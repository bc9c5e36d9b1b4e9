#ifndef CUFFD_H
#define CUFFD_H
#include "cuffd_chain.h"
#include "cuffd_checked.h"
#include "cuffd_checksum.h"
#include "cuffd_fault.h"
#include "cuffd_file.h"
#include "cuffd_lock.h"
#include "cuffd_order.h"
#include "cuffd_probe.h"
#include "cuffd_ring.h"
#include "cuffd_secret.h"
#include "cuffd_section.h"
#include "cuffd_store.h"
#include "cuffd_sys.h"
#include "cuffd_threads.h"
#include "cuffd_uapi.h"
#endif
