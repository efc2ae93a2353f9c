/* Inner products of one block of 16 output rows with up to TILE inputs. `N` is constant where these are inlined. */
#ifndef TK_LINEAR_H
#define TK_LINEAR_H
#include "kernels.h"
#include "vec.h"

INLINE void dot_f32(const int N, const float *w, int32_t k, const tk_input *in, float (*out)[16]) {
  vf a[TILE];
  for (int r = 0; r < N; r++) a[r] = zero();
  for (int32_t i = 0; i < k; i++, w += 16) {
    vf v = load(w);
    __builtin_prefetch(w + AHEAD / 4);
    for (int r = 0; r < N; r++) a[r] = muladd(v, all(in[r].x[i]), a[r]);
  }
  for (int r = 0; r < N; r++) store(out[r], a[r]);
}

/* The same numbers in half the memory: the sums have the bits that floats would give. */
INLINE void dot_f16(const int N, const uint16_t *w, int32_t k, const tk_input *in, float (*out)[16]) {
  vf a[TILE];
  for (int r = 0; r < N; r++) a[r] = zero();
  for (int32_t i = 0; i < k; i++, w += 16) {
    vf v = halves(w);
    if (i % 2 == 0) __builtin_prefetch(w + AHEAD / 2);
    for (int r = 0; r < N; r++) a[r] = muladd(v, all(in[r].x[i]), a[r]);
  }
  for (int r = 0; r < N; r++) store(out[r], a[r]);
}
INLINE void dot_b16(const int N, const uint16_t *w, int32_t k, const tk_input *in, float (*out)[16]) {
  vf a[TILE];
  for (int r = 0; r < N; r++) a[r] = zero();
  for (int32_t i = 0; i < k; i++, w += 16) {
    vf v = (vf)(__builtin_convertvector(*(const vh *)w, vi) << 16);
    if (i % 2 == 0) __builtin_prefetch(w + AHEAD / 2);
    for (int r = 0; r < N; r++) a[r] = muladd(v, all(in[r].x[i]), a[r]);
  }
  for (int r = 0; r < N; r++) store(out[r], a[r]);
}

/* sums[lane] += sum of 4 products: u (16, 4) unsigned below 16 (small) or 256, x (4) signed, 0 to 127 in size. */
#if defined(__AVX512F__)
typedef __m512i bytes;
typedef __m512i sums;
INLINE bytes get(const void *p) { return _mm512_loadu_si512(p); }
INLINE bytes low_half(bytes v) { return _mm512_and_si512(v, _mm512_set1_epi8(15)); }
INLINE bytes high_half(bytes v) { return _mm512_and_si512(_mm512_srli_epi16(v, 4), _mm512_set1_epi8(15)); }
INLINE bytes four(const int8_t *x) { int32_t i; memcpy(&i, x, 4); return _mm512_set1_epi32(i); }
INLINE vf floats(sums s) { return (vf)_mm512_cvtepi32_ps(s); }
INLINE sums none(void) { return _mm512_setzero_si512(); }
#if defined(__AVX512VNNI__)
INLINE sums add4(sums s, bytes u, bytes x) { return _mm512_dpbusd_epi32(s, u, x); }
INLINE sums widen(sums s) { return s; }
#else
INLINE sums add4(sums s, bytes u, bytes x) { return _mm512_add_epi16(s, _mm512_maddubs_epi16(u, x)); }
INLINE sums widen(sums s) { return _mm512_madd_epi16(s, _mm512_set1_epi16(1)); } /* 16 * 15 * 127 fits 16 bits */
#endif
#elif defined(__AVX2__)
typedef struct { __m256i a, b; } bytes;
typedef bytes sums;
INLINE bytes get(const void *p) {
  return (bytes){_mm256_loadu_si256(p), _mm256_loadu_si256((const __m256i *)p + 1)};
}
INLINE bytes low_half(bytes v) {
  __m256i m = _mm256_set1_epi8(15);
  return (bytes){_mm256_and_si256(v.a, m), _mm256_and_si256(v.b, m)};
}
INLINE bytes high_half(bytes v) { return low_half((bytes){_mm256_srli_epi16(v.a, 4), _mm256_srli_epi16(v.b, 4)}); }
INLINE bytes four(const int8_t *x) { int32_t i; memcpy(&i, x, 4); __m256i v = _mm256_set1_epi32(i); return (bytes){v, v}; }
INLINE vf floats(sums s) {
  union { __m256 h[2]; vf v; } u = {{_mm256_cvtepi32_ps(s.a), _mm256_cvtepi32_ps(s.b)}};
  return u.v;
}
INLINE sums none(void) { return (sums){_mm256_setzero_si256(), _mm256_setzero_si256()}; }
INLINE sums add4(sums s, bytes u, bytes x) {
  return (sums){_mm256_add_epi16(s.a, _mm256_maddubs_epi16(u.a, x.a)), _mm256_add_epi16(s.b, _mm256_maddubs_epi16(u.b, x.b))};
}
INLINE sums widen(sums s) {
  __m256i one = _mm256_set1_epi16(1);
  return (sums){_mm256_madd_epi16(s.a, one), _mm256_madd_epi16(s.b, one)};
}
#else
typedef struct { uint8_t v[64]; } bytes;
typedef vi sums;
INLINE bytes get(const void *p) { bytes b; memcpy(&b, p, 64); return b; }
INLINE bytes low_half(bytes v) { for (int i = 0; i < 64; i++) v.v[i] &= 15; return v; }
INLINE bytes high_half(bytes v) { for (int i = 0; i < 64; i++) v.v[i] >>= 4; return v; }
INLINE bytes four(const int8_t *x) { bytes b; for (int i = 0; i < 64; i += 4) memcpy(b.v + i, x, 4); return b; }
INLINE vf floats(sums s) { return __builtin_convertvector(s, vf); }
INLINE sums none(void) { return (vi){0}; }
INLINE sums add4(sums s, bytes u, bytes x) {
  int32_t t[16];
  for (int i = 0; i < 16; i++) {
    t[i] = 0;
    for (int j = 0; j < 4; j++) t[i] += u.v[4 * i + j] * (int8_t)x.v[j];
  }
  vi v;
  memcpy(&v, t, 64);
  return s + v;
}
INLINE sums widen(sums s) { return s; }
#endif

