/* Inner products with codes of four to six bits: nibbles, and planes of what is above them; scales a group, or K blocks. */
#ifndef TK_WIDE_H
#define TK_WIDE_H
#include "linear.h"

/* Bits `at` and on of every byte moved to bit 4, as far as the mask goes: 0x10 or 0x30; at is 0 to 7. */
#if defined(__AVX512F__)
INLINE bytes above(bytes v, bytes p, const int at, const char mask) {
  bytes b = at > 4 ? _mm512_srli_epi16(p, at - 4) : _mm512_slli_epi16(p, 4 - at);
  return _mm512_or_si512(v, _mm512_and_si512(b, _mm512_set1_epi8(mask)));
}
INLINE sums plus(sums a, sums b) { return _mm512_add_epi32(a, b); }
INLINE sums spread(int32_t x) { return _mm512_set1_epi32(x); }
#elif defined(__AVX2__)
INLINE __m256i above1(__m256i v, __m256i p, const int at, const char mask) {
  __m256i b = at > 4 ? _mm256_srli_epi16(p, at - 4) : _mm256_slli_epi16(p, 4 - at);
  return _mm256_or_si256(v, _mm256_and_si256(b, _mm256_set1_epi8(mask)));
}
INLINE bytes above(bytes v, bytes p, const int at, const char mask) {
  return (bytes){above1(v.a, p.a, at, mask), above1(v.b, p.b, at, mask)};
}
INLINE sums plus(sums a, sums b) { return (sums){_mm256_add_epi32(a.a, b.a), _mm256_add_epi32(a.b, b.b)}; }
INLINE sums spread(int32_t x) { return (sums){_mm256_set1_epi32(x), _mm256_set1_epi32(x)}; }
#else
INLINE bytes above(bytes v, bytes p, const int at, const char mask) {
  for (int i = 0; i < 64; i++) v.v[i] |= (uint8_t)((at > 4 ? p.v[i] >> (at - 4) : p.v[i] << (4 - at)) & mask);
  return v;
}
INLINE sums plus(sums a, sums b) { return a + b; }
INLINE sums spread(int32_t x) { return (vi){x, x, x, x, x, x, x, x, x, x, x, x, x, x, x, x}; }
#endif

/* t + the products of two lines; 4 * 63 * 127 fits the 16 bits that are there before `widen`. */
INLINE sums add8(sums t, bytes l, bytes h, const int8_t *x) {
#if defined(__AVX512VNNI__)
  return add4(add4(t, l, four(x)), h, four(x + 4));
#else
  return plus(t, widen(add4(add4(none(), l, four(x)), h, four(x + 4))));
#endif
}

INLINE int32_t sum16(const int8_t *x) {
#if defined(__AVX512VNNI__)
  __m128i t = _mm_dpbusd_epi32(_mm_setzero_si128(), _mm_set1_epi8(1), _mm_loadu_si128((const __m128i *)x));
  t = _mm_add_epi32(t, _mm_shuffle_epi32(t, 0x4e));
  return _mm_cvtsi128_si32(_mm_add_epi32(t, _mm_shuffle_epi32(t, 0xb1)));
#else
  int32_t s = 0;
  for (int i = 0; i < 16; i++) s += x[i];
  return s;
#endif
}

typedef uint8_t v16u __attribute__((vector_size(16), aligned(1), may_alias));
typedef int8_t v16s __attribute__((vector_size(16), aligned(1), may_alias));
INLINE vf unsigned16(const uint8_t *p) { return __builtin_convertvector(__builtin_convertvector(*(const v16u *)p, vi), vf); }
INLINE vf signed16(const uint8_t *p) { return __builtin_convertvector(__builtin_convertvector(*(const v16s *)p, vi), vf); }

