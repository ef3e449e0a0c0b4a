/* SPDX-License-Identifier: Apache-2.0 */
/* The library from C: predict_example PET.nii.gz BODY_WEIGHT_KG OUT.nii.gz. */
#include <dosemap.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

int main(int argc, char **argv)
{
    if (argc != 4) {
        fprintf(stderr, "usage: %s PET.nii.gz BODY_WEIGHT_KG OUT.nii.gz\n", argv[0]);
        return 2;
    }
    dm_error err = {0};
    char text[2048], model_path[4096];
    dm_model *model = NULL;
    dm_volume *pet = NULL;
    dm_predictor *predictor = NULL;
    dm_prediction *prediction = NULL;
    dm_pet_info info;
    dm_predict_options options;
    dm_predict_options_init(&options);
    options.overlap = 0;

    if (dm_default_model_path(model_path, sizeof model_path, &err) != DM_OK ||
        dm_model_load(model_path, &model, &err) != DM_OK ||
        dm_volume_read(argv[1], &pet, &err) != DM_OK ||
        dm_pet_info_read(argv[1], &info, &err) != DM_OK)
        goto done;
    if (info.units == DM_UNITS_UNKNOWN)
        info.units = DM_UNITS_SUV;
    info.body_weight_kg = atof(argv[2]);
    dm_sources sources = {.pet_path = argv[1]};
    if (dm_predictor_create(model, &options, &predictor, &err) == DM_OK &&
        dm_predictor_run(predictor, &(dm_patient){.pet = pet, .info = &info}, &prediction, &err) ==
            DM_OK &&
        dm_prediction_write(prediction, argv[3], &sources, 0, &err) == DM_OK)
        printf("dosemap %s: %zu voxels with %s\n", dm_version(),
               dm_grid_voxels(&dm_prediction_dose(prediction)->grid), dm_model_name(model));
done:
    if (err.status != DM_OK)
        fprintf(stderr, "%s\n", dm_error_text(&err, text, sizeof text));
    dm_prediction_free(prediction);
    dm_predictor_free(predictor);
    dm_volume_free(pet);
    dm_model_free(model);
    return err.status == DM_OK ? 0 : 1;
}
