/* wgmma: matrix instructions of a warpgroup, asynchronous. Each warp executes its own 16 of the 64 rows.
 *
 * The work is done when the operation lands: shared memory and accumulators are read then, in the order of issue, so that
 * chains accumulate rightly. A in registers is captured at issue, and must still be there at landing.
 *
 * Of the rules for wgmma.fence those are checked that no right kernel can break: some fence comes before the first wgmma
 * of a warp, and once the results have been waited for (registers are the warp's again), a wgmma without another fence
 * must find its registers as an earlier wgmma left or took them. Writing registers between a fence and the wgmma is not
 * reported, since known-right kernels zero their accumulators there. */
#include "matrix.h"
#include <immintrin.h>

#define WARPGROUP_WARPS 4
#define WARP_ROWS 16
#define MAX_N 256
#define MAX_WGMMA_K 32
#define A_REGISTERS 4
#define MAX_OPERAND_UNITS 512 /* 256 columns of 32 bytes */

enum { A_IN_REGISTERS = 1, NEGATE_A = 2, NEGATE_B = 4, TRANSPOSE_A = 8, TRANSPOSE_B = 16, SATURATE = 32 };

/* What all warps of a warpgroup must execute alike, the nth wgmma of each. */
typedef struct { const Ins *ins; uint64_t a, b; uint32_t serial; int16_t warp; uint8_t accumulate; } Issued;
#define ISSUED_RING 512

/* B is the same for the four warps, which mostly find it unchanged. */
typedef struct {
    uint32_t bytes;
    ElementType type;
    uint32_t mn_major, n, k;
    uint8_t raw[MAX_OPERAND_UNITS * 16];
    _Alignas(64) float values[MAX_WGMMA_K * MAX_N];
} Converted;

typedef struct WgmmaState {
    uint32_t serial;       /* wgmmas executed */
    uint8_t fenced;        /* a fence since registers were last waited for */
    uint8_t ever_fenced;
    uint64_t *seen;        /* of each register slot: hash of what a wgmma last left or took there; 0 none */
    Issued *issued;        /* of the warpgroup, in the state of its first warp */
    Converted *converted;  /* likewise */
} WgmmaState;

static WgmmaState *state_of(Warp *w)
{
    if (!w->wgmma) {
        w->wgmma = arena_new(w->machine, sizeof(WgmmaState));
        w->wgmma->seen = arena_new(w->machine, (size_t)w->program->n_registers * sizeof(uint64_t));
        if (w->index % WARPGROUP_WARPS == 0) {
            w->wgmma->issued = arena_new(w->machine, ISSUED_RING * sizeof(Issued));
            w->wgmma->converted = arena_new(w->machine, sizeof(Converted));
        }
    }
    return w->wgmma;
}

static WgmmaState *group_state(Warp *w) { return state_of(&w->cta->warps[w->index - w->index % WARPGROUP_WARPS]); }

static uint64_t hash_register(const uint32_t *lanes)
{
    __m256i sum = _mm256_setzero_si256();
    for (uint32_t l = 0; l < LANES; l += 8) {
        sum = _mm256_or_si256(_mm256_slli_epi32(sum, 7), _mm256_srli_epi32(sum, 25));
        sum = _mm256_add_epi32(sum, _mm256_loadu_si256((const __m256i *)(lanes + l)));
    }
    uint64_t quarter[4], hash = 0x9e3779b97f4a7c15ull;
    memcpy(quarter, &sum, sizeof quarter);
    for (uint32_t n = 0; n < 4; n++) hash = (hash ^ quarter[n]) * 0xff51afd7ed558ccdull;
    return hash | 1;
}

/* ------------------------------------------------------------------------------------------------------- landing */

typedef struct {
    SmemMatrix a, b;
    uint8_t accumulate;
    uint32_t a_registers[A_REGISTERS][LANES], a_bad[A_REGISTERS];
} Wgmma;

typedef struct { /* the immediates of the instruction */
    uint32_t n, k, flags, accumulators, a_bits, b_bits;
    ElementType d_type, a_type, b_type;
} Shape;

