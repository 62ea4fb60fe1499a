/* Tensor memory: addresses, what is allocated, and the CTA pairs that tcgen05 instructions work on. */
#ifndef DSV4_TMEM_H
#define DSV4_TMEM_H

#include "emu.h"

#define TMEM_MAX_ALLOCATIONS (TMEM_COLUMNS / 32)

/* The collective half of a cta_group::2 allocation: the warp that came first waits here for the peer CTA's warp. */
typedef enum { MEETING_NONE, MEETING_ALLOC, MEETING_DEALLOC } MeetingKind;
typedef struct {
    MeetingKind kind;
    int32_t warp;
    const Ins *ins;
    uint32_t columns, column; /* asked for; of a dealloc, and of an alloc once it is done: the first one */
    uint8_t done;
} Meeting;

typedef struct TmemState {
    TmemAllocation allocations[TMEM_MAX_ALLOCATIONS]; /* columns 0: free entry */
    uint32_t last_columns; /* of the allocation before: sizes must not grow */
    uint8_t groups;        /* bit g: an instruction with cta_group::g was executed */
    Meeting meeting;
    Clock freed[2];        /* what the warps that freed columns knew: an allocation comes after them */
} TmemState;

typedef struct { uint32_t lane, column; } TmemAddress;

/* Lane in bits 29..16 (31..30 are the scale id of a scale-factor address), column in bits 15..0. */
static inline TmemAddress tmem_address(uint32_t address)
{
    return (TmemAddress){address >> 16 & 0x3fff, address & 0xffff};
}

/* The other CTA of the pair, or NULL after a finding (no such CTA, or it has exited). */
Cta *tcgen05_peer(Warp *w, const Ins *i);
/* Records the instruction's cta_group; one kernel must use the same everywhere (a finding otherwise). */
void tcgen05_group(Warp *w, const Ins *i, int32_t group);
/* Several lanes issue an instruction that each of them issues whole: a finding, once. */
void tcgen05_single(Warp *w, const Ins *i, uint32_t mask, const char *what);

#endif
