// SPDX-License-Identifier: Apache-2.0
// DVHs from the device against the CPU's: the same counts, doses and messages, whatever the doses.
#include "structure_case.h"

#include <float.h>

#include <algorithm>

extern "C" {
#include "dosimetry/dvh.h"
}
#include "predict/cuda/device_dvh.h"

// ---- Comparison with the CPU ------------------------------------------------------------------

// Sums are compensated on both sides: they differ by less than what one rounding of the largest sum
// on the way leaves, twice over.
static bool mean_close(double a, double b, double largest)
{
    return fabs(a - b) <= 4 * DBL_EPSILON * fabs(b) + 8 * DBL_EPSILON * DBL_EPSILON * largest;
}

static bool same(double a, double b)
{
    return memcmp(&a, &b, sizeof a) == 0 || (isnan(a) && isnan(b));
}

static bool same_structure(const dm_structure_dose *a, const dm_structure_dose *b,
                           size_t thresholds)
{
    bool ok = strcmp(a->name, b->name) == 0 && a->id == b->id && a->voxels == b->voxels;
    const double values[][2] = {{a->volume_cm3, b->volume_cm3},
                                {a->minimum, b->minimum},
                                {a->maximum, b->maximum},
                                {a->d2, b->d2},
                                {a->d50, b->d50},
                                {a->d95, b->d95},
                                {a->d98, b->d98},
                                {a->d2cc, b->d2cc},
                                {a->bin_width, b->bin_width}};
    for (const double(&v)[2] : values)
        ok = ok && same(v[0], v[1]);
    for (size_t i = 0; i < thresholds; i++)
        ok = ok && same(a->v_percent[i], b->v_percent[i]);
    ok = ok && a->bins == b->bins;
    for (size_t i = 0; ok && i < b->bins; i++)
        ok = a->histogram[i] == b->histogram[i];
    double largest = (double)b->voxels * fmax(fabs(b->minimum), fabs(b->maximum));
    ok = ok && (isnan(b->mean) ? isnan(a->mean) : mean_close(a->mean, b->mean, largest));
    if (!ok)
        fprintf(stderr,
                "%s: %zu voxels, mean %.17g for %.17g, D95 %.9g for %.9g, %zu bins for %zu\n",
                b->name, b->voxels, a->mean, b->mean, a->d95, b->d95, a->bins, b->bins);
    return ok;
}

static repeated_results means;

static void check_dvh(const std::vector<float> &dose, made_labels &made,
                      const std::vector<double> &thresholds)
{
    const dm_labels *labels = made.get();
    dm_dvh_options options = {thresholds.data(), thresholds.size(), false, 1};
    dm_dvh *cpu = NULL;
    CHECK(dose.size() == made.voxels());
    CHECK(dvh_from_voxels(dose.data(), labels, &options, &cpu, NULL) == DM_OK);
    device_buffer<float> d_dose(dose);
    dm_dvh *dvh = NULL;
    dm_error err = {};
    dm_status status = device_dvh(d_dose.data(), labels, &options, NULL, &dvh, &err);
    if (status != DM_OK)
        fprintf(stderr, "%s\n", err.what);
    CHECK(status == DM_OK && dm_dvh_count(dvh) == labels->count);
    for (size_t s = 0; s < labels->count; s++)
        CHECK(
            same_structure(dm_dvh_structure(dvh, s), dm_dvh_structure(cpu, s), thresholds.size()));
    dm_dvh_free(dvh);
    dm_dvh_free(cpu);
}

// ---- Doses ------------------------------------------------------------------------------------

struct dose_kind {
    const char *name;
    float (*value)(random_numbers &random, size_t i);
};

