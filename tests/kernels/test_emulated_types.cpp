// SPDX-License-Identifier: Apache-2.0
// The emulation's own test, third part: bfloat16 and half precision, all their values; bits and
// arithmetic of cuda_runtime.h; tensor-core fragments.
#include "kernel_case.h"

#include "death_case.h"
#include "kernels/device.cuh"

#include <mma.h>

using namespace nvcuda;

// ------------------------------------------------------------------------------- half types

static unsigned short bits_of(__nv_bfloat16 v)
{
    return __bfloat16_as_ushort(v);
}
static unsigned short bits_of(__half v)
{
    return __half_as_ushort(v);
}

// A format of 16 bits with `mantissa` bits of mantissa, told without the code under test.
struct format {
    int mantissa, bias;
    float value(unsigned bits) const
    {
        const int exponent_bits = 15 - mantissa, top = (1 << exponent_bits) - 1;
        const int exponent = (int)(bits >> mantissa) & top;
        const double fraction = (double)(bits & ((1u << mantissa) - 1)) / (1 << mantissa);
        const double size = exponent == top ? (fraction > 0 ? NAN : INFINITY)
                            : exponent > 0  ? ldexp(1 + fraction, exponent - bias)
                                            : ldexp(fraction, 1 - bias);
        return (float)(bits & 0x8000u ? -size : size);
    }
    unsigned infinity() const
    {
        return 0x7fffu >> mantissa << mantissa;
    }
};

template <class T> static void test_format(format f)
{
    T element;
    for (unsigned bits = 0; bits < 65536; bits++) {
        const unsigned short short_bits = (unsigned short)bits;
        memcpy((void *)&element, &short_bits, 2);
        const float v = float_of(element), expected = f.value(bits);
        T back;
        element_of(v, &back);
        if (isnan(expected)) {
            CHECK(isnan(v) && isnan(float_of(back)));
            continue;
        }
        CHECK(v == expected && signbit(v) == signbit(expected));
        CHECK(bits_of(back) == bits);
    }
    // Between each value and the next one: the tie goes to the even one, all else to the nearer.
    for (unsigned sign : {0u, 0x8000u})
        for (unsigned bits = 0; bits < f.infinity(); bits++) {
            const double low = f.value(bits);
            const double high =
                bits + 1 < f.infinity() ? f.value(bits + 1) : 2 * low - f.value(bits - 1);
            const float tie = (float)((low + high) / 2), s = sign ? -1.0f : 1.0f;
            const float below = nextafterf(tie, 0), above = nextafterf(tie, INFINITY);
            T at_tie, at_below, at_above;
            element_of(s * tie, &at_tie);
            element_of(s * below, &at_below);
            element_of(s * above, &at_above);
            CHECK(bits_of(at_tie) == (sign | (bits + (bits & 1))));
            CHECK(bits_of(at_below) == (sign | bits));
            CHECK(bits_of(at_above) == (sign | (bits + 1)));
        }
    element_of(-INFINITY, &element);
    CHECK(bits_of(element) == (0x8000u | f.infinity()));
    element_of(-NAN, &element);
    CHECK(bits_of(element) == 0x7fff);
}

static void test_pairs()
{
    const __nv_bfloat162 b = __float22bfloat162_rn(make_float2(1.0f, -2.5f));
    const __half2 h = __floats2half2_rn(1.0f, -2.5f);
    static_assert(sizeof b == 4 && alignof(__nv_bfloat162) == 4 && sizeof(__half2) == 4, "");
    CHECK(__bfloat1622float2(b).x == 1 && __bfloat1622float2(b).y == -2.5f);
    CHECK(__half22float2(h).x == 1 && __half22float2(h).y == -2.5f);
    CHECK(__low2float(b) == 1 && __high2float(b) == -2.5f);
    CHECK(__low2float(h) == 1 && __high2float(h) == -2.5f);
    CHECK(__bfloat162float(__halves2bfloat162(b.y, b.x).x) == -2.5f);
    CHECK(__half2float(__halves2half2(h.y, h.x).y) == 1);
}

// ------------------------------------------------------------------------------- arithmetic

