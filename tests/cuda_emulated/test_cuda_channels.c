/* SPDX-License-Identifier: Apache-2.0 */
/* Networks with several input channels and several outputs: predictions from PET and CT, and the
 * network alone, against the CPU's. */
#include "cuda_predict.h"

/* ---- PET and CT ----------------------------------------------------------------------------- */

typedef struct channels_case {
    bool ct_first;
    size_t hidden;      /* channels between the two convolutions */
    double voxel_mm[3]; /* 0: the PET's grid */
    int orientation;
    size_t ras[3];
    double overlap, skip_air;
    bool nan_to_zero;
} channels_case;

static void set_intensity(weights_writer *w, size_t port, const char *steps)
{
    json_object_set_new(json_array_get(json_object_get(w->graph, "inputs"), port), "intensity",
                        weights_json(steps));
}

/* dose = c2(leaky(c1(both))) + pet; the PET alone is a slice of the input tensor. The output before
 * it is not the dose's size, and nothing but a waste of time. */
static dm_model *pet_ct_model(const channels_case *k)
{
    weights_writer w;
    weights_begin(&w, "xyz", 8, 8, 8);
    for (size_t i = 0; i < 2; i++) {
        if ((i == 0) == k->ct_first) {
            weights_port(&w, "inputs", "ct", 1, "hu", "HU");
            set_intensity(&w, i,
                          "[{'clip': [-900, 1200]}, {'scale': 0.001, 'offset': 1},"
                          " {'sqrt': true}]");
        } else {
            weights_port(&w, "inputs", "pet", 1, "uptake", "g/mL");
            set_intensity(&w, i, "[{'log1p': true}, {'scale': 0.5, 'offset': -0.25}]");
        }
    }
    weights_port(&w, "outputs", "extra", 3, "other", "1");
    weights_output(&w, "dose", 1);
    weights_random(&w, "w1", 11, 0.3f, 5, (const size_t[]){k->hidden, 2, 3, 3, 3});
    weights_random(&w, "b1", 12, 0.1f, 1, (const size_t[]){k->hidden});
    weights_random(&w, "w2", 13, 0.2f, 5, (const size_t[]){1, k->hidden, 3, 3, 3});
    weights_random(&w, "w3", 14, 0.2f, 5, (const size_t[]){3, k->hidden, 2, 2, 2});
    weights_node(&w, "Concat", "join", k->ct_first ? "ct pet" : "pet ct", "both", "{'axis': 1}");
    weights_node(&w, "Conv", "c1", "both w1 b1", "h1", CONV_3);
    weights_node(&w, "LeakyRelu", "r1", "h1", "h2", "{'alpha': 0.2}");
    weights_node(&w, "Conv", "c3", "h2 w3 -", "extra",
                 "{'kernel_shape': [2, 2, 2], 'strides': [2, 2, 2]}");
    weights_node(&w, "Conv", "c2", "h2 w2 -", "h3", CONV_3);
    weights_node(&w, "Add", "a", "h3 pet", "dose", NULL);
    if (k->voxel_mm[0] > 0)
        json_object_set_new(w.graph, "voxel_size_mm",
                            json_pack("[f,f,f]", k->voxel_mm[0], k->voxel_mm[1], k->voxel_mm[2]));
    return finish_model(&w);
}

static dm_volume *stored(const channels_case *k, uint32_t seed, float low, float high)
{
    dm_error err = {0};
    dm_volume *volume = NULL;
    dm_grid grid = oriented_grid(k->orientation, k->ras, (const double[]){4, 4, 5});
    no_error(dm_volume_create(&grid, &volume, &err), &err);
    for (size_t i = 0; i < dm_grid_voxels(&grid); i++) {
        seed = seed * 1664525u + 1013904223u;
        volume->data[i] = low + (high - low) * (float)(seed >> 8) / 16777216.0f;
    }
    return volume;
}

