/* SPDX-License-Identifier: Apache-2.0 */
/* Images, labels, weights and sidecars cut at every byte, with every bit flipped, with holes: each is
 * refused with the file, the fault and a remedy, or, where the format has a checksum, read as if
 * undamaged. What a format without checksums cannot notice is at least read without harm. */
#include "damage.h"

#include <ftw.h>
#include <xxhash.h>

#include "base/error.h"
#include "model/graph.h"
#include "nifti_bytes.h"
#include "small_models.h"
#include "volume/label_runs.h"

/* Which bits of each byte are flipped. The sanitizers take eight times as long. */
#if defined(__SANITIZE_ADDRESS__)
#define ALL_BITS 0x41u
#define SOME_BITS 0x10u
#else
#define ALL_BITS 0xffu
#define SOME_BITS 0x55u
#endif

static uint64_t mix(uint64_t digest, const void *bytes, size_t size)
{
    return XXH64(bytes, size, digest);
}

static int remove_entry(const char *path, const struct stat *info, int flag, struct FTW *where)
{
    (void)info, (void)flag, (void)where;
    return remove(path);
}

static void remove_folder(const char *path)
{
    nftw(path, remove_entry, 8, FTW_DEPTH | FTW_PHYS);
}

/* ---- Readers -------------------------------------------------------------------------------- */

static uint64_t digest_grid(uint64_t digest, const dm_grid *grid)
{
    digest = mix(digest, grid->dim, sizeof grid->dim);
    return mix(digest, grid->affine, sizeof grid->affine);
}

static dm_status read_image(const char *path, uint64_t *digest, dm_error *err)
{
    dm_volume *volume = NULL;
    dm_status status = dm_volume_read(path, &volume, err);
    assert_true((status == DM_OK) == (volume != NULL));
    if (volume) {
        size_t voxels = dm_grid_voxels(&volume->grid);
        assert_in_range(voxels, 1, 4096);
        *digest = mix(digest_grid(0, &volume->grid), volume->data, voxels * sizeof(float));
        for (int axis = 0; axis < 3; axis++)
            assert_true(volume->grid.spacing_mm[axis] > 0 &&
                        isfinite(volume->grid.spacing_mm[axis]));
    }
    dm_volume_free(volume);
    return status;
}

static uint64_t digest_labels(const dm_labels *labels)
{
    uint64_t digest = digest_grid(0, &labels->grid);
    size_t voxels = dm_grid_voxels(&labels->grid);
    for (size_t i = 0; i < labels->count; i++) {
        const label_structure *s = &labels->structures[i];
        assert_in_range(s->voxels, 1, voxels);
        digest = mix(digest, s->name, strlen(s->name));
        digest = mix(digest, &s->id, sizeof s->id);
        for (size_t r = 0; r < s->n_runs; r++) {
            assert_true(s->runs[r].start + s->runs[r].length <= voxels);
            digest = mix(digest, &s->runs[r].start, sizeof s->runs[r].start);
            digest = mix(digest, &s->runs[r].length, sizeof s->runs[r].length);
        }
    }
    return digest;
}

static dm_status read_labels_with(const char *path, const char *names, uint64_t *digest,
                                  dm_error *err)
{
    dm_labels *labels = NULL;
    dm_status status = dm_labels_read(path, names, &labels, err);
    assert_true((status == DM_OK) == (labels != NULL));
    if (labels)
        *digest = digest_labels(labels);
    dm_labels_free(labels);
    return status;
}

static dm_status read_labels(const char *path, uint64_t *digest, dm_error *err)
{
    return read_labels_with(path, NULL, digest, err);
}

static dm_status read_model(const char *path, uint64_t *digest, dm_error *err)
{
    dm_model *model = NULL;
    char *text = NULL;
    dm_status status = dm_model_load(path, &model, err);
    assert_true((status == DM_OK) == (model != NULL));
    if (model) {
        const char *parts[] = {dm_model_graph_json(model), dm_model_card_json(model),
                               dm_model_name(model), model->checksum};
        for (size_t i = 0; i < 4; i++)
            *digest = mix(*digest, parts[i], strlen(parts[i]));
        status = dm_model_describe(model, &(dm_describe_options){.as_json = true}, &text, err);
        dm_string_free(text);
    }
    dm_model_free(model);
    return status;
}

/* ---- Images --------------------------------------------------------------------------------- */

static nifti_spec small_spec(int version, int datatype, int bits)
{
    nifti_spec spec = nifti_spec_default(version);
    spec.datatype = datatype;
    spec.bitpix = bits;
    spec.sform_code = 1;
    for (int axis = 0; axis < 3; axis++)
        spec.srow[axis][axis] = axis + 2;
    return spec;
}

