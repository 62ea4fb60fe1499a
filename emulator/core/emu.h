/* The emulator's common types: what a handler sees, and what it may call.
 *
 * One Machine runs one cluster of CTAs in one thread. Registers are 32-bit slots of 32 lanes; every operand of an
 * instruction is a slot (immediates and special registers are constant slots, filled when a warp starts).
 * "bad" masks are poison: bit l set means that the value of lane l was never written or depends on one that was not.
 */
#ifndef DSV4_EMU_H
#define DSV4_EMU_H

#include <stddef.h>
#include <stdio.h>
#include <stdint.h>
#include <string.h>

#define LANES 32
#define FULL 0xffffffffu
#define MAX_WARPS 32          /* of one CTA */
#define MAX_CTAS 16           /* of one cluster */
#define MAX_IMMEDIATES 8
#define SHARED_BASE 1024u     /* shared address of byte 0 of a CTA's dynamic shared memory, plus rank << 24 */
#define SHARED_RANK_SHIFT 24
#define SHARED_END 0x10000000u /* generic addresses below are shared memory, above are host pointers */
#define TMEM_COLUMNS 512
#define TMEM_LANES 128

#define likely(x) __builtin_expect(!!(x), 1)
#define unlikely(x) __builtin_expect(!!(x), 0)

typedef struct Ins Ins;
typedef struct Warp Warp;
typedef struct Cta Cta;
typedef struct Machine Machine;
typedef struct Program Program;
typedef struct AsyncOp AsyncOp;
typedef struct Barrier Barrier;

/* ------------------------------------------------------------------------------------------------ instructions */

typedef enum {
    EMU_NEXT = 0,  /* go on with the next instruction */
    EMU_YIELD = 1, /* go on, but let the scheduler choose again (after anything others may observe) */
    EMU_AGAIN = 2, /* blocked: w->wait says on what; the instruction is executed again when it is ready */
    EMU_JUMP = 3,  /* the handler changed the paths itself (core only) */
    EMU_STOP = 4   /* end of the run: a finding was recorded that nothing can follow */
} Status;

typedef int (*Handler)(Warp *w, const Ins *i, uint32_t mask);

enum {
    INS_BRANCH = 1,
    INS_EXIT = 2,
    INS_CONVERGED = 4,    /* every live lane of the warp must be here (.aligned) */
    INS_MAY_USE_PENDING = 8 /* set by the core: a wgmma, which may use accumulators of another one in flight */
};

struct Ins {
    Handler run;
    const int32_t *s; /* operand slots; a 64-bit operand names its low slot, the high half is the next one */
    int32_t n_slots;
    int32_t target; /* branch target, an instruction index, or -1 */
    int32_t line;   /* index into the program's line table, opaque to C */
    int16_t guard;  /* predicate slot or -1 */
    uint8_t guard_negate;
    uint8_t flags;
    uint32_t predicates; /* bit n: operand n is a predicate slot (of the first 32 operands) */
    int32_t imm[MAX_IMMEDIATES];
};

/* What Python hands over, one a instruction. */
typedef struct {
    int32_t handler, slot_first, n_slots, target, line, guard, guard_negate, flags;
    uint32_t predicates;
    int32_t imm[MAX_IMMEDIATES];
} InsCode;

