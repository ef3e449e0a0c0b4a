/* SPDX-License-Identifier: Apache-2.0 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>
#include <xxhash.h>

#include "fault_scenarios.h"
#include "nifti_bytes.h"
#include "small_models.h"

int dosemap_main(int argc, char **argv); /* host/cli/main.c */

/* ---- Inputs --------------------------------------------------------------------------------- */

static void save_text(const char *path, const char *text)
{
    FILE *file = fopen(path, "w");
    if (!file || fputs(text, file) < 0 || fclose(file) != 0)
        abort();
}

static void save_ids(const dm_grid *grid, const char *path, float first, float second)
{
    dm_error err = {0};
    dm_volume *ids = NULL;
    no_error(dm_volume_create(grid, &ids, &err), &err);
    for (size_t i = 0; i < dm_grid_voxels(grid); i++)
        ids->data[i] = i % 7 == 2 ? first : i % 7 == 4 ? second : 0;
    no_error(dm_volume_write(ids, path, 1, &err), &err);
    dm_volume_free(ids);
}

/* A network with each kind of step that allocates: convolutions both ways, a norm, a join. */
static void save_model(const char *path, bool resampled)
{
    weights_writer w;
    dm_error err = {0};
    const float scale[4] = {1, 1, 1, 1}, shift[4] = {0};
    begin_strided(&w, 8, false);
    json_array_clear(json_object_get(w.graph, "nodes"));
    weights_values(&w, "scale", 1, (const size_t[]){4}, scale);
    weights_values(&w, "shift", 1, (const size_t[]){4}, shift);
    weights_random(&w, "w3", 23, 0.3f, 5, (const size_t[]){1, 2, 3, 3, 3});
    weights_random(&w, "b3", 24, 0.3f, 1, (const size_t[]){1});
    weights_node(&w, "Conv", "down", "pet w1 -", "h1",
                 "{'kernel_shape': [2, 2, 2], 'strides': [2, 2, 2]}");
    weights_node(&w, "InstanceNormalization", "norm", "h1 scale shift", "h2", NULL);
    weights_node(&w, "LeakyRelu", "relu", "h2", "h3", "{'alpha': 0.2}");
    weights_node(&w, "ConvTranspose", "up", "h3 w2 -", "h4",
                 "{'kernel_shape': [2, 2, 2], 'strides': [2, 2, 2]}");
    weights_node(&w, "Concat", "join", "h4 pet", "h5", "{'axis': 1}");
    weights_node(&w, "Conv", "last", "h5 w3 b3", "dose", CONV_3);
    if (resampled) {
        json_object_set_new(w.graph, "voxel_size_mm", json_pack("[i,i,i]", 5, 6, 7));
        json_object_set_new(w.graph, "orientation", json_string("LPS"));
    }
    no_error(weights_save(&w, path, &err), &err);
    weights_end(&w);
}

/* A network from PET and CT with another output that nobody asks for. */
static void save_ct_model(const char *path)
{
    weights_writer w;
    dm_error err = {0};
    weights_begin(&w, "xyz", 8, 8, 8);
    weights_input(&w, "pet", 1);
    weights_port(&w, "inputs", "ct", 1, "hu", "HU");
    weights_output(&w, "dose", 1);
    weights_port(&w, "outputs", "features", 3, "other", "1");
    weights_random(&w, "w1", 31, 0.01f, 5, (const size_t[]){3, 2, 3, 3, 3});
    weights_random(&w, "w2", 32, 0.3f, 5, (const size_t[]){1, 3, 1, 1, 1});
    weights_node(&w, "Concat", "join", "pet ct", "both", "{'axis': 1}");
    weights_node(&w, "Conv", "c1", "both w1 -", "h1", CONV_3);
    weights_node(&w, "Relu", "r1", "h1", "features", NULL);
    weights_node(&w, "Conv", "c2", "features w2 -", "dose", "{'kernel_shape': [1, 1, 1]}");
    no_error(weights_save(&w, path, &err), &err);
    weights_end(&w);
}

