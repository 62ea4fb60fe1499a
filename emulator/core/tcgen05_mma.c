/* tcgen05.mma and tcgen05.commit: the instruction descriptor, what an MMA touches, and when it happens.
 *
 * An MMA is one operation of the issuing warp's in-order queue. Its operands are read and D is written when it lands;
 * races are judged at issue. */
#include "tcgen05.h"

#pragma GCC target("avx2")

enum { SLOT_D, SLOT_A, SLOT_B, SLOT_DESCRIPTOR, SLOT_SCALE_A, SLOT_SCALE_B, SLOT_ENABLE, SLOT_LANES };
enum { IMM_KIND, IMM_GROUP, IMM_A_IN_TMEM, IMM_BLOCK, IMM_LANE_MASKS, IMM_SCALE_D, IMM_D_OFFSET, IMM_A_OFFSET };

#define NO_ELEMENT N_ELEMENTS

/* ------------------------------------------------------------------------------------------ instruction descriptor */

static ElementType operand_type(MmaKind kind, uint32_t code)
{
    static const uint8_t narrow[8] = {ELEMENT_E4M3, ELEMENT_E5M2, NO_ELEMENT, ELEMENT_E2M3,
                                      ELEMENT_E3M2, ELEMENT_E2M1, NO_ELEMENT, NO_ELEMENT};
    switch (kind) {
    case KIND_F16: return code == 0 ? ELEMENT_F16 : code == 1 ? ELEMENT_BF16 : NO_ELEMENT;
    case KIND_TF32: return code == 2 ? ELEMENT_TF32 : NO_ELEMENT;
    case KIND_I8: return code == 0 ? ELEMENT_U8 : code == 1 ? ELEMENT_S8 : NO_ELEMENT;
    case KIND_MXF4:
    case KIND_MXF4NVF4: return code == 1 ? ELEMENT_E2M1 : NO_ELEMENT;
    default: return narrow[code];
    }
}

static ElementType result_type(const Mma *mma, uint32_t code)
{
    if (mma->kind == KIND_I8) return code == 2 ? ELEMENT_S32 : NO_ELEMENT;
    if (mma->scale_block || code == 1) return ELEMENT_F32;
    int is_half = mma->kind == KIND_F8F6F4 || (mma->kind == KIND_F16 && mma->a_type == ELEMENT_F16 && mma->b_type == ELEMENT_F16);
    return code == 0 && is_half ? ELEMENT_F16 : NO_ELEMENT;
}

static uint32_t k_of(MmaKind kind)
{
    static const uint8_t k[] = {16, 8, 32, 32, 32, 64, 64};
    return k[kind];
}

/* M and N that the ISA allows for the kind and the number of CTAs. */
static const char *shape_problem(const Mma *mma, uint32_t m, int transposed_b)
{
    uint32_t pair = mma->n_ctas == 2, step = pair ? 16 : 8;
    uint32_t other = pair ? 256 : mma->scale_block ? 128 : 64;
    if (m != 128 && m != other) return "M does not go with the kind and cta_group";
    if (mma->kind == KIND_I8) step = pair ? 32 : mma->n > 32 ? 16 : 8;
    if (transposed_b && element_bits_of(mma->b_type) <= 8) step = pair ? 32 : 16;
    if (mma->n < step || mma->n > 256 || mma->n % step) return "N does not go with the kind and cta_group";
    return NULL;
}

static const char *transpose_problem(const Mma *mma, const SmemMatrix *m)
{
    int wide_atoms = m->atom_bytes == 32;
    if (!m->mn_major) return NULL;
    if (mma->kind == KIND_MXF4 || mma->kind == KIND_MXF4NVF4) return "this kind takes K-major operands only";
    if (mma->kind == KIND_TF32 && !wide_atoms) return "tf32 is MN-major only with 128-byte swizzle and 32-byte atoms";
    if (mma->kind != KIND_TF32 && wide_atoms) return "an MN-major operand can't have 32-byte swizzle atoms except for tf32";
    return NULL;
}

