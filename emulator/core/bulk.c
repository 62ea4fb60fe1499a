/* Bulk copies of plain bytes: global to shared memory (with multicast), shared to shared memory of the cluster, shared to
 * global memory, and their reductions. Addresses and sizes are multiples of 16 bytes. */
#include "bulk.h"
#include "tma_tile.h"

#define GRAIN 16u

typedef struct {
    Range *range;            /* of the side in global memory */
    uint64_t address;        /* there */
    Place source;            /* in shared memory, where the copy takes from it */
    uint32_t bytes, element_bytes;
    int32_t reduce, type;
    int32_t n_places;
    Place places[MAX_CTAS];
    uint8_t data[];          /* the bytes, then their poison */
} Bulk;

static Bulk *bulk_of(AsyncOp *op) { return (Bulk *)(void *)op->payload; }

static AsyncOp *new_bulk(Warp *w, const Ins *i, uint32_t lane, Engine engine, int class, uint32_t bytes) {
    if (bytes % GRAIN) {
        stop(w, i, 1u << lane, "misaligned", "the copy's size, %u bytes, is no multiple of 16", bytes);
        return NULL;
    }
    AsyncOp *op = async_new(w, i, 1u << lane, engine, class, sizeof(Bulk) + 2 * (size_t)bytes);
    bulk_of(op)->bytes = bytes;
    return op;
}

static void touch_place(AsyncOp *op, const Place *place) {
    const Bulk *bulk = bulk_of(op);
    async_touch_shared(op, place->cta, place->offset, bulk->bytes, bulk->reduce ? ACCESS_WRITE | ACCESS_ATOMIC : ACCESS_WRITE);
}

static void read_global(AsyncOp *op) {
    Bulk *bulk = bulk_of(op);
    take_global(bulk->range, bulk->address, bulk->bytes, bulk->data, bulk->data + bulk->bytes);
}

static void read_shared(AsyncOp *op) {
    Bulk *bulk = bulk_of(op);
    take_shared(bulk->source.cta, bulk->source.offset, bulk->bytes, bulk->data, bulk->data + bulk->bytes);
}

static void write_places(AsyncOp *op) {
    Bulk *bulk = bulk_of(op);
    for (int p = 0; p < bulk->n_places; p++) {
        Cta *cta = bulk->places[p].cta;
        const uint32_t offset = bulk->places[p].offset;
        const uint8_t *bad = bulk->data + bulk->bytes;
        if (bulk->reduce)
            reduce_elements(bulk->reduce, bulk->type, bulk->element_bytes, cta->smem + offset, cta->shadow + offset,
                            bulk->data, bad, bulk->bytes);
        else give_shared(op, cta, offset, bulk->bytes, bulk->data, bad);
    }
}

static void write_global(AsyncOp *op) {
    Bulk *bulk = bulk_of(op);
    const uint8_t *bad = bulk->data + bulk->bytes;
    if (bulk->reduce)
        reduce_global(op, bulk->range, bulk->address, bulk->bytes, bulk->reduce, bulk->type, bulk->element_bytes, bulk->data,
                      bad);
    else give_global(op, bulk->range, bulk->address, bulk->bytes, bulk->data, bad);
}

/* The instruction's element types go on behind those of tensor maps with plain bits. */
static void set_reduction(Bulk *bulk, int reduce, int type) {
    enum { BITS_32 = TMA_BF16 + 1, BITS_64 };
    static const uint8_t sizes[] = {1, 2, 4, 4, 8, 8, 2, 4, 4, 8, 2, 4, 8};
    bulk->reduce = reduce;
    bulk->element_bytes = sizes[type];
    bulk->type = type == BITS_32 ? TMA_U32 : type == BITS_64 ? TMA_U64 : type;
}

/* Operands: destination, source (64), size, barrier and the multicast mask (or -1).
 * Immediates: flags, byte offsets of destination, source, barrier. */
HANDLER(bulk_load) {
    if (copy_operands_defined(w, i, mask, 2)) return EMU_STOP;
    copy_lanes(w, i, mask, 2, 0);
    EACH_LANE(mask, l) {
        const uint32_t bytes = R(2)[l];
        if (!bytes) continue;
        AsyncOp *op = new_bulk(w, i, l, ENGINE_TMA_LOAD, -1, bytes);
        if (!op) return EMU_STOP;
        Bulk *bulk = bulk_of(op);
        bulk->address = get64(w, i->s[1], l) + (uint64_t)(int64_t)i->imm[2];
        bulk->range = global_at(w, i, bulk->address, bytes, GRAIN, 0);
        if (!bulk->range) return abandon(op);
        bulk->n_places =
            copy_destinations(op, R(0)[l] + (uint32_t)i->imm[1], bytes, GRAIN, R(3)[l] + (uint32_t)i->imm[3], i->imm[0],
                              i->imm[0] & COPY_MULTICAST ? R(4)[l] & 0xffff : 0, (int32_t)bytes, bulk->places, touch_place);
        if (!bulk->n_places) return abandon(op);
        async_touch_global(op, bulk->address, bytes, ACCESS_READ);
        op->read = read_global;
        op->write = write_places;
        async_issue(op);
    }
    return EMU_YIELD;
}