/* Patches for that network. */
static void save_patches(const char *path)
{
    weights_writer w;
    dm_error err = {0};
    weights_begin(&w, "xyz", 8, 8, 8);
    weights_random(&w, "ct", 41, 1, 5, (const size_t[]){3, 1, 8, 9, 10});
    weights_random(&w, "pet", 42, 1, 5, (const size_t[]){3, 1, 8, 9, 10});
    no_error(weights_save(&w, path, &err), &err);
    weights_end(&w);
}

/* Finer than the PET, and with a voxel that is no number. */
static void save_ct(const char *path)
{
    const size_t dim[3] = {30, 25, 20};
    dm_grid grid = oriented_grid(7, dim, (const double[]){1.7, 1.7, 2.4});
    dm_error err = {0};
    dm_volume *ct = NULL;
    no_error(dm_volume_create(&grid, &ct, &err), &err);
    for (size_t i = 0; i < dm_grid_voxels(&grid); i++)
        ct->data[i] = (float)(i % 1500) - 1000;
    ct->data[77] = NAN;
    no_error(dm_volume_write(ct, path, 1, &err), &err);
    dm_volume_free(ct);
}

void scenarios_make_inputs(void)
{
    dm_error err = {0};
    dm_volume *pet = make_pet(12, 10, 9), *coarse = make_pet(6, 5, 5);
    static const char *const folders[] = {"in", "in/masks", "out", "log"};
    for (size_t i = 0; i < 4; i++)
        if (mkdir(folders[i], 0777) != 0)
            abort();
    no_error(dm_volume_write(pet, "in/pet.nii.gz", 1, &err), &err);
    no_error(dm_volume_write(pet, "in/other.nii.zst", 1, &err), &err);
    static const char sidecar[] =
        "{\"Units\": \"Bq/mL\", \"BodyWeight\": 70.5, \"InjectedRadioactivity\": 150.0, "
        "\"InjectedRadioactivityUnits\": \"MBq\", \"TracerRadionuclide\": \"Ga68\", "
        "\"TracerName\": \"PSMA-11\", \"TimeZero\": \"10:00:00\", \"InjectionStart\": 0, "
        "\"ScanStart\": 3600, \"ImageDecayCorrected\": true, \"ImageDecayCorrectionTime\": 3600}";
    save_text("in/pet.json", sidecar);
    save_text("in/other.json", sidecar);
    save_ids(&pet->grid, "in/labels.nii.gz", 3, 9);
    save_text("in/labels.tsv", "index\tname\n3\tkidney\n9\tparotid gland\n");
    save_text("in/names.json", "{\"3\": \"kidney\", \"9\": \"parotid gland\"}");
    save_ids(&coarse->grid, "in/masks/liver.nii.gz", 1, 0);
    save_ids(&coarse->grid, "in/masks/spleen.nii", 0, 1);
    save_model("in/exact.safetensors.zst", false);
    save_model("in/resampled.safetensors.zst", true);
    save_ct_model("in/ct.safetensors.zst");
    save_ct("in/ct.nii.gz");
    save_patches("in/patches.safetensors");
    dm_volume_free(pet);
    dm_volume_free(coarse);
}

/* ---- By the library ------------------------------------------------------------------------- */

typedef struct job {
    const char *pet, *model, *labels, *output;
    bool resample_labels;
    unsigned threads;
    size_t tile;
    const char *ct;
} job;

static void finish(scenario_outcome *outcome, dm_status status, const dm_error *err)
{
    outcome->done = status == DM_OK;
    outcome->status = status;
    if (!outcome->done) {
        snprintf(outcome->where, sizeof outcome->where, "%s", err->where);
        dm_error_text(err, outcome->text, sizeof outcome->text);
        if (err->status != status) {
            fprintf(stderr, "status %d, but %d in the dm_error\n", (int)status, (int)err->status);
            abort();
        }
    }
}