static const char *decode(Mma *mma, uint32_t d, uint32_t *transposed)
{
    uint32_t scaled = mma->scale_block, m = scaled ? (d >> 27 & 3) * 128 : (d >> 24 & 31) * 16;
    mma->a_type = operand_type(mma->kind, d >> 7 & 7);
    mma->b_type = operand_type(mma->kind, d >> 10 & 7);
    mma->d_type = result_type(mma, d >> 4 & 3);
    mma->saturate = d >> 3 & 1;
    mma->negate_a = d >> 13 & 1, mma->negate_b = d >> 14 & 1;
    transposed[0] = d >> 15 & 1, transposed[1] = d >> 16 & 1;
    mma->n = (d >> 17 & 63) * 8;
    mma->k = k_of(mma->kind);
    mma->rows = m / (uint32_t)mma->n_ctas;
    mma->path = mma->rows == 128 ? PATH_WHOLE : mma->n_ctas == 2 ? PATH_FOLDED : PATH_HALF;
    if (d >> 2 & 1) return "it asks for a sparse A";
    if (mma->a_type == NO_ELEMENT || mma->b_type == NO_ELEMENT) return "it names an element type that the kind does not have";
    if (mma->d_type == NO_ELEMENT) return "it names a type of D that the kind does not have";
    if (mma->kind == KIND_I8 && (mma->negate_a || mma->negate_b)) return "integers can't be negated";
    if (scaled) {
        mma->scale_b_id = d >> 4 & 3, mma->scale_a_id = d >> 29 & 3;
        mma->scale_is_ue8m0 = d >> 23 & 1;
        uint32_t factors = mma->k / scaled;
        if (mma->kind != KIND_MXF8F6F4 && d >> 31) return "K = 96 needs sm_103";
        if ((mma->kind != KIND_MXF4NVF4 || scaled == 32) && !mma->scale_is_ue8m0) return "this kind takes ue8m0 scale factors";
        if ((mma->scale_a_id | mma->scale_b_id) % factors) return "a scale factor id does not go with the number of factors";
    }
    return shape_problem(mma, m, (int)transposed[1]);
}

/* ------------------------------------------------------------------------------------------------------ execution */

static void mma_write(AsyncOp *op)
{
    static _Thread_local MmaOperands operands;
    const Mma *mma = (const Mma *)op->payload;
    for (int c = 0; c < mma->n_ctas; c++) {
        if (c == 0 || mma->scale_block) tcgen05_read_b(op, mma, &operands);
        tcgen05_read_a(op, mma, c, &operands);
        if (mma->scale_block) {
            tcgen05_scale_a(op, mma, c, &operands);
            tcgen05_scale_b(op, mma, c, &operands);
        }
        tcgen05_multiply(op, mma, c, &operands);
    }
}

/* The lanes of a 64- or 128-row matrix, in runs of neighbours. */
static void touch_rows(AsyncOp *op, const Mma *mma, Cta *cta, uint32_t column, uint32_t columns, int is_write)
{
    if (mma->path != PATH_HALF) async_touch_tmem(op, cta, 0, TMEM_LANES, column, columns, is_write);
    else
        for (uint32_t quarter = 0; quarter < 4; quarter++)
            async_touch_tmem(op, cta, quarter * 32 + mma->d_at.lane, 16, column, columns, is_write);
}

static uint32_t d_columns(const Mma *mma) { return mma->path == PATH_FOLDED ? mma->n / 2 : mma->n; }

static int touch(AsyncOp *op, const Mma *mma)
{
    for (int c = 0; c < mma->n_ctas; c++) {
        Cta *cta = mma->ctas[c];
        uint32_t a_bits = tcgen05_element_bits(mma, mma->a_type), b_bits = tcgen05_element_bits(mma, mma->b_type);
        if (mma->a_in_tmem) touch_rows(op, mma, cta, mma->a_at.column, MMA_K_COLUMNS, 0);
        else if (!matrix_touch(op, cta, &mma->a, mma->rows, mma->k, a_bits)) return 0;
        if (!matrix_touch(op, cta, &mma->b, mma->n / (uint32_t)mma->n_ctas, mma->k, b_bits)) return 0;
        if (mma->scale_block) {
            uint32_t columns = (d_columns(mma) + 31) / 32;
            async_touch_tmem(op, cta, 0, TMEM_LANES, mma->scale_a_at.column, mma->rows / 32, 0);
            async_touch_tmem(op, cta, 0, TMEM_LANES, mma->scale_b_at.column, columns, 0);
        }
        touch_rows(op, mma, cta, mma->d_at.column, d_columns(mma), 1);
    }
    return 1;
}

