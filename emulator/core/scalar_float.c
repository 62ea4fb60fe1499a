/* f32, f32x2 and f64 arithmetic. Generic handlers take imm[0] = flags: 1 .ftz, 2 .sat, 4 .NaN, 8 .xorsign.abs, 16 .abs;
 * imm[1] = rounding: 0 nearest even, 1 towards zero, 2 down, 3 up. The plain forms have handlers of their own. */
#include "scalar.h"

#include <fenv.h>

enum { FTZ = 1, SAT = 2, NAN_WINS = 4, XORSIGN = 8, ABSOLUTE = 16 };

BINARY32(add_f32, canonical(f32(x) + f32(y)))
BINARY32(sub_f32, canonical(f32(x) - f32(y)))
BINARY32(mul_f32, canonical(f32(x) * f32(y)))
TERNARY32(fma_f32, canonical(__builtin_fmaf(f32(x), f32(y), f32(z))))

static const int rounding_modes[4] = {FE_TONEAREST, FE_TOWARDZERO, FE_DOWNWARD, FE_UPWARD};
/* volatile keeps the operation between the two changes of the rounding mode */
static __attribute__((noinline)) float rounded(int operation, float x, float y, float z, int mode)
{
    volatile float a = x, b = y, c = z, r = 0;
    if (mode)
        fesetround(rounding_modes[mode]);
    switch (operation) {
    case 0: r = a + b; break;
    case 1: r = a - b; break;
    case 2: r = a * b; break;
    case 3: r = __builtin_fmaf(a, b, c); break;
    case 4: r = a / b; break;
    default: r = sqrtf(a); break;
    }
    if (mode)
        fesetround(FE_TONEAREST);
    return r;
}
static inline float nearest(int operation, float a, float b, float c)
{
    switch (operation) {
    case 0: return a + b;
    case 1: return a - b;
    case 2: return a * b;
    case 3: return __builtin_fmaf(a, b, c);
    case 4: return a / b;
    default: return sqrtf(a);
    }
}
static inline uint32_t generic(const Ins *i, int operation, uint32_t x, uint32_t y, uint32_t z)
{
    int flags = i->imm[0];
    if (flags & FTZ)
        x = flush(x), y = flush(y), z = flush(z);
    uint32_t r = canonical(i->imm[1] ? rounded(operation, f32(x), f32(y), f32(z), i->imm[1])
                                     : nearest(operation, f32(x), f32(y), f32(z)));
    if (flags & FTZ)
        r = flush(r);
    return flags & SAT ? saturate(r) : r;
}
BINARY32(add_f32_any, generic(i, 0, x, y, 0))
BINARY32(sub_f32_any, generic(i, 1, x, y, 0))
BINARY32(mul_f32_any, generic(i, 2, x, y, 0))
TERNARY32(fma_f32_any, generic(i, 3, x, y, z))
BINARY32(div_f32, generic(i, 4, x, y, 0))
UNARY32(sqrt_f32, generic(i, 5, x, 0, 0))
UNARY32(rcp_f32, generic(i, 4, 0x3f800000u, x, 0))
/* rcp.approx(.ftz), the one that kernels use */
static inline uint32_t reciprocal(uint32_t x, int ftz)
{
    uint32_t r = canonical(1.0f / f32(ftz ? flush(x) : x));
    return ftz ? flush(r) : r;
}
UNARY32(rcp_approx_f32, reciprocal(x, 0))
UNARY32(rcp_approx_ftz_f32, reciprocal(x, 1))
/* div.approx and div.full multiply by the reciprocal, whose subnormal values are zero: for divisors of 2^126 and more
 * .approx gives 0, and .full scales both operands first. imm[0] & FTZ, imm[1] 1: .full. */
static inline uint32_t quotient(const Ins *i, uint32_t x, uint32_t y)
{
    int ftz = i->imm[0] & FTZ;
    float a = f32(ftz ? flush(x) : x), b = f32(ftz ? flush(y) : y);
    if (i->imm[1] && fabsf(b) > 0x1p126f && fabsf(b) < INFINITY)
        a *= 0.25f, b *= 0.25f;
    if (fabsf(b) < 0x1p-126f)
        return canonical(a / b);
    float r = 1.0f / b;
    uint32_t q = canonical(a * (fabsf(r) < 0x1p-126f ? copysignf(0.0f, r) : r));
    return ftz ? flush(q) : q;
}
BINARY32(div_approx_f32, quotient(i, x, y))

/* a NaN becomes the canonical one here too: measured on an H100, the PTX ISA leaves it open */
UNARY32(abs_f32, is_nan32(x) ? NAN32 : (i->imm[0] & FTZ ? flush(x) : x) & 0x7fffffffu)
UNARY32(neg_f32, is_nan32(x) ? NAN32 : (i->imm[0] & FTZ ? flush(x) : x) ^ 0x80000000u)
BINARY32(copysign_f32, (x & 0x80000000u) | (y & 0x7fffffffu)) /* sign of the first, magnitude of the second */