static void add_text(scenario_outcome *outcome, const char *text)
{
    if (text)
        outcome->text_hash = XXH64(text, strlen(text), outcome->text_hash);
}

static dm_status read_structures(const job *j, const dm_volume *pet, dm_labels **labels,
                                 dm_error *err)
{
    dm_status status = dm_labels_read(j->labels, NULL, labels, err);
    if (status != DM_OK || !j->resample_labels)
        return status;
    dm_labels *stored = *labels;
    status = dm_labels_resample(stored, &pet->grid, labels, err);
    dm_labels_free(stored);
    return status;
}

static dm_status read_ct(const job *j, const dm_volume *pet, dm_volume **ct, dm_ct_info *info,
                         dm_error *err)
{
    const dm_ct_options options = {.nan_to_air = true};
    dm_volume *stored = NULL;
    dm_status status = dm_volume_read(j->ct, &stored, err);
    if (status == DM_OK)
        status = dm_ct_onto_pet(stored, pet, &options, ct, info, err);
    dm_volume_free(stored);
    return status;
}

static void run_job(const job *j, scenario_outcome *outcome)
{
    static const double v[] = {1, 5};
    dm_error err = {0};
    dm_volume *pet = NULL, *ct = NULL;
    dm_ct_info ct_info;
    dm_labels *labels = NULL;
    dm_model *model = NULL;
    dm_predictor *predictor = NULL;
    dm_prediction *prediction = NULL;
    dm_pet_info info;
    dm_predict_options options = plain_options();
    options.threads = j->threads;
    options.activity_gbq = 7.4;
    options.v_thresholds = v;
    options.n_v_thresholds = 2;
    options.force_tile = true;
    for (int a = 0; a < 3; a++)
        options.tile[a] = j->tile;
    dm_status status = dm_volume_read(j->pet, &pet, &err);
    if (status == DM_OK)
        status = dm_pet_info_read(j->pet, &info, &err);
    if (status == DM_OK && j->ct)
        status = read_ct(j, pet, &ct, &ct_info, &err);
    if (status == DM_OK && j->labels)
        status = read_structures(j, pet, &labels, &err);
    if (status == DM_OK)
        status = dm_model_load(j->model, &model, &err);
    if (status == DM_OK)
        status = dm_predictor_create(model, &options, &predictor, &err);
    if (status == DM_OK)
        status = dm_predictor_run(
            predictor,
            &(dm_patient){
                .pet = pet, .info = &info, .ct = ct, .ct_info = &ct_info, .labels = labels},
            &prediction, &err);
    if (status == DM_OK) {
        const dm_sources sources = {.pet_path = j->pet,
                                    .ct_path = j->ct,
                                    .labels_path = j->labels,
                                    .command_line = "a test"};
        status = dm_prediction_write(prediction, j->output, &sources, j->threads, &err);
    }
    finish(outcome, status, &err);
    dm_prediction_free(prediction);
    dm_predictor_free(predictor);
    dm_model_free(model);
    dm_labels_free(labels);
    dm_volume_free(ct);
    dm_volume_free(pet);
}

static void run_exact(scenario_outcome *outcome)
{
    run_job(&(job){"in/pet.nii.gz", "in/exact.safetensors.zst", "in/labels.nii.gz",
                   "out/dose.nii.gz", false, 1, 0, NULL},
            outcome);
}

static void run_resampled(scenario_outcome *outcome)
{
    run_job(&(job){"in/other.nii.zst", "in/resampled.safetensors.zst", "in/masks",
                   "out/dose.nii.zst", true, 2, DM_TILE_WHOLE, NULL},
            outcome);
}

static void run_without_labels(scenario_outcome *outcome)
{
    run_job(&(job){"in/pet.nii.gz", "in/resampled.safetensors.zst", NULL, "out/dose.nii.gz", false,
                   2, 0, NULL},
            outcome);
}

