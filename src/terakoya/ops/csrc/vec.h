/* Sixteen floats at a time. The compiler turns them into one AVX-512 register, two of AVX2, or four of SSE or NEON. */
#ifndef TK_VEC_H
#define TK_VEC_H
#include <math.h>
#include <stdint.h>
#include <string.h>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

enum { AHEAD = 2048 }; /* bytes: weights come from memory, and the hardware prefetcher stops at every page */
#define INLINE static inline __attribute__((always_inline, unused))
typedef float vf __attribute__((vector_size(64), aligned(4), may_alias));
typedef int32_t vi __attribute__((vector_size(64), aligned(4), may_alias));
typedef uint16_t vh __attribute__((vector_size(32), aligned(2), may_alias));

INLINE vf load(const float *p) { return *(const vf *)p; }
INLINE void store(float *p, vf v) { *(vf *)p = v; }
INLINE vf all(float x) { return (vf){x, x, x, x, x, x, x, x, x, x, x, x, x, x, x, x}; }
INLINE vf zero(void) { return (vf){0}; }
INLINE vf pick(vi mask, vf yes, vf no) { return (vf)((mask & (vi)yes) | (~mask & (vi)no)); }
INLINE vf least(vf a, vf b) { return pick(a < b, a, b); }
INLINE vf most(vf a, vf b) { return pick(a > b, a, b); }
INLINE vf magnitude(vf a) { return (vf)((vi)a & 0x7fffffff); }

INLINE vf muladd(vf a, vf b, vf c) {
#if defined(__AVX512F__)
  return (vf)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#else
  return a * b + c; /* contracted to a fused operation where there is one */
#endif
}

INLINE int32_t total_whole(vi v) {
#if defined(__AVX512F__)
  return _mm512_reduce_add_epi32((__m512i)v);
#endif
  int32_t a[16], s = 0;
  memcpy(a, &v, 64);
  for (int i = 0; i < 16; i++) s += a[i];
  return s;
}
/* One fixed order of additions, whatever the machine. */
INLINE float total(vf v) {
  float a[16], s[4];
  memcpy(a, &v, 64);
  for (int i = 0; i < 4; i++) s[i] = (a[i] + a[i + 4]) + (a[i + 8] + a[i + 12]);
  return (s[0] + s[1]) + (s[2] + s[3]);
}
INLINE float largest(vf v) {
#if defined(__AVX512F__)
  return _mm512_reduce_max_ps((__m512)v);
#endif
  float a[16], m;
  memcpy(a, &v, 64);
  m = a[0];
  for (int i = 1; i < 16; i++) m = a[i] > m ? a[i] : m;
  return m;
}

INLINE vf halves(const uint16_t *p) {
#if defined(__AVX512F__)
  return (vf)_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)p));
#else
  vi h = __builtin_convertvector(*(const vh *)p, vi);
  vf x = (vf)((h & 0x7fff) << 13) * all(0x1p112f); /* exact, subnormals too; infinity is no scale */
  return (vf)((vi)x | (h & 0x8000) << 16);
#endif
}

INLINE uint16_t half_of(float f) { /* to nearest, even; too large becomes infinity */
  uint32_t u, sign;
  memcpy(&u, &f, 4);
  sign = u >> 16 & 0x8000;
  u &= 0x7fffffff;
  if (u >= 0x47800000) return (uint16_t)(sign | (u > 0x7f800000 ? 0x7e00 : 0x7c00));
  if (u < 0x38800000) { /* subnormal: let the addition round */
    float x;
    memcpy(&x, &u, 4);
    x += 0.5f;
    memcpy(&u, &x, 4);
    return (uint16_t)(sign | (u - 0x3f000000));
  }
  return (uint16_t)(sign | ((u + 0xfff + (u >> 13 & 1) - 0x38000000) >> 13));
}
INLINE void put_halves(uint16_t *to, vf v) { /* infinity where too large */
#if defined(__AVX512F__)
  _mm256_storeu_si256((__m256i *)to, _mm512_cvtps_ph((__m512)v, _MM_FROUND_TO_NEAREST_INT));
#elif defined(__F16C__)
  for (int i = 0; i < 16; i++) to[i] = (uint16_t)_cvtss_sh(v[i], 0);
#else
  for (int i = 0; i < 16; i++) to[i] = half_of(v[i]);
#endif
}

/* exp, relative error below 2e-7; exp(-inf) = 0 (Cephes' polynomial). */
INLINE vf exponential(vf x) {
  vi tiny = x < all(-87.3f);
  x = most(least(x, all(88.0f)), all(-87.3f));
  vf n = (x * all(1.44269504f) + all(12582912.0f)) - all(12582912.0f); /* rounded to the nearest whole number */
  vf r = muladd(n, all(-0.693359375f), x);
  r = muladd(n, all(2.12194440e-4f), r);
  vf p = muladd(all(1.9875691500e-4f), r, all(1.3981999507e-3f));
  p = muladd(p, r, all(8.3334519073e-3f));
  p = muladd(p, r, all(4.1665795894e-2f));
  p = muladd(p, r, all(1.6666665459e-1f));
  p = muladd(p, r, all(5.0000001201e-1f));
  p = muladd(p, r * r, r + all(1.0f));
  vi power = (__builtin_convertvector(n, vi) + 127) << 23;
  return pick(tiny, zero(), p * (vf)power);
}
INLINE vf sigmoid(vf x) { return all(1.0f) / (all(1.0f) + exponential(-x)); }
INLINE vf tangent(vf x) { /* tanh: small ones by the series, so that they keep their digits */
  vf e = exponential(all(2.0f) * most(least(x, all(20.0f)), all(-20.0f)));
  vf big = (e - all(1.0f)) / (e + all(1.0f)), q = x * x;
  vf small = x * muladd(q, muladd(q, muladd(q, all(-17.0f / 315), all(2.0f / 15)), all(-1.0f / 3)), all(1.0f));
  return pick(magnitude(x) < all(0.1f), small, big);
}
/* erf, absolute error below 2e-7 (Abramowitz & Stegun 7.1.26). */
INLINE vf error_function(vf x) {
  vf a = magnitude(x), t = all(1.0f) / muladd(all(0.3275911f), a, all(1.0f));
  vf p = muladd(all(1.061405429f), t, all(-1.453152027f));
  p = muladd(p, t, all(1.421413741f));
  p = muladd(p, t, all(-0.284496736f));
  p = muladd(p, t, all(0.254829592f)) * t;
  vf y = all(1.0f) - p * exponential(-a * a);
  return pick(x < zero(), -y, y);
}
#endif
