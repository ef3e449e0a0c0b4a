// SPDX-License-Identifier: Apache-2.0
// The emulated toolkit's nvcuda::wmma: 16x16x16 with bfloat16 or half operands, 16x16x8 with TF32. Each
// lane holds its own elements only, in an order that no kernel can know, though it is the same for
// bfloat16 and half, as with nvcc; the product is made when all 32 lanes have come, with exact products
// and float sums in the order of k. Fragments begin as NaN.
#ifndef EMULATED_MMA_H
#define EMULATED_MMA_H

#include <type_traits>

#include "cuda_bf16.h"
#include "cuda_fp16.h"
#include "cuda_runtime.h"

namespace nvcuda
{
namespace wmma
{
struct row_major;
struct col_major;
struct matrix_a;
struct matrix_b;
struct accumulator;
namespace precision
{
struct tf32;
}
enum layout_t { mem_row_major, mem_col_major };

// Rounded to 10 bits of mantissa, ties away from 0. The multiplication cuts off what is below.
static inline float __float_to_tf32(float in)
{
    const unsigned int bits = __float_as_uint(in);
    if ((bits & 0x7f800000u) == 0x7f800000u)
        return in;
    return __uint_as_float((bits + 0x1000u) & 0xffffe000u);
}
} // namespace wmma
} // namespace nvcuda

namespace emulation
{
namespace matrix
{
using namespace nvcuda::wmma;

template <class T> struct stored {
    typedef T type;
};
template <> struct stored<precision::tf32> {
    typedef float type;
};

// How many elements a lane holds, as in CUDA: operands in half precision are there twice.
template <class Use, int m, int n, int k, class T> struct share {
    static constexpr int rows = std::is_same<Use, matrix_b>::value ? k : m;
    static constexpr int columns = std::is_same<Use, matrix_a>::value ? k : n;
    static constexpr bool twice =
        std::is_same<T, __half>::value && !std::is_same<Use, accumulator>::value;
    static constexpr int elements = rows * columns / 32 * (twice ? 2 : 1);
    // Where in the matrix, row by row, element e of a lane is. Odd factors: each is hit once.
    static constexpr unsigned factor = std::is_same<Use, matrix_a>::value   ? 37
                                       : std::is_same<Use, matrix_b>::value ? 59
                                                                            : 91;
    static constexpr unsigned place(unsigned lane, unsigned e)
    {
        return ((e * 32 + lane) * factor + 21) % (unsigned)(rows * columns);
    }
};

inline float value(float v)
{
    return v;
}
inline float value(__half v)
{
    return __half2float(v);
}
inline float value(__nv_bfloat16 v)
{
    return __bfloat162float(v);
}
inline void round_to(float &to, float v)
{
    to = v;
}
inline void round_to(__half &to, float v)
{
    to = __float2half_rn(v);
}

void check_pointer(const void *pointer, unsigned ldm, size_t element_bytes, int least);
// d (m x n) += a (m x k) * b (k x n), all row by row.
void multiply(float *d, const float *a, const float *b, int m, int n, int k);
} // namespace matrix
} // namespace emulation

