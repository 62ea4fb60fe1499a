/* TMA tiles: loads (with multicast and gather4), stores (with scatter4), reductions and prefetches.
 *
 * Operands are captured when the instruction is issued; bytes are taken from the source and land at the destination
 * when the machine's policy lets them. The descriptor is the real one that host code or the kernel wrote. */
#include "bulk.h"
#include "tma_tile.h"

typedef struct {
    TmaDescriptor descriptor;
    int32_t coordinates[TMA_MAX_RANK];
    Range *range;            /* of the tensor; NULL where the whole box lies outside of it */
    int32_t flags, reduce;
    int32_t n_places;
    uint32_t bytes;          /* of data, without a padded type's padding */
    Place places[MAX_CTAS];
    uint8_t data[];          /* the bytes, then their poison */
} Tile;

static Tile *tile_of(AsyncOp *op) { return (Tile *)(void *)op->payload; }

static bool walk(const Tile *tile, uint32_t shared, TmaVisit visit, void *context) {
    if (tile->flags & COPY_ROWS)
        return tma_walk_rows(&tile->descriptor, tile->coordinates[0], tile->coordinates + 1, shared, visit, context);
    return tma_walk(&tile->descriptor, tile->coordinates, shared, visit, context);
}

/* ------------------------------------------------------------------------------------------ what happens at issue */

/* Reads the tensor map that `address` points to. False after a finding. */
static bool read_descriptor(Warp *w, const Ins *i, uint32_t mask, uint64_t address, TmaDescriptor *out) {
    const uint8_t *bytes, *shadow = NULL;
    if (address < SHARED_END) {
        uint32_t offset;
        Cta *cta = shared_at(w, i, address, TMA_DESCRIPTOR_BYTES, 64, &offset);
        if (!cta) return false;
        bytes = cta->smem + offset;
        shadow = cta->shadow + offset;
    } else {
        const Range *range = global_at(w, i, address, TMA_DESCRIPTOR_BYTES, 64, 0);
        if (!range) return false;
        bytes = (const uint8_t *)(uintptr_t)address;
        if (range->shadow) shadow = range->shadow + (address - range->low);
    }
    for (int b = 0; shadow && b < 64; b++)
        if (shadow[b] & SHADOW_BAD) {
            stop(w, i, mask, "undefined_value", "byte %d of the tensor map was never written", b);
            return false;
        }
    const char *reason = tma_decode(bytes, out);
    if (!reason) reason = tma_check(out);
    if (reason) stop(w, i, mask, "tensor_map", "%s", reason);
    return reason == NULL;
}

typedef struct { uint64_t low, high; } Extent;

static bool grow_extent(void *context, const TmaSegment *segment) {
    Extent *extent = context;
    if (!segment->inside) return true;
    if (segment->global_address < extent->low) extent->low = segment->global_address;
    if (segment->global_address + segment->inside > extent->high) extent->high = segment->global_address + segment->inside;
    return true;
}

/* Neighbouring segments of a row are one access. */
typedef struct { AsyncOp *op; uint64_t from, to; int flags; } Touches;

static void touch_run(Touches *t) {
    if (t->to > t->from) async_touch_global(t->op, t->from, (uint32_t)(t->to - t->from), t->flags);
}

static bool gather_touch(void *context, const TmaSegment *segment) {
    Touches *t = context;
    if (!segment->inside) return true;
    if (segment->global_address != t->to) {
        touch_run(t);
        t->from = segment->global_address;
    }
    t->to = segment->global_address + segment->inside;
    return true;
}

/* Finds the tensor's memory. False after a finding; a box that lies wholly outside of the tensor needs none. */
static bool find_range(AsyncOp *op, Tile *tile, int is_write) {
    Extent extent = {UINT64_MAX, 0};
    walk(tile, 0, grow_extent, &extent);
    if (extent.high == 0) return true;
    tile->range = global_at(op->warp, op->ins, extent.low, (uint32_t)(extent.high - extent.low), 1, is_write);
    return tile->range != NULL;
}

static void touch_tensor(AsyncOp *op, const Tile *tile, int flags) {
    Touches touches = {op, 0, 0, flags};
    walk(tile, 0, gather_touch, &touches);
    touch_run(&touches);
}

static uint32_t shared_bytes(const TmaDescriptor *d, uint32_t data_bytes) {
    return data_bytes / d->group_global_bytes * d->group_shared_bytes;
}

/* A tile of whole swizzle atoms that does not start on one lies differently from what generic reads and MMAs expect. */
static bool check_swizzle(Warp *w, const Ins *i, uint32_t mask, const Tile *tile, uint32_t address) {
    const uint32_t atom = tma_shared_alignment(&tile->descriptor);
    if (tile->flags & COPY_ROWS || address % atom == 0 || shared_bytes(&tile->descriptor, tile->bytes) % atom) return true;
    stop(w, i, mask, "misaligned", "the tile's shared address 0x%x is not a multiple of %u, which its swizzle asks for",
         address, atom);
    return false;
}