static Shape shape_of(const Ins *i)
{
    Shape s = {.n = (uint32_t)i->imm[0], .k = (uint32_t)i->imm[1], .flags = (uint32_t)i->imm[5], .accumulators = (uint32_t)i->imm[6]};
    s.d_type = (ElementType)i->imm[2], s.a_type = (ElementType)i->imm[3], s.b_type = (ElementType)i->imm[4];
    s.a_bits = element_bits_of(s.a_type), s.b_bits = element_bits_of(s.b_type);
    return s;
}

/* Poison of an operand: which rows (or columns) have it, and the first place. */
typedef struct { uint8_t of_mn[MAX_N]; uint32_t count, mn, k, address; } Poison;

static void note_poison(Poison *poison, uint32_t mn, uint32_t k, uint32_t address)
{
    poison->of_mn[mn] = 1;
    if (poison->count++) return;
    poison->mn = mn, poison->k = k, poison->address = address;
}

/* Places of an element of unit u of the tile. */
static void unit_element(const SmemMatrix *m, uint32_t per_row, uint32_t per_unit, uint32_t u, uint32_t e, uint32_t *mn, uint32_t *k)
{
    uint32_t row = u / per_row, along = u % per_row * per_unit + e;
    *mn = m->mn_major ? along : row;
    *k = m->mn_major ? row : along;
}

static void find_poison(const Cta *cta, const SmemMatrix *m, const uint32_t *offsets, uint32_t n_units, uint32_t mn_count,
                        uint32_t k_count, uint32_t bits, Poison *poison)
{
    uint32_t row_elements = m->mn_major ? mn_count : k_count, per_unit = 128 / bits, per_row = (row_elements + per_unit - 1) / per_unit;
    for (uint32_t u = 0; u < n_units; u++) {
        const uint8_t *shadow = cta->shadow + offsets[u];
        uint64_t halves[2];
        memcpy(halves, shadow, 16);
        if (likely(!(halves[0] | halves[1]))) continue;
        for (uint32_t byte = 0; byte < 16; byte++) {
            uint32_t e = byte * 8 / bits, mn, k;
            unit_element(m, per_row, per_unit, u, e, &mn, &k);
            if (shadow[byte] && mn < mn_count && k < k_count && byte % (bits / 8) == 0)
                note_poison(poison, mn, k, shared_address(cta, offsets[u] + byte));
        }
    }
}

/* Values of a tile's units, to out[mn * mn_stride + k * k_stride]. */
static void spread(const SmemMatrix *m, const uint8_t *raw, uint32_t n_units, uint32_t mn_count, uint32_t k_count, ElementType type,
                   float *out, uint32_t mn_stride, uint32_t k_stride)
{
    uint32_t bits = element_bits_of(type), per_unit = 128 / bits;
    uint32_t row_elements = m->mn_major ? mn_count : k_count, per_row = (row_elements + per_unit - 1) / per_unit;
    uint32_t step = m->mn_major ? mn_stride : k_stride, row_step = m->mn_major ? k_stride : mn_stride;
    for (uint32_t u = 0; u < n_units; u++) {
        float values[16];
        element_values(type, raw + 16 * u, per_unit, values);
        uint32_t first = u % per_row * per_unit, count = row_elements - first < per_unit ? row_elements - first : per_unit;
        float *to = out + u / per_row * row_step + first * step;
        if (step == 1)
            for (uint32_t e = 0; e < count; e++) to[e] = values[e];
        else
            for (uint32_t e = 0; e < count; e++) to[e * step] = values[e];
    }
}

static void gather(const Cta *cta, const uint32_t *offsets, uint32_t n, uint8_t *raw)
{
    for (uint32_t u = 0; u < n; u++) memcpy(raw + 16 * u, cta->smem + offsets[u], 16);
}

static uint32_t stride_of(uint32_t n) { return (n + 15) & ~15u; }

