/* SPDX-License-Identifier: Apache-2.0 */
/* What goes to the device and back, and what happens where its memory is short: smaller batches, then
 * slabs, with the same bytes as result, then an error. */
#include "cuda_predict.h"

static dm_model *lopsided_model(const double *voxel_mm)
{
    weights_writer w;
    begin_lopsided(&w, 8);
    if (voxel_mm)
        json_object_set_new(w.graph, "voxel_size_mm",
                            json_pack("[f,f,f]", voxel_mm[0], voxel_mm[1], voxel_mm[2]));
    return finish_model(&w);
}

/* ---- Copies --------------------------------------------------------------------------------- */

/* The second PET of a cohort: weights and tables of the network are there already. */
static void test_pet_up_once_dose_down_once(void **state)
{
    (void)state;
    predict_case c = case_of(lopsided_model(NULL), 40, 36, 30);
    size_t volume = c.voxels * sizeof(float), windows, tables;
    dm_predictor *predictor = NULL;
    dm_prediction *first = NULL, *second = NULL;
    dm_pet_info info = unit_info();
    dm_error err = {0};
    no_error(dm_predictor_create(c.model, &c.options, &predictor, &err), &err);
    no_error(dm_predictor_run(predictor, &(dm_patient){.pet = c.pet, .info = &info}, &first, &err),
             &err);
    windows = 9 * 8 * 7; /* starts every 4 voxels, patches of 8 */
    emulation_reset_counters();
    no_error(dm_predictor_run(predictor, &(dm_patient){.pet = c.pet, .info = &info}, &second, &err),
             &err);
    const emulation_counts n = emulation_counters();
    /* Importance of a tile, window starts, numbers of windows up to a batch more. */
    tables = (512 + 9 + 8 + 7 + windows + 2 * 256) * sizeof(float);
    assert_in_range(n.bytes_to_device, volume, volume + tables);
    /* Three words of faults after each batch and once behind them. */
    assert_in_range(n.bytes_to_host, volume, volume + 3 * 8 * (windows / 64 + 4));
    assert_memory_equal(dose_of(first), dose_of(second), volume);
    dm_prediction_free(first);
    dm_prediction_free(second);
    dm_predictor_free(predictor);
    case_clear(&c);
    assert_int_equal(emulation_list_leaks(), 0);
}

/* Batches are replayed from a graph, and give what direct launches give. */
static void test_graph(void **state)
{
    (void)state;
    predict_case c = case_of(lopsided_model(NULL), 21, 17, 13);
    dm_prediction *direct = run_case_on(&c, "cuda"); /* all windows in two batches at most */
    emulation_reset_counters();
    c.options.batch = 7;
    dm_prediction *replayed = run_case_on(&c, "cuda");
    assert_true(emulation_counters().graph_launches > 3);
    assert_int_equal(batch_of(replayed), 7);
    assert_same_prediction(replayed, direct, c.voxels);
    dm_prediction_free(direct);
    dm_prediction_free(replayed);
    case_clear(&c);
}

static void test_batches(void **state)
{
    (void)state;
    static const unsigned batches[] = {1, 2, 3, 8, 24, 64, 1000};
    static const double spacing[3] = {3, 5, 6};
    for (int resampled = 0; resampled < 2; resampled++) {
        predict_case c = case_of(lopsided_model(resampled ? spacing : NULL), 19, 14, 11);
        dm_prediction *first = run_case_on(&c, "cuda");
        for (size_t i = 0; i < sizeof batches / sizeof *batches; i++) {
            c.options.batch = batches[i];
            dm_prediction *p = run_case_on(&c, "cuda");
            assert_same_prediction(p, first, c.voxels);
            dm_prediction_free(p);
        }
        dm_prediction_free(first);
        case_clear(&c);
    }
}

/* ---- Little memory -------------------------------------------------------------------------- */

typedef struct shortage {
    bool smaller_batch, slabs, refused;
} shortage;

/* From what it takes at most down to nothing: the same bytes, until there is an error. */
static shortage run_short(const predict_case *c, size_t fixed)
{
    shortage seen = {0};
    emulation_reset_counters();
    dm_prediction *plenty = run_case_on(c, "cuda");
    size_t most = emulation_counters().device_bytes_peak;
    assert_true(most > fixed);
    static const size_t per_mille[] = {950, 900, 850, 800, 700, 600, 500, 400, 300,
                                       200, 150, 100, 70,  50,  30,  20,  10,  1};
    for (size_t i = 0; i < sizeof per_mille / sizeof *per_mille; i++) {
        dm_error err = {0};
        emulation_set_memory(most / 1000 * per_mille[i]);
        emulation_reset_counters();
        dm_prediction *p = try_case(c, &err);
        if (p) {
            assert_false(seen.refused);
            assert_same_prediction(p, plenty, c->voxels);
            seen.smaller_batch |= batch_of(p) < batch_of(plenty);
            /* Less than PET and dose cannot hold both. */
            seen.slabs |= emulation_counters().device_bytes_peak < fixed;
            dm_prediction_free(p);
        } else {
            assert_int_equal(err.status, DM_ERROR_MEMORY);
            assert_non_null(strstr(err.what, "device"));
            assert_true(err.remedy[0] != '\0');
            seen.refused = true;
        }
        assert_int_equal(emulation_list_leaks(), 0);
    }
    emulation_set_memory((size_t)2 << 30);
    dm_prediction_free(plenty);
    return seen;
}

