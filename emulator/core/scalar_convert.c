/* cvt. A conversion reads each source lane as an exact double or integer, rounds once and writes the result.
 *
 * cvt_int: slots d, a; imm: 0 bits of d, 1 d signed, 2 bits of a, 3 a signed, 4 .sat, 5 bits of d's register
 * cvt_from_int: slots d, a; imm: 0 format of d, 1 rounding, 2 bits of a, 3 a signed
 * cvt_to_int: slots d, a; imm: 0 bits of d, 1 d signed, 2 format of a, 3 rounding, 4 .ftz,
 *             5 bits of d's register
 * cvt_float: slots d, a; imm: 0 format of d, 1 format of a, 2 rounding (5: to an integral value is flag 64), 3 flags
 * cvt_narrow: slots d, a (upper element), b (lower) or -1; imm: 0 format of the elements, 1 format of the sources,
 *             2 rounding, 3 flags; sources f32 (two slots) or a packed f16x2/bf16x2 (one slot)
 * cvt_widen: slots d, a; imm: 0 format of the result elements (f16, bf16), 1 format of the two source elements */
#include "scalar_narrow.h"

enum { FTZ = 1, SAT = 2, SATFINITE = 4, RELU = 8, INTEGRAL = 64 };
enum { FORMAT_F32 = 16, FORMAT_F64, FORMAT_TF32, FORMAT_UE8M0 };

/* the two conversions of every kernel first */
HANDLER(cvt_rn_bf16x2_f32)
{
    const uint32_t *a = R(1), *b = R(2);
    Lanes t;
    LOOP t[l] = to_bf16(a[l]) << 16 | to_bf16(b[l]);
    uint32_t bad = BAD(1) | BAD(2);
    put(R(0), t, mask);
    set_bad(w, i->s[0], mask, bad);
    return EMU_NEXT;
}
BINARY32(cvt_rn_f16x2_f32, to_f16(x) << 16 | to_f16(y))
UNARY32(cvt_rn_bf16_f32, to_bf16(x))
UNARY32(cvt_rn_f16_f32, to_f16(x))
UNARY32(cvt_f32_bf16, x << 16)
UNARY32(cvt_f32_f16, canonical(from_f16(x)))
UNARY32(cvt_rn_f32_s32, bits32((float)(int32_t)x))

HANDLER(cvt_s64_s32)
{
    const uint32_t *a = R(1);
    Lanes low, high;
    LOOP low[l] = a[l];
    LOOP high[l] = (uint32_t)((int32_t)a[l] >> 31);
    uint32_t bad = BAD(1);
    put(R(0), low, mask);
    put(RHI(0), high, mask);
    set_bad_wide(w, i->s[0], mask, bad);
    return EMU_NEXT;
}

static inline uint64_t source(const Warp *w, int32_t slot, int l, int bits)
{
    uint64_t v = w->r[slot][l];
    if (bits > 32)
        return v | (uint64_t)w->r[slot + 1][l] << 32;
    return bits < 32 ? v & ((1u << bits) - 1) : v;
}
static inline int64_t extended(uint64_t v, int bits) { return (int64_t)(v << (64 - bits)) >> (64 - bits); }
static inline uint64_t cut(uint64_t v, int bits) { return bits < 64 ? v & ((1ull << bits) - 1) : v; }
static inline uint32_t bad_words(const Warp *w, int32_t slot, int bits) { return w->bad[slot] | (bits > 32 ? w->bad[slot + 1] : 0); }
static inline void write(Warp *w, int32_t slot, const uint64_t *t, int bits, uint32_t mask, uint32_t bad)
{
    if (bits > 32) {
        put_wide(w, slot, t, mask);
        set_bad_wide(w, slot, mask, bad);
        return;
    }
    Lanes narrow_lanes;
    LOOP narrow_lanes[l] = (uint32_t)t[l];
    put(w->r[slot], narrow_lanes, mask);
    set_bad(w, slot, mask, bad);
}

