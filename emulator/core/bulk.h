/* Shared by the handlers of TMA tiles, of bulk copies and of tensor maps: bytes with their poison, and reductions. */
#ifndef DSV4_BULK_H
#define DSV4_BULK_H

#include "emu.h"

typedef enum {
    REDUCE_NONE, REDUCE_ADD, REDUCE_MIN, REDUCE_MAX, REDUCE_INC, REDUCE_DEC, REDUCE_AND, REDUCE_OR, REDUCE_XOR
} ReduceOp;

/* Bits of a handler's flags immediate; bulk_rules.py has the same. */
enum {
    COPY_MULTICAST = 1,
    COPY_CTA_GROUP_2 = 2,
    COPY_ROWS = 4,  /* gather4, scatter4 */
    COPY_OWN_CTA = 8 /* the destination is .shared::cta: it and its mbarrier must lie in the executing CTA */
};

/* One destination in the shared memory of a CTA of the cluster. */
typedef struct { Cta *cta; uint32_t offset; } Place;

/* Finds the CTAs of a copy's destinations (one, or those of the multicast mask) and has each destination's barrier count
 * `tx_bytes`. After each one `touch` is called, so that the accesses are recorded in that barrier's name. Returns their
 * number, or 0 after a finding. */
int copy_destinations(AsyncOp *op, uint32_t address, uint32_t bytes, uint32_t alignment, uint32_t barrier, int flags,
                      uint32_t multicast_mask, int32_t tx_bytes, Place places[MAX_CTAS],
                      void (*touch)(AsyncOp *op, const Place *place));

/* Bytes of global memory and their poison (0 or 1 each) into a buffer, and back. */
void take_global(const Range *range, uint64_t address, uint32_t bytes, uint8_t *data, uint8_t *bad);
void give_global(const AsyncOp *op, const Range *range, uint64_t address, uint32_t bytes, const uint8_t *data,
                 const uint8_t *bad);

/* The same for shared memory. give_shared reports a live mbarrier that is overwritten. */
void take_shared(const Cta *cta, uint32_t offset, uint32_t bytes, uint8_t *data, uint8_t *bad);
void give_shared(AsyncOp *op, Cta *cta, uint32_t offset, uint32_t bytes, const uint8_t *data, const uint8_t *bad);

/* to[i] = op(to[i], from[i]) for elements of a TmaType, each atomically; poison of either makes the result poison.
 * `to_bad` is NULL (all defined) or one shadow byte a byte. */
void reduce_elements(int op, int type, uint32_t element_bytes, uint8_t *to, uint8_t *to_bad, const uint8_t *from,
                     const uint8_t *from_bad, uint32_t bytes);
void reduce_global(const AsyncOp *op, const Range *range, uint64_t address, uint32_t bytes, int reduce, int type,
                   uint32_t element_bytes, const uint8_t *data, const uint8_t *bad);

/* True when the reduction exists for elements of a TmaType, as the tables of cp.reduce.async.bulk say. */
int reduction_exists(int op, int type, int is_tensor);

/* Frees an operation that was not issued, after a finding. Returns EMU_STOP. */
int abandon(AsyncOp *op);
/* A finding and the end of the run when an operand is poison; EMU_NEXT otherwise. Bit n of `wide`: operand n is a pair. */
int copy_operands_defined(Warp *w, const Ins *i, uint32_t mask, uint32_t wide);

/* The lanes of `mask` that issue a copy of their own. Lanes whose operands are all the same store the same bytes: one of
 * them stands for all, the one that elect.sync would choose if it is among them, as it waits for the group. A load or a
 * reduction is carried out for each of them, which is a finding (is_plain_store 0). */
uint32_t copy_lanes(Warp *w, const Ins *i, uint32_t mask, uint32_t wide, int is_plain_store);

/* Tensor maps that the kernel itself changes must be fenced before a copy uses them, and must not be in use when they are
 * changed. tensor_map_used reports the first, tensor_map_changed (a write of bytes at a global address) the second. */
void tensor_map_used(Warp *w, const Ins *i, uint64_t address);
void tensor_map_changed(Warp *w, const Ins *i, uint64_t address, int is_released);
/* True for a TMA operation that has not read everything yet and works with the tensor map at this address. */
int tile_uses_map(const AsyncOp *op, uint64_t address);

#endif
