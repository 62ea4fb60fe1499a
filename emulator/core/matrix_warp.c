/* Matrix instructions of a warp: ldmatrix, stmatrix and mma.sync. */
#include "matrix.h"
#include <math.h>

/* Shapes and sources as SHAPES and SOURCES in lower/tensor_rules.py. */
enum { SHAPE_M8N8, SHAPE_M16N16, SHAPE_M8N16, SHAPE_M16N8 };
enum { SOURCE_B16, SOURCE_B8, SOURCE_B6X16_P32, SOURCE_B4X16_P64 };

#define ROW_BYTES 16

/* All 32 lanes must be there: the instruction is undefined once a thread of the warp has exited. */
static int all_lanes(Warp *w, const Ins *i, uint32_t mask, const char *name)
{
    if (mask == FULL) return 1;
    stop(w, i, ~mask, "convergence", "%s needs all 32 threads of the warp, and some of them have exited", name);
    return 0;
}

typedef struct { uint32_t offset[LANES], mask; Cta *cta[LANES]; } Rows;

/* Lane r gives the address of row r. The rows are recorded as accesses of the warp. False after a finding. */
static int find_rows(Warp *w, const Ins *i, int32_t slot, uint32_t count, uint8_t flags, Rows *rows)
{
    rows->mask = count == 32 ? FULL : (1u << count) - 1;
    uint32_t bad = w->bad[slot] & rows->mask;
    if (bad) {
        stop(w, i, bad, "undefined_value", "the address of a matrix row was never written");
        return 0;
    }
    EACH_LANE(rows->mask, l)
    {
        rows->cta[l] = shared_at(w, i, w->r[slot][l] + (uint32_t)i->imm[0], ROW_BYTES, ROW_BYTES, &rows->offset[l]);
        if (!rows->cta[l]) return 0;
        if (rows->cta[l] != w->cta) {
            stop(w, i, 1u << l, "out_of_bounds", "a matrix row lies in another CTA's shared memory, out of reach here");
            return 0;
        }
    }
    if (w->machine->policy.races) {
        Access a = access_of_warp(w, i, flags);
        touch_lanes_shared(&a, w->cta, rows->offset, rows->mask, ROW_BYTES);
    }
    return 1;
}

/* A row of 16 elements of 4 or 6 bits, padded to 16 bytes, as 16 bytes with the element in the low bits. */
static void unpack_row(const uint8_t *from, const uint8_t *from_bad, uint32_t bits, uint8_t *to, uint8_t *bad)
{
    for (uint32_t e = 0; e < 16; e++) {
        uint32_t first = e * bits, byte = first / 8, last = (first + bits - 1) / 8;
        uint32_t window = from[byte] | (last > byte ? (uint32_t)from[last] << 8 : 0);
        to[e] = (uint8_t)(window >> first % 8 & ((1u << bits) - 1));
        bad[e] = (from_bad[byte] | from_bad[last]) & SHADOW_BAD;
    }
}

/* slots dst…, address; imm offset, matrices, shape, transposed, source
 *
 * Each row is 16 bytes. Lane l gets in the register of an 8-row matrix bytes 4 (l % 4).. of row l / 4. Transposed 16-bit
 * elements: column l / 4 of rows 2 (l % 4) and the next. Transposed 8-bit elements of a 16 x 16 matrix: two registers with
 * columns l / 4 and l / 4 + 8, each of rows 4 (l % 4).. . */
