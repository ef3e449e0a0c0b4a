/* SPDX-License-Identifier: Apache-2.0 */
/* Volumes shared by several devices: the bytes of one device, its errors, and its words. */
#include <pthread.h>

#include "cuda_predict.h"

#define DEVICES 4

static const char *const named[] = {"cuda:0,1", "cuda:2,0,1", "cuda:all"};

static void restore_devices(void)
{
    emulation_set_memory((size_t)2 << 30);
    emulation_set_compute_capability(9, 0);
    emulation_set_order(0);
    emulation_set_streams(EMULATION_DEFERRED);
    for (int i = 0; i < DEVICES; i++)
        emulation_fail_call_of(i, 0, cudaSuccess);
}

static dm_model *lopsided_model(const double *voxel_mm)
{
    weights_writer w;
    begin_lopsided(&w, 8);
    if (voxel_mm)
        json_object_set_new(w.graph, "voxel_size_mm",
                            json_pack("[f,f,f]", voxel_mm[0], voxel_mm[1], voxel_mm[2]));
    return finish_model(&w);
}

/* A body stored in an orientation, with three structures. */
static predict_case turned_case(const double *voxel_mm, int orientation, const size_t ras[3])
{
    predict_case c = case_of(lopsided_model(voxel_mm), 1, 1, 1);
    dm_volume *body = make_pet(ras[0], ras[1], ras[2]);
    dm_grid grid = oriented_grid(orientation, ras, (const double[]){4, 4, 5});
    dm_error err = {0};
    dm_volume_free(c.pet);
    dm_labels_free(c.labels);
    no_error(dm_volume_create(&grid, &c.pet, &err), &err);
    store_oriented(orientation, ras, body->data, c.pet->data);
    dm_volume_free(body);
    c.voxels = dm_grid_voxels(&grid);
    int32_t *ids = calloc(c.voxels, sizeof *ids);
    assert_non_null(ids);
    for (size_t i = 0; i < c.voxels; i++)
        ids[i] = (int32_t)(i % 4);
    no_error(dm_labels_create(&grid, ids, NULL, &c.labels, &err), &err);
    free(ids);
    return c;
}

static json_t *windows_of(const dm_prediction *p)
{
    json_t *root, *windows = json_deep_copy(provenance_of(p, NULL, "Windows", &root));
    json_decref(root);
    return windows;
}

/* All that is reported, to the bit. */
static void assert_all_the_same(const dm_prediction *a, const dm_prediction *b, size_t voxels)
{
    json_t *of_a = windows_of(a), *of_b = windows_of(b);
    assert_same_prediction(a, b, voxels);
    const dm_dvh *x = dm_prediction_dvh(a), *y = dm_prediction_dvh(b);
    for (size_t i = 0; i < dm_dvh_count(x); i++) {
        const dm_structure_dose *s = dm_dvh_structure(x, i), *t = dm_dvh_structure(y, i);
        assert_memory_equal(&s->mean, &t->mean, 3 * sizeof s->mean);
        assert_memory_equal(&s->d2, &t->d2, 5 * sizeof s->d2);
    }
    assert_int_equal(batch_of(a), batch_of(b));
    assert_true(json_equal(of_a, of_b));
    json_decref(of_a);
    json_decref(of_b);
}

/* ---- The same bytes ------------------------------------------------------------------------- */

/* most: devices that have something to do where there are enough of them. */
static void compare_devices(const predict_case *c, int most)
{
    dm_prediction *alone = run_case_on(c, "cuda");
    for (size_t i = 0; i < sizeof named / sizeof *named; i++) {
        int ran = 0;
        emulation_reset_counters();
        dm_prediction *p = run_case_on(c, named[i]);
        for (int device = 0; device < DEVICES; device++)
            ran += emulation_counters_of(device).launches > 0;
        assert_int_equal(ran, most < 2 + (int)i ? most : 2 + (int)i);
        assert_all_the_same(p, alone, c->voxels);
        dm_prediction_free(p);
        assert_int_equal(emulation_list_leaks(), 0);
    }
    dm_prediction_free(alone);
}

static void test_overlaps(void **state)
{
    (void)state;
    static const double overlap[] = {0, 0.25, 0.5, 0.75};
    static const int most[] = {4, 3, 4, 4};
    for (size_t i = 0; i < sizeof overlap / sizeof *overlap; i++) {
        predict_case c = turned_case(NULL, 0, (const size_t[]){13, 11, 61});
        c.options.overlap = overlap[i];
        c.options.batch = 5;
        compare_devices(&c, most[i]);
        case_clear(&c);
    }
}