static const float *values_of_b(AsyncOp *op, const Shape *s, const SmemMatrix *m, Poison *poison)
{
    uint32_t offsets[MAX_OPERAND_UNITS], stride = stride_of(s->n);
    uint8_t raw[MAX_OPERAND_UNITS * 16];
    uint32_t n_units = matrix_units(m, s->n, s->k, s->b_bits, offsets);
    find_poison(op->cta, m, offsets, n_units, s->n, s->k, s->b_bits, poison);
    gather(op->cta, offsets, n_units, raw);
    Converted *c = group_state(op->warp)->converted;
    int same = c->bytes == 16 * n_units && c->type == s->b_type && c->mn_major == m->mn_major && c->n == s->n && c->k == s->k;
    if (same && !memcmp(c->raw, raw, c->bytes)) return c->values;
    memcpy(c->raw, raw, 16 * n_units);
    c->bytes = 16 * n_units, c->type = s->b_type, c->mn_major = m->mn_major, c->n = s->n, c->k = s->k;
    if (stride != s->n)
        for (uint32_t k = 0; k < s->k; k++) memset(c->values + k * stride + s->n, 0, (stride - s->n) * sizeof(float));
    spread(m, raw, n_units, s->n, s->k, s->b_type, c->values, 1, stride);
    return c->values;
}

/* A of this warp as a[16][k]. */
static void values_of_a(AsyncOp *op, const Shape *s, const Wgmma *g, float *a, Poison *poison)
{
    if (!(s->flags & A_IN_REGISTERS)) {
        uint32_t offsets[2 * MAX_WGMMA_K];
        uint8_t raw[2 * MAX_WGMMA_K * 16];
        uint32_t n_units = matrix_units(&g->a, WARP_ROWS, s->k, s->a_bits, offsets);
        find_poison(op->cta, &g->a, offsets, n_units, WARP_ROWS, s->k, s->a_bits, poison);
        gather(op->cta, offsets, n_units, raw);
        spread(&g->a, raw, n_units, WARP_ROWS, s->k, s->a_type, a, s->k, 1);
    } else {
        uint32_t per_register = 32 / s->a_bits;
        for (uint32_t j = 0; j < A_REGISTERS; j++)
            for (uint32_t l = 0; l < LANES; l++) {
                uint32_t row = l / 4 + 8 * (j & 1);
                float *to = a + row * s->k + ((j >> 1) * 4 + l % 4) * per_register;
                for (uint32_t e = 0; e < per_register; e++) to[e] = element_value(s->a_type, g->a_registers[j][l] >> (s->a_bits * e));
                if (g->a_bad[j] >> l & 1) poison->of_mn[row] = 1; /* reported at issue */
            }
    }
    if (!(s->flags & NEGATE_A) != !(s->flags & NEGATE_B))
        for (uint32_t e = 0; e < WARP_ROWS * s->k; e++) a[e] = -a[e];
}

/* Accumulator registers to d[16][stride] and back. Lane 4 r + c of register 4 b + 2 h + o holds row 8 h + r, column
 * 8 b + 2 c + o; with f16 register 2 b + h holds both columns. */
static void load_accumulators(const Warp *w, const int32_t *slots, const Shape *s, float *d, uint32_t stride)
{
    for (uint32_t block = 0; block < s->n / 8; block++)
        for (uint32_t half = 0; half < 2; half++)
            for (uint32_t r = 0; r < 8; r++) {
                float *to = d + (8 * half + r) * stride + 8 * block;
                if (s->d_type == ELEMENT_F16) {
                    __m128i pairs = _mm_loadu_si128((const __m128i *)(w->r[slots[2 * block + half]] + 4 * r));
                    _mm256_store_ps(to, _mm256_cvtph_ps(pairs));
                    continue;
                }
                const int32_t *slot = slots + 4 * block + 2 * half;
                __m128i even = _mm_loadu_si128((const __m128i *)(w->r[slot[0]] + 4 * r));
                __m128i odd = _mm_loadu_si128((const __m128i *)(w->r[slot[1]] + 4 * r));
                _mm_store_si128((__m128i *)to, _mm_unpacklo_epi32(even, odd));
                _mm_store_si128((__m128i *)to + 1, _mm_unpackhi_epi32(even, odd));
            }
}

static void store_accumulators(Warp *w, const int32_t *slots, const Shape *s, const float *d, uint32_t stride)
{
    for (uint32_t block = 0; block < s->n / 8; block++)
        for (uint32_t half = 0; half < 2; half++)
            for (uint32_t r = 0; r < 8; r++) {
                const float *from = d + (8 * half + r) * stride + 8 * block;
                if (s->d_type == ELEMENT_F16) {
                    __m128i pairs = _mm256_cvtps_ph(_mm256_load_ps(from), _MM_FROUND_TO_NEAREST_INT);
                    _mm_storeu_si128((__m128i *)(w->r[slots[2 * block + half]] + 4 * r), pairs);
                    continue;
                }
                const int32_t *slot = slots + 4 * block + 2 * half;
                __m128 low = _mm_load_ps(from), high = _mm_load_ps(from + 4);
                _mm_storeu_ps((float *)(w->r[slot[0]] + 4 * r), _mm_shuffle_ps(low, high, 0x88));
                _mm_storeu_ps((float *)(w->r[slot[1]] + 4 * r), _mm_shuffle_ps(low, high, 0xdd));
            }
}

