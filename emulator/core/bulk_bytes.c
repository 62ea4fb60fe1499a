/* Bytes with their poison: where copies land, what they take and give, and what reductions do with it. */
#include "bulk.h"
#include "tma_tile.h"

#include <immintrin.h>
#include <math.h>
#include <stdlib.h>

int abandon(AsyncOp *op) {
    free(op);
    return EMU_STOP;
}

int copy_operands_defined(Warp *w, const Ins *i, uint32_t mask, uint32_t wide) {
    for (int n = 0; n < i->n_slots; n++) {
        if (i->s[n] < 0) continue;
        const uint32_t bad = (BAD(n) | (wide >> n & 1 ? BADHI(n) : 0)) & mask;
        if (bad) return stop(w, i, bad, "undefined_value", "operand %d of the copy was never written", n + 1);
    }
    return EMU_NEXT;
}

static int same_operands(const Warp *w, const Ins *i, uint32_t wide, uint32_t a, uint32_t b) {
    for (int n = 0; n < i->n_slots; n++) {
        if (i->s[n] < 0) continue;
        if (R(n)[a] != R(n)[b] || (wide >> n & 1 && RHI(n)[a] != RHI(n)[b])) return 0;
    }
    return 1;
}

uint32_t copy_lanes(Warp *w, const Ins *i, uint32_t mask, uint32_t wide, int is_plain_store) {
    uint32_t left = mask, chosen = 0, repeated = 0;
    while (left) {
        const uint32_t a = left >> w->elected & 1 ? w->elected : first_lane(left);
        uint32_t same = 0;
        EACH_LANE(left, b) if (same_operands(w, i, wide, a, b)) same |= 1u << b;
        if (same & (same - 1)) repeated |= same;
        chosen |= 1u << a;
        left &= ~same;
    }
    if (is_plain_store) return chosen;
    if (repeated)
        finding(w, i, repeated, NULL, "not_elected",
                "%d lanes execute this copy with the same operands, and each of them issues it: elect one lane",
                __builtin_popcount(repeated));
    return mask;
}

/* A copy signals an mbarrier in the CTA of its destination, or with .cta_group::2 in either CTA of that pair. */
static int barrier_is_near(AsyncOp *op, uint32_t barrier, const Cta *cta, int flags) {
    const uint32_t there = barrier >> SHARED_RANK_SHIFT, here = (uint32_t)cta->rank;
    if (there == here || (flags & COPY_CTA_GROUP_2 && (there ^ here) == 1)) return 1;
    stop(op->warp, op->ins, op->mask, "barrier", "the copy lands in CTA %u of the cluster and signals an mbarrier in CTA %u",
         here, there);
    return 0;
}

static int one_destination(AsyncOp *op, uint32_t address, uint32_t bytes, uint32_t alignment, uint32_t barrier, int flags,
                           int32_t tx_bytes, Place *place) {
    place->cta = shared_at(op->warp, op->ins, address, bytes, alignment, &place->offset);
    if (!place->cta) return 0;
    if (flags & COPY_OWN_CTA && place->cta != op->cta) {
        stop(op->warp, op->ins, op->mask, "out_of_bounds",
             "the destination is .shared::cta and lies in CTA %d of the cluster, the copy is issued by CTA %d",
             place->cta->rank, op->cta->rank);
        return 0;
    }
    if (!barrier_is_near(op, barrier, place->cta, flags)) return 0;
    if (flags & COPY_OWN_CTA && barrier >> SHARED_RANK_SHIFT != (uint32_t)op->cta->rank) {
        stop(op->warp, op->ins, op->mask, "barrier",
             "a copy to .shared::cta cannot signal the mbarrier of another CTA (%u): the form with .shared::cluster can",
             barrier >> SHARED_RANK_SHIFT);
        return 0;
    }
    return async_on_barrier(op, barrier, tx_bytes, 0);
}

int copy_destinations(AsyncOp *op, uint32_t address, uint32_t bytes, uint32_t alignment, uint32_t barrier, int flags,
                      uint32_t multicast_mask, int32_t tx_bytes, Place places[MAX_CTAS],
                      void (*touch)(AsyncOp *op, const Place *place)) {
    Warp *w = op->warp;
    const uint32_t low = (1u << SHARED_RANK_SHIFT) - 1;
    if (!(flags & COPY_MULTICAST)) {
        if (!one_destination(op, address, bytes, alignment, barrier, flags, tx_bytes, &places[0])) return 0;
        touch(op, &places[0]);
        return 1;
    }
    int n = 0;
    for (uint32_t rank = 0; rank < 16; rank++) {
        if (!(multicast_mask >> rank & 1)) continue;
        if (rank >= (uint32_t)w->machine->n_ctas) {
            stop(w, op->ins, op->mask, "out_of_bounds", "the multicast mask 0x%x names CTA %u of a cluster of %d",
                 multicast_mask, rank, w->machine->n_ctas);
            return 0;
        }
        Place *place = &places[n];
        place->cta = shared_at(w, op->ins, (address & low) | rank << SHARED_RANK_SHIFT, bytes, alignment, &place->offset);
        if (!place->cta) return 0;
        /* A pair's barrier lies in the CTA of the pair that the barrier's address names, even or odd. */
        const uint32_t owner = flags & COPY_CTA_GROUP_2 ? (rank & ~1u) | (barrier >> SHARED_RANK_SHIFT & 1) : rank;
        if (!async_on_barrier(op, (barrier & low) | owner << SHARED_RANK_SHIFT, tx_bytes, 0)) return 0;
        touch(op, place);
        n++;
    }
    if (n == 0) stop(w, op->ins, op->mask, "barrier", "the multicast mask is 0: nobody receives the copy");
    return n;
}