typedef enum { /* values of constant slots that differ by warp; the rest are plain constants */
    SPECIAL_TID_X, SPECIAL_TID_Y, SPECIAL_TID_Z,
    SPECIAL_NTID_X, SPECIAL_NTID_Y, SPECIAL_NTID_Z,
    SPECIAL_CTAID_X, SPECIAL_CTAID_Y, SPECIAL_CTAID_Z,
    SPECIAL_NCTAID_X, SPECIAL_NCTAID_Y, SPECIAL_NCTAID_Z,
    SPECIAL_LANEID, SPECIAL_WARPID, SPECIAL_NWARPID,
    SPECIAL_CLUSTER_CTARANK, SPECIAL_CLUSTER_NCTARANK,
    SPECIAL_CLUSTER_CTAID_X, SPECIAL_CLUSTER_CTAID_Y, SPECIAL_CLUSTER_CTAID_Z,
    SPECIAL_CLUSTER_NCTAID_X, SPECIAL_CLUSTER_NCTAID_Y, SPECIAL_CLUSTER_NCTAID_Z,
    SPECIAL_CLUSTERID_X, SPECIAL_CLUSTERID_Y, SPECIAL_CLUSTERID_Z,
    SPECIAL_NCLUSTERID_X, SPECIAL_NCLUSTERID_Y, SPECIAL_NCLUSTERID_Z,
    SPECIAL_SMEM_BASE,       /* address of the dynamic shared memory: (rank << 24) + 1024 */
    SPECIAL_DYNAMIC_SMEM, SPECIAL_TOTAL_SMEM,
    SPECIAL_PARAM_LO, SPECIAL_PARAM_HI, /* generic address of the parameter block's byte 0 */
    SPECIAL_LOCAL_LO, SPECIAL_LOCAL_HI, /* generic address of this lane's local memory */
    SPECIAL_LANEMASK_EQ, SPECIAL_LANEMASK_LE, SPECIAL_LANEMASK_LT, SPECIAL_LANEMASK_GE, SPECIAL_LANEMASK_GT,
    SPECIAL_SMID, SPECIAL_NSMID, SPECIAL_GRIDID,
    SPECIAL_COUNT
} Special;

typedef struct { int32_t slot, special; uint32_t value; } Constant; /* special < 0: value in every lane */

struct Program {
    Ins *ins;
    int32_t n_ins;
    int32_t *slots;
    int32_t n_registers, n_predicates; /* slots a warp needs, constants included */
    Constant *constants;
    int32_t n_constants;
    uint32_t local_bytes; /* .local memory of one lane */
};


/* ---------------------------------------------------------------------------------------------------- handlers */

typedef struct { const char *name; Handler run; } HandlerEntry;

/* HANDLER(add_s32) { EACH... return EMU_NEXT; } defines and registers a handler; Python finds it by its name. */
#define HANDLER(id)                                                                                                   \
    static int id(Warp *w, const Ins *i, uint32_t mask);                                                              \
    static const HandlerEntry handler_entry_##id = {#id, id};                                                         \
    static const HandlerEntry *const handler_pointer_##id __attribute__((used, section("emu_handlers"))) =            \
        &handler_entry_##id;                                                                                          \
    static int id(Warp *w __attribute__((unused)), const Ins *i __attribute__((unused)),                              \
                  uint32_t mask __attribute__((unused)))

#define R(n) (w->r[i->s[n]])            /* uint32_t[32] of operand n */
#define RHI(n) (w->r[i->s[n] + 1])      /* high half of a 64-bit operand */
#define BAD(n) (w->bad[i->s[n]])        /* poison mask of operand n (assign through set_bad) */
#define BADHI(n) (w->bad[i->s[n] + 1])
#define P(n) (w->p[i->s[n]])            /* lane mask: operand n is a predicate slot */
#define PBAD(n) (w->pbad[i->s[n]])
#define EACH_LANE(mask, l) for (uint32_t l##_m = (mask), l; l##_m && (l = (uint32_t)__builtin_ctz(l##_m), 1); l##_m &= l##_m - 1)

/* ------------------------------------------------------------------------------------------- clocks and accesses */

/* An agent is whatever acts on memory in an order of its own: a warp, or one of the asynchronous streams that a warp
 * or an mbarrier owns. Its clock counts milestones; a vector clock says up to which milestone of whom one knows. */
typedef enum {
    CLASS_WARP,       /* the warp itself, generic proxy */
    CLASS_CP_ASYNC,   /* non-bulk cp.async of a warp; milestones are its commit groups and noinc arrivals */
    CLASS_BULK_READ,  /* source reads of bulk-group operations; wait_group.read */
    CLASS_BULK_WRITE, /* their writes; wait_group */
    CLASS_WGMMA,      /* wgmma of a warp; commit groups */
    CLASS_MMA,        /* tcgen05.mma/cp/shift issued by a warp; tcgen05.commit */
    CLASS_TMEM_LOAD,  /* tcgen05.ld of a warp; wait::ld or first use */
    CLASS_TMEM_STORE, /* tcgen05.st of a warp; wait::st */
    N_CLASSES
} Class;