static void poison_accumulators(Warp *w, const int32_t *slots, const Shape *s, int accumulate, const Poison *a, const Poison *b)
{
    int packed = s->d_type == ELEMENT_F16;
    for (uint32_t j = 0; j < s->accumulators; j++) {
        uint32_t half = packed ? j & 1 : j >> 1 & 1, block = packed ? j / 2 : j / 4, bad = accumulate ? w->bad[slots[j]] : 0;
        for (uint32_t l = 0; l < LANES; l++) {
            uint32_t column = 8 * block + 2 * (l % 4) + (packed ? 0 : j & 1);
            bad |= (uint32_t)(a->of_mn[8 * half + l / 4] | b->of_mn[column] | (packed ? b->of_mn[column + 1] : 0)) << l;
        }
        w->bad[slots[j]] = bad;
    }
}

static void report_poison(AsyncOp *op, const Shape *s, char operand, const Poison *poison)
{
    uint32_t row = poison->mn + (operand == 'A' ? WARP_ROWS * (uint32_t)(op->warp->index % WARPGROUP_WARPS) : 0);
    finding(op->warp, op->ins, 0, NULL, "undefined_value",
            "operand %c (%s) of wgmma: %s %u, k %u at shared address 0x%x was never written (%u such elements)", operand,
            element_name(operand == 'A' ? s->a_type : s->b_type), operand == 'A' ? "row" : "column", row, poison->k, poison->address,
            poison->count);
}

static void check_a_unchanged(AsyncOp *op, const Wgmma *g, const int32_t *slots)
{
    for (uint32_t j = 0; j < A_REGISTERS; j++) {
        uint32_t lanes = 0;
        for (uint32_t l = 0; l < LANES; l++) lanes |= (uint32_t)(op->warp->r[slots[j]][l] != g->a_registers[j][l]) << l;
        if (!lanes) continue;
        finding(op->warp, op->ins, lanes, NULL, "wgmma_in_flight",
                "register %u of operand A was overwritten before the wgmma that reads it was waited for", j);
        return;
    }
}

static void land(AsyncOp *op)
{
    const Ins *i = op->ins;
    const Shape s = shape_of(i);
    const Wgmma *g = (const Wgmma *)op->payload;
    Warp *w = op->warp;
    uint32_t stride = stride_of(s.n);
    Poison a_poison, b_poison;
    memset(&a_poison, 0, sizeof a_poison);
    memset(&b_poison, 0, sizeof b_poison);
    float a[WARP_ROWS * MAX_WGMMA_K];
    _Alignas(64) float d[WARP_ROWS * MAX_N];

    if (s.flags & A_IN_REGISTERS) check_a_unchanged(op, g, i->s + s.accumulators);
    values_of_a(op, &s, g, a, &a_poison);
    const float *b = values_of_b(op, &s, &g->b, &b_poison);
    if (a_poison.count) report_poison(op, &s, 'A', &a_poison);
    if (b_poison.count) report_poison(op, &s, 'B', &b_poison);

    if (!g->accumulate || stride != s.n) memset(d, 0, WARP_ROWS * stride * sizeof *d);
    if (g->accumulate) load_accumulators(w, i->s, &s, d, stride);
    if (s.d_type == ELEMENT_S32) {
        matrix_sum_integer(WARP_ROWS, s.n, s.k, a, s.k, b, stride, (int32_t *)d, stride, (s.flags & SATURATE) != 0);
    } else {
        SumModel model = sum_model(UNIT_WGMMA, s.a_type, s.b_type, s.k);
        matrix_sum(model, s.a_type, s.b_type, WARP_ROWS, s.n, s.k, a, s.k, b, stride, d, stride, s.d_type == ELEMENT_F16);
    }
    store_accumulators(w, i->s, &s, d, stride);
    poison_accumulators(w, i->s, &s, g->accumulate, &a_poison, &b_poison);
    WgmmaState *state = state_of(w);
    for (uint32_t j = 0; j < s.accumulators; j++) state->seen[i->s[j]] = hash_register(w->r[i->s[j]]);
}

