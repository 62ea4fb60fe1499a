/* TMA tiles: loads (with multicast and gather4), stores (with scatter4), reductions and prefetches.
 *
 * Operands and the tensor map are captured when the instruction is issued; bytes are taken from the source and land at
 * the destination when the machine's policy lets them. The tensor map is the one that host code or the kernel wrote. */
#include "bulk.h"
#include "tma_tile.h"

#define ALIGNMENT 128u /* of a tile in shared memory */

typedef struct {
    TmaDescriptor descriptor;
    uint64_t map;            /* address of the tensor map */
    int32_t coordinates[TMA_MAX_RANK];
    Range *range;            /* of the tensor; NULL where the whole box lies outside of it */
    int32_t flags, reduce;
    int32_t n_places;
    uint32_t bytes;          /* of data, without a padded type's padding */
    Place places[MAX_CTAS];
    uint8_t data[];          /* the bytes, then their poison */
} Tile;

static Tile *tile_of(AsyncOp *op) { return (Tile *)(void *)op->payload; }

static bool walk(const Tile *tile, TmaVisit visit, void *context) {
    if (tile->flags & COPY_ROWS)
        return tma_walk_rows(&tile->descriptor, tile->coordinates[0], tile->coordinates + 1, visit, context);
    return tma_walk(&tile->descriptor, tile->coordinates, visit, context);
}

/* ------------------------------------------------------------------------------------------ what happens at issue */

/* Reads the tensor map that `address` points to. The range that holds it, or NULL after a finding. */
static const Range *read_descriptor(Warp *w, const Ins *i, uint32_t mask, uint64_t address, TmaDescriptor *out) {
    if (address < SHARED_END) {
        stop(w, i, mask, "tensor_map", "a copy takes its tensor map from parameters, constants or global memory, "
                                       "this one (0x%llx) lies in shared memory", (unsigned long long)address);
        return NULL;
    }
    const Range *range = global_at(w, i, address, TMA_DESCRIPTOR_BYTES, 64, 0);
    if (!range) return NULL;
    for (int b = 0; range->shadow && b < 64; b++)
        if (range->shadow[address - range->low + (uint64_t)b] & SHADOW_BAD) {
            stop(w, i, mask, "undefined_value", "byte %d of the tensor map was never written", b);
            return NULL;
        }
    const char *reason = tma_decode((const uint8_t *)(uintptr_t)address, out);
    if (!reason) reason = tma_check(out);
    if (reason) stop(w, i, mask, "tensor_map", "%s", reason);
    return reason ? NULL : range;
}

/* Bytes of global memory that a segment reads or writes: stores and reductions work on whole units of 16 bytes, also where
 * a row of the tensor ends within one. */
static uint32_t covered(const TmaSegment *segment, int is_write) { return is_write ? segment->units : segment->inside; }

typedef struct { uint64_t low, high; int is_write; } Extent;

static bool grow_extent(void *context, const TmaSegment *segment) {
    Extent *extent = context;
    const uint32_t bytes = covered(segment, extent->is_write);
    if (!bytes) return true;
    if (segment->global_address < extent->low) extent->low = segment->global_address;
    if (segment->global_address + bytes > extent->high) extent->high = segment->global_address + bytes;
    return true;
}

/* Finds the tensor's memory. False after a finding; a box that lies wholly outside of the tensor needs none. */
static bool find_range(AsyncOp *op, Tile *tile, int is_write) {
    Extent extent = {UINT64_MAX, 0, is_write};
    walk(tile, grow_extent, &extent);
    if (extent.high == 0) return true;
    const uint64_t span = extent.high - extent.low;
    if (span < UINT32_MAX) {
        tile->range = global_at(op->warp, op->ins, extent.low, (uint32_t)span, 1, is_write);
        return tile->range != NULL;
    }
    tile->range = global_at(op->warp, op->ins, extent.low, 1, 1, is_write);
    if (!tile->range) return false;
    return global_at(op->warp, op->ins, extent.high - 1, 1, 1, is_write) == tile->range;
}

/* Neighbouring rows are one access. */
typedef struct { AsyncOp *op; uint64_t from, to; int flags; } Touches;

static void touch_run(Touches *t) {
    if (t->to > t->from) async_touch_global(t->op, t->from, (uint32_t)(t->to - t->from), t->flags);
}