/* min and max: a number wins over a NaN, -0 is below +0 */
static inline uint32_t larger(uint32_t x, uint32_t y)
{
    float a = f32(x), b = f32(y);
    uint32_t r = a > b ? x : a < b ? y : x & y; /* equal: only zeros of different sign differ; & gives +0 */
    r = a != a ? y : r;
    r = b != b ? x : r;
    return a != a && b != b ? NAN32 : r;
}
static inline uint32_t smaller(uint32_t x, uint32_t y)
{
    float a = f32(x), b = f32(y);
    uint32_t r = a < b ? x : a > b ? y : x | y;
    r = a != a ? y : r;
    r = b != b ? x : r;
    return a != a && b != b ? NAN32 : r;
}
BINARY32(max_f32, larger(x, y))
BINARY32(min_f32, smaller(x, y))
BINARY32(max_nan_f32, is_nan32(x) || is_nan32(y) ? NAN32 : larger(x, y))
BINARY32(min_nan_f32, is_nan32(x) || is_nan32(y) ? NAN32 : smaller(x, y))
static inline uint32_t extreme(const Ins *i, uint32_t x, uint32_t y, int maximum)
{
    int flags = i->imm[0];
    if (flags & FTZ)
        x = flush(x), y = flush(y);
    uint32_t sign = flags & XORSIGN ? (x ^ y) & 0x80000000u : 0;
    if (flags & (XORSIGN | ABSOLUTE))
        x &= 0x7fffffffu, y &= 0x7fffffffu;
    uint32_t r = maximum ? larger(x, y) : smaller(x, y);
    if (flags & NAN_WINS && (is_nan32(x) || is_nan32(y)))
        r = NAN32;
    return flags & XORSIGN && !is_nan32(r) ? (r & 0x7fffffffu) | sign : r;
}
BINARY32(max_f32_any, extreme(i, x, y, 1))
BINARY32(min_f32_any, extreme(i, x, y, 0))
TERNARY32(max3_f32, extreme(i, extreme(i, x, y, 1), z, 1))
TERNARY32(min3_f32, extreme(i, extreme(i, x, y, 0), z, 0))

/* testp: slots p, a; imm[0]: 0 finite, 1 infinite, 2 number, 3 notanumber, 4 normal, 5 subnormal */
static inline int has_property(uint32_t x, int property)
{
    uint32_t m = x & 0x7fffffffu, exponent = m >> 23;
    switch (property) {
    case 0: return exponent != 255;
    case 1: return m == 0x7f800000u;
    case 2: return m <= 0x7f800000u;
    case 3: return m > 0x7f800000u;
    case 4: return exponent != 255 && (exponent != 0 || m == 0); /* zeros count as normal in PTX */
    default: return exponent == 0 && m != 0;
    }
}
HANDLER(testp_f32)
{
    uint32_t value = 0;
    LOOP value |= (uint32_t)has_property(R(1)[l], i->imm[0]) << l;
    set_pred(w, i->s[0], mask, value, BAD(1));
    return EMU_NEXT;
}

/* packed pairs: the halves of a 64-bit register are two numbers, each with its own poison */
#define PAIR(id, N, EXPR)                                                                                             \
    HANDLER(id)                                                                                                       \
    {                                                                                                                 \
        Lanes t[2];                                                                                                   \
        uint32_t bad[2];                                                                                              \
        for (int h = 0; h < 2; h++) {                                                                                 \
            const uint32_t *a = w->r[i->s[1] + h], *b = w->r[i->s[2] + h], *c = w->r[i->s[N] + h];                    \
            LOOP { uint32_t x = a[l], y = b[l], z = c[l]; (void)z; t[h][l] = (EXPR); }                                \
            bad[h] = w->bad[i->s[1] + h] | w->bad[i->s[2] + h] | w->bad[i->s[N] + h];                                 \
        }                                                                                                             \
        for (int h = 0; h < 2; h++) {                                                                                 \
            put(w->r[i->s[0] + h], t[h], mask);                                                                       \
            set_bad(w, i->s[0] + h, mask, bad[h]);                                                                    \
        }                                                                                                             \
        return EMU_NEXT;                                                                                              \
    }
PAIR(add_f32x2, 2, canonical(f32(x) + f32(y)))
PAIR(sub_f32x2, 2, canonical(f32(x) - f32(y)))
PAIR(mul_f32x2, 2, canonical(f32(x) * f32(y)))
PAIR(fma_f32x2, 3, canonical(__builtin_fmaf(f32(x), f32(y), f32(z))))
PAIR(add_f32x2_any, 2, generic(i, 0, x, y, 0))
PAIR(sub_f32x2_any, 2, generic(i, 1, x, y, 0))
PAIR(mul_f32x2_any, 2, generic(i, 2, x, y, 0))
PAIR(fma_f32x2_any, 3, generic(i, 3, x, y, z))

