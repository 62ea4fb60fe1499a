/* Sums of products as tensor cores make them: exact products, terms aligned to the largest exponent and cut, one
 * rounding of the result.
 *
 * Nothing of this is in a manual. The constants are those that two independent studies measured and checked at random
 * against the chips: Xie et al., "MMA-Sim" (arXiv 2511.10909), and Khattak and Mikaitis, "Accurate Models of NVIDIA
 * Tensor Cores" (arXiv 2512.07004); DeepSeek-V3's report (arXiv 2412.19437, section 3.3.2) saw the same about 14 bits
 * of FP8 sums on Hopper. For Hopper they were confirmed bit by bit on an H100 (docs/notes/emulator_vs_h100.md), for
 * sm_100 they are the studies' word. A product counts with the sum of its factors' exponents (its fraction is in
 * [1, 4)), and a subnormal factor with the smallest normal exponent of its type. */
#include "matrix.h"
#include <immintrin.h>
#include <math.h>

static const struct { MatrixUnit unit; uint8_t is_fp8; SumModel model; } models[] = {
    /* k_block 0: all of the instruction's K at once */
    {UNIT_MMA_SYNC, 0, {25, 0, 23}}, /* fp8 is made of f16 products, see mma_sync */
    {UNIT_WGMMA, 0, {25, 0, 23}},
    {UNIT_WGMMA, 1, {13, 0, 13}},
    {UNIT_TCGEN05, 0, {25, 0, 23}},
    {UNIT_TCGEN05, 1, {25, 0, 23}},
};

SumModel sum_model(MatrixUnit unit, ElementType a, ElementType b, uint32_t k_count)
{
    int is_fp8 = (a == ELEMENT_E4M3 || a == ELEMENT_E5M2) && (b == ELEMENT_E4M3 || b == ELEMENT_E5M2);
    SumModel model = models[0].model;
    for (size_t n = 0; n < sizeof models / sizeof *models; n++)
        if (models[n].unit == unit && models[n].is_fp8 == is_fp8) model = models[n].model;
    if (!model.k_block) model.k_block = (uint8_t)k_count;
    return model;
}

/* Exponents that stand for zero (takes no part) and for infinity and NaN (the sum is not aligned at all, whatever the
 * other factor is). */
#define ZERO (-4000)
#define SPECIAL 12000
/* Between these the vectors' 32-bit floats and integers hold everything exactly. */
#define LOWEST (-100)
#define HIGHEST 120

#define MAX_K 128
#define COLUMNS 16 /* of a block */
#define CHUNK 8    /* products whose cut sum fits in 32 bits with the accumulator: 8 · 2^27 + 2^26 */

static int smallest_exponent(ElementType type)
{
    switch (type) {
    case ELEMENT_F16: case ELEMENT_E5M2: return -14;
    case ELEMENT_E4M3: return -6;
    case ELEMENT_E2M1: case ELEMENT_E2M3: return 0;
    case ELEMENT_E3M2: return -2;
    default: return -126;
    }
}

static inline int exponent_of(float value, int smallest)
{
    uint32_t bits;
    memcpy(&bits, &value, 4);
    int field = (int)(bits >> 23 & 255);
    if (!(bits << 1)) return ZERO;
    if (field == 255) return SPECIAL;
    return field - 127 < smallest ? smallest : field - 127;
}

static inline __m256i exponents_of_8(__m256 values, __m256i smallest)
{
    __m256i magnitude = _mm256_slli_epi32(_mm256_castps_si256(values), 1), field = _mm256_srli_epi32(magnitude, 24);
    __m256i exponent = _mm256_max_epi32(_mm256_sub_epi32(field, _mm256_set1_epi32(127)), smallest);
    exponent = _mm256_blendv_epi8(exponent, _mm256_set1_epi32(SPECIAL), _mm256_cmpeq_epi32(field, _mm256_set1_epi32(255)));
    return _mm256_blendv_epi8(exponent, _mm256_set1_epi32(ZERO), _mm256_cmpeq_epi32(magnitude, _mm256_setzero_si256()));
}

static void exponents_of_block(const float *values, int smallest, int16_t *out)
{
    __m256i low = exponents_of_8(_mm256_load_ps(values), _mm256_set1_epi32(smallest));
    __m256i high = exponents_of_8(_mm256_load_ps(values + 8), _mm256_set1_epi32(smallest));
    __m256i packed = _mm256_permute4x64_epi64(_mm256_packs_epi32(low, high), 0xd8); /* packs works within 128-bit halves */
    _mm256_store_si256((__m256i *)out, packed);
}

