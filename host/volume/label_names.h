/* SPDX-License-Identifier: Apache-2.0 */
/* Names of structure ids, from JSON, TSV or TotalSegmentator's tables. */
#ifndef DOSEMAP_VOLUME_LABEL_NAMES_H
#define DOSEMAP_VOLUME_LABEL_NAMES_H

#include "dosemap.h"

typedef struct label_names {
    size_t count;
    struct label_name {
        int32_t id;
        char *name;
    } * items;
} label_names;

/* `source`: a .json or .tsv file, or "totalsegmentator:TASK". Ids and names are unique; id 0 is the
 * background, whose name is not kept. */
dm_status label_names_read(const char *source, label_names *names, dm_error *err);
void label_names_clear(label_names *names);
/* Names go into TSV and JSON: not empty, UTF-8, no control characters. */
bool label_name_usable(const char *name);
/* NULL if the id has no name. */
const char *label_names_find(const label_names *names, int32_t id);

/* The text after "totalsegmentator:" as a table indexed by id (0 is NULL); false if unknown. */
bool totalsegmentator_names(const char *task, const char *const **table, size_t *count);

#endif