static AsyncOp *new_tile(Warp *w, const Ins *i, uint32_t lane, Engine engine, int class, uint64_t descriptor_address,
                         int first_coordinate) {
    TmaDescriptor descriptor;
    const uint32_t mask = 1u << lane;
    const int32_t rank = i->imm[0], flags = i->imm[1];
    if (!read_descriptor(w, i, mask, descriptor_address, &descriptor)) return NULL;
    const int32_t needed = flags & COPY_ROWS ? 2 : rank;
    if ((int32_t)descriptor.rank != needed) {
        stop(w, i, mask, "tensor_map", "a %dd copy uses a tensor map of rank %u", needed, descriptor.rank);
        return NULL;
    }
    if (flags & COPY_ROWS && descriptor.box[1] != 1) {
        stop(w, i, mask, "tensor_map", "gather4 and scatter4 need a box of one row, this one has %u", descriptor.box[1]);
        return NULL;
    }
    const int n_coordinates = flags & COPY_ROWS ? 1 + TMA_GATHER_ROWS : rank;
    const uint32_t bytes = (uint32_t)tma_box_bytes(&descriptor, flags & COPY_ROWS ? TMA_GATHER_ROWS : 0);
    AsyncOp *op = async_new(w, i, mask, engine, class, sizeof(Tile) + 2 * (size_t)bytes);
    Tile *tile = tile_of(op);
    tile->descriptor = descriptor;
    tile->flags = flags;
    tile->bytes = bytes;
    for (int c = 0; c < n_coordinates; c++) tile->coordinates[c] = (int32_t)R(first_coordinate + c)[lane];
    return op;
}

static int undefined(Warp *w, const Ins *i, uint32_t mask) {
    for (int n = 0; n < i->n_slots; n++)
        if (BAD(n) & mask)
            return stop(w, i, BAD(n) & mask, "undefined_value", "operand %d of the copy was never written", n);
    return EMU_NEXT;
}

/* -------------------------------------------------------------------------------------------------- data movement */

typedef struct { AsyncOp *op; Tile *tile; Place place; uint32_t at; } Move;

static bool take_tensor(void *context, const TmaSegment *segment) {
    Move *m = context;
    uint8_t *data = m->tile->data + m->at, *bad = m->tile->data + m->tile->bytes + m->at;
    if (segment->inside) take_global(m->tile->range, segment->global_address, segment->inside, data, bad);
    if (segment->inside < segment->bytes) {
        tma_fill(&m->tile->descriptor, data + segment->inside, segment->bytes - segment->inside);
        memset(bad + segment->inside, 0, segment->bytes - segment->inside);
    }
    m->at += segment->bytes;
    return true;
}

static bool place_tile(void *context, const TmaSegment *segment) {
    Move *m = context;
    const uint32_t offset = segment->shared_address - shared_address(m->place.cta, 0);
    if (offset > m->place.cta->smem_bytes || segment->bytes > m->place.cta->smem_bytes - offset) {
        machine_finding(m->op->machine, m->op, "out_of_bounds", "the swizzled tile leaves shared memory at offset %u", offset);
        return false;
    }
    give_shared(m->op, m->place.cta, offset, segment->bytes, m->tile->data + m->at,
                m->tile->data + m->tile->bytes + m->at);
    m->at += segment->bytes;
    return true;
}

static bool take_tile(void *context, const TmaSegment *segment) {
    Move *m = context;
    const uint32_t offset = segment->shared_address - shared_address(m->place.cta, 0);
    if (offset > m->place.cta->smem_bytes || segment->bytes > m->place.cta->smem_bytes - offset) {
        machine_finding(m->op->machine, m->op, "out_of_bounds", "the swizzled tile leaves shared memory at offset %u", offset);
        return false;
    }
    take_shared(m->place.cta, offset, segment->bytes, m->tile->data + m->at, m->tile->data + m->tile->bytes + m->at);
    m->at += segment->bytes;
    return true;
}

static bool place_tensor(void *context, const TmaSegment *segment) {
    Move *m = context;
    const uint8_t *data = m->tile->data + m->at, *bad = m->tile->data + m->tile->bytes + m->at;
    Range *range = m->tile->range;
    const uint64_t to = segment->global_address;
    m->at += segment->bytes;
    if (!segment->inside) return true;
    if (m->tile->reduce)
        reduce_elements(m->tile->reduce, (int)m->tile->descriptor.type, m->tile->descriptor.group_global_bytes,
                        (uint8_t *)(uintptr_t)to, range->shadow ? range->shadow + (to - range->low) : NULL, data, bad,
                        segment->inside);
    else give_global(range, to, segment->inside, data, bad);
    return true;
}

