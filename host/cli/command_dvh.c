/* SPDX-License-Identifier: Apache-2.0 */
/* dosemap dvh: a dose map and labels to DVHs and an organ table. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cli/commands.h"
#include "cli/dose_sidecar.h"
#include "cli/number_list.h"
#include "cli/terminal.h"
#include "dosemap.h"

typedef struct dvh_args {
    const char *output, *label_names, *vx;
    string_list labels;
    unsigned threads;
    bool per_activity, resample_labels, json, quiet;
} dvh_args;

#define FIELD(name) offsetof(dvh_args, name)

/* clang-format off */
static const option_spec dvh_options[] = {
    {"labels", 'l', OPTION_FILE_LIST, FIELD(labels), "FILE|DIR", "structures: one multi-label file, or a folder with a mask per structure", 0, 0, NULL},
    {"label-names", 0, OPTION_FILE, FIELD(label_names), "FILE", "JSON or TSV with the names of the ids, or totalsegmentator:total, totalsegmentator:head_glands_cavities", 0, 0, NULL},
    {"resample-labels", 0, OPTION_FLAG, FIELD(resample_labels), NULL, "bring labels from another grid onto the dose map's by nearest neighbour", 0, 0, NULL},
    {"output", 'o', OPTION_FILE, FIELD(output), "PREFIX", "write PREFIX_dvh.tsv and PREFIX_organs.tsv (default: print the organ table)", 0, 0, NULL},
    {"vx", 0, OPTION_STRING, FIELD(vx), "D[,D...]", "also report the volume that receives at least D", 0, 0, NULL},
    {"per-activity", 0, OPTION_FLAG, FIELD(per_activity), NULL, "the map is in Gy/GBq instead of Gy (default: what the map's sidecar says, then Gy)", 0, 0, NULL},
    {"threads", 0, OPTION_COUNT, FIELD(threads), "N", "CPU threads (default: OMP_NUM_THREADS, then all cores)", 1, 4096, NULL},
    {"json", 0, OPTION_FLAG, FIELD(json), NULL, "print the organ table as JSON", 0, 0, NULL},
    {"quiet", 'q', OPTION_FLAG, FIELD(quiet), NULL, "errors only", 0, 0, NULL},
    {0}};
/* clang-format on */

static int run(int argc, char **argv);

const command command_dvh = {"dvh",
                             "DOSE --labels FILE|DIR [options]",
                             "dose map and labels to DVHs and an organ table",
                             NULL,
                             dvh_options,
                             run};

/* Four digits, the last ones 0 or not. */
static void print_figure(double value)
{
    static const double steps[] = {1000, 100, 10, 1, 0.1, 0.01};
    const double size = fabs(value);
    int decimals = 0;
    while (size > 0 && decimals < 6 && size < steps[decimals])
        decimals++;
    if (!isfinite(value))
        printf(" %10s", "n/a");
    else if (size > 0 && (size < 1e-3 || size >= 1e6))
        printf(" %10.3e", value);
    else
        printf(" %10.*f", decimals, value);
}

static void print_table(const dm_dvh *dvh, const dm_dvh_options *options)
{
    printf("%-24s %8s %10s %10s %10s %10s %10s", "structure", "voxels", "cm3", "mean", "D2", "D50",
           "D98");
    for (size_t v = 0; v < options->n_v_thresholds; v++) {
        char title[32];
        snprintf(title, sizeof title, "V%g (%%)", options->v_thresholds[v]);
        printf(" %10s", title);
    }
    printf("  (%s)\n", options->per_activity ? "Gy/GBq" : "Gy");
    for (size_t i = 0; i < dm_dvh_count(dvh); i++) {
        const dm_structure_dose *s = dm_dvh_structure(dvh, i);
        const double figures[] = {s->volume_cm3, s->mean, s->d2, s->d50, s->d98};
        printf("%-24s %8zu", s->name, s->voxels);
        for (size_t f = 0; f < sizeof figures / sizeof *figures; f++)
            print_figure(figures[f]);
        for (size_t v = 0; v < options->n_v_thresholds; v++)
            print_figure(s->v_percent[v]);
        putchar('\n');
    }
}

