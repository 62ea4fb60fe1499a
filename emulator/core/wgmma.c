/* wgmma: matrix instructions of a warpgroup, asynchronous. Each warp executes its own 16 of the 64 rows.
 *
 * The work is done when the operation lands: shared memory and accumulators are read then, in the order of issue, so that
 * chains accumulate rightly. A in registers is captured at issue, and must still be there at landing.
 *
 * Of the rules for wgmma.fence those are checked that no right kernel can break: some fence comes before the first wgmma
 * of a warp, and once the results have been waited for (registers are the warp's again), a wgmma without another fence
 * must find its registers as an earlier wgmma left or took them. Writing registers between a fence and the wgmma is not
 * reported, since known-right kernels zero their accumulators there. */
#include "wgmma.h"
#include <immintrin.h>

WgmmaState *wgmma_state(Warp *w)
{
    if (w->wgmma) return w->wgmma;
    WgmmaState *state = w->wgmma = arena_new(w->machine, sizeof(WgmmaState));
    state->seen = arena_new(w->machine, (size_t)w->program->n_registers * sizeof(uint64_t));
    if (w->index % WARPGROUP_WARPS == 0) {
        state->issued = arena_new(w->machine, WGMMA_RING * sizeof(WgmmaIssued));
        state->converted = arena_new(w->machine, sizeof(WgmmaConverted));
    }
    return state;
}

WgmmaState *wgmma_group_state(Warp *w) { return wgmma_state(&w->cta->warps[w->index - w->index % WARPGROUP_WARPS]); }

uint64_t wgmma_hash(const uint32_t *lanes)
{
    __m256i sum = _mm256_setzero_si256();
    for (uint32_t l = 0; l < LANES; l += 8) {
        sum = _mm256_or_si256(_mm256_slli_epi32(sum, 7), _mm256_srli_epi32(sum, 25));
        sum = _mm256_add_epi32(sum, _mm256_loadu_si256((const __m256i *)(lanes + l)));
    }
    uint64_t quarter[4], hash = 0x9e3779b97f4a7c15ull;
    memcpy(quarter, &sum, sizeof quarter);
    for (uint32_t n = 0; n < 4; n++) hash = (hash ^ quarter[n]) * 0xff51afd7ed558ccdull;
    return hash | 1;
}

WgmmaShape wgmma_shape(const Ins *i)
{
    WgmmaShape s = {.n = (uint32_t)i->imm[0], .k = (uint32_t)i->imm[1], .flags = (uint32_t)i->imm[5]};
    s.accumulators = (uint32_t)i->imm[6];
    s.d_type = (ElementType)i->imm[2], s.a_type = (ElementType)i->imm[3], s.b_type = (ElementType)i->imm[4];
    s.a_bits = element_bits_of(s.a_type), s.b_bits = element_bits_of(s.b_type);
    return s;
}

/* --------------------------------------------------------------------------------------------------------- issue */

/* A 64-bit operand that must be the same in all lanes. False after a finding that nothing can follow. */
static int uniform_descriptor(Warp *w, const Ins *i, uint32_t mask, int32_t slot, char operand, uint64_t *value)
{
    uint32_t bad = (w->bad[slot] | w->bad[slot + 1]) & mask;
    if (bad) {
        stop(w, i, bad, "undefined_value", "the matrix descriptor of operand %c was never written", operand);
        return 0;
    }
    *value = get64(w, slot, first_lane(mask));
    uint32_t other = 0;
    EACH_LANE(mask, l) other |= (uint32_t)(get64(w, slot, l) != *value) << l;
    if (other)
        finding(w, i, other, NULL, "wgmma_warpgroup", "the matrix descriptor of operand %c is not the same in all threads",
                operand);
    return 1;
}