#define MAX_AGENTS 8192
#define AGENT_PRIOR_GRID 0 /* known after griddepcontrol.wait */
typedef uint32_t *Clock; /* machine->clock_length entries */

enum { ACCESS_READ = 0, ACCESS_WRITE = 1, ACCESS_ASYNC = 2 /* async proxy */, ACCESS_ATOMIC = 4, ACCESS_STRONG = 8,
       ACCESS_UNRECORDED = 16 /* a read that is judged and leaves no record */,
       ACCESS_UNCHANGED = 32 /* a write of what is there already: within a cluster it races with no other write */ };

typedef struct {
    Warp *warp;      /* whose clocks are consulted: the warp that executes or issued */
    const Ins *ins;
    uint16_t agent;  /* in whose name it is recorded */
    uint32_t clock;
    uint8_t flags;
} Access;

/* Records who touched bytes and reports a race with whoever is not ordered before. mask: bytes of the 16-byte granule
 * (shared, global) or lanes of the 32-lane granule (TMEM). */
void touch_shared(const Access *a, Cta *cta, uint32_t offset, uint32_t bytes);
void touch_tmem(const Access *a, Cta *cta, uint32_t first_lane, uint32_t n_lanes, uint32_t first_column, uint32_t n_columns);
void touch_global(const Access *a, uint64_t address, uint32_t bytes);
Access access_of_warp(Warp *w, const Ins *i, uint8_t flags); /* a synchronous access by the warp itself */

uint32_t agent_of(Warp *w, Class class); /* the agent number, made on first use */
uint32_t agent_new(Machine *m);          /* a fresh one, for a barrier's transactions */

/* -------------------------------------------------------------------------------------------------------- groups */

/* Operations of one class of a warp, in commit groups numbered from 0. Everything of group g is known to be done once
 * `group_wait(w, class, g)` has passed. */
typedef struct {
    uint32_t open;      /* number of the group that the next operation joins; its clock is open + 1 */
    uint32_t oldest;    /* all groups below are complete */
    uint32_t committed; /* groups made by a commit instruction, for wait_group N */
    uint32_t *pending;  /* outstanding operations of group g at [g % ring] */
    uint32_t *commits;  /* number of the group closed by commit k at [k % ring] */
    uint32_t joined;    /* operations that joined the open group, landed or not */
} Groups;
#define GROUP_RING 8192

void group_commit(Warp *w, Class class);           /* closes the open group by an instruction that counts as a commit */
uint32_t group_milestone(Warp *w, Class class);    /* closes it without a commit; returns its number */
/* EMU_NEXT when every commit group but the newest `keep` is complete (the warp then knows them), else EMU_AGAIN. */
int group_wait(Warp *w, const Ins *i, Class class, uint32_t keep);
/* The same for every operation issued so far, committed or not (tcgen05.wait::ld, ::st). */
int group_wait_all(Warp *w, const Ins *i, Class class);

/* -------------------------------------------------------------------------------------------------- asynchronous */

typedef enum {
    ENGINE_TMA_LOAD, ENGINE_TMA_STORE, ENGINE_CP_ASYNC, ENGINE_WGMMA, ENGINE_MMA, ENGINE_TMEM_LOAD, ENGINE_TMEM_STORE,
    ENGINE_ARRIVE, /* arrivals that follow other operations (commit, noinc): in the order of their queue */
    N_ENGINES
} Engine;

typedef struct { uint32_t address; int32_t tx_bytes; uint32_t arrivals; uint16_t agent; uint32_t clock; } Signal;

/* An operation whose operands were captured at issue. `read` takes sources into the operation's own payload, `write`
 * lands results; either may be NULL. Both run later (or at once), as the policy chooses, in this order; then the
 * signals are given and the groups are told. They run with the CTA and the warp still alive or finished: use only
 * what was captured, the memories of the machine, and the registers of op->warp for register results. */
