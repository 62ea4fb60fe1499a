/* st.async: a store to shared memory of the cluster that completes on an mbarrier of the destination's CTA.
 *
 * The value is captured at issue, lands when the policy lets it, and counts its bytes on the mbarrier then. It goes
 * through the generic proxy: whoever has waited on the mbarrier may read it with ordinary instructions; a copy or an MMA
 * needs fence.proxy.async behind that wait. A fence of the storing thread is too early, for it does not know when the
 * store is done. */
#include "bulk.h"

#define MAX_BYTES 32

typedef struct {
    Place place;
    uint32_t bytes;
    uint8_t data[MAX_BYTES], bad[MAX_BYTES];
} Store;

static void land_store(AsyncOp *op) {
    const Store *store = (const Store *)(const void *)op->payload;
    give_shared(op, store->place.cta, store->place.offset, store->bytes, store->data, store->bad);
}

static void capture(const Warp *w, const Ins *i, uint32_t lane, uint32_t size, uint32_t n, Store *store) {
    for (uint32_t e = 0; e < n; e++) {
        const uint64_t value = size == 8 ? get64(w, i->s[1 + e], lane) : R(1 + e)[lane];
        const uint32_t poison = BAD(1 + e) | (size == 8 ? BADHI(1 + e) : 0);
        memcpy(store->data + e * size, &value, size);
        memset(store->bad + e * size, poison >> lane & 1 ? SHADOW_BAD : SHADOW_DEFINED, size);
    }
}

/* Operands: destination, values, mbarrier. Immediates: byte offset of the destination, bytes of an element, elements, byte
 * offset of the mbarrier. */
HANDLER(st_async) {
    const uint32_t size = (uint32_t)i->imm[1], n = (uint32_t)i->imm[2];
    const uint32_t bad = (BAD(0) | BAD(n + 1)) & mask;
    if (bad) return stop(w, i, bad, "undefined_value", "an address of st.async was never written");
    EACH_LANE(mask, l) {
        AsyncOp *op = async_new(w, i, 1u << l, ENGINE_CP_ASYNC, -1, sizeof(Store));
        Store *store = (Store *)(void *)op->payload;
        Place *place = &store->place;
        const uint32_t barrier = R(n + 1)[l] + (uint32_t)i->imm[3];
        store->bytes = size * n;
        place->cta = shared_at(w, i, R(0)[l] + (uint32_t)i->imm[0], store->bytes, store->bytes, &place->offset);
        if (!place->cta) return abandon(op);
        capture(w, i, l, size, n, store);
        if (barrier >> SHARED_RANK_SHIFT != (uint32_t)place->cta->rank) {
            stop(w, i, 1u << l, "barrier", "the store goes to CTA %d of the cluster and signals an mbarrier of CTA %u",
                 place->cta->rank, barrier >> SHARED_RANK_SHIFT);
            return abandon(op);
        }
        if (!async_on_barrier(op, barrier, (int32_t)store->bytes, 0)) return abandon(op);
        async_touch_shared(op, place->cta, place->offset, store->bytes, ACCESS_WRITE);
        op->write = land_store;
        async_issue(op);
    }
    return EMU_YIELD;
}