static void test_arithmetic()
{
    CHECK(__popc(0xf0f0u) == 8 && __popcll(~0ull) == 64);
    CHECK(__clz(0) == 32 && __clz(1) == 31 && __clz(-1) == 0 && __clzll(1) == 63);
    CHECK(__ffs(0) == 0 && __ffs(8) == 4 && __ffsll(1ll << 40) == 41);
    CHECK(__brev(1) == 0x80000000u && __brev(0x12345678u) == 0x1e6a2c48u);
    CHECK(__umulhi(0xffffffffu, 0xffffffffu) == 0xfffffffeu);
    CHECK(__float_as_uint(1.0f) == 0x3f800000u && __uint_as_float(0x40000000u) == 2);
    CHECK(__float_as_int(-0.0f) == INT32_MIN && __int_as_float(0x3f000000) == 0.5f);
    CHECK(__longlong_as_double(__double_as_longlong(-3.25)) == -3.25);
    CHECK(__float2int_rn(2.5f) == 2 && __float2int_rn(3.5f) == 4 && __float2int_rn(NAN) == 0);
    CHECK(__float2int_rd(-1.5f) == -2 && __float2int_ru(-1.5f) == -1);
    CHECK(__float2int_rz(3e9f) == INT32_MAX && __float2int_rz(-3e9f) == INT32_MIN);
    CHECK(__float2uint_rn(-1.0f) == 0 && __float2uint_rz(5e9f) == UINT32_MAX);
    CHECK(__saturatef(-1.0f) == 0 && __saturatef(2.0f) == 1 && __saturatef(0.25f) == 0.25f);
    CHECK(__saturatef(NAN) == 0);
    CHECK(rsqrtf(4.0f) == 0.5f && rsqrt(16.0) == 0.25);
    CHECK(min(2, 3) == 2 && max(2u, 3u) == 3 && min(-1ll, 5ll) == -1);
    CHECK(min(NAN, 1.0f) == 1 && max(1.0f, NAN) == 1 && max((double)NAN, 2.0) == 2);
    // Not contracted: the product is rounded before it is added.
    volatile float a = 1.0f + 0x1p-12f, c = -(1.0f + 0x1p-11f);
    CHECK(a * a + c == 0 && fmaf(a, a, c) == 0x1p-24f);
}

// ------------------------------------------------------------------------------- fragments

template <class T> struct memory_of {
    typedef T type;
};
template <> struct memory_of<wmma::precision::tf32> {
    typedef float type;
};

// One warp for each 16 rows of a: d = 2 (a b + c), c and d row by row or column by column.
template <int k, class T, class LayoutA, class LayoutB>
static __global__ void product_kernel(const typename memory_of<T>::type *a,
                                      const typename memory_of<T>::type *b, const float *c,
                                      float *d, unsigned lda, unsigned ldb, unsigned ldc,
                                      wmma::layout_t layout)
{
    wmma::fragment<wmma::matrix_a, 16, 16, k, T, LayoutA> part_a;
    wmma::fragment<wmma::matrix_b, 16, 16, k, T, LayoutB> part_b;
    wmma::fragment<wmma::accumulator, 16, 16, k, float> sum;
    wmma::load_matrix_sync(part_a, a, lda);
    wmma::load_matrix_sync(part_b, b, ldb);
    wmma::load_matrix_sync(sum, c, ldc, layout);
    wmma::mma_sync(sum, part_a, part_b, sum);
    for (int i = 0; i < sum.num_elements; i++)
        sum.x[i] *= 2;
    wmma::store_matrix_sync(d, sum, ldc, layout);
}