/* --------------------------------------------------------------------------------------------------------- issue */

/* A 64-bit operand that must be the same in all lanes. False after a finding that nothing can follow. */
static int uniform_descriptor(Warp *w, const Ins *i, uint32_t mask, int32_t slot, char operand, uint64_t *value)
{
    uint32_t bad = (w->bad[slot] | w->bad[slot + 1]) & mask;
    if (bad) {
        stop(w, i, bad, "undefined_value", "the matrix descriptor of operand %c was never written", operand);
        return 0;
    }
    *value = get64(w, slot, first_lane(mask));
    uint32_t other = 0;
    EACH_LANE(mask, l) other |= (uint32_t)(get64(w, slot, l) != *value) << l;
    if (other)
        finding(w, i, other, NULL, "wgmma_warpgroup", "the matrix descriptor of operand %c is not the same in all threads", operand);
    return 1;
}

static void check_warpgroup(Warp *w, const Ins *i, uint64_t a, uint64_t b, int accumulate)
{
    int first = w->index - w->index % WARPGROUP_WARPS;
    if (first + WARPGROUP_WARPS > w->cta->n_warps) {
        finding(w, i, 0, NULL, "wgmma_warpgroup", "warps %d to %d are no warpgroup: the CTA has %d warps", first, w->cta->n_warps - 1,
                w->cta->n_warps);
        return;
    }
    WgmmaState *state = state_of(w);
    uint32_t serial = ++state->serial;
    Issued *issued = &group_state(w)->issued[serial % ISSUED_RING];
    if (issued->serial < serial) {
        *issued = (Issued){i, a, b, serial, (int16_t)w->index, (uint8_t)accumulate};
        return;
    }
    if (issued->serial != serial) return; /* others are so far ahead that it is forgotten */
    if (issued->ins != i)
        finding(w, i, 0, issued->ins, "wgmma_warpgroup",
                "warps %d and %d of a warpgroup execute different wgmmas: all four must execute the same ones in the same order",
                issued->warp, w->index);
    else if (issued->a != a || issued->b != b)
        finding(w, i, 0, NULL, "wgmma_warpgroup", "warps %d and %d of a warpgroup have different matrix descriptors of operand %c",
                issued->warp, w->index, issued->a != a ? 'A' : 'B');
    else if (issued->accumulate != accumulate)
        finding(w, i, 0, NULL, "wgmma_warpgroup", "warps %d and %d of a warpgroup have different scale-d", issued->warp, w->index);
}

static void check_fence(Warp *w, const Ins *i, const Shape *s)
{
    WgmmaState *state = state_of(w);
    if (state->fenced) return;
    if (!state->ever_fenced) {
        finding(w, i, 0, NULL, "wgmma_fence", "the warp has executed no wgmma.fence before its first wgmma");
        state->ever_fenced = 1;
        return;
    }
    uint32_t checked = s->accumulators + (s->flags & A_IN_REGISTERS ? A_REGISTERS : 0);
    for (uint32_t j = 0; j < checked; j++) {
        uint64_t seen = state->seen[i->s[j]];
        if (!seen || seen == hash_register(w->r[i->s[j]])) continue;
        finding(w, i, 0, NULL, "wgmma_fence", "%s register was written after the last wgmma.wait_group, and no wgmma.fence follows",
                j < s->accumulators ? "an accumulator" : "an operand A");
        return;
    }
}

/* A in registers: captured now. */
static void capture_a(Warp *w, const Ins *i, const Shape *s, Wgmma *g)
{
    WgmmaState *state = state_of(w);
    for (uint32_t j = 0; j < A_REGISTERS; j++) {
        int32_t slot = i->s[s->accumulators + j];
        memcpy(g->a_registers[j], w->r[slot], sizeof g->a_registers[j]);
        g->a_bad[j] = w->bad[slot];
        state->seen[slot] = hash_register(w->r[slot]);
        if (w->n_pending_slots && w->pending_slots[slot])
            finding(w, i, 0, NULL, "wgmma_in_flight", "register %u of operand A is an accumulator of a wgmma that was not waited for", j);
        if (!w->bad[slot]) continue;
        uint32_t l = first_lane(w->bad[slot]), row = WARP_ROWS * (uint32_t)(w->index % WARPGROUP_WARPS) + l / 4 + 8 * (j & 1);
        finding(w, i, w->bad[slot], NULL, "undefined_value", "operand A of wgmma: the register that holds row %u, k %u was never written",
                row, ((j >> 1) * 4 + l % 4) * 32 / s->a_bits);
    }
}