/* The model's z is another axis of the file, or runs backwards; the grids differ. */
static void test_orientations(void **state)
{
    (void)state;
    static const int orientation[] = {4, 8 * 4 + 3, 8 * 5 + 1};
    for (size_t i = 0; i < sizeof orientation / sizeof *orientation; i++) {
        predict_case c = turned_case(NULL, orientation[i], (const size_t[]){9, 12, 47});
        compare_devices(&c, DEVICES);
        case_clear(&c);
        c = turned_case((const double[]){4.5, 6, 3}, orientation[i], (const size_t[]){9, 12, 41});
        compare_devices(&c, DEVICES);
        case_clear(&c);
    }
}

/* What is air differs from share to share; a row that two devices run counts once. */
static void test_air(void **state)
{
    (void)state;
    predict_case c = turned_case(NULL, 0, (const size_t[]){20, 17, 64});
    for (size_t i = 0; i < c.voxels; i++) {
        size_t x = i % 20, z = i / (20 * 17);
        if (x > 7 + z % 11 || (z > 20 && z < 36))
            c.pet->data[i] = 0;
    }
    c.options.skip_air = 0.1;
    c.options.batch = 4;
    compare_devices(&c, DEVICES);
    case_clear(&c);
}

static void test_schedules(void **state)
{
    (void)state;
    predict_case c = turned_case((const double[]){4, 5, 6}, 8 * 4 + 3, (const size_t[]){9, 10, 40});
    dm_prediction *first = run_case_on(&c, "cuda");
    c.options.batch = 3;
    for (int order = 0; order < EMULATION_ORDERS; order++)
        for (int eager = 0; eager < 2; eager++) {
            emulation_set_order(order);
            emulation_set_streams(eager ? EMULATION_EAGER : EMULATION_DEFERRED);
            dm_prediction *p = run_case_on(&c, "cuda:1,3,0");
            assert_same_prediction(p, first, c.voxels);
            dm_prediction_free(p);
        }
    restore_devices();
    dm_prediction_free(first);
    case_clear(&c);
}

/* Few rows are one device's, and of many devices those work that gain something. */
static void test_small_volumes(void **state)
{
    (void)state;
    predict_case c = turned_case(NULL, 0, (const size_t[]){9, 9, 11});
    compare_devices(&c, 1);
    case_clear(&c);
    c = turned_case(NULL, 0, (const size_t[]){9, 9, 18});
    c.options.overlap = 0;
    compare_devices(&c, 2); /* the last of three rows is shifted over the second */
    case_clear(&c);
}

/* Several PETs with one predictor: networks and parameters stay on all devices. */
static void test_cohort(void **state)
{
    (void)state;
    predict_case c = turned_case(NULL, 0, (const size_t[]){12, 12, 40});
    dm_volume *pets[3] = {c.pet, make_pet(10, 9, 14), c.pet};
    dm_pet_info info = unit_info();
    dm_error err = {0};
    dm_predictor *several = NULL, *one = NULL;
    emulation_counts counts = {0};
    size_t first_upload = 0;
    c.options.batch = 6;
    c.options.device = "cuda";
    no_error(dm_predictor_create(c.model, &c.options, &one, &err), &err);
    c.options.device = "cuda:all";
    no_error(dm_predictor_create(c.model, &c.options, &several, &err), &err);
    for (int i = 0; i < 3; i++) {
        dm_prediction *p = NULL, *expected = NULL;
        no_error(
            dm_predictor_run(one, &(dm_patient){.pet = pets[i], .info = &info}, &expected, &err),
            &err);
        emulation_reset_counters();
        no_error(dm_predictor_run(several, &(dm_patient){.pet = pets[i], .info = &info}, &p, &err),
                 &err);
        counts = emulation_counters();
        if (i == 0)
            first_upload = counts.bytes_to_device;
        assert_memory_equal(dose_of(p), dose_of(expected),
                            dm_grid_voxels(&pets[i]->grid) * sizeof(float));
        assert_int_equal(batch_of(p), batch_of(expected));
        dm_prediction_free(p);
        dm_prediction_free(expected);
    }
    assert_true(counts.bytes_to_device < first_upload); /* without weights */
    dm_predictor_free(one);
    dm_predictor_free(several);
    dm_volume_free(pets[1]);
    case_clear(&c);
    assert_int_equal(emulation_list_leaks(), 0);
}

/* ---- Little memory -------------------------------------------------------------------------- */