/* Line j of a group's codes: nibbles, and the bits above them. */
INLINE void line(const int format, const uint8_t *w, const bytes *high, const int j, bytes *l, bytes *h) {
  bytes v = get(w + 64 * j);
  *l = low_half(v), *h = high_half(v);
  if (format == TK_Q5 || format == TK_S5 || format == TK_K5) *l = above(*l, high[0], 2 * j, 0x10), *h = above(*h, high[0], 2 * j + 1, 0x10);
  if (format == TK_K6)
    *l = above(*l, high[j / 2], j % 2 * 4, 0x30), *h = above(*h, high[j / 2], j % 2 * 4 + 2, 0x30);
}

INLINE void dot_wide(const int format, const int N, const uint8_t *w, int32_t groups, const tk_input *in, float (*out)[16]) {
  const int super = format >= TK_K4, centred = format == TK_S5, planes = format == TK_K4 ? 0 : format == TK_K6 ? 2 : 1;
  const uint8_t *head = w;
  vf a[TILE], b[TILE], D = zero(), M = zero();
  for (int r = 0; r < N; r++) a[r] = b[r] = zero();
  w += super ? (int64_t)groups / 8 * 320 : centred ? ((int64_t)groups * 32 + 63) / 64 * 64 : (int64_t)groups * 64;
  for (int32_t g = 0; g < groups; g++, w += 256 + 64 * planes) {
    if (!super || g % 8 == 0) {
      D = halves((const uint16_t *)head);
      if (centred) M = D * all(-16.0f);
      else M = halves((const uint16_t *)head + 16);
      head += centred ? 32 : 64;
    }
    bytes high[2], l, h;
    for (int p = 0; p < planes; p++) high[p] = get(w + 256 + 64 * p);
    sums s[TILE], t[TILE];
    for (int r = 0; r < N; r++) {
      const int8_t *x = in[r].q + g * 32;
      s[r] = format == TK_K6 ? spread(-32 * sum16(x)) : none();
      t[r] = format == TK_K6 ? spread(-32 * sum16(x + 16)) : none();
    }
#pragma GCC unroll 4
    for (int j = 0; j < 4; j++) {
      __builtin_prefetch(w + AHEAD + 64 * j);
      line(format, w, high, j, &l, &h);
      for (int r = 0; r < N; r++) {
        const int8_t *x = in[r].q + g * 32 + 8 * j;
        if (format == TK_K6 && j > 1) t[r] = add8(t[r], l, h, x);
        else s[r] = add8(s[r], l, h, x);
      }
    }
    for (int p = 0; p < planes; p++) __builtin_prefetch(w + AHEAD + 256 + 64 * p);
    vf d = D, m = M;
    if (format == TK_K6) d = D * signed16(head), m = D * signed16(head + 16);
    else if (super) d = D * unsigned16(head), m = M * unsigned16(head + 16);
    if (super) head += 32;
    for (int r = 0; r < N; r++) {
      a[r] = muladd(floats(s[r]), d * all(in[r].scale[g]), a[r]);
      if (format == TK_K6) b[r] = muladd(floats(t[r]), m * all(in[r].scale[g]), b[r]);
      else b[r] = muladd(m, all(in[r].sum[g]), b[r]);
    }
  }
  for (int r = 0; r < N; r++) store(out[r], a[r] + b[r]);
}

#define dot_q5(...) dot_wide(TK_Q5, __VA_ARGS__)
#define dot_s5(...) dot_wide(TK_S5, __VA_ARGS__)
#define dot_k4(...) dot_wide(TK_K4, __VA_ARGS__)
#define dot_k5(...) dot_wide(TK_K5, __VA_ARGS__)
#define dot_k6(...) dot_wide(TK_K6, __VA_ARGS__)
SIZES(dot_q5, uint8_t, linear_q5)
SIZES(dot_s5, uint8_t, linear_s5)
SIZES(dot_k4, uint8_t, linear_k4)
SIZES(dot_k5, uint8_t, linear_k5)
SIZES(dot_k6, uint8_t, linear_k6)
#endif