/* Operands: destination, source, size, barrier (in the destination's CTA), -1.
 * Immediates: flags, byte offsets of destination, source, barrier, reduction (ReduceOp), element type. */
HANDLER(bulk_shared) {
    if (copy_operands_defined(w, i, mask, 0)) return EMU_STOP;
    copy_lanes(w, i, mask, 0, 0);
    EACH_LANE(mask, l) {
        const uint32_t bytes = R(2)[l];
        if (!bytes) continue;
        AsyncOp *op = new_bulk(w, i, l, ENGINE_TMA_LOAD, -1, bytes);
        if (!op) return EMU_STOP;
        Bulk *bulk = bulk_of(op);
        set_reduction(bulk, i->imm[4], i->imm[5]);
        bulk->source.cta = shared_at(w, i, R(1)[l] + (uint32_t)i->imm[2], bytes, GRAIN, &bulk->source.offset);
        if (!bulk->source.cta) return abandon(op);
        if (bulk->source.cta != w->cta) {
            stop(w, i, 1u << l, "out_of_bounds", "the source is .shared::cta and lies in CTA %d of the cluster",
                 bulk->source.cta->rank);
            return abandon(op);
        }
        bulk->n_places = copy_destinations(op, R(0)[l] + (uint32_t)i->imm[1], bytes, GRAIN, R(3)[l] + (uint32_t)i->imm[3], 0,
                                           0, (int32_t)bytes, bulk->places, touch_place);
        if (!bulk->n_places) return abandon(op);
        if (bulk->places[0].cta == w->cta)
            finding(w, i, 1u << l, NULL, "bulk_copy",
                    "a bulk copy from shared memory to shared::cluster must end in another CTA; this one ends in its own");
        async_touch_shared(op, bulk->source.cta, bulk->source.offset, bytes, ACCESS_READ);
        op->read = read_shared;
        op->write = write_places;
        async_issue(op);
    }
    return EMU_YIELD;
}

/* Operands: destination (64), source, size.
 * Immediates: 0, byte offsets of destination and source, reduction (ReduceOp), element type. */
HANDLER(bulk_store) {
    if (copy_operands_defined(w, i, mask, 1)) return EMU_STOP;
    mask = copy_lanes(w, i, mask, 1, !i->imm[3]);
    EACH_LANE(mask, l) {
        const uint32_t bytes = R(2)[l];
        if (!bytes) continue;
        AsyncOp *op = new_bulk(w, i, l, ENGINE_TMA_STORE, CLASS_BULK_WRITE, bytes);
        if (!op) return EMU_STOP;
        Bulk *bulk = bulk_of(op);
        set_reduction(bulk, i->imm[3], i->imm[4]);
        if (bulk->reduce && !reduction_exists(bulk->reduce, bulk->type, 0)) {
            stop(w, i, 1u << l, "bulk_copy", "this reduction does not exist for this element type");
            return abandon(op);
        }
        bulk->address = get64(w, i->s[0], l) + (uint64_t)(int64_t)i->imm[1];
        bulk->range = global_at(w, i, bulk->address, bytes, GRAIN, 1);
        if (!bulk->range) return abandon(op);
        bulk->source.cta = shared_at(w, i, R(1)[l] + (uint32_t)i->imm[2], bytes, GRAIN, &bulk->source.offset);
        if (!bulk->source.cta) return abandon(op);
        async_touch_shared(op, bulk->source.cta, bulk->source.offset, bytes, ACCESS_READ);
        async_touch_global(op, bulk->address, bytes, bulk->reduce ? ACCESS_WRITE | ACCESS_ATOMIC : ACCESS_WRITE);
        op->read = read_shared;
        op->write = write_global;
        async_issue(op);
    }
    return EMU_YIELD;
}

/* Operands: source (64), size. Immediate: byte offset. A hint: only its rules are checked. */
HANDLER(bulk_prefetch) {
    if (copy_operands_defined(w, i, mask, 1)) return EMU_STOP;
    EACH_LANE(mask, l) {
        const uint64_t address = get64(w, i->s[0], l) + (uint64_t)(int64_t)i->imm[0];
        if (R(1)[l] % GRAIN || address % GRAIN)
            finding(w, i, 1u << l, NULL, "misaligned", "a bulk prefetch of %u bytes at 0x%llx: both are multiples of 16",
                    R(1)[l], (unsigned long long)address);
    }
    return EMU_NEXT;
}