static __attribute__((noinline)) double rounded64(int operation, double x, double y, double z, int mode)
{
    volatile double a = x, b = y, c = z, r = 0;
    if (mode)
        fesetround(rounding_modes[mode]);
    switch (operation) {
    case 0: r = a + b; break;
    case 1: r = a - b; break;
    case 2: r = a * b; break;
    case 3: r = __builtin_fma(a, b, c); break;
    case 4: r = a / b; break;
    default: r = sqrt(a); break;
    }
    if (mode)
        fesetround(FE_TONEAREST);
    return r;
}
/* A NaN result is a NaN among the operands, quiet, or the default one. Which of several it is was measured on an H100:
 * the second before the third before the first, for a division the first before the second. */
static inline uint64_t result64(double r, uint64_t first, uint64_t second, uint64_t third)
{
    if (r == r) return bits64(r);
    if (is_nan64(first)) return first | QUIET64;
    if (is_nan64(second)) return second | QUIET64;
    return is_nan64(third) ? third | QUIET64 : DEFAULT_NAN64;
}
#define ROUNDED64(operation, X, Y, Z) rounded64(operation, f64(X), f64(Y), f64(Z), i->imm[1])
BINARY64(add_f64, result64(ROUNDED64(0, x, y, 0), y, x, 0))
BINARY64(sub_f64, result64(ROUNDED64(1, x, y, 0), y, x, 0))
BINARY64(mul_f64, result64(ROUNDED64(2, x, y, 0), y, x, 0))
TERNARY64(fma_f64, result64(ROUNDED64(3, x, y, z), y, z, x))
BINARY64(div_f64, result64(ROUNDED64(4, x, y, 0), x, y, 0))
UNARY64(rcp_f64, result64(ROUNDED64(4, bits64(1.0), x, 0), x, 0, 0))
UNARY64(sqrt_f64, result64(ROUNDED64(5, x, 0, 0), x, 0, 0))
UNARY64(abs_f64, is_nan64(x) ? x | QUIET64 : x & ~(1ull << 63))
UNARY64(neg_f64, is_nan64(x) ? x | QUIET64 : x ^ 1ull << 63)
static inline uint64_t extreme64(uint64_t x, uint64_t y, int maximum)
{
    double a = f64(x), b = f64(y);
    if (a != a || b != b)
        return a != a ? (b != b ? y | QUIET64 : y) : x;
    if (a == b)
        return maximum ? x & y : x | y;
    return (a > b) == maximum ? x : y;
}
BINARY64(max_f64, extreme64(x, y, 1))
BINARY64(min_f64, extreme64(x, y, 0))

/* Approximations, computed in double and rounded once: closer than the error that PTX documents for each of them.
 * imm[0] & FTZ as above. */
static inline double power_of_two(double x) /* 2^x for |x| <= 300 by the series of 2^f, |f| <= 1/2 */
{
    double n = __builtin_rint(x), f = (x - n) * 0.693147180559945309417;
    double r = 1.0 / 3628800.0;
    r = r * f + 1.0 / 362880.0;
    r = r * f + 1.0 / 40320.0;
    r = r * f + 1.0 / 5040.0;
    r = r * f + 1.0 / 720.0;
    r = r * f + 1.0 / 120.0;
    r = r * f + 1.0 / 24.0;
    r = r * f + 1.0 / 6.0;
    r = r * f + 0.5;
    r = r * f + 1.0;
    r = r * f + 1.0;
    /* n + 1023 lands in the low bits of 2^52 + n: no conversion instruction for 64-bit integers is needed */
    uint64_t scale = (bits64(n + 1023.0 + 4503599627370496.0) & 0x7ff) << 52;
    return r * f64(scale);
}
static inline uint32_t exp2_bits(uint32_t x, int ftz)
{
    x = ftz ? flush(x) : x;
    double v = (double)f32(x);
    v = v > 300.0 ? 300.0 : v;
    v = v < -300.0 ? -300.0 : v;
    uint32_t r = bits32((float)power_of_two(v));
    r = ftz ? flush(r) : r;
    return is_nan32(x) ? NAN32 : r;
}
UNARY32(ex2_f32, exp2_bits(x, 0))
UNARY32(ex2_ftz_f32, exp2_bits(x, 1))

static inline uint32_t approximate(uint32_t x, int flags, double (*f)(double))
{
    x = flags & FTZ ? flush(x) : x;
    uint32_t r = canonical((float)f((double)f32(x)));
    return flags & FTZ ? flush(r) : r;
}
static double reciprocal_root(double x) { return 1.0 / sqrt(x); }
UNARY32(lg2_f32, approximate(x, i->imm[0], log2))
UNARY32(rsqrt_f32, approximate(x, i->imm[0], reciprocal_root))
UNARY32(sin_f32, approximate(x, i->imm[0], sin))
UNARY32(cos_f32, approximate(x, i->imm[0], cos))
UNARY32(tanh_f32, approximate(x, i->imm[0], tanh))
