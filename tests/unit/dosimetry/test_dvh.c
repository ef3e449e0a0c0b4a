/* SPDX-License-Identifier: Apache-2.0 */
/* Statistics and histograms of structures against values worked out by hand. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "dosemap.h"
#include "dosimetry/dvh.h"
#include "kernels/dvh_bin.h"

static dm_grid make_grid(size_t x, size_t y, size_t z, double mm)
{
    dm_grid grid = {.dim = {x, y, z}, .spacing_mm = {mm, mm, mm}};
    grid.affine[0][0] = -mm; /* LPS, so that the determinant's sign does not matter */
    grid.affine[1][1] = grid.affine[2][2] = mm;
    return grid;
}

static void assert_near(double a, double b, double rtol)
{
    if (!(fabs(a - b) <= rtol * fabs(b)))
        print_error("%.17g is not %.17g\n", a, b);
    assert_true(fabs(a - b) <= rtol * fabs(b));
}

/* Labels by dm_labels_create, dose by dm_volume_view, so that what users call is what is tested. */
static dm_status compute(const dm_grid *grid, float *dose, const int32_t *ids,
                         const dm_dvh_options *options, dm_dvh **dvh, dm_error *err)
{
    dm_labels *labels = NULL;
    dm_volume *volume = NULL;
    assert_int_equal(dm_labels_create(grid, ids, NULL, &labels, err), DM_OK);
    assert_int_equal(dm_volume_view(grid, dose, &volume, err), DM_OK);
    dm_status status = dm_dvh_compute(volume, labels, options, dvh, err);
    dm_volume_free(volume);
    dm_labels_free(labels); /* the DVHs must not need them any more */
    return status;
}

static dm_dvh *computed(const dm_grid *grid, float *dose, const int32_t *ids,
                        const dm_dvh_options *options)
{
    dm_dvh *dvh = NULL;
    dm_error err = {0};
    dm_status status = compute(grid, dose, ids, options, &dvh, &err);
    if (status != DM_OK)
        print_error("%s\n", err.what);
    assert_int_equal(status, DM_OK);
    return dvh;
}

static void assert_histogram_adds_up(const dm_structure_dose *s)
{
    uint64_t sum = 0;
    for (size_t b = 0; b < s->bins; b++)
        sum += s->histogram[b];
    assert_int_equal(sum, s->voxels);
    assert_true(s->histogram[s->bins - 1] > 0);
    assert_true((double)s->bins * s->bin_width > s->maximum);
}

/* Five voxels of two structures, by hand. */
static void test_by_hand(void **state)
{
    (void)state;
    dm_grid grid = make_grid(5, 2, 1, 10);
    float dose[10] = {4, 1, 3, 2, 9, 7, 0, 5, 5, 100};
    int32_t ids[10] = {7, 7, 7, 7, 0, 2, 2, 0, 2, 0};
    double thresholds[3] = {0, 3, 4.5};
    dm_dvh_options options = {.v_thresholds = thresholds, .n_v_thresholds = 3};
    dm_dvh *dvh = computed(&grid, dose, ids, &options);
    assert_int_equal(dm_dvh_count(dvh), 2);
    assert_null(dm_dvh_structure(dvh, 2));
    const dm_structure_dose *s = dm_dvh_structure(dvh, 1);
    assert_int_equal(s->id, 7);
    assert_string_equal(s->name, "label_7");
    assert_int_equal(s->voxels, 4);
    assert_near(s->volume_cm3, 4, 1e-12);
    assert_near(s->mean, 2.5, 0);
    assert_near(s->minimum, 1, 0);
    assert_near(s->maximum, 4, 0);
    /* 4 voxels: p = 0.08, 2, 3.8, 3.92 voxels; points (1, 4), (2, 3), (3, 2), (4, 1). */
    assert_near(s->d2, 4, 0);
    assert_near(s->d50, 3, 0);
    assert_near(s->d95, 1.2, 1e-12);
    assert_near(s->d98, 1.08, 1e-12);
    assert_near(s->d2cc, 3, 1e-12); /* the hottest 2 of 4 voxels of 1 cm3 */
    assert_near(s->v_percent[0], 100, 0);
    assert_near(s->v_percent[1], 50, 0);
    assert_near(s->v_percent[2], 0, 0);
    assert_near(s->bin_width, 0.004, 1e-12);
    assert_histogram_adds_up(s);
    assert_int_equal(s->histogram[250], 1);
    assert_int_equal(s->histogram[500], 1);
    s = dm_dvh_structure(dvh, 0);
    assert_int_equal(s->id, 2);
    assert_near(s->mean, 4, 0);
    assert_near(s->minimum, 0, 0);
    assert_near(s->v_percent[2], 200.0 / 3, 1e-14);
    dm_dvh_free(dvh);
    dm_dvh_free(NULL);
}

