#include "CTestSupport.h"

#include <pthread.h>
#include <semaphore.h>
#include <stddef.h>
#include <stdio.h>

// A line of the cache each.
static struct { volatile uint64_t value; uint64_t rest[7]; } marks[64] __attribute__((aligned(64)));

uintptr_t ct_hot_marks(void) { return (uintptr_t)marks; }

struct hot_thread {
  void (*body)(void *context, int call, int thread);
  void *context;
  int calls, thread;
  sem_t may_go, may_end;
};
static sem_t is_done;

static void *run(void *argument) {
  struct hot_thread *self = argument;
  // A thread that waits here runs no instruction, and writes nothing.
  while (sem_wait(&self->may_go) != 0) {}
  for (int call = 0; call < self->calls; call++) {
    for (int i = 0; i < 3; i++) self->body(self->context, call, self->thread);
    marks[1 + 2 * call + self->thread].value = 1;
    self->body(self->context, call, self->thread);
    marks[0].value = 1;
  }
  sem_post(&is_done);
  while (sem_wait(&self->may_end) != 0) {}
  return NULL;
}

void ct_hot_run(void (*body)(void *, int, int), void *context, int calls) {
  struct hot_thread threads[2];
  pthread_t handles[2];
  // Where the marks are is known before the first is written.
  fflush(stdout);
  sem_init(&is_done, 0, 0);
  for (int i = 0; i < 2; i++) {
    threads[i] = (struct hot_thread){.body = body, .context = context, .calls = calls, .thread = i};
    sem_init(&threads[i].may_go, 0, 0);
    sem_init(&threads[i].may_end, 0, 0);
    pthread_create(&handles[i], NULL, run, &threads[i]);
  }
  // Twice: what the first of a kind does once, such as growing a table, is over then.
  for (int i = 0; i < 2; i++) {
    sem_post(&threads[i].may_go);
    while (sem_wait(&is_done) != 0) {}
  }
  for (int i = 0; i < 2; i++) {
    sem_post(&threads[i].may_end);
    pthread_join(handles[i], NULL);
  }
}