static void check_warpgroup(Warp *w, const Ins *i, uint64_t a, uint64_t b, int accumulate)
{
    int first = w->index - w->index % WARPGROUP_WARPS;
    if (first + WARPGROUP_WARPS > w->cta->n_warps) {
        finding(w, i, 0, NULL, "wgmma_warpgroup", "warps %d to %d are no warpgroup: the CTA has %d warps", first,
                w->cta->n_warps - 1, w->cta->n_warps);
        return;
    }
    WgmmaState *state = wgmma_state(w);
    uint32_t serial = ++state->serial;
    WgmmaIssued *issued = &wgmma_group_state(w)->issued[serial % WGMMA_RING];
    if (issued->serial < serial) {
        *issued = (WgmmaIssued){i, a, b, serial, (int16_t)w->index, (uint8_t)accumulate};
        return;
    }
    if (issued->serial != serial) return; /* others are so far ahead that it is forgotten */
    if (issued->ins != i)
        finding(w, i, 0, issued->ins, "wgmma_warpgroup",
                "warps %d and %d of a warpgroup execute different wgmmas: all four must execute the same ones in the same order",
                issued->warp, w->index);
    else if (issued->a != a || issued->b != b)
        finding(w, i, 0, NULL, "wgmma_warpgroup",
                "warps %d and %d of a warpgroup have different matrix descriptors of operand %c", issued->warp, w->index,
                issued->a != a ? 'A' : 'B');
    else if (issued->accumulate != accumulate)
        finding(w, i, 0, NULL, "wgmma_warpgroup", "warps %d and %d of a warpgroup have different scale-d", issued->warp,
                w->index);
}

static void check_fence(Warp *w, const Ins *i, const WgmmaShape *s)
{
    WgmmaState *state = wgmma_state(w);
    if (state->fenced) return;
    if (!state->ever_fenced) {
        finding(w, i, 0, NULL, "wgmma_fence", "the warp has executed no wgmma.fence before its first wgmma");
        state->ever_fenced = 1;
        return;
    }
    uint32_t checked = s->accumulators + (s->flags & A_IN_REGISTERS ? A_REGISTERS : 0);
    for (uint32_t j = 0; j < checked; j++) {
        uint64_t seen = state->seen[i->s[j]];
        if (!seen || seen == wgmma_hash(w->r[i->s[j]])) continue;
        finding(w, i, 0, NULL, "wgmma_fence",
                "%s register was written after the last wgmma.wait_group, and no wgmma.fence follows",
                j < s->accumulators ? "an accumulator" : "an operand A");
        return;
    }
}

/* A in registers: captured now. */
static void capture_a(Warp *w, const Ins *i, const WgmmaShape *s, Wgmma *g)
{
    WgmmaState *state = wgmma_state(w);
    for (uint32_t j = 0; j < A_REGISTERS; j++) {
        int32_t slot = i->s[s->accumulators + j];
        memcpy(g->a_registers[j], w->r[slot], sizeof g->a_registers[j]);
        g->a_bad[j] = w->bad[slot];
        state->seen[slot] = wgmma_hash(w->r[slot]);
        if (w->n_pending_slots && w->pending_slots[slot])
            finding(w, i, 0, NULL, "wgmma_in_flight",
                    "register %u of operand A is an accumulator of a wgmma that was not waited for", j);
        if (!w->bad[slot]) continue;
        uint32_t l = first_lane(w->bad[slot]), row = WARP_ROWS * (uint32_t)(w->index % WARPGROUP_WARPS) + l / 4 + 8 * (j & 1);
        finding(w, i, w->bad[slot], NULL, "undefined_value",
                "operand A of wgmma: the register that holds row %u, k %u was never written", row,
                ((j >> 1) * 4 + l % 4) * 32 / s->a_bits);
    }
}

/* Finds the units of a tile. False after a finding (outside of shared memory). */
static int find_units(Warp *w, const Ins *i, const SmemMatrix *m, uint32_t mn, uint32_t k, uint32_t bits, uint32_t *units,
                      uint32_t *n)
{
    *n = matrix_units(m, mn, k, bits, units);
    return matrix_inside(w, i, w->cta, units, *n);
}

/* slots accumulators…, A (descriptor pair, or 4 registers), B pair, scale-d predicate; imm n, k, types of D, A, B, flags,
 * accumulators */