namespace nvcuda
{
namespace wmma
{
template <class Use, int m, int n, int k, class T, class Layout = void> class fragment
{
    using share = emulation::matrix::share<Use, m, n, k, T>;
    static constexpr bool plain = std::is_same<Use, accumulator>::value;
    static constexpr bool tf32 = std::is_same<T, precision::tf32>::value;
    static constexpr bool halves =
        std::is_same<T, __half>::value || std::is_same<T, __nv_bfloat16>::value;
    static_assert(m == 16 && n == 16 && (k == 16 || k == 8), "only 16x16x16 and 16x16x8");
    static_assert(plain
                      ? std::is_same<T, float>::value || (std::is_same<T, __half>::value && k == 16)
                      : (k == 16 ? halves : tf32),
                  "no such fragment");
    static_assert(plain == std::is_void<Layout>::value, "operands have a layout, sums have none");

  public:
    typedef T element_type;
    typedef typename emulation::matrix::stored<T>::type storage_element_type;
    enum { num_elements = share::elements, num_storage_elements = share::elements };
    storage_element_type x[num_elements];

    fragment()
    {
        memset(static_cast<void *>(x), 0xFF, sizeof x);
    }
};

template <class Use, int m, int n, int k, class T, class Layout>
static inline void
fill_fragment(fragment<Use, m, n, k, T, Layout> &f,
              const typename fragment<Use, m, n, k, T, Layout>::storage_element_type &value)
{
    for (auto &each : f.x)
        each = value;
}

// The address of an element of a matrix in memory.
template <class T>
static inline T *emulated_element(T *matrix, unsigned ldm, bool by_rows, unsigned row,
                                  unsigned column)
{
    return matrix + (by_rows ? (size_t)row * ldm + column : (size_t)column * ldm + row);
}

template <class Use, int m, int n, int k, class T, class Layout, class Element>
static inline void emulated_load(fragment<Use, m, n, k, T, Layout> &f, const Element *matrix,
                                 unsigned ldm, bool by_rows)
{
    using share = emulation::matrix::share<Use, m, n, k, T>;
    emulation::matrix::check_pointer(matrix, ldm, sizeof(Element),
                                     by_rows ? share::columns : share::rows);
    const unsigned lane = emulation::lane();
    for (unsigned e = 0; e < (unsigned)share::elements; e++) {
        const unsigned p = share::place(lane, e);
        f.x[e] = *emulated_element(matrix, ldm, by_rows, p / share::columns, p % share::columns);
    }
}

template <class Use, int m, int n, int k, class T, class Layout>
static inline void
load_matrix_sync(fragment<Use, m, n, k, T, Layout> &f,
                 const typename fragment<Use, m, n, k, T, Layout>::storage_element_type *matrix,
                 unsigned ldm)
{
    static_assert(!std::is_void<Layout>::value, "sums are loaded with a layout");
    emulated_load(f, matrix, ldm, std::is_same<Layout, row_major>::value);
}

template <int m, int n, int k, class T>
static inline void load_matrix_sync(fragment<accumulator, m, n, k, T> &f, const T *matrix,
                                    unsigned ldm, layout_t layout)
{
    emulated_load(f, matrix, ldm, layout == mem_row_major);
}

template <int m, int n, int k, class T>
static inline void store_matrix_sync(T *matrix, const fragment<accumulator, m, n, k, T> &f,
                                     unsigned ldm, layout_t layout)
{
    using share = emulation::matrix::share<accumulator, m, n, k, T>;
    const bool by_rows = layout == mem_row_major;
    emulation::matrix::check_pointer(matrix, ldm, sizeof(T), by_rows ? n : m);
    const unsigned lane = emulation::lane();
    for (unsigned e = 0; e < (unsigned)share::elements; e++) {
        const unsigned p = share::place(lane, e);
        *emulated_element(matrix, ldm, by_rows, p / share::columns, p % share::columns) = f.x[e];
    }
}

// What a lane hands to the others: where its four fragments are.
template <class D, class A, class B, class C> struct emulated_operands {
    D *d;
    const A *a;
    const B *b;
    const C *c;
};

template <int k, class T, class Sum, class LayoutA, class LayoutB>
static void emulated_combine(void *const operand[32])
{
    using fragment_a = fragment<matrix_a, 16, 16, k, T, LayoutA>;
    using fragment_b = fragment<matrix_b, 16, 16, k, T, LayoutB>;
    using fragment_sum = fragment<accumulator, 16, 16, k, Sum>;
    using operands = emulated_operands<fragment_sum, fragment_a, fragment_b, fragment_sum>;
    using share_a = emulation::matrix::share<matrix_a, 16, 16, k, T>;
    using share_b = emulation::matrix::share<matrix_b, 16, 16, k, T>;
    using share_sum = emulation::matrix::share<accumulator, 16, 16, k, Sum>;
    alignas(64) float a[16 * k], b[k * 16], sum[256];
    // TF32: what the multiplier does not see is cut off.
    const unsigned kept = std::is_same<T, precision::tf32>::value ? 0xffffe000u : 0xffffffffu;
    for (unsigned lane = 0; lane < 32; lane++) {
        const operands &o = *static_cast<const operands *>(operand[lane]);
        for (unsigned e = 0; e < 16 * k / 32; e++) {
            const float va = emulation::matrix::value(o.a->x[e]);
            const float vb = emulation::matrix::value(o.b->x[e]);
            a[share_a::place(lane, e)] = __uint_as_float(__float_as_uint(va) & kept);
            b[share_b::place(lane, e)] = __uint_as_float(__float_as_uint(vb) & kept);
        }
        for (unsigned e = 0; e < 8; e++)
            sum[share_sum::place(lane, e)] = emulation::matrix::value(o.c->x[e]);
    }
    emulation::matrix::multiply(sum, a, b, 16, 16, k);
    for (unsigned lane = 0; lane < 32; lane++)
        for (unsigned e = 0; e < 8; e++)
            emulation::matrix::round_to(static_cast<const operands *>(operand[lane])->d->x[e],
                                        sum[share_sum::place(lane, e)]);
}

template <int k, class T, class Sum, class LayoutA, class LayoutB>
static inline void mma_sync(fragment<accumulator, 16, 16, k, Sum> &d,
                            const fragment<matrix_a, 16, 16, k, T, LayoutA> &a,
                            const fragment<matrix_b, 16, 16, k, T, LayoutB> &b,
                            const fragment<accumulator, 16, 16, k, Sum> &c,
                            const char *file = __builtin_FILE(), int line = __builtin_LINE())
{
    emulated_operands<typename std::remove_reference<decltype(d)>::type,
                      fragment<matrix_a, 16, 16, k, T, LayoutA>,
                      fragment<matrix_b, 16, 16, k, T, LayoutB>,
                      fragment<accumulator, 16, 16, k, Sum>>
        operands = {&d, &a, &b, &c};
    emulation::wait_warp(emulation::warp_operation::matrix, 0xffffffffu,
                         (uint64_t) reinterpret_cast<uintptr_t>(&operands), 0,
                         emulated_combine<k, T, Sum, LayoutA, LayoutB>, file, line);
}
} // namespace wmma
} // namespace nvcuda

#endif