struct AsyncOp {
    AsyncOp *next, *previous;
    Machine *machine;
    Warp *warp;
    Cta *cta;
    const Ins *ins;
    Engine engine;
    uint32_t queue;         /* operations of the same non-zero queue run in the order of issue */
    uint32_t mask;          /* active lanes at issue */
    void (*read)(AsyncOp *op);
    void (*write)(AsyncOp *op);
    uint8_t is_read;        /* the read phase has run */
    uint16_t agent, agent_read; /* in whose name touches are recorded, see async_* below */
    uint32_t clock, clock_read;
    int n_signals, n_groups;
    Signal signals[MAX_CTAS];
    struct { uint8_t class; uint8_t at_read; uint32_t group; } groups[2];
    int after_class;        /* -1, or: may only run once groups up to after_group of this class are complete */
    uint32_t after_group;
    Clock carried[2];       /* clocks of the issuer that arrivals of this operation publish, or NULL */
    uint64_t serial, issued_at; /* order of issue; instruction count at issue */
    size_t payload_bytes;
    _Alignas(16) uint8_t payload[]; /* the handler's own captured operands and buffers */
};

/* New operation (zeroed payload). ENGINE decides defaults: MMA, WGMMA, ARRIVE, TMEM_* are in-order queues of the warp.
 * class: the group class whose open group it joins, or -1 (operations that complete on an mbarrier). For bulk-group
 * stores pass CLASS_BULK_WRITE: reads are then recorded and counted under CLASS_BULK_READ. */
AsyncOp *async_new(Warp *w, const Ins *i, uint32_t mask, Engine engine, int class, size_t payload_bytes);
/* Completion on an mbarrier (cluster address): complete_tx of tx_bytes and/or arrivals; later touches are recorded in
 * that barrier's name (call before the touches of that destination). False after a finding (no barrier there). */
int async_on_barrier(AsyncOp *op, uint32_t barrier_address, int32_t tx_bytes, uint32_t arrivals);
/* is_write: 0, or ACCESS_WRITE, which is 1, for reductions with ACCESS_ATOMIC: these do not race with each other. */
void async_touch_shared(AsyncOp *op, Cta *cta, uint32_t offset, uint32_t bytes, int is_write);
void async_touch_tmem(AsyncOp *op, Cta *cta, uint32_t first_lane, uint32_t n_lanes, uint32_t first_column, uint32_t n_columns,
                      int is_write);
void async_touch_global(AsyncOp *op, uint64_t address, uint32_t bytes, int is_write);
/* A register slot that the operation will write. Of a tcgen05.ld, the first use of the slot completes the load; of a
 * wgmma, any use before the wait for its group is a finding (other wgmma excepted: their handlers are marked). */
void async_pending_slot(AsyncOp *op, int32_t slot);
/* Its read phase also belongs to the warp's bulk group: a load's reading of its tensor map. */
void async_join_bulk_read(AsyncOp *op);
void async_issue(AsyncOp *op); /* hand it over: from here on the machine owns it and may already have run it */
/* Arrivals on barriers once everything that the warp issued so far in `class` is complete (tcgen05.commit, noinc). */
int async_arrive_after(Warp *w, const Ins *i, uint32_t mask, Class class, const uint32_t *addresses, int n, uint32_t arrivals);

/* -------------------------------------------------------------------------------------------------------- memory */

/* Shadow bytes of shared and global memory. */
enum { SHADOW_DEFINED = 0, SHADOW_BAD = 1, SHADOW_BARRIER = 2 /* part of a live mbarrier */ };

/* Bytes [address, address + bytes) of a shared::cluster address. Returns the CTA and the offset from its shared base,
 * or NULL after a finding (out of bounds, misaligned, no such CTA). Data at cta->smem + *offset, shadow at
 * cta->shadow + *offset. */
Cta *shared_at(Warp *w, const Ins *i, uint64_t address, uint32_t bytes, uint32_t alignment, uint32_t *offset);

enum { RANGE_TRACK = 1 /* races are looked for */, RANGE_READ_ONLY = 2, RANGE_PARAM = 4, RANGE_LOCAL = 8,
       RANGE_PRIOR = 16 /* written by the previous grid: only after griddepcontrol.wait */ };