static const dose_kind dose_kinds[] = {
    {"uniform", [](random_numbers &r, size_t) { return (float)(80 * r.unit()); }},
    {"constant", [](random_numbers &, size_t) { return 0.7f; }},
    {"mostly zero", [](random_numbers &r, size_t i) { return i % 5 ? 0.0f : (float)r.unit(); }},
    {"few values", [](random_numbers &r, size_t) { return (float)r.below(4) / 3; }},
    {"both signs, all magnitudes",
     [](random_numbers &r, size_t i) {
         return (float)(exp2(270 * r.unit() - 145) * (i % 3 ? 1 : -1));
     }},
    {"negative", [](random_numbers &r, size_t) { return (float)(-5 * r.unit()); }},
    {"denormal", [](random_numbers &r, size_t) { return (float)(1e-38 * r.unit()); }},
    {"zeros of both signs", [](random_numbers &, size_t i) { return i % 2 ? -0.0f : 0.0f; }},
    {"mGy", [](random_numbers &r, size_t) { return (float)(90000 * r.unit() * r.unit()); }},
    {"one bit apart",
     [](random_numbers &r, size_t) { return 1 + (float)r.below(3) * FLT_EPSILON; }},
};

static std::vector<float> doses(const dose_kind &kind, size_t n)
{
    random_numbers random(n);
    std::vector<float> out(n);
    for (size_t i = 0; i < n; i++)
        out[i] = kind.value(random, i);
    return out;
}

// Overlapping, empty, single voxels at both ends, runs of one voxel, and random ones.
static void add_structures(made_labels &made)
{
    size_t n = made.voxels();
    random_numbers random(n);
    std::vector<char> blobs(n);
    for (size_t i = 0; i < n; i++)
        blobs[i] = i > 0 && random.unit() < 0.9 ? blobs[i - 1] : (char)random.below(2);
    made.add([](size_t) { return true; });
    made.add([](size_t) { return false; });
    made.add([](size_t v) { return v == 0; });
    made.add([n](size_t v) { return v == n - 1; });
    made.add([](size_t v) { return v % 2 == 0; });
    made.add([&blobs](size_t v) { return blobs[v] == 1; });
    made.add([n](size_t v) { return v < 2 || v > n / 2; });
}

static void test_doses()
{
    means.begin("doses");
    static const size_t dims[][3] = {{1, 1, 1}, {31, 1, 1}, {33, 2, 1}, {65, 3, 2}};
    for (const dose_kind &kind : dose_kinds)
        for (const size_t(&dim)[3] : dims) {
            made_labels made(dim[0], dim[1], dim[2], 4);
            add_structures(made);
            check_dvh(doses(kind, made.voxels()), made, {0, 0.7, 3, -0.0, 1e300, 0.7});
        }
}

// Several tiles of a structure, the last one not full.
static void test_tiles()
{
    means.begin("tiles");
    for (const dose_kind *kind : {&dose_kinds[0], &dose_kinds[2], &dose_kinds[4], &dose_kinds[8]}) {
        made_labels made(65, 31, 17, 2.5);
        CHECK(made.voxels() > 2 * 16384);
        add_structures(made);
        check_dvh(doses(*kind, made.voxels()), made, {1});
    }
    for (size_t n : {(size_t)16383, (size_t)16384, (size_t)16385}) {
        made_labels made(16385, 1, 1, 1);
        made.add([n](size_t v) { return v < n; });
        check_dvh(doses(dose_kinds[0], made.voxels()), made, {});
    }
}

// More than are handled at once, and a volume without any.
static void test_many_structures()
{
    means.begin("many_structures");
    for (size_t count : {(size_t)0, (size_t)128, (size_t)129}) {
        made_labels made(20, 20, 1, 4);
        for (size_t s = 0; s < count; s++)
            made.add([s](size_t v) { return v % 300 == s || v == 17; });
        check_dvh(doses(dose_kinds[0], made.voxels()), made, {40});
    }
    made_labels empty(5, 5, 1, 4);
    for (size_t s = 0; s < 130; s++)
        empty.add([](size_t) { return false; });
    check_dvh(doses(dose_kinds[0], 25), empty, {40});
}

