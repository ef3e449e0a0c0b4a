/* SPDX-License-Identifier: Apache-2.0 */
/* The tile that is chosen, and what is said about its memory. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <time.h>

#include "predict/cpu/network.h"
#include "predict/predictor.h"
#include "predict/tile_choice.h"
#include "small_models.h"

#define WEIGHTS TEST_GOLDEN_DIR "/../../weights/"

static tile_task make_task(size_t x, size_t y, size_t z)
{
    return (tile_task){.volume = {x, y, z},
                       .patch = {32, 32, 32},
                       .stride = {16, 16, 16},
                       .overlap = NAN,
                       .threads = 1,
                       .fixed_bytes = 1e8,
                       .worker_per_voxel = 228,
                       .thread_bytes = 1e6,
                       .limit_bytes = INFINITY};
}

static double voxels(const size_t tile[3])
{
    return (double)tile[0] * (double)tile[1] * (double)tile[2];
}

/* Everything that holds for a choice whatever the task. */
static void check(const tile_task *t, const tile_choice *c)
{
    size_t windows = 1;
    assert_true(c->bytes <= t->limit_bytes);
    for (int a = 0; a < 3; a++) {
        assert_true(c->tile[a] >= t->patch[a]);
        assert_int_equal((c->tile[a] - t->patch[a]) % t->stride[a], 0);
        assert_true(c->tile[a] < t->volume[a] + t->stride[a] || c->tile[a] == t->patch[a]);
        windows *= tiling_windows(t->volume[a], c->tile[a], c->overlap);
        if (isnan(t->overlap) && c->tile[a] < t->volume[a])
            assert_true(c->overlap * (double)c->tile[a] >= (double)t->patch[a] / 2 - 1e-6);
    }
    assert_int_equal(c->windows, windows);
    assert_true(c->overlap >= 0 && c->overlap <= 0.5);
    if (!isnan(t->overlap))
        assert_true(c->overlap == t->overlap);
}

static void test_whole_volume_where_it_fits(void **state)
{
    (void)state;
    tile_task task = make_task(120, 128, 250);
    tile_choice choice;
    assert_true(tile_choose(&task, &choice));
    check(&task, &choice);
    assert_memory_equal(choice.tile, ((const size_t[]){128, 128, 256}), sizeof choice.tile);
    assert_int_equal(choice.windows, 1);
    assert_true(choice.overlap == 0 && !signbit(choice.overlap));
    /* A volume smaller than the patch. */
    task = make_task(20, 7, 1);
    assert_true(tile_choose(&task, &choice));
    assert_memory_equal(choice.tile, task.patch, sizeof choice.tile);
}

/* All tiles tried one by one, for one thread, where work is windows times voxels. */
static double least_work(const tile_task *t)
{
    double least = INFINITY;
    size_t tile[3];
    for (tile[0] = 32; tile[0] < t->volume[0] + 16; tile[0] += 16)
        for (tile[1] = 32; tile[1] < t->volume[1] + 16; tile[1] += 16)
            for (tile[2] = 32; tile[2] < t->volume[2] + 16; tile[2] += 16) {
                size_t windows = 1;
                for (int a = 0; a < 3; a++)
                    windows *= tiling_windows(t->volume[a], tile[a], t->overlap);
                double bytes = tile_memory(t->fixed_bytes, voxels(tile) * t->worker_per_voxel,
                                           t->thread_bytes, tile, windows, 1);
                if (bytes <= t->limit_bytes && (double)windows * voxels(tile) < least)
                    least = (double)windows * voxels(tile);
            }
    return least;
}

static void test_least_work_within_the_limit(void **state)
{
    (void)state;
    static const size_t sizes[][3] = {{200, 200, 450}, {128, 128, 256}, {77, 190, 33}};
    for (size_t s = 0; s < 3; s++) {
        double before = INFINITY;
        for (double limit = 1.5e8; limit < 1e10; limit *= 1.7) {
            tile_task task = make_task(sizes[s][0], sizes[s][1], sizes[s][2]);
            tile_choice choice;
            task.limit_bytes = limit;
            assert_true(tile_choose(&task, &choice));
            check(&task, &choice);
            double work = (double)choice.windows * voxels(choice.tile);
            assert_true(work <= before); /* more memory, no more work */
            before = work;
            task.overlap = 0.25;
            assert_true(tile_choose(&task, &choice));
            check(&task, &choice);
            assert_true((double)choice.windows * voxels(choice.tile) == least_work(&task));
        }
    }
}