HANDLER(ldmatrix)
{
    uint32_t matrices = (uint32_t)i->imm[1], shape = (uint32_t)i->imm[2], source = (uint32_t)i->imm[4];
    int transposed = i->imm[3];
    uint32_t rows_each = shape == SHAPE_M16N16 ? 16 : 8;
    Rows rows;
    if (!all_lanes(w, i, mask, "ldmatrix")) return EMU_STOP;
    if (!find_rows(w, i, i->s[i->n_slots - 1], rows_each * matrices, ACCESS_READ, &rows)) return EMU_STOP;
    uint8_t data[LANES][ROW_BYTES], bad[LANES][ROW_BYTES];
    EACH_LANE(rows.mask, r)
    {
        const uint8_t *from = w->cta->smem + rows.offset[r], *from_bad = w->cta->shadow + rows.offset[r];
        if (source == SOURCE_B6X16_P32) unpack_row(from, from_bad, 6, data[r], bad[r]);
        else if (source == SOURCE_B4X16_P64) unpack_row(from, from_bad, 4, data[r], bad[r]);
        else {
            memcpy(data[r], from, ROW_BYTES);
            for (uint32_t b = 0; b < ROW_BYTES; b++) bad[r][b] = from_bad[b] & SHADOW_BAD;
        }
    }
    uint32_t registers = shape == SHAPE_M16N16 ? 2 * matrices : matrices;
    for (uint32_t n = 0; n < registers; n++) {
        int32_t slot = i->s[n];
        if (slot < 0) continue;
        uint32_t poison = 0;
        for (uint32_t l = 0; l < LANES; l++) {
            uint32_t value = 0, any = 0;
            for (uint32_t b = 0; b < 4; b++) {
                uint32_t row, byte;
                if (shape == SHAPE_M16N16) row = n / 2 * 16 + 4 * (l % 4) + b, byte = l / 4 + 8 * (n % 2);
                else if (transposed) row = n * 8 + 2 * (l % 4) + b / 2, byte = 2 * (l / 4) + b % 2;
                else row = n * 8 + l / 4, byte = 4 * (l % 4) + b;
                value |= (uint32_t)data[row][byte] << (8 * b);
                any |= bad[row][byte];
            }
            w->r[slot][l] = value;
            poison |= any << l;
        }
        set_bad(w, slot, FULL, poison);
    }
    return EMU_NEXT;
}

/* slots address, src…; imm as above. The inverse of ldmatrix; a 16 x 8 matrix of bytes is stored by columns: byte c of
 * row r comes from lane 4 (c % 8) + r / 2, byte (r & 1) + 2 (c / 8). */
HANDLER(stmatrix)
{
    uint32_t matrices = (uint32_t)i->imm[1], shape = (uint32_t)i->imm[2];
    int transposed = i->imm[3];
    Rows rows;
    if (!all_lanes(w, i, mask, "stmatrix")) return EMU_STOP;
    if (!find_rows(w, i, i->s[0], 8 * matrices, ACCESS_WRITE, &rows)) return EMU_STOP;
    EACH_LANE(rows.mask, r)
    {
        int32_t slot = i->s[1 + r / 8];
        uint8_t *to = w->cta->smem + rows.offset[r], *to_bad = w->cta->shadow + rows.offset[r];
        uint32_t row = r % 8;
        for (uint32_t b = 0; b < ROW_BYTES; b++) {
            uint32_t lane, byte;
            if (shape == SHAPE_M16N8) lane = 4 * (b % 8) + row / 2, byte = (row & 1) + 2 * (b / 8);
            else if (transposed) lane = 4 * (b / 2) + row / 2, byte = 2 * (row & 1) + b % 2;
            else lane = 4 * row + b / 4, byte = b % 4;
            if (unlikely(to_bad[b] & SHADOW_BARRIER)) {
                finding(w, i, 1u << r, NULL, "barrier", "a store overwrites a live mbarrier");
                to_bad[b] &= (uint8_t)~SHADOW_BARRIER;
            }
            to[b] = (uint8_t)(w->r[slot][lane] >> (8 * byte));
            to_bad[b] = w->bad[slot] >> lane & 1 ? SHADOW_BAD : SHADOW_DEFINED;
        }
    }
    return EMU_NEXT;
}

/* ----------------------------------------------------------------------------------------------------- mma.sync */

#define MAX_M 16
#define STRIDE 16 /* n is 8, and matrix_sum works on 16 columns */
#define MAX_K_MMA 128

typedef struct {
    uint32_t m, k, per_register; /* elements of A and B in a register */
    ElementType d_type, a_type, b_type, c_type;
    const int32_t *d, *a, *b, *c;
    uint32_t n_a, n_b, n_c, n_d;
    uint32_t halves;          /* fp8: the compiler makes two f16 products of it, see mma_sync */
} Mma;

/* Row (or column) and first K of what lane l holds in register j of A (or B). */
static uint32_t a_row(const Mma *mma, uint32_t j, uint32_t l) { return l / 4 + (mma->m == 16 ? 8 * (j & 1) : 0); }
static uint32_t a_first_k(const Mma *mma, uint32_t j, uint32_t l)
{
    return ((mma->m == 16 ? j >> 1 : j) * 4 + l % 4) * mma->per_register;
}
static uint32_t b_first_k(const Mma *mma, uint32_t j, uint32_t l) { return (4 * j + l % 4) * mma->per_register; }