static void run_with_ct(scenario_outcome *outcome)
{
    run_job(&(job){"in/pet.nii.gz", "in/ct.safetensors.zst", NULL, "out/dose.nii", false, 2, 0,
                   "in/ct.nii.gz"},
            outcome);
}

static void run_dvh(scenario_outcome *outcome)
{
    static const double v[] = {2};
    const dm_dvh_options options = {.v_thresholds = v, .n_v_thresholds = 1, .threads = 2};
    dm_error err = {0};
    dm_volume *dose = NULL;
    dm_labels *labels = NULL;
    dm_dvh *dvh = NULL;
    char *json = NULL;
    dm_status status = dm_volume_read("in/pet.nii.gz", &dose, &err);
    if (status == DM_OK)
        status = dm_labels_read("in/labels.nii.gz", "in/names.json", &labels, &err);
    if (status == DM_OK)
        status = dm_dvh_compute(dose, labels, &options, &dvh, &err);
    if (status == DM_OK)
        status = dm_dvh_json(dvh, &json, &err);
    add_text(outcome, json);
    if (status == DM_OK)
        status = dm_dvh_write_curves(dvh, "out/dose_dvh.tsv", &err);
    if (status == DM_OK)
        status = dm_dvh_write_organs(dvh, "out/dose_organs.tsv", &err);
    finish(outcome, status, &err);
    dm_string_free(json);
    dm_dvh_free(dvh);
    dm_labels_free(labels);
    dm_volume_free(dose);
}

/* From ids with a table of names, and from masks, one of which gets another name. */
static void run_labels_in_memory(scenario_outcome *outcome)
{
    static const dm_grid grid = {.dim = {3, 2, 1}, .affine = {{1}, {0, 1}, {0, 0, 1}}};
    static const int32_t ids[6] = {3, 3, 0, 9, 5, 5};
    static const uint8_t mask[6] = {1, 0, 1, 1, 1, 0};
    dm_error err = {0};
    dm_labels *labels = NULL, *masks = NULL;
    dm_status status = dm_labels_create(&grid, ids, "in/names.json", &labels, &err);
    if (status == DM_OK)
        status = dm_labels_create_masks(&grid, 2, (const char *const[]){"a", "b"},
                                        (const uint8_t *const[]){mask, mask}, &masks, &err);
    if (status == DM_OK) {
        status = dm_labels_rename(masks, 2, "kidney", &err);
        add_text(outcome, dm_labels_name(masks, 1)); /* its old name after a failure */
    }
    for (size_t s = 0; labels && s < dm_labels_count(labels); s++)
        add_text(outcome, dm_labels_name(labels, s));
    finish(outcome, status, &err);
    dm_labels_free(labels);
    dm_labels_free(masks);
}

static void run_describe(scenario_outcome *outcome)
{
    dm_error err = {0};
    dm_model *model = NULL;
    dm_status status = dm_model_load("in/exact.safetensors.zst", &model, &err);
    for (int as_json = 0; status == DM_OK && as_json < 2; as_json++) {
        char *text = NULL;
        status = dm_model_describe(model, &(dm_describe_options){.as_json = as_json}, &text, &err);
        add_text(outcome, text);
        dm_string_free(text);
    }
    finish(outcome, status, &err);
    dm_model_free(model);
}

static void run_forward(scenario_outcome *outcome)
{
    static float values[2 * 8 * 8 * 8];
    const dm_patches inputs[] = {{"pet", 2, 1, {8, 8, 8}, values}, {"ct", 2, 1, {8, 8, 8}, values}};
    dm_error err = {0};
    dm_model *model = NULL;
    dm_patches *outputs = NULL;
    dm_forward_options options;
    size_t n = 0;
    dm_forward_options_init(&options);
    options.device = "cpu";
    options.threads = 2;
    dm_status status = dm_model_load("in/ct.safetensors.zst", &model, &err);
    if (status == DM_OK)
        status = dm_model_forward(model, inputs, 2, &options, &outputs, &n, &err);
    for (size_t o = 0; o < n; o++)
        outcome->text_hash =
            XXH64(outputs[o].data, outputs[o].count * outputs[o].channels * 8 * 8 * 8 * 4,
                  outcome->text_hash);
    if (status == DM_OK)
        status = dm_model_forward_file(model, "in/patches.safetensors", "out/patches.safetensors",
                                       &options, &err);
    finish(outcome, status, &err);
    dm_patches_free(outputs, n);
    dm_model_free(model);
}