// More thresholds than a block counts by itself.
static void test_thresholds()
{
    means.begin("thresholds");
    for (size_t n : {(size_t)1, (size_t)254, (size_t)255, (size_t)256, (size_t)700}) {
        std::vector<double> thresholds(n);
        random_numbers random(n);
        for (double &t : thresholds)
            t = 90 * random.unit();
        made_labels made(31, 7, 3, 4);
        add_structures(made);
        std::vector<float> dose = doses(dose_kinds[0], made.voxels());
        thresholds[n / 2] = (double)dose[7];
        check_dvh(dose, made, thresholds);
    }
}

// Where a voxel more or less decides: there are 2 cm3 or not; a rank falls on the next voxel.
static void test_rank_edges()
{
    means.begin("rank_edges");
    for (double mm : {2.0, (double)(float)cbrt(1000.0 / 300), 10.0, 0.1})
        for (size_t n : {1, 2, 3, 49, 50, 51, 99, 100, 101, 249, 250, 251, 599, 600, 601}) {
            made_labels made(601, 1, 1, mm);
            made.add([n](size_t v) { return v < n; });
            check_dvh(doses(dose_kinds[0], 601), made, {});
        }
}

// A large value must not swallow the small ones.
static void test_mean()
{
    const size_t n = 40000;
    made_labels made(n, 1, 1, 1);
    std::vector<float> dose(n, 1.0f);
    dose[0] = 1e25f;
    dose[n - 1] = -1e25f;
    made.add([](size_t) { return true; });
    device_buffer<float> d_dose(dose);
    dm_dvh *dvh = NULL;
    CHECK(device_dvh(d_dose.data(), made.get(), NULL, NULL, &dvh, NULL) == DM_OK);
    double mean = (double)(n - 2) / (double)n;
    CHECK(fabs(dm_dvh_structure(dvh, 0)->mean - mean) <= 1e-15);
    dm_dvh_free(dvh);
}

// ---- What is wrong is said as the CPU says it -------------------------------------------------

static void check_fault(const std::vector<float> &dose, made_labels &made)
{
    const dm_labels *labels = made.get();
    dm_error cpu_err = {};
    dm_dvh *dvh = NULL;
    CHECK(dvh_from_voxels(dose.data(), labels, NULL, &dvh, &cpu_err) == DM_ERROR_VALUE);
    device_buffer<float> d_dose(dose);
    dm_error err = {};
    dvh = reinterpret_cast<dm_dvh *>(&err);
    CHECK(device_dvh(d_dose.data(), labels, NULL, NULL, &dvh, &err) == DM_ERROR_VALUE);
    CHECK(dvh == NULL);
    CHECK(strcmp(err.what, cpu_err.what) == 0 && strcmp(err.remedy, cpu_err.remedy) == 0);
}

static void test_faults()
{
    means.begin("faults");
    const float bad[] = {NAN, -NAN, INFINITY, -INFINITY};
    const size_t where[] = {0, 1, 299, 599};
    for (size_t i = 0; i < 4; i++) {
        made_labels made(15, 10, 4, 4);
        std::vector<float> dose = doses(dose_kinds[0], made.voxels());
        dose[where[i]] = bad[i];
        dose[598] = NAN;
        size_t n = i < 3 ? 3 : 130; // 598 and 599 are in the last structure, of another group
        for (size_t s = 0; s < n; s++)
            made.add([s, n](size_t v) { return v * n / 600 == s; });
        check_fault(dose, made);
    }
    // A later structure has an earlier voxel.
    made_labels made(15, 10, 4, 4);
    std::vector<float> dose = doses(dose_kinds[0], made.voxels());
    dose[400] = dose[3] = dose[401] = INFINITY;
    made.add([](size_t v) { return v < 3; });
    made.add([](size_t v) { return v > 3; });
    made.add([](size_t) { return true; });
    check_fault(dose, made);
    // One thread sees two.
    made_labels whole(600, 1, 1, 4);
    std::vector<float> two = doses(dose_kinds[0], whole.voxels());
    two[77] = two[77 + 256] = two[77 + 512] = NAN;
    whole.add([](size_t) { return true; });
    check_fault(two, whole);
    // Outside of every structure it does not matter.
    made_labels beside(15, 10, 4, 4);
    beside.add([](size_t v) { return v < 3 || (v > 3 && v < 400) || v > 401; });
    check_dvh(dose, beside, {});
}