static predict_case pet_ct_case(const channels_case *k)
{
    predict_case c = case_of(pet_ct_model(k), 1, 1, 1);
    dm_error err = {0};
    dm_volume_free(c.pet);
    dm_labels_free(c.labels);
    c.pet = stored(k, 1, 0.5f, 10);
    c.ct = stored(k, 2, -1000, 1500);
    c.voxels = dm_grid_voxels(&c.pet->grid);
    for (size_t i = 0; k->skip_air > 0 && i < c.voxels * 3 / 4; i++)
        c.pet->data[i] = 0.01f;
    for (size_t i = 0; k->nan_to_zero && i < c.voxels; i += 11)
        c.pet->data[i] = i % 2 ? NAN : INFINITY;
    int32_t *ids = calloc(c.voxels, sizeof *ids);
    assert_non_null(ids);
    for (size_t i = 0; i < c.voxels; i++)
        ids[i] = (int32_t)(i % 3);
    no_error(dm_labels_create(&c.pet->grid, ids, NULL, &c.labels, &err), &err);
    free(ids);
    c.options.overlap = k->overlap;
    c.options.nan_to_zero = k->nan_to_zero;
    if (k->skip_air > 0)
        c.options.skip_air = k->skip_air;
    return c;
}

static const channels_case cases[] = {
    {false, 7, {0}, 0, {19, 14, 23}, 0.5, 0, false},
    {true, 5, {0}, 8 * 4 + 3, {19, 14, 23}, 0.25, 0.4, false},
    {false, 13, {0}, 4, {9, 8, 17}, 0, 0, true},
    {true, 2, {4.5, 6, 3}, 0, {14, 13, 11}, 0.5, 0, true},
    {false, 3, {3.5, 5, 12}, 8 * 5 + 1, {13, 17, 31}, 0.25, 0.4, true},
    {true, 17, {5, 4, 7}, 11, {14, 13, 17}, 0.5, 0.4, false},
};
enum { CASES = sizeof cases / sizeof *cases };

static size_t skipped(const dm_prediction *p)
{
    json_t *root;
    const json_t *windows = provenance_of(p, NULL, "Windows", &root);
    size_t n = (size_t)json_integer_value(json_object_get(windows, "Skipped"));
    json_decref(root);
    return n;
}

/* The CPU's dose, and the same windows of air. */
static void test_as_the_cpu(void **state)
{
    (void)state;
    for (size_t i = 0; i < CASES; i++) {
        predict_case c = pet_ct_case(&cases[i]);
        dm_prediction *cpu = run_case_on(&c, "cpu"), *cuda = run_case_on(&c, "cuda");
        double off = relative_l2(dose_of(cuda), dose_of(cpu), c.voxels);
        if (!(off <= 1e-5))
            fail_msg("case %zu: float32 is off by %g", i, off);
        assert_int_equal(skipped(cuda), skipped(cpu));
        if ((skipped(cpu) > 0) != (cases[i].skip_air > 0))
            fail_msg("case %zu: %zu windows of air", i, skipped(cpu));
        dm_prediction_free(cuda);
        c.options.precision = DM_PRECISION_BF16;
        cuda = run_case_on(&c, "cuda");
        off = relative_l2(dose_of(cuda), dose_of(cpu), c.voxels);
        if (!(off <= 2e-2 && off > 0))
            fail_msg("case %zu: bf16 is off by %g", i, off);
        dm_prediction_free(cuda);
        dm_prediction_free(cpu);
        case_clear(&c);
    }
    assert_int_equal(emulation_list_leaks(), 0);
}

/* Both images go up, once, and nothing but the dose comes down. */
static void test_images_up_once(void **state)
{
    (void)state;
    predict_case c = pet_ct_case(&cases[0]);
    const size_t volume = c.voxels * sizeof(float), tables = 64 << 10;
    dm_predictor *predictor = NULL;
    dm_pet_info info = unit_info();
    dm_error err = {0};
    const dm_patient patient = {.pet = c.pet, .info = &info, .ct = c.ct};
    no_error(dm_predictor_create(c.model, &c.options, &predictor, &err), &err);
    for (int i = 0; i < 2; i++) { /* weights are there the second time */
        dm_prediction *p = NULL;
        emulation_reset_counters();
        no_error(dm_predictor_run(predictor, &patient, &p, &err), &err);
        dm_prediction_free(p);
    }
    const emulation_counts n = emulation_counters();
    assert_in_range(n.bytes_to_device, 2 * volume, 2 * volume + tables);
    assert_in_range(n.bytes_to_host, volume, volume + tables);
    dm_predictor_free(predictor);
    case_clear(&c);
}

