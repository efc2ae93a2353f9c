/* Word vectors: skip-gram and CBOW by negative sampling or hierarchical softmax (Mikolov 2013, arXiv:1301.3781 and
 * arXiv:1310.4546), words as bags of subwords (Bojanowski 2016, arXiv:1607.04606), and GloVe (Pennington 2014).
 * The same updates, in the same order and with the same random numbers, stand in vectors/plain.py. */
#include <math.h>
#include <pthread.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "clones.h"

typedef float lanes __attribute__((vector_size(64), aligned(4), may_alias));
enum { LANES = 16 }; /* widths are multiples of it */

#define INLINE static inline __attribute__((always_inline))

typedef struct {
    const int32_t *ids;        /* words of all sentences */
    const int64_t *ends;       /* (sentences + 1) where they begin, and end */
    const int32_t *rows;       /* rows of `in` that make up a word */
    const int64_t *first;      /* (words + 1) where each word's rows begin */
    const uint32_t *keep;      /* a word stays where a draw is at most this */
    const uint32_t *chance;    /* alias table of the noise distribution */
    const int32_t *other;
    const int32_t *path;       /* inner nodes of the Huffman tree, root first */
    const uint8_t *code;       /* which way to go there */
    const int64_t *branch;     /* (words + 1) where each word's path begins */
    float *in, *out;           /* (rows, dim), (words, dim) */
    int64_t sentences, done, total; /* words read before, and in all epochs */
    uint64_t seed;
    int32_t words, dim, window, negative, cbow, threads; /* negative 0: hierarchical softmax */
    float from, to;            /* learning rate at the beginning and at the end */
} tk_words;

typedef struct {
    const tk_words *w;
    int64_t begin, end;
    int index, failed;
} part;

INLINE uint32_t draw(uint64_t *s) {
    *s = *s * 25214903917ULL + 11;
    return (uint32_t)(*s >> 16);
}

INLINE float dot(const float *a, const float *b, int n) {
    lanes sum = {0};
    for (int i = 0; i < n; i += LANES) sum += *(const lanes *)(a + i) * *(const lanes *)(b + i);
    float total = 0;
    for (int i = 0; i < LANES; i++) total += sum[i];
    return total;
}

INLINE void add(float *y, const float *x, float scale, int n) {
    for (int i = 0; i < n; i += LANES) *(lanes *)(y + i) += *(const lanes *)(x + i) * scale;
}

/* Move one output vector towards (label 1) or away from (0) h; what h should change by is added to e. */
INLINE void judge(const tk_words *w, int32_t row, float label, float rate, const float *h, float *e) {
    float *o = w->out + (int64_t)row * w->dim;
    float f = dot(h, o, w->dim), g = (label - 1.0f / (1.0f + expf(-f))) * rate;
    add(e, o, g, w->dim);
    add(o, h, g, w->dim);
}

INLINE void predict(const tk_words *w, int32_t target, float rate, const float *h, float *e, uint64_t *s) {
    if (!w->negative) {
        for (int64_t k = w->branch[target]; k < w->branch[target + 1]; k++)
            judge(w, w->path[k], 1.0f - w->code[k], rate, h, e);
        return;
    }
    judge(w, target, 1.0f, rate, h, e);
    for (int k = 0; k < w->negative; k++) {
        int32_t noise = (int32_t)(((uint64_t)draw(s) * (uint32_t)w->words) >> 32);
        if (draw(s) > w->chance[noise]) noise = w->other[noise];
        if (noise != target) judge(w, noise, 0.0f, rate, h, e);
    }
}

INLINE int64_t gather(const tk_words *w, int32_t word, float *h) {
    for (int64_t r = w->first[word]; r < w->first[word + 1]; r++) add(h, w->in + (int64_t)w->rows[r] * w->dim, 1.0f, w->dim);
    return w->first[word + 1] - w->first[word];
}

INLINE void learn(const tk_words *w, int32_t word, const float *e) {
    for (int64_t r = w->first[word]; r < w->first[word + 1]; r++) add(w->in + (int64_t)w->rows[r] * w->dim, e, 1.0f, w->dim);
}

INLINE void scale(float *h, float by, int n) {
    for (int i = 0; i < n; i += LANES) *(lanes *)(h + i) *= by;
}

/* One centre and its neighbours a to b: skip-gram predicts each neighbour from the centre, CBOW the centre from all. */
INLINE void centre(const tk_words *w, const int32_t *kept, int64_t a, int64_t i, int64_t b, float rate, float *h,
                   float *e, uint64_t *s) {
    if (b - a < 2) return; /* no neighbour */
    memset(h, 0, sizeof(float) * (size_t)w->dim);
    memset(e, 0, sizeof(float) * (size_t)w->dim);
    int64_t count = 0;
    if (w->cbow) {
        for (int64_t j = a; j < b; j++)
            if (j != i) count += gather(w, kept[j], h);
        scale(h, 1.0f / (float)count, w->dim);
        predict(w, kept[i], rate, h, e, s);
        for (int64_t j = a; j < b; j++)
            if (j != i) learn(w, kept[j], e);
    } else {
        count = gather(w, kept[i], h);
        scale(h, 1.0f / (float)count, w->dim);
        for (int64_t j = a; j < b; j++)
            if (j != i) predict(w, kept[j], rate, h, e, s);
        learn(w, kept[i], e);
    }
}

