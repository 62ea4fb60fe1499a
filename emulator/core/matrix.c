/* Element types, and tiles in shared memory that a matrix descriptor describes. */
#include "matrix.h"
#include <immintrin.h>
#include <math.h>

static const struct { const char *name; uint8_t bits; } elements[N_ELEMENTS] = {
    {"f16", 16}, {"bf16", 16}, {"tf32", 32}, {"e4m3", 8}, {"e5m2", 8}, {"s8", 8},  {"u8", 8}, {"f32", 32},
    {"s32", 32}, {"e2m1", 4},  {"e2m3", 6},  {"e3m2", 6}, {"f64", 64}, {"b1", 1}, {"s4", 4}, {"u4", 4},
};

const char *element_name(ElementType type) { return elements[type].name; }
uint32_t element_bits_of(ElementType type) { return elements[type].bits; }

static float of_bits(uint32_t bits)
{
    float value;
    memcpy(&value, &bits, 4);
    return value;
}

/* sign, exponent and fraction bits of a narrow format; `ieee`: the last exponent is for infinity and NaN; e4m3 has one NaN */
static float narrow_value(uint32_t code, int exponent_bits, int fraction_bits, int ieee, int one_nan)
{
    uint32_t magnitude = code & ((1u << (exponent_bits + fraction_bits)) - 1), fraction = code & ((1u << fraction_bits) - 1);
    int exponent = (int)(magnitude >> fraction_bits), bias = (1 << (exponent_bits - 1)) - 1;
    float sign = code >> (exponent_bits + fraction_bits) & 1 ? -1.0f : 1.0f;
    if (ieee && exponent == (1 << exponent_bits) - 1) return fraction ? NAN : sign * INFINITY;
    if (one_nan && magnitude == (1u << (exponent_bits + fraction_bits)) - 1) return NAN;
    float value = exponent ? ldexpf((float)(fraction + (1u << fraction_bits)), exponent - bias - fraction_bits)
                           : ldexpf((float)fraction, 1 - bias - fraction_bits);
    return sign * value;
}

static float byte_values[N_ELEMENTS][256];

__attribute__((constructor)) static void fill_byte_values(void)
{
    for (uint32_t code = 0; code < 256; code++) {
        byte_values[ELEMENT_E4M3][code] = narrow_value(code, 4, 3, 0, 1);
        byte_values[ELEMENT_E5M2][code] = narrow_value(code, 5, 2, 1, 0);
        byte_values[ELEMENT_E2M1][code] = narrow_value(code & 0xf, 2, 1, 0, 0);
        byte_values[ELEMENT_E2M3][code] = narrow_value(code & 0x3f, 2, 3, 0, 0);
        byte_values[ELEMENT_E3M2][code] = narrow_value(code & 0x3f, 3, 2, 0, 0);
        byte_values[ELEMENT_S8][code] = (float)(int8_t)code;
        byte_values[ELEMENT_U8][code] = (float)code;
        byte_values[ELEMENT_S4][code] = (float)((int32_t)(code << 28) >> 28);
        byte_values[ELEMENT_U4][code] = (float)(code & 0xf);
        byte_values[ELEMENT_B1][code] = (float)(code & 1);
    }
}

float element_value(ElementType type, uint32_t bits)
{
    switch (type) {
    case ELEMENT_F16: return _cvtsh_ss((uint16_t)bits);
    case ELEMENT_BF16: return of_bits(bits << 16);
    case ELEMENT_TF32: return of_bits(bits & 0xffffe000u);
    case ELEMENT_F32: return of_bits(bits);
    case ELEMENT_S32: return (float)(int32_t)bits;
    case ELEMENT_F64: return NAN;
    default: return byte_values[type][bits & 0xff];
    }
}

void element_values(ElementType type, const uint8_t *bytes, uint32_t count, float *out)
{
    uint32_t e = 0;
    switch (type) {
    case ELEMENT_F16:
        for (; e + 8 <= count; e += 8)
            _mm256_storeu_ps(out + e, _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(bytes + 2 * e))));
        for (; e < count; e++) out[e] = _cvtsh_ss((uint16_t)(bytes[2 * e] | bytes[2 * e + 1] << 8));
        break;
    case ELEMENT_BF16:
        for (; e < count; e++) out[e] = of_bits((uint32_t)bytes[2 * e] << 16 | (uint32_t)bytes[2 * e + 1] << 24);
        break;
    case ELEMENT_TF32: case ELEMENT_F32: case ELEMENT_S32:
        for (; e < count; e++) {
            uint32_t bits;
            memcpy(&bits, bytes + 4 * e, 4);
            out[e] = element_value(type, bits);
        }
        break;
    case ELEMENT_E2M1: case ELEMENT_S4: case ELEMENT_U4:
        for (; e < count; e++) out[e] = byte_values[type][bytes[e / 2] >> (e % 2 * 4) & 0xf];
        break;
    default:
        for (; e < count; e++) out[e] = byte_values[type][bytes[e]];
    }
}

