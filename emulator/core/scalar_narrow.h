/* Rounding to the narrow floating-point formats: f16, bf16, tf32, fp8, fp6, fp4 and the scale type ue8m0. */
#ifndef DSV4_SCALAR_NARROW_H
#define DSV4_SCALAR_NARROW_H

#include "scalar.h"

enum { RN, RZ, RM, RP, RNA }; /* nearest even, zero, down, up, nearest with ties away */

/* Rounds the finite magnitude `value` (>= 0, exact in double) to `bits` fraction bits with the smallest normal
 * exponent `low`; the result may be one step above the largest number of the format. `negative` turns RM and RP. */
static inline double round_to(double value, int negative, int bits, int low, int mode)
{
    if (value == 0)
        return 0;
    int exponent = (int)(bits64(value) >> 52 & 0x7ff) - 1023;
    if (exponent < low)
        exponent = low;
    double step = ldexp(1.0, exponent - bits), scaled = value / step, whole = floor(scaled), rest = scaled - whole;
    int up;
    switch (mode) {
    case RN: up = rest > 0.5 || (rest == 0.5 && fmod(whole, 2.0) != 0); break;
    case RZ: up = 0; break;
    case RM: up = negative && rest > 0; break;
    case RP: up = !negative && rest > 0; break;
    default: up = rest >= 0.5; break;
    }
    return (whole + up) * step;
}

/* a format of 1 sign, E exponent and M fraction bits without special handling of NaN and infinity */
static inline uint32_t encode(double magnitude, int negative, int exponent_bits, int fraction_bits)
{
    int bias = (1 << (exponent_bits - 1)) - 1, exponent = 0;
    uint32_t sign = (uint32_t)negative << (exponent_bits + fraction_bits);
    if (magnitude == 0)
        return sign;
    exponent = (int)(bits64(magnitude) >> 52 & 0x7ff) - 1023;
    if (exponent < 1 - bias)
        return sign | (uint32_t)ldexp(magnitude, bias - 1 + fraction_bits);
    uint32_t fraction = (uint32_t)(ldexp(magnitude, fraction_bits - exponent)) & ((1u << fraction_bits) - 1);
    return sign | (uint32_t)(exponent + bias) << fraction_bits | fraction;
}
static inline double decode(uint32_t code, int exponent_bits, int fraction_bits)
{
    int bias = (1 << (exponent_bits - 1)) - 1;
    int exponent = (int)(code >> fraction_bits & ((1u << exponent_bits) - 1));
    double fraction = code & ((1u << fraction_bits) - 1);
    double r = exponent ? ldexp(fraction + (1 << fraction_bits), exponent - bias - fraction_bits)
                        : ldexp(fraction, 1 - bias - fraction_bits);
    return code >> (exponent_bits + fraction_bits) & 1 ? -r : r;
}

typedef struct {
    int exponent_bits, fraction_bits;
    int has_infinity;  /* the IEEE way: all exponent bits set are infinity and NaN */
    double largest;
    uint32_t largest_code, nan_code; /* nan_code 0: the format has no NaN, a NaN becomes the largest number */
} Narrow;

enum { NARROW_F16, NARROW_BF16, NARROW_E4M3, NARROW_E5M2, NARROW_E2M3, NARROW_E3M2, NARROW_E2M1 };
static const Narrow narrow_formats[] = {
    {5, 10, 1, 65504.0, 0x7bff, 0x7fff},
    {8, 7, 1, 0x1.fep127, 0x7f7f, 0x7fff},
    {4, 3, 0, 448.0, 0x7e, 0x7f},
    {5, 2, 1, 57344.0, 0x7b, 0x7f},
    {2, 3, 0, 7.5, 0x1f, 0},
    {3, 2, 0, 28.0, 0x1f, 0},
    {2, 1, 0, 6.0, 0x7, 0},
};
/* value to a narrow format. satfinite: beyond the largest number gives the largest; relu: negative and NaN give... NaN
 * stays NaN, negative gives +0. */