static void test_nothing_fits(void **state)
{
    (void)state;
    tile_task task = make_task(100, 100, 100);
    tile_choice choice;
    task.limit_bytes = 1.001e8;
    assert_false(tile_choose(&task, &choice));
    assert_memory_equal(choice.tile, task.patch, sizeof choice.tile);
    assert_true(choice.bytes > task.limit_bytes);
}

/* Threads that share one large window instead of many small ones keep within the limit, too. */
static void test_threads_share_the_limit(void **state)
{
    (void)state;
    tile_task task = make_task(200, 200, 450);
    tile_choice one, many;
    task.limit_bytes = 2e9;
    assert_true(tile_choose(&task, &one));
    task.threads = 32;
    assert_true(tile_choose(&task, &many));
    check(&task, &many);
    assert_true(many.at_once < 32 && voxels(many.tile) > 8 * 32 * 32 * 32);
    task.limit_bytes = 1e12;
    assert_true(tile_choose(&task, &many));
    check(&task, &many);
}

static void test_windows_at_once(void **state)
{
    (void)state;
    assert_int_equal(tile_at_once(1, 1), 1);
    assert_int_equal(tile_at_once(1000, 1), 1);
    assert_int_equal(tile_at_once(1, 16), 1);
    assert_int_equal(tile_at_once(735, 2), 2);
    assert_int_equal(tile_at_once(2, 2), 2);
    assert_int_equal(tile_at_once(3, 2), 1); /* one thread would idle for a third of the time */
    assert_int_equal(tile_at_once(4, 16), 4);
    assert_int_equal(tile_at_once(17, 16), 1);
    assert_int_equal(tile_at_once(SIZE_MAX, 64), 64);
}

/* Each number tried: rounds of windows, by the speed of threads that share one. */
static unsigned least_rounds(size_t windows, unsigned threads)
{
    double least = INFINITY;
    unsigned best = 0;
    for (unsigned n = 1; n <= threads && n <= windows; n++) {
        unsigned each = threads / n;
        double time = ceil((double)windows / n) / (each > 1 ? 0.95 * each : 1);
        if (time <= least) {
            least = time;
            best = n;
        }
    }
    return best;
}

static void test_windows_at_once_are_the_best_of_all(void **state)
{
    (void)state;
    for (unsigned threads = 1; threads <= 130; threads++)
        for (size_t windows = 1; windows <= 270; windows += 1 + windows / 40)
            assert_int_equal(tile_at_once(windows, threads), least_rounds(windows, threads));
    for (size_t windows = 1; windows < 100000; windows += 1 + windows / 3)
        assert_int_equal(tile_at_once(windows, 4096), least_rounds(windows, 4096));
}

static void test_quick(void **state)
{
    (void)state;
    tile_task task = make_task(512, 512, 1000);
    tile_choice choice;
    for (int a = 0; a < 3; a++)
        task.stride[a] = 1;
    task.limit_bytes = 4e9;
    clock_t start = clock();
    assert_true(tile_choose(&task, &choice));
    check(&task, &choice);
    /* 5 to 10 ms; ten times that under sanitizers */
    assert_true((double)(clock() - start) / CLOCKS_PER_SEC < 0.5);
}

/* ---- Memory --------------------------------------------------------------------------------- */

static void compare_worker(const dm_model *model, size_t x, size_t y, size_t z, element_type type,
                           unsigned threads)
{
    plan_options options = {.tile = {z, y, x}, .type = type, .optimise = true};
    dm_error err = {0};
    plan *p = NULL;
    network *net = NULL;
    network_plan_needs(&options);
    no_error(plan_build(&model->graph, &options, &p, &err), &err);
    no_error(network_create(p, threads, &net, &err), &err);
    double real = (double)network_worker_bytes(net),
           said = tile_worker_bytes(p) + threads * tile_thread_bytes(p);
    if (!(real <= said) || !(said <= 1.15 * real + threads * 1048576.0))
        fail_msg("%zu x %zu x %zu: a worker has %.0f bytes, %.0f were said", x, y, z, real, said);
    network_free(net);
    plan_free(p);
}

static void test_worker_bytes(void **state)
{
    (void)state;
    static const char *const names[] = {WEIGHTS "dosegan-16-constructed.safetensors.zst",
                                        WEIGHTS "dosegan-constructed.safetensors.zst"};
    for (int i = 0; i < 2; i++) {
        dm_error err = {0};
        dm_model *model = NULL;
        no_error(dm_model_load(names[i], &model, &err), &err);
        for (int bf16 = 0; bf16 < (network_supports(DM_PRECISION_BF16) ? 2 : 1); bf16++) {
            compare_worker(model, 32, 32, 32, bf16 ? ELEMENT_BF16 : ELEMENT_F32, 1);
            if (i > 0) /* weights take their time */
                continue;
            compare_worker(model, 128, 96, 64, bf16 ? ELEMENT_BF16 : ELEMENT_F32, 1);
            compare_worker(model, 64, 64, 64, bf16 ? ELEMENT_BF16 : ELEMENT_F32, 4);
        }
        dm_model_free(model);
    }
}

