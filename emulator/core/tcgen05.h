/* tcgen05.mma as its handler has decoded it, and the stages that carry it out. */
#ifndef DSV4_TCGEN05_H
#define DSV4_TCGEN05_H

#include "matrix.h"
#include "tmem.h"

typedef enum { KIND_F16, KIND_TF32, KIND_F8F6F4, KIND_I8, KIND_MXF8F6F4, KIND_MXF4, KIND_MXF4NVF4 } MmaKind;

/* Which lanes hold the rows of D (and of an A in tensor memory), by the letters of the ISA's data path layouts. */
typedef enum {
    PATH_WHOLE,  /* A, D: 128 rows of the CTA, row r in lane r */
    PATH_HALF,   /* F: 64 rows, row r in lane 32 (r / 16) + r % 16, plus 0 or 16 */
    PATH_FOLDED, /* B: 64 rows, row r in lane r for the first half of the columns of D, in lane 64 + r for the second */
} DataPath;

#define MMA_MAX_ROWS 128
#define MMA_MAX_COLUMNS 256
#define MMA_MAX_K 64
#define MMA_K_COLUMNS 8 /* 32 bytes of K: columns of an A in tensor memory */

typedef struct {
    MmaKind kind;
    DataPath path;
    ElementType a_type, b_type, d_type;
    uint32_t rows, n, k; /* rows of each CTA; columns of D; K of the instruction */
    int32_t n_ctas;      /* 1, or the pair: the even CTA first */
    Cta *ctas[2];
    uint8_t a_in_tmem, accumulate, saturate, negate_a, negate_b;
    SmemMatrix a, b;     /* each CTA reads its own shared memory there; of B, n / n_ctas columns */
    TmemAddress a_at, d_at;
    double d_factor;     /* 2 ^ -scale-input-d */
    uint32_t disabled[2][4]; /* lanes of D that keep what they hold */
    uint32_t scale_block;    /* elements of K that share a scale factor, 0: none */
    uint8_t scale_is_ue8m0;  /* else ue4m3 */
    uint8_t scale_a_id, scale_b_id; /* byte of the word where the first factor lies */
    TmemAddress scale_a_at, scale_b_at;
} Mma;

/* The operands of one CTA's share as numbers. All products are exact in double, scale factors included. With PATH_FOLDED
 * an A in tensor memory lies there twice, once for each half of the columns. */
typedef struct {
    _Alignas(64) double a[2][MMA_MAX_K][MMA_MAX_ROWS];
    _Alignas(64) double b[MMA_MAX_COLUMNS][MMA_MAX_K];
} MmaOperands;

/* The tile that a shared-memory descriptor of sm_100 describes; false after a finding (`what`: whose descriptor). */
int tcgen05_matrix(Warp *w, const Ins *i, uint64_t descriptor, int mn_major, const char *what, SmemMatrix *m);
/* Bits from element to element in shared memory: 4- and 6-bit elements of f8f6f4 take 16 bytes for 16. */
uint32_t tcgen05_element_bits(const Mma *mma, ElementType type);
/* 16 elements of 4 or 6 bits, packed at the start of 16 bytes that lie `step` apart in `bits`: one element in each. */
void tcgen05_unpack16(uint32_t *bits, uint8_t *bad, uint32_t step, uint32_t width);
/* Lane of a row of D or A; `half`: of the columns of D, with PATH_FOLDED. */
uint32_t tcgen05_lane(const Mma *mma, uint32_t row, uint32_t half);

void tcgen05_read_a(const AsyncOp *op, const Mma *mma, int cta, MmaOperands *operands);
void tcgen05_read_b(const AsyncOp *op, const Mma *mma, MmaOperands *operands);
/* Multiplies a and b by their scale factors. */
void tcgen05_scale_a(const AsyncOp *op, const Mma *mma, int cta, MmaOperands *operands);
void tcgen05_scale_b(const AsyncOp *op, const Mma *mma, int cta, MmaOperands *operands);
/* D of one CTA. */
void tcgen05_multiply(const AsyncOp *op, const Mma *mma, int cta, const MmaOperands *operands);

#endif