/* From plenty down to nothing on `device`, or on all for -1. */
static void run_short(const predict_case *c, int device)
{
    bool smaller = false, done = false, refused = false;
    dm_prediction *plenty = run_case_on(c, "cuda:all");
    emulation_reset_counters();
    dm_prediction_free(run_case_on(c, "cuda:all"));
    size_t most = 0;
    for (int i = 0; i < DEVICES; i++) {
        size_t peak = emulation_counters_of(i).device_bytes_peak;
        most = peak > most ? peak : most;
    }
    for (size_t per_mille = 950; per_mille > 1; per_mille = per_mille * 3 / 5) {
        dm_error err = {0};
        emulation_set_memory((size_t)2 << 30);
        if (device < 0)
            emulation_set_memory(most / 1000 * per_mille);
        else
            emulation_set_memory_of(device, most / 1000 * per_mille);
        predict_case several = *c;
        several.options.device = "cuda:all";
        dm_prediction *p = try_case(&several, &err);
        if (p) {
            assert_false(refused);
            assert_same_prediction(p, plenty, c->voxels);
            smaller |= batch_of(p) < batch_of(plenty);
            done = true;
        } else {
            assert_int_equal(err.status, DM_ERROR_MEMORY);
            assert_non_null(strstr(err.what, "device"));
            assert_true(err.remedy[0] != '\0');
            refused = true;
        }
        dm_prediction_free(p);
        assert_int_equal(emulation_list_leaks(), 0);
    }
    assert_true(done && smaller && refused);
    restore_devices();
    dm_prediction_free(plenty);
}

static void test_shortage(void **state)
{
    (void)state;
    predict_case c = turned_case(NULL, 0, (const size_t[]){18, 20, 160});
    c.options.overlap = 0.25;
    c.options.batch = 32;
    run_short(&c, -1);
    run_short(&c, 0);
    run_short(&c, 2);
    case_clear(&c);
    c = turned_case((const double[]){3.5, 5, 12}, 8 * 5 + 1, (const size_t[]){18, 20, 160});
    c.options.batch = 32;
    run_short(&c, -1);
    run_short(&c, 3);
    case_clear(&c);
}

/* ---- Failures ------------------------------------------------------------------------------- */

/* The nth call with that device fails: the others end, nothing is left, and the device is named, or
 * the bytes are the same. */
static void test_failing_calls(void **state)
{
    (void)state;
    predict_case c = turned_case((const double[]){4, 4, 4}, 0, (const size_t[]){25, 8, 19});
    predict_case several = c;
    several.options.device = "cuda:0,1,2";
    several.options.batch = 1;
    several.options.overlap = 0; /* three rows of four windows */
    emulation_reset_counters();
    dm_prediction *sound = run_case_on(&several, several.options.device);
    emulation_counts of[3];
    for (int device = 0; device < 3; device++)
        of[device] = emulation_counters_of(device);
    for (int device = 0; device < 3; device++) {
        const uint64_t calls = of[device].calls;
        char name[32];
        int failed = 0, named_it = 0;
        snprintf(name, sizeof name, "cuda:%d", device);
        assert_true(calls > 50 && of[device].graph_launches > 0);
        for (uint64_t n = 1 + (uint64_t)device; n <= calls; n += 1 + calls / 20) {
            dm_error err = {0};
            emulation_fail_call_of(device, n, cudaErrorLaunchFailure);
            dm_prediction *p = try_case(&several, &err);
            emulation_fail_call_of(device, 0, cudaSuccess);
            if (p) {
                assert_same_prediction(p, sound, c.voxels);
            } else {
                failed++;
                named_it += strcmp(err.where, name) == 0;
                if (err.status != DM_ERROR_DEVICE || !err.what[0] || !err.remedy[0])
                    fail_msg("call %d of %s: '%s; %s'", (int)n, name, err.what, err.remedy);
            }
            dm_prediction_free(p);
            if (emulation_list_leaks() != 0)
                fail_msg("leaks after call %d of %s failed", (int)n, name);
        }
        assert_true(failed > 6);
        assert_true(named_it > failed / 2);
    }
    dm_prediction_free(sound);
    case_clear(&c);
}

static void set_intensity(weights_writer *w, const char *list, const char *steps)
{
    json_object_set_new(json_array_get(json_object_get(w->graph, list), 0), "intensity",
                        weights_json(steps));
}

/* A network in which values from 1000 on have no root, overflow in the network from 30 on, and give
 * no dose from 8 on: sqrt(1000 - pet), times 1e37, expm1. */