static void test_uniform(void **state)
{
    (void)state;
    enum { N = 17 * 13 * 11 };
    static float dose[N];
    static int32_t ids[N];
    dm_grid grid = make_grid(17, 13, 11, 4);
    for (size_t i = 0; i < N; i++) {
        dose[i] = 0.7f;
        ids[i] = 1;
    }
    double thresholds[2] = {0.7, 0.70001};
    dm_dvh_options options = {.v_thresholds = thresholds, .n_v_thresholds = 2};
    dm_dvh *dvh = computed(&grid, dose, ids, &options);
    const dm_structure_dose *s = dm_dvh_structure(dvh, 0);
    const double all[] = {s->minimum, s->maximum, s->d2, s->d50, s->d95, s->d98, s->d2cc};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++)
        assert_near(all[i], (double)0.7f, 0);
    assert_near(s->mean, (double)0.7f, 1e-15);
    assert_near(s->v_percent[0], 100, 0);
    assert_near(s->v_percent[1], 0, 0);
    assert_histogram_adds_up(s);
    dm_dvh_free(dvh);
}

/* 100 k voxels of dose 1 ... n in an order that is not sorted: Dx = n - p + 1 for p >= 1. */
static void test_ramp(void **state)
{
    (void)state;
    enum { NX = 101, N = NX * 97 };
    static float dose[N];
    static int32_t ids[N];
    dm_grid grid = make_grid(NX, 97, 1, 5);
    for (size_t i = 0; i < N; i++) {
        dose[i] = (float)(i * 4001 % N + 1) / 256; /* exact in float32 */
        ids[i] = 3;
    }
    double thresholds[1] = {5000.0 / 256};
    dm_dvh_options options = {.v_thresholds = thresholds, .n_v_thresholds = 1};
    dm_dvh *dvh = computed(&grid, dose, ids, &options);
    const dm_structure_dose *s = dm_dvh_structure(dvh, 0);
    assert_near(s->mean, (N + 1) / 512.0, 1e-15);
    assert_near(s->minimum, 1 / 256.0, 0);
    assert_near(s->maximum, N / 256.0, 0);
    assert_near(s->d2, (N - N * 0.02 + 1) / 256, 1e-12);
    assert_near(s->d50, (N - N * 0.50 + 1) / 256, 1e-12);
    assert_near(s->d95, (N - N * 0.95 + 1) / 256, 1e-12);
    assert_near(s->d98, (N - N * 0.98 + 1) / 256, 1e-12);
    assert_near(s->d2cc, (N - 2 / 0.125 + 1) / 256, 1e-12);
    assert_near(s->v_percent[0], 100.0 * (N - 4999) / N, 1e-14);
    assert_near(s->bin_width, 0.01, 0);
    assert_histogram_adds_up(s);
    for (size_t b = 0; b < s->bins; b++)
        assert_true(s->histogram[b] <= 3); /* 2.56 voxels per bin */
    dm_dvh_free(dvh);
}

/* A voxel more or less decides whether there are 2 cm3; exactly 2 cm3 count. */
static void test_d2cc_edge(void **state)
{
    (void)state;
    /* 2 mm: 250 voxels. The second affine is what float32 makes of a cube of exactly 1/300 cm3. */
    const double edges_mm[2] = {2, (double)(float)cbrt(1000.0 / 300)};
    const size_t exact[2] = {250, 600};
    for (size_t e = 0; e < 2; e++) {
        dm_grid grid = make_grid(601, 1, 1, edges_mm[e]);
        for (size_t n = exact[e] - 1; n <= exact[e] + 1; n++) {
            float dose[601];
            int32_t ids[601] = {0};
            for (size_t i = 0; i < 601; i++) {
                dose[i] = (float)i + 1;
                ids[i] = i < n;
            }
            dm_dvh *dvh = computed(&grid, dose, ids, NULL);
            const dm_structure_dose *s = dm_dvh_structure(dvh, 0);
            assert_int_equal(s->voxels, n);
            if (n < exact[e])
                assert_true(isnan(s->d2cc));
            else
                assert_true(fabs(s->d2cc - (double)(n - exact[e] + 1)) < 1e-4);
            dm_dvh_free(dvh);
        }
    }
}

