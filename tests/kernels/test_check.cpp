// SPDX-License-Identifier: Apache-2.0
// Random values and comparisons, by plain loops over the same values.
#include <math.h>

#include "kernel_case.h"
#include "kernels/kernels.h"

static const element_type every_type[] = {ELEMENT_F32, ELEMENT_BF16, ELEMENT_F16};
static const size_t sizes[] = {1, 2, 31, 32, 33, 65, 251, 257, 4096, 4097, 3000017};

/* ---- Random values --------------------------------------------------------------------------- */

static std::vector<float> filled(size_t n, element_type type, unsigned seed)
{
    device_buffer<unsigned char> buffer(n * type_bytes(type));
    CHECK(kernel_fill_random(buffer.data(), n, type, seed, 0) == cudaSuccess);
    return decode(buffer.download(), type);
}

/* Each of the 256 values about as often as the others, neighbours independent of each other. */
static void test_values()
{
    const size_t n = 1 << 18;
    std::vector<float> values = filled(n, ELEMENT_F32, 1);
    std::vector<unsigned> seen(256);
    double sum = 0, products[3] = {0};
    const size_t apart[3] = {1, 64, 4096};
    for (size_t i = 0; i < n; i++) {
        float place = values[i] * 128 + 128;
        CHECK(place >= 0 && place < 256 && place == floorf(place));
        seen[(size_t)place]++;
        sum += values[i];
        for (int k = 0; k < 3; k++)
            products[k] += values[i] * values[(i + apart[k]) % n];
    }
    for (unsigned count : seen) /* 1024 each, by the square root of that */
        CHECK(count > 1024 - 6 * 32 && count < 1024 + 6 * 32);
    CHECK(fabs(sum / n + 1.0 / 256) < 6 * 0.58 / 512);
    for (double p : products)
        CHECK(fabs(p / n) < 6 * 0.34 / 512);
}

static void test_same_in_every_type()
{
    for (size_t n : {1, 33, 4097}) {
        std::vector<float> first = filled(n, ELEMENT_F32, 7);
        CHECK(filled(n, ELEMENT_BF16, 7) == first && filled(n, ELEMENT_F16, 7) == first);
        CHECK(n == 1 || filled(n, ELEMENT_F32, 8) != first);
        std::vector<float> longer = filled(n + 5, ELEMENT_F32, 7);
        longer.resize(n);
        CHECK(longer == first);
    }
}

/* ---- Comparisons ----------------------------------------------------------------------------- */

struct comparison {
    double squares, scale;
    float excess;
    unsigned long long lost;
};

static comparison compared(const std::vector<float> &got, const std::vector<float> &want,
                           element_type type, float rounding)
{
    device_buffer<unsigned char> a(encode(got, type)), b(encode(want, type));
    device_buffer<device_deviation> partial(compare_blocks(got.size()));
    CHECK(partial.size() >= 1 && partial.size() <= DEVICE_COMPARE_BLOCKS);
    CHECK(kernel_compare(a.data(), b.data(), got.size(), type, rounding, partial.data(), 0) ==
          cudaSuccess);
    comparison all = {};
    unsigned bits = 0;
    for (const device_deviation &d : partial.download()) {
        all.squares += d.squares;
        all.scale += d.scale;
        bits = bits > d.excess ? bits : d.excess;
        all.lost += d.lost;
    }
    memcpy(&all.excess, &bits, sizeof bits);
    return all;
}

static bool is_near(double a, double b)
{
    return fabs(a - b) <= 1e-12 * fabs(b);
}

static void test_sums()
{
    for (element_type type : every_type)
        for (size_t n : sizes) {
            std::vector<float> got = exact_values(n, n), want = exact_values(n, n + 1);
            const float rounding = 0.25f;
            double squares = 0, scale = 0;
            float excess = 0;
            for (size_t i = 0; i < n; i++) {
                float d = fabsf(got[i] - want[i]);
                squares += (double)d * d;
                scale += (double)want[i] * want[i];
                excess = fmaxf(excess, d - rounding * fmaxf(fabsf(got[i]), fabsf(want[i])));
            }
            comparison made = compared(got, want, type, rounding);
            CHECK(is_near(made.squares, squares) && is_near(made.scale, scale));
            CHECK(made.excess == excess && made.lost == 0);
            made = compared(want, want, type, 0);
            CHECK(made.squares == 0 && made.excess == 0 && is_near(made.scale, scale));
        }
}

/* One that is not like the others is found wherever it is. */
static void test_single()
{
    for (size_t n : {1, 33, 4097, 100003})
        for (size_t at : {(size_t)0, n / 2, n - 1}) {
            std::vector<float> got = exact_values(n, 3), want = got;
            want[at] += 0.5f;
            comparison made = compared(got, want, ELEMENT_BF16, 0);
            CHECK(made.squares == 0.25 && made.excess == 0.5f && made.lost == 0);
            want[at] = NAN;
            made = compared(got, want, ELEMENT_F16, 0);
            CHECK(isnan(made.squares) && isnan(made.excess) && made.lost == 1);
            got[at] = NAN;
            made = compared(got, want, ELEMENT_F32, 0);
            CHECK(isnan(made.squares) && isnan(made.excess) && made.lost == 0);
            want[at] = 1;
            made = compared(got, want, ELEMENT_BF16, 0);
            CHECK(isnan(made.squares) && isnan(made.excess) && made.lost == 0);
            got[at] = INFINITY;
            made = compared(got, want, ELEMENT_F16, 0.01f);
            CHECK(!isfinite(made.squares) && !isfinite(made.excess));
        }
}

static void test_nothing()
{
    device_buffer<unsigned char> one(4);
    device_buffer<device_deviation> partial(1);
    std::vector<unsigned char> before = one.download();
    CHECK(compare_blocks(0) == 0);
    CHECK(kernel_fill_random(one.data(), 0, ELEMENT_F32, 1, 0) == cudaSuccess);
    CHECK(kernel_compare(one.data(), one.data(), 0, ELEMENT_F32, 0, partial.data(), 0) ==
          cudaSuccess);
    CHECK(one.download() == before && isnan(partial.download()[0].squares));
}

int main()
{
    return run_in_all_orders({{"values", test_values},
                              {"same_in_every_type", test_same_in_every_type},
                              {"sums", test_sums},
                              {"single", test_single},
                              {"nothing", test_nothing}});
}
