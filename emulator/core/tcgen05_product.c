/* D = A·B (+ D) of tcgen05.mma, for the rows of one CTA.
 *
 * Model of the arithmetic: products are exact, the products of one instruction's K and the old D are added in double
 * precision in the order of K, and the sum is rounded to the type of D once, to nearest even. How many bits Blackwell
 * keeps while it adds, and in which order, is not public: results of a GPU differ from these in the last bits. Integers
 * are exact. */
#include "tcgen05.h"

#pragma GCC target("avx2,fma,f16c")
#include <immintrin.h>

#define BLOCK 16 /* rows that are neighbouring lanes in every data path */

static inline float of_bits(uint32_t bits) { float f; memcpy(&f, &bits, 4); return f; }
static inline uint32_t bits_of(float f) { uint32_t b; memcpy(&b, &f, 4); return b; }

/* Sums of products of 16 rows and two columns. */
static void products(const double (*a)[MMA_MAX_ROWS], const double *b0, const double *b1, uint32_t k_count, double *sum0,
                     double *sum1)
{
    __m256d s0[4], s1[4];
    for (int v = 0; v < 4; v++) s0[v] = s1[v] = _mm256_setzero_pd();
    for (uint32_t k = 0; k < k_count; k++) {
        __m256d x0 = _mm256_broadcast_sd(b0 + k), x1 = _mm256_broadcast_sd(b1 + k);
        for (int v = 0; v < 4; v++) {
            __m256d y = _mm256_load_pd(a[k] + 4 * v);
            s0[v] = _mm256_fmadd_pd(y, x0, s0[v]);
            s1[v] = _mm256_fmadd_pd(y, x1, s1[v]);
        }
    }
    for (int v = 0; v < 4; v++) {
        _mm256_store_pd(sum0 + 4 * v, s0[v]);
        _mm256_store_pd(sum1 + 4 * v, s1[v]);
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

/* d[0..15] of one column from their sums: the usual case, f32 and all lanes enabled. */
static void store_f32(const Mma *mma, uint32_t *d, const double *sum)
{
    __m256d factor = _mm256_set1_pd(mma->d_factor);
    for (int v = 0; v < 4; v++) {
        __m256d x = _mm256_load_pd(sum + 4 * v);
        if (mma->accumulate) x = _mm256_fmadd_pd(_mm256_cvtps_pd(_mm_loadu_ps((const float *)d + 4 * v)), factor, x);
        __m128 y = _mm256_cvtpd_ps(x), nan = _mm_castsi128_ps(_mm_set1_epi32(0x7fffffff));
        _mm_storeu_ps((float *)d + 4 * v, _mm_blendv_ps(y, nan, _mm_cmpunord_ps(y, y)));
    }
}

static void store(const Mma *mma, uint32_t *d, const double *sum, uint32_t enabled)
{
    if (likely(mma->d_type == ELEMENT_F32 && enabled == 0xffff)) {
        store_f32(mma, d, sum);
        return;
    }
    for (uint32_t e = 0; e < BLOCK; e++)
        if (enabled >> e & 1) d[e] = new_value(mma, sum[e] + (mma->accumulate ? old_value(mma, d[e]) : 0.0));
}

void tcgen05_multiply(const AsyncOp *op, const Mma *mma, int index, const MmaOperands *operands)
{
    _Alignas(32) double sums[2][BLOCK];
    Cta *cta = mma->ctas[index];
    uint32_t half = mma->path == PATH_FOLDED ? mma->n / 2 : mma->n;
    for (uint32_t row = 0; row < mma->rows; row += BLOCK)
        for (uint32_t n = 0; n < mma->n; n += 2) {
            uint32_t folded = n >= half, lane = tcgen05_lane(mma, row, folded);
            uint32_t column = mma->d_at.column + (folded ? n - half : n);
            const double (*a)[MMA_MAX_ROWS] = operands->a[mma->a_in_tmem ? folded : 0];
            uint32_t enabled = ~(mma->disabled[index][lane / 32] >> lane % 32) & 0xffff;
            if (!enabled) continue;
            products((const double (*)[MMA_MAX_ROWS])(a[0] + row), operands->b[n], operands->b[n + 1], mma->k, sums[0], sums[1]);
            for (uint32_t c = 0; c < 2; c++) {
                uint32_t *unset = &cta->tmem_bad[column + c][lane / 32], active = enabled << lane % 32;
                if (unlikely(*unset & active) && mma->accumulate)
                    finding(op->warp, op->ins, 0, NULL, "undefined_value",
                            "tcgen05.mma accumulates onto tensor memory that was never written: lane %u, column %u of CTA %d",
                            lane / 32 * 32 + first_lane(*unset & active), column + c, cta->rank);
                *unset &= ~active;
                store(mma, &cta->tmem[column + c][lane], sums[c], enabled);
            }
        }
}
