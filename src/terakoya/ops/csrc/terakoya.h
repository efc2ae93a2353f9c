/* One decoder step on the CPU: a flat program over a batch of sequences.
 *
 * A program is an array of instructions, each a small operation on buffers of floats. A buffer has one line per row
 * of the step; a row is one token (or one token's choice of expert, or one line of output). Instructions run in
 * order, all threads at each; what a row becomes never depends on the other rows or on the number of threads.
 *
 * Weights are packed in blocks of 16 output rows, so that one vector register holds the same column of 16 rows:
 *   TK_F32  block = [k][16] float
 *   TK_Q8   block = [g][16] half scale d, padded to 64 bytes, then [g][8][16][4] int8: w = d * q
 *   TK_Q4   block = [g][2][16] half d and m, then [g][4][16][4] bytes: w = d * q + m; the low nibbles are the
 *           columns 8j .. 8j+3 of the group, the high ones 8j+4 .. 8j+7
 *   TK_F16, TK_B16  block = [k][16] half precision numbers, bfloat16: for weights that are such numbers anyway
 *   TK_Q5   as TK_Q4, but each group's codes are followed by [16][4] bytes with the fifth bits: bit 2j of a byte is
 *           that of the low nibble in byte j of its line, bit 2j+1 that of the high one
 *   TK_S4, TK_S5  as TK_Q4, TK_Q5 without m, and d padded to 64 bytes: w = d * (q - 8), d * (q - 16)
 *   TK_K4, TK_K5  K blocks: [g/8] times { [2][16] half d and m; [8][2][16] bytes s and t }, then the codes of TK_Q4
 *           or TK_Q5: w = (d * s) * q + m * t
 *   TK_K6   [g/8] times { [2][16] half d and nothing; [8][2][16] int8 s of the first and the last 16 columns }, then
 *           as TK_Q4 with [2][16][4] bytes of upper bits, two to a code: bits 4(j%2) and on in line j/2 belong to the
 *           low nibble, bits 4(j%2)+2 to the high one: w = (d * s) * (q - 32)
 * with g groups of 32 columns; rows and columns are padded with zeros (K blocks have no padding columns: k is a
 * multiple of 256). Inputs of quantised layers become int8 with one scale per group; sums are fp32.
 *
 * Plain C ABI, no dependency but libc and threads. Nothing here checks sizes: the caller lowers checked models. */
#ifndef TERAKOYA_H
#define TERAKOYA_H
#include <stdint.h>

enum { TK_F32, TK_Q8, TK_Q4, TK_F16, TK_B16, TK_Q5, TK_S4, TK_S5, TK_K4, TK_K5, TK_K6, TK_FORMATS };
enum { TK_TOKENS, TK_CHOICES, TK_OUTPUTS }; /* what a row of an instruction is */
enum { TK_GELU, TK_GELU_TANH, TK_RELU, TK_RELU2, TK_SILU, TK_QUICK_GELU, TK_SWIGLU_CLAMPED, TK_SIGMOID };

enum {
  TK_EMBED,    /* dst = scale * row `token` of the packed weight, width k */
  TK_PLACE,    /* dst += row (position + kind) of weight, width k */
  TK_NORM,     /* dst = norm of each of `heads` parts of width k; kind 0: layer, 1: root mean square; weight, bias of
                  `stride` floats a head (0: shared) */
  TK_LINEAR,   /* dst = scale * (weight src + bias), n x k; flag 1: added to dst; flag 2: times act */
  TK_ROTARY,   /* turn `n` channels of each of `heads` heads in place, `stride` apart; kind 1: neighbours are pairs */
  TK_CLIP,     /* dst = clamp(dst, -limit, limit) over k columns */
  TK_TEMPER,   /* dst *= 1 + scale * log(1 + floor((position + 1) / limit)) over k columns */
  TK_ATTEND,   /* append keys and values (src, at columns key_at, value_at), then dst = attention of queries;
                  format: of the memory, TK_F32 or TK_F16 */
  TK_GLU,      /* dst = act(src[0:k]) * src[k:2k] */
  TK_ACT,      /* dst = act(dst) over k columns */
  TK_ADD,      /* dst += scale * src over k columns */
  TK_COPY,     /* dst = src: `heads` parts of width k, `stride` apart in src (0: the same one), `kind` in dst */
  TK_TAKE,     /* dst = the rows of src that are outputs, width k */
  TK_ROUTE,    /* choose `top` experts by src (n scores a row); see route.c */
  TK_SPREAD,   /* dst (choices) = src of its token, width k; flag 1: times the choice's weight */
  TK_EXPERTS,  /* as TK_LINEAR on choices, each by its expert; flag 4: src has a row a token */
  TK_GATHER,   /* dst = sum over a token's choices of src, width k; flag 1: times the choice's weight */
  TK_GATE,     /* dst *= sigmoid(src[0]) over k columns */
  TK_LOGITS,   /* dst = cap(scale * dst) over k columns: cap(x) = limit * tanh(x / limit) if limit > 0 */
};