static void test_bad_options()
{
    made_labels made(3, 1, 1, 4);
    made.add([](size_t) { return true; });
    device_buffer<float> d_dose(std::vector<float>{1, 2, 3});
    for (double threshold : {-1.0, (double)NAN, (double)INFINITY}) {
        dm_dvh_options options = {&threshold, 1, false, 0};
        dm_dvh *dvh = NULL;
        CHECK(device_dvh(d_dose.data(), made.get(), &options, NULL, &dvh, NULL) == DM_ERROR_VALUE);
        CHECK(dvh == NULL);
    }
    // More tiles than a grid has blocks; nothing of that size is allocated before it is found.
    label_run run = {0, 0xffffffffu};
    label_structure huge = {&made.names[0][0], 1, 0xffffffffu, 1, &run};
    structure_table table;
    dm_error err = {};
    CHECK(structure_table_make(&huge, 1, 1, &table, &err) == DM_ERROR_UNSUPPORTED);
    CHECK(strlen(err.remedy) > 0 && !table.run);
}

#ifdef DOSEMAP_EMULATED_CUDA
// Each call of the runtime fails once: an error, nothing left behind, and then it works again. And
// only small things cross: a structure's voxels do not.
static void test_failing_device()
{
    made_labels made(20, 10, 4, 4);
    add_structures(made);
    device_buffer<float> d_dose(doses(dose_kinds[0], made.voxels()));
    double threshold = 3;
    dm_dvh_options options = {&threshold, 1, false, 0};
    emulation_counts before = emulation_counters();
    dm_dvh *dvh = NULL;
    CHECK(device_dvh(d_dose.data(), made.get(), &options, NULL, &dvh, NULL) == DM_OK);
    dm_dvh_free(dvh);
    emulation_counts after = emulation_counters();
    uint64_t calls = after.calls - before.calls;
    CHECK(after.live_device == before.live_device);
    CHECK(after.copies_to_host - before.copies_to_host == 4);
    CHECK(after.bytes_to_host - before.bytes_to_host < 7 * 10000 * 8);
    for (cudaError_t error : {cudaErrorMemoryAllocation, cudaErrorLaunchFailure})
        for (uint64_t n = 1; n <= calls; n++) {
            dm_error err = {};
            emulation_fail_call(n, error);
            dm_status status = device_dvh(d_dose.data(), made.get(), &options, NULL, &dvh, &err);
            emulation_fail_call(0, cudaSuccess);
            CHECK(status == DM_ERROR_DEVICE || status == DM_ERROR_MEMORY || n == calls);
            CHECK(status != DM_OK || dvh);
            if (status == DM_OK)
                dm_dvh_free(dvh); // all was done; the last call only made sure of it
            else
                CHECK(!dvh && strlen(err.what) > 0);
            CHECK(emulation_counters().live_device == before.live_device);
        }
}
#endif

// ---- The kernels by themselves: any tile, any rank, nothing written beyond --------------------