template <int k, class T, class LayoutA, class LayoutB> static void test_product(bool by_rows)
{
    typedef typename memory_of<T>::type element;
    const bool a_rows = std::is_same<LayoutA, wmma::row_major>::value;
    const bool b_rows = std::is_same<LayoutB, wmma::row_major>::value;
    const unsigned lda = 24, ldb = 32, ldc = 20;
    std::vector<float> a(16 * lda, NAN), b(16 * ldb, NAN), c(16 * ldc, NAN);
    const std::vector<float> values = exact_values(16 * k * 2 + 256, (uint64_t)k);
    const auto at = [](bool rows, unsigned ld, int row, int column) {
        return rows ? (unsigned)row * ld + (unsigned)column : (unsigned)column * ld + (unsigned)row;
    };
    std::vector<float> expected(16 * ldc, 0);
    for (int i = 0; i < 16; i++)
        for (int l = 0; l < k; l++) {
            a[at(a_rows, lda, i, l)] = values[(size_t)(i * k + l)];
            b[at(b_rows, ldb, l, i)] = values[(size_t)(16 * k + i * k + l)];
        }
    for (int i = 0; i < 16; i++)
        for (int j = 0; j < 16; j++) {
            double sum = c[at(by_rows, ldc, i, j)] = values[(size_t)(32 * k + i * 16 + j)];
            for (int l = 0; l < k; l++)
                sum += (double)a[at(a_rows, lda, i, l)] * (double)b[at(b_rows, ldb, l, j)];
            expected[at(by_rows, ldc, i, j)] = (float)(2 * sum);
        }
    const device_buffer<element> d_a(to_elements<element>(a)), d_b(to_elements<element>(b));
    const device_buffer<float> d_c(c), d_d(c.size());
    CHECK(launch(product_kernel<k, T, LayoutA, LayoutB>, dim3(1), dim3(32), 0, nullptr, d_a.data(),
                 d_b.data(), d_c.data(), d_d.data(), lda, ldb, ldc,
                 by_rows ? wmma::mem_row_major : wmma::mem_col_major) == cudaSuccess);
    std::vector<float> got = d_d.download();
    for (size_t i = 0; i < got.size(); i++)
        if (i % ldc >= 16) {
            CHECK(isnan(got[i])); // nothing is written between the rows
            got[i] = 0;
        }
    CHECK(close_to(got, expected, 0, 0)); // few bits: every sum is exact
}

template <int k, class T> static void test_products_of()
{
    for (bool by_rows : {false, true}) {
        test_product<k, T, wmma::row_major, wmma::row_major>(by_rows);
        test_product<k, T, wmma::row_major, wmma::col_major>(by_rows);
        test_product<k, T, wmma::col_major, wmma::row_major>(by_rows);
        test_product<k, T, wmma::col_major, wmma::col_major>(by_rows);
    }
}

static void test_products()
{
    test_products_of<16, __nv_bfloat16>();
    test_products_of<16, __half>();
    test_products_of<8, wmma::precision::tf32>();
}

// TF32 has 10 bits of mantissa: what is below is rounded by __float_to_tf32, and cut off without it.
static __global__ void tf32_kernel(const float *a, const float *b, float *d, bool convert)
{
    wmma::fragment<wmma::matrix_a, 16, 16, 8, wmma::precision::tf32, wmma::row_major> part_a;
    wmma::fragment<wmma::matrix_b, 16, 16, 8, wmma::precision::tf32, wmma::row_major> part_b;
    wmma::fragment<wmma::accumulator, 16, 16, 8, float> sum;
    wmma::fill_fragment(sum, 0.0f);
    wmma::load_matrix_sync(part_a, a, 8);
    wmma::load_matrix_sync(part_b, b, 16);
    for (int i = 0; convert && i < part_a.num_elements; i++)
        part_a.x[i] = wmma::__float_to_tf32(part_a.x[i]);
    wmma::mma_sync(sum, part_a, part_b, sum);
    wmma::store_matrix_sync(d, sum, 16, wmma::mem_row_major);
}

static void test_tf32()
{
    const float v = 1 + 0x1.8p-11f; // nearer to 1 + 2^-10 than to 1
    std::vector<float> b(128, 0);
    for (size_t i = 0; i < 8; i++)
        b[i * 16 + i] = 1; // d = a
    for (bool convert : {false, true}) {
        const device_buffer<float> d_a(std::vector<float>(128, v)), d_b(b), d(256);
        CHECK(launch(tf32_kernel, dim3(1), dim3(32), 0, nullptr, d_a.data(), d_b.data(), d.data(),
                     convert) == cudaSuccess);
        const std::vector<float> got = d.download();
        CHECK(got[0] == (convert ? 1 + 0x1p-10f : 1.0f) && got[15] == 0);
    }
    CHECK(wmma::__float_to_tf32(1 + 0x1p-11f) == 1 + 0x1p-10f); // a tie, away from 0
    CHECK(wmma::__float_to_tf32(-INFINITY) == -INFINITY && isnan(wmma::__float_to_tf32(NAN)));
}

