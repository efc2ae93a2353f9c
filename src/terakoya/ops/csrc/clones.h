/* A function is compiled for several levels of a processor, and the loader takes the best that runs here. The names of
 * processors ("arch=haswell") would do so only on exactly that processor. */
#ifndef TK_CLONES_H
#define TK_CLONES_H
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__) && __GNUC__ >= 12
#define EACH_ISA __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#elif defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define EACH_ISA __attribute__((target_clones("avx512f", "avx2", "default")))
#else
#define EACH_ISA
#endif
#endif