uint32_t f16_pair(float low, float high)
{
    return _cvtss_sh(low, _MM_FROUND_TO_NEAREST_INT) | (uint32_t)_cvtss_sh(high, _MM_FROUND_TO_NEAREST_INT) << 16;
}

SmemMatrix wgmma_matrix(uint64_t descriptor, int transposed)
{
    static const uint32_t swizzles[4] = {0, 128, 64, 32};
    SmemMatrix m = {0};
    m.start = (uint32_t)(descriptor & 0x3fff) << 4;
    m.leading_bytes = (uint32_t)(descriptor >> 16 & 0x3fff) << 4;
    m.stride_bytes = (uint32_t)(descriptor >> 32 & 0x3fff) << 4;
    m.base_offset = (uint32_t)(descriptor >> 49 & 7);
    m.swizzle_bytes = swizzles[descriptor >> 62];
    m.atom_bytes = 16;
    m.mn_major = transposed != 0;
    return m;
}

/* Byte distance from the start, before the swizzle. `contiguous` is the byte offset along the contiguous dimension. */
static uint32_t linear_offset(const SmemMatrix *m, uint32_t contiguous, uint32_t other)
{
    if (m->mn_major) {
        if (!m->swizzle_bytes)
            return contiguous % 16 + contiguous / 16 * m->stride_bytes + other % 8 * 16 + other / 8 * m->leading_bytes;
        uint32_t rows = m->atom_bytes == 32 ? 4 : 8;
        return contiguous % m->swizzle_bytes + contiguous / m->swizzle_bytes * m->leading_bytes +
               other % rows * m->swizzle_bytes + other / rows * m->stride_bytes;
    }
    if (!m->swizzle_bytes)
        return contiguous % 16 + contiguous / 16 * m->leading_bytes + other % 8 * 16 + other / 8 * m->stride_bytes;
    return contiguous + other % 8 * m->swizzle_bytes + other / 8 * m->stride_bytes;
}

/* The swizzle works on the address, so that whoever writes the tile need not know where the descriptor points. A base
 * offset says in which 128-byte row, modulo 8, the pattern begins. */
static uint32_t swizzled(const SmemMatrix *m, uint32_t address)
{
    if (!m->swizzle_bytes) return address;
    uint32_t row = (address >> 7) - m->base_offset;
    if (m->atom_bytes == 32) return address ^ (row & 3) << 5;
    return address ^ (row & (m->swizzle_bytes / 16 - 1)) << 4;
}

#define MAX_ROW_UNITS 64 /* 256 elements of 32 bits */

static uint32_t bytes_of(uint32_t count, uint32_t element_bits) { return count * element_bits / 8; }

SmemMatrix matrix_from(const SmemMatrix *m, uint32_t mn, uint32_t element_bits)
{
    SmemMatrix part = *m;
    part.start += m->mn_major ? linear_offset(m, bytes_of(mn, element_bits), 0) : linear_offset(m, 0, mn);
    return part;
}

uint32_t matrix_offset(const SmemMatrix *m, uint32_t mn, uint32_t k, uint32_t element_bits)
{
    uint32_t contiguous = bytes_of(m->mn_major ? mn : k, element_bits), other = m->mn_major ? k : mn;
    return swizzled(m, m->start + linear_offset(m, contiguous, other)) - SHARED_BASE;
}

uint32_t matrix_unit_count(const SmemMatrix *m, uint32_t mn_count, uint32_t k_count, uint32_t element_bits)
{
    uint32_t row_bits = (m->mn_major ? mn_count : k_count) * element_bits;
    return (row_bits + 127) / 128 * (m->mn_major ? k_count : mn_count);
}

uint32_t matrix_units(const SmemMatrix *m, uint32_t mn_count, uint32_t k_count, uint32_t element_bits, uint32_t *offsets)
{
    uint32_t rows = m->mn_major ? k_count : mn_count, n = 0;
    uint32_t per_row = ((m->mn_major ? mn_count : k_count) * element_bits + 127) / 128;
    uint32_t first_unit[MAX_ROW_UNITS]; /* of each unit of a row, from the row's start */
    if (per_row > MAX_ROW_UNITS) per_row = MAX_ROW_UNITS;
    for (uint32_t unit = 0; unit < per_row; unit++) first_unit[unit] = linear_offset(m, 16 * unit, 0);
    for (uint32_t row = 0; row < rows; row++) {
        uint32_t start = m->start + linear_offset(m, 0, row);
        for (uint32_t unit = 0; unit < per_row; unit++) offsets[n++] = swizzled(m, start + first_unit[unit]) - SHARED_BASE;
    }
    return n;
}