/* ---- Slabs and several devices -------------------------------------------------------------- */

/* From what it takes at most down to nothing: the same bytes, until there is an error. */
static void check_shortage(const channels_case *k)
{
    predict_case c = pet_ct_case(k);
    size_t slabs = 0, fixed = 3 * c.voxels * sizeof(float);
    bool refused = false;
    c.options.batch = 16;
    emulation_reset_counters();
    dm_prediction *plenty = run_case_on(&c, "cuda");
    size_t most = emulation_counters().device_bytes_peak;
    assert_true(most > fixed);
    for (size_t per_mille = 900; per_mille > 1; per_mille = per_mille * 3 / 4) {
        dm_error err = {0};
        emulation_set_memory(most / 1000 * per_mille);
        emulation_reset_counters();
        dm_prediction *p = try_case(&c, &err);
        if (p) {
            assert_false(refused);
            assert_same_prediction(p, plenty, c.voxels);
            slabs += emulation_counters().device_bytes_peak < fixed;
        } else {
            assert_int_equal(err.status, DM_ERROR_MEMORY);
            refused = true;
        }
        dm_prediction_free(p);
        assert_int_equal(emulation_list_leaks(), 0);
    }
    assert_true(slabs > 0 && refused);
    emulation_set_memory((size_t)2 << 30);
    dm_prediction_free(plenty);
    case_clear(&c);
}

static void test_slabs(void **state)
{
    (void)state;
    check_shortage(&(channels_case){false, 3, {0}, 8 * 4 + 3, {14, 16, 150}, 0.25, 0.4, true});
    check_shortage(
        &(channels_case){true, 2, {3.5, 5, 12}, 8 * 5 + 1, {14, 16, 150}, 0.25, 0, true});
}

static void test_devices(void **state)
{
    (void)state;
    for (size_t i = 0; i < CASES; i++) {
        channels_case k = cases[i];
        k.ras[2] += 30;
        predict_case c = pet_ct_case(&k);
        c.options.batch = 5;
        dm_prediction *alone = run_case_on(&c, "cuda");
        emulation_reset_counters();
        dm_prediction *p = run_case_on(&c, "cuda:0,1");
        for (int device = 0; device < 2; device++)
            assert_true(emulation_counters_of(device).launches > 0);
        assert_same_prediction(p, alone, c.voxels);
        dm_prediction_free(p);
        dm_prediction_free(alone);
        case_clear(&c);
    }
    assert_int_equal(emulation_list_leaks(), 0);
}

/* ---- Faults --------------------------------------------------------------------------------- */

/* The transforms have no value for an uptake of -2, and none for HU below -900 without the clip. */
static dm_model *faulty_model(bool ct_first)
{
    weights_writer w;
    weights_begin(&w, "xyz", 8, 8, 8);
    weights_port(&w, "inputs", "a", 1, ct_first ? "hu" : "uptake", ct_first ? "HU" : "g/mL");
    weights_port(&w, "inputs", "b", 1, ct_first ? "uptake" : "hu", ct_first ? "g/mL" : "HU");
    set_intensity(&w, ct_first ? 1 : 0, "[{'log1p': true}]");
    set_intensity(&w, ct_first ? 0 : 1, "[{'scale': 0.001, 'offset': 0.9}, {'sqrt': true}]");
    weights_output(&w, "dose", 1);
    weights_random(&w, "w", 11, 0.3f, 5, (const size_t[]){1, 2, 3, 3, 3});
    weights_node(&w, "Concat", "join", "a b", "both", "{'axis': 1}");
    weights_node(&w, "Conv", "c", "both w -", "dose", CONV_3);
    return finish_model(&w);
}