typedef struct {
    uint64_t low, high;
    uint8_t *shadow;   /* one byte a byte (SHADOW_*), or NULL: everything is defined */
    uint16_t *owner;   /* of each byte: number of the cluster that wrote it in this launch, 0 none; or NULL */
    int32_t *writer;   /* of each byte: 1 + the instruction that wrote it last; or NULL */
    int32_t flags, name; /* name: index that Python understands */
} Range;
/* The registered range that holds [address, address + bytes), or NULL after a finding. */
Range *global_at(Warp *w, const Ins *i, uint64_t address, uint32_t bytes, uint32_t alignment, int is_write);

/* ------------------------------------------------------------------------------------------------------ mbarriers */

struct Barrier {
    uint32_t offset;  /* in the CTA's shared memory */
    uint8_t live;
    uint32_t phase;   /* completed phases; the parity bit is phase & 1 */
    int32_t count, pending; /* expected and outstanding arrivals */
    int64_t tx;       /* outstanding bytes of this phase, may be negative */
    uint16_t agent;   /* of transactions */
    uint16_t init_agent;
    uint32_t init_clock;
    uint8_t init_fenced; /* the initialising warp has executed a fence since */
    Clock arriving[2], passed[2]; /* generic and async view: gathered in this phase; given to waiters of the last one */
    uint32_t flying;  /* copies in flight that will signal the current phase */
    const Ins *init_ins, *last_arrival;
    Cta *cta;
};
Barrier *barrier_at(Warp *w, const Ins *i, uint64_t address); /* NULL after a finding */
void barrier_arrive(Warp *w, const Ins *i, Barrier *b, uint32_t count, int is_release);
void barrier_expect(Warp *w, const Ins *i, Barrier *b, int64_t bytes);

/* -------------------------------------------------------------------------------------------------- warps and CTAs */

typedef enum { WAIT_NONE, WAIT_BARRIER, WAIT_NAMED, WAIT_CLUSTER, WAIT_GROUP, WAIT_CONVERGE, WAIT_TMEM, WAIT_EVENT } WaitKind;

typedef struct {
    WaitKind kind;
    Barrier *barrier;
    uint32_t value;  /* parity; generation; group number */
    uint32_t id;     /* named barrier; class */
    uint32_t members; /* lanes that must come together (WAIT_CONVERGE) */
} Wait;

typedef struct {
    int32_t pc;
    uint32_t mask;
    Wait wait;
    int32_t failed_pc; uint32_t failed_address, failed_parity; /* last unsuccessful try_wait */
} Path;

struct Warp {
    uint32_t (*r)[LANES];
    uint32_t *bad, *p, *pbad;
    Cta *cta;
    Machine *machine;
    const Program *program;
    int32_t index;      /* in the CTA */
    int32_t serial;     /* in the machine */
    uint32_t live;      /* lanes that have not exited */
    uint32_t elected;   /* the lane that elect.sync chooses */
    Wait wait;          /* set by a handler that returns EMU_AGAIN */
    Wait resume;        /* what the instruction waited for that is now executed again; kind WAIT_NONE the first time */
    int32_t n_paths;
    Path paths[LANES];
    int32_t current;    /* the path that runs */
    Clock known, visible; /* what generic accesses know; what of it the async proxy sees */
    Clock fenced[2];      /* what the last fence published, for relaxed arrivals */
    uint32_t released;    /* its own clock up to its last release or fence */
    uint16_t agents[N_CLASSES]; /* 0: not made yet */
    Groups groups[N_CLASSES];
    uint32_t *pending_slots;  /* of each register slot: 0, or group << 4 | class of what will write it; NULL: none yet */
    uint32_t n_pending_slots;
    uint32_t bulk_lanes;      /* lanes that have issued bulk-group operations: groups belong to threads */
    const Ins *bulk_source;   /* the last one that reads shared memory, and its clock */
    uint32_t bulk_source_clock;
    const Ins *copy;          /* the last cp.async, and its clock */
    uint32_t copy_clock;
    uint32_t registers;       /* setmaxnreg */
    uint64_t instructions;
    uint8_t *local, *local_shadow; /* 32 × local_bytes each */
    uint64_t seen_event, blocked_since;
    uint8_t tired;            /* ran a whole quantum without blocking: others come first */
    Barrier **initialised;    /* barriers it initialised since its last fence */
    int32_t n_initialised;
    uint32_t cluster_generation; /* arrived at */
    uint8_t cluster_arrived, done;
    struct WgmmaState *wgmma; /* made by wgmma.c on first use */
};