static dm_model *refusing_model(void)
{
    weights_writer w;
    begin_scaling(&w, 8, 1);
    set_intensity(&w, "inputs", "[{'scale': -1, 'offset': 1000}, {'sqrt': true}]");
    set_intensity(&w, "outputs", "[{'scale': 100, 'offset': 0}, {'expm1': true}]");
    return finish_model(&w);
}

/* The words of the error with one device and with several. */
static void compare_errors(const predict_case *c, const char *expected)
{
    char alone[2048], text[2048];
    static const unsigned batches[] = {1, 3, 16};
    for (size_t b = 0; b < 3; b++) {
        predict_case other = *c;
        dm_error err = {0};
        other.options.batch = batches[b];
        other.options.device = "cuda";
        assert_null(try_case(&other, &err));
        dm_error_text(&err, alone, sizeof alone);
        if (!strstr(alone, expected))
            fail_msg("'%s' does not say '%s'", alone, expected);
        for (size_t i = 0; i < sizeof named / sizeof *named; i++) {
            err = (dm_error){0};
            other.options.device = named[i];
            assert_null(try_case(&other, &err));
            assert_string_equal(dm_error_text(&err, text, sizeof text), alone);
            assert_int_equal(emulation_list_leaks(), 0);
        }
    }
}

static predict_case plain_case(dm_model *model, size_t z, float value)
{
    predict_case c = case_of(model, 9, 8, z);
    for (size_t i = 0; i < c.voxels; i++)
        c.pet->data[i] = value;
    return c;
}

static float *at(const predict_case *c, size_t x, size_t y, size_t z)
{
    return &c->pet->data[x + 9 * (y + 8 * z)];
}

/* Faults of the data in several shares: the one in the first window is named. */
static void test_faults_of_the_data(void **state)
{
    (void)state;
    weights_writer w;
    predict_case c = plain_case(refusing_model(), 60, 1000); /* sqrt(0): no dose */
    dm_prediction_free(run_case_on(&c, "cuda:all"));
    *at(&c, 3, 1, 50) = 2000;
    compare_errors(&c, "voxel (3, 1, 50), 2000 as stored");
    *at(&c, 7, 4, 33) = 1001;
    compare_errors(&c, "voxel (7, 4, 33), 1001 as stored");
    *at(&c, 2, 2, 5) = 0; /* expm1(100 * 31.6): not before all windows are done */
    compare_errors(&c, "voxel (7, 4, 33), 1001 as stored");
    *at(&c, 7, 4, 33) = *at(&c, 3, 1, 50) = 1000;
    *at(&c, 1, 0, 41) = 0;
    compare_errors(&c, "output transform is not finite at voxel (2, 2, 5)");
    case_clear(&c);

    begin_scaling(&w, 8, 3e38f);
    c = plain_case(finish_model(&w), 60, 0.1f);
    *at(&c, 5, 2, 58) = 10;
    compare_errors(&c, "output is not finite at voxel (5, 2, 58)");
    *at(&c, 5, 2, 30) = *at(&c, 8, 7, 29) = 10; /* the second lies in a later window */
    compare_errors(&c, "output is not finite at voxel (5, 2, 30)");
    case_clear(&c);

    begin_scaling(&w, 8, 3e38f); /* what has no value and what overflows, in one window and not */
    set_intensity(&w, "inputs", "[{'sqrt': true}]");
    c = plain_case(finish_model(&w), 60, 0.01f);
    *at(&c, 4, 4, 20) = 100;
    *at(&c, 4, 4, 44) = -1;
    compare_errors(&c, "output is not finite at voxel (4, 4, 20)");
    *at(&c, 0, 0, 21) = -1;
    compare_errors(&c, "voxel (0, 0, 21), -1 as stored");
    case_clear(&c);
}

/* ---- Progress ------------------------------------------------------------------------------- */

typedef struct watcher {
    pthread_t caller;
    double last;
    unsigned calls, stop_after; /* 0: never */
    bool wrong;
} watcher;

static int watch(void *user, double share, const char *stage)
{
    watcher *w = user;
    w->wrong |=
        !pthread_equal(pthread_self(), w->caller) || !(share >= w->last) || share > 1 || !stage[0];
    w->last = share;
    return ++w->calls == w->stop_after;
}