static inline uint64_t clamp_integer(__int128 v, int bits, int is_signed)
{
    __int128 high = ((__int128)1 << (bits - is_signed)) - 1, low = is_signed ? -high - 1 : 0;
    return cut((uint64_t)(v > high ? high : v < low ? low : v), bits);
}
/* a signed result in a wider register is sign-extended */
static inline uint64_t fill_register(const Ins *i, uint64_t v)
{
    return i->imm[1] ? cut((uint64_t)extended(v, i->imm[0]), i->imm[5]) : v;
}
HANDLER(cvt_int)
{
    int to = i->imm[0], from = i->imm[2];
    Wide t;
    LOOP {
        uint64_t v = source(w, i->s[1], l, from);
        int64_t s = i->imm[3] ? extended(v, from) : (int64_t)v;
        if (i->imm[4])
            t[l] = clamp_integer(i->imm[3] ? (__int128)s : (__int128)v, to, i->imm[1]);
        else
            t[l] = cut((uint64_t)s, to);
        t[l] = fill_register(i, t[l]);
    }
    write(w, i->s[0], t, to, mask, bad_words(w, i->s[1], from));
    return EMU_NEXT;
}

static inline int format_bits(int format) { return format == FORMAT_F64 ? 64 : format >= FORMAT_F32 ? 32 : 16; }
static inline double value_of(const Warp *w, int32_t slot, int l, int format, int flags)
{
    uint32_t b = w->r[slot][l];
    switch (format) {
    case FORMAT_F64: return f64(source(w, slot, l, 64));
    case FORMAT_F32: return (double)f32(flags & FTZ ? flush(b) : b);
    case NARROW_F16: return (double)from_f16(b);
    default: return (double)from_bf16(b);
    }
}
/* double to f32 in any rounding: `round_to` with the exponent range of f32 */
static inline uint32_t to_f32(double v, int mode)
{
    if (v != v)
        return NAN32;
    int negative = (int)(bits64(v) >> 63);
    double r = fabs(v);
    if (mode == RN || r - r != 0)
        return bits32((float)v);
    r = round_to(r, negative, 23, -126, mode);
    if (r > 0x1.fffffep127)
        r = mode == RZ || (mode == RM && !negative) || (mode == RP && negative) ? 0x1.fffffep127 : INFINITY;
    return bits32(negative ? -(float)r : (float)r);
}
static inline double integral(double v, int mode)
{
    switch (mode) {
    case RN: return __builtin_rint(v);
    case RZ: return trunc(v);
    case RM: return floor(v);
    default: return ceil(v);
    }
}
/* NaN bits of a source as a f64 NaN, quiet. */
static inline uint64_t nan_source(const Warp *w, int32_t slot, int l, int format)
{
    uint64_t b = source(w, slot, l, format_bits(format));
    switch (format) {
    case FORMAT_F64: break;
    case FORMAT_F32: b = (b >> 31) << 63 | 0x7ffull << 52 | (b & 0x7fffff) << 29; break;
    case NARROW_F16: b = (b >> 15) << 63 | 0x7ffull << 52 | (b & 0x3ff) << 42; break;
    default: b = (b >> 15) << 63 | 0x7ffull << 52 | (b & 0x7f) << 45;
    }
    return b | QUIET64;
}
/* What a NaN becomes, as measured on an H100: to and from f64 it keeps sign and payload, between the others there is one
 * NaN, and cvt.rna.tf32 only clears the low bits. */
static inline uint64_t nan_result(const Warp *w, int32_t slot, int l, int from, int to, int mode)
{
    uint64_t b = nan_source(w, slot, l, from);
    if (to == FORMAT_F64) return b;
    if (to == FORMAT_TF32) return mode == RNA ? w->r[slot][l] & ~0x1fffu : 0x7fffe000u;
    if (from != FORMAT_F64) return to == FORMAT_F32 ? NAN32 : NAN16;
    if (to == FORMAT_F32) return (b >> 63) << 31 | 0x7f800000u | (b >> 29 & 0x7fffff);
    return (b >> 63) << 15 | (to == NARROW_F16 ? 0x7c00u | (b >> 42 & 0x3ff) : 0x7f80u | (b >> 45 & 0x7f));
}
HANDLER(cvt_float)
{
    int to = i->imm[0], from = i->imm[1], mode = i->imm[2], flags = i->imm[3];
    Wide t;
    LOOP {
        double v = value_of(w, i->s[1], l, from, flags);
        if (flags & INTEGRAL && v == v)
            v = integral(v, mode);
        if (flags & SAT)
            v = v > 0 ? (v < 1 ? v : 1) : 0;
        if (v != v) {
            t[l] = nan_result(w, i->s[1], l, from, to, mode);
            continue;
        }
        if (flags & RELU && bits64(v) >> 63)
            v = 0;
        uint32_t r;
        switch (to) {
        case FORMAT_F64: t[l] = bits64(v); continue;
        case FORMAT_F32: r = to_f32(v, flags & INTEGRAL ? RN : mode); break;
        case FORMAT_TF32: /* 10 fraction bits in the top of an f32 */
            r = to_f32(v - v == 0 ? copysign(round_to(fabs(v), bits64(v) >> 63, 10, -126, mode), v) : v, RN);
            if (flags & SATFINITE && (r & 0x7fffffff) == 0x7f800000)
                r = (r & 0x80000000u) | 0x7f7fe000u;
            break;
        default: r = narrow(v, to, flags & INTEGRAL ? RN : mode, flags & SATFINITE, 0);
        }
        t[l] = flags & FTZ && to == FORMAT_F32 ? flush(r) : r;
    }
    write(w, i->s[0], t, format_bits(to), mask, bad_words(w, i->s[1], format_bits(from)));
    return EMU_NEXT;
}

