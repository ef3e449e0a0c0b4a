/* SPDX-License-Identifier: Apache-2.0 */
/* Tables of DVHs: organ table and cumulative curves as BIDS TSV, the organ table as JSON. Column
 * names carry the unit: mean_gy, or mean_gy_per_gbq. */
#include <ctype.h>
#include <locale.h>
#include <math.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "base/json_text.h"
#include "base/output_file.h"
#include "base/text_stream.h"
#include "dosimetry/dvh.h"

/* Rows of one structure's curve; finer ones are thinned to every nth bin edge. */
#define CURVE_ROWS 2000

static const struct {
    const char *name;
    size_t offset;
} dose_columns[] = {
    {"mean", offsetof(dm_structure_dose, mean)},   {"min", offsetof(dm_structure_dose, minimum)},
    {"max", offsetof(dm_structure_dose, maximum)}, {"d2", offsetof(dm_structure_dose, d2)},
    {"d50", offsetof(dm_structure_dose, d50)},     {"d95", offsetof(dm_structure_dose, d95)},
    {"d98", offsetof(dm_structure_dose, d98)},     {"d2cc", offsetof(dm_structure_dose, d2cc)}};
#define DOSE_COLUMNS (sizeof dose_columns / sizeof *dose_columns)

static const char *dose_unit(const dm_dvh *dvh)
{
    return dvh->per_activity ? "gy_per_gbq" : "gy";
}

/* Columns 0 ... DOSE_COLUMNS - 1 are doses, those behind them Vx. */
static size_t column_count(const dm_dvh *dvh)
{
    return DOSE_COLUMNS + dvh->n_thresholds;
}

static void column_name(const dm_dvh *dvh, size_t column, char name[64])
{
    if (column < DOSE_COLUMNS)
        snprintf(name, 64, "%s_%s", dose_columns[column].name, dose_unit(dvh));
    else
        snprintf(name, 64, "v%.9g%s_percent", dvh->thresholds[column - DOSE_COLUMNS],
                 dose_unit(dvh));
}

static double column_value(const dm_structure_dose *s, size_t column)
{
    if (column >= DOSE_COLUMNS)
        return s->v_percent[column - DOSE_COLUMNS];
    double value;
    memcpy(&value, (const char *)s + dose_columns[column].offset, sizeof value);
    return value;
}

/* ---- Text ----------------------------------------------------------------------------------- */

/* A table being written. The thread uses the C locale until it is finished: a caller's decimal
 * comma must not get into a file. */
typedef struct table {
    text_stream text;
    FILE *stream; /* the text's */
    locale_t c_locale, callers;
} table;

static dm_status table_open(table *t, dm_error *err)
{
    t->c_locale = newlocale(LC_NUMERIC_MASK, "C", (locale_t)0);
    if (!t->c_locale || !text_stream_open(&t->text)) {
        if (t->c_locale)
            freelocale(t->c_locale);
        return error_memory(err, 0, "a table");
    }
    t->stream = t->text.out;
    t->callers = uselocale(t->c_locale);
    return DM_OK;
}

static dm_status table_publish(table *t, const char *path, dm_error *err)
{
    size_t size = 0;
    char *text = text_stream_close(&t->text, true, &size);
    uselocale(t->callers);
    freelocale(t->c_locale);
    dm_status status =
        text ? output_write_all(path, text, size, err) : error_memory(err, size, "a table");
    free(text);
    return status;
}

static void put_number(FILE *stream, double value)
{
    if (isnan(value))
        fputs("\tn/a", stream);
    else
        fprintf(stream, "\t%.6g", value);
}

/* Names come from files: a tab or a line break in one would break the table. */
static void put_name(FILE *stream, const char *name)
{
    if (!*name)
        fputs("n/a", stream);
    for (; *name; name++)
        fputc(iscntrl((unsigned char)*name) ? ' ' : *name, stream);
}

