// SPDX-License-Identifier: Apache-2.0
// Sums of metrics and structural similarity against plain loops, and against scikit-image.
#include "structure_case.h"

#include <float.h>

#include <algorithm>

static repeated_results results;

// ---- Sums -------------------------------------------------------------------------------------

// What the sums should be, and sums of magnitudes that rounding is measured against.
struct expected_sums {
    device_metric_sums exact;
    long double a, b, aa, bb, ab, squared, absolute, relative;
    long double magnitude_a, magnitude_b, magnitude_ab;
};

struct expected_moments {
    long double aa, bb, ab;
};

struct image_pair {
    std::vector<float> a, b;

    bool finite(size_t v) const
    {
        return std::isfinite(a[v]) && std::isfinite(b[v]);
    }
};

static expected_sums sum_up(const image_pair &pair, const std::vector<size_t> &voxels,
                            double relative_above)
{
    expected_sums e = {};
    e.exact.lowest = (double)INFINITY;
    e.exact.highest = -(double)INFINITY;
    for (size_t v : voxels) {
        long double a = (long double)pair.a[v], b = (long double)pair.b[v], d = fabsl(a - b);
        if (!pair.finite(v)) {
            e.exact.not_finite++;
            continue;
        }
        e.exact.count++;
        e.exact.lowest = std::min(e.exact.lowest, (double)b);
        e.exact.highest = std::max(e.exact.highest, (double)b);
        e.exact.worst = std::max(e.exact.worst, fabs((double)pair.a[v] - (double)pair.b[v]));
        e.a += a;
        e.b += b;
        e.aa += a * a;
        e.bb += b * b;
        e.ab += a * b;
        e.squared += d * d;
        e.absolute += d;
        e.magnitude_a += fabsl(a);
        e.magnitude_b += fabsl(b);
        e.magnitude_ab += fabsl(a * b);
        if (fabsl(b) > relative_above) {
            e.exact.relative_count++;
            e.relative += d / fabsl(b);
        }
    }
    return e;
}

static expected_moments moments_of(const image_pair &pair, const std::vector<size_t> &voxels,
                                   const expected_sums &sums)
{
    expected_moments m = {};
    for (size_t v : voxels) {
        if (!pair.finite(v))
            continue;
        long double a = (long double)pair.a[v] - sums.a / (long double)sums.exact.count;
        long double b = (long double)pair.b[v] - sums.b / (long double)sums.exact.count;
        m.aa += a * a;
        m.bb += b * b;
        m.ab += a * b;
    }
    return m;
}

static bool near(double made, long double expected, long double magnitude, double rounding)
{
    bool ok = fabsl((long double)made - expected) <= rounding * magnitude && results.same(made);
    if (!ok)
        fprintf(stderr, "%.17g instead of %.17g\n", made, (double)expected);
    return ok;
}

static void check_structure(const device_metric_sums &s, const device_metric_moments &m,
                            const expected_sums &e, const expected_moments &em)
{
    CHECK(s.count == e.exact.count && s.not_finite == e.exact.not_finite);
    CHECK(s.relative_count == e.exact.relative_count);
    CHECK(s.lowest == e.exact.lowest && s.highest == e.exact.highest && s.worst == e.exact.worst);
    CHECK(near(s.a, e.a, e.magnitude_a, 1e-14));
    CHECK(near(s.b, e.b, e.magnitude_b, 1e-14));
    CHECK(near(s.aa, e.aa, e.aa, 1e-14));
    CHECK(near(s.bb, e.bb, e.bb, 1e-14));
    CHECK(near(s.ab, e.ab, e.magnitude_ab, 1e-14));
    CHECK(near(s.squared, e.squared, e.squared, 1e-14));
    CHECK(near(s.absolute, e.absolute, e.absolute, 1e-14));
    CHECK(near(s.relative, e.relative, e.relative, 1e-14));
    CHECK(near(m.aa, em.aa, em.aa, 1e-9));
    CHECK(near(m.bb, em.bb, em.bb, 1e-9));
    CHECK(near(m.ab, em.ab, sqrtl(em.aa * em.bb), 1e-9));
}