static float round_to_f16(double value)
{
    float f = (float)value;
    if ((double)f != value) { /* to odd, so that the second rounding sees what the first dropped */
        uint32_t bits;
        memcpy(&bits, &f, 4);
        if (fabs((double)f) > fabs(value)) bits--;
        bits |= 1;
        memcpy(&f, &bits, 4);
    }
    return _cvtsh_ss(_cvtss_sh(f, _MM_FROUND_TO_NEAREST_INT)) + 0.0f; /* no negative zero */
}

/* One sum by the definition, for whatever the vectors do not cover. `c` is 0 where there is no accumulator. */
static float sum_slowly(const SumModel *model, const float *a, const int16_t *a_exponents, const float *b,
                        const int16_t *b_exponents, uint32_t b_stride, uint32_t k_count, float c, int f16_result)
{
    double plain = c;
    int largest = exponent_of(c, f16_result ? smallest_exponent(ELEMENT_F16) : -126);
    for (uint32_t k = 0; k < k_count; k++) {
        plain += (double)a[k] * b[k * b_stride];
        int exponent = a_exponents[k] + b_exponents[k * COLUMNS];
        largest = exponent > largest ? exponent : largest;
    }
    if (isnan(plain)) {
        uint32_t bits = f16_result ? 0x7fffe000u : 0x7fffffffu;
        float nan_value;
        memcpy(&nan_value, &bits, 4);
        return nan_value;
    }
    if (isinf(plain)) return (float)plain;
    if (largest < ZERO / 2) return 0.0f;
    double sum = trunc(ldexp(c, model->fraction_bits - largest));
    for (uint32_t k = 0; k < k_count; k++)
        sum += trunc(ldexp((double)a[k] * b[k * b_stride], model->fraction_bits - largest));
    double value = ldexp(sum, largest - model->fraction_bits);
    if (value == 0) return 0.0f;
    if (f16_result) return round_to_f16(value);
    int exponent = ilogb(value) < -126 ? -126 : ilogb(value);
    value = ldexp(trunc(ldexp(value, model->result_bits - exponent)), exponent - model->result_bits);
    return (float)value + 0.0f;
}

static inline __m256 power_of_two(__m256i exponent)
{
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(exponent, _mm256_set1_epi32(127)), 23));
}

static inline __m256i cut(__m256 product, __m256 scale) { return _mm256_cvttps_epi32(_mm256_mul_ps(product, scale)); }

static inline __m256d pow2_pd(__m128i exponent)
{
    __m256i wide = _mm256_cvtepi32_epi64(_mm_add_epi32(exponent, _mm_set1_epi32(1023)));
    return _mm256_castsi256_pd(_mm256_slli_epi64(wide, 52));
}

/* 4 sums in units of 2^exponent, cut to 24 bits; every result here is zero or a normal float */
static inline __m128 cut_to_float(__m256d sum, __m128i unit_exponent)
{
    __m256d value = _mm256_mul_pd(sum, pow2_pd(unit_exponent));
    value = _mm256_and_pd(value, _mm256_castsi256_pd(_mm256_set1_epi64x(~(int64_t)0x1fffffff)));
    return _mm256_cvtpd_ps(value);
}

static inline __m128 round_to_odd(__m256d sum, __m128i unit_exponent)
{
    __m256d value = _mm256_mul_pd(sum, pow2_pd(unit_exponent));
    __m256i rest = _mm256_and_si256(_mm256_castpd_si256(value), _mm256_set1_epi64x(0x1fffffff));
    __m256i is_exact = _mm256_cmpeq_epi64(rest, _mm256_setzero_si256());
    __m256i sticky = _mm256_andnot_si256(is_exact, _mm256_set1_epi64x(0x20000000));
    __m256i kept = _mm256_and_si256(_mm256_castpd_si256(value), _mm256_set1_epi64x(~(int64_t)0x1fffffff));
    return _mm256_cvtpd_ps(_mm256_castsi256_pd(_mm256_or_si256(kept, sticky)));
}

typedef struct {
    const SumModel *model;
    const float *a;          /* [k] of one row */
    const int16_t *a_exponents;
    const float *b;          /* [k][b_stride] of a block of columns */
    const int16_t *b_exponents; /* [k][COLUMNS] */
    uint32_t b_stride, k_count;
    int f16_result;
} Block;

/* Running sums of 8 columns in units of 2^(largest - fraction_bits): 32-bit integers, now and then added up as doubles. */
typedef struct { __m256 scale; __m256i sum; __m256d low, high; } Sums;

