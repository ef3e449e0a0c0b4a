/* SPDX-License-Identifier: Apache-2.0 */
/* DVHs of a dose map that lies on the device. */
#ifndef DOSEMAP_PREDICT_CUDA_DEVICE_DVH_H
#define DOSEMAP_PREDICT_CUDA_DEVICE_DVH_H

#include <cuda_runtime_api.h>

#include "dosemap.h"

#ifdef __cplusplus
extern "C" {
#endif

/* As dvh_from_voxels (dosimetry/dvh.h), with the same result, but for the last bits of the mean.
 * d_dose: on the current device, one value per voxel of the labels' grid, complete when the stream
 * gets to it. Waits for the stream twice for every 128 structures. options may be NULL.
 * Errors: VALUE as there; MEMORY on host or device; DEVICE. */
dm_status device_dvh(const float *d_dose, const dm_labels *labels, const dm_dvh_options *options,
                     cudaStream_t stream, dm_dvh **dvh, dm_error *err);

#ifdef __cplusplus
}
#endif

#endif