/* 3 x 1 x 5 voxels; `codec` packs them. free() the bytes. */
static uint8_t *small_image(const nifti_spec *spec, codec packing, size_t *size)
{
    char folder[64], path[128];
    uint8_t file[1024];
    double values[15];
    dm_error err = {0};
    output_file *out = NULL;
    for (int i = 0; i < 15; i++)
        values[i] = i % 4;
    size_t n = put_file(spec, values, 15, file, sizeof file);
    make_test_folder(folder);
    snprintf(path, sizeof path, "%s/image", folder);
    no_error(output_open(path, &out, &err), &err);
    no_error(codec_write(out, packing, file, 352, file + 352, n - 352, 1, &err), &err);
    no_error(output_commit(out, &err), &err);
    uint8_t *bytes = load_bytes(path, size);
    remove_folder(folder);
    return bytes;
}

static void damage_image(const char *name, const nifti_spec *spec, codec packing,
                         damage_reader reader)
{
    damage_case c = {
        .name = name, .read = reader, .protected_from = packing == CODEC_PLAIN ? SIZE_MAX : 0};
    uint8_t *bytes = small_image(spec, packing, &c.size);
    c.bytes = bytes;
    damage_all(&c, ALL_BITS);
    free(bytes);
}

static void test_plain_images(void **state)
{
    (void)state;
    nifti_spec spec = small_spec(1, 4, 16);
    damage_image("image.nii int16", &spec, CODEC_PLAIN, read_image);
    spec = small_spec(1, 16, 32);
    spec.big_endian = true;
    spec.sform_code = 0;
    spec.qform_code = 1;
    damage_image("image.nii float32, swapped", &spec, CODEC_PLAIN, read_image);
    spec = small_spec(2, 64, 64);
    spec.slope = 0.5;
    damage_image("image.nii NIfTI-2 float64", &spec, CODEC_PLAIN, read_image);
}

static void test_packed_images(void **state)
{
    (void)state;
    nifti_spec spec = small_spec(1, 4, 16);
    damage_image("image.nii.gz", &spec, CODEC_GZIP, read_image);
    damage_image("image.nii.zst", &spec, CODEC_ZSTD, read_image);
}

static void test_labels(void **state)
{
    (void)state;
    nifti_spec spec = small_spec(1, 2, 8);
    damage_image("labels.nii", &spec, CODEC_PLAIN, read_labels);
    damage_image("labels.nii.gz", &spec, CODEC_GZIP, read_labels);
}

/* Two members are one stream, and cut between them it is not whole. */
static void test_two_members(void **state)
{
    (void)state;
    nifti_spec spec = small_spec(1, 4, 16);
    size_t plain_size, size[2];
    uint64_t one, two;
    uint8_t *plain = small_image(&spec, CODEC_PLAIN, &plain_size), *part[2];
    char folder[64], path[128];
    make_test_folder(folder);
    for (int i = 0; i < 2; i++) {
        dm_error err = {0};
        output_file *out = NULL;
        const size_t middle = 360, from = i ? middle : 0, to = i ? plain_size : middle;
        snprintf(path, sizeof path, "%s/part%d", folder, i);
        no_error(output_open(path, &out, &err), &err);
        no_error(
            codec_write(out, CODEC_GZIP, plain + from, 1, plain + from + 1, to - from - 1, 1, &err),
            &err);
        no_error(output_commit(out, &err), &err);
        part[i] = load_bytes(path, &size[i]);
    }
    uint8_t *both = malloc(size[0] + size[1]);
    memcpy(both, part[0], size[0]);
    memcpy(both + size[0], part[1], size[1]);
    damage_case c = {.name = "image.nii", .bytes = plain, .size = plain_size, .read = read_image};
    assert_int_equal(damage_read(&c, plain, plain_size, "undamaged", 0, &one), DM_OK);
    c = (damage_case){.name = "image.nii.gz, two members",
                      .bytes = both,
                      .size = size[0] + size[1],
                      .read = read_image};
    two = damage_all(&c, ALL_BITS);
    assert_true(one == two);
    remove_folder(folder);
    free(part[0]);
    free(part[1]);
    free(both);
    free(plain);
}

/* ---- Weights -------------------------------------------------------------------------------- */

static void begin_tiny(weights_writer *w)
{
    weights_begin(w, "xyz", 8, 8, 8);
    weights_input(w, "pet", 1);
    weights_output(w, "dose", 1);
    weights_random(w, "w", 3, 0.3f, 5, (const size_t[]){1, 1, 1, 1, 1});
    weights_node(w, "Conv", "c", "pet w -", "h", "{'kernel_shape': [1, 1, 1]}");
    weights_node(w, "Relu", "r", "h", "dose", NULL);
}