static inline void start_sums(Sums *s, const SumModel *model, __m256i largest, const float *d)
{
    s->scale = power_of_two(_mm256_sub_epi32(_mm256_set1_epi32(model->fraction_bits), largest));
    s->sum = cut(_mm256_load_ps(d), s->scale);
    s->low = s->high = _mm256_setzero_pd();
}

static inline void flush_sums(Sums *s)
{
    s->low = _mm256_add_pd(s->low, _mm256_cvtepi32_pd(_mm256_castsi256_si128(s->sum)));
    s->high = _mm256_add_pd(s->high, _mm256_cvtepi32_pd(_mm256_extracti128_si256(s->sum, 1)));
    s->sum = _mm256_setzero_si256();
}

static inline void add_product(Sums *s, __m256 a, const float *b)
{
    s->sum = _mm256_add_epi32(s->sum, cut(_mm256_mul_ps(a, _mm256_load_ps(b)), s->scale));
}

static inline void finish_sums(const Sums *s, const Block *block, __m256i largest, float *d)
{
    __m256i unit = _mm256_sub_epi32(largest, _mm256_set1_epi32(block->model->fraction_bits));
    __m128i unit_low = _mm256_castsi256_si128(unit), unit_high = _mm256_extracti128_si256(unit, 1);
    if (block->f16_result) {
        __m256 odd = _mm256_set_m128(round_to_odd(s->high, unit_high), round_to_odd(s->low, unit_low));
        __m256 rounded = _mm256_cvtph_ps(_mm256_cvtps_ph(odd, _MM_FROUND_TO_NEAREST_INT));
        _mm256_store_ps(d, _mm256_add_ps(rounded, _mm256_setzero_ps())); /* no negative zero */
        return;
    }
    __m256 result = _mm256_set_m128(cut_to_float(s->high, unit_high), cut_to_float(s->low, unit_low));
    __m256i keep = _mm256_set1_epi32((int32_t)(0xffffffffu << (23 - block->model->result_bits)));
    _mm256_store_ps(d, _mm256_castsi256_ps(_mm256_and_si256(_mm256_castps_si256(result), keep)));
}

static inline void sum_columns(const Block *block, __m256i largest_low, __m256i largest_high, float *d)
{
    Sums low, high;
    start_sums(&low, block->model, largest_low, d);
    start_sums(&high, block->model, largest_high, d + 8);
    const float *b = block->b;
    uint32_t k = 0;
    for (; k + CHUNK <= block->k_count; k += CHUNK) {
        for (uint32_t n = 0; n < CHUNK; n++, b += block->b_stride) {
            __m256 a = _mm256_set1_ps(block->a[k + n]);
            add_product(&low, a, b);
            add_product(&high, a, b + 8);
        }
        flush_sums(&low);
        flush_sums(&high);
    }
    for (; k < block->k_count; k++, b += block->b_stride) {
        __m256 a = _mm256_set1_ps(block->a[k]);
        add_product(&low, a, b);
        add_product(&high, a, b + 8);
    }
    if (block->k_count % CHUNK || !block->k_count) {
        flush_sums(&low);
        flush_sums(&high);
    }
    finish_sums(&low, block, largest_low, d);
    finish_sums(&high, block, largest_high, d + 8);
}

/* Largest exponents of 8 columns with the accumulators'; the columns that the vectors do not cover are in `outside`. */
static inline __m256i settle_exponents(__m128i of_products, const float *d, __m256i c_smallest, __m256i *outside)
{
    __m256i largest = _mm256_max_epi32(_mm256_cvtepi16_epi32(of_products), exponents_of_8(_mm256_load_ps(d), c_smallest));
    /* where everything is zero, any exponent gives zero */
    largest = _mm256_andnot_si256(_mm256_cmpgt_epi32(_mm256_set1_epi32(ZERO / 2), largest), largest);
    *outside = _mm256_or_si256(_mm256_cmpgt_epi32(largest, _mm256_set1_epi32(HIGHEST)),
                               _mm256_cmpgt_epi32(_mm256_set1_epi32(LOWEST), largest));
    return _mm256_andnot_si256(*outside, largest);
}

