/* Cluster launch control: every cluster of a grid is launched here, so there is never more work to take over. */
#include "bulk.h"

#include <stdlib.h>

#define RESPONSE_BYTES 16

typedef struct { int n; Place places[MAX_CTAS]; } Response;

static void write_response(AsyncOp *op)
{
    const Response *response = (const Response *)(const void *)op->payload;
    for (int p = 0; p < response->n; p++) {
        memset(response->places[p].cta->smem + response->places[p].offset, 0, RESPONSE_BYTES);
        memset(response->places[p].cta->shadow + response->places[p].offset, SHADOW_DEFINED, RESPONSE_BYTES);
    }
}

static void touch(AsyncOp *op, const Place *place) { async_touch_shared(op, place->cta, place->offset, RESPONSE_BYTES, 1); }

/* slots shared address of the response, barrier address; imm 1: to every CTA of the cluster */
HANDLER(clc_try_cancel)
{
    uint32_t l = first_lane(mask);
    if ((BAD(0) | BAD(1)) & mask) return stop(w, i, mask, "undefined_value", "an address of try_cancel was never written");
    AsyncOp *op = async_new(w, i, mask, ENGINE_TMA_LOAD, -1, sizeof(Response));
    Response *response = (Response *)(void *)op->payload;
    uint32_t everybody = (1u << w->machine->n_ctas) - 1;
    response->n = copy_destinations(op, R(0)[l], RESPONSE_BYTES, 16, R(1)[l], i->imm[0] ? COPY_MULTICAST : 0, everybody,
                                    RESPONSE_BYTES, response->places, touch);
    if (!response->n) {
        free(op);
        return EMU_STOP;
    }
    op->write = write_response;
    async_issue(op);
    return EMU_YIELD;
}

/* slots predicate, response (low pair, high pair): bit 0 says that a cluster was cancelled for this one */
HANDLER(clc_is_canceled)
{
    uint32_t value = 0;
    EACH_LANE(mask, l) value |= (uint32_t)(get64(w, i->s[1], l) & 1) << l;
    set_pred(w, i->s[0], mask, value, BAD(1) | BADHI(1));
    return EMU_NEXT;
}