EACH_ISA void tk_words_part(const tk_words *w, int64_t begin, int64_t end, int index, int32_t *kept, float *h) {
    uint64_t s = w->seed + (uint64_t)index;
    for (int i = 0; i < 4; i++) draw(&s);
    float *e = h + w->dim;
    int64_t mine = w->ends[end] - w->ends[begin], all = w->ends[w->sentences];
    for (int64_t n = begin; n < end; n++) {
        double share = mine ? (double)(w->ends[n] - w->ends[begin]) / (double)mine : 0.0;
        float rate = w->from + (w->to - w->from) * (float)(((double)w->done + share * (double)all) / (double)w->total);
        int64_t count = 0;
        for (int64_t t = w->ends[n]; t < w->ends[n + 1]; t++)
            if (draw(&s) <= w->keep[w->ids[t]]) kept[count++] = w->ids[t];
        for (int64_t i = 0; i < count; i++) {
            int64_t span = 1 + draw(&s) % (uint32_t)w->window;
            int64_t a = i - span < 0 ? 0 : i - span, b = i + span + 1 > count ? count : i + span + 1;
            centre(w, kept, a, i, b, rate, h, e, &s);
        }
    }
}

static void *run(void *given) {
    part *p = given;
    int64_t longest = 1;
    for (int64_t n = p->begin; n < p->end; n++)
        if (p->w->ends[n + 1] - p->w->ends[n] > longest) longest = p->w->ends[n + 1] - p->w->ends[n];
    int32_t *kept = malloc(sizeof(int32_t) * (size_t)longest);
    float *h = malloc(sizeof(float) * 2 * (size_t)p->w->dim);
    if (kept && h) tk_words_part(p->w, p->begin, p->end, p->index, kept, h);
    else p->failed = 1;
    free(kept);
    free(h);
    return NULL;
}

/* One epoch. Threads write to the same vectors without locks (Recht 2011), so only one of them gives the same bits
 * every time. Returns 0, or 1 where memory or threads cannot be had. */
int tk_words_epoch(const tk_words *w) {
    int count = w->threads < 1 ? 1 : w->threads > 64 ? 64 : w->threads, started = 1, failed = 0;
    part parts[64];
    pthread_t threads[64];
    for (int i = 0; i < count; i++)
        parts[i] = (part){w, w->sentences * i / count, w->sentences * (i + 1) / count, i, 0};
    while (started < count && !pthread_create(&threads[started], NULL, run, &parts[started])) started++;
    run(&parts[0]);
    for (int i = 1; i < started; i++) pthread_join(threads[i], NULL);
    for (int i = 0; i < started; i++) failed |= parts[i].failed;
    return failed || started < count;
}

/* GloVe by AdaGrad: one pass over n co-occurrences (i, j, x) in the order given. w, c (words, dim) vectors and contexts
 * whose last column is the bias; gw, gc sums of squared gradients. */
EACH_ISA void tk_glove_epoch(float *w, float *c, float *gw, float *gc, const int32_t *is, const int32_t *js,
                             const float *xs, const int64_t *order, int64_t n, int32_t dim, int32_t stride, float rate,
                             float most, float power) {
    for (int64_t k = 0; k < n; k++) {
        int64_t at = order[k], i = (int64_t)is[at] * stride, j = (int64_t)js[at] * stride;
        float *a = w + i, *b = c + j, *ga = gw + i, *gb = gc + j;
        float sum = 0;
        for (int d = 0; d < dim; d++) sum += a[d] * b[d];
        float miss = sum + a[dim] + b[dim] - logf(xs[at]);
        float g = (xs[at] < most ? powf(xs[at] / most, power) : 1.0f) * miss;
        for (int d = 0; d < dim; d++) {
            float x = g * b[d], y = g * a[d];
            x = rate * (x > 100.0f ? 100.0f : x < -100.0f ? -100.0f : x);
            y = rate * (y > 100.0f ? 100.0f : y < -100.0f ? -100.0f : y);
            a[d] -= x / sqrtf(ga[d]);
            b[d] -= y / sqrtf(gb[d]);
            ga[d] += x * x;
            gb[d] += y * y;
        }
        float z = rate * (g > 100.0f ? 100.0f : g < -100.0f ? -100.0f : g);
        a[dim] -= z / sqrtf(ga[dim]);
        b[dim] -= z / sqrtf(gb[dim]);
        ga[dim] += z * z;
        gb[dim] += z * z;
    }
}
