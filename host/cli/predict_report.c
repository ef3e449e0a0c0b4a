/* SPDX-License-Identifier: Apache-2.0 */
#include "cli/predict_report.h"

#include <jansson.h>
#include <stdio.h>
#include <string.h>

#include "cli/json_work.h"

/* JSON text of the library, on one line: a newline within a string would be escaped. Its numbers have
 * as few digits as give the same value back, which Jansson would not keep. */
static void print_json(const char *text)
{
    for (const char *c = text; *c; c++)
        if (*c == '\n')
            c += strspn(c + 1, " ");
        else
            putchar(*c);
}

/* JSON has no form for a path that is not UTF-8. */
static void print_path(const char *key, const char *path)
{
    json_t *value = json_string(path);
    printf("\"%s\":", key);
    if (value)
        json_dumpf(value, stdout, JSON_ENCODE_ANY);
    else
        fputs("null", stdout);
    putchar(',');
    json_decref(value);
}

void report_json(const char *pet, const dm_output_paths *paths, const dm_prediction *prediction)
{
    const dm_dvh *dvh = dm_prediction_dvh(prediction);
    char *organs = NULL;
    if (dvh && dm_dvh_json(dvh, &organs, NULL) != DM_OK)
        exit_without_memory();
    putchar('{');
    print_path("pet", pet);
    print_path("dose", paths->dose);
    print_path("sidecar", paths->sidecar);
    if (dvh) {
        print_path("dvh", paths->dvh);
        print_path("organs", paths->organs);
        fputs("\"structures\":", stdout);
        print_json(organs);
        putchar(',');
        dm_string_free(organs);
    }
    fputs("\"provenance\":", stdout);
    print_json(dm_prediction_provenance_json(prediction));
    fputs("}\n", stdout);
    fflush(stdout);
}

/* Nobody should take a constructed example for a trained network. */
static void print_weights(const dm_prediction *prediction)
{
    json_t *provenance = json_loads(dm_prediction_provenance_json(prediction), 0, NULL);
    const json_t *model = json_object_get(provenance, "Model");
    const char *name = json_string_value(json_object_get(model, "Name"));
    const json_t *trained = json_object_get(model, "Trained");
    printf("weights      %s%s\n", name ? name : "without a name",
           json_is_false(trained) ? ": constructed, NOT TRAINED" : "");
    json_decref(provenance);
}

/* What --tile auto chose, in options that repeat it. */
static void print_tile(const char *pet, const dm_prediction *prediction)
{
    json_t *provenance = json_loads(dm_prediction_provenance_json(prediction), 0, NULL);
    const json_t *options = json_object_get(provenance, "Options");
    const json_t *tile = json_object_get(options, "Tile");
    const json_t *windows = json_object_get(provenance, "Windows");
    json_int_t n[3], all = json_integer_value(json_object_get(windows, "Run")) +
                           json_integer_value(json_object_get(windows, "Skipped"));
    for (size_t a = 0; a < 3; a++)
        n[a] = json_integer_value(json_array_get(tile, a));
    if (json_is_true(json_object_get(options, "TileChosen")))
        fprintf(stderr,
                "dosemap: %s: --tile %lld,%lld,%lld --overlap %g, %lld window%s, about %.2f GiB\n",
                pet, (long long)n[0], (long long)n[1], (long long)n[2],
                json_number_value(json_object_get(options, "Overlap")), (long long)all,
                all == 1 ? "" : "s",
                json_number_value(json_object_get(options, "MemoryNeeded")) / 0x1p30);
    json_decref(provenance);
}

void report_text(const char *pet, const dm_output_paths *paths, const dm_prediction *prediction)
{
    print_tile(pet, prediction);
    printf("dose map     %s\nsidecar      %s\n", paths->dose, paths->sidecar);
    if (dm_prediction_dvh(prediction))
        printf("DVH          %s\norgan table  %s\n", paths->dvh, paths->organs);
    print_weights(prediction);
    fflush(stdout);
}