/* Tensor memory of the operands is allocated, and starts in a lane that the data path can have. */
static int check_tmem(Warp *w, const Ins *i, const Mma *mma)
{
    uint32_t allowed = mma->path == PATH_HALF ? 16 : 0;
    const char *problem = NULL;
    if (mma->d_at.lane && mma->d_at.lane != allowed)
        problem = allowed ? "D must begin in lane 0 or 16" : "D must begin in lane 0";
    else if (mma->a_in_tmem && mma->a_at.lane != mma->d_at.lane) problem = "A and D must begin in the same lane";
    else if (mma->scale_block && (mma->scale_a_at.lane || mma->scale_b_at.lane)) problem = "scale factors must begin in lane 0";
    if (problem) {
        stop(w, i, 0, "tmem_access", "%s of tensor memory (D in lane %u, A in %u, scale factors in %u and %u)", problem,
             mma->d_at.lane, mma->a_at.lane, mma->scale_a_at.lane, mma->scale_b_at.lane);
        return 0;
    }
    for (int c = 0; c < mma->n_ctas; c++) {
        Cta *cta = mma->ctas[c];
        if (!tmem_check(w, i, cta, mma->d_at.column, d_columns(mma))) return 0;
        if (mma->a_in_tmem && !tmem_check(w, i, cta, mma->a_at.column, MMA_K_COLUMNS)) return 0;
        if (!mma->scale_block) continue;
        if (!tmem_check(w, i, cta, mma->scale_a_at.column, mma->rows / 32)) return 0;
        if (!tmem_check(w, i, cta, mma->scale_b_at.column, (d_columns(mma) + 31) / 32)) return 0;
    }
    return 1;
}

/* ------------------------------------------------------------------------------------------------------ handlers */

static int check_poison(Warp *w, const Ins *i, uint32_t mask)
{
    static const struct { int slot; const char *name; } words[] = {
        {SLOT_D, "address of D"}, {SLOT_A, "A"}, {SLOT_B, "descriptor of B"}, {SLOT_DESCRIPTOR, "instruction descriptor"},
        {SLOT_SCALE_A, "address of A's scale factors"}, {SLOT_SCALE_B, "address of B's scale factors"},
    };
    for (size_t n = 0; n < sizeof words / sizeof *words; n++) {
        int slot = words[n].slot;
        if (i->s[slot] < 0) continue;
        uint32_t bad = BAD(slot);
        if (slot == SLOT_B || (slot == SLOT_A && !i->imm[IMM_A_IN_TMEM])) bad |= BADHI(slot);
        bad &= mask;
        if (bad) return stop(w, i, bad, "undefined_value", "the %s of tcgen05.mma was never written", words[n].name);
    }
    uint32_t bad = PBAD(SLOT_ENABLE);
    for (int n = 0; n < i->imm[IMM_LANE_MASKS]; n++) bad |= BAD(SLOT_LANES + n);
    if (bad & mask) return stop(w, i, bad & mask, "undefined_value", "a predicate or lane mask of tcgen05.mma was never written");
    return EMU_NEXT;
}

