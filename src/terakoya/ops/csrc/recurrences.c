/* Which compilation of recur.c runs. */
#include "recur.h"
#include "terakoya.h"

static const struct { const char *name; const tk_recurrences *all; } COMPILED[] = {
#ifdef TK_HAVE_VNNI
    {"vnni", &tk_vnni_recur},
#endif
#ifdef TK_HAVE_AVX512
    {"avx512", &tk_avx512_recur},
#endif
#ifdef TK_HAVE_AVX2
    {"avx2", &tk_avx2_recur},
#endif
    {"portable", &tk_portable_recur},
};

/* `isa`: "" for the best, or one of them. 0: done; 1: memory or threads ran out. */
int32_t tk_recurrence(int32_t which, const char *isa, const tk_recur *r) {
  for (size_t i = 0; i < sizeof COMPILED / sizeof *COMPILED; i++)
    if (tk_can(COMPILED[i].name) && (!*isa || !strcmp(isa, COMPILED[i].name))) return COMPILED[i].all->run[which](r);
  return 1;
}