typedef struct {
    uint32_t expected, arrived, generation; /* threads; expected 0: nobody is there yet */
    uint32_t whole_cta; /* no count was given: warps that have exited are not waited for */
    const Ins *first_ins;
    int32_t first_warp;
    uint32_t red[3]; /* popc, and, or of bar.red in this generation, and of the last one below */
    uint32_t red_done[3];
    Clock arriving[2], passed[2];
} NamedBarrier;

/* One granule of race records: 16 bytes of memory, or 32 lanes of a TMEM column (races.c). */
typedef struct { uint16_t agent; uint8_t flags, spare; uint32_t clock, mask; int32_t ins; } Record;
typedef struct { uint16_t n, capacity; Record *records; } Granule;

typedef struct { uint16_t first, columns; int32_t warp; const Ins *ins; } TmemAllocation;

struct Cta {
    Machine *machine;
    int32_t rank;           /* in the cluster */
    uint32_t id[3];
    uint8_t *smem, *shadow; /* smem_bytes each */
    uint32_t smem_bytes;
    Granule *granules;      /* of shared memory; NULL: races are not looked for */
    Granule *tmem_granules; /* [column * 4 + lane / 32] */
    Barrier **barriers;     /* at [offset / 8] */
    int32_t n_warps;
    Warp warps[MAX_WARPS];
    NamedBarrier named[16];
    uint32_t (*tmem)[TMEM_LANES];   /* [column][lane]; made on first allocation */
    uint32_t (*tmem_bad)[4];        /* [column]: 128 lane bits of poison */
    uint16_t tmem_owner[TMEM_COLUMNS]; /* allocation number + 1 of each column, 0 free */
    uint8_t tmem_relinquished;
    uint8_t tmem_used;
    struct TmemState *tmem_state; /* allocations (tmem.h) */
    int32_t register_pool, live_warps;
    uint8_t has_waited, has_let_on; /* griddepcontrol: for the grid before; the grid behind may begin */
};

/* Reports columns that are not allocated. False where there is no memory to access at all, which ends the run. */
int tmem_check(Warp *w, const Ins *i, Cta *cta, uint32_t first_column, uint32_t n_columns);
/* First column of an allocation, or -1 when none is free (block with WAIT_TMEM). Columns: power of two, 32..512. */
int tmem_allocate(Warp *w, const Ins *i, Cta *cta, uint32_t columns);
int tmem_free(Warp *w, const Ins *i, Cta *cta, uint32_t first_column, uint32_t columns); /* false after a finding */

/* ------------------------------------------------------------------------------------------------------- findings */

typedef struct {
    char kind[32];
    int32_t cta, warp;      /* rank in the cluster and index in the CTA, -1 none */
    uint32_t ctaid[3];
    int32_t ins, other_ins; /* instruction indices, -1 none */
    uint32_t lanes;
    uint32_t count;         /* how often the same was seen */
    int32_t wait_kind, wait_id; /* of a hang: WaitKind, and barrier number or class */
    int64_t wait[6];        /* WAIT_BARRIER: shared address, phase waited for, completed phases, expected arrivals,
                               missing arrivals, missing bytes; WAIT_NAMED: expected threads, arrived threads */
    char message[360];
} Finding;

/* kind is one word in snake case: out_of_bounds, misaligned, undefined_value, race, missing_proxy_fence, barrier, ... */
void finding(Warp *w, const Ins *i, uint32_t lanes, const Ins *other, const char *kind, const char *format, ...)
    __attribute__((format(printf, 6, 7)));
/* The same and the end of the run; returns EMU_STOP. */
int stop(Warp *w, const Ins *i, uint32_t lanes, const char *kind, const char *format, ...)
    __attribute__((format(printf, 5, 6)));
