/* Tensor maps and tiles, without any of the machine around them: what a descriptor says, and which bytes of global
 * memory belong to which bytes of shared memory for one box. */
#ifndef DSV4_TMA_TILE_H
#define DSV4_TMA_TILE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum { TMA_DESCRIPTOR_BYTES = 128, TMA_MAX_RANK = 5, TMA_GATHER_ROWS = 4 };

typedef enum {
    TMA_U8, TMA_U16, TMA_U32, TMA_S32, TMA_U64, TMA_S64, TMA_F16, TMA_F32, TMA_F32_FTZ, TMA_F64, TMA_BF16,
    TMA_B4X16, TMA_B4X16_P64, TMA_B6X16_P32, TMA_TYPES
} TmaType;

typedef enum { TMA_SWIZZLE_NONE, TMA_SWIZZLE_32, TMA_SWIZZLE_64, TMA_SWIZZLE_128 } TmaSwizzle;

/* A decoded tensor map. Dimension 0 is the contiguous one. Sub-byte types lie in groups of 16 elements, which may be
 * longer in shared memory than in global memory (padding); for all others a group is one element. */
typedef struct {
    uint64_t address;                      /* bytes */
    uint64_t dims[TMA_MAX_RANK];           /* elements */
    uint64_t strides[TMA_MAX_RANK];        /* bytes; [0] is unused */
    uint32_t box[TMA_MAX_RANK];            /* elements */
    uint32_t element_strides[TMA_MAX_RANK];/* elements; [0] has no effect without interleave */
    uint32_t rank;
    uint32_t type;                         /* TmaType */
    uint32_t swizzle;                      /* TmaSwizzle */
    uint32_t atom_bytes;                   /* what the swizzle keeps together: 16, and 32 or 64 under TMA_SWIZZLE_128 */
    uint32_t fill_nan;                     /* out-of-bounds elements are NaN instead of zero */
    uint32_t round_to_tf32;
    uint32_t spans_128kib;                 /* the host's promise about the memory behind the tensor */
    uint32_t group_elements, group_global_bytes, group_shared_bytes;
} TmaDescriptor;

/* A run of bytes of one row of the box. Without data in the tensor (`inside` < `bytes`) the rest is filled. */
typedef struct {
    uint32_t at;                           /* of the run in the box's data, whose rows lie one behind the other */
    uint64_t global_address;               /* valid where inside > 0 */
    uint32_t bytes;                        /* of global data: padding is not part of it */
    uint32_t inside;                       /* the first so many bytes lie in the tensor */
    uint32_t units;                        /* the same up to whole units of 16 bytes: a store writes all of them */
} TmaSegment;

/* Returns false to end the walk early. */
typedef bool (*TmaVisit)(void *context, const TmaSegment *segment);

/* NULL, or one line that says what is wrong with the 128 bytes (only the first 64 carry meaning). */
const char *tma_decode(const uint8_t *bytes, TmaDescriptor *out);

/* NULL, or what `cuTensorMapEncodeTiled` would refuse in it. */
const char *tma_check(const TmaDescriptor *descriptor);

/* Where swizzling puts the byte that would lie at `address` without it. */
uint32_t tma_swizzle(const TmaDescriptor *descriptor, uint32_t address);

/* Bytes after which the swizzle's pattern begins again: a tile on a multiple of it begins with the pattern. */
uint32_t tma_pattern_bytes(const TmaDescriptor *descriptor);

/* Bytes that a whole box moves, which is what a load counts in complete_tx; `rows` > 0: that many gathered rows. */
uint64_t tma_box_bytes(const TmaDescriptor *descriptor, uint32_t rows);

/* True when the rows of a box lie one behind the other in shared memory, without padding. */
bool tma_is_dense(const TmaDescriptor *descriptor);

/* Bytes of shared memory from the first to the last that `data_bytes` of a box take, whole rows, padding between them
 * included: a swizzle's rows are as long as its span. */
uint32_t tma_shared_bytes(const TmaDescriptor *descriptor, uint32_t data_bytes);

/* Visits the rows of the box at `coordinates` (elements, signed, dimension 0 first) in the order of its data. */
bool tma_walk(const TmaDescriptor *descriptor, const int32_t *coordinates, TmaVisit visit, void *context);

/* The same for gather4 and scatter4: one column and four rows, each row a box of its own, one behind the other. */
bool tma_walk_rows(const TmaDescriptor *descriptor, int32_t column, const int32_t rows[TMA_GATHER_ROWS], TmaVisit visit,
                   void *context);

/* Shared address of byte `at` of a box's data whose tile starts at `tile`; `run` gets the number of bytes, at most
 * `bytes`, that lie together from there on. */
uint32_t tma_shared_address(const TmaDescriptor *descriptor, uint32_t tile, uint32_t at, uint32_t bytes, uint32_t *run);

/* Writes the fill pattern of out-of-bounds elements. */
void tma_fill(const TmaDescriptor *descriptor, uint8_t *to, uint32_t bytes);

/* Rounds f32 values to tf32 (nearest, ties to even), in place, as a load of type tf32 does. */
void tma_round_to_tf32(uint8_t *values, uint32_t bytes);

/* tensormap.replace: sets one field of a descriptor in memory; false for a field or a value that it does not take. */
typedef enum {
    TMA_FIELD_GLOBAL_ADDRESS, TMA_FIELD_RANK, TMA_FIELD_BOX_DIM, TMA_FIELD_GLOBAL_DIM, TMA_FIELD_GLOBAL_STRIDE,
    TMA_FIELD_ELEMENT_STRIDE, TMA_FIELD_ELEMENT_TYPE, TMA_FIELD_INTERLEAVE, TMA_FIELD_SWIZZLE, TMA_FIELD_FILL,
    TMA_FIELD_SWIZZLE_ATOMICITY /* the order of TENSOR_MAP_FIELDS in lower/bulk_rules.py */
} TmaField;
bool tma_replace(uint8_t *bytes, uint32_t field, uint32_t ordinal, uint64_t value);

/* For tests and for tools without a machine: moves a box between two plain arrays. `global` replaces the descriptor's
 * address, `shared` holds the bytes from shared address 0 on. `rows` is NULL or the four rows of gather4/scatter4. */
void tma_load_plain(const uint8_t *bytes, const uint8_t *global, uint8_t *shared, uint32_t shared_address,
                    const int32_t *coordinates, const int32_t *rows);
void tma_store_plain(const uint8_t *bytes, uint8_t *global, const uint8_t *shared, uint32_t shared_address,
                     const int32_t *coordinates, const int32_t *rows);

#endif