static int issue(Warp *w, const Ins *i, uint32_t l)
{
    Mma mma = {.kind = (MmaKind)i->imm[IMM_KIND], .a_in_tmem = (uint8_t)i->imm[IMM_A_IN_TMEM], .n_ctas = 1, .ctas = {w->cta},
               .scale_block = (uint32_t)i->imm[IMM_BLOCK], .d_factor = 1.0 / (double)(1u << i->imm[IMM_SCALE_D])};
    if (i->imm[IMM_GROUP] == 2) {
        Cta *peer = tcgen05_peer(w, i);
        if (!peer) return EMU_STOP;
        mma.n_ctas = 2;
        mma.ctas[w->cta->rank & 1] = w->cta;
        mma.ctas[peer->rank & 1] = peer;
    }
    uint32_t transposed[2], descriptor = R(SLOT_DESCRIPTOR)[l];
    const char *problem = decode(&mma, descriptor, transposed);
    if (problem) return stop(w, i, 1u << l, "matrix_descriptor", "instruction descriptor 0x%08x: %s", descriptor, problem);
    mma.accumulate = P(SLOT_ENABLE) >> l & 1;
    mma.d_at = tmem_address(R(SLOT_D)[l] + (uint32_t)i->imm[IMM_D_OFFSET]);
    if (mma.a_in_tmem) mma.a_at = tmem_address(R(SLOT_A)[l] + (uint32_t)i->imm[IMM_A_OFFSET]);
    else if (!tcgen05_matrix(w, i, get64(w, i->s[SLOT_A], l), (int)transposed[0], "A", &mma.a)) return EMU_STOP;
    if (!tcgen05_matrix(w, i, get64(w, i->s[SLOT_B], l), (int)transposed[1], "B", &mma.b)) return EMU_STOP;
    problem = transpose_problem(&mma, &mma.b);
    if (!problem && !mma.a_in_tmem) problem = transpose_problem(&mma, &mma.a);
    if (problem) return stop(w, i, 1u << l, "matrix_descriptor", "instruction descriptor 0x%08x: %s", descriptor, problem);
    if (mma.scale_block) {
        mma.scale_a_at = tmem_address(R(SLOT_SCALE_A)[l]);
        mma.scale_b_at = tmem_address(R(SLOT_SCALE_B)[l]);
    }
    int32_t masks = i->imm[IMM_LANE_MASKS];
    if (masks && masks != 4 * mma.n_ctas)
        return stop(w, i, 1u << l, "matrix_descriptor", "%d lane masks where %d are needed", masks, 4 * mma.n_ctas);
    for (int n = 0; n < masks; n++) mma.disabled[n / 4][n % 4] = R(SLOT_LANES + n)[l];
    if (!check_tmem(w, i, &mma)) return EMU_STOP;
    AsyncOp *op = async_new(w, i, 1u << l, ENGINE_MMA, CLASS_MMA, sizeof mma);
    memcpy(op->payload, &mma, sizeof mma);
    int fits = touch(op, &mma);
    op->write = fits ? mma_write : NULL;
    async_issue(op);
    return fits ? EMU_NEXT : EMU_STOP;
}

HANDLER(tcgen05_mma)
{
    if (check_poison(w, i, mask) != EMU_NEXT) return EMU_STOP;
    tcgen05_group(w, i, i->imm[IMM_GROUP]);
    tcgen05_single(w, i, mask, "tcgen05.mma");
    EACH_LANE(mask, l)
    {
        int status = issue(w, i, l);
        if (status != EMU_NEXT) return status;
    }
    return EMU_NEXT;
}

/* Arrives on the barrier at this offset of every CTA of the mask once the warp's MMAs, copies and shifts are complete. */
HANDLER(tcgen05_commit)
{
    int multicast = i->s[1] >= 0;
    uint32_t bad = (BAD(0) | (multicast ? BAD(1) : 0)) & mask;
    if (bad) return stop(w, i, bad, "undefined_value", "the mbarrier address or CTA mask of tcgen05.commit was never written");
    tcgen05_group(w, i, i->imm[0]);
    tcgen05_single(w, i, mask, "tcgen05.commit");
    EACH_LANE(mask, l)
    {
        uint32_t address = R(0)[l] + (uint32_t)i->imm[1], addresses[MAX_CTAS] = {address};
        int n = multicast ? 0 : 1;
        for (uint32_t c = 0; multicast && c < MAX_CTAS; c++) {
            if (!(R(1)[l] >> c & 1)) continue;
            if (c >= (uint32_t)w->machine->n_ctas)
                return stop(w, i, 1u << l, "out_of_bounds", "the CTA mask 0x%x of tcgen05.commit names CTA %u of a cluster of %d",
                            R(1)[l] & 0xffff, c, w->machine->n_ctas);
            addresses[n++] = (address & ((1u << SHARED_RANK_SHIFT) - 1)) | c << SHARED_RANK_SHIFT;
        }
        if (n && !async_arrive_after(w, i, 1u << l, CLASS_MMA, addresses, n, 1)) return EMU_STOP;
    }
    return EMU_YIELD;
}