static int inside(Warp *w, const Ins *i, const SmemMatrix *m, uint32_t mn, uint32_t k, uint32_t bits)
{
    uint32_t offsets[MAX_OPERAND_UNITS];
    return matrix_inside(w, i, w->cta, offsets, matrix_units(m, mn, k, bits, offsets));
}

/* slots accumulators…, A (descriptor pair, or 4 registers), B pair, scale-d predicate; imm n, k, types of D, A, B, flags,
 * accumulators */
HANDLER(wgmma)
{
    const Shape s = shape_of(i);
    const int32_t *a_slot = i->s + s.accumulators, *b_slot = a_slot + (s.flags & A_IN_REGISTERS ? A_REGISTERS : 1);
    int32_t predicate = b_slot[1];
    uint64_t a = 0, b = 0;
    if (mask != FULL) return stop(w, i, ~mask, "convergence", "wgmma needs all 32 threads of the warp, and some of them have exited");
    if (w->pbad[predicate] & mask)
        return stop(w, i, w->pbad[predicate] & mask, "undefined_value", "the scale-d predicate was never written");
    if (!(s.flags & A_IN_REGISTERS) && !uniform_descriptor(w, i, mask, a_slot[0], 'A', &a)) return EMU_STOP;
    if (!uniform_descriptor(w, i, mask, b_slot[0], 'B', &b)) return EMU_STOP;
    int accumulate = w->p[predicate] & 1;
    if ((w->p[predicate] & mask) != (accumulate ? mask : 0))
        finding(w, i, w->p[predicate] & mask, NULL, "wgmma_warpgroup", "scale-d is not the same in all threads");
    check_warpgroup(w, i, a, b, accumulate);
    check_fence(w, i, &s);

    uint32_t rows = WARP_ROWS * (uint32_t)(w->index % WARPGROUP_WARPS);
    SmemMatrix whole_a = wgmma_matrix(a, s.flags & TRANSPOSE_A), own_a = matrix_from(&whole_a, rows, s.a_bits);
    SmemMatrix all_b = wgmma_matrix(b, s.flags & TRANSPOSE_B);
    if (!(s.flags & A_IN_REGISTERS) && !inside(w, i, &own_a, WARP_ROWS, s.k, s.a_bits)) return EMU_NEXT;
    if (!inside(w, i, &all_b, s.n, s.k, s.b_bits)) return EMU_NEXT;

    AsyncOp *op = async_new(w, i, mask, ENGINE_WGMMA, CLASS_WGMMA, sizeof(Wgmma));
    Wgmma *g = (Wgmma *)op->payload;
    g->a = own_a, g->b = all_b, g->accumulate = (uint8_t)accumulate;
    if (s.flags & A_IN_REGISTERS) capture_a(w, i, &s, g);
    if (w->machine->policy.races) {
        if (!(s.flags & A_IN_REGISTERS)) matrix_touch(op, w->cta, &g->a, WARP_ROWS, s.k, s.a_bits);
        matrix_touch(op, w->cta, &g->b, s.n, s.k, s.b_bits);
    }
    for (uint32_t j = 0; j < s.accumulators; j++) async_pending_slot(op, i->s[j]);
    op->write = land;
    async_issue(op);
    return EMU_NEXT;
}

HANDLER(wgmma_fence)
{
    state_of(w)->fenced = state_of(w)->ever_fenced = 1;
    return EMU_NEXT;
}

HANDLER(wgmma_commit)
{
    group_commit(w, CLASS_WGMMA);
    return EMU_NEXT;
}

HANDLER(wgmma_wait)
{
    int status = group_wait(w, i, CLASS_WGMMA, (uint32_t)i->imm[0]);
    if (status == EMU_NEXT) state_of(w)->fenced = 0;
    return status;
}