static void test_one_voxel(void **state)
{
    (void)state;
    static const float doses[] = {0, 1e-30f, 3.25f, 20, 3e6f, 3e38f, -2, -0.0f};
    dm_grid grid = make_grid(1, 1, 1, 3);
    for (size_t i = 0; i < sizeof doses / sizeof *doses; i++) {
        float dose = doses[i];
        int32_t id = 1;
        dm_dvh *dvh = computed(&grid, &dose, &id, NULL);
        const dm_structure_dose *s = dm_dvh_structure(dvh, 0);
        double d = (double)dose;
        assert_true(s->mean == d && s->minimum == d && s->maximum == d && s->d2 == d);
        assert_true(s->d50 == d && s->d95 == d && s->d98 == d && isnan(s->d2cc));
        assert_true(!signbit(s->minimum) || d < 0);
        assert_true(s->bins <= DVH_MAX_BINS + 1);
        assert_histogram_adds_up(s);
        if (d <= 0) {
            assert_int_equal(s->bins, 1);
            assert_near(s->bin_width, 0.01, 0);
        }
        dm_dvh_free(dvh);
    }
}

static void test_bin_widths(void **state)
{
    (void)state;
    assert_near(dvh_bin_width(0), 0.01, 0);
    assert_near(dvh_bin_width(-5), 0.01, 0);
    assert_near(dvh_bin_width(1), 0.001, 1e-15);
    assert_near(dvh_bin_width(10), 0.01, 0);
    assert_near(dvh_bin_width(250), 0.01, 0);
    assert_near(dvh_bin_width(1000), 0.01, 0);
    assert_near(dvh_bin_width(2000), 0.02, 1e-15);
    for (int power = -126; power < 128; power++) {
        float top = ldexpf(1.23456f, power);
        double width = dvh_bin_width((double)top);
        uint32_t bins = dvh_bin_count((double)top, width);
        assert_true(bins <= DVH_MAX_BINS + 1 && bins >= 1000);
        assert_int_equal(dvh_bin(top, width, bins), bins - 1);
        assert_int_equal(dvh_bin(0, width, bins), 0);
        assert_int_equal(dvh_bin(-top, width, bins), 0);
    }
}

/* Negative doses, as interpolated or subtracted maps have them: exact in minimum and mean. */
static void test_negative(void **state)
{
    (void)state;
    dm_grid grid = make_grid(4, 1, 1, 10);
    float dose[4] = {-3, 5, -1, 2};
    int32_t ids[4] = {1, 1, 1, 1};
    dm_dvh *dvh = computed(&grid, dose, ids, NULL);
    const dm_structure_dose *s = dm_dvh_structure(dvh, 0);
    assert_near(s->mean, 0.75, 0);
    assert_near(s->minimum, -3, 0);
    assert_near(s->d50, 2, 0);
    assert_near(s->d98, -1 - 0.92 * 2, 1e-12);
    assert_int_equal(s->histogram[0], 2);
    assert_histogram_adds_up(s);
    dm_dvh_free(dvh);
}

/* Overlapping masks and one without voxels, through the form that backends use. */
static void test_overlap_and_empty(void **state)
{
    (void)state;
    float dose[6] = {1, 2, 3, 4, 5, 6};
    label_run all = {0, 6}, last[2] = {{1, 1}, {4, 2}};
    label_structure structures[3] = {{(char[]){"body"}, 1, 6, 1, &all},
                                     {(char[]){"nothing"}, 2, 0, 0, NULL},
                                     {(char[]){"part"}, 3, 3, 2, last}};
    struct dm_labels labels = {make_grid(6, 1, 1, 10), 3, structures};
    double threshold = 5;
    dm_dvh_options options = {.v_thresholds = &threshold, .n_v_thresholds = 1};
    dm_dvh *dvh = NULL;
    assert_int_equal(dvh_from_voxels(dose, &labels, &options, &dvh, NULL), DM_OK);
    assert_near(dm_dvh_structure(dvh, 0)->mean, 3.5, 0);
    assert_near(dm_dvh_structure(dvh, 2)->mean, 13.0 / 3, 1e-15);
    assert_near(dm_dvh_structure(dvh, 2)->v_percent[0], 200.0 / 3, 1e-14);
    const dm_structure_dose *s = dm_dvh_structure(dvh, 1);
    assert_string_equal(s->name, "nothing");
    assert_true(s->voxels == 0 && s->volume_cm3 == 0 && s->bins == 0 && !s->histogram);
    const double unknown[] = {s->mean, s->minimum, s->maximum, s->d2,          s->d50,
                              s->d95,  s->d98,     s->d2cc,    s->v_percent[0]};
    for (size_t i = 0; i < sizeof unknown / sizeof *unknown; i++)
        assert_true(isnan(unknown[i]));
    dm_dvh_free(dvh);
    labels.count = 0;
    assert_int_equal(dvh_from_voxels(dose, &labels, NULL, &dvh, NULL), DM_OK);
    assert_int_equal(dm_dvh_count(dvh), 0);
    dm_dvh_free(dvh);
}