static bool gather_touch(void *context, const TmaSegment *segment) {
    Touches *t = context;
    const uint32_t bytes = covered(segment, t->flags & ACCESS_WRITE);
    if (!bytes) return true;
    if (segment->global_address != t->to) {
        touch_run(t);
        t->from = segment->global_address;
    }
    t->to = segment->global_address + bytes;
    return true;
}

static void touch_tensor(AsyncOp *op, const Tile *tile, int flags) {
    Touches touches = {op, 0, 0, flags};
    walk(tile, gather_touch, &touches);
    touch_run(&touches);
}

/* The bytes of shared memory that a tile's data takes. A swizzle permutes within lines of 128 bytes, so whole lines are
 * one access; padding and parts of lines are not touched. */
static void touch_tile(AsyncOp *op, const Place *place, int flags) {
    const Tile *tile = tile_of(op);
    const TmaDescriptor *d = &tile->descriptor;
    const uint32_t address = shared_address(place->cta, place->offset);
    const int whole_lines = d->swizzle == TMA_SWIZZLE_NONE || (tile->bytes % 128 == 0 && address % 128 == 0);
    if (tma_is_dense(d) && whole_lines) {
        async_touch_shared(op, place->cta, place->offset, tile->bytes, flags);
        return;
    }
    for (uint32_t at = 0, run; at < tile->bytes; at += run) {
        const uint32_t here = tma_shared_address(d, address, at, tile->bytes - at, &run);
        const uint32_t offset = here - shared_address(place->cta, 0);
        if (offset < place->cta->smem_bytes && run <= place->cta->smem_bytes - offset)
            async_touch_shared(op, place->cta, offset, run, flags);
    }
}

static void touch_destination(AsyncOp *op, const Place *place) { touch_tile(op, place, ACCESS_WRITE); }

/* The bit promises that 128 KiB behind the tensor's address can be fetched; a kernel that replaces dimensions or strides
 * of a tensor map has to take the promise back. */
static void check_fetch_promise(Warp *w, const Ins *i, uint32_t mask, const TmaDescriptor *d) {
    if (!d->spans_128kib) return;
    const Range *range = global_at(w, i, d->address, 16, 16, 0);
    if (range && range->high - d->address < 65536)
        finding(w, i, mask, NULL, "tensor_map",
                "the tensor map promises 128 KiB behind the tensor's address, %llu bytes of them exist",
                (unsigned long long)(range->high - d->address));
}

static AsyncOp *new_tile(Warp *w, const Ins *i, uint32_t lane, Engine engine, int class, uint64_t map, int first_coordinate) {
    TmaDescriptor descriptor;
    const uint32_t mask = 1u << lane;
    const int32_t rank = i->imm[0], flags = i->imm[1];
    const Range *home = read_descriptor(w, i, mask, map, &descriptor);
    if (!home) return NULL;
    const int32_t needed = flags & COPY_ROWS ? 2 : rank;
    if ((int32_t)descriptor.rank != needed) {
        stop(w, i, mask, "tensor_map", "a %dd copy uses a tensor map of rank %u", needed, descriptor.rank);
        return NULL;
    }
    if (flags & COPY_ROWS && descriptor.box[1] != 1) {
        stop(w, i, mask, "tensor_map", "gather4 and scatter4 need a box of one row, this one has %u", descriptor.box[1]);
        return NULL;
    }
    if (!(home->flags & RANGE_PARAM)) tensor_map_used(w, i, map);
    const int n_coordinates = flags & COPY_ROWS ? 1 + TMA_GATHER_ROWS : rank;
    const uint32_t bytes = (uint32_t)tma_box_bytes(&descriptor, flags & COPY_ROWS ? TMA_GATHER_ROWS : 0);
    AsyncOp *op = async_new(w, i, mask, engine, class, sizeof(Tile) + 2 * (size_t)bytes);
    if (class < 0 && !(home->flags & RANGE_PARAM)) async_join_bulk_read(op); /* it reads the tensor map as well */
    Tile *tile = tile_of(op);
    tile->descriptor = descriptor;
    tile->map = map;
    tile->flags = flags;
    tile->bytes = bytes;
    for (int c = 0; c < n_coordinates; c++) tile->coordinates[c] = (int32_t)R(first_coordinate + c)[lane];
    const int64_t first_bits = tile->coordinates[0] * 8ll * descriptor.group_global_bytes / descriptor.group_elements;
    if (first_bits % 128) {
        stop(w, i, mask, "tensor_map",
             "the first coordinate, %d, is %g bytes into a row, no multiple of 16: an illegal instruction to the hardware",
             tile->coordinates[0], (double)first_bits / 8);
        abandon(op);
        return NULL;
    }
    if (descriptor.group_shared_bytes != descriptor.group_global_bytes && tile->coordinates[0] % 128)
        finding(w, i, mask, NULL, "tensor_map", "the first coordinate, %d, of a padded type is no multiple of 128",
                tile->coordinates[0]);
    return op;
}