static void check_all_ranks(const std::vector<float> &dose, made_labels &made, unsigned tile_voxels)
{
    const dm_labels *labels = made.get();
    size_t count = labels->count;
    device_structures_copy structures(labels, tile_voxels);
    device_buffer<float> d_dose(dose);
    size_t most = 0;
    for (const label_structure &s : made.structures)
        most = std::max(most, s.voxels);
    for (size_t first = 0; first < most; first += DVH_RANKS) {
        std::vector<device_dvh_rank> ranks(count * DVH_RANKS);
        for (size_t i = 0; i < ranks.size(); i++) {
            size_t n = made.structures[i / DVH_RANKS].voxels;
            ranks[i] = device_dvh_rank{n ? (first + i % DVH_RANKS) * 7 % n : 0, 0, 0};
        }
        device_buffer<device_dvh_rank> rank(ranks);
        device_buffer<device_dvh_summary> summary(count), partial(structures.table.tiles);
        device_buffer<unsigned long long> digits(count * DVH_RANKS * DEVICE_DVH_DIGITS);
        device_dvh_statistics d = {d_dose.data(), structures.view, summary.data(),
                                   rank.data(),   partial.data(),  digits.data()};
        CHECK(kernel_dvh_statistics(&d, NULL) == cudaSuccess);
        std::vector<device_dvh_rank> found = rank.download();
        std::vector<device_dvh_summary> sums = summary.download();
        for (size_t s = 0; s < count; s++) {
            std::vector<uint32_t> keys;
            for (const label_run &run : made.runs[s])
                for (size_t v = run.start; v < run.start + run.length; v++)
                    keys.push_back(dvh_key(dose[v]));
            std::sort(keys.begin(), keys.end(), std::greater<uint32_t>());
            CHECK(sums[s].fault == NO_FAULT);
            if (keys.empty())
                continue;
            CHECK(sums[s].highest == keys.front() && sums[s].lowest == keys.back());
            for (size_t r = 0; r < DVH_RANKS; r++)
                CHECK(found[s * DVH_RANKS + r].key == keys[ranks[s * DVH_RANKS + r].rank]);
        }
    }
}

static void test_every_rank()
{
    for (const dose_kind &kind : dose_kinds) {
        made_labels made(5, 3, 2, 4);
        add_structures(made);
        check_all_ranks(doses(kind, made.voxels()), made, 16);
    }
    for (unsigned tile : {1u, 31u, 1000u}) {
        made_labels made(5, 3, 1, 4);
        add_structures(made);
        check_all_ranks(doses(dose_kinds[4], made.voxels()), made, tile);
    }
}

static void test_histogram()
{
    made_labels made(33, 5, 2, 4);
    add_structures(made);
    const dm_labels *labels = made.get();
    std::vector<float> dose = doses(dose_kinds[0], made.voxels());
    std::vector<unsigned> thresholds = {dvh_key(1), dvh_key(20), dvh_key(20), dvh_key(79)};
    std::vector<device_dvh_bins> bins;
    size_t all = 0;
    for (size_t s = 0; s < labels->count; s++) {
        bins.push_back(device_dvh_bins{0.01, all, (unsigned)(7000 + s)}); // the last bin holds more
        all += 7000 + s;
    }
    std::vector<unsigned long long> counts(all), classes(labels->count * 5);
    for (size_t s = 0; s < labels->count; s++)
        for (const label_run &run : made.runs[s])
            for (size_t v = run.start; v < run.start + run.length; v++) {
                counts[bins[s].first + dvh_bin(dose[v], 0.01, bins[s].bins)]++;
                size_t reached = 0;
                for (unsigned t : thresholds)
                    reached += dvh_key(dose[v]) >= t;
                classes[s * 5 + reached]++;
            }
    for (unsigned tile : {1u, 32u, 65u}) {
        device_structures_copy structures(labels, tile);
        device_buffer<float> d_dose(dose);
        device_buffer<device_dvh_bins> d_bins(bins);
        device_buffer<unsigned> d_thresholds(thresholds);
        device_buffer<unsigned long long> histogram(all), passed(labels->count * 5);
        CHECK(kernel_dvh_histogram(d_dose.data(), &structures.view, d_bins.data(), histogram.data(),
                                   all, d_thresholds.data(), 4, passed.data(),
                                   NULL) == cudaSuccess);
        CHECK(histogram.download() == counts);
        CHECK(passed.download() == classes);
    }
}

int main()
{
    return run_in_all_orders({
        {"every rank", test_every_rank},
        {"histogram", test_histogram},
        {"doses", test_doses},
        {"tiles", test_tiles},
        {"many structures", test_many_structures},
        {"thresholds", test_thresholds},
        {"ranks at edges", test_rank_edges},
        {"mean", test_mean},
        {"faults", test_faults},
        {"bad options", test_bad_options},
#ifdef DOSEMAP_EMULATED_CUDA
        {"failing device", test_failing_device},
#endif
    });
}
