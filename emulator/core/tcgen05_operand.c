/* Operands A and B of tcgen05.mma: descriptors, element formats in shared and tensor memory, and values as numbers. */
#include "tcgen05.h"

#pragma GCC target("avx2,f16c")
#include <immintrin.h>

int tcgen05_matrix(Warp *w, const Ins *i, uint64_t descriptor, int mn_major, const char *what, SmemMatrix *m)
{
    static const uint8_t swizzles[8] = {0, 128, 128, 0, 64, 0, 32, 0};
    uint32_t layout = (uint32_t)(descriptor >> 61);
    const char *problem = NULL;
    if ((descriptor >> 46 & 7) != 1) problem = "bits 48..46 are not 1: not a descriptor of tcgen05";
    else if (descriptor >> 52 & 1) problem = "bit 52 asks for an absolute leading dimension, which sm_100 does not have";
    else if (layout == 3 || layout == 5 || layout == 7) problem = "bits 63..61 name no swizzling mode";
    if (problem) {
        stop(w, i, 0, "matrix_descriptor", "%s: descriptor 0x%016llx: %s", what, (unsigned long long)descriptor, problem);
        return 0;
    }
    *m = (SmemMatrix){
        .start = (uint32_t)(descriptor & 0x3fff) << 4,
        .leading_bytes = (uint32_t)(descriptor >> 16 & 0x3fff) << 4,
        .stride_bytes = (uint32_t)(descriptor >> 32 & 0x3fff) << 4,
        .swizzle_bytes = swizzles[layout],
        .atom_bytes = layout == 1 ? 32 : 16,
        .base_offset = (uint32_t)(descriptor >> 49 & 7),
        .mn_major = (uint32_t)mn_major,
    };
    return 1;
}

static int is_padded(const Mma *mma, ElementType type)
{
    return element_bits_of(type) < 8 && (mma->kind == KIND_F8F6F4 || mma->kind == KIND_MXF8F6F4);
}

uint32_t tcgen05_element_bits(const Mma *mma, ElementType type) { return is_padded(mma, type) ? 8 : element_bits_of(type); }

uint32_t tcgen05_lane(const Mma *mma, uint32_t row, uint32_t half)
{
    switch (mma->path) {
    case PATH_HALF: return row / 16 * 32 + row % 16 + mma->d_at.lane;
    case PATH_FOLDED: return row + 64 * half;
    default: return row;
    }
}

void tcgen05_unpack16(uint32_t *bits, uint8_t *bad, uint32_t step, uint32_t width)
{
    uint32_t bytes[17] = {0};
    uint8_t unset[17] = {0};
    for (uint32_t b = 0; b < 16; b++) bytes[b] = bits[b * step], unset[b] = bad[b * step];
    for (uint32_t e = 0; e < 16; e++) {
        uint32_t first = e * width / 8, shift = e * width % 8;
        int two = shift + width > 8;
        bits[e * step] = (bytes[first] | bytes[first + 1] << 8) >> shift & ((1u << width) - 1);
        bad[e * step] = unset[first] | (two ? unset[first + 1] : 0);
    }
}

static void unpack(const SmemMatrix *m, ElementType type, uint32_t mn_count, uint32_t k_count, uint32_t *bits, uint8_t *bad)
{
    uint32_t width = element_bits_of(type), n = mn_count * k_count;
    if (!m->mn_major)
        for (uint32_t at = 0; at < n; at += 16) tcgen05_unpack16(bits + at, bad + at, 1, width);
    else
        for (uint32_t at = 0; at < n; at += 16 * k_count)
            for (uint32_t k = 0; k < k_count; k++) tcgen05_unpack16(bits + at + k, bad + at + k, k_count, width);
}

typedef float __attribute__((may_alias)) Value; /* lies in the word that held the element's code */

/* Codes become exact values in place; every element type fits into a float. */
static void widen(ElementType type, uint32_t *bits, uint32_t n, float sign)
{
    static _Thread_local float table[N_ELEMENTS][256];
    static _Thread_local uint8_t made[N_ELEMENTS];
    Value *out = (Value *)bits;
    float *known = table[type];
    if (type == ELEMENT_F16) { /* n is a multiple of 8: rows and columns are */
        for (uint32_t e = 0; e < n; e += 8) {
            __m256i code = _mm256_loadu_si256((const __m256i *)(bits + e));
            __m128i half = _mm_packus_epi32(_mm256_castsi256_si128(code), _mm256_extracti128_si256(code, 1));
            _mm256_storeu_ps(out + e, _mm256_mul_ps(_mm256_cvtph_ps(half), _mm256_set1_ps(sign)));
        }
        return;
    }
    if (type == ELEMENT_BF16 || type == ELEMENT_TF32) {
        uint32_t shift = type == ELEMENT_BF16 ? 16 : 0, flip = sign < 0 ? 0x80000000u : 0;
        for (uint32_t e = 0; e < n; e++) bits[e] = (bits[e] << shift & 0xffffe000u) ^ flip;
        return;
    }
    if (!made[type]) {
        for (uint32_t code = 0; code < 256; code++) known[code] = element_value(type, code);
        made[type] = 1;
    }
    for (uint32_t e = 0; e < n; e++) out[e] = known[bits[e] & 0xff] * sign;
}

/* First element that was never written, or -1. */
static int first_bad(const uint8_t *bad, uint32_t n)
{
    const uint8_t *at = memchr(bad, 1, n);
    return at ? (int)(at - bad) : -1;
}

static int row_is_disabled(const Mma *mma, int cta, uint32_t row)
{
    for (uint32_t half = 0; half < (mma->path == PATH_FOLDED ? 2u : 1u); half++) {
        uint32_t lane = tcgen05_lane(mma, row, half);
        if (!(mma->disabled[cta][lane / 32] >> lane % 32 & 1)) return 0;
    }
    return 1;
}