static void test_progress(void **state)
{
    (void)state;
    predict_case c = turned_case(NULL, 0, (const size_t[]){12, 9, 50});
    watcher w = {.caller = pthread_self()};
    c.options.progress = watch;
    c.options.progress_user = &w;
    c.options.batch = 3;
    dm_prediction_free(run_case_on(&c, "cuda:all"));
    assert_false(w.wrong);
    assert_true(w.last >= 1 && w.calls > 4);
    unsigned calls = w.calls;
    for (unsigned n = 1; n < calls; n += 1 + n / 4) {
        dm_error err = {0};
        w = (watcher){.caller = pthread_self(), .stop_after = n};
        c.options.device = "cuda:all";
        dm_prediction *p = try_case(&c, &err);
        if (w.calls < n) { /* there were fewer this time */
            assert_non_null(p);
        } else {
            assert_null(p);
            assert_int_equal(err.status, DM_CANCELLED);
            assert_int_equal(w.calls, n);
        }
        dm_prediction_free(p);
        assert_false(w.wrong);
        assert_int_equal(emulation_list_leaks(), 0);
    }
    case_clear(&c);
}

/* ---- Names ---------------------------------------------------------------------------------- */

static void refuse_device(const char *device, dm_status status, const char *what)
{
    predict_case c = plain_case(identity_model(8), 8, 1);
    dm_error err = {0};
    char text[2048];
    c.options.device = device;
    assert_null(try_case(&c, &err));
    dm_error_text(&err, text, sizeof text);
    if (err.status != status || !strstr(text, what) || !err.remedy[0])
        fail_msg("'%s': %s", device, text);
    case_clear(&c);
}

static void test_names(void **state)
{
    (void)state;
    static const char *const none[] = {"cuda:",     "cuda:,",      "cuda:0,",   "cuda:,0",
                                       "cuda:0,,1", "cuda:0;1",    "cuda:0, 1", "cuda:0,all",
                                       "cuda:alle", "cuda:all,0",  "cuda:-1",   "cuda:+1",
                                       "cuda0,1",   "cuda:0,1000", "0,1",       "cuda:99999999999"};
    for (size_t i = 0; i < sizeof none / sizeof *none; i++)
        refuse_device(none[i], DM_ERROR_VALUE, "there is no device");
    refuse_device("cuda:1,1", DM_ERROR_VALUE, "'cuda:1,1' names the device cuda:1 twice");
    refuse_device("cuda:0,2,1,00", DM_ERROR_VALUE, "twice");
    refuse_device("cuda:0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16", DM_ERROR_VALUE, "more than 16");
    refuse_device("cuda:0,4", DM_ERROR_DEVICE, "cuda:4: there is no device cuda:4; there are 4");
    refuse_device("cuda:7,0", DM_ERROR_DEVICE, "no device cuda:7");
}

static void test_mixed_devices(void **state)
{
    (void)state;
    emulation_set_compute_capability_of(2, 8, 0);
    refuse_device("cuda:all", DM_ERROR_DEVICE,
                  "cuda:0 (emulated device, compute capability 9.0) and cuda:2 (emulated device, "
                  "8.0) are not of one kind");
    refuse_device("cuda:2,3", DM_ERROR_DEVICE, "cuda:2 (emulated device");
    emulation_set_compute_capability_of(2, 7, 5);
    refuse_device("cuda:all", DM_ERROR_DEVICE, "cuda:2: emulated device has compute capability");
    predict_case c = turned_case(NULL, 0, (const size_t[]){9, 9, 30});
    dm_prediction *p = run_case_on(&c, "cuda:0,1,3");
    json_t *root;
    const char *device = json_string_value(provenance_of(p, NULL, "Device", &root));
    assert_true(strncmp(device, "3 x emulated device; ", 21) == 0);
    json_decref(root);
    dm_prediction_free(p);
    case_clear(&c);
    restore_devices();
}

/* A machine with one device has it as all of them. */
static void test_all_is_one(void **state)
{
    (void)state;
    predict_case c = turned_case(NULL, 0, (const size_t[]){9, 9, 30});
    dm_prediction *first = run_case_on(&c, "cuda");
    emulation_set_devices(1);
    dm_prediction *p = run_case_on(&c, "cuda:all");
    assert_all_the_same(p, first, c.voxels);
    emulation_set_devices(DEVICES);
    dm_prediction_free(p);
    dm_prediction_free(first);
    case_clear(&c);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_overlaps),      cmocka_unit_test(test_orientations),
        cmocka_unit_test(test_air),           cmocka_unit_test(test_schedules),
        cmocka_unit_test(test_small_volumes), cmocka_unit_test(test_cohort),
        cmocka_unit_test(test_shortage),      cmocka_unit_test(test_failing_calls),
        cmocka_unit_test(test_progress),      cmocka_unit_test(test_faults_of_the_data),
        cmocka_unit_test(test_names),         cmocka_unit_test(test_mixed_devices),
        cmocka_unit_test(test_all_is_one),
    };
    emulation_set_devices(DEVICES);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