/* -------------------------------------------------------------------------------------------------- data movement */

static uint8_t *bad_of(Tile *tile) { return tile->data + tile->bytes; }

static bool take_tensor(void *context, const TmaSegment *segment) {
    Tile *tile = context;
    uint8_t *data = tile->data + segment->at, *bad = bad_of(tile) + segment->at;
    if (segment->inside) {
        take_global(tile->range, segment->global_address, segment->inside, data, bad);
        if (tile->descriptor.round_to_tf32) tma_round_to_tf32(data, segment->inside);
    }
    if (segment->inside < segment->bytes) {
        tma_fill(&tile->descriptor, data + segment->inside, segment->bytes - segment->inside);
        memset(bad + segment->inside, 0, segment->bytes - segment->inside);
    }
    return true;
}

static bool give_tensor(void *context, const TmaSegment *segment) {
    AsyncOp *op = context;
    Tile *tile = tile_of(op);
    if (!segment->inside) return true;
    const uint8_t *data = tile->data + segment->at, *bad = bad_of(tile) + segment->at;
    if (tile->reduce)
        reduce_global(op, tile->range, segment->global_address, segment->units, tile->reduce, (int)tile->descriptor.type,
                      tile->descriptor.group_global_bytes, data, bad);
    else give_global(op, tile->range, segment->global_address, segment->units, data, bad);
    return true;
}

/* Moves the data between the operation and a tile in shared memory. */
static void move_tile(AsyncOp *op, const Place *place, int is_write) {
    Tile *tile = tile_of(op);
    const uint32_t address = shared_address(place->cta, place->offset);
    for (uint32_t at = 0, run; at < tile->bytes; at += run) {
        const uint32_t here = tma_shared_address(&tile->descriptor, address, at, tile->bytes - at, &run);
        const uint32_t offset = here - shared_address(place->cta, 0);
        if (offset > place->cta->smem_bytes || run > place->cta->smem_bytes - offset) {
            machine_finding(op->machine, op, "out_of_bounds", "the swizzled tile leaves shared memory at offset %u", offset);
            return;
        }
        if (is_write) give_shared(op, place->cta, offset, run, tile->data + at, bad_of(tile) + at);
        else take_shared(place->cta, offset, run, tile->data + at, bad_of(tile) + at);
    }
}

static void load_read(AsyncOp *op) {
    Tile *tile = tile_of(op);
    walk(tile, take_tensor, tile);
}

static void load_write(AsyncOp *op) {
    const Tile *tile = tile_of(op);
    for (int p = 0; p < tile->n_places; p++) move_tile(op, &tile->places[p], 1);
}

static void store_read(AsyncOp *op) { move_tile(op, &tile_of(op)->places[0], 0); }

static void store_write(AsyncOp *op) { walk(tile_of(op), give_tensor, op); }

int tile_uses_map(const AsyncOp *op, uint64_t address) {
    if (op->is_read || (op->read != load_read && op->read != store_read)) return 0;
    return ((const Tile *)(const void *)op->payload)->map == address;
}

/* ------------------------------------------------------------------------------------------------------- handlers */

/* Operands: destination, tensor map (64), coordinates, barrier and, with COPY_MULTICAST, the mask.
 * Immediates: coordinates (rank; 2 with COPY_ROWS), flags, byte offsets of destination, tensor map, barrier. */