/* The first image in the first window that has a voxel without a value, as on the CPU. */
static void test_faults(void **state)
{
    (void)state;
    static const channels_case plain = {false, 3, {0}, 11, {13, 14, 30}, 0.5, 0, false};
    static const size_t wrong[][2] = {/* voxels of PET and CT; SIZE_MAX: none */
                                      {3000, SIZE_MAX}, {SIZE_MAX, 3000}, {3000, 3001},
                                      {3001, 3000},     {100, 5000},      {5000, 100}};
    static const char *const devices[] = {"cuda", "cuda:0,1"};
    for (size_t i = 0; i < 2 * sizeof wrong / sizeof *wrong; i++) {
        predict_case c = pet_ct_case(&plain);
        dm_error cpu = {0}, cuda = {0};
        dm_model_free(c.model);
        c.model = faulty_model(i % 2);
        for (size_t v = 0; v < c.voxels; v++)
            c.ct->data[v] = fmaxf(c.ct->data[v], -800);
        if (wrong[i / 2][0] < c.voxels)
            c.pet->data[wrong[i / 2][0]] = -2;
        if (wrong[i / 2][1] < c.voxels)
            c.ct->data[wrong[i / 2][1]] = -950;
        c.options.device = "cpu";
        assert_null(try_case(&c, &cpu));
        assert_int_equal(cpu.status, DM_ERROR_VALUE);
        for (size_t d = 0; d < 2; d++) {
            c.options.device = devices[d];
            assert_null(try_case(&c, &cuda));
            assert_int_equal(cuda.status, cpu.status);
            assert_string_equal(cuda.what, cpu.what);
            assert_string_equal(cuda.remedy, cpu.remedy);
        }
        case_clear(&c);
    }
    assert_int_equal(emulation_list_leaks(), 0);
}

/* ---- The network alone ---------------------------------------------------------------------- */

enum { SIDE = 8, PATCHES = 3 };

/* Inputs of `channels` in one port or two, and outputs of every kind: as large as the input, with
 * one channel and with several; of half its size; of one voxel; an input as it is. */
static dm_model *many_outputs(size_t channels, bool two_ports)
{
    weights_writer w;
    const char *x = "x";
    weights_begin(&w, "xyz", SIDE, SIDE, SIDE);
    if (two_ports) {
        weights_port(&w, "inputs", "first", 1, "other", "1");
        weights_port(&w, "inputs", "rest", (int)channels - 1, "other", "1");
        weights_node(&w, "Concat", "join", "first rest", "both", "{'axis': 1}");
        x = "both";
    } else {
        weights_port(&w, "inputs", "x", (int)channels, "other", "1");
    }
    char reads[64];
    snprintf(reads, sizeof reads, "%s w1 b1", x);
    weights_random(&w, "w1", 21, 0.3f, 5, (const size_t[]){6, channels, 3, 3, 3});
    weights_random(&w, "b1", 22, 0.3f, 1, (const size_t[]){6});
    weights_random(&w, "w_one", 23, 0.3f, 5, (const size_t[]){1, 6, 3, 3, 3});
    weights_random(&w, "w_five", 24, 0.3f, 5, (const size_t[]){5, 6, 1, 1, 1});
    weights_random(&w, "w_half", 25, 0.3f, 5, (const size_t[]){6, 6, 2, 2, 2});
    weights_random(&w, "w_half_one", 26, 0.3f, 5, (const size_t[]){1, 6, 3, 3, 3});
    /* Sums that do not cancel: bf16 would be far off. */
    weights_random_about(&w, "w_linear", 27, 0.05f, 0.05f, 5,
                         (const size_t[]){9, 6, SIDE, SIDE, SIDE});
    weights_random_about(&w, "w_score", 28, 0.05f, 0.05f, 5, (const size_t[]){1, 9, 1, 1, 1});
    weights_node(&w, "Conv", "c1", reads, "h1", CONV_3);
    weights_node(&w, "Relu", "r1", "h1", "h", NULL);
    weights_node(&w, "Conv", "c_one", "h w_one -", "one", CONV_3);
    weights_node(&w, "Conv", "c_five", "h w_five -", "five", "{'kernel_shape': [1, 1, 1]}");
    weights_node(&w, "Conv", "c_half", "h w_half -", "half",
                 "{'kernel_shape': [2, 2, 2], 'strides': [2, 2, 2]}");
    weights_node(&w, "Conv", "c_half_one", "half w_half_one -", "half_one", CONV_3);
    weights_node(&w, "GlobalAveragePool", "mean", "h", "means", NULL);
    weights_node(&w, "Conv", "c_linear", "h w_linear -", "linear", "{'kernel_shape': [8, 8, 8]}");
    weights_node(&w, "Conv", "c_score", "linear w_score -", "score", "{'kernel_shape': [1, 1, 1]}");
    weights_port(&w, "outputs", "one", 1, "other", "1");
    weights_port(&w, "outputs", "five", 5, "other", "1");
    weights_port(&w, "outputs", "half", 6, "other", "1");
    weights_port(&w, "outputs", "half_one", 1, "other", "1");
    weights_port(&w, "outputs", "means", 6, "other", "1");
    weights_port(&w, "outputs", "linear", 9, "other", "1");
    weights_port(&w, "outputs", "score", 1, "other", "1");
    if (two_ports)
        weights_port(&w, "outputs", "rest", (int)channels - 1, "other", "1");
    return finish_model(&w);
}

