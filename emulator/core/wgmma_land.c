/* The product of a wgmma, when the operation lands: one warp's 16 rows of D. */
#include "wgmma.h"
#include <immintrin.h>

/* Poison of an operand: which rows (or columns) have it, and the first place. */
typedef struct { uint32_t count, mn, k, address; uint8_t of_mn[MAX_WGMMA_N]; } Poison;

/* Row (or column) and K of element e of unit u. */
typedef struct { uint32_t mn_major, mn, k, bits, per_unit, per_row; } Tiling;

static Tiling tiling_of(uint32_t mn_major, uint32_t mn, uint32_t k, uint32_t bits)
{
    return (Tiling){mn_major, mn, k, bits, 128 / bits, (mn_major ? mn : k) * bits / 128};
}

static void note_poison(const Cta *cta, const Tiling *t, const uint32_t *units, uint32_t n_units, Poison *poison)
{
    for (uint32_t u = 0; u < n_units; u++)
        for (uint32_t e = 0; e < t->per_unit; e++) {
            const uint8_t *shadow = cta->shadow + units[u] + e * t->bits / 8;
            uint32_t bad = 0, row = u / t->per_row, along = u % t->per_row * t->per_unit + e;
            for (uint32_t b = 0; b < t->bits / 8; b++) bad |= shadow[b];
            if (!bad) continue;
            uint32_t mn = t->mn_major ? along : row, k = t->mn_major ? row : along;
            poison->of_mn[mn] = 1;
            if (poison->count++) continue;
            poison->mn = mn, poison->k = k, poison->address = shared_address(cta, units[u] + e * t->bits / 8);
        }
}

static void gather(const Cta *cta, const Tiling *t, const uint32_t *units, uint32_t n_units, uint8_t *raw, Poison *poison)
{
    __m128i any = _mm_setzero_si128();
    for (uint32_t u = 0; u < n_units; u++) {
        memcpy(raw + 16 * u, cta->smem + units[u], 16);
        any = _mm_or_si128(any, _mm_loadu_si128((const __m128i *)(cta->shadow + units[u])));
    }
    if (unlikely(!_mm_testz_si128(any, any))) note_poison(cta, t, units, n_units, poison);
}

/* Values of the units to out[mn * mn_stride + k * k_stride]. */
static void spread(const Tiling *t, const uint8_t *raw, uint32_t n_units, ElementType type, float *out, uint32_t mn_stride,
                   uint32_t k_stride)
{
    uint32_t step = t->mn_major ? mn_stride : k_stride, row_step = t->mn_major ? k_stride : mn_stride;
    for (uint32_t u = 0; u < n_units; u++) {
        float values[16], *to = out + u / t->per_row * row_step + u % t->per_row * t->per_unit * step;
        if (step == 1) {
            element_values(type, raw + 16 * u, t->per_unit, to);
            continue;
        }
        element_values(type, raw + 16 * u, t->per_unit, values);
        for (uint32_t e = 0; e < t->per_unit; e++) to[e * step] = values[e];
    }
}

static const float *values_of_b(AsyncOp *op, const WgmmaShape *s, const Wgmma *g, Poison *poison)
{
    _Alignas(64) uint8_t raw[MAX_B_UNITS * 16];
    uint32_t stride = wgmma_stride(s->n), bytes = 16 * g->n_b_units;
    Tiling t = tiling_of(g->b_mn_major, s->n, s->k, s->b_bits);
    gather(op->cta, &t, g->b_units, g->n_b_units, raw, poison);
    WgmmaConverted *c = wgmma_group_state(op->warp)->converted;
    int same = c->bytes == bytes && c->type == s->b_type && c->mn_major == g->b_mn_major && c->n == s->n && c->k == s->k;
    if (same && !memcmp(c->raw, raw, bytes)) return c->values;
    memcpy(c->raw, raw, bytes);
    c->bytes = bytes, c->type = s->b_type, c->mn_major = g->b_mn_major, c->n = s->n, c->k = s->k;
    if (stride != s->n)
        for (uint32_t k = 0; k < s->k; k++) memset(c->values + k * stride + s->n, 0, (stride - s->n) * sizeof(float));
    spread(&t, raw, g->n_b_units, s->b_type, c->values, 1, stride);
    return c->values;
}