void take_global(const Range *range, uint64_t address, uint32_t bytes, uint8_t *data, uint8_t *bad) {
    memcpy(data, (const void *)(uintptr_t)address, bytes);
    if (!range->shadow) memset(bad, 0, bytes);
    else
        for (uint32_t b = 0; b < bytes; b++) bad[b] = range->shadow[address - range->low + b] & SHADOW_BAD;
}

/* As with ordinary stores: what was never written must not reach global memory. */
static void check_defined(const AsyncOp *op, uint64_t address, uint32_t bytes, const uint8_t *bad) {
    const uint8_t *first = memchr(bad, SHADOW_BAD, bytes);
    if (first)
        machine_finding(op->machine, op, "undefined_value",
                        "the copy stores bytes that were never written, or that depend on such, to global 0x%llx",
                        (unsigned long long)address + (unsigned long long)(first - bad));
}

static void sign(const AsyncOp *op, const Range *range, uint64_t address, uint32_t bytes) {
    if (!range->writer) return;
    const int32_t writer = 1 + (int32_t)(op->ins - op->machine->program->ins);
    for (uint32_t b = 0; b < bytes; b++) range->writer[address - range->low + b] = writer;
}

void give_global(const AsyncOp *op, const Range *range, uint64_t address, uint32_t bytes, const uint8_t *data,
                 const uint8_t *bad) {
    check_defined(op, address, bytes, bad);
    memcpy((void *)(uintptr_t)address, data, bytes);
    if (range->shadow) memcpy(range->shadow + (address - range->low), bad, bytes);
    sign(op, range, address, bytes);
}

void take_shared(const Cta *cta, uint32_t offset, uint32_t bytes, uint8_t *data, uint8_t *bad) {
    memcpy(data, cta->smem + offset, bytes);
    for (uint32_t b = 0; b < bytes; b++) bad[b] = cta->shadow[offset + b] & SHADOW_BAD;
}

void give_shared(AsyncOp *op, Cta *cta, uint32_t offset, uint32_t bytes, const uint8_t *data, const uint8_t *bad) {
    uint8_t seen = 0;
    memcpy(cta->smem + offset, data, bytes);
    for (uint32_t b = 0; b < bytes; b++) {
        seen |= cta->shadow[offset + b];
        cta->shadow[offset + b] = bad[b];
    }
    if (seen & SHADOW_BARRIER)
        machine_finding(op->machine, op, "barrier", "a copy overwrites a live mbarrier in [%u, %u) of CTA %d's shared memory",
                        offset, offset + bytes, cta->rank);
}

/* ---------------------------------------------------------------------------------------------------- reductions */

static float half_to_float(uint16_t value) { return _cvtsh_ss(value); }
static uint16_t float_to_half(float value) { return isnan(value) ? 0x7fff : _cvtss_sh(value, _MM_FROUND_TO_NEAREST_INT); }

static float bf16_to_float(uint16_t value) {
    const uint32_t wide = (uint32_t)value << 16;
    float out;
    memcpy(&out, &wide, 4);
    return out;
}

static uint16_t float_to_bf16(float value) {
    uint32_t raw;
    memcpy(&raw, &value, 4);
    if ((raw & 0x7fffffff) > 0x7f800000) return 0x7fff;
    return (uint16_t)((raw + 0x7fff + (raw >> 16 & 1)) >> 16);
}

static double combine_real(int op, double a, double b) {
    if (op == REDUCE_ADD) return a + b;
    if (isnan(a) || isnan(b)) return isnan(a) ? b : a;
    const int less = a == b ? signbit(a) && !signbit(b) : a < b;
    return (op == REDUCE_MIN) == less ? a : b;
}

static float flush_float(float value) { return fabsf(value) < 0x1p-126f ? copysignf(0.0f, value) : value; }