/* ---- The predictor -------------------------------------------------------------------------- */

static dm_predict_options auto_options(size_t memory)
{
    dm_predict_options o = plain_options();
    o.tile[0] = o.tile[1] = o.tile[2] = DM_TILE_AUTO;
    o.memory_bytes = memory;
    return o;
}

static json_t *options_of(const dm_prediction *p)
{
    json_t *provenance = json_loads(dm_prediction_provenance_json(p), 0, NULL);
    json_t *options = json_incref(json_object_get(provenance, "Options"));
    json_decref(provenance);
    return options;
}

/* The provenance names options that give the same bytes. */
static void test_provenance_repeats_it(void **state)
{
    (void)state;
    weights_writer w;
    begin_lopsided(&w, 8);
    dm_model *model = finish_model(&w);
    dm_volume *pet = make_pet(130, 120, 110);
    dm_predict_options o = auto_options(80u << 20);
    dm_prediction *chosen = predict(model, &o, pet, NULL);
    json_t *options = options_of(chosen);
    assert_true(json_is_true(json_object_get(options, "TileChosen")));
    assert_true(json_integer_value(json_object_get(options, "MemoryNeeded")) <= 80 << 20);
    assert_int_equal(json_integer_value(json_object_get(options, "MemoryLimit")), 80 << 20);
    dm_predict_options again = plain_options();
    for (size_t a = 0; a < 3; a++)
        again.tile[a] =
            (size_t)json_integer_value(json_array_get(json_object_get(options, "Tile"), a));
    again.overlap = json_number_value(json_object_get(options, "Overlap"));
    assert_true(again.tile[0] * again.tile[1] * again.tile[2] > 8 * 8 * 8);
    assert_true(again.overlap > 0 && again.overlap < 0.5);
    json_decref(options);
    dm_prediction *repeated = predict(model, &again, pet, NULL);
    options = options_of(repeated);
    assert_true(json_is_false(json_object_get(options, "TileChosen")));
    json_decref(options);
    assert_memory_equal(dose_of(chosen), dose_of(repeated),
                        dm_grid_voxels(&pet->grid) * sizeof(float));
    dm_prediction_free(chosen);
    dm_prediction_free(repeated);
    dm_volume_free(pet);
    dm_model_free(model);
}

/* Another tile would change what the network computes. */
static void test_statistics_keep_the_patch(void **state)
{
    (void)state;
    weights_writer w;
    begin_strided(&w, 8, true);
    dm_model *model = finish_model(&w);
    dm_volume *pet = make_pet(20, 13, 9);
    for (int force = 0; force < 2; force++) {
        dm_predict_options o = auto_options(0);
        o.force_tile = force;
        dm_prediction *p = predict(model, &o, pet, NULL);
        json_t *options = options_of(p);
        const json_t *tile = json_object_get(options, "Tile");
        assert_int_equal(json_integer_value(json_array_get(tile, 0)), force ? 20 : 8);
        assert_true(json_number_value(json_object_get(options, "Overlap")) == (force ? 0 : 0.5));
        json_decref(options);
        dm_prediction_free(p);
    }
    dm_volume_free(pet);
    dm_model_free(model);
}

static void expect(dm_status found, dm_status status, const dm_error *err, const char *what,
                   const char *remedy)
{
    assert_int_equal(found, status);
    if (!strstr(err->what, what) || !strstr(err->remedy, remedy))
        fail_msg("'%s; %s' lacks '%s' or '%s'", err->what, err->remedy, what, remedy);
}

static void test_refused_before_a_volume_is_there(void **state)
{
    (void)state;
    dm_error err = {0};
    dm_predictor *p = NULL;
    dm_model *model = identity_model(8);
    dm_predict_options o = plain_options();
    o.memory_bytes = 200u << 20;
    o.tile[0] = o.tile[1] = o.tile[2] = 512;
    expect(dm_predictor_create(model, &o, &p, &err), DM_ERROR_MEMORY, &err, "512 x 512 x 512",
           "--tile auto");
    assert_null(p);
    assert_non_null(strstr(err.what, "200.0 MiB that --memory allows"));
    o.tile[0] = DM_TILE_AUTO;
    expect(dm_predictor_create(model, &o, &p, &err), DM_ERROR_VALUE, &err, "some axes", "three");
    dm_model_free(model);
}