void machine_finding(Machine *m, const AsyncOp *op, const char *kind, const char *format, ...)
    __attribute__((format(printf, 4, 5)));
void machine_finding_at(Machine *m, const Cta *cta, const Ins *i, const Ins *other, const char *kind, const char *format, ...)
    __attribute__((format(printf, 6, 7)));

/* ----------------------------------------------------------------------------------------------------------- trace */

typedef enum { TRACE_RUN, TRACE_WAIT, TRACE_ISSUE, TRACE_LAND, TRACE_ARRIVE, TRACE_PHASE } TraceKind;
typedef struct {
    uint64_t time, until; /* instructions executed by the machine: start and end */
    /* cta: its rank, in an outcome its number in the order of clusters. ins: where a run ended. detail: what the warp
     * waits for then (-1: it has ended), the engine, or the barrier's offset. */
    int32_t kind, cta, warp, ins, detail;
    uint64_t serial; /* of the asynchronous operation; of arrivals and phases the barrier's phase */
} TraceEvent;
void trace(Machine *m, TraceKind kind, int cta, int warp, const Ins *i, int detail, uint64_t time, uint64_t serial);

/* ---------------------------------------------------------------------------------------------------------- machine */

enum { DELAY_EARLY, DELAY_LATE, DELAY_MIXED };
typedef struct {
    uint64_t seed;
    int32_t delay[N_ENGINES];
    int32_t starved_warp;  /* index in the CTA of the warp (of every CTA) that runs only when nothing else can, or -1 */
    int32_t reverse;       /* 1: warps of high index first */
    int32_t shuffle;       /* which warp runs: 0 the first that can, 1 drawn at random, 2 in turn */
    int32_t pick;          /* which waiting operation lands first: 0 oldest, 1 newest, 2 random */
    int32_t elect_last;    /* 0: elect chooses the lowest lane; 1: the highest; 2: random, the same for a warp */
    int32_t spurious;      /* 1: try_wait and test_wait may fail although the phase is complete */
    int32_t split_read;    /* 1: reads of operations happen at issue though writes are late; -1: both late */
    int32_t races;         /* 0: no clocks, for speed */
    int64_t max_instructions; /* of a cluster; 0 no limit */
    int32_t trace;
    int32_t max_findings;
    int32_t spare;
} Policy;

typedef struct {
    uint32_t grid[3], block[3], cluster[3];
    uint32_t dynamic_smem_bytes, static_smem_bytes;
    uint64_t param_address;
    uint32_t param_bytes, registers_per_thread; /* 0: not known */
    uint32_t n_sms;
} Launch;

typedef struct {
    uint64_t instructions, async_ops, barrier_phases, races_checked, switches;
    uint64_t hasty_ctas; /* that let the grid behind begin, or ended, before they had waited for the one before */
    uint64_t spare[2];
} Stats;

typedef struct Memory { Range *ranges; int32_t n, capacity; } Memory;

struct Machine {
    const Program *program;
    Launch launch;
    Policy policy;
    Memory *memory;
    int32_t n_ctas;
    Cta *ctas;             /* n_ctas, by rank */
    uint32_t cluster_id[3];
    uint64_t now;          /* instructions executed */
    uint64_t event;        /* counts what could wake somebody */
    uint64_t random;
    AsyncOp *first, *last; /* waiting operations, oldest first */
    int32_t n_waiting;
    uint64_t next_serial;
    uint32_t n_agents, clock_length; /* numbers given out, AGENT_PRIOR_GRID included */
    struct { uint32_t arrived, generation, expected; Clock arriving[2], passed[2]; } cluster;
    Finding *findings;
    int32_t n_findings, findings_capacity;
    TraceEvent *events;
    int64_t n_events, events_capacity;
    Stats stats;
    int stopped;
    Range *last_range;
    void **global_granules; /* race records of each range */
    struct Block *arena;   /* everything that lives as long as the cluster */
    struct SyncLocation *locations;
    struct MapNote *tensor_maps; /* maps in global memory that the kernel has changed (tensormap.c) */
    uint32_t cluster_serial; /* 1 + the cluster's linear index */
    int acquired;          /* something was acquired from global memory: other clusters may be synchronised with */
    int cursor;
    uint32_t idle_turns;   /* how often nobody but tired and starved warps could run */
    struct { Warp *warp; uint32_t barrier; uint8_t class; } agents[MAX_AGENTS];
};