static void test_plain_weights(void **state)
{
    (void)state;
    weights_writer w;
    begin_tiny(&w);
    damage_case c = {.name = "weights.safetensors", .read = read_model};
    uint8_t *image = weights_image(&w, NULL, &c.size);
    c.bytes = image;
    c.protected_from = c.size - w.data_size;
    damage_all(&c, SOME_BITS);
    free(image);
    weights_end(&w);
}

static void test_packed_weights(void **state)
{
    (void)state;
    char folder[64], path[128];
    weights_writer w;
    dm_error err = {0};
    make_test_folder(folder);
    snprintf(path, sizeof path, "%s/w.safetensors.zst", folder);
    begin_tiny(&w);
    no_error(weights_save(&w, path, &err), &err);
    damage_case c = {.name = "weights.safetensors.zst", .read = read_model};
    uint8_t *bytes = load_bytes(path, &c.size);
    c.bytes = bytes;
    damage_all(&c, ALL_BITS);
    free(bytes);
    weights_end(&w);
    remove_folder(folder);
}

/* ---- The graph inside the weights ----------------------------------------------------------- */

static weights_writer *graph_carrier; /* what read_graph puts its text into */

/* The bytes at `path` become the graph of a weights file that is otherwise whole. */
static dm_status read_graph(const char *path, uint64_t *digest, dm_error *err)
{
    size_t size;
    uint8_t *text = load_bytes(path, &size);
    text[size] = '\0';
    json_t *value = memchr(text, 0, size) ? NULL : json_stringn((const char *)text, size);
    dm_model *model = NULL;
    dm_status status;
    *digest = 0;
    if (!value) { /* a container cannot hold it: not UTF-8, or a NUL */
        free(text);
        return error_set(err, DM_ERROR_FORMAT, path, "a container with it cannot be written",
                         "not a text");
    }
    json_object_set_new(graph_carrier->metadata, "dosemap.graph", value);
    status = weights_load(graph_carrier, &model, err);
    assert_true((status == DM_OK) == (model != NULL));
    if (model) {
        dm_predictor *predictor = NULL;
        dm_predict_options options = plain_options();
        status = dm_predictor_create(model, &options, &predictor, err);
        dm_predictor_free(predictor);
    }
    dm_model_free(model);
    free(text);
    if (status != DM_OK) /* its file has a name of its own */
        snprintf(err->where, sizeof err->where, "%s", path);
    return status;
}

static void test_graph(void **state)
{
    (void)state;
    weights_writer w;
    begin_tiny(&w);
    graph_carrier = &w;
    char *text = json_dumps(w.graph, JSON_COMPACT);
    damage_case c = {.name = "graph",
                     .bytes = (const uint8_t *)text,
                     .size = strlen(text),
                     .read = read_graph,
                     .protected_from = SIZE_MAX};
    damage_all(&c, SOME_BITS);
    free(text);
    weights_end(&w);
}

/* Every number of the graph with every other digit, and with digits to spare. What is accepted is
 * run. */
static void test_numbers_of_the_graph(void **state)
{
    (void)state;
    static const char *const instead[] = {"0", "1",  "2",    "3",          "7",
                                          "9", "-1", "1e99", "4294967297", "9223372036854775807"};
    weights_writer w;
    begin_tiny(&w);
    dm_volume *pet = make_pet(9, 8, 7);
    dm_pet_info info = unit_info();
    char *text = json_dumps(w.graph, JSON_COMPACT);
    size_t tried = 0, loaded = 0, ran = 0;
    for (char *at = text; *at; at++) {
        bool starts = at[0] >= '0' && at[0] <= '9' &&
                      (at[-1] == ':' || at[-1] == '[' || at[-1] == ',' || at[-1] == '-');
        for (size_t i = 0; starts && i < sizeof instead / sizeof *instead; i++) {
            char *changed = NULL;
            dm_model *model = NULL;
            dm_predictor *predictor = NULL;
            dm_prediction *prediction = NULL;
            dm_predict_options options = plain_options();
            dm_error err = {0};
            size_t digits = strspn(at, "0123456789.eE+-");
            assert_true(asprintf(&changed, "%.*s%s%s", (int)(at - text), text, instead[i],
                                 at + digits) > 0);
            weights_metadata(&w, "dosemap.graph", changed);
            dm_status status = weights_load(&w, &model, &err);
            tried++;
            loaded += status == DM_OK;
            if (status == DM_OK)
                status = dm_predictor_create(model, &options, &predictor, &err);
            if (status == DM_OK)
                status = dm_predictor_run(predictor, &(dm_patient){.pet = pet, .info = &info},
                                          &prediction, &err);
            ran += status == DM_OK;
            if (status == DM_OK && !dm_volume_all_finite(dm_prediction_dose(prediction), NULL))
                fail_msg("a dose that is not finite from %s", changed);
            if (status != DM_OK && (!err.what[0] || !err.remedy[0]))
                fail_msg("%s: \"%s\" \"%s\"", changed, err.what, err.remedy);
            dm_prediction_free(prediction);
            dm_predictor_free(predictor);
            dm_model_free(model);
            free(changed);
        }
    }
    printf("graph with other numbers: %zu tried, %zu loaded, %zu ran\n", tried, loaded, ran);
    assert_in_range(ran, 1, tried - 1);
    dm_volume_free(pet);
    free(text);
    weights_end(&w);
}