/* 64-bit integers are rounded from the exact value: round to odd into 54 bits first */
static inline double from_integer(uint64_t magnitude, int negative)
{
    int shift = magnitude >> 54 ? 64 - __builtin_clzll(magnitude) - 54 : 0;
    if (shift)
        magnitude = (magnitude >> shift | ((magnitude & ((1ull << shift) - 1)) != 0)) ;
    /* 54 bits do not fit a double's 53: keep the lowest as a sticky bit by halving with odd */
    if (magnitude >> 53)
        magnitude = magnitude >> 1 | (magnitude & 1), shift++;
    double r = ldexp((double)magnitude, shift);
    return negative ? -r : r;
}
HANDLER(cvt_from_int)
{
    int to = i->imm[0], mode = i->imm[1], from = i->imm[2];
    Wide t;
    LOOP {
        uint64_t v = source(w, i->s[1], l, from);
        int64_t s = extended(v, from);
        int negative = i->imm[3] && s < 0;
        uint64_t magnitude = negative ? 0 - (uint64_t)s : v;
        if (to == FORMAT_F64) {
            /* the machine's own conversion rounds to nearest even; other modes step by one ulp */
            double r = (double)magnitude;
            if (mode != RN && r != (double)0) {
                __int128 difference = (__int128)r - (__int128)magnitude;
                int up = mode == RP ? !negative : mode == RM ? negative : 0;
                if (difference > 0 && !up) r = f64(bits64(r) - 1);
                if (difference < 0 && up) r = f64(bits64(r) + 1);
            }
            t[l] = bits64(negative ? -r : r);
            continue;
        }
        double r = from_integer(magnitude, negative);
        t[l] = to == FORMAT_F32 ? to_f32(r, mode) : narrow(r, to, mode, 0, 0);
    }
    write(w, i->s[0], t, format_bits(to), mask, bad_words(w, i->s[1], from));
    return EMU_NEXT;
}

HANDLER(cvt_to_int)
{
    int to = i->imm[0], is_signed = i->imm[1], from = i->imm[2], flags = i->imm[4];
    Wide t;
    LOOP {
        double v = value_of(w, i->s[1], l, from, flags);
        if (v != v) {
            t[l] = fill_register(i, from != FORMAT_F64 && to < 64 ? 0 : 1ull << (to - 1));
            continue;
        }
        v = integral(v, i->imm[3]);
        v = v > 0x1p100 ? 0x1p100 : v < -0x1p100 ? -0x1p100 : v;
        t[l] = fill_register(i, clamp_integer((__int128)v, to, is_signed));
    }
    write(w, i->s[0], t, to, mask, bad_words(w, i->s[1], format_bits(from)));
    return EMU_NEXT;
}