static void load_read(AsyncOp *op) {
    Tile *tile = tile_of(op);
    Move move = {op, tile, tile->places[0], 0};
    walk(tile, 0, take_tensor, &move);
    if (tile->descriptor.round_to_tf32) tma_round_to_tf32(tile->data, tile->bytes);
}

static void load_write(AsyncOp *op) {
    Tile *tile = tile_of(op);
    for (int p = 0; p < tile->n_places; p++) {
        Move move = {op, tile, tile->places[p], 0};
        walk(tile, shared_address(move.place.cta, move.place.offset), place_tile, &move);
    }
}

static void store_read(AsyncOp *op) {
    Tile *tile = tile_of(op);
    Move move = {op, tile, tile->places[0], 0};
    walk(tile, shared_address(move.place.cta, move.place.offset), take_tile, &move);
}

static void store_write(AsyncOp *op) {
    Tile *tile = tile_of(op);
    Move move = {op, tile, tile->places[0], 0};
    walk(tile, shared_address(move.place.cta, move.place.offset), place_tensor, &move);
}

/* ------------------------------------------------------------------------------------------------------- handlers */

/* Operands: destination, tensor map (64), coordinates, barrier and, with COPY_MULTICAST, the mask.
 * Immediates: coordinates (rank; 2 with COPY_ROWS), flags, byte offsets of destination, tensor map, barrier. */
HANDLER(tma_load) {
    const int n = i->imm[1] & COPY_ROWS ? 1 + TMA_GATHER_ROWS : i->imm[0];
    if (undefined(w, i, mask)) return EMU_STOP;
    EACH_LANE(mask, l) {
        AsyncOp *op = new_tile(w, i, l, ENGINE_TMA_LOAD, -1, get64(w, i->s[1], l) + (uint64_t)(int64_t)i->imm[3], 2);
        if (!op) return EMU_STOP;
        Tile *tile = tile_of(op);
        const uint32_t to = R(0)[l] + (uint32_t)i->imm[2], size = shared_bytes(&tile->descriptor, tile->bytes);
        if (!find_range(op, tile, 0) || !check_swizzle(w, i, 1u << l, tile, to)) return EMU_STOP;
        tile->n_places = copy_destinations(op, to, size, 128, R(2 + n)[l] + (uint32_t)i->imm[4], tile->flags,
                                           tile->flags & COPY_MULTICAST ? R(3 + n)[l] & 0xffff : 0,
                                           (int32_t)tile->bytes, tile->places);
        if (!tile->n_places) return EMU_STOP;
        touch_tensor(op, tile, 0);
        op->read = load_read;
        op->write = load_write;
        async_issue(op);
    }
    return EMU_YIELD;
}

/* Operands: tensor map (64), coordinates, source. Immediates: as tma_load, the offsets of tensor map [2] and source
 * [3], and the reduction [4] (ReduceOp). */
HANDLER(tma_store) {
    const int n = i->imm[1] & COPY_ROWS ? 1 + TMA_GATHER_ROWS : i->imm[0];
    if (undefined(w, i, mask)) return EMU_STOP;
    EACH_LANE(mask, l) {
        AsyncOp *op = new_tile(w, i, l, ENGINE_TMA_STORE, CLASS_BULK_WRITE,
                               get64(w, i->s[0], l) + (uint64_t)(int64_t)i->imm[2], 1);
        if (!op) return EMU_STOP;
        Tile *tile = tile_of(op);
        const uint32_t from = R(1 + n)[l] + (uint32_t)i->imm[3], size = shared_bytes(&tile->descriptor, tile->bytes);
        tile->reduce = i->imm[4];
        if (tile->reduce && tile->descriptor.group_elements != 1)
            return stop(w, i, 1u << l, "tensor_map", "a packed element type cannot be reduced");
        if (!find_range(op, tile, 1) || !check_swizzle(w, i, 1u << l, tile, from)) return EMU_STOP;
        tile->n_places = 1;
        if (!(tile->places[0].cta = shared_at(w, i, from, size, 128, &tile->places[0].offset))) return EMU_STOP;
        async_touch_shared(op, tile->places[0].cta, tile->places[0].offset, size, 0);
        touch_tensor(op, tile, tile->reduce ? ACCESS_WRITE | ACCESS_ATOMIC : ACCESS_WRITE);
        op->read = store_read;
        op->write = store_write;
        async_issue(op);
    }
    return EMU_YIELD;
}

/* Operands: tensor map (64) and coordinates; only what is named is checked. Immediates: rank or 0, flags, offset. */
HANDLER(tma_prefetch) {
    TmaDescriptor descriptor;
    EACH_LANE(mask, l)
        if (!read_descriptor(w, i, 1u << l, get64(w, i->s[0], l) + (uint64_t)(int64_t)i->imm[2], &descriptor))
            return EMU_STOP;
    return EMU_NEXT;
}