/* Four bits with minima, or (TK_S4) around zero. */
INLINE void dot_four(const int format, const int N, const uint8_t *w, int32_t groups, const tk_input *in, float (*out)[16]) {
  const uint16_t *dm = (const uint16_t *)w;
  vf a[TILE], b[TILE];
  for (int r = 0; r < N; r++) a[r] = b[r] = zero();
  const int centred = format == TK_S4;
  w += centred ? ((int64_t)groups * 32 + 63) / 64 * 64 : (int64_t)groups * 64;
  for (int32_t g = 0; g < groups; g++, w += 256, dm += centred ? 16 : 32) {
    sums s[TILE];
    for (int r = 0; r < N; r++) s[r] = none();
#pragma GCC unroll 4
    for (int j = 0; j < 4; j++) {
      __builtin_prefetch(w + AHEAD + 64 * j);
      bytes v = get(w + 64 * j), l = low_half(v), h = high_half(v);
      for (int r = 0; r < N; r++) {
        const int8_t *x = in[r].q + g * 32 + 8 * j;
        s[r] = add4(add4(s[r], l, four(x)), h, four(x + 4));
      }
    }
    vf d = halves(dm), m;
    if (centred) m = d * all(-8.0f);
    else m = halves(dm + 16);
    for (int r = 0; r < N; r++) {
      a[r] = muladd(floats(widen(s[r])), d * all(in[r].scale[g]), a[r]);
      b[r] = muladd(m, all(in[r].sum[g]), b[r]);
    }
  }
  for (int r = 0; r < N; r++) store(out[r], a[r] + b[r]);
}

