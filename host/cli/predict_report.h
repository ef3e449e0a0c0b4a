/* SPDX-License-Identifier: Apache-2.0 */
/* What `dosemap predict` says on standard output when a PET is done; between json_work_begin and
 * json_work_end. */
#ifndef DOSEMAP_CLI_PREDICT_REPORT_H
#define DOSEMAP_CLI_PREDICT_REPORT_H

#include "dosemap.h"

/* One line of JSON. */
void report_json(const char *pet, const dm_output_paths *paths, const dm_prediction *prediction);
void report_text(const char *pet, const dm_output_paths *paths, const dm_prediction *prediction);

#endif
