#include "floor.h"

double cfloor_load(uint64_t base, size_t count) {
  uint64_t start = cfloor_now();
  for (size_t i = 0; i < count; i++) (void)*(volatile uint64_t *)floor_at(base);
  return (double)(cfloor_now() - start) / (double)count;
}

double cfloor_translated_load(const uint64_t *table, size_t pages, size_t count) {
  uint64_t start = cfloor_now();
  for (size_t i = 0; i < count; i++) {
    uint64_t address = ((const volatile uint64_t *)table)[i & (pages - 1)];
    if (address) (void)*(volatile uint64_t *)floor_at(address);
  }
  return (double)(cfloor_now() - start) / (double)count;
}