static void run_doctor(scenario_outcome *outcome)
{
    dm_error err = {0};
    dm_status status = DM_OK;
    for (int as_json = 0; status == DM_OK && as_json < 2; as_json++) {
        char *text = NULL;
        status = dm_doctor(as_json, &text, &err);
        add_text(outcome, text);
        dm_string_free(text);
    }
    finish(outcome, status, &err);
}

/* ---- By the command line -------------------------------------------------------------------- */

static int redirect(int fd, const char *path)
{
    int kept = dup(fd), file = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
    if (kept < 0 || file < 0 || dup2(file, fd) < 0)
        abort();
    close(file);
    return kept;
}

static void restore(int fd, int kept)
{
    dup2(kept, fd);
    close(kept);
}

static int captured_out, captured_err;

void scenario_capture(void)
{
    fflush(NULL);
    captured_out = redirect(STDOUT_FILENO, "log/stdout");
    captured_err = redirect(STDERR_FILENO, "log/stderr");
}

void scenario_release(scenario_outcome *outcome)
{
    size_t size;
    fflush(NULL);
    restore(STDOUT_FILENO, captured_out);
    restore(STDERR_FILENO, captured_err);
    char *text = (char *)load_bytes("log/stderr", &size);
    snprintf(outcome->text, sizeof outcome->text, "%.*s", (int)size, text);
    for (char *c = outcome->text; *c; c++)
        if (*c == '\n')
            *c = ' ';
    free(text);
    text = (char *)load_bytes("log/stdout", &size);
    outcome->text_hash = XXH64(text, size, 0);
    free(text);
}

static jmp_buf command_end;
static bool in_command;

void __lsan_disable(void) __attribute__((weak));
void __lsan_enable(void) __attribute__((weak));

/* A command that ends the program comes back to run_command. */
__attribute__((visibility("default"))) _Noreturn void _exit(int status)
{
    if (in_command)
        longjmp(command_end, 1);
    syscall(SYS_exit_group, status);
    __builtin_unreachable();
}

/* `line`: the arguments, separated by spaces. */
static void run_command(const char *line, scenario_outcome *outcome)
{
    char words[512], *argv[32] = {0}, *rest = NULL;
    int argc = 0;
    snprintf(words, sizeof words, "%s", line);
    for (char *word = strtok_r(words, " ", &rest); word; word = strtok_r(NULL, " ", &rest))
        argv[argc++] = word;
    clearerr(stdout);
    /* What a program that ends leaves in memory is no leak; what it loses before is counted. */
    if (__lsan_disable)
        __lsan_disable();
    in_command = true;
    if (setjmp(command_end) == 0)
        outcome->done = dosemap_main(argc, argv) == 0;
    else
        outcome->ended = true;
    in_command = false;
    if (__lsan_enable)
        __lsan_enable();
}

static void run_predict_command(scenario_outcome *outcome)
{
    run_command("dosemap predict in/pet.nii.gz -o out/dose.nii.gz --model "
                "in/exact.safetensors.zst --labels in/labels.nii.gz --activity 7.4 --vx 1,5 "
                "--threads 1 --precision float32",
                outcome);
}

static void run_cohort_command(scenario_outcome *outcome)
{
    run_command("dosemap predict in/pet.nii.gz in/other.nii.zst --out-dir out/cohort/doses --model "
                "in/resampled.safetensors.zst --label-names in/names.json --labels "
                "in/labels.nii.gz --labels in/labels.nii.gz --resample-labels --tile whole "
                "--force-tile --threads 2 --precision float32",
                outcome);
}