/* Where an element of K is put in the order in which it is summed: with `halves` bytes 0 and 1 of every register first. */
static uint32_t place_of_k(const Mma *mma, uint32_t first_k, uint32_t e)
{
    return mma->halves ? first_k / 2 + (e & 1) + (e >> 1) * (mma->k / 2) : first_k + e;
}

static void report_operand(Warp *w, const Ins *i, uint32_t lanes, char operand, const char *coordinates, uint32_t at, uint32_t k)
{
    finding(w, i, lanes, NULL, "undefined_value", "operand %c of mma.sync: the register that holds %s %u, k %u was never written",
            operand, coordinates, at, k);
}

/* Elements as floats a[m][k], b[k][n]; rows and columns with an undefined element in the masks. */
static void mma_operands(Warp *w, const Ins *i, const Mma *mma, float *a, float *b, uint32_t *bad_rows, uint32_t *bad_columns)
{
    uint32_t bits = 32 / mma->per_register;
    for (uint32_t j = 0; j < mma->n_a; j++) {
        uint32_t bad = w->bad[mma->a[j]];
        if (unlikely(bad)) {
            uint32_t l = first_lane(bad);
            report_operand(w, i, bad, 'A', "row", a_row(mma, j, l), a_first_k(mma, j, l));
            EACH_LANE(bad, lane) *bad_rows |= 1u << a_row(mma, j, lane);
        }
        for (uint32_t l = 0; l < LANES; l++) {
            float *row = a + a_row(mma, j, l) * mma->k;
            for (uint32_t e = 0; e < mma->per_register; e++)
                row[place_of_k(mma, a_first_k(mma, j, l), e)] = element_value(mma->a_type, w->r[mma->a[j]][l] >> (bits * e));
        }
    }
    for (uint32_t j = 0; j < mma->n_b; j++) {
        uint32_t bad = w->bad[mma->b[j]];
        if (unlikely(bad)) {
            uint32_t l = first_lane(bad);
            report_operand(w, i, bad, 'B', "column", l / 4, b_first_k(mma, j, l));
            EACH_LANE(bad, lane) *bad_columns |= 1u << lane / 4;
        }
        for (uint32_t l = 0; l < LANES; l++) {
            for (uint32_t e = 0; e < mma->per_register; e++)
                b[place_of_k(mma, b_first_k(mma, j, l), e) * STRIDE + l / 4] =
                    element_value(mma->b_type, w->r[mma->b[j]][l] >> (bits * e));
        }
    }
}

/* Lanes of accumulator element (row half, odd column) that lie in a bad row or column. */
static uint32_t spread_poison(uint32_t half, uint32_t odd, uint32_t bad_rows, uint32_t bad_columns)
{
    uint32_t lanes = 0;
    for (uint32_t l = 0; l < LANES; l++)
        lanes |= ((bad_rows >> (l / 4 + 8 * half) & 1) | (bad_columns >> (2 * (l % 4) + odd) & 1)) << l;
    return lanes;
}

/* a · b + c; of several NaNs b's is the result, then c's, then a's, as of fma.f64 (measured on an H100) */
static double fma_f64(double a, double b, double c)
{
    if (isnan(b)) return b + 0.0;
    if (isnan(c)) return c + 0.0;
    return isnan(a) ? a + 0.0 : fma(a, b, c);
}