static inline uint32_t narrow(double value, int format, int mode, int satfinite, int relu)
{
    const Narrow *f = &narrow_formats[format];
    if (value != value)
        return f->nan_code ? f->nan_code : f->largest_code;
    int negative = (int)(bits64(value) >> 63);
    if (relu && negative)
        return 0;
    uint32_t sign = (uint32_t)negative << (f->exponent_bits + f->fraction_bits);
    double magnitude = fabs(value), r = magnitude;
    if (magnitude < (double)INFINITY)
        r = round_to(magnitude, negative, f->fraction_bits, 2 - (1 << (f->exponent_bits - 1)), mode);
    if (r > f->largest) {
        int towards_zero = magnitude < (double)INFINITY && (mode == RZ || (mode == RM && !negative) || (mode == RP && negative));
        if (satfinite || !f->has_infinity || towards_zero)
            return sign | f->largest_code;
        return sign | (uint32_t)((1 << f->exponent_bits) - 1) << f->fraction_bits;
    }
    return encode(r, negative, f->exponent_bits, f->fraction_bits);
}
static inline double widen(uint32_t code, int format)
{
    const Narrow *f = &narrow_formats[format];
    uint32_t magnitude = code & ((1u << (f->exponent_bits + f->fraction_bits)) - 1);
    if (f->has_infinity && magnitude >> f->fraction_bits == (1u << f->exponent_bits) - 1)
        return magnitude & ((1u << f->fraction_bits) - 1) ? NAN : (code >> (f->exponent_bits + f->fraction_bits) & 1 ? -INFINITY : INFINITY);
    if (f->nan_code && magnitude == f->nan_code)
        return NAN;
    return decode(code, f->exponent_bits, f->fraction_bits);
}

/* f32 to a narrow format, round to nearest even, beyond the largest number the largest: the same as `narrow`, without
 * branches. Adding 1.5 × 2^23 steps makes the addition itself round to a whole number of steps. */
static inline uint32_t narrow_nearest(uint32_t b, const Narrow *f, int relu)
{
    const int fraction = f->fraction_bits, low = 2 - (1 << (f->exponent_bits - 1));
    const int width = f->exponent_bits + fraction;
    uint32_t magnitude = b & 0x7fffffffu, sign = b >> 31;
    float limit = (float)f->largest * 2.0f, x = f32(magnitude);
    x = x < limit ? x : limit;
    int exponent = (int)(bits32(x) >> 23) - 127;
    exponent = exponent < low ? low : exponent;
    float big = f32((uint32_t)(exponent - fraction + 23 + 127) << 23) * 1.5f, r = (x + big) - big;
    uint32_t normal = (bits32(r) >> (23 - fraction)) - ((uint32_t)(128 - (1 << (f->exponent_bits - 1))) << fraction);
    uint32_t subnormal = (uint32_t)(int32_t)(r * f32((uint32_t)(fraction - low + 127) << 23));
    uint32_t code = r >= f32((uint32_t)(low + 127) << 23) ? normal : subnormal;
    code = r > (float)f->largest ? f->largest_code : code;
    code |= sign << width;
    code = relu && sign ? 0 : code;
    return is_nan32(b) ? (f->nan_code ? f->nan_code : f->largest_code) : code;
}

/* the two that everything needs, without branches */
static inline uint32_t to_bf16(uint32_t b)
{
    uint32_t r = (b + 0x7fffu + (b >> 16 & 1)) >> 16;
    return is_nan32(b) ? NAN16 : r;
}
static inline uint32_t to_f16(uint32_t b) { return is_nan32(b) ? NAN16 : _cvtss_sh(f32(b), _MM_FROUND_TO_NEAREST_INT); }
static inline float from_f16(uint32_t h) { return _cvtsh_ss((uint16_t)h); }
static inline float from_bf16(uint32_t h) { return f32(h << 16); }

#endif