/* A of this warp as a[16][k]. */
static void values_of_a(AsyncOp *op, const WgmmaShape *s, const Wgmma *g, float *a, Poison *poison)
{
    if (!(s->flags & A_IN_REGISTERS)) {
        uint8_t raw[MAX_A_UNITS * 16];
        Tiling t = tiling_of(g->a_mn_major, WARP_ROWS, s->k, s->a_bits);
        gather(op->cta, &t, g->a_units, g->n_a_units, raw, poison);
        spread(&t, raw, g->n_a_units, s->a_type, a, s->k, 1);
    } else {
        uint32_t per_register = 32 / s->a_bits;
        for (uint32_t j = 0; j < A_REGISTERS; j++)
            for (uint32_t l = 0; l < LANES; l++) {
                uint32_t row = l / 4 + 8 * (j & 1), bits = g->a_registers[j][l];
                float *to = a + row * s->k + ((j >> 1) * 4 + l % 4) * per_register;
                for (uint32_t e = 0; e < per_register; e++) to[e] = element_value(s->a_type, bits >> (s->a_bits * e));
                if (g->a_bad[j] >> l & 1) poison->of_mn[row] = 1; /* reported at issue */
            }
    }
    if (!(s->flags & NEGATE_A) != !(s->flags & NEGATE_B))
        for (uint32_t e = 0; e < WARP_ROWS * s->k; e++) a[e] = -a[e];
}

/* Accumulator registers to d[16][stride] and back. Lane 4 r + c of register 4 b + 2 h + o holds row 8 h + r, column
 * 8 b + 2 c + o; with f16 register 2 b + h holds both columns. */
static void load_accumulators(const Warp *w, const int32_t *slots, const WgmmaShape *s, float *d, uint32_t stride)
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

static void store_accumulators(Warp *w, const int32_t *slots, const WgmmaShape *s, const float *d, uint32_t stride)
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

static void poison_accumulators(Warp *w, const int32_t *slots, const WgmmaShape *s, int accumulate, const Poison *a,
                                const Poison *b)
{
    int packed = s->d_type == ELEMENT_F16;
    for (uint32_t j = 0; j < s->accumulators; j++) {
        uint32_t half = packed ? j & 1 : j >> 1 & 1, block = packed ? j / 2 : j / 4, bad = 0;
        for (uint32_t l = 0; l < LANES; l++) {
            uint32_t column = 8 * block + 2 * (l % 4) + (packed ? 0 : j & 1);
            bad |= (uint32_t)(a->of_mn[8 * half + l / 4] | b->of_mn[column] | (packed ? b->of_mn[column + 1] : 0)) << l;
        }
        w->bad[slots[j]] = bad | (accumulate ? w->bad[slots[j]] : 0);
    }
}

static void report_poison(AsyncOp *op, const WgmmaShape *s, char operand, const Poison *poison)
{
    int is_a = operand == 'A';
    uint32_t mn = poison->mn + (is_a ? WARP_ROWS * (uint32_t)(op->warp->index % WARPGROUP_WARPS) : 0);
    finding(op->warp, op->ins, 0, NULL, "undefined_value",
            "operand %c (%s) of wgmma: %s %u, k %u at shared address 0x%x was never written (%u such elements)", operand,
            element_name(is_a ? s->a_type : s->b_type), is_a ? "row" : "column", mn, poison->k, poison->address, poison->count);
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

void wgmma_land(AsyncOp *op)
{
    const int32_t *slots = op->ins->s;
    const WgmmaShape s = wgmma_shape(op->ins);
    const Wgmma *g = (const Wgmma *)op->payload;
    Warp *w = op->warp;
    uint32_t stride = wgmma_stride(s.n);
    Poison of_a = {0}, of_b = {0};
    float a[WARP_ROWS * MAX_WGMMA_K];
    _Alignas(64) float d[WARP_ROWS * MAX_WGMMA_N];

    if (s.flags & A_IN_REGISTERS) check_a_unchanged(op, g, slots + s.accumulators);
    values_of_a(op, &s, g, a, &of_a);
    const float *b = values_of_b(op, &s, g, &of_b);
    if (of_a.count) report_poison(op, &s, 'A', &of_a);
    if (of_b.count) report_poison(op, &s, 'B', &of_b);

    if (!g->accumulate || stride != s.n) memset(d, 0, WARP_ROWS * stride * sizeof *d);
    if (g->accumulate) load_accumulators(w, slots, &s, d, stride);
    if (s.d_type == ELEMENT_S32) {
        matrix_sum_integer(WARP_ROWS, s.n, s.k, a, s.k, b, stride, (int32_t *)d, stride, (s.flags & SATURATE) != 0);
    } else {
        SumModel model = sum_model(UNIT_WGMMA, s.a_type, s.b_type, s.k);
        matrix_sum(model, s.a_type, s.b_type, WARP_ROWS, s.n, s.k, a, s.k, b, stride, d, stride, s.d_type == ELEMENT_F16);
    }
    store_accumulators(w, slots, &s, d, stride);

    uint32_t poisoned = of_a.count | of_b.count;
    for (uint32_t j = 0; j < A_REGISTERS; j++) poisoned |= g->a_bad[j];
    if (unlikely(poisoned)) poison_accumulators(w, slots, &s, g->accumulate, &of_a, &of_b);
    else if (!g->accumulate)
        for (uint32_t j = 0; j < s.accumulators; j++) w->bad[slots[j]] = 0;
    WgmmaState *state = wgmma_state(w);
    for (uint32_t j = 0; j < s.accumulators; j++) state->seen[slots[j]] = wgmma_hash(w->r[slots[j]]);
}