static dm_status write_tables(const dm_dvh *dvh, const dvh_args *args, dm_error *err)
{
    char curves[4096], organs[4096];
    snprintf(curves, sizeof curves, "%s_dvh.tsv", args->output);
    snprintf(organs, sizeof organs, "%s_organs.tsv", args->output);
    dm_status status = dm_dvh_write_curves(dvh, curves, err);
    if (status == DM_OK)
        status = dm_dvh_write_organs(dvh, organs, err);
    if (status == DM_OK && !args->quiet && !args->json)
        printf("DVH          %s\norgan table  %s\n", curves, organs);
    return status;
}

static dm_status compute(const char *dose_path, const dvh_args *args, const dm_dvh_options *options,
                         dm_error *err)
{
    dm_volume *dose = NULL;
    dm_labels *labels = NULL;
    dm_dvh *dvh = NULL;
    char *json = NULL;
    dm_status status = dm_volume_read(dose_path, &dose, err);
    if (status == DM_OK)
        status = dm_labels_read(args->labels.items[0], args->label_names, &labels, err);
    if (status == DM_OK && args->resample_labels) {
        dm_labels *stored = labels;
        status = dm_labels_resample(stored, &dose->grid, &labels, err);
        dm_labels_free(stored);
    }
    if (status == DM_OK)
        status = dm_dvh_compute(dose, labels, options, &dvh, err);
    if (status == DM_OK && args->output)
        status = write_tables(dvh, args, err);
    if (status == DM_OK && args->json) {
        status = dm_dvh_json(dvh, &json, err);
        if (status == DM_OK)
            puts(json);
    } else if (status == DM_OK && !args->output) {
        print_table(dvh, options);
    }
    if (status != DM_OK && err->where[0] == '\0')
        snprintf(err->where, sizeof err->where, "%.511s", dose_path);
    dm_string_free(json);
    dm_dvh_free(dvh);
    dm_labels_free(labels);
    dm_volume_free(dose);
    return status;
}

/* A map says in its sidecar what it is in; the option is for maps of other programs. */
static int find_unit(const char *dose_path, const dvh_args *args, dm_dvh_options *options)
{
    int status = -1;
    json_t *sidecar = NULL;
    dm_error err = {0};
    if (!dose_sidecar_load(dose_path, &sidecar, &err)) {
        terminal_error(&err);
        return EXIT_FAILED;
    }
    const char *unit = dose_sidecar_unit(sidecar);
    options->per_activity = args->per_activity || (unit && strcmp(unit, "Gy/GBq") == 0);
    if (args->per_activity && unit && strcmp(unit, "Gy") == 0)
        status =
            usage_error(&command_dvh, "--per-activity, but the sidecar of %s says Gy", dose_path);
    json_decref(sidecar);
    return status;
}

static int run(int argc, char **argv)
{
    dvh_args args = {0};
    string_list doses = {0};
    double vx[MAX_VX];
    dm_dvh_options options = {0};
    dm_error err = {0};
    int status = options_parse(&command_dvh, argc, argv, &args, &doses);
    if (status < 0 && doses.count != 1)
        status = usage_error(&command_dvh, "one dose map is wanted, not %zu", doses.count);
    if (status < 0 && args.labels.count != 1)
        status = usage_error(&command_dvh, "--labels FILE|DIR is wanted once");
    if (status < 0 && args.vx) {
        options.n_v_thresholds = number_list(args.vx, vx, MAX_VX);
        options.v_thresholds = vx;
        if (options.n_v_thresholds == 0)
            status = usage_error(&command_dvh, "--vx wants doses like 5,10,20, not '%s'", args.vx);
    }
    if (status < 0)
        status = find_unit(doses.items[0], &args, &options);
    if (status < 0) {
        options.threads = args.threads;
        status = EXIT_DONE;
        if (compute(doses.items[0], &args, &options, &err) != DM_OK) {
            terminal_error(&err);
            status = EXIT_FAILED;
        }
    }
    free(args.labels.items);
    free(doses.items);
    return status;
}