static void test_refused_for_a_volume(void **state)
{
    (void)state;
    dm_error err = {0};
    dm_predictor *p = NULL;
    dm_prediction *prediction = NULL;
    dm_pet_info info = unit_info();
    dm_model *model = identity_model(8);
    dm_volume *pet = make_pet(150, 150, 150); /* 13.5 MB */
    dm_predict_options o = plain_options();
    o.memory_bytes = 64u << 20; /* 30 MiB of program, PET and dose: 56 MiB */
    for (int a = 0; a < 3; a++)
        o.tile[a] = DM_TILE_WHOLE;
    no_error(dm_predictor_create(model, &o, &p, &err), &err);
    expect(dm_predictor_run(p, &(dm_patient){.pet = pet, .info = &info}, &prediction, &err),
           DM_ERROR_MEMORY, &err, "150 x 150 x 150", "--tile auto");
    assert_null(prediction);
    dm_predictor_free(p);
    o = auto_options(64u << 20); /* the same limit, and a tile that fits it */
    dm_prediction_free(predict(model, &o, pet, NULL));
    /* Not with two more volumes; reserving them changes nothing then. */
    no_error(dm_predictor_create(model, &o, &p, &err), &err);
    assert_false(dm_predictor_reserve(p, &pet->grid, NULL, 2));
    no_error(dm_predictor_run(p, &(dm_patient){.pet = pet, .info = &info}, &prediction, &err),
             &err);
    dm_prediction_free(prediction);
    dm_predictor_free(p);
    o.memory_bytes = 50u << 20;
    no_error(dm_predictor_create(model, &o, &p, &err), &err);
    expect(dm_predictor_run(p, &(dm_patient){.pet = pet, .info = &info}, &prediction, &err),
           DM_ERROR_MEMORY, &err, "8 x 8 x 8", "raise --memory, or use a smaller volume");
    dm_predictor_free(p);
    dm_volume_free(pet);
    dm_model_free(model);
}

/* What the caller holds is taken from the tile. */
static void test_reserve(void **state)
{
    (void)state;
    dm_error err = {0};
    dm_predictor *p = NULL;
    dm_prediction *prediction = NULL;
    dm_pet_info info = unit_info();
    dm_model *model = identity_model(8);
    dm_volume *pet = make_pet(150, 150, 150); /* 12.9 MiB */
    for (int automatic = 0; automatic < 2; automatic++) {
        json_int_t needed[2];
        dm_predict_options o = automatic ? auto_options(400u << 20) : plain_options();
        for (int a = 0; !automatic && a < 3; a++)
            o.tile[a] = 50; /* fewer windows than by the patch */
        no_error(dm_predictor_create(model, &o, &p, &err), &err);
        for (unsigned volumes = 0; volumes < 2; volumes++) {
            assert_true(dm_predictor_reserve(p, &pet->grid, NULL, 2 * volumes));
            no_error(
                dm_predictor_run(p, &(dm_patient){.pet = pet, .info = &info}, &prediction, &err),
                &err);
            json_t *options = options_of(prediction);
            needed[volumes] = json_integer_value(json_object_get(options, "MemoryNeeded"));
            json_decref(options);
            dm_prediction_free(prediction);
        }
        assert_int_equal(needed[1] - needed[0], 2 * 150 * 150 * 150 * 4);
        dm_predictor_free(p);
    }
    /* Whole volumes would fit, but not beside others: better no others than more work. */
    dm_predict_options o = auto_options(150u << 20);
    no_error(dm_predictor_create(model, &o, &p, &err), &err);
    assert_true(dm_predictor_reserve(p, &pet->grid, NULL, 1));
    assert_false(dm_predictor_reserve(p, &pet->grid, NULL, 6));
    dm_predictor_free(p);
    dm_volume_free(pet);
    dm_model_free(model);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_whole_volume_where_it_fits),
                                       cmocka_unit_test(test_least_work_within_the_limit),
                                       cmocka_unit_test(test_nothing_fits),
                                       cmocka_unit_test(test_threads_share_the_limit),
                                       cmocka_unit_test(test_windows_at_once),
                                       cmocka_unit_test(test_windows_at_once_are_the_best_of_all),
                                       cmocka_unit_test(test_quick),
                                       cmocka_unit_test(test_worker_bytes),
                                       cmocka_unit_test(test_provenance_repeats_it),
                                       cmocka_unit_test(test_statistics_keep_the_patch),
                                       cmocka_unit_test(test_refused_before_a_volume_is_there),
                                       cmocka_unit_test(test_refused_for_a_volume),
                                       cmocka_unit_test(test_reserve)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