/* Signed bytes: VNNI adds 128 and takes it off again, AVX2 moves the sign over, AVX-512 alone widens to 16 bits. */
INLINE sums dot_bytes(sums s, const int8_t *w, const int8_t *x) {
#if defined(__AVX512VNNI__)
  return _mm512_dpbusd_epi32(s, _mm512_xor_si512(get(w), _mm512_set1_epi8(-128)), four(x));
#elif defined(__AVX512F__)
  bytes v = get(w), y = four(x);
  __mmask64 minus = _mm512_movepi8_mask(v);
  y = _mm512_mask_sub_epi8(y, minus, _mm512_setzero_si512(), y);
  return _mm512_add_epi32(s, _mm512_madd_epi16(_mm512_maddubs_epi16(_mm512_abs_epi8(v), y), _mm512_set1_epi16(1)));
#elif defined(__AVX2__)
  bytes v = get(w), y = four(x);
  __m256i one = _mm256_set1_epi16(1);
  __m256i a = _mm256_maddubs_epi16(_mm256_abs_epi8(v.a), _mm256_sign_epi8(y.a, v.a));
  __m256i b = _mm256_maddubs_epi16(_mm256_abs_epi8(v.b), _mm256_sign_epi8(y.b, v.b));
  return (sums){_mm256_add_epi32(s.a, _mm256_madd_epi16(a, one)), _mm256_add_epi32(s.b, _mm256_madd_epi16(b, one))};
#else
  int32_t t[16];
  for (int i = 0; i < 16; i++) {
    t[i] = 0;
    for (int j = 0; j < 4; j++) t[i] += w[4 * i + j] * x[j];
  }
  vi v;
  memcpy(&v, t, 64);
  return s + v;
#endif
}

INLINE sums start_bytes(const int8_t *x) {
#if defined(__AVX512VNNI__)
  __m256i v = _mm256_loadu_si256((const __m256i *)x);
  __m256i s = _mm256_dpbusd_epi32(_mm256_setzero_si256(), _mm256_set1_epi8(1), v);
  __m128i t = _mm_add_epi32(_mm256_castsi256_si128(s), _mm256_extracti128_si256(s, 1));
  t = _mm_add_epi32(t, _mm_shuffle_epi32(t, 0x4e));
  t = _mm_add_epi32(t, _mm_shuffle_epi32(t, 0xb1));
  return _mm512_sub_epi32(_mm512_setzero_si512(), _mm512_slli_epi32(_mm512_broadcastd_epi32(t), 7));
#else
  (void)x;
  return none();
#endif
}

INLINE void dot_q8(const int N, const uint8_t *w, int32_t groups, const tk_input *in, float (*out)[16]) {
  const uint16_t *d16 = (const uint16_t *)w;
  vf a[TILE];
  for (int r = 0; r < N; r++) a[r] = zero();
  w += ((int64_t)groups * 32 + 63) / 64 * 64;
  for (int32_t g = 0; g < groups; g++, w += 512, d16 += 16) {
    sums s[TILE];
    for (int r = 0; r < N; r++) s[r] = start_bytes(in[r].q + g * 32);
#pragma GCC unroll 8
    for (int j = 0; j < 8; j++) {
      __builtin_prefetch(w + AHEAD + 64 * j);
      for (int r = 0; r < N; r++) s[r] = dot_bytes(s[r], (const int8_t *)w + 64 * j, in[r].q + g * 32 + 4 * j);
    }
    vf d = halves(d16);
    for (int r = 0; r < N; r++) a[r] = muladd(floats(s[r]), d * all(in[r].scale[g]), a[r]);
  }
  for (int r = 0; r < N; r++) store(out[r], a[r]);
}

/* Sizes 5 to 7 repeat their first row up to 8: `in` and `out` always have TILE places. */
#define SIZES(name, type, export)                                                                           \
  static void export(const void *weights, int32_t k, int32_t rows, tk_input *in, float (*out)[16]) {        \
    const type *block = weights;                                                                            \
    switch (rows) {                                                                                         \
      case 1: name(1, block, k, in, out); return;                                                           \
      case 2: name(2, block, k, in, out); return;                                                           \
      case 3: name(3, block, k, in, out); return;                                                           \
      case 4: name(4, block, k, in, out); return;                                                           \
      default:                                                                                              \
        for (int r = rows; r < TILE; r++) in[r] = in[0];                                                    \
        name(8, block, k, in, out);                                                                         \
    }                                                                                                       \
  }
SIZES(dot_f32, float, linear_f32)
SIZES(dot_f16, uint16_t, linear_f16)
SIZES(dot_b16, uint16_t, linear_b16)
SIZES(dot_q8, uint8_t, linear_q8)
#define dot_q4(...) dot_four(TK_Q4, __VA_ARGS__)
#define dot_s4(...) dot_four(TK_S4, __VA_ARGS__)
SIZES(dot_q4, uint8_t, linear_q4)
SIZES(dot_s4, uint8_t, linear_s4)
#endif