/* ---- Text files ----------------------------------------------------------------------------- */

static char sidecar_folder[64];

/* `path` is the sidecar; the PET itself is never opened. */
static dm_status read_sidecar(const char *path, uint64_t *digest, dm_error *err)
{
    char pet[128];
    double factor = NAN;
    dm_pet_info info;
    (void)path;
    snprintf(pet, sizeof pet, "%s/p_pet.nii.gz", sidecar_folder);
    dm_status status = dm_pet_info_read(pet, &info, err);
    if (status == DM_OK)
        status = dm_pet_factor(&info, DM_QUANTITY_UPTAKE, &factor, err);
    if (status == DM_OK)
        assert_true(factor > 0 && isfinite(factor));
    *digest = mix(0, &factor, sizeof factor);
    return status;
}

static void test_sidecar(void **state)
{
    (void)state;
    static const char text[] =
        "{\"Units\": \"Bq/mL\", \"BodyWeight\": 80.5, \"InjectedRadioactivity\": 150,\n"
        " \"InjectedRadioactivityUnits\": \"MBq\", \"TracerRadionuclide\": \"Ga68\",\n"
        " \"TimeZero\": \"10:00:00\", \"InjectionStart\": 0, \"ScanStart\": 3600,\n"
        " \"DecayCorrection\": \"START\"}\n";
    char path[128];
    make_test_folder(sidecar_folder);
    snprintf(path, sizeof path, "%s/p_pet.json", sidecar_folder);
    damage_case c = {.name = "p_pet.json",
                     .bytes = (const uint8_t *)text,
                     .size = sizeof text - 1,
                     .read = read_sidecar,
                     .path = path,
                     .protected_from = SIZE_MAX,
                     .dispensable = 1};
    damage_all(&c, ALL_BITS);
    remove_folder(sidecar_folder);
}

static char label_path[128];

static dm_status read_names(const char *path, uint64_t *digest, dm_error *err)
{
    return read_labels_with(label_path, path, digest, err);
}

static void test_label_names(void **state)
{
    (void)state;
    static const char json[] = "{\"1\": \"liver\", \"2\": \"kidney left\", \"3\": \"spleen\"}\n";
    static const char tsv[] = "index\tname\n1\tliver\n2\tkidney left\n3\tspleen\n";
    char folder[64], path[128];
    size_t size;
    nifti_spec spec = small_spec(1, 2, 8);
    uint8_t *bytes = small_image(&spec, CODEC_PLAIN, &size);
    make_test_folder(folder);
    snprintf(label_path, sizeof label_path, "%s/l.nii", folder);
    save_bytes(label_path, bytes, size);
    snprintf(path, sizeof path, "%s/names.json", folder);
    damage_case c = {.name = "names.json",
                     .bytes = (const uint8_t *)json,
                     .size = sizeof json - 1,
                     .read = read_names,
                     .path = path,
                     .protected_from = SIZE_MAX,
                     .dispensable = 1};
    damage_all(&c, ALL_BITS);
    char tsv_path[128];
    snprintf(tsv_path, sizeof tsv_path, "%s/names.tsv", folder);
    c.name = "names.tsv";
    c.bytes = (const uint8_t *)tsv;
    c.size = sizeof tsv - 1;
    c.path = tsv_path;
    c.may_be_cut = true;
    damage_all(&c, ALL_BITS);
    free(bytes);
    remove_folder(folder);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_plain_images),  cmocka_unit_test(test_packed_images),
        cmocka_unit_test(test_labels),        cmocka_unit_test(test_two_members),
        cmocka_unit_test(test_plain_weights), cmocka_unit_test(test_packed_weights),
        cmocka_unit_test(test_graph),         cmocka_unit_test(test_numbers_of_the_graph),
        cmocka_unit_test(test_sidecar),       cmocka_unit_test(test_label_names),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