static void run_folder_command(scenario_outcome *outcome)
{
    run_command("dosemap predict in/other.nii.zst --out-dir out/one/doses --model "
                "in/resampled.safetensors.zst --label-names in/names.json --labels "
                "in/labels.nii.gz --resample-labels --tile whole --force-tile --threads 2 "
                "--precision float32",
                outcome);
}

static void run_ct_command(scenario_outcome *outcome)
{
    run_command("dosemap predict in/pet.nii.gz in/other.nii.zst --out-dir out/ct --model "
                "in/ct.safetensors.zst --ct in/ct.nii.gz --ct in/ct.nii.gz --nan-to-zero "
                "--threads 2 --precision float32",
                outcome);
}

static void run_resume_command(scenario_outcome *outcome)
{
    run_command("dosemap predict in/pet.nii.gz -o out/dose.nii.gz --model "
                "in/exact.safetensors.zst --labels in/labels.nii.gz --activity 7.4 --vx 1,5 "
                "--threads 1 --precision float32 --resume",
                outcome);
}

/* The map's sidecar says that it is in Gy/GBq. */
static void run_predict_before_dvh(scenario_outcome *outcome)
{
    run_command("dosemap predict in/pet.nii.gz -o out/dose.nii.gz --model "
                "in/exact.safetensors.zst --threads 1 --precision float32",
                outcome);
}

static void run_dvh_command(scenario_outcome *outcome)
{
    run_command("dosemap dvh out/dose.nii.gz --labels in/masks --resample-labels -o out/dose "
                "--vx 1,5 --threads 2",
                outcome);
}

static void run_dvh_json_command(scenario_outcome *outcome)
{
    run_command("dosemap dvh out/dose.nii.gz --labels in/labels.nii.gz --json", outcome);
}

static void run_inspect_command(scenario_outcome *outcome)
{
    run_command("dosemap inspect in/resampled.safetensors.zst --json", outcome);
}

static void run_forward_command(scenario_outcome *outcome)
{
    run_command("dosemap forward in/ct.safetensors.zst in/patches.safetensors -o "
                "out/patches.safetensors --threads 2 --device cpu",
                outcome);
}

static void run_doctor_command(scenario_outcome *outcome)
{
    run_command("dosemap doctor", outcome);
}

const scenario scenarios[] = {
    {"predict", run_exact, .all_or_nothing = true},
    {"predict on another grid, 2 threads", run_resampled, .all_or_nothing = true},
    {"predict again over earlier files", run_exact, run_exact, .all_or_nothing = true},
    {"predict without labels over earlier tables", run_without_labels, run_exact,
     .all_or_nothing = true},
    {"predict with a CT", run_with_ct, .all_or_nothing = true},
    {"DVH", .run = run_dvh},
    {"DVH over earlier tables", .run = run_dvh, .run_before = run_dvh},
    {"labels in memory", .run = run_labels_in_memory},
    {"describe", .run = run_describe},
    {"forward", run_forward, .all_or_nothing = true},
    {"doctor", run_doctor, .reports_files = true},
    {"dosemap predict", .run = run_predict_command, .command_line = true},
    {"dosemap predict --out-dir", run_folder_command, .command_line = true},
    {"dosemap predict, two PETs", run_cohort_command, .command_line = true, .files_only = true},
    {"dosemap predict --ct, two PETs", run_ct_command, .command_line = true, .files_only = true},
    {"dosemap predict --resume", run_resume_command, run_resume_command, .command_line = true,
     .may_do_again = true},
    {"dosemap dvh", run_dvh_command, run_predict_before_dvh, .command_line = true},
    {"dosemap dvh --json", run_dvh_json_command, run_predict_before_dvh, .command_line = true},
    {"dosemap inspect", run_inspect_command, .command_line = true},
    {"dosemap forward", run_forward_command, .command_line = true},
    {"dosemap doctor", run_doctor_command, .command_line = true, .reports_files = true},
    {0}};