uint32_t machine_random(Machine *m); /* seeded, 32 bits */
void *arena_new(Machine *m, size_t bytes); /* zeroed, 64-byte aligned, freed with the cluster */

/* Between the core's own files. */
Clock clock_new(Machine *m);
void clock_join(const Machine *m, Clock into, const uint32_t *from);
void clock_release(Warp *w, Clock into[2]);           /* publishes what w knows; its clock goes on */
void clock_acquire(Warp *w, Clock from[2]);
void clock_release_fenced(Warp *w, Clock into[2]);    /* what the last fence published */
int wait_ready(const Machine *m, const Warp *w, const Path *path);
void pending_clear(Warp *w, Class class, uint32_t up_to_group); /* forgets in-flight register slots */
void let_on(Cta *cta);          /* the grid behind may begin, as far as this CTA goes */
void tmem_exit_check(Cta *cta); /* tensor memory that is still allocated when the CTA ends */
void local_at(Warp *w, const Ins *i, uint32_t lane, uint64_t address, uint32_t bytes, uint8_t **data, uint8_t **shadow);
int async_step_any(Machine *m);                       /* completes one waiting operation; 0 when there is none */
void async_step_mixed(Machine *m);
void async_finish_class(Warp *w, Class class);        /* lands everything issued in a class and lets w know it */
void barrier_signal(Machine *m, const AsyncOp *op, const Signal *signal);
void barrier_check_known(Warp *w, const Ins *i, Barrier *b, int is_async);
void barriers_fenced(Warp *w);
void named_barrier_exit(Warp *w);
void cluster_barrier_exit(Warp *w);
void sync_location(Warp *w, uint64_t address, uint32_t flags, int is_read, int is_write);
int run_cluster(Machine *m);
/* Judges and records accesses of a warp instruction: lane l touches `bytes` at granule base `at[l]`. */
void touch_lanes_shared(const Access *a, Cta *cta, const uint32_t *offset, uint32_t mask, uint32_t bytes);
void touch_lanes_global(const Access *a, const uint64_t *address, uint32_t mask, uint32_t bytes);
enum { MEMORY_SIGNED = 1, MEMORY_RELAXED = 2, MEMORY_ACQUIRE = 4, MEMORY_RELEASE = 8, MEMORY_WIDE = 16, MEMORY_REMOTE = 32 };

/* ---------------------------------------------------------------------------------------------------- small helpers */

static inline void set_bad(Warp *w, int32_t slot, uint32_t mask, uint32_t bad)
{
    w->bad[slot] = (w->bad[slot] & ~mask) | (bad & mask);
}
static inline void set_pred(Warp *w, int32_t slot, uint32_t mask, uint32_t value, uint32_t bad)
{
    w->p[slot] = (w->p[slot] & ~mask) | (value & mask);
    w->pbad[slot] = (w->pbad[slot] & ~mask) | (bad & mask);
}
static inline uint64_t get64(const Warp *w, int32_t slot, uint32_t lane)
{
    return (uint64_t)w->r[slot + 1][lane] << 32 | w->r[slot][lane];
}
static inline void set64(Warp *w, int32_t slot, uint32_t lane, uint64_t value)
{
    w->r[slot][lane] = (uint32_t)value;
    w->r[slot + 1][lane] = (uint32_t)(value >> 32);
}
static inline uint32_t first_lane(uint32_t mask) { return (uint32_t)__builtin_ctz(mask); }
static inline uint32_t shared_address(const Cta *cta, uint32_t offset)
{
    return ((uint32_t)cta->rank << SHARED_RANK_SHIFT) + SHARED_BASE + offset;
}
/* Collectives: EMU_NEXT when all `members` that are alive are in mask; otherwise EMU_AGAIN (the path waits for them). */
int converged(Warp *w, const Ins *i, uint32_t mask, uint32_t members);

#endif