static uint64_t combine_bits(int op, int is_signed, uint32_t element_bytes, uint64_t a, uint64_t b) {
    const int shift = 64 - 8 * (int)element_bytes;
    const int64_t sa = (int64_t)(a << shift) >> shift, sb = (int64_t)(b << shift) >> shift;
    switch (op) {
    case REDUCE_ADD: return a + b;
    case REDUCE_MIN: return is_signed ? (sa < sb ? a : b) : a < b ? a : b;
    case REDUCE_MAX: return is_signed ? (sa > sb ? a : b) : a > b ? a : b;
    case REDUCE_INC: return a >= b ? 0 : a + 1;
    case REDUCE_DEC: return a == 0 || a > b ? b : a - 1;
    case REDUCE_AND: return a & b;
    case REDUCE_OR: return a | b;
    default: return a ^ b;
    }
}

static uint64_t combine(int op, int type, uint32_t element_bytes, uint64_t a, uint64_t b) {
    const int bitwise = op == REDUCE_AND || op == REDUCE_OR || op == REDUCE_XOR;
    if (!bitwise) switch (type) {
    case TMA_F16: return float_to_half((float)combine_real(op, half_to_float((uint16_t)a), half_to_float((uint16_t)b)));
    case TMA_BF16: return float_to_bf16((float)combine_real(op, bf16_to_float((uint16_t)a), bf16_to_float((uint16_t)b)));
    case TMA_F32:
    case TMA_F32_FTZ: {
        float x, y, z;
        const uint32_t xa = (uint32_t)a, xb = (uint32_t)b;
        memcpy(&x, &xa, 4);
        memcpy(&y, &xb, 4);
        z = type == TMA_F32_FTZ ? flush_float(flush_float(x) + flush_float(y)) : x + y;
        uint32_t out = 0x7fffffff;
        if (isnan(z)) return out;
        memcpy(&out, &z, 4);
        return out;
    }
    case TMA_F64: {
        double x, y, z;
        memcpy(&x, &a, 8);
        memcpy(&y, &b, 8);
        if (isnan(x) || isnan(y)) return isnan(y) ? b : a; /* not made quiet */
        z = x + y;
        uint64_t out;
        memcpy(&out, &z, 8);
        return out;
    }
    default: break;
    }
    return combine_bits(op, type == TMA_S32 || type == TMA_S64, element_bytes, a, b);
}

/* CTAs may run in several processes over the same memory, so each element is exchanged atomically. */
#define REDUCE_LOOP(bits)                                                                                              \
    do {                                                                                                               \
        uint##bits##_t *cell = (uint##bits##_t *)(void *)(to + at), mine, old = __atomic_load_n(cell, __ATOMIC_RELAXED); \
        memcpy(&mine, from + at, sizeof mine);                                                                         \
        while (!__atomic_compare_exchange_n(cell, &old, (uint##bits##_t)combine(op, type, element_bytes, old, mine), 1,\
                                            __ATOMIC_RELAXED, __ATOMIC_RELAXED)) {}                                    \
    } while (0)

void reduce_elements(int op, int type, uint32_t element_bytes, uint8_t *to, uint8_t *to_bad, const uint8_t *from,
                     const uint8_t *from_bad, uint32_t bytes) {
    for (uint32_t at = 0; at + element_bytes <= bytes; at += element_bytes) {
        switch (element_bytes) {
        case 1: REDUCE_LOOP(8); break;
        case 2: REDUCE_LOOP(16); break;
        case 4: REDUCE_LOOP(32); break;
        default: REDUCE_LOOP(64); break;
        }
        if (!to_bad) continue;
        uint8_t bad = 0;
        for (uint32_t b = 0; b < element_bytes; b++) bad |= (to_bad[at + b] & SHADOW_BAD) | from_bad[at + b];
        for (uint32_t b = 0; b < element_bytes; b++) to_bad[at + b] = bad;
    }
}

void reduce_global(const AsyncOp *op, const Range *range, uint64_t address, uint32_t bytes, int reduce, int type,
                   uint32_t element_bytes, const uint8_t *data, const uint8_t *bad) {
    check_defined(op, address, bytes, bad);
    reduce_elements(reduce, type, element_bytes, (uint8_t *)(uintptr_t)address,
                    range->shadow ? range->shadow + (address - range->low) : NULL, data, bad, bytes);
    sign(op, range, address, bytes);
}

int reduction_exists(int op, int type, int is_tensor) {
    const int is_word = type == TMA_U32 || type == TMA_S32, is_long = type == TMA_U64 || type == TMA_S64;
    const int is_half = type == TMA_F16 || type == TMA_BF16, is_float = type == TMA_F32 || type == TMA_F32_FTZ;
    switch (op) {
    case REDUCE_ADD: return is_word || type == TMA_U64 || is_half || is_float || (type == TMA_F64 && !is_tensor);
    case REDUCE_MIN:
    case REDUCE_MAX: return is_word || is_long || is_half;
    case REDUCE_INC:
    case REDUCE_DEC: return type == TMA_U32;
    default: return is_word || is_long;
    }
}
