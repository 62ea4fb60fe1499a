/* Tensor maps that a kernel changes: tensormap.replace, the copy of a map to global memory, and the fences of the
 * tensormap proxy.
 *
 * A copy reads its tensor map through a proxy of its own. After a change in global memory it needs a release (a fence, or
 * the one in tensormap.cp_fenceproxy) and then an acquire in the CTA that issues the copy; before a change, every copy that
 * works with the old map must have read it. Both are noted here, for maps in global memory only: which fences were executed
 * is taken in the order of this run, so a right kernel is never accused. */
#include "bulk.h"
#include "tma_tile.h"

enum { FENCE_OTHER, FENCE_ACQUIRE, FENCE_RELEASE };

typedef struct MapNote {
    uint64_t address;
    const Ins *changed_by;
    uint64_t too_early; /* 1 + the serial number of the last copy in flight that was reported */
    uint32_t acquired; /* CTAs that have, since the change was released */
    int is_released;
    struct MapNote *next;
} MapNote;

static MapNote *note_of(const Machine *m, uint64_t address) {
    for (MapNote *note = m->tensor_maps; note; note = note->next)
        if (note->address == address) return note;
    return NULL;
}

void tensor_map_changed(Warp *w, const Ins *i, uint64_t address, int is_released) {
    Machine *m = w->machine;
    MapNote *note = note_of(m, address);
    if (!note) {
        note = arena_new(m, sizeof *note);
        *note = (MapNote){.address = address, .next = m->tensor_maps};
        m->tensor_maps = note;
    }
    for (const AsyncOp *op = m->first; op; op = op->next)
        if (tile_uses_map(op, address) && note->too_early <= op->serial) {
            finding(w, i, 0, op->ins, "race", "the tensor map at 0x%llx is changed while a copy that uses it is in flight",
                    (unsigned long long)address);
            note->too_early = op->serial + 1;
            break;
        }
    note->changed_by = i;
    note->acquired = 0;
    note->is_released = is_released;
}

void tensor_map_used(Warp *w, const Ins *i, uint64_t address) {
    /* a check only: the read belongs to a proxy of its own, whose end other rules see to */
    Access access = access_of_warp(w, i, ACCESS_READ | ACCESS_UNRECORDED);
    touch_global(&access, address, 64);
    const MapNote *note = note_of(w->machine, address);
    if (!note) return;
    if (!note->is_released)
        finding(w, i, 0, note->changed_by, "missing_tensormap_fence",
                "the tensor map at 0x%llx was changed and not released: fence.proxy.tensormap::generic.release is missing",
                (unsigned long long)address);
    else if (!(note->acquired >> w->cta->rank & 1))
        finding(w, i, 0, note->changed_by, "missing_tensormap_fence",
                "the tensor map at 0x%llx was changed and CTA %d has not executed fence.proxy.tensormap::generic.acquire since",
                (unsigned long long)address, w->cta->rank);
}

/* Bits of the map that a field covers: where replacing it gives the same on any background. */
static void covered_bits(uint32_t field, uint32_t ordinal, uint64_t value, uint8_t covered[TMA_DESCRIPTOR_BYTES]) {
    uint8_t zeros[TMA_DESCRIPTOR_BYTES], ones[TMA_DESCRIPTOR_BYTES];
    memset(zeros, 0, sizeof zeros);
    memset(ones, 0xff, sizeof ones);
    tma_replace(zeros, field, ordinal, value);
    tma_replace(ones, field, ordinal, value);
    for (int b = 0; b < TMA_DESCRIPTOR_BYTES; b++) covered[b] = (uint8_t)~(zeros[b] ^ ones[b]);
}

/* Where a tensor map lies: bytes and shadow (NULL: all defined). False after a finding. */
static int map_at(Warp *w, const Ins *i, uint64_t address, int in_shared, uint8_t **bytes, uint8_t **shadow) {
    if (in_shared) {
        uint32_t offset;
        Cta *cta = shared_at(w, i, (uint32_t)address, TMA_DESCRIPTOR_BYTES, 64, &offset);
        if (!cta) return 0;
        *bytes = cta->smem + offset;
        *shadow = cta->shadow + offset;
        Access access = access_of_warp(w, i, ACCESS_WRITE);
        touch_shared(&access, cta, offset, 64);
        return 1;
    }
    Range *range = global_at(w, i, address, TMA_DESCRIPTOR_BYTES, 64, 1);
    if (!range) return 0;
    *bytes = (uint8_t *)(uintptr_t)address;
    *shadow = range->shadow ? range->shadow + (address - range->low) : NULL;
    Access access = access_of_warp(w, i, ACCESS_WRITE);
    touch_global(&access, address, 64);
    if (range->writer)
        for (int b = 0; b < 64; b++) range->writer[address - range->low + (uint64_t)b] = 1 + (int32_t)(i - w->program->ins);
    return 1;
}