// Each lane has elements of its own: 8 of the 256 sums.
static __global__ void own_kernel(float *out)
{
    wmma::fragment<wmma::accumulator, 16, 16, 16, float> mine;
    wmma::fill_fragment(mine, (float)threadIdx.x);
    wmma::store_matrix_sync(out, mine, 16, wmma::mem_row_major);
}

// What has not been filled is NaN.
static __global__ void unfilled_kernel(float *out)
{
    wmma::fragment<wmma::accumulator, 16, 16, 16, float> sum;
    wmma::store_matrix_sync(out, sum, 16, wmma::mem_row_major);
}

static void test_own_elements()
{
    const device_buffer<float> out(256);
    CHECK(launch(own_kernel, dim3(1), dim3(32), 0, nullptr, out.data()) == cudaSuccess);
    int times[32] = {0};
    for (float lane : out.download())
        times[(int)lane]++;
    for (int n : times)
        CHECK(n == 8);
    CHECK(launch(unfilled_kernel, dim3(1), dim3(32), 0, nullptr, out.data()) == cudaSuccess);
    for (float v : out.download())
        CHECK(isnan(v));
}

enum misuse { RIGHT, FEW_LANES, OTHER_POINTER, OTHER_STRIDE, LANE_LEFT_OUT, LANE_NOT_STORING };

static __global__ void misuse_kernel(const __nv_bfloat16 *a, float *d, misuse how, unsigned ld)
{
    wmma::fragment<wmma::matrix_a, 16, 16, 16, __nv_bfloat16, wmma::row_major> part_a;
    wmma::fragment<wmma::matrix_b, 16, 16, 16, __nv_bfloat16, wmma::row_major> part_b;
    wmma::fragment<wmma::accumulator, 16, 16, 16, float> sum;
    const bool special = threadIdx.x == 5;
    if (how == FEW_LANES && special)
        return;
    wmma::fill_fragment(sum, 0.0f);
    wmma::load_matrix_sync(part_a, how == OTHER_POINTER && special ? a + 256 : a, ld);
    if (!(how == LANE_LEFT_OUT && special))
        wmma::load_matrix_sync(part_b, a, how == OTHER_STRIDE && special ? 24 : 16);
    wmma::mma_sync(sum, part_a, part_b, sum);
    if (!(how == LANE_NOT_STORING && special))
        wmma::store_matrix_sync(d, sum, 16, wmma::mem_row_major);
}

static void test_misuse()
{
    const device_buffer<__nv_bfloat16> a(to_elements<__nv_bfloat16>(exact_values(1024, 1)));
    const device_buffer<float> d(512);
    const auto go = [&](misuse how, size_t offset, unsigned ld) {
        CHECK(launch(misuse_kernel, dim3(1), dim3(32), 0, nullptr, a.data() + offset, d.data(), how,
                     ld) == cudaSuccess);
        CHECK(cudaDeviceSynchronize() == cudaSuccess);
    };
    const char *different = "not made by all lanes with the same arguments";
    go(RIGHT, 16, 16);
    CHECK(dies([&] { go(FEW_LANES, 0, 16); }, "names a lane that has returned"));
    CHECK(dies([&] { go(OTHER_POINTER, 0, 16); }, different, "misuse_kernel"));
    CHECK(dies([&] { go(OTHER_STRIDE, 0, 16); }, different));
    CHECK(dies([&] { go(LANE_LEFT_OUT, 0, 16); }, different));
    CHECK(dies([&] { go(LANE_NOT_STORING, 0, 16); }, different));
    CHECK(dies([&] { go(RIGHT, 8, 16); }, "not aligned to 32 bytes"));
    CHECK(dies([&] { go(RIGHT, 0, 20); }, "no multiple of 16 bytes"));
    CHECK(dies([&] { go(RIGHT, 0, 8); }, "too small"));
}

int main()
{
    test_format<__nv_bfloat16>({7, 127});
    test_format<__half>({10, 15});
    test_pairs();
    test_arithmetic();
    test_misuse();
    return run_in_all_orders(
        {{"products", test_products}, {"TF32", test_tf32}, {"own elements", test_own_elements}});
}
