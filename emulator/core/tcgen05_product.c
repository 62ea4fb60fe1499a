/* D = A·B (+ D) of tcgen05.mma, for the rows of one CTA.
 *
 * Model of the arithmetic: products are exact, the products of one instruction's K and the old D are added in double
 * precision in the order of K, and the sum is rounded to the type of D once, to nearest even. How many bits Blackwell
 * keeps while it adds, and in which order, is not public: results of a GPU differ from these in the last bits. Integers
 * are exact. */
#include "tcgen05.h"

#pragma GCC target("avx2,fma,f16c")
#include <immintrin.h>

#define ROWS 8    /* neighbouring lanes in every data path */
#define COLUMNS 4 /* N, and half of it where a pair has 128 rows, is a multiple of 8 */

static inline float of_bits(uint32_t bits) { float f; memcpy(&f, &bits, 4); return f; }
static inline uint32_t bits_of(float f) { uint32_t b; memcpy(&b, &f, 4); return b; }

/* Sums of products of 8 rows and 4 columns. */
static inline void products(const double (*a)[MMA_MAX_ROWS], const double (*b)[MMA_MAX_K], uint32_t k_count, double (*sums)[ROWS])
{
    __m256d low[COLUMNS], high[COLUMNS];
    for (int c = 0; c < COLUMNS; c++) low[c] = high[c] = _mm256_setzero_pd();
    for (uint32_t k = 0; k < k_count; k++) {
        __m256d y0 = _mm256_load_pd(a[k]), y1 = _mm256_load_pd(a[k] + 4);
        __asm__("" : "+x"(y0), "+x"(y1)); /* loaded once, not in each multiplication */
        for (int c = 0; c < COLUMNS; c++) {
            __m256d x = _mm256_broadcast_sd(b[c] + k);
            low[c] = _mm256_fmadd_pd(y0, x, low[c]);
            high[c] = _mm256_fmadd_pd(y1, x, high[c]);
        }
    }
    for (int c = 0; c < COLUMNS; c++) {
        _mm256_store_pd(sums[c], low[c]);
        _mm256_store_pd(sums[c] + 4, high[c]);
    }
}

/* One rounding to f16: through a float that was rounded to odd, which keeps what decides a tie. */
static uint32_t to_f16(double x)
{
    if (x != x) return 0x7fff;
    float f = (float)x;
    double rest = x - (double)f;
    uint32_t bits = bits_of(f);
    if (rest != 0 && !(bits & 1) && (bits & 0x7f800000u) != 0x7f800000u) bits += (rest > 0) == (f > 0) || bits << 1 == 0 ? 1 : -1;
    return _cvtss_sh(of_bits(bits), _MM_FROUND_TO_NEAREST_INT);
}

static uint32_t to_s32(double x, int saturate)
{
    if (saturate) return (uint32_t)(x > 2147483647.0 ? INT32_MAX : x < -2147483648.0 ? INT32_MIN : (int32_t)x);
    return (uint32_t)(int64_t)x;
}

static double old_value(const Mma *mma, uint32_t word)
{
    if (mma->d_type == ELEMENT_S32) return (int32_t)word;
    return (mma->d_type == ELEMENT_F16 ? _cvtsh_ss((uint16_t)word) : of_bits(word)) * mma->d_factor;
}

static uint32_t new_value(const Mma *mma, double x)
{
    if (mma->d_type == ELEMENT_S32) return to_s32(x, mma->saturate);
    if (mma->d_type == ELEMENT_F16) return to_f16(x);
    return x != x ? 0x7fffffffu : bits_of((float)x);
}

/* d[0..7] of one column from their sums: the usual case, f32 and all lanes enabled. */
static inline void store_f32(uint32_t *d, const double *sum, int accumulate, double d_factor)
{
    __m256d low = _mm256_load_pd(sum), high = _mm256_load_pd(sum + 4), factor = _mm256_set1_pd(d_factor);
    if (accumulate) {
        low = _mm256_fmadd_pd(_mm256_cvtps_pd(_mm_loadu_ps((const float *)d)), factor, low);
        high = _mm256_fmadd_pd(_mm256_cvtps_pd(_mm_loadu_ps((const float *)d + 4)), factor, high);
    }
    __m256 x = _mm256_set_m128(_mm256_cvtpd_ps(high), _mm256_cvtpd_ps(low));
    __m256 nan = _mm256_castsi256_ps(_mm256_set1_epi32(0x7fffffff));
    _mm256_storeu_ps((float *)d, _mm256_blendv_ps(x, nan, _mm256_cmp_ps(x, x, _CMP_UNORD_Q)));
}

static void store(const Mma *mma, uint32_t *d, const double *sum, uint32_t enabled)
{
    for (uint32_t e = 0; e < ROWS; e++)
        if (enabled >> e & 1) d[e] = new_value(mma, sum[e] + (mma->accumulate ? old_value(mma, d[e]) : 0.0));
}

static void report_old(const AsyncOp *op, const Cta *cta, uint32_t unset, uint32_t lane, uint32_t column)
{
    finding(op->warp, op->ins, 0, NULL, "undefined_value",
            "tcgen05.mma accumulates onto tensor memory that was never written: lane %u, column %u of CTA %d",
            lane / 32 * 32 + first_lane(unset), column, cta->rank);
}

void tcgen05_multiply(const AsyncOp *op, const Mma *mma, int index, const MmaOperands *operands)
{
    _Alignas(32) double sums[COLUMNS][ROWS];
    Cta *cta = mma->ctas[index];
    uint32_t half = mma->path == PATH_FOLDED ? mma->n / 2 : mma->n, k = mma->k;
    int accumulate = mma->accumulate, is_f32 = mma->d_type == ELEMENT_F32;
    for (uint32_t row = 0; row < mma->rows; row += ROWS)
        for (uint32_t n = 0; n < mma->n; n += COLUMNS) {
            uint32_t folded = n >= half, lane = tcgen05_lane(mma, row, folded);
            uint32_t column = mma->d_at.column + (folded ? n - half : n);
            const double (*a)[MMA_MAX_ROWS] = operands->a[mma->a_in_tmem ? folded : 0];
            uint32_t enabled = ~(mma->disabled[index][lane / 32] >> lane % 32) & 0xff, active = enabled << lane % 32;
            if (!enabled) continue;
            products((const double (*)[MMA_MAX_ROWS])(a[0] + row), operands->b + n, k, sums);
            for (uint32_t c = 0; c < COLUMNS; c++) {
                uint32_t *unset = &cta->tmem_bad[column + c][lane / 32], *d = &cta->tmem[column + c][lane];
                if (unlikely(*unset & active)) {
                    if (accumulate) report_old(op, cta, *unset & active, lane, column + c);
                    *unset &= ~active;
                }
                if (likely(is_f32 && enabled == 0xff)) store_f32(d, sums[c], accumulate, mma->d_factor);
                else store(mma, d, sums[c], enabled);
            }
        }
}