static void check_sums(const image_pair &pair, made_labels &made, unsigned tile_voxels,
                       double relative_above)
{
    const dm_labels *labels = made.get();
    device_structures_copy structures(labels, tile_voxels);
    device_buffer<float> a(pair.a), b(pair.b);
    device_buffer<device_metric_sums> sums(labels->count), partial(structures.table.tiles);
    device_buffer<device_metric_moments> moments(labels->count);
    device_metrics metrics = {a.data(),    b.data(),       structures.view, relative_above,
                              sums.data(), moments.data(), partial.data()};
    CHECK(kernel_metric_sums(&metrics, NULL) == cudaSuccess);
    std::vector<device_metric_sums> s = sums.download();
    std::vector<device_metric_moments> m = moments.download();
    for (size_t i = 0; i < labels->count; i++) {
        std::vector<size_t> voxels;
        for (const label_run &run : made.runs[i])
            for (uint32_t v = 0; v < run.length; v++)
                voxels.push_back(run.start + v);
        expected_sums e = sum_up(pair, voxels, relative_above);
        check_structure(s[i], m[i], e, moments_of(pair, voxels, e));
    }
}

static image_pair random_pair(size_t n, double offset, double scale)
{
    random_numbers random(n);
    image_pair pair;
    for (size_t i = 0; i < n; i++) {
        double b = scale * (random.unit() - 0.3);
        pair.b.push_back((float)(offset + b));
        pair.a.push_back((float)(offset + 0.8 * b + 0.1 * scale * random.unit()));
    }
    return pair;
}

static void add_structures(made_labels &made)
{
    size_t n = made.voxels();
    made.add([](size_t) { return true; });
    made.add([](size_t) { return false; });
    made.add([n](size_t v) { return v == n - 1; });
    made.add([](size_t v) { return v * 2654435761u / 64 % 3 > 0; });
    made.add([n](size_t v) { return v > n / 3; });
}

static void test_sums()
{
    static const size_t dims[][3] = {{1, 1, 1}, {31, 1, 1}, {32, 1, 1},  {33, 2, 1},
                                     {7, 5, 3}, {65, 3, 2}, {23, 19, 11}};
    results.begin("sums");
    for (const size_t(&dim)[3] : dims)
        for (unsigned tile : {31u, 1000u, 16384u}) {
            made_labels made(dim[0], dim[1], dim[2], 4);
            add_structures(made);
            check_sums(random_pair(made.voxels(), 0, 80), made, tile, 3);
            check_sums(random_pair(made.voxels(), 0, 80), made, tile, 0);
        }
}

// Far from zero, where aa - a a / n has no digits left.
static void test_moments()
{
    results.begin("moments");
    made_labels made(33, 17, 5, 4);
    add_structures(made);
    image_pair pair = random_pair(made.voxels(), 1e6, 2);
    check_sums(pair, made, 500, 3);
    expected_sums e = {};
    double plain = 0;
    std::vector<size_t> all;
    for (size_t v = 0; v < made.voxels(); v++) {
        all.push_back(v);
        plain += (double)pair.a[v] * (double)pair.a[v];
    }
    e = sum_up(pair, all, 3);
    double n = (double)all.size(), exact = (double)moments_of(pair, all, e).aa;
    CHECK(fabs(plain - (double)e.a * (double)e.a / n - exact) > 1e-6 * exact); // a hard case
}

static void test_not_finite()
{
    results.begin("not finite");
    made_labels made(13, 7, 5, 4);
    add_structures(made);
    image_pair pair = random_pair(made.voxels(), 0, 10);
    pair.a[0] = pair.a[44] = pair.b[45] = pair.a[46] = pair.b[46] = NAN;
    pair.b[99] = INFINITY;
    pair.a[made.voxels() - 1] = -INFINITY; // all of one structure
    check_sums(pair, made, 64, 1);
}

static void test_equal_images()
{
    results.begin("equal images");
    made_labels made(17, 7, 5, 4);
    add_structures(made);
    image_pair pair = random_pair(made.voxels(), 0, 10);
    pair.a = pair.b;
    check_sums(pair, made, 100, 1);
    std::fill(pair.b.begin(), pair.b.end(), 0.0f); // nothing above the threshold
    check_sums(pair, made, 100, 0);
}

// ---- Structural similarity --------------------------------------------------------------------

