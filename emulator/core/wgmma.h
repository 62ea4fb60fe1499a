/* What wgmma.c (issue and rules) and wgmma_land.c (the product) share. */
#ifndef DSV4_WGMMA_H
#define DSV4_WGMMA_H

#include "matrix.h"

#define WARPGROUP_WARPS 4
#define WARP_ROWS 16
#define MAX_WGMMA_N 256
#define MAX_WGMMA_K 32
#define A_REGISTERS 4
#define MAX_A_UNITS 32  /* 16 rows of 32 bytes */
#define MAX_B_UNITS 512 /* 256 columns of 32 bytes */

/* Flags of the instruction's immediate. */
enum { A_IN_REGISTERS = 1, NEGATE_A = 2, NEGATE_B = 4, TRANSPOSE_A = 8, TRANSPOSE_B = 16, SATURATE = 32 };

typedef struct { /* the immediates */
    uint32_t n, k, flags, accumulators, a_bits, b_bits;
    ElementType d_type, a_type, b_type;
} WgmmaShape;

WgmmaShape wgmma_shape(const Ins *i);

/* An operation in flight. Units of shared memory in the order of matrix_units, for A those of this warp's rows. */
typedef struct {
    uint8_t accumulate, a_mn_major, b_mn_major;
    uint32_t a_registers[A_REGISTERS][LANES], a_bad[A_REGISTERS];
    uint32_t n_a_units, n_b_units;
    uint32_t a_units[MAX_A_UNITS], b_units[MAX_B_UNITS];
} Wgmma;

void wgmma_land(AsyncOp *op); /* the operation's `write` */

/* What all warps of a warpgroup must execute alike, the nth wgmma of each. */
typedef struct { const Ins *ins; uint64_t a, b; uint32_t serial; int16_t warp; uint8_t accumulate; } WgmmaIssued;
#define WGMMA_RING 512

/* B as floats. It is the same for the four warps, which mostly find that it has not changed. */
typedef struct {
    uint32_t bytes, mn_major, n, k;
    ElementType type;
    _Alignas(64) uint8_t raw[MAX_B_UNITS * 16];
    _Alignas(64) float values[MAX_WGMMA_K * MAX_WGMMA_N];
} WgmmaConverted;

typedef struct WgmmaState {
    uint32_t serial;      /* wgmmas executed */
    uint8_t fenced;       /* a fence since registers were last waited for */
    uint8_t ever_fenced;
    uint64_t *seen;       /* of each register slot: hash of what a wgmma last left or took there; 0 none */
    WgmmaIssued *issued;  /* of the warpgroup, in the state of its first warp */
    WgmmaConverted *converted; /* likewise */
} WgmmaState;

WgmmaState *wgmma_state(Warp *w);
WgmmaState *wgmma_group_state(Warp *w); /* of the first warp of the warpgroup */
uint64_t wgmma_hash(const uint32_t *lanes); /* of a register; never 0 */

static inline uint32_t wgmma_stride(uint32_t n) { return (n + 15) & ~15u; } /* of rows of B and D, as matrix_sum wants it */

#endif