typedef struct {
  int32_t op, rows;
  int32_t dst, dst_at, src, src_at; /* buffers and the first column in them */
  int32_t n, k, format, flags;
  int32_t heads, stride, kind, act;
  int32_t table;              /* rotary: which tables of the step */
  int32_t groups;             /* attention: key heads */
  int32_t key_at, value_at;   /* attention: columns of src */
  int32_t key_width, value_width;
  int32_t memory_at;          /* attention: which memory of a sequence */
  int32_t window, chunk;      /* attention: 0: none */
  int32_t distances;          /* attention: entries a head in the table of biases by distance, 0: none */
  int32_t alibi;              /* attention: 1: slopes times distance; 2: by key position, in bfloat16, times eps */
  int32_t top, group_keep, score, normalise; /* routing */
  float scale, limit, eps;
  const void *weight, *bias;  /* attention: bias = slopes or table of distances */
  const void *extra;          /* attention: sinks; routing: bias of the choice */
} tk_instruction;

enum { TK_PAGE = 16 }; /* positions of a page */

typedef struct {
  void *keys, *values; /* of one layer: (pages, heads, key width, 16) and (pages, heads, 16, value width), the latter
                          a multiple of 16 */
  int32_t table;       /* which list of pages of a sequence says where its positions are */
} tk_memory;

typedef struct {
  const tk_memory *memory; /* one a layer with attention */
  const int32_t *pages;    /* (tables, stride): the page of positions 16 n and on; what is out of reach is never read */
  int32_t stride, start, count; /* start: positions that are filled; count: new ones in this step */
} tk_sequence;

typedef struct {
  const float *cos, *sin;     /* (positions or rows, channels / 2) */
  int32_t by_row;
} tk_rotary;

typedef struct {
  int32_t sequences, outputs; /* outputs: rows whose result is asked for */
  const int32_t *tokens;      /* of all sequences, one after the other */
  const int32_t *output;      /* indices of rows; NULL: all */
  const tk_sequence *sequence;
  const tk_rotary *rotary;
  float *hidden, *logits;     /* buffers 0 and 1 */
} tk_step;

typedef struct tk_program tk_program;

/* Copy instructions and widths of buffers (floats a row; 0 and 1 are the step's hidden and logits). NULL: no memory.
 * `choices`: experts a token, `isa`: "", "portable", "avx2", "avx512" or "vnni". */
tk_program *tk_make(const tk_instruction *code, int32_t length, const int32_t *widths, int32_t buffers,
                    int32_t choices, int32_t threads, const char *isa);
void tk_free(tk_program *program);
/* Run instructions [first, last). 0: done; 1: no memory. Calls on one program must not overlap. */
int32_t tk_run(tk_program *program, int32_t first, int32_t last, const tk_step *step);
const char *tk_isa(const tk_program *program);
/* Whether this machine can run the kernels of that name. */
int32_t tk_can(const char *isa);
/* Bytes of a packed weight, and packing itself: RTN from floats (n, k), to
 * TK_F32 TK_Q8 TK_Q4 TK_F16 TK_B16, or GGUF blocks without loss. */
int64_t tk_packed_bytes(int32_t format, int32_t n, int32_t k);
void tk_pack(int32_t format, int32_t n, int32_t k, const float *w, void *out);
void tk_pack_blocks(int32_t type, int32_t n, int32_t k, const uint8_t *blocks, void *out);
/* Bytes of a row of k columns in a GGUF file. */
int64_t tk_block_row(int32_t type, int32_t k);
void tk_unpack(int32_t format, int32_t n, int32_t k, const void *packed, float *w);
/* Read `bytes` on all threads, `times` times, for the roofline; returns seconds. */
double tk_read_speed(tk_program *program, const void *data, int64_t bytes, int32_t times);
#endif