static dm_patches patches(const char *name, size_t channels, uint32_t seed)
{
    dm_patches p = {
        .name = name, .count = PATCHES, .channels = channels, .size = {SIDE, SIDE, SIDE}};
    size_t n = p.count * channels * SIDE * SIDE * SIDE;
    p.data = malloc(n * sizeof *p.data);
    assert_non_null(p.data);
    for (size_t i = 0; i < n; i++) {
        seed = seed * 1664525u + 1013904223u;
        p.data[i] = (float)(seed >> 8) / 8388608.0f - 1;
    }
    return p;
}

static void check_forward(const dm_model *model, const dm_patches *inputs, size_t n_inputs,
                          dm_precision precision, double limit)
{
    dm_forward_options options;
    dm_patches *cpu = NULL, *cuda = NULL;
    size_t n = 0, n_cuda = 0;
    dm_error err = {0};
    dm_forward_options_init(&options);
    options.threads = 1;
    options.device = "cpu";
    no_error(dm_model_forward(model, inputs, n_inputs, &options, &cpu, &n, &err), &err);
    options.device = "cuda";
    options.precision = precision;
    no_error(dm_model_forward(model, inputs, n_inputs, &options, &cuda, &n_cuda, &err), &err);
    assert_int_equal(n, n_cuda);
    for (size_t o = 0; o < n; o++) {
        const dm_patches *a = &cuda[o], *b = &cpu[o];
        size_t values = b->count * b->channels * b->size[0] * b->size[1] * b->size[2];
        assert_string_equal(a->name, b->name);
        assert_int_equal(a->count, PATCHES);
        assert_int_equal(a->channels, b->channels);
        assert_memory_equal(a->size, b->size, sizeof a->size);
        double off = relative_l2(a->data, b->data, values);
        if (!(off <= limit))
            fail_msg("output '%s' from %zu channels is off by %g", a->name, inputs[0].channels,
                     off);
    }
    dm_patches_free(cpu, n);
    dm_patches_free(cuda, n);
}

static void test_forward(void **state)
{
    (void)state;
    static const size_t channels[] = {1, 2, 3, 4, 5, 7, 9, 13, 16, 17};
    for (size_t i = 0; i < sizeof channels / sizeof *channels; i++)
        for (int two = 0; two < (channels[i] > 1 ? 2 : 1); two++) {
            dm_model *model = many_outputs(channels[i], two);
            dm_patches in[2] = {patches(two ? "first" : "x", two ? 1 : channels[i], 5)};
            in[1] = patches("rest", channels[i], 6);
            in[1].channels = channels[i] - 1;
            check_forward(model, in, 1 + (size_t)two, DM_PRECISION_FLOAT32, 1e-5);
            check_forward(model, in, 1 + (size_t)two, DM_PRECISION_BF16, 2e-2);
            free(in[0].data);
            free(in[1].data);
            dm_model_free(model);
        }
    assert_int_equal(emulation_list_leaks(), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_as_the_cpu), cmocka_unit_test(test_images_up_once),
        cmocka_unit_test(test_slabs),      cmocka_unit_test(test_devices),
        cmocka_unit_test(test_faults),     cmocka_unit_test(test_forward),
    };
    emulation_set_devices(2);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