static double window_weight(ssim_window window, size_t width, size_t x, size_t y, size_t z)
{
    if (window == SSIM_UNIFORM)
        return 1;
    double r = 0, middle = (double)(width / 2);
    for (size_t i : {x, y, z})
        r += ((double)i - middle) * ((double)i - middle);
    return exp(-r / (2 * 1.5 * 1.5));
}

// One window that begins at voxel `corner`, by its definition.
static double window_similarity(const image_pair &pair, const size_t dim[3], size_t corner,
                                ssim_window window, double range)
{
    size_t width = window == SSIM_UNIFORM ? 7 : 11;
    double total = 0, ua = 0, ub = 0, va = 0, vb = 0, vab = 0;
    for (int pass = 0; pass < 2; pass++) {
        for (size_t z = 0; z < width; z++)
            for (size_t y = 0; y < width; y++)
                for (size_t x = 0; x < width; x++) {
                    double w = window_weight(window, width, x, y, z);
                    size_t v = corner + (z * dim[1] + y) * dim[0] + x;
                    double a = (double)pair.a[v], b = (double)pair.b[v];
                    if (pass == 0) {
                        total += w;
                        ua += w * a;
                        ub += w * b;
                    } else {
                        va += w * (a - ua) * (a - ua);
                        vb += w * (b - ub) * (b - ub);
                        vab += w * (a - ua) * (b - ub);
                    }
                }
        if (pass == 0) {
            ua /= total;
            ub /= total;
        }
    }
    double n = window == SSIM_UNIFORM ? total - 1 : total;
    double c1 = 0.01 * range * 0.01 * range, c2 = 0.03 * range * 0.03 * range;
    return (2 * ua * ub + c1) * (2 * vab / n + c2) /
           ((ua * ua + ub * ub + c1) * (va / n + vb / n + c2));
}

static double expected_ssim(const image_pair &pair, const size_t dim[3], ssim_window window,
                            double range)
{
    size_t width = window == SSIM_UNIFORM ? 7 : 11, windows = 0;
    double sum = 0;
    for (size_t z = 0; z + width <= dim[2]; z++)
        for (size_t y = 0; y + width <= dim[1]; y++)
            for (size_t x = 0; x + width <= dim[0]; x++, windows++)
                sum += window_similarity(pair, dim, (z * dim[1] + y) * dim[0] + x, window, range);
    return sum / (double)windows;
}

static double computed_ssim(const image_pair &pair, const size_t dim[3], ssim_window window,
                            double range)
{
    device_buffer<float> a(pair.a), b(pair.b);
    device_buffer<double> mean(1);
    device_buffer<unsigned char> workspace(ssim_workspace(dim, window));
    CHECK(kernel_ssim(a.data(), b.data(), dim, window, range, mean.data(), workspace.data(),
                      NULL) == cudaSuccess);
    double made = mean.download()[0];
    CHECK(results.same(made));
    return made;
}

static void test_ssim()
{
    // Below, at and above a window; 15 to 17 and 31 to 33 positions; more planes than a block takes.
    static const size_t dims[][3] = {{7, 7, 7},    {8, 7, 9},    {11, 11, 11}, {13, 12, 17},
                                     {21, 22, 11}, {23, 26, 12}, {38, 11, 13}, {41, 37, 8},
                                     {11, 13, 75}, {7, 8, 71},   {65, 7, 7}};
    results.begin("ssim");
    for (const size_t(&dim)[3] : dims) {
        image_pair pair = random_pair(dim[0] * dim[1] * dim[2], 0, 80);
        for (int w = 0; w < SSIM_WINDOWS; w++) {
            ssim_window window = (ssim_window)w;
            double made = computed_ssim(pair, dim, window, 80);
            double expected = expected_ssim(pair, dim, window, 80);
            if (std::isnan(expected)) // no window fits
                CHECK(std::isnan(made));
            else
                CHECK(fabs(made - expected) <= 1e-12);
        }
    }
}

