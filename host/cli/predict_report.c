/* SPDX-License-Identifier: Apache-2.0 */
#include "cli/predict_report.h"

#include <jansson.h>
#include <stdio.h>

#include "cli/json_work.h"

/* JSON has no form for a path that is not UTF-8. */
static json_t *path_or_null(const char *path)
{
    json_t *value = json_string(path);
    return value ? value : json_null();
}

void report_json(const char *pet, const dm_output_paths *paths, const dm_prediction *prediction)
{
    json_t *object = json_object();
    json_object_set_new(object, "pet", path_or_null(pet));
    json_object_set_new(object, "dose", path_or_null(paths->dose));
    json_object_set_new(object, "sidecar", path_or_null(paths->sidecar));
    const dm_dvh *dvh = dm_prediction_dvh(prediction);
    char *organs = NULL;
    if (dvh) {
        if (dm_dvh_json(dvh, &organs, NULL) != DM_OK)
            exit_without_memory();
        json_object_set_new(object, "dvh", path_or_null(paths->dvh));
        json_object_set_new(object, "organs", path_or_null(paths->organs));
        json_object_set_new(object, "structures", json_loads(organs, 0, NULL));
        dm_string_free(organs);
    }
    json_object_set_new(object, "provenance",
                        json_loads(dm_prediction_provenance_json(prediction), 0, NULL));
    json_dumpf(object, stdout, JSON_COMPACT);
    putchar('\n');
    fflush(stdout);
    json_decref(object);
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