static void check_shortage(const double *voxel_mm, int orientation)
{
    const size_t ras[3] = {18, 20, 190};
    predict_case c = case_of(lopsided_model(voxel_mm), 1, 1, 1);
    dm_volume *body = make_pet(ras[0], ras[1], ras[2]);
    dm_grid grid = oriented_grid(orientation, ras, (const double[]){4, 4, 5});
    dm_error err = {0};
    dm_volume_free(c.pet);
    dm_labels_free(c.labels);
    no_error(dm_volume_create(&grid, &c.pet, &err), &err);
    store_oriented(orientation, ras, body->data, c.pet->data);
    c.voxels = dm_grid_voxels(&grid);
    int32_t *ids = calloc(c.voxels, sizeof *ids);
    for (size_t i = 0; i < c.voxels; i++)
        ids[i] = (int32_t)(i % 3);
    no_error(dm_labels_create(&grid, ids, NULL, &c.labels, &err), &err);
    free(ids);
    c.options.overlap = 0.25;
    c.options.batch = 32;
    c.options.skip_air = 1;
    const shortage seen = run_short(&c, 2 * c.voxels * sizeof(float));
    assert_true(seen.smaller_batch);
    assert_true(seen.slabs);
    assert_true(seen.refused);
    dm_volume_free(body);
    case_clear(&c);
}

static void test_shortage(void **state)
{
    (void)state;
    check_shortage(NULL, 0);
}

/* The model's z is stored backwards, or along another axis. */
static void test_shortage_turned(void **state)
{
    (void)state;
    check_shortage(NULL, 4);
    check_shortage(NULL, 8 * 4 + 3);
}

static void test_shortage_resampled(void **state)
{
    (void)state;
    check_shortage((const double[]){4, 6, 4}, 0);
    check_shortage((const double[]){3.5, 5, 12}, 8 * 5 + 1);
}

/* The second PET of a cohort starts with the batch that fitted: allocations of the second run. */
static uint64_t second_allocations(const predict_case *c, size_t *batch)
{
    dm_predictor *predictor = NULL;
    dm_pet_info info = unit_info();
    dm_error err = {0};
    emulation_counts n = {0};
    no_error(dm_predictor_create(c->model, &c->options, &predictor, &err), &err);
    for (int i = 0; i < 2; i++) {
        dm_prediction *p = NULL;
        emulation_reset_counters();
        no_error(dm_predictor_run(predictor, &(dm_patient){.pet = c->pet, .info = &info}, &p, &err),
                 &err);
        n = emulation_counters();
        *batch = batch_of(p);
        dm_prediction_free(p);
    }
    dm_predictor_free(predictor);
    return n.allocations;
}

static void test_batch_is_remembered(void **state)
{
    (void)state;
    predict_case c = case_of(lopsided_model(NULL), 18, 20, 40);
    size_t most, batch;
    c.options.batch = 64;
    c.options.skip_air = 0;
    emulation_reset_counters();
    uint64_t allocations = second_allocations(&c, &most);
    assert_int_equal(most, 64);
    emulation_set_memory(emulation_counters().device_bytes_peak * 8 / 10);
    assert_int_equal(second_allocations(&c, &batch), allocations);
    assert_true(batch < most);
    emulation_set_memory((size_t)2 << 30);
    case_clear(&c);
}

/* --memory is the device's. */
static void test_memory_limit(void **state)
{
    (void)state;
    predict_case c = case_of(lopsided_model(NULL), 18, 20, 40);
    dm_error err = {0};
    c.options.memory_bytes = 1000;
    assert_null(try_case(&c, &err));
    assert_int_equal(err.status, DM_ERROR_MEMORY);
    assert_non_null(strstr(err.what, "--memory allows"));
    case_clear(&c);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_pet_up_once_dose_down_once),
        cmocka_unit_test(test_graph),
        cmocka_unit_test(test_batches),
        cmocka_unit_test(test_shortage),
        cmocka_unit_test(test_shortage_turned),
        cmocka_unit_test(test_shortage_resampled),
        cmocka_unit_test(test_batch_is_remembered),
        cmocka_unit_test(test_memory_limit),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