static int mma_f64(Warp *w, const Ins *i, const Mma *mma)
{
    double a[MAX_M][16], b[16][8];
    uint32_t bad_rows = 0, bad_columns = 0;
    for (uint32_t l = 0; l < LANES; l++) {
        for (uint32_t j = 0; j < mma->n_a; j++) {
            uint64_t bits = get64(w, mma->a[j], l);
            memcpy(&a[a_row(mma, j, l)][a_first_k(mma, j, l)], &bits, 8);
            if ((w->bad[mma->a[j]] | w->bad[mma->a[j] + 1]) >> l & 1) bad_rows |= 1u << a_row(mma, j, l);
        }
        for (uint32_t j = 0; j < mma->n_b; j++) {
            uint64_t bits = get64(w, mma->b[j], l);
            memcpy(&b[b_first_k(mma, j, l)][l / 4], &bits, 8);
            if ((w->bad[mma->b[j]] | w->bad[mma->b[j] + 1]) >> l & 1) bad_columns |= 1u << l / 4;
        }
    }
    if (bad_rows) report_operand(w, i, 0, 'A', "row", first_lane(bad_rows), 0);
    if (bad_columns) report_operand(w, i, 0, 'B', "column", first_lane(bad_columns), 0);
    uint64_t result[4][LANES]; /* D may be the registers of C in another order */
    uint32_t bad[4];
    for (uint32_t j = 0; j < mma->n_d; j++) {
        bad[j] = w->bad[mma->c[j]] | w->bad[mma->c[j] + 1] | spread_poison(j >> 1, j & 1, bad_rows, bad_columns);
        for (uint32_t l = 0; l < LANES; l++) {
            uint64_t bits = get64(w, mma->c[j], l);
            double sum;
            memcpy(&sum, &bits, 8);
            for (uint32_t k = 0; k < mma->k; k++) sum = fma_f64(a[l / 4 + 8 * (j >> 1)][k], b[k][2 * (l % 4) + (j & 1)], sum);
            memcpy(&result[j][l], &sum, 8);
        }
    }
    for (uint32_t j = 0; j < mma->n_d; j++) {
        for (uint32_t l = 0; l < LANES; l++) set64(w, mma->d[j], l, result[j][l]);
        set_bad(w, mma->d[j], FULL, bad[j]);
        set_bad(w, mma->d[j] + 1, FULL, bad[j]);
    }
    return EMU_NEXT;
}

static int is_float(ElementType t)
{
    return t == ELEMENT_F16 || t == ELEMENT_BF16 || t == ELEMENT_TF32 || t == ELEMENT_E4M3 || t == ELEMENT_E5M2;
}
static int is_integer(ElementType t) { return t == ELEMENT_S8 || t == ELEMENT_U8 || t == ELEMENT_S4 || t == ELEMENT_U4; }

/* Where element (half, odd) of lane's four accumulators is: register, and half of it for f16. */
static uint32_t accumulator_bits(const Warp *w, const int32_t *slots, ElementType type, uint32_t half, uint32_t odd, uint32_t l)
{
    if (type == ELEMENT_F16) return w->r[slots[half]][l] >> (16 * odd) & 0xffff;
    return w->r[slots[2 * half + odd]][l];
}

static int is_fp8(ElementType t) { return t == ELEMENT_E4M3 || t == ELEMENT_E5M2; }

/* fp8: there is no such unit on sm_90 and sm_100. The compiler widens to f16 and multiplies twice, bytes 0 and 1 of every
 * register without an accumulator, then bytes 2 and 3 on top of it, and adds C with an ordinary addition (seen in the
 * machine code, confirmed bit by bit on an H100). */
static void sum_fp8(const Mma *mma, const float *a, const float *b, float *d)
{
    float c[MAX_M * STRIDE];
    memcpy(c, d, sizeof c);
    memset(d, 0, sizeof c);
    SumModel model = sum_model(UNIT_MMA_SYNC, ELEMENT_F16, ELEMENT_F16, mma->k / 2);
    matrix_sum(model, ELEMENT_F16, ELEMENT_F16, mma->m, 8, mma->k, a, mma->k, b, STRIDE, d, STRIDE, mma->d_type == ELEMENT_F16);
    for (uint32_t at = 0; at < MAX_M * STRIDE; at++) {
        const uint32_t nan_bits = 0x7fffffff;
        d[at] += c[at];
        if (isnan(d[at])) memcpy(d + at, &nan_bits, 4);
    }
}

