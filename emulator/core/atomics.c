/* atom and red. CTAs may run in several threads over the same global memory, so elements are exchanged atomically. */
#include "emu.h"

#include <immintrin.h>
#include <math.h>

typedef enum { OP_ADD, OP_MIN, OP_MAX, OP_AND, OP_OR, OP_XOR, OP_EXCH, OP_CAS, OP_INC, OP_DEC } Operation;
typedef enum { TYPE_BITS, TYPE_SIGNED, TYPE_F32, TYPE_F64, TYPE_F16X2, TYPE_BF16X2, TYPE_F16, TYPE_BF16 } Type;
/* What the units at global memory do differently: f32 additions flush subnormal numbers, f64 ones leave a NaN as it is. */
enum { TYPE_F32_FTZ = 8, TYPE_F64_PLAIN_NAN };

static float half_value(uint32_t bits) { return _cvtsh_ss((uint16_t)bits); }
static uint32_t half_bits(float value) { return isnan(value) ? 0x7fff : _cvtss_sh(value, _MM_FROUND_TO_NEAREST_INT); }
static float from_bits(uint32_t bits)
{
    float value;
    memcpy(&value, &bits, 4);
    return value;
}
static uint32_t to_bits(float value)
{
    uint32_t bits;
    memcpy(&bits, &value, 4);
    return bits;
}
static float bf16_value(uint32_t bits) { return from_bits(bits << 16); }
static uint32_t bf16_bits(float value)
{
    uint32_t bits = to_bits(value);
    if (isnan(value)) return 0x7fff;
    return (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
}

static double combine_real(int op, double a, double b)
{
    if (op == OP_ADD) return a + b;
    if (isnan(a)) return b;
    if (isnan(b)) return a;
    int less = a == b ? signbit(a) && !signbit(b) : a < b;
    return (op == OP_MIN) == less ? a : b;
}

static float flushed(float value) { return fabsf(value) < 0x1p-126f ? copysignf(0.0f, value) : value; }

static uint64_t add_f32(float a, float b, int flush)
{
    float sum = flush ? flushed(flushed(a) + flushed(b)) : a + b;
    return isnan(sum) ? 0x7fffffff : to_bits(sum);
}

static int is_nan64(uint64_t bits) { return bits << 1 > 0x7ffull << 53; }

static uint32_t combine_half(int op, int bf16, uint32_t a, uint32_t b)
{
    a &= 0xffff, b &= 0xffff;
    if (bf16) return bf16_bits((float)combine_real(op, bf16_value(a), bf16_value(b)));
    return half_bits((float)combine_real(op, half_value(a), half_value(b)));
}

static uint64_t combine(int op, int type, uint32_t size, uint64_t a, uint64_t b, uint64_t c)
{
    const int shift = 64 - 8 * (int)size;
    int64_t sa = (int64_t)(a << shift) >> shift, sb = (int64_t)(b << shift) >> shift;
    switch (op) {
    case OP_EXCH: return b;
    case OP_CAS: return a == b ? c : a;
    case OP_AND: return a & b;
    case OP_OR: return a | b;
    case OP_XOR: return a ^ b;
    case OP_INC: return a >= b ? 0 : a + 1;
    case OP_DEC: return a == 0 || a > b ? b : a - 1;
    default: break;
    }
    switch (type) {
    case TYPE_F32:
    case TYPE_F32_FTZ:
        if (op == OP_ADD) return add_f32(from_bits((uint32_t)a), from_bits((uint32_t)b), type == TYPE_F32_FTZ);
        return to_bits((float)combine_real(op, from_bits((uint32_t)a), from_bits((uint32_t)b)));
    case TYPE_F64_PLAIN_NAN:
        if (is_nan64(a) || is_nan64(b)) return is_nan64(b) ? b : a;
        /* fall through */
    case TYPE_F64: {
        double x, y;
        memcpy(&x, &a, 8), memcpy(&y, &b, 8);
        if (is_nan64(a) || is_nan64(b)) return (is_nan64(a) ? a : b) | 1ull << 51;
        x = combine_real(op, x, y);
        memcpy(&a, &x, 8);
        return a;
    }
    case TYPE_F16X2:
    case TYPE_BF16X2:
        return combine_half(op, type == TYPE_BF16X2, (uint32_t)a, (uint32_t)b) |
               combine_half(op, type == TYPE_BF16X2, (uint32_t)a >> 16, (uint32_t)b >> 16) << 16;
    case TYPE_F16:
    case TYPE_BF16: return combine_half(op, type == TYPE_BF16, (uint32_t)a, (uint32_t)b);
    default: break;
    }
    if (op == OP_ADD) return a + b;
    int less = type == TYPE_SIGNED ? sa < sb : a < b;
    return (op == OP_MIN) == less ? a : b;
}

#define EXCHANGE(bits)                                                                                                  \
    do {                                                                                                                \
        uint##bits##_t *cell = (void *)data, seen = __atomic_load_n(cell, __ATOMIC_SEQ_CST);                            \
        while (!__atomic_compare_exchange_n(cell, &seen, (uint##bits##_t)combine(op, type, size, seen, b, c), 0,        \
                                            __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST)) {}                                     \
        old = seen;                                                                                                     \
    } while (0)

static uint64_t exchange(uint8_t *data, int op, int type, uint32_t size, uint64_t b, uint64_t c)
{
    uint64_t old;
    if (size == 2) EXCHANGE(16);
    else if (size == 4) EXCHANGE(32);
    else EXCHANGE(64);
    return old;
}

static uint64_t operand(const Warp *w, int32_t slot, uint32_t l, uint32_t size)
{
    if (slot < 0) return 0;
    if (size == 8) return get64(w, slot, l);
    return size == 2 ? w->r[slot][l] & 0xffff : w->r[slot][l];
}

static uint32_t bad_of(const Warp *w, int32_t slot, uint32_t size)
{
    return slot < 0 ? 0 : w->bad[slot] | (size == 8 ? w->bad[slot + 1] : 0);
}

/* slots dst or -1, address, b, c or -1; imm offset, element bytes, operation, type, flags. space: 0 global, 1 shared */
static int atomic(Warp *w, const Ins *i, uint32_t mask, int space)
{
    const uint32_t size = (uint32_t)i->imm[1], flags = (uint32_t)i->imm[4];
    const int op = i->imm[2], type = i->imm[3], wide = space != 1 || (flags & MEMORY_WIDE);
    uint32_t bad = (BAD(1) | (wide ? BADHI(1) : 0)) & mask, value_bad = bad_of(w, i->s[2], size) | bad_of(w, i->s[3], size);
    if (bad) return stop(w, i, bad, "undefined_value", "the address was never written");
    Access a = access_of_warp(w, i, ACCESS_WRITE | ACCESS_ATOMIC | ACCESS_STRONG);
    EACH_LANE(mask, l)
    {
        uint64_t address = (wide ? get64(w, i->s[1], l) : R(1)[l]) + (uint64_t)(int64_t)i->imm[0];
        uint8_t *data, *shadow = NULL;
        int here = type;
        if (space == 1 || (space == 2 && address < SHARED_END)) {
            uint32_t offset;
            Cta *cta = shared_at(w, i, address & 0xffffffff, size, size, &offset);
            if (!cta) return EMU_STOP;
            data = cta->smem + offset, shadow = cta->shadow + offset;
            touch_shared(&a, cta, offset, size);
        } else {
            Range *range = global_at(w, i, address, size, size, 1);
            if (!range) return EMU_STOP;
            data = (uint8_t *)(uintptr_t)address;
            here = type == TYPE_F32 ? TYPE_F32_FTZ : type == TYPE_F64 ? TYPE_F64_PLAIN_NAN : type;
            if (range->shadow) shadow = range->shadow + (address - range->low);
            if (range->writer)
                for (uint32_t b = 0; b < size; b++) range->writer[address - range->low + b] = 1 + (int32_t)(i - w->program->ins);
            touch_global(&a, address, size);
        }
        if (flags & (MEMORY_ACQUIRE | MEMORY_RELEASE | MEMORY_RELAXED)) sync_location(w, address, flags, 1, 1);
        uint32_t unset = value_bad >> l & 1;
        for (uint32_t b = 0; shadow && b < size; b++) unset |= shadow[b] & SHADOW_BAD;
        if (op == OP_EXCH) unset = value_bad >> l & 1;
        if (unset && op == OP_CAS) return stop(w, i, 1u << l, "undefined_value", "compare and swap on memory that was never written");
        uint64_t old = exchange(data, op, here, size, operand(w, i->s[2], l, size), operand(w, i->s[3], l, size));
        uint32_t old_bad = shadow ? shadow[0] & SHADOW_BAD : 0;
        if (shadow) memset(shadow, (int)unset, size);
        if (i->s[0] < 0) continue;
        R(0)[l] = (uint32_t)old;
        set_bad(w, i->s[0], 1u << l, old_bad ? 1u << l : 0);
        if (size == 8) {
            RHI(0)[l] = (uint32_t)(old >> 32);
            set_bad(w, i->s[0] + 1, 1u << l, old_bad ? 1u << l : 0);
        }
    }
    w->machine->event++;
    return EMU_YIELD;
}

HANDLER(atom_global) { return atomic(w, i, mask, 0); }
HANDLER(atom_shared) { return atomic(w, i, mask, 1); }
HANDLER(atom_generic) { return atomic(w, i, mask, 2); }