/* Compensated: a large value must not swallow the small ones. */
static void test_mean_is_compensated(void **state)
{
    (void)state;
    enum { N = 1000 };
    static float dose[N];
    static int32_t ids[N];
    dm_grid grid = make_grid(N, 1, 1, 1);
    for (size_t i = 0; i < N; i++) {
        dose[i] = i == 0 ? 1e25f : i == N - 1 ? -1e25f : 1.0f;
        ids[i] = 1;
    }
    dm_dvh *dvh = computed(&grid, dose, ids, NULL);
    assert_near(dm_dvh_structure(dvh, 0)->mean, (N - 2) / (double)N, 1e-15);
    dm_dvh_free(dvh);
}

static int ascending_floats(const void *a, const void *b)
{
    float x = *(const float *)a, y = *(const float *)b;
    return (x > y) - (x < y);
}

/* Random doses over many magnitudes, 23 structures: statistics against qsort, and the same bytes
 * for any number of threads. */
static void test_random_and_threads(void **state)
{
    (void)state;
    enum { NX = 61, NY = 53, NZ = 31, N = NX * NY * NZ };
    dm_grid grid = make_grid(NX, NY, NZ, 2.5);
    float *dose = malloc(N * sizeof *dose), *own = malloc(N * sizeof *own);
    int32_t *ids = malloc(N * sizeof *ids);
    uint64_t random = 1;
    for (size_t i = 0; i < N; i++) {
        random = random * 6364136223846793005u + 1442695040888963407u;
        double unit = (double)(random >> 11) / 9007199254740992.0;
        dose[i] = (float)(exp2(30 * unit - 20) * (i % 7 ? 1 : -1));
        ids[i] = (int32_t)(i / 37 % 24);
    }
    double thresholds[2] = {0.001, 3};
    dm_dvh_options options = {.v_thresholds = thresholds, .n_v_thresholds = 2, .threads = 1};
    dm_dvh *reference = computed(&grid, dose, ids, &options);
    assert_int_equal(dm_dvh_count(reference), 23);
    for (size_t s = 0; s < 23; s++) {
        const dm_structure_dose *r = dm_dvh_structure(reference, s);
        size_t n = 0, at_least = 0;
        for (size_t i = 0; i < N; i++)
            if (ids[i] == r->id)
                own[n++] = dose[i];
        qsort(own, n, sizeof *own, ascending_floats);
        for (size_t i = 0; i < n; i++)
            at_least += own[i] >= 0.001f;
        size_t k = n * 95 / 100;
        double part = (double)n * 95 / 100 - (double)k;
        assert_int_equal(r->voxels, n);
        assert_true(r->minimum == (double)own[0] && r->maximum == (double)own[n - 1]);
        assert_near(r->d95, (1 - part) * (double)own[n - k] + part * (double)own[n - k - 1], 1e-12);
        assert_near(r->v_percent[0], 100 * (double)at_least / (double)n, 1e-14);
        assert_histogram_adds_up(r);
    }
    static const unsigned threads[] = {2, 3, 23, 1000, 0};
    for (size_t t = 0; t < sizeof threads / sizeof *threads; t++) {
        options.threads = threads[t];
        dm_dvh *other = computed(&grid, dose, ids, &options);
        for (size_t s = 0; s < 23; s++) {
            const dm_structure_dose *a = dm_dvh_structure(reference, s);
            const dm_structure_dose *b = dm_dvh_structure(other, s);
            assert_int_equal(a->bins, b->bins);
            assert_memory_equal(a->histogram, b->histogram, a->bins * sizeof *a->histogram);
            assert_memory_equal(a->v_percent, b->v_percent, 2 * sizeof(double));
            assert_memory_equal(&a->volume_cm3, &b->volume_cm3,
                                offsetof(dm_structure_dose, v_percent) -
                                    offsetof(dm_structure_dose, volume_cm3));
        }
        dm_dvh_free(other);
    }
    dm_dvh_free(reference);
    free(dose);
    free(own);
    free(ids);
}

