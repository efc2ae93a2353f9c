#include "pool.h"

#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <time.h>

enum { HOT = 4096 };               /* looks at a flag before giving way to others */
static const double AWAKE = 0.003; /* seconds without work before a thread sleeps */

struct tk_pool {
  int32_t threads, started;
  pthread_t *thread;
  struct tk_seat { tk_pool *pool; int32_t number; } *seat;
  tk_work work;
  void *what;
  /* Each on a cache line of its own. */
  _Alignas(64) atomic_uint job;
  _Alignas(64) atomic_int arrived;
  _Alignas(64) atomic_uint meeting;
  _Alignas(64) atomic_int asleep;
  atomic_int quit;
  pthread_mutex_t lock;
  pthread_cond_t wake;
};

static inline void relax(void) {
#if defined(__x86_64__) || defined(__i386__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  __asm__ volatile("yield");
#endif
}

static double now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* A little of what is wanted soon, into the second cache. */
static inline void fetch(tk_range *soon) {
  for (int n = 0; n < 4 && soon->at < soon->end; n++, soon->at += 64) __builtin_prefetch(soon->at, 0, 2);
}

void tk_pool_meet(tk_pool *p, tk_range *soon) {
  unsigned at = atomic_load_explicit(&p->meeting, memory_order_relaxed);
  if (atomic_fetch_add_explicit(&p->arrived, 1, memory_order_acq_rel) == p->threads - 1) {
    atomic_store_explicit(&p->arrived, 0, memory_order_relaxed);
    atomic_store_explicit(&p->meeting, at + 1, memory_order_release);
    return;
  }
  for (int n = 0; atomic_load_explicit(&p->meeting, memory_order_acquire) == at; n++) {
    if (soon->at < soon->end) fetch(soon);
    else if (n < HOT) relax();
    else sched_yield();
  }
}

/* Look for the next job: hot, then giving way, then asleep. */
static unsigned next_job(tk_pool *p, unsigned seen) {
  unsigned job;
  double since = 0;
  for (int n = 0; (job = atomic_load_explicit(&p->job, memory_order_acquire)) == seen; n++) {
    if (n < HOT) {
      relax();
      continue;
    }
    if (since == 0) since = now();
    if (now() - since < AWAKE) {
      sched_yield();
      continue;
    }
    pthread_mutex_lock(&p->lock);
    atomic_fetch_add(&p->asleep, 1);
    while (atomic_load(&p->job) == seen) pthread_cond_wait(&p->wake, &p->lock);
    atomic_fetch_sub(&p->asleep, 1);
    pthread_mutex_unlock(&p->lock);
  }
  return job;
}

static void *worker(void *given) {
  struct tk_seat *seat = given;
  tk_pool *p = seat->pool;
  unsigned seen = 0;
  tk_range nothing = {0};
  for (;;) {
    seen = next_job(p, seen);
    if (atomic_load(&p->quit)) return NULL;
    p->work(p->what, seat->number);
    tk_pool_meet(p, &nothing);
  }
}

static void announce(tk_pool *p) {
  atomic_fetch_add(&p->job, 1);
  if (atomic_load(&p->asleep)) {
    pthread_mutex_lock(&p->lock);
    pthread_cond_broadcast(&p->wake);
    pthread_mutex_unlock(&p->lock);
  }
}

void tk_pool_run(tk_pool *p, tk_work work, void *what) {
  p->work = work;
  p->what = what;
  if (p->threads > 1) announce(p);
  work(what, 0);
  tk_range nothing = {0};
  if (p->threads > 1) tk_pool_meet(p, &nothing);
}

int32_t tk_pool_threads(const tk_pool *p) { return p->threads; }

tk_pool *tk_pool_make(int32_t threads) {
  tk_pool *p = NULL;
  if (posix_memalign((void **)&p, 64, sizeof *p)) return NULL;
  *p = (tk_pool){.threads = threads < 1 ? 1 : threads};
  pthread_mutex_init(&p->lock, NULL);
  pthread_cond_init(&p->wake, NULL);
  p->thread = calloc((size_t)p->threads, sizeof *p->thread);
  p->seat = calloc((size_t)p->threads, sizeof *p->seat);
  if (!p->thread || !p->seat) {
    tk_pool_free(p);
    return NULL;
  }
  for (int32_t i = 1; i < p->threads; i++) {
    p->seat[i] = (struct tk_seat){p, i};
    if (pthread_create(&p->thread[i], NULL, worker, &p->seat[i])) {
      tk_pool_free(p);
      return NULL;
    }
    p->started = i;
  }
  return p;
}

void tk_pool_free(tk_pool *p) {
  if (!p) return;
  atomic_store(&p->quit, 1);
  announce(p);
  for (int32_t i = 1; i <= p->started; i++) pthread_join(p->thread[i], NULL);
  pthread_cond_destroy(&p->wake);
  pthread_mutex_destroy(&p->lock);
  free(p->thread);
  free(p->seat);
  free(p);
}