int matrix_inside(Warp *w, const Ins *i, const Cta *cta, const uint32_t *offsets, uint32_t n)
{
    for (uint32_t u = 0; u < n; u++)
        if (offsets[u] >= cta->smem_bytes || cta->smem_bytes - offsets[u] < 16) {
            finding(w, i, 0, NULL, "out_of_bounds",
                    "a matrix descriptor reaches shared address 0x%x, outside of the CTA's %u bytes from 0x%x on",
                    offsets[u] + SHARED_BASE, cta->smem_bytes, SHARED_BASE);
            return 0;
        }
    return 1;
}

#define MAX_UNITS 4096 /* 256 columns or rows of 32 bytes are 512 */

static void widen(const uint8_t *from, uint32_t element_bits, uint32_t count, uint32_t *out, uint32_t step)
{
    switch (element_bits) {
    case 32:
        for (uint32_t e = 0; e < count; e++) memcpy(&out[e * step], from + 4 * e, 4);
        break;
    case 16:
        for (uint32_t e = 0; e < count; e++) out[e * step] = (uint32_t)from[2 * e] | (uint32_t)from[2 * e + 1] << 8;
        break;
    case 4:
        for (uint32_t e = 0; e < count; e++) out[e * step] = from[e / 2] >> (e % 2 * 4) & 0xf;
        break;
    default:
        for (uint32_t e = 0; e < count; e++) out[e * step] = from[e];
    }
}

int matrix_read(Warp *w, const Ins *i, const Cta *cta, const SmemMatrix *m, uint32_t mn_count, uint32_t k_count,
                uint32_t element_bits, uint32_t *out, uint8_t *bad)
{
    uint32_t offsets[MAX_UNITS], n = matrix_unit_count(m, mn_count, k_count, element_bits);
    if (n > MAX_UNITS) {
        finding(w, i, 0, NULL, "out_of_bounds", "a tile of %u x %u elements is larger than an instruction takes",
                mn_count, k_count);
        return 0;
    }
    matrix_units(m, mn_count, k_count, element_bits, offsets);
    if (!matrix_inside(w, i, cta, offsets, n)) return 0;
    uint32_t row_elements = m->mn_major ? mn_count : k_count, step = m->mn_major ? k_count : 1;
    uint32_t per_unit = 128 / element_bits, per_row = (row_elements + per_unit - 1) / per_unit;
    memset(bad, 0, (size_t)mn_count * k_count);
    for (uint32_t u = 0; u < n; u++) {
        uint32_t row = u / per_row, first = u % per_row * per_unit;
        uint32_t count = row_elements - first < per_unit ? row_elements - first : per_unit;
        uint32_t to = m->mn_major ? first * k_count + row : row * k_count + first;
        widen(cta->smem + offsets[u], element_bits, count, out + to, step);
        const uint8_t *shadow = cta->shadow + offsets[u];
        uint64_t halves[2];
        memcpy(halves, shadow, 16);
        if (likely(!(halves[0] | halves[1]))) continue;
        for (uint32_t e = 0; e < count; e++)
            for (uint32_t b = e * element_bits / 8; b <= (e * element_bits + element_bits - 1) / 8; b++)
                if (shadow[b]) bad[to + e * step] = 1;
    }
    return 1;
}

/* Units in turn, the last of each row of `per_row` units with `last_bytes` only; a run of neighbours is one access. */
static void touch_runs(AsyncOp *op, Cta *cta, const uint32_t *offsets, uint32_t n, uint32_t per_row, uint32_t last_bytes)
{
    uint32_t low = 0, high = 0;
    for (uint32_t u = 0; u < n; u++) {
        uint32_t used = (u + 1) % per_row ? 16 : last_bytes, at = offsets[u];
        if (high > low && at == high) {
            high += used;
        } else if (high > low && at + used == low) {
            low = at;
        } else {
            if (high > low) async_touch_shared(op, cta, low, high - low, 0);
            low = at, high = at + used;
        }
    }
    if (high > low) async_touch_shared(op, cta, low, high - low, 0);
}

void matrix_touch_units(AsyncOp *op, Cta *cta, const uint32_t *offsets, uint32_t n) { touch_runs(op, cta, offsets, n, n, 16); }

int matrix_touch(AsyncOp *op, Cta *cta, const SmemMatrix *m, uint32_t mn_count, uint32_t k_count, uint32_t element_bits)
{
    uint32_t offsets[MAX_UNITS], n = matrix_unit_count(m, mn_count, k_count, element_bits);
    if (n > MAX_UNITS) return 0;
    matrix_units(m, mn_count, k_count, element_bits, offsets);
    if (!matrix_inside(op->warp, op->ins, cta, offsets, n)) return 0;
    uint32_t row_bytes = bytes_of(m->mn_major ? mn_count : k_count, element_bits), per_row = (row_bytes + 15) / 16;
    touch_runs(op, cta, offsets, n, per_row, row_bytes - 16 * (per_row - 1));
    return 1;
}