static void test_ssim_extremes()
{
    const size_t dim[3] = {13, 12, 11}, small[3] = {12, 6, 11}, none[3] = {0, 9, 9};
    const size_t n = dim[0] * dim[1] * dim[2];
    results.begin("extremes");
    for (ssim_window window : {SSIM_UNIFORM, SSIM_GAUSSIAN}) {
        image_pair pair = random_pair(n, 0, 10);
        CHECK(ssim_workspace(small, window) == 0 && ssim_workspace(none, window) == 0);
        CHECK(std::isnan(computed_ssim(pair, small, window, 10)));
        CHECK(std::isnan(computed_ssim(pair, none, window, 10)));
        image_pair same = pair, zero = {std::vector<float>(n), std::vector<float>(n)};
        same.a = same.b;
        CHECK(fabs(computed_ssim(same, dim, window, 10) - 1) <= 1e-12);
        CHECK(fabs(computed_ssim(zero, dim, window, 10) - 1) <= 1e-12);
        image_pair opposite = pair; // 2 u_a u_b and 2 v_ab are negative
        for (size_t i = 0; i < n; i++)
            opposite.a[i] = -opposite.b[i];
        CHECK(fabs(computed_ssim(opposite, dim, window, 10) -
                   expected_ssim(opposite, dim, window, 10)) <= 1e-12);
        // A thousand times further from zero than the range: C2 absorbs no longer all.
        image_pair far = random_pair(n, 1e4, 10);
        CHECK(fabs(computed_ssim(far, dim, window, 10) - expected_ssim(far, dim, window, 10)) <=
              1e-7);
        pair.a[n / 2] = NAN;
        CHECK(std::isnan(computed_ssim(pair, dim, window, 10)));
    }
}

// With scikit-image 0.26.0 and NumPy, for a, b of shape (z, y, x) = (14, 12, 13) in float64:
//     structural_similarity(a, b, data_range=15.0)
//     structural_similarity(a, b, data_range=15.0, gaussian_weights=True, sigma=1.5,
//                           use_sample_covariance=False)
//     a.sum(), b.sum(), ((a - b)**2).sum(), abs(a - b).sum(), corrcoef(a.ravel(), b.ravel())[0, 1]
static void test_against_scikit_image()
{
    const size_t dim[3] = {13, 12, 14}, n = dim[0] * dim[1] * dim[2], slice = dim[0] * dim[1];
    std::vector<float> numbers;
    uint32_t state = 1;
    for (size_t i = 0; i < 2 * n; i++) {
        state = state * 1664525 + 1013904223;
        numbers.push_back((float)((state >> 16) % 1000));
    }
    image_pair pair;
    for (size_t i = 0; i < n; i++) {
        float b = numbers[i] / 64, a = b + (numbers[n + i] - 500) / 256;
        pair.b.push_back(b);
        pair.a.push_back(i / slice >= 5 && i / slice < 9 ? a / 2 : a);
    }
    results.begin("scikit-image");
    CHECK(fabs(computed_ssim(pair, dim, SSIM_UNIFORM, 15) - 0.7812967198038547) <= 1e-12);
    CHECK(fabs(computed_ssim(pair, dim, SSIM_GAUSSIAN, 15) - 0.6926232383800794) <= 1e-12);

    made_labels made(dim[0], dim[1], dim[2], 4);
    made.add([](size_t) { return true; });
    device_structures_copy structures(made.get(), 1000);
    device_buffer<float> a(pair.a), b(pair.b);
    device_buffer<device_metric_sums> sums(1), partial(structures.table.tiles);
    device_buffer<device_metric_moments> moments(1);
    device_metrics metrics = {a.data(),    b.data(),       structures.view, 0,
                              sums.data(), moments.data(), partial.data()};
    CHECK(kernel_metric_sums(&metrics, NULL) == cudaSuccess);
    device_metric_sums s = sums.download()[0];
    device_metric_moments m = moments.download()[0];
    CHECK(s.a == 14331.30078125 && s.b == 16791.71875 && s.absolute == 3967.96875);
    CHECK(fabs(s.squared - 15093.857925415039) <= 1e-9);
    CHECK(fabs(m.ab / sqrt(m.aa * m.bb) - 0.857354343504889) <= 1e-14);
}

int main()
{
    return run_in_all_orders({
        {"sums", test_sums},
        {"moments", test_moments},
        {"not finite", test_not_finite},
        {"equal images", test_equal_images},
        {"ssim", test_ssim},
        {"ssim extremes", test_ssim_extremes},
        {"scikit-image", test_against_scikit_image},
    });
}