/* Operands: address (64, or 32 in shared memory), value (64 for address and strides).
 * Immediates: field (TmaField), ordinal, byte offset, bits of the value, 1 = in shared memory. */
HANDLER(tensormap_replace) {
    const uint32_t field = (uint32_t)i->imm[0], ordinal = (uint32_t)i->imm[1];
    const int in_shared = i->imm[4], is_long = i->imm[3] == 64;
    if (copy_operands_defined(w, i, mask, (in_shared ? 0 : 1) | (is_long ? 2 : 0))) return EMU_STOP;
    EACH_LANE(mask, l) {
        const uint64_t address = (in_shared ? R(0)[l] : get64(w, i->s[0], l)) + (uint64_t)(int64_t)i->imm[2];
        const uint64_t value = is_long ? get64(w, i->s[1], l) : R(1)[l];
        uint8_t *bytes, *shadow, covered[TMA_DESCRIPTOR_BYTES];
        if (!map_at(w, i, address, in_shared, &bytes, &shadow)) return EMU_STOP;
        if (!tma_replace(bytes, field, ordinal, value))
            return stop(w, i, 1u << l, "tensor_map", "tensormap.replace: the field (ordinal %u) does not take the value 0x%llx",
                        ordinal, (unsigned long long)value);
        covered_bits(field, ordinal, value, covered);
        for (int b = 0; shadow && b < TMA_DESCRIPTOR_BYTES; b++)
            if (covered[b] == 0xff) shadow[b] &= (uint8_t)~SHADOW_BAD;
        if (!in_shared) tensor_map_changed(w, i, address, 0);
    }
    return EMU_YIELD;
}

/* Operands: destination (64), source in shared memory. Immediates: byte offsets of both, bytes (128). The lanes of the warp
 * do it together. */
HANDLER(tensormap_cp_fenceproxy) {
    const uint32_t l = first_lane(mask), bytes = (uint32_t)i->imm[2];
    if (copy_operands_defined(w, i, mask, 1)) return EMU_STOP;
    const uint64_t to = get64(w, i->s[0], l) + (uint64_t)(int64_t)i->imm[0];
    uint32_t offset;
    if (bytes != TMA_DESCRIPTOR_BYTES) return stop(w, i, mask, "tensor_map", "a tensor map has 128 bytes, not %u", bytes);
    Cta *cta = shared_at(w, i, R(1)[l] + (uint32_t)i->imm[1], bytes, 64, &offset);
    if (!cta) return EMU_STOP;
    Range *range = global_at(w, i, to, bytes, 64, 1);
    if (!range) return EMU_STOP;
    Access access = access_of_warp(w, i, ACCESS_READ);
    touch_shared(&access, cta, offset, bytes);
    access.flags = ACCESS_WRITE;
    touch_global(&access, to, bytes);
    memcpy((void *)(uintptr_t)to, cta->smem + offset, bytes);
    for (uint32_t b = 0; b < bytes; b++) {
        if (range->shadow) range->shadow[to - range->low + b] = cta->shadow[offset + b] & SHADOW_BAD;
        if (range->writer) range->writer[to - range->low + b] = 1 + (int32_t)(i - w->program->ins);
    }
    tensor_map_changed(w, i, to, 1);
    return EMU_YIELD;
}

/* Operand: address of the tensor map (64) of an acquire. Immediates: 0 another proxy, 1 acquire, 2 release; byte offset. */
HANDLER(tensormap_fence) {
    Machine *m = w->machine;
    if (i->imm[0] == FENCE_RELEASE)
        for (MapNote *note = m->tensor_maps; note; note = note->next) note->is_released = 1;
    if (i->imm[0] != FENCE_ACQUIRE) return EMU_NEXT;
    if (copy_operands_defined(w, i, mask, 1)) return EMU_STOP;
    EACH_LANE(mask, l) {
        MapNote *note = note_of(m, get64(w, i->s[0], l) + (uint64_t)(int64_t)i->imm[1]);
        if (note && note->is_released) note->acquired |= 1u << w->cta->rank;
    }
    return EMU_NEXT;
}