dm_status dm_dvh_write_organs(const dm_dvh *dvh, const char *tsv_path, dm_error *err)
{
    table t;
    char name[64];
    dm_status status = table_open(&t, err);
    if (status != DM_OK)
        return status;
    fputs("name\tid\tvoxels\tvolume_cm3", t.stream);
    for (size_t c = 0; c < column_count(dvh); c++) {
        column_name(dvh, c, name);
        fprintf(t.stream, "\t%s", name);
    }
    fputc('\n', t.stream);
    for (size_t i = 0; i < dvh->count; i++) {
        const dm_structure_dose *s = &dvh->structures[i];
        put_name(t.stream, s->name);
        fprintf(t.stream, "\t%d\t%zu", (int)s->id, s->voxels);
        put_number(t.stream, s->volume_cm3);
        for (size_t c = 0; c < column_count(dvh); c++)
            put_number(t.stream, column_value(s, c));
        fputc('\n', t.stream);
    }
    return table_publish(&t, tsv_path, err);
}

static void put_curve_row(FILE *stream, const dm_structure_dose *s, size_t edge, uint64_t voxels)
{
    double share = (double)voxels / (double)s->voxels;
    put_name(stream, s->name);
    fprintf(stream, "\t%d", (int)s->id);
    put_number(stream, (double)edge * s->bin_width);
    put_number(stream, share * s->volume_cm3);
    put_number(stream, share * 100);
    fputc('\n', stream);
}

/* The volume at or above each edge; the last edge, above the maximum, closes the curve at zero. */
static void put_curve(FILE *stream, const dm_structure_dose *s)
{
    size_t stride = (s->bins + CURVE_ROWS - 1) / CURVE_ROWS;
    uint64_t above = s->voxels;
    for (size_t b = 0; b < s->bins; b++) {
        if (b % stride == 0)
            put_curve_row(stream, s, b, above);
        above -= s->histogram[b];
    }
    if (s->bins > 0)
        put_curve_row(stream, s, s->bins, above);
}

dm_status dm_dvh_write_curves(const dm_dvh *dvh, const char *tsv_path, dm_error *err)
{
    table t;
    dm_status status = table_open(&t, err);
    if (status != DM_OK)
        return status;
    fprintf(t.stream, "name\tid\tdose_%s\tvolume_cm3\tvolume_percent\n", dose_unit(dvh));
    for (size_t i = 0; i < dvh->count; i++)
        put_curve(t.stream, &dvh->structures[i]);
    return table_publish(&t, tsv_path, err);
}

/* ---- JSON ----------------------------------------------------------------------------------- */

static json_t *number_or_null(double value)
{
    return isnan(value) ? json_null() : json_real(value);
}

/* File names need not be UTF-8, JSON text must be. */
static json_t *name_string(const char *name)
{
    if (text_is_utf8(name))
        return json_string_nocheck(name);
    char *ascii = strdup(name);
    for (char *c = ascii; c && *c; c++)
        if ((unsigned char)*c >= 0x80)
            *c = '?';
    json_t *string = ascii ? json_string(ascii) : NULL;
    free(ascii);
    return string;
}

static json_t *structure_json(const dm_dvh *dvh, const dm_structure_dose *s)
{
    char name[64];
    json_t *object = json_object();
    int failed = !object;
    failed |= json_object_set_new(object, "name", name_string(s->name));
    failed |= json_object_set_new(object, "id", json_integer(s->id));
    failed |= json_object_set_new(object, "voxels", json_integer((json_int_t)s->voxels));
    failed |= json_object_set_new(object, "volume_cm3", number_or_null(s->volume_cm3));
    for (size_t c = 0; c < column_count(dvh); c++) {
        column_name(dvh, c, name);
        failed |= json_object_set_new(object, name, number_or_null(column_value(s, c)));
    }
    if (!failed)
        return object;
    json_decref(object);
    return NULL;
}

dm_status dm_dvh_json(const dm_dvh *dvh, char **json, dm_error *err)
{
    locale_t c_locale = newlocale(LC_NUMERIC_MASK, "C", (locale_t)0);
    locale_t callers = c_locale ? uselocale(c_locale) : (locale_t)0;
    json_t *array = c_locale ? json_array() : NULL;
    dm_status status = DM_OK;
    *json = NULL;
    if (!array)
        status = error_memory(err, 0, "the organ table");
    for (size_t i = 0; status == DM_OK && i < dvh->count; i++)
        if (json_array_append_new(array, structure_json(dvh, &dvh->structures[i])) != 0)
            status = error_memory(err, 0, "the organ table");
    if (status == DM_OK)
        status = json_print(array, json, err);
    json_decref(array);
    if (c_locale) {
        uselocale(callers);
        freelocale(c_locale);
    }
    return status;
}