static void sum_block(const Block *block, float *d)
{
    __m256i c_smallest = _mm256_set1_epi32(smallest_exponent(block->f16_result ? ELEMENT_F16 : ELEMENT_F32));
    __m256i largest = _mm256_set1_epi16(ZERO);
    for (uint32_t k = 0; k < block->k_count; k++) {
        __m256i of_b = _mm256_load_si256((const __m256i *)(block->b_exponents + k * COLUMNS));
        largest = _mm256_max_epi16(largest, _mm256_add_epi16(_mm256_set1_epi16(block->a_exponents[k]), of_b));
    }
    __m256i outside_low, outside_high;
    __m256i low = settle_exponents(_mm256_castsi256_si128(largest), d, c_smallest, &outside_low);
    __m256i high = settle_exponents(_mm256_extracti128_si256(largest, 1), d + 8, c_smallest, &outside_high);
    uint32_t slow = (uint32_t)_mm256_movemask_ps(_mm256_castsi256_ps(outside_low)) |
                    (uint32_t)_mm256_movemask_ps(_mm256_castsi256_ps(outside_high)) << 8;
    if (likely(!slow)) {
        sum_columns(block, low, high, d);
        return;
    }
    float kept[COLUMNS];
    for (uint32_t n = 0; n < COLUMNS; n++)
        if (slow >> n & 1)
            kept[n] = sum_slowly(block->model, block->a, block->a_exponents, block->b + n, block->b_exponents + n,
                                 block->b_stride, block->k_count, d[n], block->f16_result);
    sum_columns(block, low, high, d);
    for (uint32_t n = 0; n < COLUMNS; n++)
        if (slow >> n & 1) d[n] = kept[n];
}

#define ROWS 64 /* whose exponents are at hand together */

void matrix_sum(SumModel model, ElementType a_type, ElementType b_type, uint32_t m_count, uint32_t n_count, uint32_t k_count,
                const float *a, uint32_t a_stride, const float *b, uint32_t b_stride, float *d, uint32_t d_stride,
                int f16_result)
{
    int16_t a_exponents[ROWS * MAX_K];
    _Alignas(32) int16_t b_exponents[MAX_K * COLUMNS];
    int a_smallest = smallest_exponent(a_type), b_smallest = smallest_exponent(b_type);
    for (uint32_t first_m = 0; first_m < m_count; first_m += ROWS) {
        uint32_t rows = m_count - first_m < ROWS ? m_count - first_m : ROWS;
        for (uint32_t first_k = 0; first_k < k_count; first_k += model.k_block) {
            uint32_t count = k_count - first_k < model.k_block ? k_count - first_k : model.k_block;
            const float *block_a = a + (size_t)first_m * a_stride + first_k;
            for (uint32_t m = 0; m < rows; m++)
                for (uint32_t k = 0; k < count; k++)
                    a_exponents[m * count + k] = (int16_t)exponent_of(block_a[(size_t)m * a_stride + k], a_smallest);
            for (uint32_t n = 0; n < n_count; n += COLUMNS) {
                const float *block_b = b + (size_t)first_k * b_stride + n;
                for (uint32_t k = 0; k < count; k++)
                    exponents_of_block(block_b + (size_t)k * b_stride, b_smallest, b_exponents + k * COLUMNS);
                for (uint32_t m = 0; m < rows; m++) {
                    const float *row = block_a + (size_t)m * a_stride;
                    Block block = {&model, row, a_exponents + m * count, block_b, b_exponents, b_stride, count, f16_result};
                    sum_block(&block, d + (size_t)(first_m + m) * d_stride + n);
                }
            }
        }
    }
}

void matrix_sum_integer(uint32_t m_count, uint32_t n_count, uint32_t k_count, const float *a, uint32_t a_stride, const float *b,
                        uint32_t b_stride, int32_t *d, uint32_t d_stride, int saturate)
{
    for (uint32_t m = 0; m < m_count; m++)
        for (uint32_t n = 0; n < n_count; n += 8) {
            __m256 sum = _mm256_setzero_ps(); /* exact: at most 128 products below 2^16 */
            for (uint32_t k = 0; k < k_count; k++)
                sum = _mm256_add_ps(sum, _mm256_mul_ps(_mm256_set1_ps(a[(size_t)m * a_stride + k]),
                                                       _mm256_load_ps(b + (size_t)k * b_stride + n)));
            __m256i *to = (__m256i *)(d + (size_t)m * d_stride + n);
            __m256i added = _mm256_cvtps_epi32(sum), old = _mm256_load_si256(to), wrapped = _mm256_add_epi32(old, added);
            if (saturate) { /* overflow: both addends have the sign that the wrapped sum has not */
                __m256i over = _mm256_and_si256(_mm256_xor_si256(old, wrapped), _mm256_xor_si256(added, wrapped));
                __m256i limit = _mm256_xor_si256(_mm256_srai_epi32(old, 31), _mm256_set1_epi32(INT32_MAX));
                wrapped = _mm256_blendv_epi8(wrapped, limit, _mm256_srai_epi32(over, 31));
            }
            _mm256_store_si256(to, wrapped);
        }
}