HANDLER(wgmma)
{
    const WgmmaShape s = wgmma_shape(i);
    const int32_t *a_slot = i->s + s.accumulators, *b_slot = a_slot + (s.flags & A_IN_REGISTERS ? A_REGISTERS : 1);
    int32_t predicate = b_slot[1];
    uint64_t a = 0, b = 0;
    if (mask != FULL)
        return stop(w, i, ~mask, "convergence", "wgmma needs all 32 threads of the warp, and some of them have exited");
    if (w->pbad[predicate] & mask)
        return stop(w, i, w->pbad[predicate] & mask, "undefined_value", "the scale-d predicate was never written");
    if (!(s.flags & A_IN_REGISTERS) && !uniform_descriptor(w, i, mask, a_slot[0], 'A', &a)) return EMU_STOP;
    if (!uniform_descriptor(w, i, mask, b_slot[0], 'B', &b)) return EMU_STOP;
    int accumulate = w->p[predicate] & 1;
    if ((w->p[predicate] & mask) != (accumulate ? mask : 0))
        finding(w, i, w->p[predicate] & mask, NULL, "wgmma_warpgroup", "scale-d is not the same in all threads");
    check_warpgroup(w, i, a, b, accumulate);
    check_fence(w, i, &s);

    AsyncOp *op = async_new(w, i, mask, ENGINE_WGMMA, CLASS_WGMMA, sizeof(Wgmma));
    Wgmma *g = (Wgmma *)op->payload;
    g->accumulate = (uint8_t)accumulate;
    g->a_mn_major = (s.flags & TRANSPOSE_A) != 0, g->b_mn_major = (s.flags & TRANSPOSE_B) != 0;
    SmemMatrix all_b = wgmma_matrix(b, g->b_mn_major);
    int found = find_units(w, i, &all_b, s.n, s.k, s.b_bits, g->b_units, &g->n_b_units);
    if (s.flags & A_IN_REGISTERS) {
        capture_a(w, i, &s, g);
    } else {
        SmemMatrix all_a = wgmma_matrix(a, g->a_mn_major);
        SmemMatrix own_a = matrix_from(&all_a, WARP_ROWS * (uint32_t)(w->index % WARPGROUP_WARPS), s.a_bits);
        found &= find_units(w, i, &own_a, WARP_ROWS, s.k, s.a_bits, g->a_units, &g->n_a_units);
    }
    for (uint32_t j = 0; j < s.accumulators; j++) async_pending_slot(op, i->s[j]);
    if (found) { /* else it completes, and leaves the accumulators as they are */
        if (w->machine->policy.races) {
            matrix_touch_units(op, w->cta, g->a_units, g->n_a_units);
            matrix_touch_units(op, w->cta, g->b_units, g->n_b_units);
        }
        op->write = wgmma_land;
    }
    async_issue(op);
    return EMU_NEXT;
}

HANDLER(wgmma_fence)
{
    wgmma_state(w)->fenced = wgmma_state(w)->ever_fenced = 1;
    return EMU_NEXT;
}

HANDLER(wgmma_commit)
{
    group_commit(w, CLASS_WGMMA);
    return EMU_NEXT;
}

/* A wgmma-group belongs to the warpgroup: it is complete when the parts of all four warps are, and whoever has waited for
 * it may overwrite what any of them read. EMU_AGAIN while a part is missing. */
static int wait_for_others(Warp *w, uint32_t keep)
{
    const uint32_t committed = w->groups[CLASS_WGMMA].committed;
    const int first = w->index - w->index % WARPGROUP_WARPS;
    if (committed <= keep || first + WARPGROUP_WARPS > w->cta->n_warps) return EMU_NEXT;
    const uint32_t commit = committed - 1 - keep;
    for (int k = first; k < first + WARPGROUP_WARPS; k++) {
        Warp *other = &w->cta->warps[k];
        const Groups *g = &other->groups[CLASS_WGMMA];
        if (g->committed <= commit || g->oldest <= g->commits[commit % GROUP_RING]) {
            w->wait = (Wait){.kind = WAIT_EVENT};
            return EMU_AGAIN;
        }
    }
    for (int k = first; k < first + WARPGROUP_WARPS && w->machine->policy.races; k++) {
        Warp *other = &w->cta->warps[k];
        const uint32_t agent = agent_of(other, CLASS_WGMMA);
        const uint32_t clock = other->groups[CLASS_WGMMA].commits[commit % GROUP_RING] + 1;
        if (w->known[agent] < clock) w->known[agent] = clock;
        if (w->visible[agent] < clock) w->visible[agent] = clock;
    }
    return EMU_NEXT;
}

HANDLER(wgmma_wait)
{
    int status = group_wait(w, i, CLASS_WGMMA, (uint32_t)i->imm[0]);
    if (status == EMU_NEXT) status = wait_for_others(w, (uint32_t)i->imm[0]);
    if (status == EMU_NEXT) wgmma_state(w)->fenced = 0;
    return status;
}
