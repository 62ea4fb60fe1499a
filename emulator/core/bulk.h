/* Shared by the handlers of TMA tiles and of bulk copies: bytes with their poison, and reductions. */
#ifndef DSV4_BULK_H
#define DSV4_BULK_H

#include "emu.h"

typedef enum {
    REDUCE_NONE, REDUCE_ADD, REDUCE_MIN, REDUCE_MAX, REDUCE_INC, REDUCE_DEC, REDUCE_AND, REDUCE_OR, REDUCE_XOR
} ReduceOp;

/* Bits of a handler's flags immediate. */
enum { COPY_MULTICAST = 1, COPY_CTA_GROUP_2 = 2, COPY_ROWS = 4 };

/* One destination in the shared memory of a CTA of the cluster. */
typedef struct { Cta *cta; uint32_t offset; } Place;

/* Finds the CTAs of a load's destinations (one, or those of the multicast mask), and has each destination's barrier
 * count `tx_bytes`. Returns their number, or 0 after a finding. */
int copy_destinations(AsyncOp *op, uint32_t address, uint32_t bytes, uint32_t alignment, uint32_t barrier, int flags,
                      uint32_t multicast_mask, int32_t tx_bytes, Place places[MAX_CTAS]);

/* Bytes of global memory and their poison (0 or 1 each) into a buffer, and back. */
void take_global(const Range *range, uint64_t address, uint32_t bytes, uint8_t *data, uint8_t *bad);
void give_global(const Range *range, uint64_t address, uint32_t bytes, const uint8_t *data, const uint8_t *bad);

/* The same for shared memory. give_shared reports a live mbarrier that is overwritten. */
void take_shared(const Cta *cta, uint32_t offset, uint32_t bytes, uint8_t *data, uint8_t *bad);
void give_shared(AsyncOp *op, Cta *cta, uint32_t offset, uint32_t bytes, const uint8_t *data, const uint8_t *bad);

/* to[i] = op(to[i], from[i]) for elements of a TmaType, each atomically; poison of either makes the result poison.
 * `to_bad` is NULL (all defined) or one shadow byte a byte. */
void reduce_elements(int op, int type, uint32_t element_bytes, uint8_t *to, uint8_t *to_bad, const uint8_t *from,
                     const uint8_t *from_bad, uint32_t bytes);

#endif