/* slots D…, A…, B…, C…; imm m, n, k, types of D, A, B, C, satfinite */
HANDLER(mma_sync)
{
    Mma mma = {.m = (uint32_t)i->imm[0], .k = (uint32_t)i->imm[2]};
    mma.d_type = (ElementType)i->imm[3], mma.a_type = (ElementType)i->imm[4];
    mma.b_type = (ElementType)i->imm[5], mma.c_type = (ElementType)i->imm[6];
    if (!all_lanes(w, i, mask, "mma.sync")) return EMU_STOP;
    int integer = is_integer(mma.a_type) && is_integer(mma.b_type), wide = mma.a_type == ELEMENT_F64;
    int known = integer || wide || (is_float(mma.a_type) && is_float(mma.b_type));
    if (!known || i->imm[1] != 8 || (mma.m == 8 && !integer && !wide) || mma.k > MAX_K_MMA)
        return stop(w, i, 0, "emulator_limit", "mma.sync.m%dn%dk%d with %s and %s is not supported", i->imm[0], i->imm[1],
                    i->imm[2], element_name(mma.a_type), element_name(mma.b_type));
    mma.per_register = wide ? 1 : 32 / element_bits_of(mma.a_type);
    mma.halves = is_fp8(mma.a_type) && is_fp8(mma.b_type);
    mma.n_a = mma.m * mma.k / (32 * mma.per_register);
    mma.n_b = 8 * mma.k / (32 * mma.per_register);
    mma.n_d = mma.m * 8 / (mma.d_type == ELEMENT_F16 ? 64 : 32);
    mma.n_c = mma.m * 8 / (mma.c_type == ELEMENT_F16 ? 64 : 32);
    mma.d = i->s, mma.a = mma.d + mma.n_d, mma.b = mma.a + mma.n_a, mma.c = mma.b + mma.n_b;
    if ((uint32_t)i->n_slots != mma.n_d + mma.n_a + mma.n_b + mma.n_c)
        return stop(w, i, 0, "emulator_limit", "mma.sync has %d registers where %u are expected", i->n_slots,
                    mma.n_d + mma.n_a + mma.n_b + mma.n_c);
    if (wide) return mma_f64(w, i, &mma);

    float a[MAX_M * MAX_K_MMA];
    _Alignas(64) float b[MAX_K_MMA * STRIDE], d[MAX_M * STRIDE];
    int32_t *d_integer = (int32_t *)d;
    uint32_t bad_rows = 0, bad_columns = 0;
    memset(b, 0, mma.k * STRIDE * sizeof *b);
    memset(d, 0, sizeof d);
    mma_operands(w, i, &mma, a, b, &bad_rows, &bad_columns);
    uint32_t bad[4];
    for (uint32_t j = 0; j < mma.m / 4; j++) {
        uint32_t half = j >> 1, odd = j & 1;
        int32_t slot = mma.c[mma.c_type == ELEMENT_F16 ? half : j];
        bad[j] = w->bad[slot] | (bad_rows | bad_columns ? spread_poison(half, odd, bad_rows, bad_columns) : 0);
        for (uint32_t l = 0; l < LANES; l++) {
            uint32_t at = (l / 4 + 8 * half) * STRIDE + 2 * (l % 4) + odd;
            uint32_t bits = accumulator_bits(w, mma.c, mma.c_type, half, odd, l);
            if (integer) d_integer[at] = (int32_t)bits;
            else d[at] = element_value(mma.c_type, bits);
        }
    }
    if (integer) {
        matrix_sum_integer(mma.m, 8, mma.k, a, mma.k, b, STRIDE, d_integer, STRIDE, i->imm[7]);
    } else if (mma.halves) {
        sum_fp8(&mma, a, b, d);
    } else {
        SumModel model = sum_model(UNIT_MMA_SYNC, mma.a_type, mma.b_type, mma.k);
        matrix_sum(model, mma.a_type, mma.b_type, mma.m, 8, mma.k, a, mma.k, b, STRIDE, d, STRIDE, mma.d_type == ELEMENT_F16);
    }
    for (uint32_t j = 0; j < mma.n_d; j++) {
        int packed = mma.d_type == ELEMENT_F16;
        uint32_t half = packed ? j : j >> 1;
        for (uint32_t l = 0; l < LANES; l++) {
            const float *row = d + (l / 4 + 8 * half) * STRIDE + 2 * (l % 4);
            if (packed) w->r[mma.d[j]][l] = f16_pair(row[0], row[1]);
            else memcpy(&w->r[mma.d[j]][l], row + (j & 1), 4);
        }
        set_bad(w, mma.d[j], FULL, packed ? bad[2 * half] | bad[2 * half + 1] : bad[j]);
    }
    return EMU_NEXT;
}
