/* Threads that stay awake between instructions and, for a while, between steps. */
#ifndef TK_POOL_H
#define TK_POOL_H
#include <stdint.h>

typedef struct tk_pool tk_pool;
typedef void (*tk_work)(void *what, int32_t thread);

/* NULL: no memory or no threads. The caller of `tk_pool_run` is thread 0. */
tk_pool *tk_pool_make(int32_t threads);
void tk_pool_free(tk_pool *pool);
int32_t tk_pool_threads(const tk_pool *pool);
void tk_pool_run(tk_pool *pool, tk_work work, void *what);
/* What a thread will want to read soon, and may bring nearer while it waits. */
typedef struct { const char *at, *end; } tk_range;
/* Wait until every thread is here; only inside `tk_pool_run`. */
void tk_pool_meet(tk_pool *pool, tk_range *soon);
#endif