/* ue8m0: a power of two 2^(e - 127), 255 is NaN; negative values and zero give 0 (2^-127) */
static inline uint32_t to_ue8m0(double v, int mode, int satfinite)
{
    if (v != v)
        return 0xff;
    if (v <= 0)
        return 0;
    if (v - v != 0)
        return satfinite ? 0xfe : 0xff;
    int exponent;
    double fraction = frexp(v, &exponent); /* v = fraction * 2^exponent, 0.5 <= fraction < 1 */
    int e = exponent - 1 + (mode == RP && fraction > 0.5) + 127;
    if (e > 254)
        return satfinite ? 0xfe : 0xff;
    return e < 0 ? 0 : (uint32_t)e;
}
static inline uint32_t narrow_any(double v, int format, int mode, int flags)
{
    return format == FORMAT_UE8M0 ? to_ue8m0(v, mode, flags & SATFINITE)
                                  : narrow(v, format, mode, flags & SATFINITE, flags & RELU);
}
static inline int element_bits(int format)
{
    return format == FORMAT_UE8M0 ? 8
                                  : format == NARROW_E2M1 ? 4 : format == NARROW_F16 || format == NARROW_BF16 ? 16 : 8;
}
HANDLER(cvt_narrow)
{
    int to = i->imm[0], from = i->imm[1], bits = element_bits(to);
    Lanes t;
    uint32_t bad = BAD(1) | (i->s[2] >= 0 ? BAD(2) : 0);
    if (to >= NARROW_E4M3 && to <= NARROW_E2M1 && from == FORMAT_F32 && i->imm[2] == RN) {
        const Narrow format = narrow_formats[to];
        const uint32_t *a = R(1), *b = R(2);
        const int relu = i->imm[3] & RELU;
        LOOP t[l] = narrow_nearest(a[l], &format, relu) << bits | narrow_nearest(b[l], &format, relu);
        put(R(0), t, mask);
        set_bad(w, i->s[0], mask, bad);
        return EMU_NEXT;
    }
    LOOP {
        double upper, lower;
        if (from == FORMAT_F32) {
            upper = (double)f32(R(1)[l]);
            lower = (double)f32(R(2)[l]);
        } else {
            uint32_t packed = R(1)[l];
            upper = from == NARROW_F16 ? from_f16(packed >> 16) : from_bf16(packed >> 16);
            lower = from == NARROW_F16 ? from_f16(packed & 0xffff) : from_bf16(packed & 0xffff);
        }
        t[l] = narrow_any(upper, to, i->imm[2], i->imm[3]) << bits | narrow_any(lower, to, i->imm[2], i->imm[3]);
    }
    put(R(0), t, mask);
    set_bad(w, i->s[0], mask, bad);
    return EMU_NEXT;
}
static inline uint32_t widened(uint32_t code, int to, int from, int flags)
{
    double v;
    if (from == FORMAT_UE8M0)
        v = code == 0xff ? NAN : ldexp(1.0, (int)code - 127);
    else
        v = widen(code, from);
    return narrow(v, to, RN, 0, flags & RELU);
}
/* every code of the 8-bit formats as f16 and as bf16, [0] f16 and [1] bf16, by format; filled when the library opens */
static uint16_t widen_table[2][FORMAT_UE8M0 + 1][256];
__attribute__((constructor)) static void fill_widen_table(void)
{
    for (int to = NARROW_F16; to <= NARROW_BF16; to++)
        for (int from = NARROW_E4M3; from <= FORMAT_UE8M0; from++)
            if (from <= NARROW_E2M1 || from == FORMAT_UE8M0)
                for (uint32_t code = 0; code < 1u << element_bits(from); code++)
                    widen_table[to][from][code] = (uint16_t)widened(code, to, from, 0);
}
HANDLER(cvt_widen)
{
    int from = i->imm[1], bits = element_bits(from), relu = i->imm[3] & RELU;
    uint32_t part = (1u << bits) - 1;
    const uint16_t *table = widen_table[i->imm[0]][from];
    Lanes t;
    LOOP {
        uint32_t packed = R(1)[l], upper = table[packed >> bits & part], lower = table[packed & part];
        if (relu) { /* negative numbers become 0; a NaN is positive here */
            upper = upper >> 15 ? 0 : upper;
            lower = lower >> 15 ? 0 : lower;
        }
        t[l] = upper << 16 | lower;
    }
    uint32_t bad = BAD(1);
    put(R(0), t, mask);
    set_bad(w, i->s[0], mask, bad);
    return EMU_NEXT;
}

/* cvt.pack.sat: d = {c shifted up, sat(a), sat(b)}; slots d, a, b, c or -1; imm: 0 bits of an element, 1 signed */
HANDLER(cvt_pack)
{
    int bits = i->imm[0];
    Lanes t;
    uint32_t bad = BAD(1) | BAD(2) | (i->s[3] >= 0 ? BAD(3) : 0);
    LOOP {
        uint32_t a = (uint32_t)clamp_integer((int32_t)R(1)[l], bits, i->imm[1]);
        uint32_t b = (uint32_t)clamp_integer((int32_t)R(2)[l], bits, i->imm[1]);
        t[l] = a << bits | b;
        if (i->s[3] >= 0)
            t[l] |= R(3)[l] << (2 * bits);
    }
    put(R(0), t, mask);
    set_bad(w, i->s[0], mask, bad);
    return EMU_NEXT;
}