/* Element `at` of a tile in shared memory: [mn][k]. */
static void report_shared(const AsyncOp *op, const Mma *mma, const Cta *cta, int is_b, uint32_t at)
{
    uint32_t bits = tcgen05_element_bits(mma, is_b ? mma->b_type : mma->a_type), mn = at / mma->k, k = at % mma->k;
    finding(op->warp, op->ins, 0, NULL, "undefined_value",
            "%s %u, k %u of tcgen05.mma, at shared address 0x%x, was never written", is_b ? "B: column" : "A: row", mn, k,
            shared_address(cta, matrix_offset(is_b ? &mma->b : &mma->a, mn, k, bits)));
}

static void read_a_shared(const AsyncOp *op, const Mma *mma, int cta, MmaOperands *operands)
{
    static _Thread_local uint32_t bits[MMA_MAX_ROWS * MMA_MAX_K];
    static _Thread_local uint8_t bad[MMA_MAX_ROWS * MMA_MAX_K];
    const Cta *from = mma->ctas[cta];
    uint32_t n = mma->rows * mma->k, width = tcgen05_element_bits(mma, mma->a_type);
    if (!matrix_read(op->warp, op->ins, from, &mma->a, mma->rows, mma->k, width, bits, bad)) return;
    if (is_padded(mma, mma->a_type)) unpack(&mma->a, mma->a_type, mma->rows, mma->k, bits, bad);
    for (int at = first_bad(bad, n); at >= 0; at = -1) {
        while (at < (int)n && (!bad[at] || row_is_disabled(mma, cta, (uint32_t)at / mma->k))) at++;
        if (at < (int)n) report_shared(op, mma, from, 0, (uint32_t)at);
    }
    widen(mma->a_type, bits, n, mma->negate_a ? -1.0f : 1.0f);
    const Value *values = (const Value *)bits;
    for (uint32_t row = 0; row < mma->rows; row++)
        for (uint32_t k = 0; k < mma->k; k++) operands->a[0][k][row] = values[row * mma->k + k];
}

/* A in tensor memory: rows are lanes, and a column holds 32 bits of K. Sub-byte elements of f8f6f4 have a byte each: 4 bits
 * in its bits 5..2, 6 bits in its bits 5..0. */
static void read_a_tmem(const AsyncOp *op, const Mma *mma, int cta, uint32_t half, MmaOperands *operands)
{
    const Cta *from = mma->ctas[cta];
    uint32_t width = tcgen05_element_bits(mma, mma->a_type), per_word = 32 / width, mask = width == 32 ? FULL : (1u << width) - 1;
    uint32_t shift = is_padded(mma, mma->a_type) && mma->a_type == ELEMENT_E2M1 ? 2 : 0;
    for (uint32_t c = 0; c < MMA_K_COLUMNS; c++) {
        const uint32_t *words = from->tmem[mma->a_at.column + c], *unset = from->tmem_bad[mma->a_at.column + c];
        for (uint32_t e = 0; e < per_word; e++) {
            uint32_t bits[MMA_MAX_ROWS];
            for (uint32_t row = 0; row < mma->rows; row++) {
                uint32_t lane = tcgen05_lane(mma, row, half);
                bits[row] = (words[lane] >> e * width & mask) >> shift;
                if (unlikely(unset[lane / 32] >> lane % 32 & 1) && !row_is_disabled(mma, cta, row))
                    finding(op->warp, op->ins, 0, NULL, "undefined_value",
                            "A: row %u of tcgen05.mma, lane %u and column %u of tensor memory of CTA %d, was never written", row,
                            lane, mma->a_at.column + c, from->rank);
            }
            widen(mma->a_type, bits, mma->rows, mma->negate_a ? -1.0f : 1.0f);
            const Value *values = (const Value *)bits;
            for (uint32_t row = 0; row < mma->rows; row++) operands->a[half][c * per_word + e][row] = values[row];
        }
    }
}

void tcgen05_read_a(const AsyncOp *op, const Mma *mma, int cta, MmaOperands *operands)
{
    if (!mma->a_in_tmem) read_a_shared(op, mma, cta, operands);
    else
        for (uint32_t half = 0; half < (mma->path == PATH_FOLDED ? 2u : 1u); half++) read_a_tmem(op, mma, cta, half, operands);
}

void tcgen05_read_b(const AsyncOp *op, const Mma *mma, MmaOperands *operands)
{
    static _Thread_local uint32_t bits[MMA_MAX_COLUMNS * MMA_MAX_K];
    static _Thread_local uint8_t bad[MMA_MAX_COLUMNS * MMA_MAX_K];
    uint32_t share = mma->n / (uint32_t)mma->n_ctas, n = share * mma->k, width = tcgen05_element_bits(mma, mma->b_type);
    for (int c = 0; c < mma->n_ctas; c++) {
        const Cta *from = mma->ctas[c];
        if (!matrix_read(op->warp, op->ins, from, &mma->b, share, mma->k, width, bits, bad)) return;
        if (is_padded(mma, mma->b_type)) unpack(&mma->b, mma->b_type, share, mma->k, bits, bad);
        int at = first_bad(bad, n);
        if (at >= 0) report_shared(op, mma, from, 1, (uint32_t)at);
        widen(mma->b_type, bits, n, mma->negate_b ? -1.0f : 1.0f);
        const Value *values = (const Value *)bits;
        for (uint32_t column = 0; column < share; column++)
            for (uint32_t k = 0; k < mma->k; k++) operands->b[share * (uint32_t)c + column][k] = values[column * mma->k + k];
    }
}
