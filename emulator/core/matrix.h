/* Operands of matrix instructions: element types, tiles in shared memory that a matrix descriptor describes, and the
 * sums of products that a tensor core makes of them. */
#ifndef DSV4_MATRIX_H
#define DSV4_MATRIX_H

#include "emu.h"

/* Numbered as ELEMENTS in lower/tensor_rules.py. */
typedef enum {
    ELEMENT_F16, ELEMENT_BF16, ELEMENT_TF32, ELEMENT_E4M3, ELEMENT_E5M2, ELEMENT_S8, ELEMENT_U8, ELEMENT_F32, ELEMENT_S32,
    ELEMENT_E2M1, ELEMENT_E2M3, ELEMENT_E3M2, ELEMENT_F64, ELEMENT_B1, ELEMENT_S4, ELEMENT_U4, N_ELEMENTS
} ElementType;

const char *element_name(ElementType type);
uint32_t element_bits_of(ElementType type); /* width of an element in shared memory: tf32 32, e2m1 4, e2m3 and e3m2 6 */

/* Exact value of an element that is held in the low bits of `bits` (tf32 in 32 bits: the low 13 are ignored). */
float element_value(ElementType type, uint32_t bits);
/* Values of `count` elements packed as in memory (4-bit: the even one in the low half; e2m3, e3m2: one a byte). */
void element_values(ElementType type, const uint8_t *bytes, uint32_t count, float *out);

uint32_t f16_pair(float low, float high); /* two floats rounded to f16 in one register */

/* ------------------------------------------------------------------------------------------- tiles in shared memory */

/* A tile of `mn` rows (of A) or columns (of B) times `k` elements, as a descriptor of wgmma or tcgen05 says it lies.
 *
 * It is made of 16-byte units. With T elements in a unit and W = swizzle_bytes / 16, the bytes between elements are
 *   K-major:   (mn % 8) rows of 16 or swizzle_bytes, (mn / 8) · stride_bytes, K contiguous in the row
 *              (no swizzle: a second unit along K lies leading_bytes further)
 *   MN-major:  T·W elements of MN contiguous, (mn / TW) · leading_bytes; k: 8 rows of swizzle_bytes (4 with 32-byte
 *              atoms), then stride_bytes
 *              (no swizzle: T contiguous, (mn / T) · stride_bytes; 8 rows of 16 bytes, then leading_bytes)
 * and the swizzle exchanges units by the final shared address: address bits 4.. by bits 7.. . */
typedef struct {
    uint32_t start;         /* byte address as the descriptor holds it: 18 bits, SHARED_BASE + offset */
    uint32_t leading_bytes; /* leading dimension byte offset */
    uint32_t stride_bytes;  /* stride dimension byte offset */
    uint32_t swizzle_bytes; /* 0 none, 32, 64, 128 */
    uint32_t atom_bytes;    /* of the swizzle: 16, or 32 for tcgen05's 128-byte swizzle with 32-byte atoms */
    uint32_t base_offset;   /* of the swizzle pattern, in 128-byte rows */
    uint32_t mn_major;      /* 0: K is contiguous */
} SmemMatrix;

/* The descriptor of wgmma (sm_90a). `transposed` is the instruction's transpose bit: MN-major. */
SmemMatrix wgmma_matrix(uint64_t descriptor, int transposed);

/* The same tile from row (or column) `mn` on; mn must be a multiple of 8, and of a unit when MN-major. */
SmemMatrix matrix_from(const SmemMatrix *m, uint32_t mn, uint32_t element_bits);

/* Offset in the CTA's shared memory (from its shared base) of each element's first byte; `element_bits` 4, 8, 16, 32.
 * For 4-bit elements two share a byte, the even one in the low half. Not checked against the size of the memory. */
uint32_t matrix_offset(const SmemMatrix *m, uint32_t mn, uint32_t k, uint32_t element_bits);

/* Offsets of the tile's 16-byte units, in the order K-major: [mn][unit along k], MN-major: [k][unit along mn]; the last
 * unit of a row may be used in part only. Returns their number, `matrix_unit_count`. */
uint32_t matrix_unit_count(const SmemMatrix *m, uint32_t mn_count, uint32_t k_count, uint32_t element_bits);
uint32_t matrix_units(const SmemMatrix *m, uint32_t mn_count, uint32_t k_count, uint32_t element_bits, uint32_t *offsets);

/* True when all these 16-byte units lie in the CTA's shared memory; else records a finding. */
int matrix_inside(Warp *w, const Ins *i, const Cta *cta, const uint32_t *offsets, uint32_t n);

/* The tile's elements, widened: out[mn * k_count + k] holds the element's bits, bad[...] is 1 where one of its bytes was
 * never written. False after a finding (outside of shared memory). Does not touch the race records. */
int matrix_read(Warp *w, const Ins *i, const Cta *cta, const SmemMatrix *m, uint32_t mn_count, uint32_t k_count,
                uint32_t element_bits, uint32_t *out, uint8_t *bad);

/* Calls async_touch_shared(op, cta, ..., is_write 0) for the bytes of the tile, neighbouring bytes in one call. False
 * after a finding (outside of shared memory): nothing was touched then. */
int matrix_touch(AsyncOp *op, Cta *cta, const SmemMatrix *m, uint32_t mn_count, uint32_t k_count, uint32_t element_bits);

/* The same for units that are known to lie inside and are used in full. */
void matrix_touch_units(AsyncOp *op, Cta *cta, const uint32_t *offsets, uint32_t n);

/* ------------------------------------------------------------------------------------------------- sums of products */

/* How a tensor core adds: the products of `k_block` elements of K and the accumulator are added at once. Each term is
 * cut (towards zero) `fraction_bits` binary places below the largest exponent among them, the sum of what is left is
 * exact, and the result is cut to `result_bits` fraction bits (f16 results are rounded to nearest even instead). */
typedef struct { uint8_t fraction_bits, k_block, result_bits; } SumModel;

typedef enum { UNIT_MMA_SYNC, UNIT_WGMMA, UNIT_TCGEN05 } MatrixUnit;
SumModel sum_model(MatrixUnit unit, ElementType a, ElementType b, uint32_t k_count); /* see matrix_sum.c for sources */

/* d[m][n] += sum over k of a[m][k] · b[k][n] under the model; a, b hold exact element values, d f32 values (with
 * `f16_result` f16 values, and the results are rounded to f16). Strides in elements; rows of b and d are 64-byte aligned,
 * and whole blocks of 16 columns are computed: the strides are multiples of 16 and what is beyond n_count holds numbers.
 * k_count is at most 128. An accumulator of 0 takes no part, so that d = 0 gives the plain product. */
void matrix_sum(SumModel model, ElementType a_type, ElementType b_type, uint32_t m_count, uint32_t n_count, uint32_t k_count,
                const float *a, uint32_t a_stride, const float *b, uint32_t b_stride, float *d, uint32_t d_stride,
                int f16_result);

/* The same for 8- and 4-bit integers and an int32 accumulator: exact, then wrapped, or limited with `saturate`. Blocks of
 * 8 columns, 32-byte aligned. */
void matrix_sum_integer(uint32_t m_count, uint32_t n_count, uint32_t k_count, const float *a, uint32_t a_stride, const float *b,
                        uint32_t b_stride, int32_t *d, uint32_t d_stride, int saturate);

#endif
