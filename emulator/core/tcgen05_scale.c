/* Scale factors of the block-scaled kinds of tcgen05.mma, in tensor memory.
 *
 * The factors of row (or column) r lie in the 32-bit word at lane r % 32 of column base + r / 32, factor s in byte id + s.
 * The same words are repeated in all four quarters of the lanes, because each quarter of the tensor core reads its own;
 * only of B with a folded data path (128 rows in a pair) do quarters 0 and 1 hold the first half of the columns, 2 and 3
 * the second. Quarters that differ are a finding. */
#include "tcgen05.h"
#include <math.h>

static double factor_value(int is_ue8m0, uint32_t code)
{
    if (!is_ue8m0) return element_value(ELEMENT_E4M3, code & 0x7f);
    return code == 0xff ? (double)NAN : ldexp(1.0, (int)code - 127);
}

/* The word of row r of A or B, checked in quarters [first, first + n) of the lanes; `used`: the bits that count. */
static uint32_t read_word(const AsyncOp *op, const Cta *cta, TmemAddress at, uint32_t r, uint32_t first, uint32_t n,
                          uint32_t used, char name)
{
    uint32_t column = at.column + r / 32, lane = r % 32, word = cta->tmem[column][first * 32 + lane];
    for (uint32_t q = first; q < first + n; q++) {
        if (unlikely(cta->tmem_bad[column][q] >> lane & 1))
            finding(op->warp, op->ins, 0, NULL, "undefined_value",
                    "scale factor of %c %u, lane %u and column %u of tensor memory of CTA %d, was never written", name, r,
                    q * 32 + lane, column, cta->rank);
        else if (unlikely((cta->tmem[column][q * 32 + lane] ^ word) & used))
            finding(op->warp, op->ins, 0, NULL, "scale_factors",
                    "scale factors of %c %u differ between lanes %u and %u of column %u: they must be repeated in every 32 lanes",
                    name, r, first * 32 + lane, q * 32 + lane, column);
    }
    return word;
}

static uint32_t used_bytes(const Mma *mma, uint32_t id)
{
    uint32_t factors = mma->k / mma->scale_block;
    return (factors == 4 ? FULL : (1u << 8 * factors) - 1) << 8 * id;
}

void tcgen05_scale_a(const AsyncOp *op, const Mma *mma, int cta, MmaOperands *operands)
{
    for (uint32_t row = 0; row < mma->rows; row++) {
        uint32_t word = read_word(op, mma->ctas[cta], mma->scale_a_at, row, 0, 4, used_bytes(mma, mma->scale_a_id), 'A');
        word >>= 8 * mma->scale_a_id;
        for (uint32_t k = 0; k < mma->k; k += mma->scale_block, word >>= 8) {
            double factor = factor_value(mma->scale_is_ue8m0, word & 0xff);
            for (uint32_t e = 0; e < mma->scale_block; e++) operands->a[0][k + e][row] *= factor;
            if (mma->a_in_tmem && mma->path == PATH_FOLDED)
                for (uint32_t e = 0; e < mma->scale_block; e++) operands->a[1][k + e][row] *= factor;
        }
    }
}

/* Each CTA of a pair has the factors of all columns in its own tensor memory. */
void tcgen05_scale_b(const AsyncOp *op, const Mma *mma, int cta, MmaOperands *operands)
{
    uint32_t half = mma->path == PATH_FOLDED ? mma->n / 2 : mma->n, quarters = mma->path == PATH_FOLDED ? 2 : 4;
    for (uint32_t column = 0; column < mma->n; column++) {
        uint32_t word = read_word(op, mma->ctas[cta], mma->scale_b_at, column % half, column / half * 2, quarters,
                                  used_bytes(mma, mma->scale_b_id), 'B');
        word >>= 8 * mma->scale_b_id;
        for (uint32_t k = 0; k < mma->k; k += mma->scale_block, word >>= 8) {
            double factor = factor_value(mma->scale_is_ue8m0, word & 0xff);
            for (uint32_t e = 0; e < mma->scale_block; e++) operands->b[column][k + e] *= factor;
        }
    }
}