HANDLER(tma_load) {
    const int n = i->imm[1] & COPY_ROWS ? 1 + TMA_GATHER_ROWS : i->imm[0];
    if (copy_operands_defined(w, i, mask, 2)) return EMU_STOP;
    copy_lanes(w, i, mask, 2, 0);
    EACH_LANE(mask, l) {
        AsyncOp *op = new_tile(w, i, l, ENGINE_TMA_LOAD, -1, get64(w, i->s[1], l) + (uint64_t)(int64_t)i->imm[3], 2);
        if (!op) return EMU_STOP;
        Tile *tile = tile_of(op);
        const uint32_t to = R(0)[l] + (uint32_t)i->imm[2], size = tma_shared_bytes(&tile->descriptor, tile->bytes);
        if (!find_range(op, tile, 0)) return abandon(op);
        check_fetch_promise(w, i, 1u << l, &tile->descriptor);
        tile->n_places = copy_destinations(op, to, size, ALIGNMENT, R(2 + n)[l] + (uint32_t)i->imm[4], tile->flags,
                                           tile->flags & COPY_MULTICAST ? R(3 + n)[l] & 0xffff : 0,
                                           (int32_t)tile->bytes, tile->places, touch_destination);
        if (!tile->n_places) return abandon(op);
        touch_tensor(op, tile, ACCESS_READ);
        op->read = load_read;
        op->write = load_write;
        async_issue(op);
    }
    return EMU_YIELD;
}

/* What a store must not do, besides what every copy must not. False after a finding that nothing can follow. */
static bool check_store(Warp *w, const Ins *i, uint32_t mask, const Tile *tile) {
    const TmaDescriptor *d = &tile->descriptor;
    const int n = tile->flags & COPY_ROWS ? 1 : (int)d->rank;
    if (d->type == TMA_B4X16_P64) {
        stop(w, i, mask, "tensor_map", "padded 4-bit elements can be loaded, not stored");
        return false;
    }
    if (tile->reduce && !reduction_exists(tile->reduce, (int)d->type, 1)) {
        stop(w, i, mask, "tensor_map", "this reduction does not exist for the tensor map's element type (%u)", d->type);
        return false;
    }
    for (int c = 0; c < n; c++)
        if (tile->coordinates[c] < 0)
            finding(w, i, mask, NULL, "tensor_map", "coordinate %d of a store is negative (%d): only loads may begin there", c,
                    tile->coordinates[c]);
    return true;
}

/* Operands: tensor map (64), coordinates, source. Immediates: as tma_load, the offsets of tensor map [2] and source
 * [3], and the reduction [4] (ReduceOp). */
HANDLER(tma_store) {
    const int n = i->imm[1] & COPY_ROWS ? 1 + TMA_GATHER_ROWS : i->imm[0];
    if (copy_operands_defined(w, i, mask, 1)) return EMU_STOP;
    mask = copy_lanes(w, i, mask, 1, !i->imm[4]);
    EACH_LANE(mask, l) {
        AsyncOp *op = new_tile(w, i, l, ENGINE_TMA_STORE, CLASS_BULK_WRITE,
                               get64(w, i->s[0], l) + (uint64_t)(int64_t)i->imm[2], 1);
        if (!op) return EMU_STOP;
        Tile *tile = tile_of(op);
        const uint32_t from = R(1 + n)[l] + (uint32_t)i->imm[3], size = tma_shared_bytes(&tile->descriptor, tile->bytes);
        tile->reduce = i->imm[4];
        if (!check_store(w, i, 1u << l, tile) || !find_range(op, tile, 1)) return abandon(op);
        tile->n_places = 1;
        tile->places[0].cta = shared_at(w, i, from, size, ALIGNMENT, &tile->places[0].offset);
        if (!tile->places[0].cta) return abandon(op);
        if (tile->places[0].cta != w->cta) {
            stop(w, i, 1u << l, "out_of_bounds", "the source is .shared::cta and lies in CTA %d of the cluster",
                 tile->places[0].cta->rank);
            return abandon(op);
        }
        touch_tile(op, &tile->places[0], ACCESS_READ);
        touch_tensor(op, tile, tile->reduce ? ACCESS_WRITE | ACCESS_ATOMIC : ACCESS_WRITE);
        op->read = store_read;
        op->write = store_write;
        async_issue(op);
    }
    return EMU_YIELD;
}

/* Operands: tensor map (64) and coordinates; only the tensor map is looked at. Immediates: rank or 0, flags, offset. */
HANDLER(tma_prefetch) {
    TmaDescriptor descriptor;
    if (copy_operands_defined(w, i, mask, 1)) return EMU_STOP;
    EACH_LANE(mask, l) {
        const uint64_t map = get64(w, i->s[0], l) + (uint64_t)(int64_t)i->imm[2];
        if (!read_descriptor(w, i, 1u << l, map, &descriptor)) return EMU_STOP;
    }
    return EMU_NEXT;
}
