/* f16 and bf16 arithmetic, single and packed (first operand half = low 16 bits), and mixed f32 + f16/bf16.
 * imm[0] = flags: 1 .ftz, 2 .sat, 4 .NaN, 8 .xorsign.abs, 16 .abs, 32 .relu; imm[1] = 1 for bf16; imm[2] = elements. */
#include "scalar_narrow.h"

enum { FTZ = 1, SAT = 2, NAN_WINS = 4, XORSIGN = 8, ABSOLUTE = 16, RELU = 32 };

static inline double half_value(uint32_t h, int flags, int is_bf16)
{
    uint32_t exponent = is_bf16 ? 0x7f80 : 0x7c00;
    if (flags & FTZ && (h & exponent) == 0)
        h &= 0x8000;
    return is_bf16 ? (double)from_bf16(h) : (double)from_f16(h);
}
static inline int half_nan(uint32_t h, int is_bf16) { return (h & 0x7fff) > (is_bf16 ? 0x7f80u : 0x7c00u); }

/* a + b rounded to odd: rounding that to 11 bits or fewer is the single rounding of the exact sum */
static inline double add_odd(double a, double b)
{
    double s = a + b, t = s - a, error = (a - (s - t)) + (b - t);
    if (error != 0 && s - s == 0 && !(bits64(s) & 1)) {
        int away = (error > 0) == (s > 0);
        s = f64(away ? bits64(s) + 1 : bits64(s) - 1);
    }
    return s;
}
/* double to float, rounded to odd */
static inline uint32_t float_odd(double r)
{
    float f = (float)r;
    uint32_t b = bits32(f);
    if ((double)f != r && r - r == 0 && !(b & 1))
        b += fabs((double)f) > fabs(r) ? FULL : 1;
    return b;
}
static inline uint32_t half_result(double r, int flags, int is_bf16)
{
    if (flags & SAT)
        r = r > 0 ? (r < 1 ? r : 1) : 0;
    uint32_t b = float_odd(r), h = is_bf16 ? to_bf16(b) : to_f16(b);
    if (flags & RELU && b >> 31 && !is_nan32(b))
        h = 0;
    if (flags & FTZ && (h & (is_bf16 ? 0x7f80 : 0x7c00)) == 0)
        h &= 0x8000;
    return h;
}
static inline uint32_t half_one(int operation, uint32_t x, uint32_t y, uint32_t z, int flags, int is_bf16)
{
    double a = half_value(x, flags, is_bf16), b = half_value(y, flags, is_bf16), c = half_value(z, flags, is_bf16);
    switch (operation) {
    case 0: return half_result(add_odd(a, b), flags, is_bf16);
    case 1: return half_result(add_odd(a, -b), flags, is_bf16);
    case 2: return half_result(a * b, flags, is_bf16);
    default: return half_result(a * b == 0 && c == 0 ? a * b + c : add_odd(a * b, c), flags, is_bf16);
    }
}
static inline uint32_t each_half(const Ins *i, int operation, uint32_t x, uint32_t y, uint32_t z)
{
    uint32_t r = half_one(operation, x & 0xffff, y & 0xffff, z & 0xffff, i->imm[0], i->imm[1]);
    if (i->imm[2] == 2)
        r |= half_one(operation, x >> 16, y >> 16, z >> 16, i->imm[0], i->imm[1]) << 16;
    return r;
}
BINARY32(add_half, each_half(i, 0, x, y, 0))
BINARY32(sub_half, each_half(i, 1, x, y, 0))
BINARY32(mul_half, each_half(i, 2, x, y, 0))
TERNARY32(fma_half, each_half(i, 3, x, y, z))

static inline uint32_t half_extreme(uint32_t x, uint32_t y, int maximum, int flags, int is_bf16)
{
    int x_nan = half_nan(x, is_bf16), y_nan = half_nan(y, is_bf16);
    uint32_t exponent = is_bf16 ? 0x7f80 : 0x7c00;
    if (flags & FTZ) {
        x = x & exponent ? x : x & 0x8000;
        y = y & exponent ? y : y & 0x8000;
    }
    if ((x_nan && y_nan) || (flags & NAN_WINS && (x_nan || y_nan)))
        return NAN16;
    uint32_t sign = flags & XORSIGN ? (x ^ y) & 0x8000 : 0, r;
    if (flags & (XORSIGN | ABSOLUTE))
        x &= 0x7fff, y &= 0x7fff;
    double a = half_value(x, 0, is_bf16), b = half_value(y, 0, is_bf16);
    if (x_nan || y_nan)
        r = x_nan ? y : x;
    else if (a == b)
        r = maximum ? x & y : x | y;
    else
        r = (a > b) == maximum ? x : y;
    return flags & XORSIGN ? (r & 0x7fff) | sign : r;
}
static inline uint32_t each_extreme(const Ins *i, uint32_t x, uint32_t y, int maximum)
{
    uint32_t r = half_extreme(x & 0xffff, y & 0xffff, maximum, i->imm[0], i->imm[1]);
    if (i->imm[2] == 2)
        r |= half_extreme(x >> 16, y >> 16, maximum, i->imm[0], i->imm[1]) << 16;
    return r;
}
BINARY32(max_half, each_extreme(i, x, y, 1))
BINARY32(min_half, each_extreme(i, x, y, 0))
/* a NaN becomes the canonical one (measured on an H100, the PTX ISA leaves it open) */
static inline uint32_t sign_one(uint32_t h, int negate, int is_bf16)
{
    return half_nan(h, is_bf16) ? NAN16 : negate ? h ^ 0x8000u : h & 0x7fffu;
}
static inline uint32_t each_sign(const Ins *i, uint32_t x, int negate)
{
    uint32_t r = sign_one(x & 0xffff, negate, i->imm[1]);
    return i->imm[2] == 2 ? r | sign_one(x >> 16, negate, i->imm[1]) << 16 : r;
}
UNARY32(abs_half, each_sign(i, x, 0))
UNARY32(neg_half, each_sign(i, x, 1))

static inline uint32_t each_function(const Ins *i, uint32_t x, double (*f)(double))
{
    uint32_t r = half_result(f(half_value(x & 0xffff, i->imm[0], i->imm[1])), i->imm[0], i->imm[1]);
    if (i->imm[2] == 2)
        r |= half_result(f(half_value(x >> 16, i->imm[0], i->imm[1])), i->imm[0], i->imm[1]) << 16;
    return r;
}
UNARY32(ex2_half, each_function(i, x, exp2))
UNARY32(tanh_half, each_function(i, x, tanh))

/* mixed: f16 or bf16 sources of which the last is f32: add d, a, c; sub d, a, c; fma d, a, b, c. The product is exact. */
static inline uint32_t mixed(const Ins *i, float product, uint32_t z)
{
    uint32_t r = canonical(product + f32(z));
    return i->imm[0] & SAT ? saturate(r) : r;
}
static inline float half_float(const Ins *i, uint32_t h) { return i->imm[1] ? from_bf16(h) : from_f16(h); }
BINARY32(add_f32_half, mixed(i, half_float(i, x), y))
BINARY32(sub_f32_half, mixed(i, half_float(i, x), y ^ 0x80000000u))
static inline uint32_t mixed_fma(const Ins *i, uint32_t x, uint32_t y, uint32_t z)
{
    uint32_t r = canonical(__builtin_fmaf(half_float(i, x), half_float(i, y), f32(z)));
    return i->imm[0] & SAT ? saturate(r) : r;
}
TERNARY32(fma_f32_half, mixed_fma(i, x, y, z))