static void test_not_finite(void **state)
{
    (void)state;
    dm_grid grid = make_grid(3, 4, 5, 2);
    static const float bad[] = {NAN, INFINITY, -INFINITY};
    static const char *const words[] = {"nan", "inf", "-inf"};
    for (size_t b = 0; b < 3; b++) {
        float dose[60] = {0};
        int32_t ids[60];
        dm_error err = {0};
        dm_dvh *dvh = (dm_dvh *)&dose;
        for (size_t i = 0; i < 60; i++)
            ids[i] = 1 + (int32_t)(i / 12);
        dose[2 + 3 * (1 + 4 * 3)] = bad[b];
        dose[59] = NAN; /* in a later structure: the first one is reported */
        assert_int_equal(compute(&grid, dose, ids, NULL, &dvh, &err), DM_ERROR_VALUE);
        assert_null(dvh);
        assert_non_null(strstr(err.what, "voxel (2, 1, 3) of 'label_4'"));
        assert_non_null(strstr(err.what, words[b]));
        assert_true(strlen(err.remedy) > 0);
        /* Outside every structure it does not matter. */
        for (size_t i = 0; i < 60; i++)
            ids[i] = i < 12;
        dvh = computed(&grid, dose, ids, NULL);
        assert_int_equal(dm_dvh_count(dvh), 1);
        dm_dvh_free(dvh);
    }
}

static void test_bad_arguments(void **state)
{
    (void)state;
    dm_grid grid = make_grid(2, 2, 2, 2), other = make_grid(2, 2, 3, 2);
    float dose[12] = {0};
    int32_t ids[12] = {1};
    dm_error err = {0};
    dm_dvh *dvh = NULL;
    dm_labels *labels = NULL;
    dm_volume *volume = NULL;
    assert_int_equal(dm_labels_create(&grid, ids, NULL, &labels, &err), DM_OK);
    assert_int_equal(dm_volume_view(&other, dose, &volume, &err), DM_OK);
    assert_int_equal(dm_dvh_compute(volume, labels, NULL, &dvh, &err), DM_ERROR_VALUE);
    assert_null(dvh);
    assert_non_null(strstr(err.what, "different grids: "));
    assert_true(strlen(strstr(err.what, "grids: ")) > strlen("grids: "));
    assert_non_null(strstr(err.remedy, "--resample-labels"));
    dm_volume_free(volume);
    dm_labels_free(labels);
    static const double bad[] = {-1, NAN, INFINITY};
    for (size_t i = 0; i < 3; i++) {
        dm_dvh_options options = {.v_thresholds = &bad[i], .n_v_thresholds = 1};
        assert_int_equal(compute(&grid, dose, ids, &options, &dvh, &err), DM_ERROR_VALUE);
        assert_non_null(strstr(err.what, "Vx"));
    }
    double huge = 1e300; /* beyond float32 */
    dm_dvh_options options = {.v_thresholds = &huge, .n_v_thresholds = 1};
    dvh = computed(&grid, dose, ids, &options);
    assert_near(dm_dvh_structure(dvh, 0)->v_percent[0], 0, 0);
    dm_dvh_free(dvh);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_by_hand),
        cmocka_unit_test(test_uniform),
        cmocka_unit_test(test_ramp),
        cmocka_unit_test(test_d2cc_edge),
        cmocka_unit_test(test_one_voxel),
        cmocka_unit_test(test_bin_widths),
        cmocka_unit_test(test_negative),
        cmocka_unit_test(test_overlap_and_empty),
        cmocka_unit_test(test_mean_is_compensated),
        cmocka_unit_test(test_random_and_threads),
        cmocka_unit_test(test_not_finite),
        cmocka_unit_test(test_bad_arguments),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
